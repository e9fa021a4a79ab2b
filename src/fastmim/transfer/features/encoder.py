"""What `--weights` names, as a frozen encoder: a run, a weights file, a timm model, or an untrained backbone."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmim import backbone as backbones
from fastmim import weights
from fastmim.backbone import Backbone
from fastmim.data.augment import normalise
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.method import build
from fastmim.method.settings import PretrainConfig
from fastmim.system import devices
from fastmim.training import checkpoint
from fastmim.training.run_directory import RunDirectory
from fastmim.transfer.features.settings import FeatureConfig

_EXPECTED = "a run directory, a weights file, a timm model name, or none (an untrained --backbone)"


@dataclass(frozen=True)
class Pretrained:
    """A backbone, how its images are normalised and cut, and which one it is."""

    backbone: Backbone
    facts: dict[str, Any]
    """What was loaded, so that two are the same exactly if their facts are: JSON types."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0


def open_encoder(config: FeatureConfig) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that a config asks for, on its device, and the facts about its weights.

    Raises:
        RequestError: no such weights, other weights than expected, a size, block or pooling that they cannot give.
        RunError: published weights cannot be had.
    """
    found = open_pretrained(config)
    if config.img_size is not None and config.img_size != found.backbone.img_size:
        found.backbone.set_input_size(config.img_size)
    device = devices.resolve_device(config.device)
    encoder = Encoder(
        found.backbone.to(device),
        pool=config.pool,
        block=config.block,
        mean=found.mean,
        std=found.std,
        crop_pct=found.crop_pct,
    )
    return encoder.eval().requires_grad_(False), found.facts


def open_pretrained(config: FeatureConfig) -> Pretrained:
    """The backbone that `weights` names, at the size that it was trained at."""
    if config.weights is None:
        raise RequestError(f"weights are not given; expected {_EXPECTED}: --weights runs/pretrain")
    path = Path(config.weights)
    if config.weights == "none":
        return _untrained(config)
    if path.is_dir() and (found := checkpoint.newest(path / "checkpoints")) and "target" in found.manifest["config"]:
        return _of_run(path, found, config)
    if path.exists():
        return _of_file(path, config)
    try:
        name = backbones.resolve(config.weights)
    except RequestError as error:
        raise RequestError(f"weights is {config.weights!r}; expected {_EXPECTED} ({error})") from None
    return _published(name, config)


def _of_run(path: Path, found: checkpoint.Checkpoint, config: FeatureConfig) -> Pretrained:
    """The newest checkpoint: the very weights, where a weights file may hold them resampled to timm's size."""
    settings = RunDirectory(path).read_config(PretrainConfig)
    _expect(config, {"architecture": settings.backbone, "arguments": settings.backbone_args})
    # All weights come from the checkpoint: what the run started from need not be there any more.
    backbone = build.load_checkpointed(dataclasses.replace(settings, init=None), found).backbone
    crc32 = found.manifest["files"]["model.safetensors"]["crc32"]
    return Pretrained(backbone, {"architecture": settings.backbone, "step": found.step, "crc32": crc32})


def _of_file(path: Path, config: FeatureConfig) -> Pretrained:
    tensors, facts = weights.read(path)
    _expect(config, facts)
    made_by = weights.source_of(facts)
    share = facts["trained_blocks"] / facts["num_blocks"] if facts["num_blocks"] else 1.0
    backbone = Backbone(
        made_by.name, img_size=facts["img_size"], in_chans=made_by.in_chans, encoder_depth=share, args=made_by.args
    )
    weights.load_into(backbone, path)
    crc32 = 0
    for name in sorted(tensors):
        crc32 = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, crc32)
    about = {"architecture": facts["architecture"], "step": facts.get("steps"), "crc32": crc32}
    return Pretrained(backbone, about, tuple(facts.get("mean", IMAGENET_MEAN)), tuple(facts.get("std", IMAGENET_STD)))


def _published(name: str, config: FeatureConfig) -> Pretrained:
    _expect(config, {"architecture": name, "arguments": {}})
    size, mean, std, crop_pct = backbones.published_input(name)
    backbone = Backbone(name, img_size=size, pretrained=True)
    return Pretrained(backbone, {"architecture": name, "published": True}, mean, std, crop_pct)


def _untrained(config: FeatureConfig) -> Pretrained:
    if config.backbone is None:
        raise RequestError("weights is none, but no backbone is given; expected its name: --backbone NAME")
    name = backbones.resolve(config.backbone)
    torch.manual_seed(config.seed)
    size = config.img_size or backbones.published_input(name)[0]
    backbone = Backbone(name, img_size=size, args=config.backbone_args)
    return Pretrained(backbone, {"architecture": name, "untrained": True, "seed": config.seed})


def _expect(config: FeatureConfig, facts: Mapping[str, Any]) -> None:
    weights.check(facts, backbone=config.backbone, backbone_args=config.backbone_args or None)


Pool = Literal["avg", "cls", "both"]


class Encoder(nn.Module):
    """A backbone and a pooling: images -> one vector each. It shares the backbone's weights and changes nothing.

    Args:
        backbone: At the size of the images.
        pool: "avg", the mean over the map; "cls", the class token; "both", one after the other.
        block: Whose output to take, negative from the end: a block of a ViT, a stage of a hierarchical backbone.
            Blocks that `encoder_depth` leaves out pass their input on, so -1 is the last one that was trained.
        mean: Of each channel, for pixels in [0, 1].
        std: Likewise.
        crop_pct: Side of the evaluation crop as a share of the picture's shorter side.

    Raises:
        RequestError: no such block, or no class token.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool: Pool = "avg",
        block: int = -1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop_pct: float = 1.0,
    ) -> None:
        super().__init__()
        num_maps = backbone.num_maps
        if not -num_maps <= block < num_maps:
            raise RequestError(
                f"block is {block}; expected {-num_maps} to {num_maps - 1}, as {backbone.name} has {num_maps} "
                f"blocks or stages: -1 is the last"
            )
        self.backbone, self.pool, self.block, self.crop_pct = backbone, pool, block % num_maps, crop_pct
        device = next(backbone.parameters()).device
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, device=device))
        self.register_buffer("std", torch.tensor(std, device=device))
        size = backbone.img_size
        with evaluating(self):
            feature_map, token = backbone.inner_map(
                torch.zeros(1, backbone.in_chans, size, size, device=device), self.block
            )
        if pool != "avg" and token is None:
            raise RequestError(f"pool is {pool!r}, but {backbone.name} gives no class token; expected avg: --pool avg")
        self.width: int = feature_map.shape[1] * (2 if pool == "both" else 1)
        """Length of the vectors."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, S = `backbone.img_size` -> (B, `width`) float32."""
        feature_map, token = self.backbone.inner_map(normalise(images, self.mean, self.std), self.block)
        parts = []
        if self.pool != "cls":
            parts.append(feature_map.float().mean(dim=(2, 3)))
        if token is not None and self.pool != "avg":
            parts.append(token.float())
        return torch.cat(parts, dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode inside; each module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
