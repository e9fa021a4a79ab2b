"""The timm adapter over all families: shape and extent of the map, sizes, weights for timm, refusals."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from fastmim.backbone import Backbone, architecture
from fastmim.backbone.architecture import Architecture
from fastmim.errors import RequestError

SHALLOW = {"depths": (1, 1, 2, 1)}
# name, further arguments (for speed), width and stride at 128 px
FAMILIES = [
    ("vit_tiny_patch16_224", {}, 192, 16),
    ("deit3_small_patch16_224", {"depth": 2}, 384, 16),
    ("beit_base_patch16_224", {"depth": 2, "embed_dim": 192, "num_heads": 3}, 192, 16),
    ("eva02_tiny_patch14_224", {"depth": 2}, 192, 16),  # 126 px, 9 x 9 patches of 14, resampled to 8 x 8
    ("swin_tiny_patch4_window7_224", {}, 768, 32),
    ("swinv2_tiny_window8_256", SHALLOW, 768, 32),
    ("pvt_v2_b0", {}, 256, 32),
    ("twins_svt_small", SHALLOW, 512, 32),
    ("convnext_atto", {}, 320, 32),
    ("resnet10t", {}, 512, 32),
    ("regnety_002", {}, 368, 32),
    ("efficientnet_b0", {}, 320, 32),
    pytest.param("maxvit_rmlp_pico_rw_256", {}, 256, 32, marks=pytest.mark.slow),
    ("coatnet_pico_rw_224", {}, 512, 32),
    ("hiera_tiny_224", {"stages": (1, 1, 2, 1)}, 768, 32),  # refuses to apply its final norm
    pytest.param("mvitv2_tiny", {}, 768, 32, marks=pytest.mark.slow),
    ("davit_tiny", SHALLOW, 768, 32),
    pytest.param("focalnet_tiny_srf", {}, 768, 32, marks=pytest.mark.slow),
    ("levit_128s", {}, 384, 64),
    ("pit_ti_224", {}, 256, 32),  # 15 x 15 cells, then 8 x 8, then 4 x 4
]
SMALL_VIT = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


def build(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, **options)


@pytest.mark.parametrize(("name", "args", "width", "stride"), FAMILIES)
def test_every_family_gives_one_map_over_the_image(name, args, width, stride):
    backbone = build(name, args=args)
    grid = 128 // stride
    assert (backbone.width, backbone.stride, backbone.grid) == (width, stride, grid)
    images = torch.randn(2, 3, 128, 128)
    features = backbone(images)
    assert features.shape == (2, width, grid, grid)
    assert features.isfinite().all()

    # Gradients reach every parameter that requires one, above all the stem.
    features.square().mean().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert trained[0].grad.abs().sum() > 0

    # A change in one corner of the image shows more in that corner of the map than in the opposite one.
    changed = images.clone()
    changed[:, :, :stride, -stride:] += 2
    with torch.no_grad():
        change = (backbone(changed) - backbone(images)).abs().sum(dim=(0, 1))
    assert change[0, -1] > change[-1, 0]


def test_map_is_the_final_normalised_output_of_the_timm_model():
    """At timm's own size nothing is resampled, and timm's own features are the reference."""
    images = torch.randn(2, 3, 224, 224)
    for name, args in (
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("pvt_v2_b0", {}),
    ):
        backbone = build(name, img_size=224, args=args).eval()
        model = timm.create_model(name, num_classes=0, **args).eval()
        model.load_state_dict(backbone.model.state_dict())
        with torch.no_grad():
            expected, features = model.forward_features(images), backbone(images)
        if expected.ndim == 3:  # class token, then patches, row by row
            expected = expected[:, 1:].unflatten(1, (14, 14))
        if expected.shape[1] != backbone.width:
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


# Sizes


def test_images_are_resampled_for_patches_that_do_not_divide_them():
    backbone = build("vit_small_patch14_dinov2", args={"depth": 1, "embed_dim": 64, "num_heads": 2}).eval()
    assert (backbone.grid, backbone.stride) == (8, 16)
    images = torch.randn(1, 3, 128, 128)
    at_126 = F.interpolate(images, (126, 126), mode="bilinear", antialias=True)
    with torch.no_grad():
        tokens = backbone.model.forward_features(at_126)[:, backbone.model.num_prefix_tokens :]
        nine = tokens.transpose(1, 2).unflatten(2, (9, 9))
        torch.testing.assert_close(
            backbone(images), F.interpolate(nine, (8, 8), mode="bilinear", antialias=True), rtol=1e-4, atol=1e-5
        )


def windows(backbone: Backbone) -> list[int]:
    return [stage.blocks[0].window_size[0] for stage in backbone.model.layers]


def test_swin_takes_windows_that_fit_the_map():
    backbone = build("swin_tiny_patch4_window7_224", args=SMALL_SWIN)
    assert windows(backbone) == [4, 4, 4, 4]
    for size, window in ((160, 5), (192, 6)):
        backbone.set_input_size(size)
        assert windows(backbone) == [window] * 4
        assert backbone(torch.randn(1, 3, size, size)).shape[-1] == backbone.grid == size // 32


def test_a_window_given_as_an_argument_is_kept_at_the_first_size():
    backbone = build("swin_tiny_patch4_window7_224", img_size=64, args=SMALL_SWIN | {"patch_size": 2, "window_size": 4})
    assert windows(backbone) == [4, 4, 4, 4]
    assert backbone.grid == 4


def test_a_new_size_keeps_what_does_not_depend_on_it():
    backbone = build("swin_tiny_patch4_window7_224", args=SMALL_SWIN)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    trains = {name for name, p in backbone.named_parameters() if p.requires_grad}
    backbone.set_input_size(160)
    assert (backbone.img_size, backbone.grid, backbone.stride) == (160, 5, 32)
    after = dict(backbone.named_parameters())
    assert after.keys() == before.keys()
    assert {name for name, p in after.items() if p.requires_grad} == trains
    for name, p in after.items():
        if "relative_position_bias_table" in name:
            assert p.shape[0] == 9 * 9
        else:
            assert torch.equal(p, before[name])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("pit_ti_224", {}),
    ],
)
def test_a_new_size_is_a_linear_function_of_the_weights(name, args):
    """So an optimiser's moments can be resampled by the same call."""
    first = build(name, args=args)
    second, both = copy.deepcopy(first), copy.deepcopy(first)
    with torch.no_grad():
        for a, b, c in zip(first.parameters(), second.parameters(), both.parameters(), strict=True):
            b.normal_()
            c.copy_(2 * a - 3 * b)
    for backbone in (first, second, both):
        backbone.set_input_size(160)
    for a, b, c in zip(first.parameters(), second.parameters(), both.parameters(), strict=True):
        torch.testing.assert_close(c, 2 * a - 3 * b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "args", "table", "sizes", "grids", "planes"),
    [
        (
            "hiera_tiny_224",
            {"stages": (1, 1, 1, 1)},
            "pos_embed",
            (128, 160),
            (32, 40),
            lambda table, grid: table.transpose(1, 2).unflatten(2, (grid, grid)),
        ),
        ("pit_ti_224", {}, "pos_embed", (128, 160), (15, 19), lambda table, _: table),
        (
            "levit_128s",
            {},
            "stages.0.blocks.0.attn.attention_biases",
            (128, 192),
            (8, 12),
            lambda table, grid: table.unflatten(1, (grid, grid))[None],
        ),
    ],
)
def test_tables_that_timm_cannot_resample_are_interpolated_over_their_grid(name, args, table, sizes, grids, planes):
    backbone = build(name, args=args, img_size=sizes[0])
    before = backbone.model.get_parameter(table).data.normal_()
    backbone.set_input_size(sizes[1])
    after = backbone.model.get_parameter(table)
    expected = F.interpolate(planes(before, grids[0]), (grids[1], grids[1]), mode="bicubic")
    torch.testing.assert_close(planes(after, grids[1]), expected)
    assert backbone(torch.randn(2, 3, sizes[1], sizes[1])).isfinite().all()


def test_a_size_that_changes_the_stride_is_refused():
    backbone = build("resnet10t")
    with pytest.raises(RequestError, match=r"stride 32 at 128 px and 48 at 144 px.*multiples of 32"):
        backbone.set_input_size(144)
    assert backbone.img_size == 128
    assert backbone(torch.randn(2, 3, 128, 128)).shape[-1] == 4


def test_a_new_size_is_refused_where_timm_cannot_resample_the_weights():
    backbone = build("mixer_s32_224")
    with pytest.raises(RequestError, match="weights for 128 px cannot be brought to 160 px"):
        backbone.set_input_size(160)
    assert backbone(torch.randn(1, 3, 128, 128)).shape[-1] == 4


@pytest.mark.slow
def test_sizes_that_are_no_multiples_of_16_are_found_too():
    args = {"depth": ((1, 1, 0),) * 3, "embed_dim": (24, 48)}
    with pytest.raises(RequestError, match=r"cannot take images of 272 px: expected a size near 408, 120 px; choose"):
        Backbone("crossvit_15_dagger_408", img_size=272, args=args)


def test_a_size_that_the_backbone_cannot_take_is_refused():
    with pytest.raises(RequestError, match=r"cannot take images of 8 px: expected a size near 32, 48, 64 px; choose"):
        Backbone("vit_tiny_patch16_224", img_size=8, args={"depth": 1})
    with pytest.raises(
        RequestError,
        match="img_size is 127; expected whole HOG cells of 8 pixels under the backbone.s map of about 4 x 4: take 96 or 128",
    ):
        Backbone("resnet10t", img_size=127)


def test_other_channels():
    backbone = build("convnext_atto", in_chans=4)
    assert backbone.in_chans == 4
    assert backbone(torch.randn(2, 4, 128, 128)).shape == (2, 320, 4, 4)
    assert backbone.arguments() == {"in_chans": 4}
    timm.create_model("convnext_atto", in_chans=4).load_state_dict(backbone.native_state_dict())


# Weights for timm


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "convnext_atto", "coat_lite_tiny"]
)
def test_weights_load_strictly_into_the_plain_timm_model(name):
    backbone = build(name).eval()
    assert backbone.arguments() == {}
    state = backbone.native_state_dict()
    model = timm.create_model(name).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        assert not model(torch.randn(1, 3, 224, 224)).any()  # the classifier is untrained: no class is preferred


def test_weights_for_timm_load_back():
    backbone = build("vit_tiny_patch16_224")
    state = backbone.native_state_dict()
    other = Backbone("vit_tiny_patch16_224")
    other.load_native_state_dict(state)
    for name, value in other.model.state_dict().items():
        kept = backbone.model.state_dict()[name]
        if name == "pos_embed":  # there and back by interpolation
            assert F.cosine_similarity(value.flatten(), kept.flatten(), dim=0) > 0.99
        else:
            assert torch.equal(value, kept)


def test_position_embeddings_are_resampled_as_in_the_code_of_mae_and_fastmim():
    backbone = build("vit_tiny_patch16_224", args=None)
    with torch.no_grad():
        backbone.model.pos_embed.normal_()
    prefix, cells = backbone.model.pos_embed[:, :1], backbone.model.pos_embed[:, 1:]
    grid = cells.transpose(1, 2).unflatten(2, (8, 8))
    grid = F.interpolate(grid, (14, 14), mode="bicubic", align_corners=False)
    expected = torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(backbone.native_state_dict()["pos_embed"], expected)


@pytest.mark.parametrize(
    ("name", "args", "sizes"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT, (28, 32)),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, (128, 160)),
        ("mixer_s32_224", {}, (128,)),
    ],
)
def test_weights_of_other_models_load_strictly_with_their_arguments(name, args, sizes):
    """A customised model, or one whose weights timm cannot resample, is written at its present size."""
    backbone = build(name, img_size=sizes[0], args=args)
    for size in sizes:
        backbone.set_input_size(size)
        arguments = json.loads(json.dumps(backbone.arguments()))  # as a weights file carries them
        assert args.keys() < arguments.keys()
        model = timm.create_model(name, **arguments)
        model.load_state_dict(backbone.native_state_dict())
        images = torch.randn(1, 3, size, size)
        with torch.no_grad():
            maps = model.eval().forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
            torch.testing.assert_close(backbone.eval()(images), maps[-1])


def test_weights_of_another_model_are_refused():
    state = build("vit_tiny_patch16_224", args=SMALL_VIT, img_size=32).native_state_dict()
    other = build("vit_tiny_patch16_224", args=SMALL_VIT | {"embed_dim": 48}, img_size=32)
    with pytest.raises(RequestError, match=r"not those of vit_tiny_patch16_224 at 32 px.*take other weights"):
        other.load_native_state_dict(state)


# Position embeddings


def test_plain_vits_start_from_sincos_embeddings():
    table = build("vit_tiny_patch16_224", args={"depth": 1}).model.pos_embed.detach().numpy()[0]
    dim, grid = 192, 8
    expected = np.zeros((1 + grid * grid, dim))
    for row in range(grid):
        for column in range(grid):
            for i in range(dim // 4):
                frequency = 10000.0 ** (-i / (dim / 4))
                channels = [i, i + dim // 4, i + dim // 2, i + 3 * dim // 4]
                angles = [column * frequency, column * frequency, row * frequency, row * frequency]
                values = [np.sin(angles[0]), np.cos(angles[1]), np.sin(angles[2]), np.cos(angles[3])]
                expected[1 + row * grid + column, channels] = values
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_only_plain_vits_get_sincos_embeddings():
    for name, args in (("beit_base_patch16_224", {"depth": 1}), ("hiera_tiny_224", {"stages": (1, 1, 1, 1)})):
        model = build(name, args=args).model
        assert model.pos_embed is None or model.pos_embed.std() < 0.1


# Parameters


def test_parameters_that_the_map_does_not_need_are_frozen():
    backbone = build("efficientnet_b0")
    assert backbone.untrained == {"conv_head.weight", "bn2.weight", "bn2.bias"}
    assert not backbone.model.conv_head.weight.requires_grad


def test_no_weight_decay_names_parameters_of_this_module():
    names = {name for name, _ in build("vit_tiny_patch16_224", args=SMALL_VIT, img_size=32).named_parameters()}
    backbone = build("vit_tiny_patch16_224", args=SMALL_VIT, img_size=32)
    assert {"model.pos_embed", "model.cls_token"} <= backbone.no_weight_decay() & names
    assert build("resnet10t").no_weight_decay() == set()


def test_drop_path_is_off_by_default() -> None:
    def shares(backbone: Backbone) -> set[float]:
        return {module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")}

    backbone = Backbone("swin_s3_tiny_224", img_size=128)
    assert shares(backbone) == {0.0}
    backbone.set_input_size(160)
    assert shares(backbone) == {0.0}
    assert max(shares(Backbone("swin_s3_tiny_224", args={"drop_path_rate": 0.2}))) == pytest.approx(0.2)


def test_what_a_dry_run_finds_is_remembered_by_all_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    dry_run = Architecture._dry_run
    monkeypatch.setattr(Architecture, "_dry_run", lambda self, size: (runs.append(size), dry_run(self, size))[1])
    architecture._found.cache_clear()
    shallow: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    for args, size, depth, num_runs in (
        (shallow, 32, 1.0, 1), (shallow, 32, 1.0, 1), (shallow, 32, 0.5, 2), (shallow, 48, 1.0, 3),
        (shallow | {"depth": 3}, 32, 1.0, 4), (shallow | {"norm_layer": nn.LayerNorm}, 32, 1.0, 5),
        (shallow | {"norm_layer": nn.LayerNorm}, 32, 1.0, 6),
    ):  # fmt: skip
        backbone = Backbone("vit_tiny_patch16_224", args=args, img_size=size, encoder_depth=depth)
        assert (len(runs), backbone.num_blocks, backbone.grid) == (num_runs, args["depth"], size // 8)
