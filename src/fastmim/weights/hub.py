"""Models of the Hugging Face Hub by name: a config that is checked, and safetensors; nothing else is fetched."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastmim.errors import RequestError, RunError, first_line
from fastmim.system.files import read_json
from fastmim.system.hub import only_if_reachable
from fastmim.weights import metadata
from fastmim.weights.licences import UNKNOWN

PREFIX = "hf-hub:"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def holds(source: str | Path) -> bool:
    """Whether weights are named by a repository of the Hub, as hf-hub:OWNER/NAME."""
    return isinstance(source, str) and source.startswith(PREFIX)


def read(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts (as in a weights file's metadata) of a timm model on the Hub, from the cache if there.

    Raises:
        RequestError: no such repository or file, or it does not hold a timm model.
        RunError: there is no network, and the cache does not have it.
    """
    config, weights = (_fetch(source, name) for name in (_CONFIG, _WEIGHTS))
    try:
        tensors = load_file(weights)
        facts = _facts(read_json(Path(config)))
    except (RunError, SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            f"weights is {source}, which is not a timm model ({first_line(error)}); expected a repository with timm's "
            f"{_CONFIG} and {_WEIGHTS}"
        ) from None
    metadata.check(source, facts, tensors)
    return tensors, facts


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """A weights file's facts from timm's config.json."""
    published: dict[str, Any] = config["pretrained_cfg"]
    arguments = dict(config.get("model_args") or {})
    if (channels := published["input_size"][0]) != 3:
        arguments["in_chans"] = channels
    return {
        "architecture": config["architecture"],
        "arguments": json.loads(json.dumps(arguments)),
        "img_size": published["input_size"][-1],
        "num_blocks": 0,
        "trained_blocks": 0,
        "untrained": [],
        "mean": list(published["mean"]),
        "std": list(published["std"]),
        "licence": str(published.get("license") or UNKNOWN),
    }


def _fetch(source: str, file: str) -> str:
    """The path of a repository's file in the cache, downloaded if it is not there."""
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    fetch = functools.partial(hf_hub_download, repository, file, revision=revision or None)
    try:
        try:
            return fetch(local_files_only=True)
        except LocalEntryNotFoundError:
            with only_if_reachable():
                return fetch()
    except LocalEntryNotFoundError:
        raise RunError(
            f"weights is {source}, and {file} is neither in the cache nor can it be fetched; "
            f"expected a network once: go online, or run `hf download {repository} {_CONFIG} {_WEIGHTS}` on another "
            f"machine and copy its cache to {constants.HF_HUB_CACHE}"
        ) from None
    except (EntryNotFoundError, HFValidationError, HfHubHTTPError) as error:
        raise RequestError(
            f"weights is {source}, which has no {file} for you ({first_line(error)[:200]}); expected the public "
            f"repository of a timm model, such as hf-hub:timm/resnet50.a1_in1k"
        ) from None
