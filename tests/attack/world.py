"""What all cases share: pictures, a run, a pack and weights, made once; and the commands on them."""

from __future__ import annotations

import io
import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attack import forks
from conftest import SMALL, UNTRAINED, command_line
from small_study import draw_classes

FEATURES = {key: value for key, value in UNTRAINED.items() if key in ("img_size", "num_workers", "device")}


@dataclass(frozen=True)
class World:
    """Folders that cases read and never write."""

    root: Path
    folder: Path
    """The case's own folder: the only place that it may write to."""
    shared: Path
    """What the module prepared for all of its cases."""

    @property
    def photos(self) -> Path:
        """24 JPEGs of 96 x 80 pixels."""
        return self.root / "photos"

    @property
    def spoilt(self) -> Path:
        """The same with an unreadable one."""
        return self.root / "spoilt"

    @property
    def labelled(self) -> Path:
        """Two classes of bars, 16 x 16 pixels."""
        return self.root / "labelled"

    @property
    def run(self) -> Path:
        """A finished run of 8 steps, with its weights."""
        return self.root / "run"

    @property
    def pack(self) -> Path:
        """A pack of the photos."""
        return self.root / "pack"

    def log(self, name: str = "said") -> Path:
        """Where a command's output goes, outside of what it may write to."""
        return self.folder.with_name(f"{self.folder.name}-{name}")


def words(command: str, data: Path, out: Path, settings: dict[str, Any]) -> list[str]:
    """The arguments of `fastmim` for these settings."""
    return command_line(command, data, out, settings)[3:]


def pretrain(data: Path, out: Path, **settings: Any) -> list[str]:
    """The arguments of a small pre-training."""
    return words("pretrain", data, out, SMALL | settings)


def build(root: Path) -> None:
    """Make the shared folders.

    Raises:
        RuntimeError: a command failed that nothing disturbed.
    """
    world = World(root, root / "build", root)
    world.folder.mkdir(parents=True)
    draw_classes(world.labelled)
    draw_photos(world.photos)
    shutil.copytree(world.photos, world.spoilt)
    (world.spoilt / "99.jpg").write_bytes((world.photos / "00.jpg").read_bytes()[:200])
    commands = {
        "run": pretrain(world.photos, world.run, steps=8),
        "pack": ["pack", str(world.photos), str(world.pack), "--short-side", "64", "--num-workers", "0"],
    }
    for name, arguments in commands.items():
        ended = forks.run(arguments, world.log(name), seconds=300)
        if ended.status:
            raise RuntimeError(f"fastmim {' '.join(arguments)}: {ended.status}, {ended.err}")


def draw_photos(folder: Path) -> None:
    """Smooth colours with noise: encoded as photographs are, and different from each other."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        coarse = generator.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(image) + generator.normal(0, 8, (80, 96, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:02d}.jpg", quality=90)


def tensors(file: Path) -> dict[str, bytes]:
    """The tensors of a safetensors file by name, as dtype, shape and bytes, read without torch."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: f"{facts['dtype']} {facts['shape']} ".encode() + body[slice(*facts["data_offsets"])]
        for name, facts in header.items()
        if name != "__metadata__"
    }


def with_metadata(file: Path, changes: dict[str, Any]) -> bytes:
    """A safetensors file with other metadata; a value of None removes the entry."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    buffer = io.BytesIO()
    buffer.write(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return buffer.getvalue()
