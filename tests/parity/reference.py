"""MAE and FastMIM's ViT from the papers' formulas, in float64, on small checkpoints with the names of the official code.

MAE: He et al., CVPR 2022, section 3. FastMIM: Guo et al., arXiv 2212.06593, sections 3.1 and 3.3. Nothing here is ours
or timm's: only tensors, and one loop for the position embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PATCH, SIZE, WIDTH, HEADS, DEPTH = 8, 32, 48, 3, 2
DECODER_WIDTH, DECODER_DEPTH = 64, 2
GRID = SIZE // PATCH
Weights = dict[str, Tensor]


def official_checkpoint(*, out_channels: int, mask_token: tuple[int, ...], seed: int = 0) -> Weights:
    """Random weights under the official names, larger than at the start of a training so that all of them matter."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0, std: float = 0.1) -> Tensor:
        return around + std * torch.randn(*shape, generator=generator)

    weights = {
        "cls_token": draw(1, 1, WIDTH, std=1.0),
        "pos_embed": torch.cat([torch.zeros(1, WIDTH), sincos(WIDTH)])[None].float(),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "mask_token": draw(*mask_token, std=1.0),
    }
    linear = {"decoder_embed": (DECODER_WIDTH, WIDTH), "decoder_pred": (out_channels, DECODER_WIDTH)}
    norms = {"norm": WIDTH, "decoder_norm": DECODER_WIDTH}
    for stack, depth, width in (("blocks", DEPTH, WIDTH), ("decoder_blocks", DECODER_DEPTH, DECODER_WIDTH)):
        for name in (f"{stack}.{number}" for number in range(depth)):
            linear |= {f"{name}.attn.qkv": (3 * width, width), f"{name}.attn.proj": (width, width)}
            linear |= {f"{name}.mlp.fc1": (4 * width, width), f"{name}.mlp.fc2": (width, 4 * width)}
            norms |= {f"{name}.norm1": width, f"{name}.norm2": width}
    for name, shape in linear.items():
        weights |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    for name, width in norms.items():
        weights |= {f"{name}.weight": draw(width, around=1.0), f"{name}.bias": draw(width)}
    return weights


def sincos(width: int, grid: int = GRID) -> Tensor:
    """(grid * grid, width): sines and cosines of the column, then of the row."""
    table = torch.zeros(grid * grid, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                frequency = 10000.0 ** (-i / quarter)
                values = table[row * grid + column]
                values[i], values[quarter + i] = math.sin(column * frequency), math.cos(column * frequency)
                values[2 * quarter + i], values[3 * quarter + i] = math.sin(row * frequency), math.cos(row * frequency)
    return table


def mae(images: Tensor, mask: Tensor, weights: Weights) -> Tensor:
    """Predict from the visible patches only.

    Args:
        images: (B, 3, SIZE, SIZE).
        mask: (B, GRID, GRID) bool, True = hidden.
        weights: With a mask token (1, 1, DECODER_WIDTH).

    Returns:
        (B, GRID * GRID, K), patches in row-major order, K in the order of MAE: row, column, colour.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    patches = _patches(images, weights)
    predictions = []
    for tokens, hidden in zip(patches, mask.flatten(1), strict=True):
        visible = torch.cat([_class_token(weights), tokens[~hidden]])
        encoded = _linear(_encode(visible, weights), weights, "decoder_embed")
        everywhere = weights["mask_token"][0].repeat(GRID * GRID, 1)
        everywhere[~hidden] = encoded[1:]
        with_positions = everywhere + sincos(DECODER_WIDTH)
        predictions.append(decode(torch.cat([encoded[:1], with_positions]), weights)[1:])
    return torch.stack(predictions)


def fastmim(images: Tensor, mask: Tensor, weights: Weights) -> Tensor:
    """Predict from all patches, hidden ones painted over with a colour.

    Args:
        images: (B, 3, SIZE, SIZE).
        mask: (B, GRID, GRID) bool, True = hidden.
        weights: With a mask token (1, 3, 1, 1).

    Returns:
        (B, GRID * GRID, K), patches in row-major order.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    painted = images.double().clone()
    for image, row, column in mask.nonzero().tolist():
        rows, columns = (slice(start * PATCH, (start + 1) * PATCH) for start in (row, column))
        painted[image, :, rows, columns] = weights["mask_token"][0]
    predictions = []
    for tokens in _patches(painted, weights):
        encoded = _encode(torch.cat([_class_token(weights), tokens]), weights)
        predictions.append(decode(_linear(encoded, weights, "decoder_embed"), weights)[1:])
    return torch.stack(predictions)


def classify(images: Tensor, weights: Weights) -> Tensor:
    """MAE's classifier (its appendix A.1, and FastMIM's): images (B, 3, SIZE, SIZE) -> logits (B, number of classes).

    Args:
        weights: With fc_norm and head in place of norm and the decoder.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    logits = []
    for tokens in _patches(images, weights):
        tokens = torch.cat([_class_token(weights), tokens])
        for number in range(DEPTH):
            tokens = _block(tokens, weights, f"blocks.{number}", HEADS)
        mean = tokens[1:].mean(dim=0)
        logits.append(_linear(_norm(mean, weights, "fc_norm"), weights, "head"))
    return torch.stack(logits)


def _patches(images: Tensor, weights: Weights) -> Tensor:
    """(B, 3, SIZE, SIZE) -> (B, GRID * GRID, WIDTH), with positions."""
    kernel = weights["patch_embed.proj.weight"].flatten(1)  # (WIDTH, 3 * PATCH * PATCH)
    cut = images.double().unflatten(2, (GRID, PATCH)).unflatten(4, (GRID, PATCH))  # (B, 3, GRID, PATCH, GRID, PATCH)
    pixels = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, GRID * GRID, 3 * PATCH * PATCH)
    return pixels @ kernel.T + weights["patch_embed.proj.bias"] + weights["pos_embed"][:, 1:]


def _class_token(weights: Weights) -> Tensor:
    return weights["cls_token"][0] + weights["pos_embed"][0, :1]  # (1, WIDTH)


def _encode(tokens: Tensor, weights: Weights) -> Tensor:
    for number in range(DEPTH):
        tokens = _block(tokens, weights, f"blocks.{number}", HEADS)
    return _norm(tokens, weights, "norm")


def predict(features: Tensor, weights: Weights) -> Tensor:
    """The predictions of FastMIM's decoder from any encoder's map: (B, D, h, w) -> (B, h * w, K)."""
    weights = {name: tensor.double() for name, tensor in weights.items() if name.startswith("decoder_")}
    tokens = features.double().flatten(2).transpose(1, 2)
    return torch.stack([decode(_linear(image, weights, "decoder_embed"), weights) for image in tokens])


def decode(tokens: Tensor, weights: Weights) -> Tensor:
    """(n, width), with class token or without -> (n, K)."""
    width, number = tokens.shape[1], 0
    while (name := f"decoder_blocks.{number}") + ".norm1.weight" in weights:
        tokens, number = _block(tokens, weights, name, width // 32), number + 1
    return _linear(_norm(tokens, weights, "decoder_norm"), weights, "decoder_pred")


def _block(x: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    """A pre-norm transformer block over (n, D)."""
    q, k, v = (
        _linear(_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv")
        .unflatten(1, (3, heads, x.shape[1] // heads))
        .permute(1, 2, 0, 3)  # each (heads, n, D / heads)
    )
    attention = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(dim=2)
    x = x + _linear((attention @ v).transpose(0, 1).flatten(1), weights, f"{name}.attn.proj")
    hidden = _linear(_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    hidden = hidden * (1 + torch.special.erf(hidden / math.sqrt(2))) / 2
    return x + _linear(hidden, weights, f"{name}.mlp.fc2")


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
