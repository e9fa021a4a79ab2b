"""Pictures that answer "is it learning?": image, masked image, target and prediction side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from fastmim.data import augment
from fastmim.data.decode import BadImage
from fastmim.data.sources import Source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RunError
from fastmim.method.masking import expand
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, Pixels
from fastmim.randomness import image_keys

_PANEL, _MAX_PANEL = 224, 768  # a panel's side in the picture, where the image allows
_CELL = 16  # the least side at which a HOG cell's strokes can be told apart
_HIDDEN = 0.5  # hidden blocks are mid-grey
_GAIN = 1.2  # full brightness before 1, which few cells reach
_DIM, _LIFT = 0.3, 0.12  # what was visible is darker, on a ground that is not black, beside the prediction
_GAP, _MARGIN = 8, 16
_INK, _FAINT = (20, 24, 31), (105, 112, 124)


@dataclass(frozen=True)
class _Panel:
    """A column: its heading, the line below it, and (B, side, side, 3) float in [0, 1]."""

    title: str
    note: str
    pixels: Tensor


def draw(model: MIM, source: Source, *, num_images: int, seed: int, caption: str = "") -> Image.Image:
    """A picture of what a model makes of images spread evenly over a source (unreadable ones are left out).

    Args:
        seed: Decides the masks.
    """
    spread = torch.linspace(0, len(source) - 1, min(num_images, len(source))).round().long().tolist()
    crops: dict[int, Tensor] = {}
    for index in spread:
        with suppress(BadImage, OSError):
            crops[index] = augment.decode_center(source.read(index), model.backbone.img_size)
    if not crops:
        raise RunError(f"none of {len(spread)} images of {source.origin} can be read; expected images: check the files")
    device = next(model.parameters()).device
    mean, std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    images = augment.normalise(torch.stack(list(crops.values())), mean, std).to(device)
    output = reconstruct(model, images, image_keys(seed, 0, torch.tensor(list(crops))).to(device))
    return picture(
        images, output, model.target, mean=IMAGENET_MEAN, std=IMAGENET_STD, caption=caption, max_rows=num_images
    )


def reconstruct(model: nn.Module, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
    """Run a model as in evaluation, without gradients, and leave it in the modes it was in.

    Args:
        model: `MIM`, or any module whose forward takes (images, keys) and returns what `picture` needs.
        images: (B, C, S, S) normalised, on the model's device.
        keys: (B,) int64 from which the masks are drawn; None lets the model choose.

    Returns:
        The model's output on the CPU.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return {name: value.cpu() for name, value in model(images, keys).items()}
    finally:
        for module, mode in modes.items():
            module.training = mode


def picture(
    images: Tensor,
    output: Mapping[str, Tensor],
    target: HOG | Pixels,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    caption: str = "",
    max_rows: int = 8,
) -> Image.Image:
    """Draw one row per image: image, masked image, target, prediction, and for pixels the reconstruction.

    HOG is drawn as glyphs: each cell shows a stroke per orientation along the edge (across the gradient), as
    bright as its bin, averaged over image channels. Where the prediction was not asked for, since the block
    was visible, its panel shows the target dimmed. Standardised pixels are drawn as they are, mid-grey
    for a patch's mean; their reconstruction borrows the true patch's mean and deviation, as MAE's figures do.

    Args:
        images: (B, C, S, S) normalised.
        output: What `MIM` returned for them: "prediction" and "target" (B, K, h, w), K the target's channels
            times k * k cells per position (`pixel_unshuffle`); "mask" (B, h, w) bool, True = hidden.
        target: The target that made "target".
        mean: C numbers, as in normalisation.
        std: C numbers, as in normalisation.
        caption: Shown at the top right, such as the step.
        max_rows: At most so many images are drawn, the first ones.

    Returns:
        An RGB picture; HOG cells have at least 16 pixels a side unless the images are very large.

    Raises:
        ValueError: The output's channels or grid do not belong to this target and these images.
    """
    images = images[:max_rows].detach().float().cpu()
    size = images.shape[-1]
    prediction, truth = (_cells(output[key][:max_rows], images, target) for key in ("prediction", "target"))
    mask = output["mask"][:max_rows].cpu()
    scale = _scale(size, target)
    hidden = expand(mask, size * scale)[..., None]  # (B, side, side, 1)

    def photographs(normalised: Tensor) -> Tensor:
        return _enlarge(_rgb(normalised, mean, std), scale)

    def draw_target(cells: Tensor) -> Tensor:
        if isinstance(target, HOG):
            return _draw_hog(cells, target, scale)
        if target.normalize:
            return _enlarge(_draw_standardised(cells, target), scale)
        return photographs(target.to_images(cells, images))

    image, drawn, guess = photographs(images), draw_target(truth), draw_target(prediction)
    heading, note = _words(target)
    seen = 1 - mask.float().mean().item()
    panels = [
        _Panel("image", f"{size} x {size} pixels", image),
        _Panel("masked image", f"the network sees {seen:.0%}", image.where(~hidden, _HIDDEN)),
        _Panel("target", note, drawn),
        _Panel("prediction", "dimmed: blocks it could see", guess.where(hidden, drawn * _DIM + _LIFT)),
    ]
    if isinstance(target, Pixels):
        note = "with the true means and deviations" if target.normalize else "pasted into the image"
        pasted = photographs(target.to_images(prediction, images)).where(hidden, image)
        panels.append(_Panel("reconstruction", note, pasted))
    return _sheet(panels, f"{heading}  (trained target: {target.name})", caption)


def _words(target: HOG | Pixels) -> tuple[str, str]:
    """What the picture shows, and what its target panel shows."""
    if isinstance(target, HOG):
        return "HOG of hidden blocks", f"strokes along edges, {target.cell}-pixel cells"
    return (
        "Pixels of hidden blocks",
        "each patch with mean 0, deviation 1" if target.normalize else "the image's pixels",
    )


def glyphs(strengths: Tensor, side: int) -> Tensor:
    """Draw histograms of oriented gradients as stars of strokes.

    Args:
        strengths: (B, num_bins, h, w), 1 for full brightness; orientations as in `HOG`.
        side: Pixels along the side of a cell's glyph.

    Returns:
        (B, h * side, w * side) float in [0, 1].
    """
    B, _, h, w = strengths.shape
    drawn = torch.zeros(B, h, side, w, side)
    for strength, stencil in zip(strengths.float().unbind(1), _stencils(strengths.shape[1], side), strict=True):
        # The brightest stroke wins: added up, strokes of a cell without direction would make a white dot.
        stroke = torch.from_numpy(stencil)[:, None, :]
        drawn = torch.maximum(drawn, strength[:, :, None, :, None] * stroke)
    return drawn.flatten(3).flatten(1, 2).clamp(max=1)


@lru_cache(maxsize=8)
def _stencils(num_bins: int, side: int) -> NDArray[np.float32]:
    """(num_bins, side, side): a smooth stroke through the middle at each bin's central orientation."""
    down, right = np.mgrid[:side, :side] - (side - 1) / 2
    # HOG's angle a is atan2(gx, gy): the gradient is (sin a, cos a) to the right and down, the edge is across.
    angle = ((np.arange(num_bins) + 0.5) * np.pi / num_bins)[:, None, None]
    across = np.abs(np.sin(angle) * right + np.cos(angle) * down)
    along = np.abs(np.cos(angle) * right - np.sin(angle) * down)
    half_width = side / 16
    stroke = np.clip(half_width + 0.5 - across, 0, 1) * np.clip(0.46 * side + 0.5 - along, 0, 1)
    return stroke.astype(np.float32)


def _scale(size: int, target: HOG | Pixels) -> int:
    """By how much the picture enlarges images: a whole number."""
    scale = -(-_PANEL // size)
    if isinstance(target, HOG):
        scale = max(scale, -(-_CELL // target.cell))
    return max(1, min(scale, _MAX_PANEL // size))


def _cells(values: Tensor, images: Tensor, target: HOG | Pixels) -> Tensor:
    """(B, K, h, w) per backbone position -> (B, channels, S / cell, S / cell) per cell, channels as the target's."""
    channels, grid = target.num_channels(images.shape[1]), images.shape[-1] // target.cell
    per_side = grid // values.shape[-1]
    if values.shape[1:] != (channels * per_side**2, grid // max(per_side, 1), grid // max(per_side, 1)):
        raise ValueError(
            f"output of shape {tuple(values.shape)}: expected {channels} channels on a {grid}x{grid} grid, or "
            "regrouped; pass the target and the images that the model was given"
        )
    return F.pixel_shuffle(values.detach().float().cpu(), per_side)


def _draw_hog(cells: Tensor, target: HOG, scale: int) -> Tensor:
    """(B, C * num_bins, h, w) -> (B, side, side, 3): glyphs, each bin averaged over image channels."""
    strengths = _GAIN * cells.unflatten(1, (-1, target.num_bins)).mean(1)
    return glyphs(strengths, target.cell * scale)[..., None].expand(-1, -1, -1, 3)


def _draw_standardised(cells: Tensor, target: Pixels) -> Tensor:
    """(B, C * patch * patch, h, w) -> (B, S, S, 3): mid-grey is a patch's mean, black and white 2.5 deviations off."""
    images = F.pixel_shuffle(cells, target.cell)
    return _rgb(images, [0.5] * images.shape[1], [0.2] * images.shape[1])


def _rgb(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, H, W) normalised -> (B, H, W, 3) in [0, 1]; the first three channels, or the first as grey."""
    undone = images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    undone = undone[:, :3] if undone.shape[1] >= 3 else undone[:, :1].expand(-1, 3, -1, -1)
    return undone.clamp(0, 1).permute(0, 2, 3, 1)


def _enlarge(pixels: Tensor, scale: int) -> Tensor:
    """(B, H, W, 3) -> (B, H * scale, W * scale, 3), each pixel a square."""
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _sheet(panels: Sequence[_Panel], title: str, caption: str) -> Image.Image:
    """Lay the panels out in columns under their headings."""
    rows, side = panels[0].pixels.shape[:2]
    fonts = {points: ImageFont.load_default(points) for points in (20, 16, 13)}
    top = 92
    width = 2 * _MARGIN + len(panels) * (side + _GAP) - _GAP
    sheet = Image.new("RGB", (width, top + rows * (side + _GAP) - _GAP + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 12), title, _INK, fonts[20])
    draw.text((width - _MARGIN, 15), caption, _FAINT, fonts[16], anchor="ra")
    for column, panel in enumerate(panels):
        left = _MARGIN + column * (side + _GAP)
        draw.text((left, 48), panel.title, _INK, fonts[16])
        draw.text((left, 69), panel.note, _FAINT, fonts[13])
        for row, pixels in enumerate((panel.pixels.nan_to_num(0) * 255).round().byte().numpy()):
            sheet.paste(Image.fromarray(pixels), (left, top + row * (side + _GAP)))
    return sheet
