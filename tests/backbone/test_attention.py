"""The form of attention that runs: the faster one for the device, the precision and the length, with the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from torch import nn

import fastmim
from fastmim.backbone import Backbone, Classifier
from fastmim.backbone.attention import takes_plain
from fastmim.backbone.patches import multiply_patches

VIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
CMT: dict[str, Any] = {"stem_width": 8, "embed_dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the queries of every fused attention that computes values."""
    lengths: list[int] = []
    original = F.scaled_dot_product_attention

    def count(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        lengths.extend([query.shape[-2]] * (query.device.type != "meta"))
        return original(query, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", count)
    return lengths


def test_short_sequences_are_trained_without_the_fused_form_and_read_with_it(fused: list[int]) -> None:
    for model in (
        Backbone("vit_tiny_patch16_224", img_size=32, args=VIT),
        Classifier("vit_tiny_patch16_224", num_classes=2, img_size=32, args=VIT),
        fastmim.MIM("vit_tiny_patch16_224", img_size=32, backbone_args=VIT, masking="drop"),
    ):
        for bf16 in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(torch.rand(2, 3, 32, 32))
                assert not fused
                with torch.no_grad():
                    model(torch.rand(2, 3, 32, 32))
            assert len(fused) >= 2
            fused.clear()


def test_long_sequences_are_trained_with_the_fused_form(fused: list[int]) -> None:
    backbone = Backbone("vit_tiny_patch16_224", img_size=128, args=VIT)
    with torch.autocast("cpu", torch.bfloat16):
        backbone(torch.rand(1, 3, 128, 128))  # 257 tokens: not long in bfloat16
    assert not fused
    backbone(torch.rand(1, 3, 128, 128))
    assert fused == [257, 257]
    fused.clear()
    with torch.autocast("cpu", torch.bfloat16):
        Backbone("vit_tiny_patch16_224", img_size=256, args=VIT)(torch.rand(1, 3, 256, 256))
    assert fused == [1025, 1025]


@pytest.mark.parametrize(("name", "args"), [("swin_tiny_patch4_window7_224", SWIN), ("cmt_s", CMT)])
def test_a_bias_is_trained_with_the_plain_form(name: str, args: dict[str, Any], fused: list[int]) -> None:
    backbone, images = Backbone(name, img_size=128, args=args).eval(), torch.rand(1, 3, 128, 128)
    plain = backbone(images)
    assert not fused
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), plain, rtol=1e-4, atol=1e-5)
    assert len(fused) == 4


def test_keys_that_a_model_reduces_count_as_fewer(fused: list[int]) -> None:
    pvt = Backbone("pvt_v2_b0", img_size=128, args={"depths": (1, 1, 1, 1)})
    pvt(torch.rand(1, 3, 128, 128))  # 1024 queries and 16 keys are fewer pairs than those of 256 tokens
    assert not fused


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("cmt_s", CMT),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}),
    ],
)
def test_both_forms_give_the_same_numbers(name: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone, images = Backbone(name, img_size=64, args=args).eval(), torch.rand(2, 3, 64, 64)
    plain = backbone(images)
    for module in ("attention", "cmt"):
        monkeypatch.setattr(f"fastmim.backbone.{module}.takes_plain", lambda *args, **options: False)
    torch.testing.assert_close(backbone(images), plain, rtol=1e-4, atol=1e-5)


def test_other_devices_take_the_fused_form() -> None:
    assert not takes_plain(64, device="cuda", dtype=torch.bfloat16, biased=False)
    assert not takes_plain(64, device="cpu", dtype=torch.float16, biased=False)


def test_who_turns_fused_attention_off_in_timm_gets_none(fused: list[int]) -> None:
    set_fused_attn(False)
    try:
        backbone = Backbone("vit_tiny_patch16_224", img_size=128, args=VIT)
    finally:
        set_fused_attn(True)
    backbone(torch.rand(1, 3, 128, 128))
    assert not fused


@pytest.mark.parametrize(
    ("name", "args", "number"),
    [
        ("vit_tiny_patch16_224", VIT, 1),
        ("swin_tiny_patch4_window7_224", SWIN, 1),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}, 4),
    ],
)
def test_patches_as_products_are_the_convolutions(name: str, args: dict[str, Any], number: int) -> None:
    torch.manual_seed(0)
    model = Backbone(name, img_size=64, args=args).model
    products = [m for m in model.modules() if isinstance(m, nn.Conv2d) and "forward" in vars(m)]
    assert len(products) == number
    for convolution in products:
        p = convolution.kernel_size[0]
        for memory in (torch.contiguous_format, torch.channels_last):
            # A row and a column of pixels are left over, which a convolution does not use either.
            images = torch.rand(2, convolution.in_channels, 3 * p + 1, 2 * p + 1).contiguous(memory_format=memory)
            inputs = (images.requires_grad_(), convolution.weight, convolution.bias)
            found, expected = convolution(images), nn.Conv2d.forward(convolution, images)
            torch.testing.assert_close(found, expected)
            gradients, wanted = (torch.autograd.grad(values.square().sum(), inputs) for values in (found, expected))
            torch.testing.assert_close(gradients, wanted)


def test_convolutions_that_overlap_or_pad_are_left_alone() -> None:
    kept = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 2, 2, padding=1), nn.Conv2d(4, 4, 2, 2, groups=2), nn.Conv2d(3, 4, 1)
    )
    multiply_patches(kept)
    assert not any("forward" in vars(module) for module in kept)
