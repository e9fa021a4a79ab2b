"""The teacher target: features of a frozen network, which the student learns to predict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.backbone import Backbone
from fastmim.backbone.maps import resample
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.system.tensor_files import checksum
from fastmim.weights import Opened, open_weights


class Teacher(nn.Module):
    """The last feature map of a frozen network on the clean image, one vector for each of the student's positions.

    The network sees the images at the size, mean and deviation that its weights were trained with. Each vector is
    normalised to mean 0 and variance 1 over its channels (a LayerNorm without weights), so that no channel dominates
    the loss, and the map is resampled to the student's grid. MILAN (arXiv 2208.06049), MaskDistill (2210.10615) and
    GFM (2302.04476) learn from teachers; Huber's loss with a threshold of 1 and the cosine are both in use.

    The network is no part of the model: it has no gradient, stays in evaluation mode, and is in no optimiser and no
    checkpoint. It does follow the model to another device, and runs in the precision of the forward pass around it.

    Args:
        network: What `--weights` takes (a timm model's name, a run directory, a weights file), opened weights, or a
            `Backbone`, which is taken as it is, with ImageNet's mean and deviation.
        img_size: Side in pixels of the images that the network sees; that of its training if None.
        error: "smooth-l1" or "cosine"; see `loss.masked_loss`.
        mean: Normalisation of the images that `forward` is given, per channel, for pixels in [0, 1].
        std: Likewise.

    Raises:
        RequestError: there are no such weights, or the network cannot take the size.
        RunError: published weights cannot be loaded.

    Example:
        >>> teacher = fastmim.Teacher("runs/photos")
        >>> model = fastmim.MIM("vit_tiny_patch16_224", img_size=128, target=teacher)
    """

    name = "teacher"

    def __init__(
        self,
        network: str | Opened | Backbone,
        *,
        img_size: int | None = None,
        error: Literal["smooth-l1", "cosine"] = "smooth-l1",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        own_mean, own_std = IMAGENET_MEAN, IMAGENET_STD
        if isinstance(network, Backbone):
            backbone = network
        else:
            opened = open_weights(network, from_checkpoint=True) if isinstance(network, str) else network
            own_mean, own_std = opened.mean, opened.std  # type: ignore[assignment]
            with torch.random.fork_rng(devices=[]):  # the student starts as it would without a teacher
                backbone = _load(opened, img_size)
        # In a list, where PyTorch does not look for parameters, buffers and modes.
        self._networks = [backbone.eval().requires_grad_(False)]
        self.error, self.cell = error, backbone.stride
        scale = [ours / theirs for ours, theirs in zip(std, own_std, strict=True)]
        shift = [(ours - theirs) / dev for ours, theirs, dev in zip(mean, own_mean, own_std, strict=True)]
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)
        self.register_buffer("shift", torch.tensor(shift)[:, None, None], persistent=False)

    @property
    def network(self) -> Backbone:
        """The frozen network."""
        return self._networks[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Teacher:
        """What `.to` calls: the network follows."""
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: Any) -> Teacher:
        return self  # it never changes, and a copy of the model needs no second teacher

    def for_stride(self, stride: int) -> Teacher:
        """The same teacher for a student of this stride, which is its cell."""
        fitted = copy.copy(self)
        fitted.cell = stride
        return fitted

    def num_channels(self, in_chans: int) -> int:
        """The width of the network.

        Raises:
            RequestError: it takes images of another number of channels.
        """
        if in_chans != self.network.in_chans:
            raise RequestError(
                f"teacher is {self.network.name} for images of {self.network.in_chans} channels; expected one for the "
                f"student's {in_chans}: take another teacher"
            )
        return self.network.width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised -> (B, D, S / `cell`, S / `cell`) float32 without gradient, D the network's width."""
        if (
            self.scale.device != images.device
        ):  # where weights are divided among processes, the model waits in host memory
            self.to(images.device)
        network = self.network
        features, _ = network.inner_map(images * self.scale + self.shift, network.num_maps - 1)  # (B, D, h', h')
        normed = F.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
        return resample(normed, images.shape[-1] // self.cell)

    def checksum(self) -> int:
        """CRC-32 of the network's weights."""
        return checksum(self.network.model.state_dict())

    def check_finite(self) -> None:
        """Refuse a network whose features of a test image are not finite, in the precision around the call.

        Raises:
            RequestError: they are not.
        """
        network = self.network
        size = network.img_size
        noise = torch.randn(1, network.in_chans, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features, _ = network.inner_map(noise.to(self.scale.device), network.num_maps - 1)
            finite = bool(features.isfinite().all())
        if not finite:
            raise RequestError(
                f"teacher is {self.network.name}, whose features of a test image are not finite; expected a sound "
                f"network: take other weights, or --precision float32"
            )

    def extra_repr(self) -> str:
        """The network, for `print`."""
        return f"{self.network.name} at {self.network.input_size} px, error={self.error}"


def _load(opened: Opened, img_size: int | None) -> Backbone:
    try:
        return opened.load(img_size)
    except RequestError as error:
        if img_size is None:
            raise
        raise RequestError(f"teacher_size is {img_size}: {error}") from None
