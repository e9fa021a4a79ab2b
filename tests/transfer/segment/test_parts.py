"""The parts of segmentation against references: heads, windows, scores, flips; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from fastmim import RequestError, RunError
from fastmim.backbone.multiscale import MultiScale
from fastmim.config import build
from fastmim.data.label_images import IGNORED
from fastmim.published import SEGMENT_RECIPES
from fastmim.randomness import image_keys
from fastmim.transfer.segment.heads import FCNHead, LinearHead, UPerHead
from fastmim.transfer.segment.pictures import colours, comparison, label_image, overlay
from fastmim.transfer.segment.scores import Scores, count_pairs
from fastmim.transfer.segment.segmenter import Preparation, Segmenter, best_classes, window_logits
from fastmim.transfer.segment.settings import SegmentConfig
from scenes import NETWORK, draw_scenes, segment

PAGE = Path(__file__).parents[3] / "docs/downstream.md"
WIDTHS = (8, 16, 24, 32)
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def _copy(reference: nn.Module, pairs: list[tuple[Any, Any]]) -> None:
    """Copy the reference's convolutions, batch norms and classifiers into our layers."""
    for theirs, own in pairs:
        if isinstance(theirs, nn.Conv2d):
            own.load_state_dict(theirs.state_dict())
        else:
            own[0].load_state_dict(theirs.conv.state_dict())
            own[1].load_state_dict(theirs.batch_norm.state_dict())


def test_heads_are_those_of_transformers_with_the_same_weights() -> None:
    torch.manual_seed(0)
    config = UperNetConfig(hidden_size=12, num_labels=5, auxiliary_channels=10, auxiliary_in_channels=WIDTHS[2])
    theirs, their_aux = UperNetHead(config, WIDTHS), UperNetFCNHead(config, WIDTHS)
    for module in [*theirs.modules(), *their_aux.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    own, aux = UPerHead(WIDTHS, 12, 5), FCNHead(WIDTHS, 5, channels=10)
    pooled = [block.layers[1] for block in theirs.psp_modules.blocks]
    _copy(theirs, list(zip(pooled, own.pooled, strict=True)))
    _copy(theirs, list(zip(theirs.lateral_convs, own.laterals, strict=True)))
    _copy(theirs, list(zip(theirs.fpn_convs, own.smoothed, strict=True)))
    _copy(theirs, [(theirs.bottleneck, own.coarsest), (theirs.fpn_bottleneck, own.fused)])
    _copy(theirs, [(theirs.classifier, own.classify)])
    _copy(their_aux, [(their_aux.convs[0], aux.convolution), (their_aux.classifier, aux.classify)])
    copied = sum(p.numel() for p in theirs.parameters()), sum(p.numel() for p in their_aux.parameters())
    assert copied == (sum(p.numel() for p in own.parameters()), sum(p.numel() for p in aux.parameters()))
    maps = [torch.randn(2, width, 40 // 2**n, 28 // 2**n) for n, width in enumerate(WIDTHS)]
    for one, other in ((theirs, own), (their_aux, aux)):
        torch.testing.assert_close(other.eval()(maps), one.eval()(maps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(UPerHead.forward(own.train().eval(), maps), theirs(maps), atol=1e-5, rtol=1e-5)


def test_a_linear_head_is_linear_in_the_normalised_features_of_all_maps() -> None:
    head = LinearHead((8, 8), 3)
    assert not any(p.any() for p in head.parameters())
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    maps = [torch.randn(1, 8, 6, 4), torch.randn(1, 8, 6, 4)]
    joined = torch.cat([F.layer_norm(m.permute(0, 2, 3, 1), (8,)) for m in maps], dim=-1)
    weight = torch.cat([layer.weight[..., 0, 0] for layer in head.layers], dim=1)
    expected = joined @ weight.T + sum(layer.bias for layer in head.layers)
    torch.testing.assert_close(head(maps), expected.permute(0, 3, 1, 2))


def network(**options: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT, depths=4), 3, channels=8, **options)


def test_the_loss_is_the_mean_over_all_pixels_of_both_heads_losses() -> None:
    segmenter = network(aux_weight=0.3).eval()
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(-1, 3, (2, 64, 64), dtype=torch.int16)
    maps = segmenter.maps(images)
    expected = torch.zeros(())
    for head, weight in ((segmenter.head, 1.0), (segmenter.auxiliary, 0.3)):
        logits = F.interpolate(head(maps), (64, 64), mode="bilinear").movedim(1, -1)
        chances = logits.softmax(-1).gather(-1, labels.long().clamp(min=0)[..., None])[..., 0]
        expected = expected - weight * chances.log()[labels != IGNORED].sum() / labels.numel()
    torch.testing.assert_close(segmenter(images, labels)["loss"], expected)
    ignored = torch.full_like(labels, IGNORED)
    assert segmenter(images, ignored)["loss"] == 0  # not a division by zero
    assert network(aux_weight=0).auxiliary is None


def test_a_frozen_backbone_stays_in_evaluation_mode() -> None:
    segmenter = network(head="linear").train()
    assert segmenter.head.training and not segmenter.trunk.training and segmenter.auxiliary is None
    groups = segmenter.parameter_groups(weight_decay=0.1, layer_decay=0.5)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in segmenter.head.parameters()}


def test_flips_turn_images_and_labels_alike() -> None:
    labels = torch.arange(64 * 5).reshape(64, 1, 5).short()
    images = (labels[:, None] % 200).to(torch.uint8).expand(64, 3, 1, 5)
    zero, one = torch.zeros(3), torch.full((3,), 1 / 255)
    prepare = Preparation(mean=zero, std=one, flip=True, jitter=False)
    found = prepare({"images": images, "labels": labels, "keys": image_keys(0, 0, torch.arange(64))})
    torch.testing.assert_close(found["images"][:, 0], (found["labels"] % 200).float())
    flipped = (found["labels"][:, 0, 0] > found["labels"][:, 0, 1]).float().mean()
    assert 0.3 < flipped < 0.7
    still = Preparation(mean=zero, std=one, flip=False, jitter=True)
    changed = still({"images": images, "labels": labels, "keys": torch.arange(64)})
    assert torch.equal(changed["labels"], labels) and not torch.equal(changed["images"], images.float())


def test_windows_cover_every_pixel_and_are_averaged() -> None:
    class Position(nn.Module):
        """Logits that tell how often and from where a pixel was seen: its place in its window."""

        def logits(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images[:, :1], torch.ones_like(images[:, :1])], dim=1)

    image = torch.rand(3, 20, 33)
    found = window_logits(Position(), image, size=16, stride=10)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack([image[0], torch.ones(20, 33)]))
    small = window_logits(Position(), image, size=64, stride=42)  # type: ignore[arg-type]
    torch.testing.assert_close(small[0], image[0])


def test_the_best_class_is_that_of_the_interpolated_logits() -> None:
    logits = torch.randn(7, 9, 11)
    expected = F.interpolate(logits[None], (31, 40), mode="bilinear")[0].argmax(0)
    assert torch.equal(best_classes(logits, (31, 40)), expected)


def test_scores_equal_torchmetrics() -> None:
    """A class that is nowhere, one that is only predicted, one that is only labelled, and ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 50, 60), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.roll(1, 2))
    predicted[0, :5] = 4
    labels[1, :9] = 5
    labels[2, ::3] = IGNORED
    confusion = sum(count_pairs(p, t.short(), 7) for p, t in zip(predicted, labels, strict=True))
    scores = Scores(confusion, list("abcdefg"), 3)
    reference = MulticlassJaccardIndex(7, average="macro", ignore_index=IGNORED)
    reference.update(predicted, labels)
    metrics = scores.metrics()
    assert metrics["val_miou"] == pytest.approx(float(reference.compute()), abs=1e-6)
    known = labels != IGNORED
    assert metrics["val_pixel_accuracy"] == pytest.approx(float((predicted == labels)[known].float().mean()))
    shares = [float((predicted == labels)[labels == n].float().mean()) for n in (0, 1, 2, 3, 5)]
    assert metrics["val_mean_accuracy"] == pytest.approx(np.mean(shares))
    stored = scores.to_mapping()["per_class"]
    assert stored["g"] == {"iou": None, "accuracy": None, "pixels": 0}  # a class without any example
    assert stored["e"] == {"iou": 0.0, "accuracy": None, "pixels": 0} and stored["f"]["iou"] == 0
    assert Scores(np.zeros((2, 2), np.int64), ["a", "b"], 0).metrics()["val_miou"] == 0


def test_pictures_show_classes_in_colours_of_their_own() -> None:
    assert len({tuple(colour) for colour in colours(150).tolist()}) == 150
    classes = np.array([[0, 1], [1, -1]])
    picture = np.array(overlay(np.full((2, 2, 3), 100, np.uint8), classes, 2))
    assert (picture[0, 1] == picture[1, 0]).all() and (picture[1, 1] == 40).all()
    labels = label_image(classes + 1, 1, 2)
    assert labels.mode == "P" and np.array_equal(np.array(labels), classes + 1)
    wide = label_image(np.array([[300]]), 0, 400)
    assert np.array(wide).dtype == np.uint16 and np.array(wide)[0, 0] == 300
    names = [f"class {n}" for n in range(20)]
    sheet = comparison(
        np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), int), np.full((40, 50), 3), classes=names, caption="x"
    )
    assert sheet.size == (640, 40 + 44 + 24 + 2 * 18)  # two of the classes are named


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0, 1)}, r"scale is \(0.0, 1.0\); expected 0 < smallest <= largest, such as 0.5 2.0"),
        ({"aux_weight": -1}, "aux_weight is -1; expected 0 .no auxiliary head. or more"),
        ({"ignore_index": -1}, "ignore_index is -1; expected 0 to 65535, such as 255"),
        ({"depths": (1, 2)}, r"depths is \[1, 2\]; expected four blocks, such as 2 5 8 11"),
        ({"num_pictures": -1}, "num_pictures is -1; expected 0 .none. or more"),
        ({"test_stride": 600}, "test_stride is 600; expected at most img_size, 512, or windows leave gaps"),
        ({"head": "mask"}, "head is 'mask'; expected upernet or linear"),
        ({"channels": 0}, "channels is 0; expected at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(SegmentConfig, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "1 image at once is too few for the batch norms of UPerNet; expected two or more"),
        ({"micro_batch": 1}, "1 image at once is too few for the batch norms of UPerNet"),
        ({"recipe": "vit"}, "recipe is 'vit'; expected one of vit-b, mae-vit-b, swin-b; did you mean"),
        (
            {"backbone": "mixer_s16_224", "backbone_args": {}, "test": "whole"},
            "takes images of one size only; expected",
        ),
        (
            {"backbone": "vit_tiny_patch16_224", "backbone_args": {"patch_size": 2}},
            "has maps of stride 2; expected one of 4, 8, 16, 32: take another backbone, such as swin_tiny",
        ),
        ({"depths": (0, 1, 2, 3)}, "depths is .0, 1, 2, 3., and convnext_atto has stages; expected none: drop it"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    data = draw_scenes(tmp_path / "data")
    with pytest.raises(RequestError, match=message):
        segment(tmp_path / "run", data, **(NETWORK | settings))
    assert not (tmp_path / "run").exists()


def test_too_many_wrong_labels_stop_the_run(tmp_path: Path) -> None:
    data = draw_scenes(tmp_path / "data")
    (data / "annotations/training/3.png").unlink()
    with pytest.raises(RunError, match=r"1 of 12 images \(8.3%\) cannot be read, the first is .*3.png"):
        segment(tmp_path / "run", data, steps=2)
    (data / "annotations/training/3.png").write_bytes(b"")
    for path in (data / "annotations/validation").iterdir():
        path.write_bytes(b"")
    with pytest.raises(RunError, match="none of the 4 images of .* can be used with its label image; expected"):
        segment(tmp_path / "other", data, steps=1, max_bad_share=1.0)


def test_other_weights_and_other_classes_are_refused(tmp_path: Path, pretrained: Path) -> None:
    data = draw_scenes(tmp_path / "data")
    with pytest.raises(RequestError, match="the weights hold backbone vit_tiny_patch16_224, not convnext_atto"):
        segment(tmp_path / "run", data, weights=str(pretrained), backbone="convnext_atto")
    segment(tmp_path / "run", data, steps=1)
    (data / "classes.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(
        RequestError, match="with classes a, b, c, d; expected those that the run in .* began with, gro"
    ):
        segment(tmp_path / "run", data, steps=1)


def test_the_python_of_the_page_runs() -> None:
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    small = block.replace("img_size=512)", 'args={"embed_dim": 24, "num_heads": (1, 2, 3, 4), "depths": (1, 1, 1, 1)})')
    names: dict[str, Any] = {"torch": torch}
    exec(small, names)
    assert [tuple(found.shape[-2:]) for found in names["maps"]] == [(100, 152), (50, 76), (25, 38), (13, 19)]


def test_the_page_states_the_recipes() -> None:
    table = PAGE.read_text().partition("| network |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1:] for row in table.splitlines() if row.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == list(SEGMENT_RECIPES)
    for row, recipe in zip(rows, SEGMENT_RECIPES.values(), strict=True):
        settings = recipe()
        rate, decay, layers = (text.strip() for text in row[2].split(","))
        assert (float(rate), float(decay)) == (pytest.approx(settings["lr"] / 16), settings["weight_decay"])
        assert settings.get("layer_decay") == (None if layers == "none" else float(layers))


def test_recipes_are_settings() -> None:
    rates = {name: build(SegmentConfig, recipe()) for name, recipe in SEGMENT_RECIPES.items()}
    assert {name: round(c.lr * c.batch_size / 256, 9) for name, c in rates.items()} == {
        "vit-b": 3e-4,
        "mae-vit-b": 1e-4,
        "swin-b": 6e-5,
    }
