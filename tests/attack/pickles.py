"""Pickles behind every name that a file may have, through every door that takes a file."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from attack import watch
from attack.outcome import Outcome
from attack.world import FEATURES, World, pretrain, words
from conftest import SMALL

PROMISE = "no pickle is ever executed"
CASES = 60
SECONDS = 200


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path, way: int) -> None:
        self.canary, self.way = canary, way

    def __reduce__(self) -> tuple[Any, ...]:
        if self.way == 0:
            import os

            return os.system, (f"touch {self.canary}",)
        if self.way == 1:
            return exec, (f"open({str(self.canary)!r}, 'w')",)
        return Path.touch, (self.canary,)


def bare(payload: Payload, random: Random) -> bytes:
    """A plain pickle of any protocol."""
    return pickle.dumps(random.choice([payload, {"model": payload}, [payload]]), protocol=random.randint(0, 5))


def in_zip(payload: Payload, random: Random) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", bare(payload, random))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def legacy(payload: Payload, random: Random) -> bytes:
    """As torch.save wrote it before 1.6: several pickles in a row, any of them hostile."""
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts.insert(random.randint(2, 3), bare(payload, random))
    return b"".join(parts)


def in_tar(payload: Payload, random: Random) -> bytes:
    """Older still."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            data = bare(payload, random)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def in_numpy(payload: Payload, random: Random) -> bytes:
    """An array of objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload, None], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def in_safetensors(payload: Payload, random: Random) -> bytes:
    """A header that is a pickle."""
    data = bare(payload, random)
    return struct.pack("<Q", len(data)) + data + data


FORMS: list[Callable[[Payload, Random], bytes]] = [bare, in_zip, legacy, in_tar, in_numpy, in_safetensors]
ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".npy", ".pkl", ".ckpt", "")


def doors(world: World, file: Path, run: Path) -> dict[str, list[str]]:
    """Every command that takes a file; `run` is a run directory with the payload in its files."""
    out = world.folder / "out"
    frozen = FEATURES | {"weights": str(file)}
    tuned = {key: SMALL[key] for key in ("img_size", "batch_size", "device", "num_workers")} | {"steps": 1}
    return {
        "convert": ["convert", str(file), "--out", f"{out}/w.safetensors"],
        "init": pretrain(world.photos, out, init=file),
        "finetune": words("finetune", world.labelled, out, tuned | {"weights": str(file), "trackers": "none"}),
        "probe": words("probe", world.labelled, out / "probe.json", frozen),
        "embed": words("embed", world.photos, out / "features.npy", frozen),
        "export": ["export", str(file), "--to", "timm", "--out", f"{out}/timm"],
        "data": pretrain(file, out),
        "config": ["pretrain", "--config", str(file), "--out", str(out)],
        "visualise": ["visualise", str(run), "--out", f"{out}/drawn.png"],
        "export a run": ["export", str(run), "--to", "state-dict", "--out", f"{out}/w.safetensors"],
        "resume": pretrain(world.photos, out, steps=8),
    }


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Carry one form through one door."""
    canary = world.folder / "out" / "executed"
    form = random.choice(FORMS)
    data = form(Payload(canary, random.randrange(3)), random)
    data = gzip.compress(data) if random.random() < 0.1 else data
    for _ in range(random.choice((0, 0, 0, 4))):  # a damaged one
        at = random.randrange(len(data))
        data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    file = world.folder / f"file{random.choice(ENDINGS)}"
    file.write_bytes(data)
    run = world.folder / "run"
    door = random.choice(list(doors(world, file, run)))
    (world.folder / "out").mkdir()
    spoil(world, world.folder / "out" if door == "resume" else run, data, random)
    outcome = watch.command(world, doors(world, file, run)[door])
    outcome.did = f"{form.__name__} as {file.name} through {door}: {outcome.did}"
    if canary.exists():
        outcome.faults.append("executed: the pickle ran")
    return outcome


def spoil(world: World, run: Path, data: bytes, random: Random) -> None:
    """Copy a run, and put the payload in place of some of its files, with the checksums that it should have."""
    shutil.copytree(world.run, run, dirs_exist_ok=True)
    (run / "weights.safetensors").write_bytes(data)
    for folder in (run / "checkpoints").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in random.sample(["model.safetensors", "optim.safetensors"], random.randint(1, 2)):
            (folder / name).write_bytes(data)
            manifest["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.jsonl").write_bytes(data)
