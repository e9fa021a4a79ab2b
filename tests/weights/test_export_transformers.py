"""Backbones in transformers' own layout: its classes read them and find timm's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import fastmim
from fastmim import Backbone, cli, weights
from fastmim.weights import export, transformers_layout

PLAIN: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}
CASES: list[tuple[str, dict[str, Any], int, str]] = [
    ("vit_tiny_patch16_224", PLAIN, 64, "ViTModel"),
    ("vit_small_patch14_dinov2", PLAIN, 56, "Dinov2Model"),
    ("vit_small_patch14_reg4_dinov2", PLAIN, 56, "Dinov2WithRegistersModel"),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, 64, "SwinModel"),
    ("convnext_atto", CONVNEXT, 64, "ConvNextModel"),
    ("convnext_tiny", CONVNEXT, 64, "ConvNextModel"),
    ("pvt_v2_b0", {"depths": (2, 1, 1, 1)}, 64, "PvtV2Model"),
    ("pvt_v2_b2_li", {"depths": (1, 1, 1, 1)}, 64, "PvtV2Model"),
]  # fmt: skip


def saved(path: Path, name: str, args: dict[str, Any], img_size: int) -> Path:
    """A weights file of a backbone with random weights."""
    backbone = Backbone(name, args=args, img_size=img_size)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.2)
    weights.save(path, backbone, about={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "steps": 3}, as_is=True)
    return path


@pytest.mark.parametrize(("name", "args", "size", "kind"), CASES)
def test_transformers_finds_timms_features(
    tmp_path: Path, name: str, args: dict[str, Any], size: int, kind: str
) -> None:
    transformers = pytest.importorskip("transformers")
    source = saved(tmp_path / "w.safetensors", name, args, size)
    result = fastmim.export(source, to="hf", out=tmp_path / "d", img_size=size)
    assert kind in result.load
    model = eval(result.load, {"transformers": transformers}).eval()
    images = torch.randn(3, 3, size, size)
    timms: Any = fastmim.load_backbone(source, img_size=size)
    with torch.no_grad():
        expected, got = timms.forward_features(images), model(images).last_hidden_state
    expected = expected.flatten(1, 2) if kind == "SwinModel" else expected
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert result.max_difference < 1e-5


def test_the_directory_says_how_images_are_prepared(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = saved(tmp_path / "w.safetensors", "convnext_atto", CONVNEXT, 64)
    words = ["export", str(source), "--to", "hf", "--out", str(tmp_path / "d"), "--img-size", "64"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path / "d")
    pixels = prepare(torch.full((3, 100, 80), 102, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([0.0, -1 / 3, -0.5], abs=1e-5)
    assert json.loads((tmp_path / "d/config.json").read_text())["hidden_sizes"] == [8, 8, 16, 16]
    assert "library_name: transformers" in (tmp_path / "d/README.md").read_text()
    maps = transformers.ConvNextBackbone.from_pretrained(tmp_path / "d", out_indices=[1, 2, 3, 4]).eval()
    with torch.no_grad():
        found = maps(pixels).feature_maps
    assert [tuple(part.shape[1:]) for part in found] == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("resnet10t", {}, "timm's ResNet is none of them"),
        ("vit_base_patch16_gap_224", PLAIN, "it has no class token"),
        ("vit_giant_patch14_dinov2", PLAIN, "its blocks are no plain ones"),
        ("swin_s3_tiny_224", {}, "its windows are 7 x 7, 14 x 14"),
        ("convnextv2_atto", {}, "its blocks have no layer scale"),
        ("convnext_nano_ols", {}, "its stem is no single convolution"),
        ("convnext_zepto_rms", {}, "its norms are no LayerNorms"),
    ],
)
def test_what_transformers_lacks_is_named(name: str, args: dict[str, Any], reason: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **args)
    with pytest.raises(transformers_layout.Unsupported, match=reason):
        transformers_layout.layout_of(model, 224, 3)


def test_requests_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "w.safetensors", "resnet10t", {}, 32)
    with pytest.raises(
        fastmim.RequestError, match=r"resnet10t, which transformers lacks .*expected one of ViT, DINOv2"
    ):
        fastmim.export(source, to="hf", out=tmp_path / "d")
    with pytest.raises(fastmim.RequestError, match=r"expected a directory for hf"):
        fastmim.export(source, to="hf", out=tmp_path / "d.safetensors")
    tensors, facts = weights.read(source)
    classes = facts | {"classes": ["ant"], "arguments": facts["arguments"] | {"num_classes": 1}}
    tensors |= {"fc.weight": torch.zeros(1, 512), "fc.bias": torch.zeros(1)}
    weights.write(tmp_path / "c.safetensors", tensors, {k: v for k, v in classes.items() if k != "format"})
    with pytest.raises(fastmim.RequestError, match=r"the weights are a classifier; .*take --to timm"):
        fastmim.export(tmp_path / "c.safetensors", to="hf", out=tmp_path / "d")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(fastmim.RequestError, match=r"needs transformers: pip install 'fastmim\[transformers\]'"):
        fastmim.export(source, to="hf", out=tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_version_with_other_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    source = saved(tmp_path / "w.safetensors", "convnext_atto", CONVNEXT, 32)
    monkeypatch.setattr(transformers_layout, "_CONVNEXT", transformers_layout._CONVNEXT[1:])
    with pytest.raises(fastmim.RunError, match=r"loads .*stem.* in another way; expected the names of published"):
        fastmim.export(source, to="hf", out=tmp_path / "d")
