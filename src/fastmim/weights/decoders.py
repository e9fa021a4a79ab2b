"""The decoder and the mask token of a pre-training: in a run's checkpoint, or in a file beside converted weights.

A weights file holds a backbone alone, so that timm loads it strictly. What else a pre-training has learned serves only
to go on with it (`pretrain --init`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastmim.backbone.initial import sincos_table
from fastmim.errors import RequestError, first_line
from fastmim.system.files import exists, is_folder, replacing
from fastmim.system.tensor_files import checksum, save_tensors
from fastmim.training import checkpoint
from fastmim.weights import files
from fastmim.weights.foreign import Layout, State

FORMAT = "fastmim-pretraining-1"
PARTS = {"decoder": "decoder.", "mask token": "mask_token"}
"""The parts of a `MIM` beside its backbone, and the prefix of their tensors' names."""
_NAMES = {
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.head.",
}
_SIMMIM_NAMES = {"decoder.0.": "decoder.head."}


@dataclass(frozen=True)
class Found:
    """What a pre-training has learned beside its backbone."""

    tensors: dict[str, Tensor]
    """Under the names that they have in a `MIM`; empty if there is nothing."""
    targets: tuple[str, ...]
    """Targets, by their names in settings, that the decoder may have learned; empty if its outputs are of none."""
    where: str
    """A description for the user of where they were looked for."""
    names: tuple[str, ...] = ()
    """Their names in another project's checkpoint, if that is where they are from."""


def path_beside(weights: Path) -> Path:
    """The file for the decoder and the mask token of a weights file: `a.pretraining.safetensors` of `a.safetensors`."""
    return weights.with_suffix(".pretraining.safetensors")


def mim_name(name: str, layout: Layout) -> str | None:
    """The name that a tensor of another project's checkpoint has in a `MIM`, or None for all but these two parts.

    SimMIM's mask token has none: it replaces embedded patches, and ours pixels.
    """
    if layout.method == "SimMIM":
        names = _SIMMIM_NAMES
    elif layout.method in ("FastMIM", "MAE"):
        names = _NAMES | {"mask_token": "decoder.mask_token" if layout.method == "MAE" else "mask_token"}
    else:
        return None
    return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), None)


def renamed(state: State, layout: Layout, *, stride: int) -> Found:
    """The decoder and the mask token of another project's checkpoint.

    The outputs of MAE's and FastMIM's pixel decoders are ordered (row, column, colour) within a patch, those of
    SimMIM's and ours (colour, row, column). All HOG outputs are ordered (channel, row, column).

    Args:
        state: The checkpoint.
        layout: Its layout.
        stride: Pixels along a side of a position of the backbone's map.

    Raises:
        RequestError: a tensor repeats a few numbers over more elements than the file holds.
    """
    tensors = {}
    for name, tensor in state.items():
        if (new := mim_name(name, layout)) is not None and tensor.is_floating_point():
            if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
                raise RequestError(
                    f"the checkpoint's {name} {tuple(tensor.shape)} repeats a few numbers; expected a number for each "
                    f"element: save the model's state_dict"
                )
            tensors[new] = tensor.float()
            if new.endswith("mask_token"):
                tensors[new] = tensors[new].flatten()
    if not _has_fixed_positions(state):
        return Found({}, (), "the checkpoint")
    num_pixels = 3 * stride**2
    outputs = tensors.get("decoder.head.weight", torch.empty(0))
    num_outputs = len(outputs) if outputs.ndim else 0
    if num_outputs == num_pixels and layout.method != "SimMIM":
        order = torch.arange(num_pixels).view(stride, stride, 3).permute(2, 0, 1).flatten()
        for name in ("decoder.head.weight", "decoder.head.bias"):
            if name in tensors and tensors[name].shape[:1] == (num_pixels,):
                tensors[name] = tensors[name][order]
    if num_outputs == num_pixels:
        targets: tuple[str, ...] = ("rgb",) if layout.method == "SimMIM" else ("pixels", "rgb")
    else:
        targets = ("hog",) if num_outputs == 27 * (max(stride, 8) // 8) ** 2 else ()
    names = tuple(name for name in state if mim_name(name, layout) in tensors)
    return Found(tensors, targets, "the checkpoint", names)


def note(state: State, layout: Layout) -> str:
    """A note for the user on what cannot be kept of another project's decoder or mask token, or empty."""
    if layout.method == "SimMIM":
        return "SimMIM's mask token replaces embedded patches and ours pixels, so that it is not kept"
    if layout.method == "MAE" and not _has_fixed_positions(state):
        return "the decoder is not kept, as its position embeddings are not the fixed sines and cosines of MAE"
    return ""


def _has_fixed_positions(state: State) -> bool:
    """Whether a decoder's position embeddings, if it has any, are those that MAE's code and ours compute."""
    table = state.get("decoder_pos_embed")
    if table is None:
        return True
    grid = math.isqrt(max(0, table.shape[1] - 1)) if table.ndim == 3 else 0
    if not grid or table.shape[:2] != (1, grid**2 + 1) or table.shape[2] % 4:
        return False
    return torch.allclose(table[0, 1:].float(), sincos_table((grid, grid), table.shape[2]), atol=1e-4)


def flags(found: Found) -> str:
    """The flags of `pretrain` that make a decoder which these tensors fit; empty if there is none."""
    if "decoder.head.weight" not in found.tensors or not found.targets:
        return ""
    weight = found.tensors.get("decoder.embed.weight")
    blocks = {name.split(".")[2] for name in found.tensors if name.startswith("decoder.blocks.")}
    size = "linear" if weight is None or not weight.ndim else f"{len(weight)}x{len(blocks)}"
    words = ["--decoder", size, "--target", found.targets[0]]
    words += ["--masking", "drop"] if "decoder.mask_token" in found.tensors else []
    words += ["--loss", "l1"] if found.targets == ("rgb",) else []
    return " ".join(words)


def write(path: Path, found: Found, backbone: State) -> None:
    """Write the decoder and the mask token that belong to a backbone's weights; the file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    facts = {"format": FORMAT, "targets": json.dumps(found.targets), "backbone": str(checksum(backbone))}
    with replacing(path) as partial:
        save_tensors(partial, found.tensors, facts)


def read(source: str | Path) -> Found:
    """The decoder and the mask token of a run, or of the file beside a weights file; empty if there are none.

    Args:
        source: Run directory or weights file.

    Raises:
        RequestError: the file beside the weights is damaged, or belongs to other weights.
    """
    path = Path(source)
    if is_folder(path):
        return _of_run(path)
    path = path_beside(path)
    if not exists(path):
        return Found({}, (), f"no {path.name} beside it")
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
        found = load_file(path)
        targets = tuple(str(name) for name in json.loads(described.get("targets", "[]")))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise RequestError(
            f"init is {source}, and {path} beside it is damaged ({first_line(error)}); expected what `fastmim convert` "
            f"wrote: convert again, or remove it to start with the encoder alone"
        ) from None
    if described.get("format") != FORMAT or described.get("backbone") != str(checksum(files.read(source)[0])):
        raise RequestError(
            f"init is {source}, and {path} beside it holds the decoder of other weights; expected that of the same "
            f"conversion: convert again, or remove it to start with the encoder alone"
        )
    return Found(found, targets, str(path))


def _of_run(run: Path) -> Found:
    saved, last = checkpoint.newest(run / "checkpoints"), files.read(run)[1].get("steps")
    if saved is None or saved.step != last:
        return Found({}, (), f"no checkpoint of step {last} in {run}")
    config = saved.manifest["config"]
    if "target" not in config:
        return Found({}, (), f"{run} is a fine-tuning run")
    tensors = load_file(saved.path / "model.safetensors")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(tuple(PARTS.values()))}
    return Found(own, (str(config["target"]),), str(saved.path))
