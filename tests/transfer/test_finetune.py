"""`fastmim finetune` as users run it: what appears, exact resume, what weights it begins from, refusals."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim import RequestError, RunError, runs, weights
from fastmim.backbone import Backbone
from fastmim.cli import main
from fastmim.data import open_labelled
from fastmim.data.augment import decode_center, normalise
from fastmim.recipes import FINETUNE_RECIPES
from fastmim.transfer import finetune as finetuning
from fastmim.transfer.settings import FinetuneConfig
from fastmim.transfer.start import build, find_start

NETWORK = {key: SMALL[key] for key in ("backbone", "backbone_args")}
TINY: dict[str, Any] = {
    "img_size": 32,
    "batch_size": 8,
    "steps": 12,
    "lr": 1e-2,
    "save_every": 4,
    "log_every": 2,
    "eval_every": "4 steps",
    "num_workers": 0,
    "device": "cpu",
    "trackers": "none",
}
PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "reprob": 0.0, "randaugment": "none", "drop_path": 0.0}


def picture(label: int, generator: np.random.Generator, side: tuple[int, int]) -> Image.Image:
    """Noise with more of red, green or blue."""
    pixels = generator.integers(0, 150, (side[1], side[0], 3))
    pixels[..., label] += 80
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in mixed formats and sizes, 40, 16 and 8 for training and 8 each to validate on."""
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)
    for part, counts in (("train", (40, 16, 8)), ("val", (8, 8, 8))):
        for label, (name, count) in enumerate(zip(("blue", "green", "red"), counts, strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = picture(2 - label, generator, ((32, 32), (48, 40))[number % 2])
                image.save(folder / f"{number}{('.png', '.jpg', '.webp')[number % 3]}")
    return root


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    fastmim.pretrain(**(SMALL | {"data": str(labelled / "train"), "out": out, "steps": 4}))
    return out


def finetune(out: Path, data: Path, **settings: Any) -> finetuning.Result:
    begin = {} if "weights" in settings else NETWORK
    return fastmim.finetune(**(TINY | begin | {"data": str(data), "out": out} | settings))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(out: Path) -> list[dict[str, Any]]:
    changing = ("images_per_s", "seconds_per_step", "data_wait_share", "memory_gb")
    path = out / "metrics.jsonl"
    read = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in changing} for line in read]


def test_a_run_learns_and_its_directory_holds_what_is_promised(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = finetune(out, labelled, steps=60, eval_every="20 steps", lr=0.1, **PLAIN)
    assert result.finished and result.top1 is not None and result.top1 > 0.9
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoints", "samples", "evaluation.json",
        "weights.safetensors", "weights_best.safetensors",
    }  # fmt: skip
    assert {p.name for p in out.iterdir()} <= set(runs.FILES)
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
    assert "of 24 validation images right" in said and "(best)" in said


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


# What it begins from


def classifier(start_from: Path | str, **settings: Any) -> Any:
    config = FinetuneConfig(**({"data": "x", "weights": str(start_from), "img_size": 32} | settings))
    torch.manual_seed(0)
    return build(config, find_start(config), num_classes=3, resuming=False)


def test_at_the_training_size_the_weights_are_those_of_the_checkpoint(pretrained: Path) -> None:
    model = classifier(pretrained).model.state_dict()
    trained = tensors(pretrained)
    backbone = {k.removeprefix("backbone.model."): v for k, v in trained.items() if k.startswith("backbone.model.")}
    assert model.keys() - backbone.keys() == {"head.weight", "head.bias"}
    assert equal(backbone, {name: model[name] for name in backbone})


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}),
    ],
)
def test_plain_and_windowed_backbones_too_and_elsewhere_as_timm_resamples(
    tmp_path: Path, labelled: Path, name: str, args: dict[str, Any]
) -> None:
    data = str(labelled / "train")
    settings = {"backbone": name, "backbone_args": args, "img_size": 128, "steps": 1, "batch_size": 2, "lr": 1e-4}
    run = fastmim.pretrain(**(SMALL | settings | {"data": data, "out": tmp_path / "run"})).out
    trained = {k.removeprefix("backbone.model."): v for k, v in tensors(run).items() if "backbone.model." in k}
    same = classifier(run, img_size=128).model.state_dict()
    assert equal(trained, {key: same[key] for key in trained})
    high = classifier(run, img_size=224)
    reference = timm.create_model(name, num_classes=0, **args)
    reference.set_input_size(128)
    reference.load_state_dict(trained)
    reference.set_input_size(224)
    resampled = reference.state_dict()
    assert equal(resampled, {key: high.model.state_dict()[key] for key in resampled})
    assert high(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_blocks_left_out_of_pretraining_start_fresh(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data": str(labelled / "train"), "out": tmp_path / "half", "encoder_depth": 0.5, "steps": 4}
    run = fastmim.pretrain(**(SMALL | settings)).out
    stored = weights.read(run)[0]
    model = classifier(run).model.state_dict()
    untrained = classifier("none", **NETWORK).model.state_dict()
    for name in ("attn.qkv.weight", "mlp.fc1.weight"):
        assert torch.equal(model[f"blocks.0.{name}"], stored[f"blocks.0.{name}"])
        assert torch.equal(model[f"blocks.1.{name}"], untrained[f"blocks.1.{name}"])
        assert not torch.equal(model[f"blocks.1.{name}"], stored[f"blocks.1.{name}"])
    finetune(tmp_path / "run", labelled, weights=str(run), steps=1)
    assert "blocks.1: left out of pre-training, so they start untrained" in capsys.readouterr().out


def test_a_fine_tuned_run_is_a_start_too(tmp_path: Path, labelled: Path) -> None:
    first = finetune(tmp_path / "first", labelled, steps=2)
    second = classifier(first.out).model.state_dict()
    trained = weights.read(first.weights)[0]
    assert torch.equal(second["blocks.0.attn.qkv.weight"], trained["blocks.0.attn.qkv.weight"])
    assert not torch.equal(second["head.weight"], trained["head.weight"])
    fastmim.load_backbone(first.out)


def test_the_mean_of_the_patches_is_classified_after_the_pretrained_norm(pretrained: Path) -> None:
    model = classifier(pretrained).eval()
    images = torch.randn(2, 3, 32, 32)
    backbone = Backbone("vit_tiny_patch16_224", img_size=32, args=SMALL["backbone_args"])
    weights.load_into(backbone, pretrained)
    expected = model.model.head(backbone.eval()(images).mean((2, 3)))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


# Layer-wise learning rates


@pytest.mark.parametrize(
    ("name", "args", "first", "middle", "last"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 48, "num_heads": 3}, "patch_embed.proj.weight",
         "blocks.1.attn.qkv.weight", "head.weight"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "patch_embed.proj.weight",
         "layers.1.blocks.0.attn.qkv.weight", "head.fc.weight"),
        ("convnext_atto", {}, "stem.0.weight", "stages.1.blocks.0.conv_dw.weight", "head.fc.weight"),
        ("pvt_v2_b0", {}, "patch_embed.proj.weight", "stages.1.blocks.0.attn.q.weight", "head.weight"),
        ("twins_svt_small", {"depths": (1, 1, 1, 1)}, "patch_embeds.0.proj.weight", "blocks.1.0.attn.qkv.weight",
         "head.weight"),
        ("resnet18", {}, "conv1.weight", "layer2.0.conv1.weight", "fc.weight"),
        ("efficientnet_b0", {}, "conv_stem.weight", "blocks.2.0.conv_pw.weight", "classifier.weight"),
    ],
)  # fmt: skip
def test_layers_learn_at_falling_rates_in_every_family(
    name: str, args: dict[str, Any], first: str, middle: str, last: str
) -> None:
    model = classifier("none", backbone=name, backbone_args=args, img_size=64)
    names = {parameter: key for key, parameter in model.model.named_parameters()}
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    scale = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    assert scale[last] == 1.0 == max(scale.values())
    assert scale[first] == min(scale.values()) < scale[middle] < 0.6
    spared = model.model.no_weight_decay() if hasattr(model.model, "no_weight_decay") else set()
    for key, parameter in model.model.named_parameters():
        assert (decay[key] == 0) == (parameter.ndim <= 1 or key in spared), key


def test_the_loop_multiplies_the_rate(tmp_path: Path, labelled: Path) -> None:
    out = finetune(tmp_path / "run", labelled, steps=4, warmup="0", layer_decay=0.5).out
    groups = json.loads((out / "checkpoints/step_000000004/manifest.json").read_text())["param_groups"]
    rate = lines(out)[-2]["lr"]
    assert {round(group["lr"] / rate, 6) for group in groups} == {1.0, 0.5, 0.25, 0.125}


# Resume


class KilledError(Exception):
    """Stands for the process being gone."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the data break off in this step of the run."""
    load = finetuning.loader.load

    def broken(*args: Any, **settings: Any) -> Iterator[Any]:
        for number, batch in enumerate(load(*args, **settings), start=settings["first_step"]):
            if number == step:
                raise KilledError
            yield batch

    monkeypatch.setattr(finetuning.loader, "load", broken)


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

    out, load = tmp_path / "run", finetuning.loader.load
    words = ["finetune", "--data", str(labelled), "--out", str(out), "--no-flip", "--backbone", NETWORK["backbone"]]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    words += [f"--backbone-args.{key}={value}" for key, value in NETWORK["backbone_args"].items()]
    with monkeypatch.context() as patch:
        patch.setattr(finetuning.loader, "load", asked_to_stop)
        with pytest.raises(SystemExit, match="75"):
            main(words)
    assert capsys.readouterr().err == "stopped and saved at step 6 of 12; run the same command to resume\n"
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert "resuming at step 6 of 12" in capsys.readouterr().out
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


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "data is not given; expected labelled images: --data labelled/"),
        ({"data": "samples"}, "samples has no labels; expected class folders"),
        ({"weights": "no/such/run"}, "weights is 'no/such/run'; expected a run directory, a weights file, a timm"),
        ({"backbone": None}, "weights is none, but no backbone is given; expected its name: --backbone NAME"),
        ({"backbone": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"backbone": "vgg11", "backbone_args": {}, "drop_path": 0.1}, "drop_path is 0.1, and vgg11 has no drop path"),
        ({"batch_size": 65}, "64 training images are fewer than one batch of 65: lower --batch-size to 64 or less"),
        ({"num_labels": 2}, "--num-labels 2; expected at least one for each of the 3 classes"),
        ({"randaugment": "strong"}, "randaugment is 'strong'; expected a policy as timm writes it"),
        ({"recipe": "vit-bb"}, "recipe is 'vit-bb'; expected one of vit-b, swin-b; did you mean vit-b"),
        ({"val_share": 1.0}, "val_share is 1; expected more than 0 and less than 1, such as 0.1"),
        ({"ema": 1.0}, "ema is 1; expected more than 0 and less than 1, such as 0.9998"),
        ({"eval_crop": 1.5}, "eval_crop is 1.5; expected more than 0 and at most 1, such as 0.875"),
        ({"layer_decay": 0.0}, "layer_decay is 0; expected more than 0 and at most 1, such as 0.75"),
        ({"smoothing": 1.0}, "smoothing is 1; expected 0 \\(none\\) or more, and less than 1"),
        ({"mixup": -1.0}, "mixup is -1; expected 0 \\(none\\) or more"),
        ({"img_size": 0}, "img_size is 0; expected at least 1"),
        ({"eval_every": "often"}, "eval_every is 'often'; expected a duration"),
        ({"img_size": 4}, "vit_tiny_patch16_224 cannot take images of 4 px"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(tmp_path: Path, labelled: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        finetune(tmp_path / "run", settings.pop("data", labelled), **(NETWORK | settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_architecture_or_other_heads_are_refused(
    tmp_path: Path, labelled: Path, pretrained: Path
) -> None:
    with pytest.raises(RequestError, match="the weights hold backbone vit_tiny_patch16_224, not vit_small_patch16_224"):
        finetune(tmp_path / "run", labelled, weights=str(pretrained), backbone="vit_small_patch16_224")
    other = SMALL["backbone_args"] | {"num_heads": 6}
    with pytest.raises(RequestError, match="the weights hold num_heads 3, not 6"):
        finetune(tmp_path / "run", labelled, weights=str(pretrained), backbone_args=other)


def test_truncated_weights_are_refused(tmp_path: Path, labelled: Path, pretrained: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes((pretrained / "weights.safetensors").read_bytes()[:-1000])
    with pytest.raises(RequestError, match=r"half\.safetensors, which is damaged or not safetensors"):
        finetune(tmp_path / "run", labelled, weights=str(path))


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_does_not_run(tmp_path: Path, labelled: Path) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(RequestError, match=r"weights\.pth, which is damaged or not safetensors"):
        finetune(tmp_path / "run", labelled, weights=str(path))
    assert not proof.exists()


def test_published_weights_that_cannot_be_had(tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RunError, match=r"pretrained weights of resnet10t: .*; expected them in timm's cache or on the net"
    ):
        finetune(tmp_path / "run", labelled, weights="resnet10t")


def test_changed_classes_are_refused_on_resuming(tmp_path: Path, labelled: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    finetune(tmp_path / "run", data, steps=4)
    for part in ("train", "val"):
        (data / part / "green").rename(data / part / "zigzag")
    with pytest.raises(
        RequestError, match=r"data is .* with classes blue, red, zigzag...; expected those that the run"
    ):
        finetune(tmp_path / "run", data, steps=4)


def test_several_processes_are_refused(tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="WORLD_SIZE is above 1; fine-tuning runs in one process"):
        finetune(tmp_path / "run", labelled)


def test_layers_that_timm_cannot_tell_apart_are_refused(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("none", **NETWORK)
    everything = [{"params": list(model.model.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}]
    monkeypatch.setattr("fastmim.backbone.classifier.param_groups_layer_decay", lambda *args, **kwargs: everything)
    with pytest.raises(RequestError, match=r"layer_decay is 0.5, and timm does not tell the layers of .* set it to 1"):
        model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    assert model.parameter_groups(weight_decay=0.05, layer_decay=1.0) == everything


def test_recipes_give_the_settings_and_flags_override(tmp_path: Path) -> None:
    for name in FINETUNE_RECIPES:
        config = runs.resolve(
            FinetuneConfig, {"recipe": name, "out": tmp_path / "x", "steps": 3}, recipes=FINETUNE_RECIPES
        )
        assert (config.steps, config.epochs, config.batch_size, config.img_size) == (3, None, 1024, 224)
    assert (config.lr, config.layer_decay) == (1e-3, 0.8)
