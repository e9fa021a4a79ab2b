"""Atomic, checksummed checkpoints without pickle: model, optimiser and step, and nothing else.

Randomness and data position are functions of (seed, step), so they need not be saved, and a resumed run is the same
as one that was never interrupted. Layout of `checkpoints/step_000012000/`:

    model.safetensors   the model's state_dict, full tensors
    optim.safetensors   `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`
    manifest.json       format, step, the run's facts, parameter-group scalars, bytes and CRC32 of each file

A checkpoint is written to `.tmp_step_N`, the manifest last, flushed to the disk and then renamed. A kill at any moment
leaves every directory named `step_N` complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim.errors import RunError
from fastmim.system import files
from fastmim.training import optim

FORMAT = 1
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match its manifest."""

    path: Path
    step: int
    manifest: dict[str, Any]


def save(
    root: Path,
    step: int,
    model: nn.Module,
    optimizer: AdamW,
    *,
    about: dict[str, Any],
    keep_every: int | None = None,
) -> Path:
    """Write a checkpoint, then prune: keep the last two and every multiple of `keep_every`.

    Args:
        root: The run's `checkpoints` directory.
        step: Number of optimiser steps made.
        about: Facts about the run for the manifest (JSON types).

    Raises:
        RunError: the disk is full or fails; the previous checkpoint is untouched.
    """
    final, partial = root / f"step_{step:09d}", root / f".tmp_step_{step:09d}"
    if _read(final):  # saved already, for instance by a regular save right before a signal
        return final
    try:
        shutil.rmtree(final, ignore_errors=True)  # damaged, and skipped when the run resumed
        for leftover in root.glob(".tmp_step_*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _write(partial, step, model, optimizer, about)
        partial.rename(final)
        files.fsync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        intact = newest(root)
        keeping = (
            f"the checkpoint of step {intact.step} in {intact.path} is intact"
            if intact
            else "there is no earlier checkpoint"
        )
        raise RunError(
            f"could not save step {step} to {final}: {error}; {keeping}; free space and run the same command to resume"
        ) from error
    _prune(root, keep_every)
    return final


def _write(directory: Path, step: int, model: nn.Module, optimizer: AdamW, about: dict[str, Any]) -> None:
    moments = {
        f"{name}/{key}": value
        for name, state in optim.named_state(model, optimizer).items()
        for key, value in state.items()
    }
    contents = {"model.safetensors": model.state_dict(), "optim.safetensors": moments}
    for name, tensors in contents.items():
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, directory / name)
        files.fsync(directory / name)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    written = {
        name: {"bytes": (directory / name).stat().st_size, "crc32": files.crc32(directory / name)} for name in contents
    }
    manifest = {"format": FORMAT, "step": step} | about | {"param_groups": groups, "files": written}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str) + "\n")
    files.fsync(directory / "manifest.json")
    files.fsync(directory)


def newest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose sizes and checksums match; skip damaged ones."""
    return next((checkpoint for path in _all(root) if (checkpoint := _read(path))), None)


def _read(path: Path) -> Checkpoint | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        listed = manifest["files"].items()
        whole = all((path / n).stat().st_size == f["bytes"] and files.crc32(path / n) == f["crc32"] for n, f in listed)
        return Checkpoint(path, manifest["step"], manifest) if whole and manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError):
        return None


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


def _all(root: Path) -> Iterator[Path]:
    """Checkpoint directories, newest first."""
    return iter(sorted(root.glob("step_*"), reverse=True)) if root.is_dir() else iter(())


def _prune(root: Path, keep_every: int | None) -> None:
    for path in list(_all(root))[KEPT:]:
        if keep_every is None or int(path.name.removeprefix("step_")) % keep_every:
            shutil.rmtree(path)
