"""The teacher target: features of a frozen network, alone and beside HOG, over a run's whole life."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastmim
from conftest import SMALL
from fastmim import weights
from fastmim.backbone import Backbone
from fastmim.errors import RequestError
from fastmim.method import pictures
from fastmim.method.joint import Joint
from fastmim.method.loss import explained_variance, masked_loss
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG
from fastmim.method.teacher import Teacher
from fastmim.method.visualise import visualise_run
from fastmim.randomness import image_keys
from fastmim.training import optim

VIT: dict[str, Any] = {name: SMALL[name] for name in ("backbone", "backbone_args", "img_size")}
KEYS = image_keys(0, 0, torch.arange(4))


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str = "test_vit", size: int = 64, **more: Any) -> Backbone:
    torch.manual_seed(1)
    return Backbone(name, img_size=size, **more)


def test_the_target_is_the_last_map_normalised_and_resampled() -> None:
    """Against the definition in plain torch: another size, mean and deviation, a 4 x 4 grid from one of 8 x 8."""
    teacher = Teacher(network("vit_tiny_patch16_224", 64, args=SMALL["backbone_args"]), mean=(0.5,) * 3, std=(0.2,) * 3)
    target = teacher.for_stride(8)
    assert target.num_channels(3) == 48 and target.cell == 8
    pixels = images() * 0.2 + 0.5
    means, deviations = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    seen = F.interpolate((pixels - means) / deviations, (64, 64), mode="bilinear", antialias=True)
    tokens = teacher.network.model.forward_features(seen)[:, 1:]  # (4, 64, 48), with the final norm
    centred = tokens - tokens.mean(2, keepdim=True)
    normed = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    expected = F.interpolate(normed.mT.unflatten(2, (8, 8)), (4, 4), mode="bilinear", antialias=True)
    found = target.forward(images())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet"])
def test_any_network_teaches_any_other(name: str) -> None:
    for student in (VIT, {"backbone": "test_convnext", "img_size": 64}):
        size = int(student["img_size"])
        model = MIM(**student, target=Teacher(network(name)))
        output = model(torch.randn(2, 3, size, size))
        assert output["target"].shape == output["prediction"].shape
        output["loss"].backward()
        assert output["target"].isfinite().all() and output["target"].std() > 0.1


def test_a_teacher_is_no_part_of_the_model() -> None:
    """Not in weights, parameters or moments; always in evaluation mode; shared by copies; on the model's device."""
    teacher = Teacher(network())
    model, alone = MIM(**VIT, target=teacher), MIM(**VIT, target=HOG())
    before = teacher.checksum()
    assert model.state_dict().keys() == alone.state_dict().keys()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in alone.named_parameters()]
    assert not any(module.training for module in model.train().target.network.modules())
    assert copy.deepcopy(model).target is model.target
    optimizer = optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))
    model(images(), KEYS)["loss"].backward()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert teacher.checksum() == before
    assert next(model.to("meta").target.network.parameters()).device.type == "meta"


def test_a_teacher_follows_the_images_to_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights are divided among processes, the model, and its teacher with it, is moved to host memory."""
    target = Teacher(network()).for_stride(8)
    expected, scale, moves = target.forward(images()), target.scale, []

    def to(self: Teacher, device: torch.device) -> None:
        moves.append(device)
        self.scale = scale

    monkeypatch.setattr(Teacher, "to", to)
    target.scale = scale.to("meta")
    for _ in range(2):
        torch.testing.assert_close(target.forward(images()), expected)
    assert moves == [torch.device("cpu")]


def test_the_teacher_runs_in_the_precision_of_the_forward_pass() -> None:
    target = Teacher(network()).for_stride(8)
    seen = []
    target.network.model.blocks[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    full = target.forward(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = target.forward(images())
    assert seen[0] == torch.float32 and half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("error", "reference"), [("smooth-l1", F.smooth_l1_loss), ("cosine", F.cosine_embedding_loss)])
def test_the_losses_are_the_usual_ones(error: str, reference: Any) -> None:
    prediction, target = torch.randn(2, 2, 5, 3, 3).unbind()
    mask = torch.rand(2, 3, 3) < 0.5
    ours, truth = (values.movedim(1, -1)[mask] for values in (prediction, target))  # (N, 5)
    expected = reference(ours, truth, *([torch.ones(len(ours))] if error == "cosine" else []))
    torch.testing.assert_close(masked_loss(prediction, target, mask, error=error), expected)


def test_hog_and_a_teacher_have_a_head_and_weight_one_each() -> None:
    model = MIM(**VIT, target=Joint(HOG(), Teacher(network())))
    output = model(images(), KEYS)
    for name in ("target", "prediction"):
        assert output[name].shape == (4, 27 + 64, 4, 4)
    parts = {name: output[name].split((27, 64), 1) for name in ("prediction", "target")}
    torch.testing.assert_close(parts["target"][0], HOG(8).forward(images()))
    torch.testing.assert_close(parts["target"][1], Teacher(network()).for_stride(8).forward(images()))
    hog, taught = (
        masked_loss(ours, truth, output["mask"], error=error)
        for ours, truth, error in zip(parts["prediction"], parts["target"], ("l2", "smooth-l1"), strict=True)
    )
    torch.testing.assert_close(output["loss"], hog + taught)
    assert model.target.name == "hog+teacher"
    drawn, alone = (
        pictures.picture(images(), {name: found[name] for name in ("target", "prediction", "mask")}, target)
        for found, target in (
            (output, model.target),
            ({"mask": output["mask"]} | {name: both[0] for name, both in parts.items()}, HOG(8)),
        )
    )
    assert drawn.tobytes() == alone.tobytes()  # the picture shows the first part


def test_without_masks_a_teacher_is_distilled_from_the_whole_image() -> None:
    for masking in ("in-place", "drop"):
        model = MIM(**VIT, target=Teacher(network(), error="cosine"), mask_ratio=0, masking=masking)
        output = model(images(), KEYS)
        assert not output["mask"].any()
        everywhere = 1 - F.cosine_similarity(output["prediction"], output["target"], dim=1)
        torch.testing.assert_close(output["loss"], everywhere.mean())
        shown = model.eval()(images(), KEYS)  # a cosine leaves lengths open: predictions are shown with the target's
        for values in zip(*(shown[name].norm(dim=1).flatten() for name in ("prediction", "target")), strict=True):
            torch.testing.assert_close(*values)
        variance = explained_variance(shown["target"], shown["target"], shown["mask"])
        assert variance == 1 and explained_variance(shown["prediction"], shown["target"], shown["mask"]) < 0.9


def run(out: Path, photos: Path, **more: Any) -> Any:
    return fastmim.pretrain(**(SMALL | {"data": str(photos), "out": out, "target": "hog+teacher"} | more))


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    weights.save(path, network(), about={"steps": 7, "mean": [0.5] * 3, "std": [0.5] * 3})
    return path


def test_a_run_with_a_teacher_resumes_over_stages(tmp_path: Path, photos: Path, teacher_file: Path) -> None:
    """A run that was cut short ends with the weights of one that was not; the checkpoints do not hold the teacher."""
    settings = {"teacher": str(teacher_file), "stages": "32:0.5,48:0.5", "compile": False}
    whole = run(tmp_path / "whole", photos, **settings)
    assert whole.finished and losses(whole.out)[-1] < losses(whole.out)[0]
    final = load_file(whole.weights)
    files = {path.name for path in whole.out.rglob("*.safetensors")}
    assert files == {"model.safetensors", "optim.safetensors", "weights.safetensors"}
    last = max((whole.out / "checkpoints").iterdir())
    manifest = json.loads((last / "manifest.json").read_text())
    assert manifest["teacher_checksum"] == Teacher(str(teacher_file)).checksum()
    assert not any("target" in name for name in load_file(last / "model.safetensors"))
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    again = fastmim.pretrain(out=whole.out)
    assert again.finished
    assert all(torch.equal(tensor, final[name]) for name, tensor in load_file(again.weights).items())
    visualise_run(whole.out, out=tmp_path / "picture.png", num_images=2)
    assert (tmp_path / "picture.png").exists()


def test_another_teacher_is_refused_on_resuming(tmp_path: Path, photos: Path, teacher_file: Path) -> None:
    own = tmp_path / "teacher.safetensors"
    own.write_bytes(teacher_file.read_bytes())
    out = run(tmp_path / "run", photos, teacher=str(own), steps=4).out
    torch.manual_seed(2)
    weights.save(own, Backbone("test_vit", img_size=64), about={})
    with pytest.raises(RequestError, match=r"whose weights have the checksum \d+; expected \d+, as when the run in"):
        fastmim.pretrain(out=out)


def test_the_weights_that_the_student_starts_from_teach_it(tmp_path: Path, photos: Path, pretrained: Path) -> None:
    out = run(tmp_path / "run", photos, init=str(pretrained), teacher="init", target="teacher", mask_ratio=0.0).out
    config = fastmim.config.read(out / "config.yaml")
    assert config["teacher"] == "init" and "learned_from" not in config
    _, facts = weights.read(out)
    origin = {"name": str(pretrained), "tag": None, "licence": None}
    assert facts["learned_from"] == [{"as": "init"} | origin, {"as": "teacher"} | origin]
    teacher = Teacher(str(out))  # a network that was adapted teaches another
    assert teacher.network.name == SMALL["backbone"]
    again = run(tmp_path / "again", photos, teacher=str(out), target="teacher", steps=1)
    assert weights.read(again.out)[1]["learned_from"] == [
        {"as": "teacher"} | other for other in ({"name": str(out), "tag": None, "licence": None}, origin, origin)
    ]


def test_a_broken_teacher_is_named_and_not_trained_on(tmp_path: Path, photos: Path) -> None:
    broken = network()
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    weights.save(tmp_path / "teacher.safetensors", broken, about={})
    with pytest.raises(RequestError, match="teacher is test_vit, whose features of a test image are not finite"):
        run(tmp_path / "run", photos, teacher=str(tmp_path / "teacher.safetensors"))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_teacher_of_other_channels_is_refused(tmp_path: Path, photos: Path) -> None:
    weights.save(tmp_path / "grey.safetensors", network(in_chans=1), about={})
    with pytest.raises(RequestError, match="teacher is test_vit for images of 1 channels; expected one for the .* 3"):
        run(tmp_path / "run", photos, teacher=str(tmp_path / "grey.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "hog", "teacher": "test_vit"}, "teacher is test_vit with target hog; expected a target that uses"),
        (
            {"target": "hog", "teacher": None, "teacher_size": 64},
            "teacher is None with target hog; expected a target that uses it",
        ),
        ({"teacher": None}, "target is hog.teacher, and teacher is not given; .*: add --teacher NAME"),
        ({"teacher": "init"}, "teacher is init, and init is not given; .*: add --init"),
        ({"teacher": "tset_vit"}, "teacher is tset_vit: weights is 'tset_vit'; expected a run directory"),
        ({"teacher_size": 3}, "teacher_size is 3: .* cannot take images of 3 px: expected a size near"),
        ({"teacher_size": 0}, "teacher_size is 0; expected at least 1"),
        ({"mask_ratio": 0}, r"mask_ratio is 0 with target hog\+teacher; expected more than 0"),
        ({"target": "pixels", "teacher": None, "mask_ratio": 0}, "mask_ratio is 0 with target pixels; expected more"),
        ({"teacher_loss": "l3"}, "teacher_loss is 'l3'; expected smooth-l1 or cosine"),
    ],
)
def test_wrong_requests(
    settings: dict[str, Any], message: str, tmp_path: Path, photos: Path, teacher_file: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        run(tmp_path / "run", photos, **({"teacher": str(teacher_file)} | settings))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_stride_that_hog_cells_do_not_divide_is_refused() -> None:
    """A network may have a grid of its own, such as DINOv2's 37 x 37 at 518 px; HOG then refuses it."""
    backbone = Backbone("vit_tiny_patch16_224", img_size=42, args={"patch_size": 14, "embed_dim": 48, "depth": 1})
    assert (backbone.grid, backbone.stride, backbone.input_size) == (3, 14, 42)
    assert Teacher(backbone).for_stride(8).forward(images()).shape == (4, 48, 4, 4)
    with pytest.raises(RequestError, match="target is hog, whose cells of 8 pixels do not divide the .* stride of 14"):
        MIM(backbone)
    assert MIM(backbone, target=fastmim.Pixels())(torch.randn(2, 3, 42, 42))["target"].shape == (2, 588, 3, 3)


def test_a_damaged_origin_in_metadata_is_refused(tmp_path: Path, teacher_file: Path) -> None:
    for wrong in ({}, [1], [{"as": "init"}], [{"as": "init", "name": 1, "tag": None, "licence": None}]):
        with weights.files.safe_open(teacher_file, "pt") as file:
            metadata = file.metadata() | {"learned_from": json.dumps(wrong)}
        save_file(load_file(teacher_file), tmp_path / "odd.safetensors", metadata)
        with pytest.raises(RequestError, match="whose metadata has learned_from"):
            weights.read(tmp_path / "odd.safetensors")
