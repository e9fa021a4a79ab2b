"""What `--weights` names, as a frozen encoder: a run, a weights file, a timm model, or an untrained backbone."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmim import backbone as backbones
from fastmim import checkpoint, pretraining, runs, weights
from fastmim.backbone import Backbone
from fastmim.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig, RequestError
from fastmim.transfer.feature_settings import FeatureConfig
from fastmim.transfer.features import Encoder

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
    device = runs.resolve_device(config.device)
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
    settings = runs.read_config(PretrainConfig, path)
    _expect(config, {"architecture": settings.backbone, "arguments": settings.backbone_args})
    # All weights come from the checkpoint: what the run started from need not be there any more.
    backbone = pretraining.load_checkpointed(dataclasses.replace(settings, init=None), found).backbone
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
