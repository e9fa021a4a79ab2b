"""Writing safetensors files: the same contents give the same bytes, and a disk's errors are OSErrors. Checksums."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors on any device, and metadata, to a safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise OSError(f"{error}: '{path}'") from error
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    share(path)
    if metadata:
        _sort_metadata(path)


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the values of tensors on any device, in the order of their names."""
    found = 0
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8)
        found = zlib.crc32(values.numpy().data, found)
    return found


def share(file: Path) -> None:
    """Give a file the default permissions of new files: safetensors makes its files private."""
    probe = file.with_name(f".{file.name}.mode")  # os.umask would change those of the other threads for a moment
    probe.touch()
    file.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


def _sort_metadata(path: Path) -> None:
    """Put the metadata in the order of its keys: safetensors writes it in an order that differs by process."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:  # escaped otherwise than by safetensors, which no text does so far
            return
        file.seek(8)
        file.write(text.ljust(size))
