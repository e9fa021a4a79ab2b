"""Linear layers start as in MAE and FastMIM in the families of the recipes, and as timm has them elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastmim import weights
from fastmim.backbone import Backbone
from fastmim.method.mim import MIM

VIT = {"depth": 2, "embed_dim": 96, "num_heads": 3}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", VIT),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 48}),
    ("pvt_v2_b0", {}),
    ("cmt_s", {"embed_dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}),
]


def build(name: str, args: dict[str, Any], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return MIM(name, img_size=64, block=32, backbone_args=args, **options).backbone.model


def check_xavier(weight: torch.Tensor) -> None:
    """Uniform up to sqrt(6 / (in + out)) on either side (Glorot and Bengio, AISTATS 2010)."""
    limit = math.sqrt(6 / sum(weight.flatten(1).shape))
    assert 0.9 * limit < weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("name", "args"), FAMILIES)
def test_linear_layers_are_xavier_uniform_in_the_families_of_the_recipes(name: str, args: dict[str, Any]) -> None:
    model = build(name, args)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert layers
    for layer in layers:
        check_xavier(layer.weight)
        assert layer.bias is None or not layer.bias.any()


def test_a_vits_patch_embedding_is_a_linear_layer_and_its_class_token_normal() -> None:
    model: Any = build("vit_tiny_patch16_224", VIT)
    check_xavier(model.patch_embed.proj.weight)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [(*FAMILIES[0], {"linear_init": "timm"}), ("test_convnext", {}, {})],
)
def test_other_models_and_recipes_start_as_timm_has_them(
    name: str, args: dict[str, Any], options: dict[str, Any]
) -> None:
    found = build(name, args, **options).state_dict()
    torch.manual_seed(0)
    expected = Backbone(name, img_size=64, args=args).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("way", ["file", "state"])
def test_loaded_position_embeddings_are_kept_and_trained(way: str, tmp_path: Path) -> None:
    trained = Backbone("vit_tiny_patch16_224", img_size=64, args=VIT)
    torch.nn.init.normal_(trained.model.get_parameter("pos_embed"))
    backbone = MIM("vit_tiny_patch16_224", img_size=64, backbone_args=VIT).backbone
    assert not backbone.model.get_parameter("pos_embed").requires_grad
    if way == "file":
        weights.save(tmp_path / "weights.safetensors", trained, about={}, as_is=True)
        weights.load_into(backbone, tmp_path / "weights.safetensors")
    else:
        backbone.load_native_state_dict(trained.native_state_dict())
    for size in (64, 96):
        trained.set_input_size(size)
        backbone.set_input_size(size)
        table = backbone.model.get_parameter("pos_embed")
        assert table.requires_grad and torch.equal(table, trained.model.get_parameter("pos_embed"))


def test_a_backbone_is_taken_as_it_is() -> None:
    backbone = Backbone("vit_tiny_patch16_224", img_size=64, args=VIT)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    model = MIM(backbone)
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.model.state_dict().items())
    assert model.backbone.model.pos_embed.requires_grad
