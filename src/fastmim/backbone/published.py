"""timm's published weights: their tag and licence, the file in the cache, and how to get it without a network."""

from __future__ import annotations

from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from timm.models import get_pretrained_cfg

_FILE = "model.safetensors"


def origin(name: str) -> tuple[str, str | None, str | None]:
    """A model's architecture, and the tag and licence of its published weights, None where timm states none."""
    config = _config(name)
    architecture, _, tag = name.partition(".")
    return architecture, tag or config.get("tag") or None, config.get("license")


def cached(name: str) -> dict[str, Any]:
    """timm's overlay of a `pretrained_cfg` that takes the weights from the cache, or nothing if they are not there.

    timm would first ask the network whether there are newer ones, and wait half a minute where there is none.
    """
    config = _config(name)
    if not config.get("hf_hub_id") or config.get("hf_hub_filename"):
        return {}
    found = try_to_load_from_cache(config["hf_hub_id"], _FILE)
    return {"file": found, "custom_load": False} if isinstance(found, str) else {}


def remedy(name: str) -> str:
    """What to download where, if the network is down."""
    repository = _config(name).get("hf_hub_id")
    if not repository:
        return "take other weights, or train from scratch"
    return (
        f"go online once; or run `hf download {repository} {_FILE}` on another machine and copy its cache to "
        f"{constants.HF_HUB_CACHE}; or take a file of the weights through `fastmim convert`"
    )


def _config(name: str) -> dict[str, Any]:
    config: Any = get_pretrained_cfg(name)
    return config.to_dict() if config else {}
