"""`fastmim pretrain` as users run it: what appears, resume after any kill, stages, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import fastmim
from conftest import SMALL, losses
from fastmim import RequestError, RunError
from fastmim.backbone.initial import sincos_table
from fastmim.method.visualise import visualise_run
from small_run import lines, pretrain
from tuning import equal, tensors


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


def test_overwriting_unlinks_and_leaves_what_links_lead_to(tmp_path: Path, photos: Path) -> None:
    out = pretrain(tmp_path / "run", photos).out
    (out / "checkpoints").rename(tmp_path / "big disk")
    (out / "checkpoints").symlink_to(tmp_path / "big disk")
    (out / "samples").symlink_to(tmp_path / "nowhere")
    pretrain(out, photos, steps=4, overwrite=True)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_000000004"]
    assert (tmp_path / "big disk/step_000000012").exists() and not (out / "checkpoints").is_symlink()


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


def test_files_have_the_modes_of_the_umask(tmp_path: Path, photos: Path) -> None:
    before = os.umask(0o027)
    try:
        out = pretrain(tmp_path / "run", photos, steps=2).out
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*.*") if path.is_file()}
    assert {"model.safetensors", "optim.safetensors", "manifest.json", "weights.safetensors"} <= modes.keys()
    assert {mode for name, mode in modes.items() if name != ".lock"} == {0o640}
