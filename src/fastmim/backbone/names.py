"""timm's model names: searching, checking, and describing a model without making its weights."""

from __future__ import annotations

import difflib
import re
from typing import Any

import timm
from timm.models import get_model_input_config

from fastmim.backbone.architecture import Architecture
from fastmim.backbone.maps import nearest_grid
from fastmim.errors import RequestError


def find(pattern: str) -> list[str]:
    """timm's model names that match a shell pattern, such as "swin*"; RequestError if none does."""
    return list(timm.list_models(pattern)) or [resolve(pattern)]


def family(name: str) -> str:
    """timm's module that defines a model, such as "swin_transformer"."""
    return str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]


def resolve(name: str) -> str:
    """A model's name as timm writes it, with its pretrained tag.

    "timm/resnet50.a1_in1k" and "hf-hub:timm/resnet50.a1_in1k" become "resnet50.a1_in1k".

    Raises:
        RequestError: unknown model (the message has the nearest names) or unknown tag (it has the known ones).
    """
    plain = re.sub(r"^(hf[-_]hub:)?timm/", "", name)
    architecture, _, tag = plain.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = [model for model in known if model.startswith(architecture)][:3] if architecture else []
        near = near or difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        remedy = f"the nearest are {', '.join(near)}" if near else "`fastmim backbones` lists them"
        raise RequestError(f"unknown backbone {name!r}: expected a name of timm.list_models(); {remedy}")
    tags = [model.partition(".")[2] for model in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        expected = f"expected one of {', '.join(tags)}" if tags else "expected none, there are none"
        raise RequestError(f"unknown pretrained tag {tag!r} of {architecture}: {expected}; or leave it out")
    return plain


def published_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...], float]:
    """The input of a model's published weights: side in pixels, mean and deviation per channel, crop share."""
    model: Any = Architecture(resolve(name), {}).bare
    side, facts = get_model_input_config(model)["input_size"][-1], model.pretrained_cfg
    return side, tuple(facts["mean"]), tuple(facts["std"]), facts["crop_pct"]


def describe(name: str, img_size: int = 128) -> tuple[int, int, int]:
    """Stride, width and number of parameters of a backbone at an image size, without making its weights."""
    architecture = Architecture(resolve(name), {})
    model: Any = architecture.bare
    grid = nearest_grid(img_size, img_size / architecture.reduction)
    return img_size // grid, model.feature_info[-1]["num_chs"], sum(p.numel() for p in model.parameters())
