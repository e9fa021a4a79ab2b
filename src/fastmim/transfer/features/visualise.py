"""`fastmim visualise --what features`, `attention` or `neighbours`: pictures of what a backbone has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastmim.backbone import Backbone
from fastmim.data.augment import normalise
from fastmim.data.center_crops import load_centers
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError, RunError
from fastmim.method import pictures as sheets
from fastmim.system import devices
from fastmim.system.files import is_folder
from fastmim.system.run_directory import RunDirectory
from fastmim.transfer.features import pictures
from fastmim.transfer.features.encoder import Encoder
from fastmim.transfer.features.extraction import extract, gather
from fastmim.weights import open_weights
from fastmim.weights.opening import Opened

What = Literal["features", "attention", "neighbours"]

MAX_COMPARED = 5000
"""Images among which neighbours are looked for; of more, evenly spaced ones."""
NEIGHBOURS = 5


def visualise_features(
    weights: str,
    *,
    what: What,
    images: str | None = None,
    grey_range: str | None = None,
    out: Path | None = None,
    num_images: int = 8,
    patch: tuple[int, int] | None = None,
) -> Path:
    """Write a picture of a backbone's features.

    Args:
        weights: A run directory, a weights file, or a timm model.
        what: The principal components of the patch features as colours; the attention of the last block; or the
            nearest neighbours of images among all of them.
        images: Anything that `data` takes. [default: those that the run was trained on]
        grey_range: Of their greys, as the setting `range` has it. [default: that of the weights]
        out: The picture file. [default: in `samples/` of the run directory, where its report finds it]
        num_images: At most this many are drawn, or are queries; spread evenly.
        patch: Row and column of the patch whose attention is drawn. [default: the class token]

    Returns:
        The file.

    Raises:
        RequestError: there are no such weights or images, no class token or patch, or the file cannot be written.
        RunError: none of the images can be read.
    """
    if num_images < 1:
        raise RequestError(f"num_images is {num_images}; expected at least 1")
    if patch is not None and what != "attention":
        raise RequestError(f"patch is {patch[0]},{patch[1]}, but what is {what}; expected --what attention with it")
    opened = open_weights(weights, from_checkpoint=True)
    source = open_source(
        images or _own_images(weights), ImageConfig(range=grey_range or "auto"), inherited=opened.range
    )
    backbone = opened.load().to(devices.resolve_device("auto"))
    step = opened.identity().get("step")
    caption = f"{Path(weights).resolve().name if opened.kind != 'timm' else weights}" + (
        f", step {step}" if step else ""
    )
    if what == "neighbours":
        page = _neighbours(backbone, opened, source, num_images, caption)
    else:
        crops = _crops(source, _spread(source, num_images), backbone.img_size, opened.crop_pct)
        device = next(backbone.parameters()).device
        mean, std = (torch.tensor(values, device=device) for values in (opened.mean, opened.std))
        normalised = normalise(crops.to(device), mean, std)
        shown = crops.float() / 255
        if what == "features":
            page = pictures.draw_features(backbone, normalised, shown, caption=caption)
        else:
            page = pictures.draw_attention(backbone, normalised, shown, patch=patch, caption=caption)
    return _save(page, out or _own_place(weights, what, step))


def _own_images(weights: str) -> str:
    """The images of the run that the weights are of."""
    directory = RunDirectory(Path(weights))
    data = directory.read_settings().get("data") if is_folder(directory.path) else None
    if not isinstance(data, str):
        raise RequestError(f"images are not given, and {weights} is no run directory; expected --images photos/")
    return data


def _own_place(weights: str, what: str, step: int | None) -> Path:
    directory = RunDirectory(Path(weights))
    if is_folder(directory.path):
        return directory.picture(f"{what}_{step or 0:09d}.png")
    return Path(f"{what}.png")


def _spread(source: Source, most: int) -> list[int]:
    return np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int).tolist()


def _crops(source: Source, indices: list[int], size: int, crop_pct: float) -> Tensor:
    """(B, 3, size, size) uint8, without unreadable images."""
    [batch] = load_centers(source, size=size, batch_size=len(indices), indices=indices, crop_pct=crop_pct)
    if not len(batch["images"]):
        raise RunError(
            f"none of {len(indices)} images of {source.origin} can be read; expected images: check the files"
        )
    return batch["images"]


def _neighbours(backbone: Backbone, opened: Opened, source: Source, num_images: int, caption: str) -> Image.Image:
    """Encode up to `MAX_COMPARED` images, and draw those nearest to a few of them."""
    if len(source) < 2:
        raise RequestError(f"images is {source.origin} with {len(source)} image; expected at least 2 to compare")
    encoder = Encoder(backbone, grey_range=opened.range, mean=opened.mean, std=opened.std, crop_pct=opened.crop_pct)
    found = gather(extract(encoder, source, indices=_spread(source, MAX_COMPARED), batch_size=64), source.origin)
    queries = np.linspace(0, len(found.indices) - 1, min(num_images, len(found.indices))).round().astype(int).tolist()
    nearest = pictures.find_neighbours(found.features, queries, num=NEIGHBOURS)  # (Q, 1 + K)
    drawn, places = nearest.unique(return_inverse=True)
    crops = _crops(source, found.indices[drawn].tolist(), backbone.img_size, opened.crop_pct)
    return pictures.draw_neighbours(crops.float() / 255, places, caption=caption)


def _save(page: Image.Image, out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheets.save(page, out)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"out is {out}: {error}; expected a picture file that can be written, such as x.png"
        ) from None
    return out
