"""A public model adapted: what is measured before and after, what the verdict says, and which weights are kept."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim import cli, weights
from fastmim import config as configs
from fastmim.adaptation import adapt as adapting
from fastmim.adaptation.adapt import sized
from fastmim.adaptation.settings import AdaptConfig
from fastmim.adaptation.verdict import Scores, Verdict, judge
from fastmim.data.labelled import open_labelled
from fastmim.errors import RequestError, RunError
from fastmim.method.mim import MIM
from fastmim.published import RECIPES, result
from fastmim.training import opening

QUICK = {key: value for key, value in SMALL.items() if key not in ("backbone", "backbone_args", "lr", "img_size")}


def run(out: Path, labelled: Path, pretrained: Path, **more: Any) -> Any:
    settings = QUICK | {"data": str(labelled / "train"), "out": out, "init": str(pretrained), "steps": 4}
    return fastmim.adapt(**(settings | more))


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "adaptation.json").read_text())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def test_an_adaptation_measures_before_and_after_and_says_what_they_show(
    tmp_path: Path, labelled: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tmp_path / "run", labelled, pretrained, probe=str(labelled), lr=1e-2)
    said, out = " ".join(capsys.readouterr().out.split()), tmp_path / "run"
    config = configs.read(out / "config.yaml")
    assert (config["img_size"], config["target"], config["teacher"]) == (32, "hog+teacher", "init")
    assert (config["backbone"], config["layer_decay"], config["recipe"]) == (SMALL["backbone"], 0.75, "adapt")
    untouched, start = tensors(out / "weights_before.safetensors"), tensors(pretrained / "weights.safetensors")
    assert all(torch.equal(tensor, start[name]) for name, tensor in untouched.items())
    adapted = tensors(out / "weights.safetensors")
    assert any(not torch.equal(tensor, start[name]) for name, tensor in adapted.items())
    found = report(out)
    for name, path in (("before", "weights_before.safetensors"), ("after", "weights.safetensors")):
        probe = {"weights": str(out / path), "data": str(labelled), "device": "cpu", "num_workers": 0, "img_size": 32}
        ks = fastmim.probe(**probe, out=tmp_path / f"{name}.json").report["results"]
        top1 = next(row["top1"] for row in ks if row["k"] == 20)
        assert found[name]["knn_top1"] == pytest.approx(top1)  # as `fastmim probe` has it
        assert found[name]["linear_top1"] == pytest.approx(found[name]["correct"]["linear"].count("1") / 24)
    before, after = (Scores.from_json(found[name]) for name in ("before", "after"))
    assert done.verdict == judge(before, after)
    assert f"verdict {done.verdict.sentence}" in said and f"before {before.describe()}" in said
    assert found["verdict"]["word"] == done.verdict.word
    assert fastmim.load_backbone(out / "weights_before.safetensors") is not None


def test_what_was_measured_before_the_first_step_survives_a_stop(
    tmp_path: Path, labelled: Path, pretrained: Path
) -> None:
    """The second start begins from a checkpoint, and compares with the untouched network all the same."""
    out = tmp_path / "run"
    whole = run(out, labelled, pretrained, probe=str(labelled), lr=1e-2, save_every=2)
    first, weights_whole = report(out), tensors(whole.weights)
    for path in (out / "checkpoints/step_000000004").iterdir():
        path.unlink()
    (out / "checkpoints/step_000000004").rmdir()
    again = fastmim.adapt(out=out)
    assert again.verdict == whole.verdict and report(out) == first
    assert all(torch.equal(tensor, weights_whole[name]) for name, tensor in tensors(again.weights).items())
    (out / "adaptation.json").write_text('{"before": {"correct": {"knn": "0x"}}}')
    with pytest.raises(
        RunError, match=r"adaptation.json does not hold the scores before the first step .*; restore it"
    ):
        fastmim.adapt(out=out)
    (out / "adaptation.json").unlink()
    with pytest.raises(
        RequestError, match=r"adaptation.json is missing, with the scores before the first step; expected"
    ):
        fastmim.adapt(out=out)
    with pytest.raises(RequestError, match=r"probe .*labelled.* -> None"):
        fastmim.adapt(out=out, probe=None)


@pytest.mark.parametrize("better", [False, True])
def test_the_better_weights_are_kept_if_told(
    better: bool, tmp_path: Path, labelled: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if better:  # four steps on colours make nothing better
        monkeypatch.setattr(adapting, "judge", lambda *_, **__: Verdict("better", 3.0, (1.0, 5.0), "better: so"))
    out = run(
        tmp_path / "run", labelled, pretrained, probe=str(labelled), keep="best", lr=1e-12 if not better else 1e-2
    ).out
    kept, untouched = tensors(out / "weights.safetensors"), tensors(out / "weights_before.safetensors")
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in kept.items()) is not better
    if not better:  # a step of nothing makes no difference at all
        assert report(out)["verdict"] == {"word": "no difference", "difference": 0.0, "interval": [0.0, 0.0]}
    assert weights.read(out)[1]["learned_from"][0]["as"] == "init"


def test_without_labels_the_verdict_is_unknown(
    tmp_path: Path, labelled: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tmp_path / "run", labelled, pretrained)
    said = " ".join(capsys.readouterr().out.split())
    assert done.finished and done.verdict is None
    assert "note without --probe (labelled images) nobody can say whether the network gets better" in said
    assert "verdict unknown: a falling loss does not tell whether a network got better; untouched weights: " in said
    assert (tmp_path / "run/weights_before.safetensors").exists() and not (tmp_path / "run/adaptation.json").exists()


def flags(*shares: tuple[int, bool]) -> torch.Tensor:
    return torch.tensor([flag for count, flag in shares for _ in range(count)])


@pytest.mark.parametrize(
    ("gained", "lost", "word"),
    [(40, 10, "better"), (10, 40, "worse"), (12, 10, "no difference"), (0, 0, "no difference")],
)
def test_the_interval_is_that_of_a_paired_difference(gained: int, lost: int, word: str) -> None:
    """400 images, of which some were gained and some lost: the bootstrap agrees with the normal approximation."""
    rest = 400 - gained - lost
    before, after = (
        flags((gained, False), (lost, True), (rest, True)),
        flags((gained, True), (lost, False), (rest, True)),
    )
    verdict = judge(Scores(before, before, 1.0), Scores(after, after, 0.5))
    gains = np.array([1] * gained + [-1] * lost + [0] * rest)
    half = 1.96 * gains.std() / 20 * 100
    assert verdict.word == word and verdict.difference == pytest.approx(100 * gains.mean(), abs=1e-4)
    assert verdict.interval == pytest.approx((100 * gains.mean() - half, 100 * gains.mean() + half), abs=0.35)
    opening = {"no difference": "no difference that these 400 images can show"}.get(word, word)
    assert verdict.sentence.startswith(f"{opening}: linear probe ") and "95 % interval" in verdict.sentence
    with pytest.raises(RunError, match="399 validation images are readable, and 400 were before the first step"):
        judge(Scores(before, before, 1.0), Scores(after[1:], after[1:], 0.5))


@pytest.mark.parametrize(
    ("settings", "size", "teacher_size"),
    [
        ({"init": "timm:vit_small_patch14_dinov2.lvd142m", "teacher": "init"}, 224, 224),
        ({"init": "timm:vit_small_patch16_dinov3.lvd1689m", "teacher": "init"}, 256, None),
        ({"init": "timm:swin_tiny_patch4_window7_224.ms_in1k"}, 224, None),
        ({"init": "timm", "backbone": "vit_base_patch16_clip_384.openai_ft_in1k"}, 224, None),
        ({"init": "timm:swin_tiny_patch4_window7_224.ms_in1k", "img_size": 96}, 96, None),
    ],
)
def test_the_image_size_is_what_the_weights_know(settings: dict[str, Any], size: int, teacher_size: int | None) -> None:
    config = sized(configs.build(AdaptConfig, settings))
    assert (config.img_size, config.teacher_size) == (size, teacher_size)
    assert config.backbone == settings.get("backbone", settings["init"].removeprefix("timm:"))


def test_layers_near_the_input_learn_slowest() -> None:
    """Every parameter is in one group; the decoder's rate is the full one, a block's 0.75 of that after it."""
    model = MIM("vit_tiny_patch16_224", img_size=32, backbone_args=SMALL["backbone_args"], learn_positions=True)
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.75)
    scales = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scales)
    trained = {name: scales[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(scales)
    assert trained["decoder.head.weight"] == (1, 0.05) and trained["mask_token"] == (1, 0.0)
    first, second = (trained[f"backbone.model.blocks.{n}.attn.qkv.weight"] for n in (0, 1))
    assert first[0] == pytest.approx(0.75 * second[0]) and first[1] == 0.05
    assert trained["backbone.model.patch_embed.proj.weight"][0] == pytest.approx(0.75 * first[0])
    assert trained["backbone.model.pos_embed"][1] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": None}, "init is not given; expected the weights to adapt: a timm model .--init timm:NAME."),
        ({"keep": "best"}, "keep is best, and probe is not given; expected labelled images to judge by: add --probe"),
        ({"keep": "worst"}, "keep is 'worst'; expected both or best"),
        ({"layer_decay": 0}, "layer_decay is 0; expected more than 0 and at most 1, such as 0.75"),
        ({"probe": "nowhere/"}, "nowhere"),
    ],
)
def test_wrong_requests(
    settings: dict[str, Any], message: str, tmp_path: Path, labelled: Path, pretrained: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        run(tmp_path / "run", labelled, pretrained, **settings)
    assert not (tmp_path / "run/config.yaml").exists()


def test_the_example_makes_sets_without_a_common_picture(tmp_path: Path) -> None:
    """The sets of the guide's walk-through: the classes of both labelled parts agree, and no tile is in two sets."""
    spec = importlib.util.spec_from_file_location("two_sets", Path(__file__).parent.parent / "examples/two_sets.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path)
    parts = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*.png")]
    assert {part[0] for part in parts} == {"public", "own", "labelled"} and len(parts) > 700
    assert len({part[-1] for part in parts}) == len(parts)  # photograph, row and column
    classes = {side: {part[2] for part in parts if part[:2] == ("labelled", side)} for side in ("train", "val")}
    assert classes["train"] == classes["val"] and len(classes["val"]) == 8
    open_labelled(str(tmp_path / "labelled"))


def test_the_recipe_serves_pretraining_too_and_its_help_answers(capsys: pytest.CaptureFixture[str]) -> None:
    config = opening.resolve(AdaptConfig, {"lr": 1e-5, "out": Path("none")}, recipes=RECIPES)
    assert (config.lr, config.target, config.epochs) == (1e-5, "hog+teacher", 20.0)
    assert "o published schedule" in result(RECIPES["adapt"])
    with pytest.raises(SystemExit):
        cli.main(["adapt", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Adapt a public model to your own images" in said and "--keep" in said


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["adapt", "--help"])
    assert not exit_.value.code
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag, value in RECIPES["adapt"]().items():
        entry = said[said.index(f"--{flag.replace('_', '-')} ") :]
        assert f"[default: {value if flag != 'epochs' else '20, unless --steps is given'}]" in entry[:700], flag
