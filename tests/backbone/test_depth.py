"""Encoder depth: which blocks run, which are trained, and which shares are refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from fastmim.backbone import Backbone
from fastmim.errors import RequestError

SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


def test_encoder_depth_runs_the_first_blocks_of_a_vit():
    args = {"depth": 12, "embed_dim": 48, "num_heads": 3}
    backbone = Backbone("vit_tiny_patch16_224", args=args, encoder_depth=0.75).eval()
    assert (backbone.num_blocks, backbone.trained_blocks) == (12, 9)
    assert backbone.untrained_blocks == ("blocks.9", "blocks.10", "blocks.11")
    assert {name.split(".")[1] for name in backbone.untrained} == {"9", "10", "11"}
    frozen = {name.removeprefix("model.") for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == backbone.untrained

    shorter = timm.create_model("vit_tiny_patch16_224", **args | {"depth": 9}, img_size=128, num_classes=0).eval()
    state = {n: t for n, t in backbone.model.state_dict().items() if n in shorter.state_dict()}
    shorter.load_state_dict(state)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = shorter.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
        torch.testing.assert_close(backbone(images), expected)

    # The weights hold the whole model, skipped blocks with their initial values; a copy skips them too.
    assert backbone.native_state_dict().keys() == backbone.model.state_dict().keys()
    resized = copy.deepcopy(backbone)
    resized.set_input_size(160)
    assert resized.untrained_blocks == backbone.untrained_blocks
    resized(torch.randn(1, 3, 160, 160)).sum().backward()
    assert resized.model.blocks[9].mlp.fc1.weight.grad is None


def test_encoder_depth_counts_blocks_over_all_stages():
    backbone = Backbone("swin_tiny_patch4_window7_224", args=SMALL_SWIN, encoder_depth=0.6)
    assert (backbone.num_blocks, backbone.trained_blocks) == (5, 3)
    assert backbone.untrained_blocks == ("layers.2.blocks.1", "layers.3.blocks.0")
    assert backbone(torch.randn(1, 3, 128, 128)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("pvt_v2_b0", 0, "encoder_depth 0: expected a share above 0 and at most 1"),
        ("pvt_v2_b0", 1.5, "encoder_depth 1.5: expected a share above 0 and at most 1"),
        ("resnet10t", 0.75, "encoder_depth 0.75: expected 1, as this backbone does not list its blocks"),
        (
            "efficientnet_b0",
            0.5,
            r"encoder_depth 0.5 leaves out blocks\.\d\.\d .* which give the map its shape: expected a greater share",
        ),
    ],
)
def test_depths_that_are_refused(name, share, message):
    with pytest.raises(RequestError, match=message):
        Backbone(name, encoder_depth=share)
