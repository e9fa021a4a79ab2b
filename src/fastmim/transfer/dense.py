"""What detection and segmentation share: a backbone of several maps at its start."""

from __future__ import annotations

from collections.abc import Sequence

from fastmim import weights
from fastmim.backbone.multiscale import MultiScale
from fastmim.transfer.dense_settings import DenseConfig
from fastmim.transfer.start import Start


def build_trunk(
    config: DenseConfig, start: Start, *, img_size: int, depths: int | Sequence[int], resuming: bool
) -> MultiScale:
    """Make the backbone at its start.

    Args:
        config: Names the weights.
        start: As `find_start` has found them.
        img_size: Side in pixels of the usual images; see `MultiScale`.
        depths: The maps of a model with one stride; see `MultiScale`.
        resuming: Do not load the weights, because a checkpoint replaces them.

    Raises:
        RequestError: the weights do not fit, or the model has no such maps or cannot take the size.
        RunError: timm's weights cannot be loaded.
    """
    trunk = MultiScale(
        start.backbone,
        img_size=img_size,
        args=start.arguments,
        drop_path=config.drop_path,
        pretrained=start.kind == "timm" and not resuming,
        depths=depths,
        window=config.window,
    )
    if config.checkpoint_activations:
        trunk.checkpoint_activations()
    if start.kind == "file" and not resuming:
        backbone = weights.load_backbone(config.weights, img_size=trunk.weights_size)
        trunk.load(backbone.state_dict(), fresh=start.fresh)
    return trunk
