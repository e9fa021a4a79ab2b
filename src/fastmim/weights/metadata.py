"""What a weights file says of itself: its metadata decoded, and checked before timm sees it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from fastmim.data.settings import is_range
from fastmim.errors import RequestError, first_line, shown
from fastmim.weights import licences

TEXTS = ("format", "fastmim", "architecture")
"""The metadata that is text; everything else is JSON."""
_FETCHING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments with which timm would open a file or a network connection, which no weights file may ask for."""
_LARGEST = 1 << 16  # of the whole numbers among timm's arguments: sizes, widths, classes
_LARGEST_SIDE = 8192  # of images in pixels: crops of this size are made
_COUNTS = re.compile("depth|layer|block|repeat")  # in the names of arguments that count blocks


def untagged(name: str) -> str:
    """A timm model's name without the tag of its published weights."""
    return name.partition(".")[0]


def crop_pct(facts: Mapping[str, Any]) -> float:
    """Side of the central crop for evaluation, as a share of an image's shorter side.

    For classifiers that fastmim fine-tuned, that of their validation; for other projects', ImageNet's usual 0.875; for
    backbones without a classifier 1.
    """
    return float(facts.get("eval_crop", 0.875 if facts.get("classes") else 1))


def decode(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The facts in a weights file's metadata.

    Args:
        path: The file, for messages.
        metadata: As safetensors has it.
        tensors: The file's tensors.

    Raises:
        RequestError: the metadata does not describe one of timm's models, asks timm to fetch something, or describes a
            model that the tensors are not of. No more memory is taken than the file has.
    """
    try:
        facts: dict[str, Any] = {k: v if k in TEXTS else json.loads(v) for k, v in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"weights is {path}, whose metadata has no JSON ({first_line(error)[:200]}); expected that of a timm "
            f"model, as written by fastmim: take a file that fastmim wrote"
        ) from None
    check(path, facts, tensors)
    return facts


def check(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse facts that do not describe a timm model, or not that of the tensors; see `decode`.

    Raises:
        RequestError: they do not.
    """
    try:
        wrong = _wrong_fact(facts) or _wrong_argument(facts["arguments"], len(tensors))
    except KeyError as error:
        wrong = f"no {error}"
    if wrong:
        raise RequestError(
            f"weights is {path}, whose metadata has {wrong[:200]}; expected that of a timm model, as written by "
            f"fastmim: take a file that fastmim wrote"
        )
    if differing := _differing(facts, tensors):
        raise RequestError(
            f"weights is {path}, which does not hold the {facts['architecture']} that it says ({differing[:200]}); "
            f"expected a file written by fastmim"
        )


def _wrong_fact(facts: Mapping[str, Any]) -> str:
    """The first fact that is not one of a weights file, or ""; KeyError if one is missing."""
    kinds = {"arguments": dict, "img_size": int, "num_blocks": int, "trained_blocks": int, "untrained": list}
    bad = [name for name, kind in kinds.items() if not isinstance(facts[name], kind)]
    if untagged(facts["architecture"]) not in timm.list_models():
        bad.append("architecture")
    bad += [name for name in ("untrained", "classes") if not _texts(facts.get(name) or [])]
    bad += [name for name in ("mean", "std") if not _numbers(facts.get(name) or [], above=name == "std")]
    if not is_range(facts.get("range", "8bit")):
        bad.append("range")
    if licences.wrong(facts.get("learned_from", [])):
        bad.append("learned_from")
    crop = facts.get("eval_crop", 1)
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        bad.append("eval_crop")
    if not bad and not 1 <= facts["img_size"] <= _LARGEST_SIDE:
        bad = ["img_size"]
    if not bad and not 0 <= facts["trained_blocks"] <= facts["num_blocks"]:
        bad = ["trained_blocks"]
    return f"{bad[0]} {shown(facts[bad[0]])}" if bad else ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(value: Any, *, above: bool) -> bool:
    return isinstance(value, list) and all(
        type(n) in (int, float) and math.isfinite(n) and (n > 0 or not above) for n in value
    )


def _wrong_argument(arguments: Mapping[str, Any], num_tensors: int) -> str:
    """The first argument that no model of these tensors has, or ""."""
    if fetching := sorted(_FETCHING & arguments.keys()):
        return f"argument {fetching[0]!r}"
    for name, value in arguments.items():
        numbers = [number for number in _leaves(value) if isinstance(number, int)]
        too_many = _COUNTS.search(name) and sum(numbers) > num_tensors  # each block has a tensor at least
        if too_many or any(abs(number) > _LARGEST for number in numbers):
            return f"argument {shown(name)} of {shown(value)}"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    """The values within nested lists and mappings."""
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _leaves(item)
    yield value


def _differing(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """What the model that the metadata describes, without its classifier, has and the tensors have not, or ""."""
    try:
        with torch.device("meta"):
            model = timm.create_model(
                facts["architecture"], **(facts["arguments"] | {"num_classes": 0}), pretrained=False
            )
    except Exception as error:  # timm refuses arguments in every way there is
        return first_line(error)
    for name, tensor in model.state_dict().items():
        if name not in tensors:
            return f"no {name}"
        if tensors[name].shape != tensor.shape:
            return f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
    return ""
