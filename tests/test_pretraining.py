"""`fastmim pretrain` as users run it: what appears, resume after any kill, stages, refusals."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import fastmim
from conftest import SMALL, command_line, losses
from fastmim import RequestError, RunError
from fastmim.backbone.initial import sincos_table
from fastmim.method.visualise import visualise_run


def pretrain(out: Path, data: Path, **settings: Any) -> Any:
    return fastmim.pretrain(**(SMALL | {"data": str(data), "out": out} | settings))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """The whole final model: backbone, mask token and decoder."""
    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(out: Path, data: Path, **settings: Any) -> list[str]:
    """The command line of the small run."""
    return command_line("pretrain", data, out, SMALL | settings)


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def test_a_run_directory_holds_what_is_promised(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = pretrain(out, photos, steps=60, picture_every="30 steps")
    assert result.finished and result.weights.exists()
    assert [line["step"] for line in result.metrics if "loss" in line][-1] == result.step
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "starts.jsonl", "checkpoints", "weights.safetensors", "samples", "blocks.json",
    }  # fmt: skip
    kinds = ("attention", "features", "step")
    pictures = [f"{kind}_{step:09d}.png" for kind in kinds for step in (30, 60)]
    assert sorted(p.name for p in (out / "samples").iterdir()) == pictures
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["step_000000056", "step_000000060"]
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert stored["steps"] == 60 and stored["versions"]["timm"] == timm.__version__
    curve = losses(out)
    assert sum(curve[-5:]) / 5 < 0.8 * curve[0]
    explained = [numbers["explained_variance"] for line in lines(out) if "loss" not in (numbers := json.loads(line))]
    assert len(explained) == 2 and explained[0] < explained[1] < 0.005
    assert result.report() == out / "report.html"
    said = "step_000000060.png: predictions are no better yet than the mean of the hidden blocks"
    assert said in " ".join(capsys.readouterr().out.split())


def test_weights_load_into_timm_and_say_what_they_are(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos)
    tensors, facts = fastmim.weights.read(out) if hasattr(fastmim, "weights") else _read(out)
    model = timm.create_model(
        facts["architecture"], **facts["arguments"], checkpoint_path=str(out / "weights.safetensors")
    )
    assert facts["steps"] == 12 and facts["img_size"] == 32 and facts["trained_blocks"] == 2
    loaded = fastmim.load_backbone(out, backbone="vit_tiny_patch16_224", backbone_args=SMALL["backbone_args"])
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images))
    trained = {k.removeprefix("backbone.model."): v for k, v in _model(out).items() if k.startswith("backbone.")}
    assert equal({k: v for k, v in tensors.items() if k in trained}, trained)


def _read(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from fastmim import weights

    return weights.read(out)


_model = tensors


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_and_the_same_command_give_the_same_weights(tmp_path: Path, photos: Path, workers: int) -> None:
    """A real process, killed while it trains, more than once; bit-identical to one that was never stopped."""
    settings = {"steps": 40, "stages": "32:0.5,48:0.5", "save_every": 4, "picture_every": "10 steps"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run(command(whole, photos, **settings), env=ENVIRONMENT, capture_output=True).returncode == 0
    for kills in range(2):
        process = subprocess.Popen(
            command(killed, photos, num_workers=workers, **settings), env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        wait_for(lambda kills=kills: len(lines(killed)) > 4 + 7 * kills, process)
        process.kill()
        process.wait()
    assert not (killed / "weights.safetensors").exists()
    end = subprocess.run(command(killed, photos, **settings), env=ENVIRONMENT, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert "resuming at step" in end.stdout
    assert equal(tensors(whole), tensors(killed))
    assert losses(whole) == losses(killed)


def lines(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Any, process: subprocess.Popen[Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(tmp_path: Path, photos: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, photos, steps=2000, save_every=1000, num_workers=1),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(lines(out)) > 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.startswith("stopping after this step; again to leave without saving\nstopped and saved at step ")
    assert "run the same command to resume" in errors and "Traceback" not in errors
    step = json.loads(lines(out)[-1])["step"]
    [saved] = (out / "checkpoints").iterdir()
    assert step <= int(saved.name.removeprefix("step_")) < 2000


STALLING = """
import multiprocessing, sys, time
from fastmim import cli
from fastmim.data.loader import _Crops

answer = _Crops.__getitems__

def stall(self, batch):
    if batch[0] > 0:  # the epoch
        time.sleep(600)
    return answer(self, batch)

_Crops.__getitems__ = stall
multiprocessing.set_start_method("fork")
cli.main(sys.argv[1:])
"""


def test_a_signal_saves_while_the_data_stalls(tmp_path: Path, photos: Path) -> None:
    """As on a network disk that has gone: an epoch of three steps comes, and then nothing."""
    out = tmp_path / "run"
    words = [sys.executable, "-c", STALLING, *command(out, photos, log_every=1, num_workers=2)[3:]]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(lines(out)) == 3, process)
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    assert errors.splitlines() == [
        "stopping after this step; again to leave without saving",
        "stopped and saved at step 3 of 12; run the same command to resume",
    ]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_000000003"]


def _log_refuses(self: Any, step: int, metrics: dict[str, float]) -> None:
    if step == 6:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def _weights_refuse(tensors: dict[str, Any], path: Path, metadata: Any) -> None:
    if metadata:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    save_file(tensors, path)


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", "there")


@pytest.mark.parametrize(
    ("place", "refuse", "what", "kept"),
    [
        ("fastmim.training.logs.Logs.log", _log_refuses, r"\[Errno 122\] Disk quota exceeded", 4),
        ("fastmim.system.tensor_files.save_file", _weights_refuse, r"\[Errno 28\] No space left on device: '.*'", 12),
        ("PIL.Image.Image.save", _refuse, r"\[Errno 30\] Read-only file system: 'there'", 4),
        ("fastmim.data.bad_images.write_text", _refuse, r"\[Errno 30\] Read-only file system: 'there'", None),
    ],
)
def test_a_disk_that_refuses_is_one_line_that_says_what_is_intact(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, place: str, refuse: Any, what: str, kept: int | None
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "damaged.jpg").write_bytes(b"damaged")
    out, settings = tmp_path / "run", {"picture_every": "6 steps", "max_bad_share": 1.0}
    intact = f"the checkpoint of step {kept} in .* is intact" if kept else "there is no earlier checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(place, refuse)
        with pytest.raises(RunError) as caught:
            pretrain(out, data, **settings)
    line = f"the run in .*run failed: {what}; {intact}: free space or mend the disk, and run the same command to resume"
    assert re.fullmatch(line, str(caught.value))
    assert pretrain(out, data, **settings).finished


def test_the_same_directory_alone_resumes(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    whole = pretrain(tmp_path / "whole", photos)
    pretrain(out, photos)
    shutil.rmtree(out / "checkpoints/step_000000012")
    (out / "weights.safetensors").unlink()
    assert fastmim.pretrain(out=out).finished
    assert equal(tensors(out), tensors(whole.out))


def test_a_run_inside_its_data_resumes(tmp_path: Path, photos: Path) -> None:
    """Its own pictures are no training images, so the data is the same when it resumes."""
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    settings = {"picture_every": "4 steps", "steps": 8}
    whole = pretrain(tmp_path / "whole", photos, **settings)
    out = pretrain(data / "runs" / "x", data, **settings).out
    shutil.rmtree(out / "checkpoints/step_000000008")
    with pytest.warns(UserWarning, match="passed over the run directory runs/x, whose pictures are no training images"):
        assert pretrain(out, data, **settings).finished
    assert equal(tensors(out), tensors(whole.out))


def test_order_and_randomness_do_not_depend_on_workers_or_micro_batches(tmp_path: Path, photos: Path) -> None:
    one, two = (pretrain(tmp_path / str(n), photos, num_workers=n, steps=4).out for n in (0, 2))
    assert equal(tensors(one), tensors(two))
    pretrain(tmp_path / "micro", photos, steps=4, micro_batch=4)
    for name, tensor in tensors(tmp_path / "micro").items():
        torch.testing.assert_close(tensor, tensors(one)[name], rtol=1e-3, atol=1e-4)


def test_stages_change_the_size_and_nothing_else(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos, stages="32:0.5,48:0.25,64:0.25", steps=16)
    assert tensors(out)["backbone.model.pos_embed"].shape == (1, 65, 48)
    rates = [json.loads(line)["lr"] for line in lines(out)]
    assert rates == [json.loads(line)["lr"] for line in lines(pretrain(tmp_path / "one", photos, steps=16).out)]


def test_a_stage_of_less_than_a_step_is_left_out(tmp_path: Path, photos: Path) -> None:
    result = pretrain(tmp_path / "run", photos, stages="32:0.01,48:0.99", steps=4)
    assert result.finished
    assert tensors(result.out)["backbone.model.pos_embed"].shape == (1, 37, 48)


def test_swin_trains_low_and_loads_high(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos, backbone="swin_s3_tiny_224", backbone_args={}, img_size=128, steps=1, batch_size=2)
    model = timm.create_model("swin_s3_tiny_224", checkpoint_path=str(out / "weights.safetensors"))
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)


def test_encoder_depth_trains_the_first_blocks_only(tmp_path: Path, photos: Path) -> None:
    pretrain(tmp_path / "run", photos, encoder_depth=0.5)
    facts = _read(tmp_path / "run")[1]
    assert (facts["trained_blocks"], facts["num_blocks"], facts["untrained"]) == (1, 2, ["blocks.1"])


def positions(run: Path, step: int) -> torch.Tensor:
    tensors = load_file(run / f"checkpoints/step_{step:09d}/model.safetensors")
    return tensors["backbone.model.pos_embed"]


def test_position_embeddings_are_fixed_and_computed_anew_at_a_stage(tmp_path: Path, photos: Path) -> None:
    staged = SMALL | {"data": str(photos), "out": tmp_path / "run", "stages": "32:0.5,48:0.5", "save_every": 6}
    fastmim.pretrain(**staged)
    for step, grid in ((6, 4), (12, 6)):
        expected = sincos_table((grid, grid), 48)
        assert torch.equal(positions(tmp_path / "run", step)[0, 1:], expected)
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000012")
    assert fastmim.pretrain(**staged).finished  # resumes behind the boundary, at the second size
    assert torch.equal(positions(tmp_path / "run", 12)[0, 1:], expected)


def test_position_embeddings_of_given_weights_are_trained(tmp_path: Path, photos: Path, pretrained: Path) -> None:
    before = load_file(pretrained / "weights.safetensors")["pos_embed"]
    settings = SMALL | {"data": str(photos), "out": tmp_path / "run", "init": str(pretrained), "save_every": 6}
    fastmim.pretrain(**settings)
    first, last = positions(tmp_path / "run", 6), positions(tmp_path / "run", 12)
    assert not torch.equal(first, before) and not torch.equal(last, first)
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000012")
    fastmim.pretrain(**settings)  # a resumed run trains them too
    assert torch.equal(positions(tmp_path / "run", 12), last)


def test_init_goes_on_from_weights_and_refuses_others(tmp_path: Path, photos: Path) -> None:
    first = pretrain(tmp_path / "first", photos)
    second = pretrain(tmp_path / "second", photos, init=str(first.out), steps=1, lr=1e-9)
    a, b = tensors(first.out), tensors(second.out)
    torch.testing.assert_close(
        a["backbone.model.blocks.0.attn.qkv.weight"], b["backbone.model.blocks.0.attn.qkv.weight"]
    )
    other_heads = SMALL["backbone_args"] | {"num_heads": 6}
    with pytest.raises(RequestError, match="the weights hold num_heads 3, not 6"):
        pretrain(tmp_path / "third", photos, init=str(first.out), backbone_args=other_heads)
    dry = SMALL | {"data": str(photos), "out": tmp_path / "third", "init": str(first.out), "backbone_args": other_heads}
    with pytest.raises(RequestError, match="the weights hold num_heads 3, not 6"):
        fastmim.pretrain(**dry, dry_run=True)
    with pytest.raises(RequestError, match="the weights hold backbone vit_tiny_patch16_224, not vit_small"):
        pretrain(tmp_path / "third", photos, init=str(first.out), backbone="vit_small_patch16_224")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", r"\(lr 0.01 -> 0.00015\): restore config.yaml, take another --out, or delete the run with --overwrite"),
        ("seed: 1", r"\(seed 0 -> 1\)"),
        ("backbone_args: {depth: 3}", r"\(backbone_args \{.*'depth': 2.*\} -> \{'depth': 3\}\)"),
    ],
)
def test_a_config_that_lost_or_changed_settings_is_not_believed(
    tmp_path: Path, photos: Path, change: str, message: str
) -> None:
    out = pretrain(tmp_path / "run", photos, betas=(0.9, 0.99)).out
    stored = yaml.safe_load((out / "config.yaml").read_text())
    key, _, value = change.partition(": ")
    changed = stored | {key: yaml.safe_load(value)} if value else {k: v for k, v in stored.items() if k != key}
    (out / "config.yaml").write_text(yaml.safe_dump(changed))
    message = r"differ from those of its checkpoint step_000000012 " + message
    with pytest.raises(RequestError, match=message):
        fastmim.pretrain(out=out)
    with pytest.raises(RequestError, match=message):
        visualise_run(out, out=tmp_path / "x.png")
    (out / "config.yaml").unlink()
    with pytest.raises(RequestError, match=r"\(lr 0.01 -> 0.02\)"):
        pretrain(out, photos, betas=(0.9, 0.99), lr=0.02)
    (out / "config.yaml").write_text(yaml.safe_dump(stored | {"save_every": 100, "log_every": 1}))
    assert fastmim.pretrain(out=out).finished


def test_the_directory_of_another_kind_of_run_is_refused(tmp_path: Path, pretrained: Path, labelled: Path) -> None:
    shutil.copytree(pretrained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(RequestError, match=r"backbone 'vit_tiny.*' -> None.*target 'hog' -> no setting"):
        fastmim.finetune(data=str(labelled), weights=str(pretrained), out=tmp_path, device="cpu", img_size=32)


def test_resuming_and_drawing_need_no_published_weights(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has the weights; the network may be down, and what `init` names be gone."""
    made: list[bool] = []
    create = timm.create_model

    def create_model(name: str, *, pretrained: bool = False, **arguments: Any) -> Any:
        made.append(pretrained)
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", create_model)
    out = pretrain(tmp_path / "run", photos, init="timm").out
    assert any(made)
    final = tensors(out)
    shutil.rmtree(out / "checkpoints/step_000000012")
    made.clear()
    visualise_run(out, out=tmp_path / "x.png", num_images=1)
    assert fastmim.pretrain(out=out).finished and equal(tensors(out), final)
    assert made and not any(made)


def test_odd_lines_of_metrics_are_left_out(tmp_path: Path, photos: Path) -> None:
    out = pretrain(tmp_path / "run", photos).out
    kept = lines(out)
    odd = b'\xff\xfe\x00\nnull\n7\n[1]\n{"step": "x"}\n{"loss": 1}\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b"\n"
    (out / "metrics.jsonl").write_bytes(odd + "\n".join(kept).encode() + b'\n{"step": 1')
    assert fastmim.pretrain(out=out).finished
    assert lines(out) == kept


def test_what_kills_left_behind_is_removed(tmp_path: Path, photos: Path) -> None:
    """A kill while weights or lists were written, and one while the last save pruned."""
    out = pretrain(tmp_path / "run", photos).out
    for step in (2, 6):
        shutil.copytree(out / "checkpoints/step_000000012", out / f"checkpoints/.tmp_step_00000000{step}")
    before = {path.relative_to(out) for path in out.rglob("*") if ".tmp" not in str(path)}
    whole = pretrain(tmp_path / "third", photos, steps=12, keep_every=4).out
    shutil.copytree(whole / "checkpoints/step_000000004", out / "checkpoints/step_000000004")
    for name in ("weights.safetensors", "bad_images.txt"):
        (out / f".{name}.123.tmp").mkdir()
        (out / f".{name}.123.tmp/.tmpAbCdEf").write_text("half")
    (out / ".config.yaml.123.tmp").write_text("half")
    (out / ".notes.tmp").write_text("mine")
    assert pretrain(out, photos).finished
    assert {path.relative_to(out) for path in out.rglob("*")} == before | {Path(".notes.tmp")}


def test_overwriting_unlinks_and_leaves_what_links_lead_to(tmp_path: Path, photos: Path) -> None:
    out = pretrain(tmp_path / "run", photos).out
    (out / "checkpoints").rename(tmp_path / "big disk")
    (out / "checkpoints").symlink_to(tmp_path / "big disk")
    (out / "samples").symlink_to(tmp_path / "nowhere")
    pretrain(out, photos, steps=4, overwrite=True)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_000000004"]
    assert (tmp_path / "big disk/step_000000012").exists() and not (out / "checkpoints").is_symlink()


def test_a_fine_tuning_run_has_no_reconstructions(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("weights: runs/photos\nval_data: null\n")
    with pytest.raises(
        RequestError, match=r"a fine-tuning run, .* expected a pre-training run, such as .*\(runs/photos\)"
    ):
        visualise_run(tmp_path, out=tmp_path / "x.png")


def test_a_different_run_in_the_same_place_is_refused(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos, steps=4)
    with pytest.raises(RequestError, match=r"holds another run \(mask_ratio 0.75 -> 0.5\).*--overwrite"):
        pretrain(out, photos, steps=8, mask_ratio=0.5)
    assert pretrain(out, photos, steps=8, mask_ratio=0.5, overwrite=True).finished
    assert len(lines(out)) == 4


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, photos: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    out = pretrain(tmp_path / "run", data).out
    (data / "00.jpg").rename(data / "new.jpg")
    with pytest.raises(RequestError, match="data is .*data, whose images have other names than those .* began with"):
        pretrain(out, data)
    (data / "new.jpg").unlink()
    with pytest.raises(RequestError, match="with 23 images; expected the 24 that the run in"):
        pretrain(out, data)


def test_bad_images_are_skipped_and_named(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    (data / "03.jpg").write_bytes(b"<html>not found</html>")
    (data / "07.jpg").write_bytes((photos / "07.jpg").read_bytes()[:300])
    pretrain(out, data, max_bad_share=0.1)
    said = capsys.readouterr().out
    assert said.count("; all such images are listed in") == 1
    assert f"skipped 2 of 24 images as unreadable; they are listed in {out}/bad_images.txt\n" in said
    named = (out / "bad_images.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in named] == ["03.jpg", "07.jpg"]
    with pytest.raises(RunError, match=r"cannot be read.*raise --max-bad-share above 0.05"):
        pretrain(tmp_path / "strict", data)


def test_nan_images_stop_the_run(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RunError, match="the loss was not finite in .* steps in a row"):
        pretrain(tmp_path / "run", photos, lr=1e38, steps=60, warmup="0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "no/such/photos"}, "no/such/photos"),
        ({"batch_size": 25}, "24 images in .* are fewer than one batch of 25: lower --batch-size to 24 or less"),
        ({"img_size": 36}, "img_size is 36; expected whole HOG cells of 8 pixels under .* about 4 x 4: take 32 or 64"),
        ({"img_size": 100_000_000}, "img_size is 100000000; expected at most 8192 pixels for vit_tiny_patch16_224"),
        ({"stages": "32:0.5,100000000:0.5"}, "img_size is 100000000; expected at most 8192 pixels"),
        ({"backbone_args": {"depth": 0}}, "args .*: the model has no blocks; expected arguments that timm's vit_tiny"),
        ({"init": "x" * 300}, r"weights is 'x+\.\.\.x+'; expected a fastmim weights file or a finished run"),
        ({"block": 12}, "img_size is 32; expected a multiple of the block of 12 pixels: take 24 or 36, or set block"),
        ({"img_size": 48, "block": 32}, "img_size is 48; expected a multiple of the block of 32 pixels: take 32 or 64, or set block"),
        ({"block": 4}, "block is 4; expected a multiple of the backbone's stride of 8 pixels"),
        ({"mask_ratio": 0.99}, "mask_ratio is 0.99; with 16 blocks of 8 pixels nothing stays visible"),
        ({"backbone": "vit_tinny_patch16_224", "backbone_args": {}}, "vit_tiny_patch16_224"),
        ({"backbone": "resnetv2_50x1_bit", "backbone_args": {"depth": 3}}, "depth"),
        ({"recipe": "vit-bb"}, "recipe is 'vit-bb'; expected one of vit-b, swin-b, .*; did you mean"),
        ({"device": "cuda:7"}, "device is 'cuda:7'; expected one that this machine has"),
        ({"device": "gpu"}, "device is 'gpu'; expected one that this machine has: cpu.*, or auto"),
        ({"device": "meta"}, "device is 'meta'; expected one that this machine has"),
        ({"device": "privateuseone"}, "device is 'privateuseone'; expected one that this machine has"),
        ({"trackers": "wandb"}, "trackers names wandb, which is not installed; run: pip install"),
        ({"init": "none.safetensors"}, "weights is 'none.safetensors'; expected a fastmim weights file or a finished run"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(tmp_path: Path, photos: Path, settings: dict[str, Any], message: str) -> None:
    if settings.get("trackers") == "wandb" and shutil.which("wandb"):
        pytest.skip("wandb is installed")
    data = Path(settings.pop("data", photos))
    with pytest.raises(RequestError, match=message) as error:
        pretrain(tmp_path / "run", data, **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_the_default_batch_are_all_of_a_batch(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "batch_size"}
    settings |= {"out": tmp_path / "run", "steps": 2}
    for _ in range(2):  # the same call resumes it
        assert fastmim.pretrain(**settings | {"data": str(photos)}).finished
    said = capsys.readouterr().out
    assert said.count("note      a batch of 24 instead of 256: there are no more images\n") == 1
    assert said.count("batch     24 images, 24 at once") == 2
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["batch_size"] == 24


def test_a_missing_tracker_is_refused_before_the_plan(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmim.training.trackers.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"trackers names mlflow, which is not installed; run: pip install"):
        pretrain(tmp_path / "run", photos, trackers="mlflow")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_files_have_the_modes_of_the_umask(tmp_path: Path, photos: Path) -> None:
    before = os.umask(0o027)
    try:
        out = pretrain(tmp_path / "run", photos, steps=2).out
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*.*") if path.is_file()}
    assert {"model.safetensors", "optim.safetensors", "manifest.json", "weights.safetensors"} <= modes.keys()
    assert {mode for name, mode in modes.items() if name != ".lock"} == {0o640}


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(RequestError, match=str(tmp_path)):
        pretrain(tmp_path / "run", tmp_path)


def test_a_size_that_the_backbone_cannot_take_is_refused_before_the_run(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match="img_size is 52; expected whole HOG cells of 8 pixels"):
        pretrain(tmp_path / "run", photos, stages="32:0.5,52:0.5")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_directory_is_refused(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"out is .*file/run: Not a directory; expected a path that can be written"):
        pretrain(tmp_path / "file/run", photos)
    (tmp_path / "run/config.yaml/mine").mkdir(parents=True)
    not_a_file = r"config is .*run/config.yaml, which is not a file; expected the config of a run: remove it"
    with pytest.raises(RequestError, match=not_a_file):
        pretrain(tmp_path / "run", photos)
    (tmp_path / "run/config.yaml/mine").rename(tmp_path / "run/mine")
    (tmp_path / "run/config.yaml").rmdir()
    os.mkfifo(tmp_path / "run/config.yaml")
    with pytest.raises(RequestError, match=not_a_file):
        pretrain(tmp_path / "run", photos)
    (tmp_path / "run/config.yaml").unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RequestError, match=r"out is .*run: Input/output error; expected a directory that can be writ"):
        pretrain(tmp_path / "run", photos)


def test_too_few_visible_blocks_are_said(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block, said in ((16, True), (8, False)):
        pretrain(tmp_path / "run", photos, block=block, dry_run=True)
        note = "note      1 of 4 blocks visible, too few to predict the others from: raise --img-size"
        assert (note in capsys.readouterr().out) == said
