"""Atomic, checksummed checkpoints without pickle: model, optimiser, step, and facts about the run.

Randomness and data position are functions of (seed, step), so they need not be saved, and a resumed run is the same
as one that was never interrupted. Layout of `checkpoints/step_000012000/`:

    model.safetensors   the model's state_dict, full tensors
    optim.safetensors   `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`
    manifest.json       format, step, the run's facts, parameter-group scalars, bytes and CRC32 of each file and of the
                        manifest itself

A checkpoint is written to `.tmp_step_N`, the manifest last, flushed to the disk and then renamed. A kill at any moment
leaves every directory named `step_N` complete. Anything else in `checkpoints/`, such as copies under other names or
links to checkpoints on another disk, is never removed.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim.errors import RequestError, RunError
from fastmim.system import files
from fastmim.system.tensor_files import save_tensors
from fastmim.training import optim

FORMAT = 3
"""2: the order of an epoch is a keyed permutation; a run of format 1 would go on with other images.
3: a plain ViT's class token passes through the decoder and its position embedding is fixed; its classifier has a norm
of its own; a run of format 2 would go on as another model."""
NUM_KEPT = 2
_FILES = ("model.safetensors", "optim.safetensors")
FACTS: dict[str, type] = {"config": dict, "num_images": int, "stages": list}
"""What the manifest holds of every run: its settings, the number of training images, the resolution stages."""
_NAME = re.compile(r"step_\d{9,}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match its manifest."""

    path: Path
    step: int
    manifest: dict[str, Any]


@dataclass(frozen=True)
class State:
    """What a checkpoint is to hold."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By file and name, on any device."""
    manifest: dict[str, Any]
    """JSON types; what belongs to the files follows when they are written."""

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())


def collect(step: int, model: nn.Module, optimizer: AdamW, *, about: dict[str, Any]) -> State:
    """The state of a run after `step` optimiser steps, whose tensors are the model's and the optimiser's own.

    Args:
        about: Facts about the run for the manifest (JSON types), at least `FACTS`.
    """
    moments = {
        f"{name}/{key}": value
        for name, state in optim.named_state(model, optimizer).items()
        for key, value in state.items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    facts = {"format": FORMAT, "step": step} | about | {"param_groups": groups}
    tensors = dict(zip(_FILES, (model.state_dict(), moments), strict=True))
    return State(step, tensors, json.loads(json.dumps(facts, default=str)))


def write(root: Path, state: State, *, keep_every: int | None = None) -> Path:
    """Write a checkpoint and read it back, then prune: keep the two newest valid ones and multiples of `keep_every`.

    Damaged checkpoints are renamed to `.damaged_step_N`.

    Args:
        root: The run's `checkpoints` directory.
        state: From `collect`.

    Raises:
        RunError: the disk is full or fails; the previous checkpoint is untouched.
    """
    final, partial = root / f"step_{state.step:09d}", root / f".tmp_step_{state.step:09d}"
    if _read(final):  # saved already, for instance by a regular save right before a signal
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(root)
        if final.is_symlink() or final.exists():
            _set_aside(final)
        partial.mkdir()
        _fill(partial, state)
        partial.rename(final)
        files.fsync(root)
        if _read(final) is None:
            raise OSError("it does not read back as it was written")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"could not save step {state.step} to {final}: {error}; {remedy(root)}") from error
    clean(final, keep_every=keep_every)
    return final


def clean(saved: Path, *, keep_every: int | None = None) -> None:
    """Remove what need not stay beside a valid checkpoint: older ones, see `write`, and unfinished ones."""
    try:
        _remove_unfinished(saved.parent)
        _prune(saved.parent, saved, keep_every)
    except OSError as error:
        warnings.warn(f"could not remove an old checkpoint from {saved.parent}: {error}", stacklevel=3)


def _remove_unfinished(root: Path) -> None:
    for leftover in root.glob(".tmp_step_*"):
        files.remove(leftover)


def _fill(directory: Path, state: State) -> None:
    for name, tensors in state.tensors.items():
        save_tensors(directory / name, tensors)
        files.fsync(directory / name)
    written = {
        name: {"bytes": (directory / name).stat().st_size, "crc32": files.crc32(directory / name)}
        for name in state.tensors
    }
    manifest = state.manifest | {"files": written}
    text = json.dumps(manifest | {"crc32": _checksum(manifest)}, indent=1) + "\n"
    (directory / "manifest.json").write_text(text, encoding="utf-8")
    files.fsync(directory / "manifest.json")
    files.fsync(directory)


def remedy(root: Path) -> str:
    """What is intact after a file could not be written, and what to do."""
    last = newest(root)
    kept = f"the checkpoint of step {last.step} in {last.path} is intact" if last else "there is no earlier checkpoint"
    return f"{kept}: free space or mend the disk, and run the same command to resume"


def newest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose sizes and checksums match; skip damaged ones.

    Raises:
        RequestError: there are only checkpoints of other versions of fastmim.
    """
    found = next((checkpoint for path in _named(root) if (checkpoint := _read(path))), None)
    others = [] if found else [form for path in _named(root) if (form := _format(path)) not in (None, FORMAT)]
    if others:
        raise RequestError(
            f"{root} holds checkpoints of format {others[0]}; expected format {FORMAT}, which this version of fastmim "
            f"reads: go on with the version that began the run (config.yaml names it), or begin anew with --overwrite"
        )
    return found


def _format(path: Path) -> int | None:
    """The format in a checkpoint's manifest, if it has one."""
    try:
        form = json.loads(files.read_regular(path / "manifest.json"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return form if type(form) is int else None


def _read(path: Path) -> Checkpoint | None:
    """Return the checkpoint in a directory, or None if its manifest is not one of ours or its files do not match it."""
    try:
        manifest = json.loads(files.read_regular(path / "manifest.json"))
        step, listed, checksum = manifest["step"], manifest["files"], manifest.pop("crc32", None)
        ours = manifest["format"] == FORMAT and type(step) is int and step == _step(path)
        ours = ours and _has_facts(manifest) and checksum in (None, _checksum(manifest))
        valid = ours and listed.keys() == set(_FILES) and all(_matches(path / name, listed[name]) for name in _FILES)
        return Checkpoint(path, step, manifest) if valid else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whatever the JSON may hold
        return None


def _has_facts(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has the facts of every run, in the types that `write` wrote."""
    typed = all(isinstance(manifest[name], kind) for name, kind in FACTS.items())
    return typed and all(
        set(stage) == {"size", "start", "stop", "accumulation"} and all(type(n) is int for n in stage.values())
        for stage in manifest["stages"]
    )


def _checksum(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest).encode())


def _matches(path: Path, facts: dict[str, int]) -> bool:
    return path.stat().st_size == facts["bytes"] and files.crc32(path) == facts["crc32"]


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: AdamW | None = None) -> None:
    """Load a checkpoint's tensors into a model of the same input size and its optimiser.

    Raises:
        RunError: the files are not safetensors (nothing else is ever loaded).
    """
    model.load_state_dict(_tensors(checkpoint.path / "model.safetensors"))
    if optimizer is not None:
        state: dict[str, dict[str, Tensor]] = {}
        for key, tensor in _tensors(checkpoint.path / "optim.safetensors").items():
            name, _, kind = key.rpartition("/")
            state.setdefault(name, {})[kind] = tensor
        optim.load_named_state(model, optimizer, state)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(
            f"{path} is not a safetensors file ({error}); remove its checkpoint to resume from the one before"
        ) from None


def _named(root: Path) -> list[Path]:
    """Checkpoint directories by their names, newest first; links to directories are followed."""
    paths = root.glob("step_*") if root.is_dir() else ()
    return sorted((path for path in paths if _NAME.fullmatch(path.name) and path.is_dir()), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _prune(root: Path, saved: Path, keep_every: int | None) -> None:
    """Remove what need not stay beside the checkpoint just saved, which has been read back."""
    num_valid = 1
    for path in _named(root):
        if path == saved or path.is_symlink():
            continue
        if num_valid >= NUM_KEPT and _step(path) < _step(saved):
            if keep_every is None or _step(path) % keep_every:
                shutil.rmtree(path)
        elif _read(path):
            num_valid += 1
        else:
            _set_aside(path)


def _set_aside(path: Path) -> None:
    """Rename what is no valid checkpoint but has the name of one."""
    aside = path.with_name(f".damaged_{path.name}")
    files.remove(aside)
    path.rename(aside)
