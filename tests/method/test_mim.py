"""The method: masking, prediction and loss, with hidden blocks painted over or their tokens dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import set_fused_attn
from torch import Tensor

import fastmim
from fastmim.backbone import Backbone
from fastmim.errors import RequestError
from fastmim.method.decoder import Decoder, FillingDecoder, LinearDecoder
from fastmim.method.loss import describe_explained, explained_variance, masked_loss
from fastmim.method.masking import visible_positions
from fastmim.method.mim import MIM
from fastmim.method.targets import TARGETS, Target
from fastmim.randomness import copy_keys, image_keys

VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "img_size": 32,
}
KEYS = image_keys(0, 0, torch.arange(4))


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("error", "expected"), [("l2", (4 + 16) / 2), ("l1", (2 + 4) / 2)])
def test_the_loss_is_the_mean_over_hidden_positions(error: str, expected: float) -> None:
    prediction = torch.tensor([[[[2.0, 9.0], [4.0, 7.0]]]]).expand(1, 3, 2, 2)
    mask = torch.tensor([[[True, False], [True, False]]])
    assert masked_loss(prediction, torch.zeros(1, 3, 2, 2), mask, error=error).item() == expected


def test_explained_variance_counts_hidden_positions_only() -> None:
    target = torch.tensor([[[[1.0, 50.0], [3.0, 60.0]], [[0.0, 50.0], [4.0, 60.0]]]])  # hidden: (1, 0) and (3, 4)
    mask = torch.tensor([[[True, False], [True, False]]])
    mean = torch.tensor([2.0, 2.0]).view(1, 2, 1, 1).expand_as(target)
    halfway = (mean + target) / 2  # leaves a quarter of the squared distances
    for prediction, expected in ((target, 1.0), (mean, 0.0), (halfway, 0.75), (2 * mean - target, -3.0)):
        assert explained_variance(prediction, target, mask) == expected
    assert explained_variance(target, torch.ones(1, 2, 2, 2), mask) == 0
    assert describe_explained(0.75) == "predictions explain 75% of the variance of the hidden blocks"
    assert describe_explained(-3.0) == "predictions are no better yet than the mean of the hidden blocks"


def test_the_prediction_depends_only_on_what_is_visible() -> None:
    for masking in ("in-place", "drop"):
        torch.manual_seed(0)
        model = MIM(**VIT, masking=masking, target=fastmim.Pixels()).eval()
        output = model(images(), KEYS)
        hidden = output["mask"].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        changed = model(torch.where(hidden, images() + 1, images()), KEYS)
        torch.testing.assert_close(changed["prediction"], output["prediction"])
        other = model(torch.where(hidden, images(), images() + torch.randn(4, 3, 32, 32)), KEYS)
        assert not torch.allclose(other["prediction"], output["prediction"])


def test_dropping_no_tokens_gives_the_feature_map() -> None:
    """Given every position, the encoder of visible tokens equals timm's own forward pass."""
    for name in ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"):
        torch.manual_seed(0)
        args = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 16}
        backbone = Backbone(name, img_size=64, args=args).eval()
        everywhere = torch.arange(16).expand(2, -1)
        picture = torch.randn(2, 3, 64, 64)
        tokens, prefix = backbone.encode_visible(picture, everywhere)
        features, beside = backbone.encode(picture)
        torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (4, 4)), features)
        torch.testing.assert_close(prefix, beside)
        torch.testing.assert_close(features, backbone(picture))
        assert prefix.shape[1] == backbone.model.num_prefix_tokens


def test_the_decoder_puts_visible_tokens_back_at_their_positions() -> None:
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    assert visible_positions(mask, 2).tolist() == [[1, 2], [0, 3]]
    decoder = FillingDecoder(4, 32, 0, 4)  # without blocks, each position is decoded on its own
    tokens, none = torch.randn(2, 2, 4), torch.zeros(2, 0, 4)
    filled = decoder(tokens, none, visible_positions(mask, 2), (2, 2)).flatten(2)
    same = decoder(tokens.flip(1), none, visible_positions(mask, 2).flip(1), (2, 2)).flatten(2)
    torch.testing.assert_close(filled, same)
    alone = decoder(torch.zeros(2, 2, 4), none, visible_positions(mask, 2), (2, 2)).flatten(2)
    hidden = mask.flatten(1)[:, None].expand(-1, 4, -1)
    torch.testing.assert_close(filled[hidden], alone[hidden])
    assert not torch.allclose(filled[~hidden], alone[~hidden])


def test_decoders_take_grids_that_are_not_square() -> None:
    features, prefix = torch.randn(2, 8, 2, 3), torch.randn(2, 1, 8)
    everywhere = torch.arange(6).expand(2, -1)
    for decoder in (Decoder(8, 32, 1, 5), LinearDecoder(8, 5)):
        assert decoder(features, prefix).shape == (2, 5, 2, 3)
    filled = FillingDecoder(8, 32, 0, 5)(features.flatten(2).transpose(1, 2), prefix, everywhere, (2, 3))
    assert filled.shape == (2, 5, 2, 3)


class MeanColour:
    """A target of a user's own, which is not an `nn.Module` and has none of the optional members."""

    cell = 4

    def for_stride(self, stride: int) -> Target:
        assert stride % self.cell == 0
        return self

    def num_channels(self, in_chans: int) -> int:
        return in_chans

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, self.cell)


@pytest.mark.parametrize("masking", ["in-place", "drop"])
def test_a_target_can_be_any_object_with_its_members(masking: Any) -> None:
    model = MIM(**VIT, target=MeanColour(), masking=masking)
    output = model(images(), KEYS)
    assert output["prediction"].shape == output["target"].shape == (4, 3 * 2 * 2, 4, 4)
    colours = torch.nn.functional.pixel_shuffle(output["target"], 2)
    torch.testing.assert_close(colours, torch.nn.functional.avg_pool2d(images(), 4))
    output["loss"].backward()
    assert not [name for name in model.state_dict() if name.startswith("target")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("more", [{"masking": "drop"}, {"decoder": "linear", "loss": "l1"}, {"decoder": (64, 2)}])
def test_every_target_trains_with_every_masking_and_decoder(target: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MIM(**VIT, target=TARGETS[target], **more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(images(), KEYS)["loss"]
        loss.backward()
        losses.append(loss.item())
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]


def test_blocks_larger_than_a_patch_are_dropped_whole_at_every_size() -> None:
    model = MIM(**VIT, masking="drop", block=16)
    assert model.num_visible == 4
    assert model(images(), KEYS)["prediction"].shape == (4, 27, 4, 4)
    model.set_input_size(64)
    assert model.num_visible == 16
    assert model(torch.randn(4, 3, 64, 64), KEYS)["prediction"].shape == (4, 27, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backbone": "swin_tiny_patch4_window7_224", "img_size": 64, "masking": "drop"},
            "cannot leave tokens out; exp",
        ),
        ({"backbone": "resnet18", "img_size": 64, "masking": "drop"}, "expected a plain ViT such as"),
        ({"backbone": "vit_small_r26_s32_224", "img_size": 64, "masking": "drop"}, "cannot leave tokens out"),
        (VIT | {"masking": "drop", "decoder": "linear"}, "cannot fill in dropped tokens; expected a transformer"),
    ],
)
def test_tokens_that_cannot_be_dropped_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        MIM(**settings)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_convnext", "resnet18"])
def test_checkpointed_activations_change_only_memory(name: str) -> None:
    torch.manual_seed(0)
    model = MIM(name, img_size=64)
    gradients, num_bytes = [], []
    for _ in range(2):
        saved = [0]

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(torch.nn.functional.interpolate(images(), 64), KEYS)["loss"]
        gradients.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
        num_bytes.append(saved[0])
        if name == "resnet18":
            with pytest.raises(RequestError, match="resnet18 does not list its blocks; leave it off"):
                model.backbone.checkpoint_activations()
            return
        model.backbone.checkpoint_activations()
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before)
    assert num_bytes[1] < 0.7 * num_bytes[0]


def test_fused_attention_equals_the_plain_form() -> None:
    """timm turns Swin's fused attention off; with a mask and a bias it must give the same map."""
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224", img_size=64, args={"depths": [2, 2], "embed_dim": 48})
    attention = [module for module in backbone.modules() if hasattr(module, "fused_attn")]
    assert attention
    maps = []
    for fused in (True, False):
        assert all(module.fused_attn for module in attention) or not fused
        for module in attention:
            module.fused_attn = fused
        maps.append(backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))))
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)


def test_attention_is_not_fused_if_timm_is_told_not_to() -> None:
    set_fused_attn(False)
    try:
        backbone = Backbone("swin_tiny_patch4_window7_224", img_size=64, args={"depths": [1, 1], "embed_dim": 48})
    finally:
        set_fused_attn(True)
    assert not any(getattr(module, "fused_attn", False) for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "masking"),
    [
        ("vit_tiny_patch16_224", "in-place"),
        ("vit_tiny_patch16_224", "drop"),
        ("swin_tiny_patch4_window7_224", "in-place"),
        ("pvt_v2_b0", "in-place"),
        ("test_convnext", "in-place"),
    ],
)
def test_the_step_compiles_without_a_graph_break(name: str, masking: Any) -> None:
    args = {"vit": {"depth": 2}, "swi": {"depths": [2, 1]}, "pvt": {"depths": [1] * 4}}.get(name[:3], {})
    model = MIM(name, img_size=64, masking=masking, backbone_args=args)
    step = torch.compile(lambda x, keys: model(x, keys)["loss"], fullgraph=True, backend="eager")
    picture = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(step(picture, KEYS), model(picture, KEYS)["loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"images is float32 \(2, 3, 64, 64\).*: resize them, or call set_input_size\(64\)"),
        (torch.zeros(2, 3, 32, 64), r"images is float32 \(2, 3, 32, 64\); expected floats \(B, 3, 32, 32\): resize"),
        (torch.zeros(2, 1, 32, 32), r"channels come second; repeat a grey image's, images.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(2, 32, 32, 3), "channels come second"),
        (torch.zeros(3, 32, 32), r"images is float32 \(3, 32, 32\).*: add the batch dimension, images\[None\]"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "images is uint8 .*: divide pixels by 255, subtract the mean"),
        ([1.0], r"images is a list; expected floats \(B, 3, 32, 32\): make it a tensor"),
    ],
)
def test_other_images_than_the_model_takes_are_refused(images: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        MIM(**VIT)(images)


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match=r"target is 'hog'; expected an object such as fastmim.HOG\(\)"):
        MIM("vit_tiny_patch16_224", target="hog")  # type: ignore[arg-type]


@pytest.mark.parametrize("masking", ["in-place", "drop"])
@pytest.mark.parametrize("name", TARGETS)
def test_several_masks_equal_a_batch_of_copies(masking: Any, name: str) -> None:
    """Loss and every gradient are those of a batch that holds each image three times, with these masks."""
    torch.manual_seed(0)
    model = MIM(**VIT, target=TARGETS[name], masking=masking, masks_per_image=3)
    output = model(images(), KEYS)
    output["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert output["prediction"].shape[0] == output["mask"].shape[0] == 12
    masks = output["mask"].unflatten(0, (4, 3))
    assert torch.equal(masks[:, 0], MIM(**VIT, masks_per_image=1)(images(), KEYS)["mask"])  # the first is the usual one
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not any(torch.equal(one[first], one[second]) for one in masks)
    model.zero_grad()
    model.masks_per_image = 1
    copies = model(images().repeat_interleave(3, 0), copy_keys(KEYS, 3))
    copies["loss"].backward()
    assert torch.equal(copies["mask"], output["mask"])
    torch.testing.assert_close(copies["loss"], output["loss"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.get(name), atol=1e-6, rtol=1e-4)
    assert len(gradients) > 20


def test_the_target_of_an_image_is_computed_once_for_all_masks_and_evaluation_has_one() -> None:
    seen = []

    class Counting(MeanColour):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    model = MIM(**VIT, target=Counting(), masks_per_image=4)
    assert model(images(), KEYS)["target"].shape[0] == 16
    assert model.eval()(images(), KEYS)["target"].shape[0] == 4
    assert seen == [4, 4]
