"""Pictures of features: their principal components as colours, attention, and the images that are most alike."""

from __future__ import annotations

from contextlib import suppress

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastmim.backbone import Backbone
from fastmim.backbone.attention_maps import attention_distance
from fastmim.errors import RequestError
from fastmim.method.pictures import Panel, sheet
from fastmim.training.evaluating import evaluating
from fastmim.transfer.features.scores import effective_rank

SIDE = 224
"""Pixels of a panel."""

_MAX_FITTED = 20_000  # patches that the components are fitted on
_TAIL = 0.02  # share of the patches that may exceed the range of colours at either end
_DIM = 0.25


def draw_features(backbone: Backbone, images: Tensor, shown: Tensor, *, caption: str = "") -> Image.Image:
    """Draw the first three principal components of the patch features as red, green and blue.

    They are fitted across the images, so that the same colour means the same feature in all of them.

    Args:
        backbone: On any device; it is not changed.
        images: (B, 3, S, S) normalised, on the backbone's device.
        shown: (B, 3, S, S) in [0, 1], the images as they are drawn.
        caption: Shown at the top right.
    """
    with evaluating(backbone):
        features = backbone.inner_map(images, backbone.num_maps - 1)[0].float().cpu()  # (B, D, h, w)
    colours = components_as_colours(features)
    note = f"three components of {features.shape[2]} x {features.shape[3]} patches"
    panels = [_image_panel(shown), Panel("features", note, _enlarge(colours))]
    return sheet(panels, "Patch features", caption)


def components_as_colours(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, 3, h, w) in [0, 1]: the first three principal components over all images and positions."""
    vectors = features.movedim(1, -1).flatten(0, -2)  # (B * h * w, D)
    fitted = vectors[:: -(-len(vectors) // _MAX_FITTED)]
    mean = fitted.mean(0)
    _, _, axes = torch.linalg.svd(fitted - mean, full_matrices=False)
    axes = F.pad(axes[:3], (0, 0, 0, max(0, 3 - len(axes))))
    # An axis may point either way: towards its largest entry, so that colours stay from one picture to the next.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    values = (vectors - mean) @ axes.T  # (B * h * w, 3)
    low, high = values.quantile(torch.tensor([_TAIL, 1 - _TAIL]), dim=0)
    scaled = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    B, _, h, w = features.shape
    return scaled.view(B, h, w, 3).movedim(-1, 1)


def draw_attention(
    backbone: Backbone, images: Tensor, shown: Tensor, *, patch: tuple[int, int] | None = None, caption: str = ""
) -> Image.Image:
    """Draw what the class token, or a patch, attends to in the last block, averaged over the heads.

    Args:
        backbone: A plain ViT, on any device; it is not changed.
        images: (B, 3, S, S) normalised, on the backbone's device.
        shown: (B, 3, S, S) in [0, 1], the images as they are drawn.
        patch: Row and column of a patch. [default: the class token, or the mean over the patches if there is none]
        caption: Shown at the top right.

    Raises:
        RequestError: not a plain ViT, or no such patch.
    """
    with evaluating(backbone):
        maps, num_prefix = backbone.attention_maps(images)
    weights = maps[-1].float().cpu()  # (B, heads, T, T)
    side = round((weights.shape[-1] - num_prefix) ** 0.5)
    rows = weights.mean(1)  # (B, T, T)
    if patch is not None:
        if not all(0 <= place < side for place in patch):
            raise RequestError(f"patch is {patch[0]},{patch[1]}; expected a row and a column from 0 to {side - 1}")
        row, who = rows[:, num_prefix + patch[0] * side + patch[1]], f"patch {patch[0]},{patch[1]}"
    elif getattr(backbone.model, "cls_token", None) is not None:
        row, who = rows[:, 0], "the class token"
    else:
        row, who = rows[:, num_prefix:].mean(1), "all patches"
    found = row[:, num_prefix:].view(-1, 1, side, side)
    found = found / found.amax(dim=(1, 2, 3), keepdim=True)
    strength = F.interpolate(found, (SIDE, SIDE), mode="nearest")
    drawn = _resize(shown) * (_DIM + (1 - _DIM) * strength)
    panels = [
        _image_panel(shown),
        Panel("attention", f"of {who}, mean of {weights.shape[1]} heads", _pixels(strength.expand(-1, 3, -1, -1))),
        Panel("attended", "the image, bright where it looks", _pixels(drawn)),
    ]
    return sheet(panels, "Attention", caption)


def measure_blocks(backbone: Backbone, images: Tensor) -> list[dict[str, float]]:
    """Measure each block of a ViT, or stage of another model: effective rank of its patch features, reach of attention.

    Args:
        backbone: On any device; it is not changed.
        images: (B, 3, S, S) normalised, on the backbone's device.

    Returns:
        For each block "effective_rank" (see `scores.effective_rank`, of all patches of the images) and, of a plain
        ViT, "attention_distance" in pixels.
    """
    found: list[dict[str, float]] = []
    with evaluating(backbone):
        for number, features in enumerate(backbone.inner_maps(images), start=1):
            patches = features.float().movedim(1, -1).flatten(0, -2)  # (B * h * w, D)
            found.append({"block": number, "effective_rank": effective_rank(patches)})
        with suppress(RequestError):  # no plain ViT
            maps, num_prefix = backbone.attention_maps(images)
            for row, weights in zip(found, maps, strict=True):
                stride = backbone.input_size // round((weights.shape[-1] - num_prefix) ** 0.5)
                distance = attention_distance(weights.cpu(), num_prefix=num_prefix, stride=stride)
                row["attention_distance"] = distance
    return found


def draw_neighbours(shown: Tensor, nearest: Tensor, *, caption: str = "") -> Image.Image:
    """Draw a contact sheet: a row for each query, the image first, then its nearest neighbours.

    Args:
        shown: (N, 3, S, S) in [0, 1].
        nearest: (Q, 1 + K) int64, the images of each row.
        caption: Shown at the top right.
    """
    titles = ["query", *(f"{number}." for number in range(1, nearest.shape[1]))]
    panels = [
        Panel(title, "", _pixels(_resize(shown[column]))) for title, column in zip(titles, nearest.T, strict=True)
    ]
    return sheet(panels, "Nearest neighbours by cosine similarity", caption)


def find_neighbours(features: Tensor, queries: list[int], *, num: int) -> Tensor:
    """(N, D) -> (Q, 1 + num) int64: each query's position and those of the most similar other images, best first."""
    directions = F.normalize(features, dim=1)
    similarity = directions[queries] @ directions.T
    similarity[range(len(queries)), queries] = float("inf")  # the query itself comes first
    return similarity.topk(1 + min(num, len(features) - 1), dim=1).indices


def _image_panel(shown: Tensor) -> Panel:
    return Panel("image", f"{shown.shape[3]} x {shown.shape[2]} pixels", _pixels(_resize(shown)))


def _resize(images: Tensor) -> Tensor:
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


def _enlarge(maps: Tensor) -> Tensor:
    return _pixels(F.interpolate(maps, (SIDE, SIDE), mode="nearest"))


def _pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W, 3), as panels are."""
    return images.permute(0, 2, 3, 1)
