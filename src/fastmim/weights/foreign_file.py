"""Files of other projects' checkpoints: the tensors by name, of which no pickled code runs."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastmim.errors import RequestError, listed
from fastmim.system.files import exists
from fastmim.weights import files

_CONTAINERS = ("model", "state_dict")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's
# The only classes beside tensors and plain values. yacs' configs, which SimMIM saves, are read as the mappings they
# are: yacs itself is not imported.
_DATA: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


def read(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file, and the names of the file's other contents."""
    if not (exists(file) and file.is_file()):
        raise RequestError(f"file is {file}; expected a checkpoint, such as mae_pretrain_vit_base.pth")
    loaded = _load_safetensors(file) if file.suffix == ".safetensors" else _load_pickle(file)
    container = next((key for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
    state = loaded[container] if container else loaded
    if not state or not all(isinstance(name, str) and _is_plain(value) for name, value in state.items()):
        raise RequestError(
            f"file is {file}, which holds {listed([str(key) for key in loaded])}; expected tensors by name, alone or "
            f"under {' or '.join(_CONTAINERS)}: save the model's state_dict"
        )
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return dict(state), [str(key) for key in loaded if key != container] if container else []


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with numbers in memory: not sparse, quantised, complex or without data."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )


def _load_safetensors(file: Path) -> Mapping[str, Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise RequestError(f"file is {file}, which is damaged: {error}; download it again") from None
    if metadata.get("format") == files.FORMAT:
        raise RequestError(f"file is {file}, which is a fastmim weights file already: use it as it is")
    return load_file(file)


def _load_pickle(file: Path) -> Mapping[str, Any]:
    """A pickle's tensors and plain values. Nothing that it names is called or imported, except `_DATA`."""
    try:
        with torch.serialization.safe_globals(_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles in another protocol: they load, or are refused below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise RequestError(
                f"file is {file}, which is damaged or no PyTorch checkpoint: download it again"
            ) from None
        raise RequestError(
            f"file is {file}, a pickle that holds {named[1]}; expected tensors, plain values, argparse.Namespace and "
            f"yacs.config.CfgNode, as anything else could run code (nothing was run): if you trust its author, save "
            f"its tensors alone, "
            f'torch.save(torch.load("{file.name}", weights_only=False)["model"], "tensors.pth")'
        ) from None
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RequestError(
            f"file is {file}, which is damaged or no PyTorch checkpoint ({reason}): download it again"
        ) from None
    return loaded if isinstance(loaded, Mapping) else {type(loaded).__name__: loaded}
