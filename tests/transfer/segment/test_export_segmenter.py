"""Segmenters and detectors for other tools: one graph with the logits, or a refusal that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import fastmim
from fastmim.backbone.multiscale import MultiScale
from fastmim.transfer.detect import file as detectors
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.segment import file as segmenters
from fastmim.transfer.segment.segmenter import Segmenter

VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
ABOUT: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "steps": 1}


def saved(path: Path, name: str = "vit_tiny_patch16_224", *, head: str = "linear", **args: Any) -> Path:
    """A segmenter's weights file, with random weights, for windows of 64 px."""
    torch.manual_seed(0)
    trunk = MultiScale(name, img_size=64, args=args or VIT, drop_path=0.0, depths=2)
    network = Segmenter(trunk, 3, head=head, channels=8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    design = segmenters.Design(
        classes=["sky", "sea", "sand"], first=1, head=head, channels=8, aux_weight=0.4, depths=2, window=None,
        img_size=64, test="slide", test_stride=42,
    )  # fmt: skip
    segmenters.FORMAT.save(path, network, trunk, design, about=ABOUT)
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vit") / "w.safetensors")


def logits_of(source: Path, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        small = segmenters.FORMAT.load(str(source)).network.logits(images)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False).numpy()


def test_onnx_has_the_logits_of_each_pixel(tmp_path: Path, vit: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = fastmim.export(vit, to="onnx", out=tmp_path / "s.onnx", img_size=96)
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randn(count, 3, 96, 96)
        [got] = session.run(["logits"], {"images": images.numpy()})
        assert got.shape == (count, 3, 96, 96)
        np.testing.assert_allclose(got, logits_of(vit, images), rtol=0, atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["fastmim"])
    assert about == {
        "architecture": "vit_tiny_patch16_224", "img_size": 96, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "classes": ["sky", "sea", "sand"], "first": 1,
    }  # fmt: skip
    assert "for images of 96 px: windows of images whose shorter side is 64 px" in result.describe()


def test_torch_export_at_a_size_that_needs_padding(tmp_path: Path) -> None:
    source = saved(tmp_path / "w.safetensors", "convnext_atto", head="upernet", **CONVNEXT)
    result = fastmim.export(source, to="torch-export", out=tmp_path / "s.pt2", img_size=40)
    images = torch.randn(3, 3, 40, 40)
    [got] = torch.export.load(result.path).module()(images)
    np.testing.assert_allclose(got.detach().numpy(), logits_of(source, images), rtol=0, atol=1e-4)


def test_other_formats_take_the_backbone(tmp_path: Path, vit: Path) -> None:
    result = fastmim.export(vit, to="timm", out=tmp_path / "d")
    model = eval(result.load, {"timm": timm}).eval()
    expected: Any = fastmim.load_backbone(vit)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))


def test_requests_that_are_refused(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(fastmim.RequestError, match=r"img_size is 0; expected 1 to 8192 px for vit_tiny.*leave it out"):
        fastmim.export(vit, to="onnx", out=tmp_path / "s.onnx", img_size=0)
    trunk = MultiScale("convnext_atto", img_size=64, args=CONVNEXT, drop_path=0.0)
    design = detectors.Design(classes=["ant"], categories=[1], masks=False, channels=8, window=None, img_size=64)
    detectors.FORMAT.save(
        tmp_path / "d.safetensors", Detector(trunk, 1, masks=False, channels=8), trunk, design, about=ABOUT
    )
    for to, ending in (("onnx", "onnx"), ("torch-export", "pt2")):
        with pytest.raises(fastmim.RequestError, match=r"a detector, and to is .*: export its backbone \(--to timm\)"):
            fastmim.export(tmp_path / "d.safetensors", to=to, out=tmp_path / f"d.{ending}")
