"""Pictures that show whether a model learns: image, masked image, target and prediction side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from fastmim.data import augment
from fastmim.data.sources import Source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.data.unreadable import UNREADABLE
from fastmim.errors import RunError
from fastmim.method.joint import Joint
from fastmim.method.masking import expand
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, Pixels, Target
from fastmim.randomness import image_keys
from fastmim.system.fonts import fitting
from fastmim.training.evaluating import evaluating

_PANEL, _MAX_PANEL = 224, 768  # bounds of a panel's longer side, unless the image itself is larger
_CELL = 16  # the smallest side at which the strokes of a HOG cell can be told apart
_HIDDEN = 0.5  # hidden blocks are mid-grey
_GAIN = 1.2  # strokes reach full brightness below 1, which few bins reach
_DIM, _LIFT = 0.3, 0.12  # beside the prediction, visible blocks are darker, on a ground that is not black
_GAP, _MARGIN = 8, 16
_INK, _FAINT = (20, 24, 31), (105, 112, 124)


@dataclass(frozen=True)
class Panel:
    """A column: its heading, the line below it, and (B, height, width, 3) float in [0, 1]."""

    title: str
    note: str
    pixels: Tensor


@dataclass(frozen=True)
class _Drawing:
    """How a target is drawn.

    `draw` maps (B, channels, h, w) cells and the picture's scale to (B, height, width, 3) float in [0, 1].
    """

    heading: str
    note: str
    draw: Callable[[Tensor, int], Tensor]
    min_cell: int = 1  # pixels of the picture


def predict(
    model: MIM,
    source: Source,
    *,
    num_images: int,
    seed: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Predict the hidden blocks of images spread evenly over a source; unreadable ones are left out.

    Args:
        model: On any device; its modes and weights are not changed.
        source: The images.
        num_images: At most this many.
        seed: Decides the masks.
        mean: Per channel, for pixels in [0, 1].
        std: Likewise.

    Returns:
        The central crops, (B, C, H, W) normalised, and the model's output for them, both on the CPU.

    Raises:
        RunError: None of the images can be read.
    """
    spread = torch.linspace(0, len(source) - 1, min(num_images, len(source))).round().long().tolist()
    crops: dict[int, Tensor] = {}
    for index in spread:
        with suppress(*UNREADABLE):
            crops[index] = augment.decode_center(source.read(index), model.backbone.img_size, source.decoding)
    if not crops:
        raise RunError(f"none of {len(spread)} images of {source.origin} can be read; expected images: check the files")
    device = next(model.parameters()).device
    images = augment.normalise(torch.stack(list(crops.values())), torch.tensor(mean), torch.tensor(std))
    keys = image_keys(seed, 0, torch.tensor(list(crops)))
    return images, reconstruct(model, images.to(device), keys.to(device))


def reconstruct(model: nn.Module, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
    """Run a model in evaluation mode without gradients, then restore each module's mode.

    Args:
        model: `MIM`, or any module whose forward takes (images, keys) and returns what `picture` needs.
        images: (B, C, H, W) normalised, on the model's device.
        keys: (B,) int64 that decide the masks; drawn by the model if None.

    Returns:
        The model's output on the CPU.
    """
    with evaluating(model):
        return {name: value.cpu() for name, value in model(images, keys).items()}


def picture(
    images: Tensor,
    output: Mapping[str, Tensor],
    target: Target,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    caption: str = "",
    max_rows: int = 8,
) -> Image.Image:
    """Draw one row per image: image, masked image, target, prediction and, for pixels, the reconstruction.

    HOG is drawn as glyphs: each cell shows a stroke per orientation along the edge (across the gradient), as
    bright as its bin, averaged over image channels. Standardised pixels are drawn with mid-grey for a patch's
    mean; their reconstruction borrows the true patch's mean and deviation, as MAE's figures do. Any other
    target is drawn by the first three principal components of its cells. Where a block was visible, the
    prediction panel shows the target dimmed.

    Args:
        images: (B, C, H, W) normalised.
        output: What `MIM` returned for them: "prediction" and "target" (B, K, h, w), K the target's channels
            times k * k cells per position (`pixel_unshuffle`); "mask" (B, h, w) bool, True = hidden.
        target: The target that made "target".
        mean: C numbers, as in normalisation.
        std: C numbers, as in normalisation.
        caption: Shown at the top right, such as the step.
        max_rows: Only the first `max_rows` images are drawn.

    Returns:
        An RGB picture; HOG cells have at least 16 pixels a side unless the images are very large.

    Raises:
        ValueError: The output's channels or grid do not belong to this target and these images.
    """
    images = images[:max_rows].detach().float().cpu()
    H, W = images.shape[-2:]
    if isinstance(target, Joint):
        target, output = _first(target, images, output)
    prediction, truth = (_cells(output[key][:max_rows], images, target) for key in ("prediction", "target"))
    mask = output["mask"][:max_rows].cpu()
    undo = partial(_rgb, mean=mean, std=std)
    drawing = _drawing(target, images, truth, undo)
    scale = max(-(-_PANEL // max(H, W)), -(-drawing.min_cell // target.cell))
    scale = max(1, min(scale, _MAX_PANEL // max(H, W)))
    hidden = expand(mask, (H * scale, W * scale))[..., None]  # (B, height, width, 1)

    image, drawn, guess = _enlarge(undo(images), scale), drawing.draw(truth, scale), drawing.draw(prediction, scale)
    seen = 1 - mask.float().mean().item()
    panels = [
        Panel("image", f"{W} x {H} pixels", image),
        Panel("masked image", f"the network sees {seen:.0%}", image.where(~hidden, _HIDDEN)),
        Panel("target", drawing.note, drawn),
        Panel("prediction", "dimmed: blocks it could see", guess.where(hidden, drawn * _DIM + _LIFT)),
    ]
    if to_images := getattr(target, "to_images", None):
        note = "with the true means and deviations" if getattr(target, "normalize", False) else "pasted into the image"
        pasted = _enlarge(undo(to_images(prediction, images)), scale).where(hidden, image)
        panels.append(Panel("reconstruction", note, pasted))
    name = getattr(target, "name", type(target).__name__)
    return sheet(panels, f"{drawing.heading} of hidden blocks  (trained target: {name})", caption)


def _first(target: Joint, images: Tensor, output: Mapping[str, Tensor]) -> tuple[Target, dict[str, Tensor]]:
    """The first part of a joint target, and its channels of the output."""
    part = target.parts[0]
    channels = part.num_channels(images.shape[1]) * (images.shape[-1] // output["mask"].shape[-1] // part.cell) ** 2
    return part, {**output, **{name: output[name][:, :channels] for name in ("prediction", "target")}}


def _drawing(target: Target, images: Tensor, truth: Tensor, undo: Callable[[Tensor], Tensor]) -> _Drawing:
    """The drawing of a target whose true cells are `truth`; `undo` turns normalised images into colours."""
    match target:
        case HOG():
            note = f"strokes along edges, {target.cell}-pixel cells"
            return _Drawing("HOG", note, partial(_draw_hog, target), min_cell=_CELL)
        case Pixels(normalize=True):
            return _Drawing("Pixels", "each patch with mean 0, deviation 1", partial(_draw_standardised, target))
        case Pixels():
            colours = target.to_images
            return _Drawing("Pixels", "the image's pixels", lambda cells, k: _enlarge(undo(colours(cells, images)), k))
    project = _principal_components(truth)
    return _Drawing(
        "Features", "first three principal components", lambda cells, k: _enlarge(project(cells), target.cell * k)
    )


def glyphs(strengths: Tensor, side: int) -> Tensor:
    """Draw histograms of oriented gradients as stars of strokes.

    Args:
        strengths: (B, num_bins, h, w), 1 for full brightness; orientations as in `HOG`.
        side: Pixels along a side of a cell's glyph.

    Returns:
        (B, h * side, w * side) float in [0, 1].
    """
    B, _, h, w = strengths.shape
    drawn = torch.zeros(B, h, side, w, side)
    for strength, stencil in zip(strengths.float().unbind(1), _stencils(strengths.shape[1], side), strict=True):
        # The brightest stroke wins; a sum would turn a cell without a direction into a white dot.
        stroke = torch.from_numpy(stencil)[:, None, :]
        drawn = torch.maximum(drawn, strength[:, :, None, :, None] * stroke)
    return drawn.flatten(3).flatten(1, 2).clamp(max=1)


@lru_cache(maxsize=8)
def _stencils(num_bins: int, side: int) -> NDArray[np.float32]:
    """(num_bins, side, side): a smooth stroke through the middle at each bin's central orientation."""
    down, right = np.mgrid[:side, :side] - (side - 1) / 2
    # HOG's angle a is atan2(gx, gy): the gradient points (sin a, cos a) right and down, the edge runs across it.
    angle = ((np.arange(num_bins) + 0.5) * np.pi / num_bins)[:, None, None]
    across = np.abs(np.sin(angle) * right + np.cos(angle) * down)
    along = np.abs(np.cos(angle) * right - np.sin(angle) * down)
    half_width = side / 16
    stroke = np.clip(half_width + 0.5 - across, 0, 1) * np.clip(0.46 * side + 0.5 - along, 0, 1)
    return stroke.astype(np.float32)


def _cells(values: Tensor, images: Tensor, target: Target) -> Tensor:
    """(B, K, h, w) per backbone position -> (B, channels, H / cell, W / cell) per cell, channels as the target's."""
    channels = target.num_channels(images.shape[1])
    rows, columns = (side // target.cell for side in images.shape[-2:])
    per_side = max(1, columns // values.shape[-1])
    if values.shape[1:] != (channels * per_side**2, rows // per_side, columns // per_side):
        raise ValueError(
            f"output of shape {tuple(values.shape)}: expected {channels} channels on a {rows}x{columns} grid, or "
            "regrouped; pass the target and the images that the model was given"
        )
    return F.pixel_shuffle(values.detach().float().cpu(), per_side)


def _draw_hog(target: HOG, cells: Tensor, scale: int) -> Tensor:
    """Glyphs of (B, C * num_bins, h, w), each bin averaged over image channels."""
    strengths = _GAIN * cells.unflatten(1, (-1, target.num_bins)).mean(1)
    return glyphs(strengths, target.cell * scale)[..., None].expand(-1, -1, -1, 3)


def _draw_standardised(target: Pixels, cells: Tensor, scale: int) -> Tensor:
    """Patches of (B, C * patch * patch, h, w): mid-grey is a patch's mean, black and white are 2.5 deviations off."""
    images = F.pixel_shuffle(cells, target.cell)
    return _enlarge(_rgb(images, [0.5] * images.shape[1], [0.2] * images.shape[1]), scale)


def _principal_components(truth: Tensor) -> Callable[[Tensor], Tensor]:
    """A map (B, K, h, w) -> (B, h, w, 3) in [0, 1] along the three main axes of `truth`, 2.5 deviations each way."""
    vectors = truth.nan_to_num(0).movedim(1, -1).flatten(0, -2)  # (N, K)
    vectors = vectors[:: -(-len(vectors) // 1024)]  # enough for three axes
    mean = vectors.mean(0)
    _, lengths, axes = torch.linalg.svd(vectors - mean, full_matrices=False)
    deviations = (lengths[:3] / len(vectors) ** 0.5).clamp(min=1e-6)

    def project(cells: Tensor) -> Tensor:
        values = 0.5 + (cells.movedim(1, -1) - mean) @ axes[:3].T / (5 * deviations)
        return F.pad(values, (0, 3 - values.shape[-1]), value=0.5).clamp(0, 1)

    return project


def _rgb(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, H, W) normalised -> (B, H, W, 3) in [0, 1]; the first three channels, or the first as grey."""
    undone = images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    undone = undone[:, :3] if undone.shape[1] >= 3 else undone[:, :1].expand(-1, 3, -1, -1)
    return undone.clamp(0, 1).permute(0, 2, 3, 1)


def _enlarge(pixels: Tensor, scale: int) -> Tensor:
    """(B, H, W, 3) -> (B, H * scale, W * scale, 3), each pixel a square."""
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def sheet(panels: Sequence[Panel], title: str, caption: str) -> Image.Image:
    """Lay the panels out in columns under their headings; `save` notes where they are."""
    rows, height, side = panels[0].pixels.shape[:3]
    fonts = {points: ImageFont.load_default(points) for points in (20, 16, 13)}
    top = 92
    width = 2 * _MARGIN + len(panels) * (side + _GAP) - _GAP
    page = Image.new("RGB", (width, top + rows * (height + _GAP) - _GAP + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 12), title, _INK, fonts[20])
    caption, font = fitting(caption, 16)
    draw.text((width - _MARGIN, 15), caption, _FAINT, font, anchor="ra")
    for column, panel in enumerate(panels):
        left = _MARGIN + column * (side + _GAP)
        draw.text((left, 48), panel.title, _INK, fonts[16])
        draw.text((left, 69), panel.note, _FAINT, fonts[13])
        for row, pixels in enumerate((panel.pixels.nan_to_num(0) * 255).round().byte().numpy()):
            page.paste(Image.fromarray(pixels), (left, top + row * (height + _GAP)))
    places = {"left": _MARGIN, "top": top, "width": side, "height": height, "gap": _GAP, "rows": rows}
    page.info["fastmim"] = json.dumps(places | {"titles": [panel.title for panel in panels]})
    return page


def save(page: Image.Image, path: Path) -> None:
    """Write a picture; a PNG also says where its panels are, for the report.

    Raises:
        OSError, ValueError: it cannot be written, or not in this format.
    """
    if path.suffix.lower() == ".png":
        text = PngInfo()
        text.add_text("fastmim", page.info["fastmim"])
        page.save(path, pnginfo=text)
    else:
        page.save(path)
