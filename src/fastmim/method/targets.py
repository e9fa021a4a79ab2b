"""Targets, which the decoder learns to predict: HOG features (FastMIM section 3.2), pixels or projections of them."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.errors import RequestError
from fastmim.randomness import step_seed, uniform

TEACHER_ERRORS = ("smooth-l1", "cosine")
"""How predictions of a teacher's features are judged; see `loss.masked_loss`."""

_PROJECTION_STREAM = 4


class Target(Protocol):
    """What a `MIM` predicts for hidden blocks: any object with these four members.

    A target that is an `nn.Module` moves with the model and is saved in its checkpoints; any other object, such
    as one that holds a frozen network, has to follow the images' device itself. Where a target has them, `error`
    replaces the loss that the `MIM` is given, and pictures use `name` and, for a reconstruction, `to_images` (see
    `Pixels`).

    A target of one's own, the mean colour of each cell:

        class MeanColour:
            cell = 4

            def for_stride(self, stride):
                return self

            def num_channels(self, in_chans):
                return in_chans

            def forward(self, images):
                return torch.nn.functional.avg_pool2d(images, self.cell)

        model = fastmim.MIM("vit_small_patch16_224", target=MeanColour())
    """

    @property
    def cell(self) -> int:
        """Pixels along a side of a cell, the square that one feature vector describes."""

    def for_stride(self, stride: int) -> Target:
        """The target for a backbone of this stride, with a cell that divides the stride."""

    def num_channels(self, in_chans: int) -> int:
        """Target channels of one cell, for images of `in_chans` channels."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, `num_channels(C)`, H / `cell`, W / `cell`) float32, without gradient."""


class HOG(nn.Module):
    """Histograms of oriented gradients, the target of FastMIM (section 3.2; Dalal and Triggs, CVPR 2005).

    Each channel's Sobel gradients are taken with reflect padding. Each pixel adds its magnitude to the bin of
    its unsigned orientation, floor(atan2(gx, gy) / pi * num_bins) mod num_bins. Each cell sums its pixels, and
    its histogram is scaled to L2 norm 1. There is no Gaussian window and no gradient; float32 always.

    The result equals this formula up to rounding, but no bin is computed (gain: `fastmim bench --only hog`):
    an orientation falls in bin k or above exactly where gy/gx <= cot(k * pi / num_bins), so magnitudes are summed
    on that side of each of the num_bins - 1 lines, and a histogram is the differences of neighbouring sums. This
    needs no one-hot tensor of the image's size, and the compiler fuses the rest.

    Args:
        cell: Pixels along a cell's side; None means 8, or the stride given to `for_stride` if that is smaller.
        num_bins: Orientation bins over 180 degrees.

    Raises:
        ValueError: cell below 1, num_bins below 2.

    Example:
        >>> fastmim.HOG(cell=8).forward(images).shape  # images: (B, 3, 128, 128), normalised
        torch.Size([2, 27, 16, 16])
    """

    name = "hog"

    def __init__(self, cell: int | None = None, num_bins: int = 9) -> None:
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}: a histogram needs at least 2 bins; 9 is usual")
        self._given = _checked_side(cell, "cell")
        self.cell = cell or 8
        self.num_bins = num_bins
        self._edges = [_just_above(1 / math.tan(math.pi * k / num_bins)) for k in range(1, num_bins)]

    def for_stride(self, stride: int) -> HOG:
        """The target for a backbone of this stride: cells of min(8, stride) pixels unless given.

        Raises:
            RequestError: The stride is not a multiple of the cell.
        """
        if self._given is None and stride > 8 and stride % 8:
            raise RequestError(
                f"target is hog, whose cells of 8 pixels do not divide the backbone's stride of {stride}; expected an "
                f"image size that is a multiple of 32, or another target"
            )
        return HOG(_divisor(self._given or min(8, stride), stride, "cell"), self.num_bins)

    def num_channels(self, in_chans: int) -> int:
        """Target channels of one cell: in_chans * num_bins."""
        return in_chans * self.num_bins

    def forward(self, images: Tensor) -> Tensor:
        """HOG of a batch.

        Args:
            images: (B, C, H, W), normalised; H and W multiples of `cell`.

        Returns:
            (B, C * num_bins, H / cell, W / cell) float32 in [0, 1], channels ordered (image channel, bin).

        Raises:
            ValueError: H or W is not a multiple of the cell.
        """
        _check_divides(images, self.cell, "cell")
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float()
            if images.device.type != "cpu" or torch.compiler.is_compiling():
                return self._histograms(images)
            # Uncompiled on a CPU, every operation is a pass over memory. Parts of the batch that stay in the
            # cores' caches (1 MB per tensor and thread) halve the time and need a fraction of the memory.
            part = max(1, 2**18 * torch.get_num_threads() // images.shape[1:].numel())
            return torch.cat([self._histograms(few) for few in images.split(part)])

    def _histograms(self, images: Tensor) -> Tensor:
        gx, gy = sobel(images)
        xx, xy = gx * gx, gx * gy
        magnitude = (xx + gy * gy).sqrt_()

        def sum_rows(values: Tensor) -> Tensor:
            """(B, C, H, W) -> (B, C, H / cell, W); rows come first because they are contiguous in memory."""
            return values.unflatten(2, (-1, self.cell)).sum(3)

        # reach[k] is the magnitude in bins k and above. gy/gx <= cot is gx*gy <= cot*gx*gx; `>` with edges just
        # above the cotangents is equivalent, and keeps gx = 0 (0 > 0 is false) in bin 0, as in the formula.
        # Comparing and multiplying in place gives a float 0/1 mask, which eager CPU code multiplies fastest.
        reach = [sum_rows(magnitude)]
        reach += [sum_rows((xx * edge).gt_(xy).mul_(magnitude)) for edge in self._edges]
        reach.append(torch.zeros_like(reach[0]))
        cells = torch.stack(reach, 2).unflatten(-1, (-1, self.cell)).sum(-1)  # (B, C, bins + 1, h, w)
        histograms = cells[:, :, :-1] - cells[:, :, 1:]
        return F.normalize(histograms, dim=2, eps=1e-12).flatten(1, 2)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"cell={self.cell}, num_bins={self.num_bins}"


class Pixels(nn.Module):
    """The pixels of each patch, standardised per patch (the reconstruction target of MAE, section 3).

    Args:
        patch: Pixels along a patch's side, the target's cell; None means 16, or the stride given to `for_stride`.
        normalize: Subtract each patch's mean and divide by its standard deviation (over pixels and channels,
            unbiased variance, eps 1e-6); False keeps the pixels as they are.

    Raises:
        ValueError: patch below 1.

    Example:
        >>> fastmim.Pixels(patch=16).forward(images).shape  # images: (B, 3, 128, 128), normalised
        torch.Size([2, 768, 8, 8])
    """

    name = "pixels"

    def __init__(self, patch: int | None = None, normalize: bool = True) -> None:
        super().__init__()
        self._given = _checked_side(patch, "patch")
        self.cell = patch or 16
        self.normalize = normalize

    def for_stride(self, stride: int) -> Pixels:
        """The target for a backbone of this stride: patches of `stride` pixels unless given.

        Raises:
            RequestError: The stride is not a multiple of the patch.
        """
        return Pixels(_divisor(self._given or stride, stride, "patch"), self.normalize)

    def num_channels(self, in_chans: int) -> int:
        """Target channels of one patch: in_chans * patch * patch."""
        return in_chans * self.cell**2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pixels of a batch, patch by patch.

        Args:
            images: (B, C, H, W), normalised; H and W multiples of `patch`.

        Returns:
            (B, C * patch * patch, H / patch, W / patch) float32 without gradient, channels ordered
            (image channel, row, column) as `pixel_unshuffle` does.

        Raises:
            ValueError: H or W is not a multiple of the patch, or a patch of one value cannot be standardised.
        """
        _check_divides(images, self.cell, "patch")
        patches = F.pixel_unshuffle(images.float(), self.cell)
        if not self.normalize:
            return patches
        mean, deviation = self._statistics(patches)
        return (patches - mean) / deviation

    @torch.no_grad()
    def to_images(self, values: Tensor, images: Tensor) -> Tensor:
        """The inverse of `forward`, with the patches' true mean and deviation taken from `images`.

        Args:
            values: (B, C * patch * patch, H / patch, W / patch), a target or a prediction of it.
            images: (B, C, H, W), the normalised images that it belongs to.

        Returns:
            (B, C, H, W) float32 in normalised image space.
        """
        if self.normalize:
            mean, deviation = self._statistics(F.pixel_unshuffle(images.float(), self.cell))
            values = values.float() * deviation + mean
        return F.pixel_shuffle(values.float(), self.cell)

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, h, w) mean and deviation of each patch of (B, C * patch * patch, h, w)."""
        if patches.shape[1] < 2:
            raise ValueError("a patch of 1 value has no variance: expected 2 or more; set normalize=False")
        variance, mean = torch.var_mean(patches, dim=1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"patch={self.cell}, normalize={self.normalize}"


class RandomProjection(nn.Module):
    """A frozen random linear map of each standardised patch: a target without a teacher (after arXiv 2511.13655).

    Its width does not depend on the number of image channels. The map's entries are uniform with mean 0 and variance
    1 / n for patches of n values, so that targets have about the variance of the patch, 1. They are a function of
    `seed`, the same in every process and after every resume; none is stored.

    Args:
        patch: Pixels along a patch's side, the target's cell; None means the stride given to `for_stride`.
        width: Target channels of one patch.
        seed: Decides the map.

    Raises:
        ValueError: patch or width below 1.

    Example:
        >>> fastmim.RandomProjection(patch=16).forward(images).shape  # images: (B, 3, 128, 128), normalised
        torch.Size([2, 256, 8, 8])
    """

    name = "random-projection"

    def __init__(self, patch: int | None = None, width: int = 256, seed: int = 0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}: expected at least 1 channel; 256 is usual")
        self.width, self.seed = width, seed
        self._pixels = Pixels(patch)
        self.cell = self._pixels.cell

    def for_stride(self, stride: int) -> RandomProjection:
        """The target for a backbone of this stride: patches of `stride` pixels unless given.

        Raises:
            RequestError: The stride is not a multiple of the patch.
        """
        return RandomProjection(self._pixels.for_stride(stride).cell, self.width, self.seed)

    def num_channels(self, in_chans: int) -> int:
        """Target channels of one patch: `width`, for any number of image channels."""
        return self.width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, `width`, H / patch, W / patch) float32 without gradient.

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """
        patches = self._pixels(images)  # (B, n, h, w)
        with torch.autocast(images.device.type, enabled=False):
            return torch.einsum("kn,bnhw->bkhw", self._matrix(patches.shape[1], images.device), patches)

    def _matrix(self, num_values: int, device: torch.device) -> Tensor:
        """(width, n): row k is a function of (seed, k)."""
        # xor for the reason given in `randomness.uniform`.
        rows = torch.arange(self.width, device=device, dtype=torch.int64) ^ step_seed(self.seed)
        entries = uniform(rows, num_values, stream=_PROJECTION_STREAM)
        return (entries - 0.5) * math.sqrt(12 / num_values)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"patch={self.cell}, width={self.width}, seed={self.seed}"


def sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (gx, gy) by [[1, 0, -1], [2, 0, -2], [1, 0, -1]] and its transpose, reflect padding.

    Args:
        images: (B, C, H, W) float.

    Returns:
        Two (B, C, H, W): left minus right, top minus bottom.
    """
    H, W = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")

    def shifted(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + H, 1 + right : 1 + right + W]

    # Rounding matters where a gradient is 0, since gx = 0 is the edge of a bin. gx is summed in the order of a
    # 3x3 convolution, so that such ties fall as they do in the published layer. gy takes differences first, so
    # that a flat region gives 0 and not 1e-7, which normalisation would turn into a full histogram.
    gx = shifted(-1, -1) - shifted(-1, 1)
    gx.add_(shifted(0, -1), alpha=2).sub_(shifted(0, 1), alpha=2).add_(shifted(1, -1)).sub_(shifted(1, 1))
    gy = shifted(-1, 0) - shifted(1, 0)
    gy.mul_(2).add_(shifted(-1, -1) - shifted(1, -1)).add_(shifted(-1, 1) - shifted(1, 1))
    return gx, gy


def _just_above(value: float) -> float:
    """The next float32 above a number."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def _checked_side(side: int | None, word: str) -> int | None:
    if side is not None and side < 1:
        raise ValueError(f"{word} is {side}: expected at least 1 pixel; leave it out for the default")
    return side


def _divisor(side: int, stride: int, word: str) -> int:
    if stride % side:
        raise RequestError(
            f"{word} is {side}: expected a divisor of the backbone's stride, {stride}; leave it out for the default"
        )
    return side


def _check_divides(images: Tensor, side: int, word: str) -> None:
    H, W = images.shape[-2:]
    if H % side or W % side:
        raise ValueError(
            f"images are {H}x{W} pixels: expected multiples of the {word}, {side}; "
            f"resize the images or choose a {word} that divides both sides"
        )


TARGETS: dict[str, Target] = {
    "hog": HOG(),
    "pixels": Pixels(),
    "rgb": Pixels(normalize=False),
    "random-projection": RandomProjection(),
}
"""The targets under their names in settings, but for those of a teacher; `MIM` fits them to its backbone's stride."""
