"""Conversion of other projects' checkpoints to weights files: every tensor is checked, and no pickled code runs."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastmim.backbone import Backbone, resolve
from fastmim.errors import RequestError, RunError, first_line
from fastmim.system import locking
from fastmim.system.files import exists
from fastmim.weights import files, foreign
from fastmim.weights.foreign import State

_MAX_NAMED = 8  # keys in a message
_CONTAINERS = ("model", "state_dict")
_CLASSIFIERS = ("head.", "fc.", "classifier.")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    path: Path
    method: str
    """The project whose layout the checkpoint has: FastMIM, MAE, SimMIM or timm."""
    backbone: str
    arguments: dict[str, Any]
    """Arguments of the timm model beyond its name."""
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_parameters: int
    dropped: tuple[str, ...]
    """Names of the tensors outside the backbone: decoder, mask token, classifier, computed buffers."""
    left: tuple[str, ...]
    """Names of the file's other contents, such as an optimiser."""
    note: str
    """A note for the user, or empty."""

    def describe(self) -> str:
        """A summary of several lines."""
        arguments = "".join(f", {key} {value}" for key, value in self.arguments.items())
        flags = "".join(f" --backbone-args.{key} {value}" for key, value in self.arguments.items())
        lines = [
            f"checkpoint {self.method}'s layout: {self.num_parameters / 1e6:.1f} M parameters of the backbone",
            f"backbone   {self.backbone}{arguments}, trained at {self.img_size} px; "
            f"images with mean {_numbers(self.mean)}, deviation {_numbers(self.std)}",
        ]
        if self.note:
            lines.append(f"note       {self.note}")
        if self.dropped:
            lines.append(f"dropped    {len(self.dropped)} tensors outside the backbone: {_groups(self.dropped)}")
        if self.left:
            lines.append(f"left out   {', '.join(self.left)}")
        lines.append(f"wrote      {self.path}; read back, equal to the bit")
        lines.append(f"continue   fastmim pretrain --init {self.path} --backbone {self.backbone}{flags}")
        return "\n".join(lines)


def convert(
    file: str | Path,
    *,
    out: str | Path,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write another project's checkpoint as a fastmim weights file, at the image size that it was trained at.

    Supported are pre-training checkpoints of FastMIM (ViT-B, Swin-B), MAE (ViT-B, L, H; with or without decoder) and
    SimMIM (Swin-B, ViT-B), and any timm state dict, as a PyTorch pickle or safetensors. Only tensors, plain Python
    values and `argparse.Namespace` are loaded from a pickle.

    Args:
        file: The checkpoint.
        out: The .safetensors file to write.
        backbone: timm's name of the architecture; inferred from the tensors if None.
        backbone_args: Further arguments of the timm model.
        overwrite: Replace `out`.

    Raises:
        RequestError: the file is missing, damaged or holds other objects; tensors are unknown, missing or of other
            shapes (the message names them); `out` exists or cannot be written.
        RunError: the written file does not read back the same.
    """
    file, out = Path(file), Path(out)
    if out.suffix != ".safetensors":
        raise RequestError(f"out is {out}; expected a file ending in .safetensors")
    if exists(out) and not overwrite:
        raise RequestError(f"out is {out}, which exists; expected a path that is free: take another, or --overwrite")
    state, left = _read(file)
    layout = foreign.recognise(state)
    tensors, dropped = foreign.split(state, layout)
    found = _identify(file, tensors, state, layout, name=backbone and resolve(backbone), arguments=backbone_args or {})
    model = Backbone(found.name, img_size=found.img_size, args=found.arguments)
    expected = model.model.state_dict()
    classifier = [name for name in tensors if name.startswith(_CLASSIFIERS) and name not in expected]
    dropped += classifier
    tensors = {k: v for k, v in tensors.items() if k not in classifier}
    _check(file, found, tensors, expected)
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    model.model.load_state_dict(tensors)
    about = {"converted_from": file.name, "method": layout.method, "mean": found.mean, "std": found.std}
    _write(out, model, about, as_is=found.img_size != found.native_size)
    return Conversion(
        path=out,
        method=layout.method,
        backbone=found.name,
        arguments=found.arguments,
        img_size=found.img_size,
        mean=found.mean,
        std=found.std,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dropped=tuple(dropped),
        left=tuple(left),
        note=layout.note or found.note,
    )


def _read(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file, and the names of the file's other contents."""
    if not (exists(file) and file.is_file()):
        raise RequestError(f"file is {file}; expected a checkpoint, such as mae_pretrain_vit_base.pth")
    loaded = _load_safetensors(file) if file.suffix == ".safetensors" else _load_pickle(file)
    container = next((key for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
    state = loaded[container] if container else loaded
    if not state or not all(isinstance(name, str) and _is_plain(value) for name, value in state.items()):
        raise RequestError(
            f"file is {file}, which holds {_some([str(key) for key in loaded])}; expected tensors by name, alone or "
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


def _identify(file: Path, backbone: State, state: State, layout: foreign.Layout, **given: Any) -> foreign.TimmModel:
    try:
        return foreign.identify(backbone, state, layout, **given)
    except (TypeError, IndexError, ZeroDivisionError) as error:  # such as the width of a tensor without dimensions
        raise RequestError(
            f"file is {file}, whose tensors have shapes of no known model ({first_line(error)}); download it again"
        ) from None


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
    """A pickle's tensors and plain values. Nothing that it names is called, except `argparse.Namespace`."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles in another protocol: they load, or are refused below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise RequestError(
                f"file is {file}, which is damaged or no PyTorch checkpoint: download it again"
            ) from None
        raise RequestError(
            f"file is {file}, a pickle that holds {named[1]}; expected tensors, plain values and argparse.Namespace, "
            f"as anything else could run code (nothing was run): if you trust its author, save its tensors alone, "
            f'torch.save(torch.load("{file.name}", weights_only=False)["model"], "tensors.pth")'
        ) from None
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RequestError(
            f"file is {file}, which is damaged or no PyTorch checkpoint ({reason}): download it again"
        ) from None
    return loaded if isinstance(loaded, Mapping) else {type(loaded).__name__: loaded}


def _check(file: Path, found: foreign.TimmModel, tensors: State, expected: State) -> None:
    """Refuse a checkpoint whose tensors are not exactly the model's."""
    unknown = [name for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    wrong = [
        f"{what} {_some(names)}"
        for what, names in (("unknown keys", unknown), ("missing keys", missing), ("other shapes", shapes))
        if names
    ]
    if wrong:
        arguments = f" with {found.arguments}" if found.arguments else ""
        raise RequestError(
            f"file is {file}, which is not {found.name}{arguments}: {'; '.join(wrong)}; "
            f"expected that model's tensors and no others: give the right --backbone and --backbone-args"
        )


def _write(out: Path, backbone: Backbone, about: Mapping[str, Any], *, as_is: bool) -> None:
    """Write the file, read it back, compare, and only then rename it into place."""
    try:
        with locking.staging(out, print) as folder:
            partial = folder / out.name
            files.save(partial, backbone, about=about, as_is=as_is)
            written = files.load_backbone(partial).state_dict()
            differing = [k for k, v in backbone.model.state_dict().items() if not torch.equal(v, written[k])]
            if differing:
                raise RunError(f"{_some(differing)} did not read back the same from {out}; report the checkpoint")
            partial.replace(out)
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror or error}; expected a file that can be written") from None


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest


def _groups(names: Sequence[str]) -> str:
    """Names grouped by their first part, as in "decoder_blocks.* (12)"."""
    counts = Counter(re.sub(r"\..*", ".*", name) for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
