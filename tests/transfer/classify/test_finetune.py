"""`fastmim finetune` as users run it: what appears, exact resume, evaluation."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import fastmim
from fastmim import RunError, weights
from fastmim.cli import main
from fastmim.data import loader
from fastmim.data.augment import decode_center, normalise
from fastmim.data.labelled import open_labelled
from fastmim.system.fonts import font_for
from fastmim.system.run_directory import RunDirectory
from fastmim.training import meter
from tuning import NETWORK, PLAIN, TINY, equal, finetune, lines, tensors


def test_a_run_learns_and_its_directory_holds_what_is_promised(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = finetune(out, labelled, steps=60, eval_every="20 steps", lr=0.1, **PLAIN)
    assert result.finished and result.top1 is not None and result.top1 > 0.9
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "starts.jsonl", "checkpoints", "samples", "evaluation.json",
        "weights.safetensors", "weights_best.safetensors",
    }  # fmt: skip
    assert {p.name for p in out.iterdir()} <= set(RunDirectory.FILES)
    pictures = sorted(p.name for p in (out / "samples").iterdir())
    assert pictures == [f"confusion_{step:09d}.png" for step in (20, 40, 60)]
    scores = json.loads((out / "evaluation.json").read_text())
    assert scores["step"] == 60 and scores["images"] == 24 and scores["val_top1"] == result.top1
    assert scores["per_class"].keys() == {"blue", "green", "red"}
    validated = [line for line in lines(out) if "val_top1" in line]
    assert [line["step"] for line in validated] == [20, 40, 60]
    assert validated[0].keys() == {"step", "val_top1", "val_loss", "val_mean_class"}  # no top-5 of three classes
    assert result.best_top1 == max(line["val_top1"] for line in validated)
    said = capsys.readouterr().out
    assert "3 classes of 8 to 40" in said and "nothing: an untrained network" in said
    assert "of 24 validation images correct" in said and "(best)" in said


@pytest.mark.parametrize(("steps", "every"), [(5, 5), (40, 8), (400, 20)])
def test_validation_comes_twenty_times_but_at_most_once_an_epoch(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str], steps: int, every: int
) -> None:
    changed = {"data": str(labelled), "out": tmp_path, "eval_every": None, "steps": steps}
    fastmim.finetune(**TINY | NETWORK | changed, dry_run=True)
    assert f"validated every {every} steps" in capsys.readouterr().out  # an epoch is 8 steps


def test_weights_load_into_timm_and_give_the_accuracy_that_was_reported(tmp_path: Path, labelled: Path) -> None:
    result = finetune(tmp_path / "run", labelled, steps=40, eval_every="10 steps", lr=0.1, **PLAIN)
    val = open_labelled(str(labelled)).val
    for path, top1 in ((result.weights, result.top1), (result.best_weights, result.best_top1)):
        _, facts = weights.read(path)
        assert facts["classes"] == ["blue", "green", "red"]
        model = timm.create_model(facts["architecture"], **facts["arguments"], checkpoint_path=str(path)).eval()
        images = torch.stack([decode_center(val.read(index), 32) for index in range(len(val))])
        with torch.no_grad():
            logits = model(normalise(images, torch.tensor(facts["mean"]), torch.tensor(facts["std"])))
        assert (logits.argmax(1).numpy() == val.labels).mean() == top1
        assert facts.get("scores", {"val_top1": top1})["val_top1"] == top1


# Resume

ANSWER = "stopping after this step; again to leave without saving\n"


class KilledError(Exception):
    """Stands for the process being gone."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the data break off in this step of the run."""
    load = loader.load

    def broken(*args: Any, **settings: Any) -> Iterator[Any]:
        for number, batch in enumerate(load(*args, **settings), start=settings["first_step"]):
            if number == step:
                raise KilledError
            yield batch

    monkeypatch.setattr(loader, "load", broken)


@pytest.mark.parametrize("step", [3, 4, 9])
def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, labelled: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With everything random on, and averaged weights; killed before, at and after a checkpoint and evaluation."""
    moved = tmp_path / "pretrained"
    shutil.copytree(pretrained, moved)
    settings = {"weights": str(moved), "ema": 0.9, "eval_every": "3 steps"}
    whole = finetune(tmp_path / "whole", labelled, **settings)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(KilledError):
            finetune(tmp_path / "killed", labelled, **settings)
    assert not (tmp_path / "killed/weights.safetensors").exists()
    if step >= 4:
        shutil.rmtree(moved)  # resuming does not need it
    killed = finetune(tmp_path / "killed", labelled, **settings)
    assert equal(tensors(whole.out), tensors(killed.out))
    assert lines(whole.out) == lines(killed.out)
    for name in ("weights.safetensors", "weights_best.safetensors"):
        assert equal(load_file(whole.out / name), load_file(killed.out / name))
    assert (whole.top1, whole.best_top1) == (killed.top1, killed.best_top1)
    assert (whole.out / "evaluation.json").read_bytes() == (killed.out / "evaluation.json").read_bytes()


def test_a_finished_run_stays_as_it_is(tmp_path: Path, labelled: Path) -> None:
    first = finetune(tmp_path / "run", labelled, steps=4)
    before = (first.out / "metrics.jsonl").read_bytes()
    assert fastmim.finetune(out=first.out) == first
    assert (first.out / "metrics.jsonl").read_bytes() == before
    (first.out / "evaluation.json").unlink()
    assert fastmim.finetune(out=first.out) == first
    assert json.loads((first.out / "evaluation.json").read_text())["step"] == 4
    (first.out / "evaluation.json").write_text("[4]")
    assert fastmim.finetune(out=first.out) == first


def test_augmentation_does_not_depend_on_workers_or_micro_batches(tmp_path: Path, labelled: Path) -> None:
    one, two = (finetune(tmp_path / str(n), labelled, num_workers=n, steps=3).out for n in (0, 2))
    assert equal(tensors(one), tensors(two))
    # The noise of random erasing, and which images drop a path, are drawn for each micro-batch.
    still = {"reprob": 0.0, "drop_path": 0.0, "steps": 3}
    whole, cut = (finetune(tmp_path / f"micro{n}", labelled, micro_batch=n, **still).out for n in (8, 4))
    for name, tensor in tensors(whole).items():
        torch.testing.assert_close(tensor, tensors(cut)[name], rtol=1e-3, atol=1e-4)


def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path, labelled: Path) -> None:
    out = finetune(tmp_path / "run", labelled, ema=0.9).out
    state, exported = tensors(out), weights.read(out)[0]
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(exported[name], state[f"averaged.model.{name}"])
    assert not torch.equal(exported[name], state[f"classifier.model.{name}"])


def test_the_command_stops_with_75_and_goes_on(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked_to_stop(*args: Any, **settings: Any) -> Iterator[Any]:
        for number, batch in enumerate(load(*args, **settings), start=settings["first_step"]):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    out, load = tmp_path / "run", loader.load
    words = ["finetune", "--data", str(labelled), "--out", str(out), "--no-flip", "--backbone", NETWORK["backbone"]]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    words += [f"--backbone-args.{key}={value}" for key, value in NETWORK["backbone_args"].items()]
    with monkeypatch.context() as patch:
        patch.setattr(loader, "load", asked_to_stop)
        with pytest.raises(SystemExit, match="75"):
            main(words)
    assert capsys.readouterr().err == f"{ANSWER}stopped and saved at step 5 of 12; run the same command to resume\n"
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert "resuming at step 5 of 12" in capsys.readouterr().out
    whole = finetune(tmp_path / "whole", labelled, flip=False)
    assert equal(tensors(whole.out), tensors(out))


# Evaluation


def test_a_class_without_validation_images_is_not_available(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    shutil.rmtree(data / "val/red")
    finetune(tmp_path / "run", data, steps=2)
    per_class = json.loads((tmp_path / "run/evaluation.json").read_text())["per_class"]
    assert per_class["red"] == {"accuracy": None, "images": 0}
    said = capsys.readouterr().out
    assert "16 images, none of 1 of the classes" in said and "no validation images of red" in said


def test_unreadable_validation_images_are_named_and_do_not_count(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    (data / "val/blue/0.png").write_bytes(b"nothing")
    finetune(tmp_path / "run", data, steps=2)
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["images"] == 23
    assert "val/blue/0.png" in (tmp_path / "run/bad_images.txt").read_text()
    said = capsys.readouterr().out
    assert "val/blue/0.png (not an image: begins with b'nothing'); all such images are listed in" in said


def test_validation_images_of_which_none_can_be_read(tmp_path: Path, labelled: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    for path in (data / "val").rglob("*.*"):
        path.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"none of the 24 images of .*/val can be read; expected images"):
        finetune(tmp_path / "run", data, steps=2, max_bad_share=1.0)


def test_few_labels(tmp_path: Path, labelled: Path) -> None:
    out = finetune(tmp_path / "run", labelled, num_labels=12, steps=1).out
    assert json.loads((out / "checkpoints/step_000000001/manifest.json").read_text())["num_images"] == 12


def test_the_command_that_is_advised_packs_the_training_images(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With quotes where the shell needs them, and not the name of a part of the images."""
    data = tmp_path / "Prüfbilder Linie 3 (Kopie)"
    shutil.copytree(labelled / "train", data)
    monkeypatch.setattr(meter, "_SHOWN_AFTER", 0.0)
    monkeypatch.setattr(meter, "_TOO_LONG", -1.0)
    finetune(tmp_path / "run", data, steps=4, log_every=1, **PLAIN)
    [command] = re.findall("for data: `(.*?)`", capsys.readouterr().out)
    assert shlex.split(command) == ["fastmim", "pack", str(data), "packed/"]


def test_class_names_of_any_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Polish, Chinese and Arabic names, and one with markup."""
    names = ["$x_1$ [b]", "łódź", "جيد", "良品"]
    for number, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for image in range(5):
            Image.new("RGB", (32, 32), (60 * number, image, 0)).save(tmp_path / "data" / name / f"{image}.png")
    run = finetune(tmp_path / "run", tmp_path / "data", steps=1)
    assert list(json.loads((run.out / "evaluation.json").read_text())["per_class"]) == names
    unknown = [name for name in names if font_for(name, 10) is None]
    legend = run.out / "samples" / "classes.txt"
    assert legend.exists() == bool(unknown) == ("no installed font has the letters" in capsys.readouterr().out)
    assert not unknown or all(name in legend.read_text(encoding="utf-8") for name in unknown)
