"""Batch norms whose statistics are those of the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Let the batch norms of a model, the same in every process, take the statistics of all processes' images.

    Parameters, buffers and their names stay, and so do timm's activations behind norms, also when it is called again,
    which timm's `convert_sync_batchnorm` would drop then. In evaluation no process waits for others.

    Args:
        model: Its norms change their class in place.
        device: Where it will train; torch has kernels for accelerators only.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = _BatchNormOnCpu if device.type == "cpu" else SyncBatchNormAct
            norm.process_group = None  # type: ignore[assignment]


class _BatchNormOnCpu(_BatchNorm):
    """What timm's `SyncBatchNormAct` does, from the means and variances of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, C, ...); b may differ between processes."""
        x = self._normalise(x) if self.training else super().forward(x)
        for name in ("drop", "act"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x

    def _check_input_dim(self, x: Tensor) -> None:
        """The norms of 1, 2 and 3 dimensions are all of this class."""

    def _normalise(self, x: Tensor) -> Tensor:
        each = x.float()
        count = each.numel() / each.shape[1]
        variance, mean = torch.var_mean(each, [0, *range(2, x.ndim)], correction=0)
        sums = _Sum.apply(torch.cat([count * mean, mean.new_tensor([count])]))
        total, mean_of_all = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        variance_of_all = _Sum.apply(count * (variance + (mean - mean_of_all) ** 2)) / total
        self._track(mean_of_all.detach(), variance_of_all.detach() * total / (total - 1))
        scale, shift = torch.rsqrt(variance_of_all + self.eps), None
        if self.affine:
            scale, shift = scale * self.weight, self.bias
        shape = (-1, *[1] * (x.ndim - 2))
        each = (each - mean_of_all.view(shape)) * scale.view(shape)
        return (each if shift is None else each + shift.view(shape)).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Bring the running statistics up to date."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; every process's loss has a gradient for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
