"""Weights of the official MAE and FastMIM code, decoder included, give their predictions and losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastmim
from fastmim.backbone import Classifier
from fastmim.method.mim import MIM
from fastmim.randomness import image_keys
from parity import reference
from parity.reference import DECODER_DEPTH, DECODER_WIDTH, GRID, PATCH, SIZE, Weights

NETWORK: dict[str, Any] = {
    "backbone": "vit_base_patch16_224",
    "backbone_args": {
        "patch_size": PATCH,
        "embed_dim": reference.WIDTH,
        "depth": reference.DEPTH,
        "num_heads": reference.HEADS,
    },
    "img_size": SIZE,
    "decoder": (DECODER_WIDTH, DECODER_DEPTH),
}
RENAMED = {
    "decoder_embed": "decoder.embed",
    "decoder_blocks": "decoder.blocks",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.head",
}
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
KEYS = image_keys(0, 0, torch.arange(3))


def load(model: MIM, weights: Weights, *, mask_token: str) -> None:
    """Load an official checkpoint; its position embeddings must be those that the model has already."""
    state = {}
    for name, tensor in weights.items():
        part, dot, rest = name.partition(".")
        if name == "mask_token":
            state[mask_token] = tensor.flatten()
        elif name == "pos_embed":
            torch.testing.assert_close(model.backbone.model.pos_embed.data, tensor, rtol=0, atol=1e-6)
        else:
            state[RENAMED.get(part, f"backbone.model.{part}") + dot + rest] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["backbone.model.pos_embed"] and not unexpected


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_mae() -> None:
    weights = reference.official_checkpoint(out_channels=3 * PATCH**2, mask_token=(1, 1, DECODER_WIDTH))
    model = MIM(**NETWORK, masking="drop", target=fastmim.Pixels()).eval()
    # A patch's pixels are (row, column, colour) in MAE and (colour, row, column) in ours.
    ours = torch.arange(3 * PATCH**2).view(PATCH, PATCH, 3).permute(2, 0, 1).flatten()
    head = {name: weights[name][ours] for name in ("decoder_pred.weight", "decoder_pred.bias")}
    load(model, weights | head, mask_token="decoder.mask_token")
    with torch.no_grad():
        output = model(IMAGES, KEYS)
    assert output["mask"].sum() == 3 * 12
    expected = reference.mae(IMAGES, output["mask"], weights)  # (B, N, K)
    found = output["prediction"].flatten(2).transpose(1, 2)
    assert relative_error(found, expected[..., ours]) < 1e-6

    patches = IMAGES.double().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, GRID, GRID, PATCH, PATCH)
    target = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # (B, N, K) in MAE's order
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = output["mask"].flatten(1)
    loss = (expected - target).square().mean(dim=-1)[hidden].mean()
    torch.testing.assert_close(output["loss"].double(), loss, rtol=1e-6, atol=0)


def test_fastmim_vit() -> None:
    channels = 3 * 9  # a HOG cell of 8 pixels for each patch of 8
    weights = reference.official_checkpoint(out_channels=channels, mask_token=(1, 3, 1, 1))
    model = MIM(**NETWORK, block=PATCH).eval()
    load(model, weights, mask_token="mask_token")
    with torch.no_grad():
        output = model(IMAGES, KEYS)
    expected = reference.fastmim(IMAGES, output["mask"], weights)
    found = output["prediction"].flatten(2).transpose(1, 2)
    assert relative_error(found, expected) < 1e-6

    hidden = output["mask"].flatten(1)
    target = output["target"].flatten(2).transpose(1, 2).double()
    loss = (expected - target).square()[hidden].mean()
    torch.testing.assert_close(output["loss"].double(), loss, rtol=1e-6, atol=0)


def test_fine_tuned_vit() -> None:
    """A classifier with the names and the weights of a fine-tuned MAE gives its logits."""
    generator = torch.Generator().manual_seed(2)
    weights = reference.official_checkpoint(out_channels=1, mask_token=(1, 3, 1, 1))
    body = {key: value for key, value in weights.items() if key.startswith(("blocks", "patch_embed", "cls", "pos"))}
    body |= {"fc_norm.weight": torch.randn(reference.WIDTH, generator=generator)}
    body |= {"fc_norm.bias": torch.randn(reference.WIDTH, generator=generator)}
    body |= {"head.weight": torch.randn(5, reference.WIDTH, generator=generator), "head.bias": torch.arange(5.0)}
    classifier = Classifier(NETWORK["backbone"], num_classes=5, img_size=SIZE, args=NETWORK["backbone_args"]).eval()
    classifier.model.load_state_dict(body)
    with torch.no_grad():
        assert relative_error(classifier(IMAGES), reference.classify(IMAGES, body)) < 1e-6


def test_decoders_positions_follow_the_grid() -> None:
    """At another size, and for the encoder of a model made for it."""
    for grid in (GRID, 6):
        model = MIM(**NETWORK | {"img_size": grid * PATCH}, masking="drop")
        model.set_input_size(SIZE)
        table = model.backbone.model.pos_embed[0].double()
        torch.testing.assert_close(table[1:], reference.sincos(reference.WIDTH), rtol=0, atol=1e-6)
        assert not table[0].any()
