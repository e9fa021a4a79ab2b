"""Maps at strides 4, 8, 16 and 32 of any family: shapes, gradients, sizes, windows, memory, weights."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim.backbone import Backbone
from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.position_tables import resample_embedding
from fastmim.backbone.pyramid import Pyramid
from fastmim.errors import RequestError

VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
SHALLOW = {"depths": (1, 1, 1, 1)}
# name, arguments, depths, widths of the levels
FAMILIES = [
    ("vit_tiny_patch16_224", VIT, 1, (8, 16, 32, 32)),
    ("vit_tiny_patch16_224", VIT, 4, (32, 32, 32, 32)),
    ("vit_small_patch14_dinov2", VIT, 1, (8, 16, 32, 32)),  # patches of 14 pixels
    ("vit_tiny_patch16_224", VIT | {"patch_size": 8}, 4, (32, 32, 32, 32)),
    ("beit_base_patch16_224", VIT, 1, (8, 16, 32, 32)),  # timm makes it for one size
    ("mixer_s16_224", {}, 1, (128, 256, 512, 512)),
    ("swin_tiny_patch4_window7_224", SWIN, 4, (16, 32, 64, 128)),
    ("convnext_atto", SHALLOW | {"dims": (8, 16, 24, 32)}, 1, (8, 16, 24, 32)),
    ("pvt_v2_b0", SHALLOW, 1, (32, 64, 160, 256)),
    ("twins_svt_small", SHALLOW, 1, (64, 128, 256, 512)),
    ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "embed_dim": 32}, 1, (32, 64, 128, 256)),
    ("resnet10t", {}, 1, (64, 128, 256, 512)),
    ("levit_128s", {}, 1, (32, 64, 128, 256)),  # strides 16, 32 and 64
]


def build(name: str, *, img_size: int = 96, **options: object) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(MultiScale(name, img_size=img_size, **options))


@pytest.mark.parametrize(("name", "args", "depths", "widths"), FAMILIES)
def test_every_family_gives_four_strides_of_images_of_any_size(name, args, depths, widths):
    pyramid = build(name, args=args, depths=depths)
    assert pyramid.widths == widths
    height, width = 70, 90
    maps = pyramid(torch.randn(2, 3, height, width))
    expected = [(2, w, -(-height // s), -(-width // s)) for w, s in zip(widths, (4, 8, 16, 32), strict=True)]
    assert [tuple(found.shape) for found in maps] == expected
    sum((found * torch.randn_like(found)).sum() for found in maps).backward()
    unreached = [n for n, p in pyramid.named_parameters() if (p.grad is not None) != p.requires_grad]
    assert not unreached


def test_padding_is_zeros_to_the_right_and_below():
    pyramid = build("swin_tiny_patch4_window7_224", args=SWIN).eval()
    images = torch.randn(1, 3, 70, 90)
    whole = pyramid(F.pad(images, (0, 6, 0, 26)))
    for found, padded, stride in zip(pyramid(images), whole, pyramid.strides, strict=True):
        torch.testing.assert_close(found, padded[..., : -(-70 // stride), : -(-90 // stride)])


def test_a_vit_sees_other_sizes_through_the_embedding_that_pretraining_would_resample():
    """At 64 x 96 px, against timm's model with the embedding interpolated by hand; at 160 px, against `Backbone`."""
    trunk = MultiScale("vit_tiny_patch16_224", img_size=96, args=VIT).eval()
    images = torch.randn(2, 3, 64, 96)
    reference = timm.create_model("vit_tiny_patch16_224", **VIT, img_size=(64, 96), num_classes=0).eval()
    table = resample_embedding(trunk.model.pos_embed.detach(), (6, 6), (4, 6))
    reference.load_state_dict(trunk.model.state_dict() | {"pos_embed": table})
    expected = reference.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(trunk(images)[0], expected)

    backbone = Backbone("vit_tiny_patch16_224", img_size=96, args=VIT).eval()
    trunk.load(backbone.model.state_dict())
    backbone.set_input_size(160)
    images = torch.randn(2, 3, 160, 160)
    expected, _ = backbone.encode(images)
    normalised = backbone.model.norm(trunk(images)[0].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(normalised, expected)
    assert [name for name, _ in trunk.model.named_parameters()].index("pos_embed") == 1  # still in its place


def test_the_embedding_is_trained_at_every_size():
    trunk = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT)
    trunk(torch.randn(1, 3, 96, 64))[0].square().sum().backward()
    assert trunk.model.pos_embed.grad.abs().sum() > 0
    trunk(torch.randn(1, 3, 64, 64))


def test_swin_keeps_its_windows_at_other_sizes():
    """Against timm's model, which is made for the size and given windows of 7 in every stage."""
    trunk = MultiScale("swin_tiny_patch4_window7_224", img_size=512, args=SWIN).eval()
    assert trunk.weights_size is None and trunk.takes_any_size
    reference = timm.create_model("swin_tiny_patch4_window7_224", **SWIN, num_classes=0).eval()
    reference.load_state_dict(trunk.model.state_dict())
    reference.set_input_size((256, 320), window_size=7, always_partition=True)
    images = torch.randn(1, 3, 256, 320)
    expected = reference.forward_intermediates(images, intermediates_only=True)
    for found, wanted in zip(trunk(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_patches_of_14_pixels_see_the_image_at_fourteen_sixteenths():
    trunk = MultiScale("vit_small_patch14_dinov2", img_size=96, args=VIT).eval()
    images = torch.randn(1, 3, 96, 96)
    smaller = F.interpolate(images, (84, 84), mode="bilinear", antialias=True)
    expected = trunk.model.forward_intermediates(smaller, indices=[3], intermediates_only=True)[0]
    [found] = trunk(images)
    assert found.shape == (1, 32, 6, 6) and trunk.weights_size == 84
    torch.testing.assert_close(found, expected)


def test_a_level_is_made_from_the_nearest_map():
    pyramid = build("vit_tiny_patch16_224", args=VIT).eval()
    images = torch.randn(1, 3, 64, 64)
    [last] = pyramid.trunk(images)
    finest, finer, same, coarse = (level for level in pyramid.levels)
    assert isinstance(finest[0], nn.ConvTranspose2d) and isinstance(finest[2], nn.GELU) and len(finest) == 5
    maps = pyramid(images)
    for found, level, reduced in ((maps[2], same, last), (maps[3], coarse, F.max_pool2d(last, 2))):
        expected = F.layer_norm(reduced.movedim(1, -1), (32,), level[-1].weight, level[-1].bias, eps=1e-6)
        torch.testing.assert_close(found, expected.movedim(-1, 1))
    assert len(finer) == 2


def _windowed(vit: nn.Module, side: int) -> nn.Module:
    """A plain ViT whose attention is computed for each window apart, the windows at the border being smaller."""
    vit = copy.deepcopy(vit)

    def attend(attn: nn.Module, tokens: Tensor) -> Tensor:
        num_prefix = vit.num_prefix_tokens
        cells = tokens[:, num_prefix:].unflatten(1, vit.patch_embed.grid_size)
        result, prefixes = torch.empty_like(cells), []
        for top in range(0, cells.shape[1], side):
            for left in range(0, cells.shape[2], side):
                square = cells[:, top : top + side, left : left + side]
                out = attn(torch.cat([tokens[:, :num_prefix], square.flatten(1, 2)], dim=1))
                prefixes.append(out[:, :num_prefix])
                result[:, top : top + side, left : left + side] = out[:, num_prefix:].unflatten(1, square.shape[1:3])
        return torch.cat([torch.stack(prefixes).mean(0), result.flatten(1, 2)], dim=1)

    class Windowed(nn.Module):
        def __init__(self, attn: nn.Module) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, x: Tensor, **_: object) -> Tensor:
            return attend(self.attn, x)

    for index in (0, 2, 4, 6):
        vit.blocks[index].attn = Windowed(vit.blocks[index].attn)
    return vit


@pytest.mark.parametrize(("side", "fused"), [(3, True), (4, True), (4, False)])
def test_windows_are_attention_within_squares(side: int, fused: bool) -> None:
    """On 6 x 8 positions: windows that fit in one direction, and others that must be filled up."""
    args = VIT | {"depth": 8}
    trunk = MultiScale("vit_tiny_patch16_224", img_size=96, args=args, window=side).eval()
    for block in trunk.model.blocks:
        block.attn.fused_attn = fused
    plain = timm.create_model("vit_tiny_patch16_224", **args, img_size=(96, 128), num_classes=0).eval()
    table = resample_embedding(trunk.model.pos_embed.detach(), (6, 6), (6, 8))
    plain.load_state_dict(trunk.model.state_dict() | {"pos_embed": table})
    images = torch.randn(2, 3, 96, 128)
    expected = _windowed(plain, side).forward_intermediates(images, indices=[7], intermediates_only=True)[0]
    torch.testing.assert_close(trunk(images)[0], expected)
    whole = plain.forward_intermediates(images, indices=[7], intermediates_only=True)[0]
    assert not torch.allclose(whole, expected, atol=1e-3)


def test_a_window_as_large_as_the_map_is_plain_attention():
    trunk = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT | {"depth": 8}, window=4).eval()
    plain = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT | {"depth": 8}).eval()
    plain.load(trunk.model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(trunk(images)[0], plain(images)[0])


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("vit_tiny_patch16_224", VIT, {"window": 3}),
        ("swin_tiny_patch4_window7_224", SWIN, {}),
        ("convnext_atto", SHALLOW, {}),
        ("twins_svt_small", SHALLOW, {}),
    ],
)
def test_checkpointed_activations_have_equal_gradients(name, args, options):
    plain = build(name, args=args, drop_path=0.0, **options)
    saving = build(name, args=args, drop_path=0.0, **options)
    saving.trunk.checkpoint_activations()
    images = torch.randn(1, 3, 64, 96)
    for pyramid in (plain, saving):
        sum(found.square().sum() for found in pyramid(images)).backward()
    for own, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (own.grad is None and other.grad is None) or torch.equal(own.grad, other.grad)


def test_learning_rates_fall_from_the_last_block_down():
    """As in BEiT, MAE and ViTDet: the head 1, the last block d, the first d^4, the patch embedding d^5."""
    pyramid = build("vit_tiny_patch16_224", args=VIT)
    groups = pyramid.parameter_groups(weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trained = [p for p in pyramid.parameters() if p.requires_grad]
    assert sorted(scale) == sorted(map(id, trained))
    model = pyramid.trunk.model
    assert [scale[id(block.attn.qkv.weight)] for block in model.blocks] == [0.5**n for n in (4, 3, 2, 1)]
    assert scale[id(model.pos_embed)] == scale[id(model.patch_embed.proj.weight)] == 0.5**5
    assert scale[id(pyramid.levels[0][0].weight)] == scale[id(pyramid.levels[0][-1].weight)] == 1
    assert decay[id(model.pos_embed)] == decay[id(pyramid.levels[0][-1].weight)] == 0
    assert decay[id(pyramid.levels[0][0].weight)] == decay[id(model.blocks[0].attn.qkv.weight)] == 0.1
    assert {group["lr_scale"] for group in pyramid.parameter_groups(weight_decay=0.1, layer_decay=1.0)} == {1.0}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_tiny_patch4_window7_224", {"args": SWIN, "depths": (0, 1)}, r"has stages; expected none: drop it"),
        ("vit_tiny_patch16_224", {"args": VIT, "depths": (1, 9)}, "expected ascending numbers of blocks of .*, 0 to 3"),
        ("vit_tiny_patch16_224", {"args": VIT, "depths": (2, 1)}, r"depths is \[2, 1\]; expected ascending"),
        (
            "vit_tiny_patch16_224",
            {"args": VIT | {"patch_size": 2}},
            "has maps of stride 2; expected one of 4, 8, 16, 32",
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"args": SWIN, "window": 4},
            "window is 4, and swin_tiny.* is not a plain ViT",
        ),
        (
            "eva02_tiny_patch14_224",
            {"args": {"depth": 1}, "window": 4},
            "window is 4, and eva02_tiny.* is not a plain ViT",
        ),
        ("mixer_s16_224", {"img_size": 64}, None),
    ],
)
def test_refusals(name: str, options: dict, message: str | None) -> None:
    if message is None:
        trunk = MultiScale(name, **options)
        with pytest.raises(RequestError, match="an image has 70 x 64 pixels, and mixer_s16_224 takes 64 x 64 at most"):
            trunk(torch.zeros(1, 3, 70, 64))
        return
    with pytest.raises(RequestError, match=message):
        MultiScale(name, **options)


def test_weights_of_another_model_are_refused():
    trunk = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT)
    other = timm.create_model("vit_tiny_patch16_224", **(VIT | {"embed_dim": 64}), img_size=64)
    with pytest.raises(RequestError, match="these weights are not those of vit_tiny_patch16_224 .*take other weights"):
        trunk.load(other.state_dict())
    with pytest.raises(RequestError, match="no cls_token, pos_embed, patch_embed.proj.weight"):
        trunk.load({})


def test_layers_that_timm_cannot_tell_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT)
    everything = [{"params": list(trunk.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}]
    monkeypatch.setattr("fastmim.backbone.layers.param_groups_layer_decay", lambda *args, **kwargs: everything)
    with pytest.raises(RequestError, match="layer_decay is 0.5, and timm does not tell the layers of .*; set it to 1"):
        trunk.parameter_groups(weight_decay=0.0, layer_decay=0.5)


def test_blocks_that_pretraining_skipped_start_anew():
    trunk = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT)
    fresh = trunk.model.blocks[3].mlp.fc1.weight.clone()
    other = MultiScale("vit_tiny_patch16_224", img_size=64, args=VIT).model
    trunk.load(other.state_dict(), fresh=["blocks.3"])
    assert torch.equal(trunk.model.blocks[3].mlp.fc1.weight, fresh)
    assert torch.equal(trunk.model.blocks[2].mlp.fc1.weight, other.blocks[2].mlp.fc1.weight)
