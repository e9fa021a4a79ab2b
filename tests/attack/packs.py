"""Damaged and forged packs, and unfinished ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np

from attack import damage, watch
from attack.outcome import Outcome
from attack.texts import on_data
from attack.world import World

PROMISE = "damaged packs: one line; --verify finds what is damaged"
CASES = 60
SECONDS = 200


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Damage a pack, then read it, verify it, or pack it again."""
    pack = world.folder / ("out/pack" if random.random() < 0.2 else "pack")
    shutil.copytree(world.pack, pack)
    path = random.choice([p for p in sorted(pack.iterdir()) if p.is_file()])
    kind = random.choice(("bytes", "bytes", "forged", "forged", "replaced"))
    done = ""
    if kind == "forged" and path.name == "manifest.json":
        path.write_bytes(damage.damage_text(path.read_text(), random))
    elif kind == "forged" and path.name == "index.npy":
        rows = np.load(path)
        rows[random.choice(rows.dtype.names)][random.randrange(len(rows))] = random.choice((-1, 0, 2**31 - 1, 10**6))
        np.save(path, rows)
    elif kind == "replaced":
        done = damage.replace(path, random)
    else:
        path.write_bytes(damage.damage_bytes(path.read_bytes(), random))
    before = {p.name: p.read_bytes() for p in pack.iterdir() if p.is_file() and not p.is_symlink()}
    verifying = random.random() < 0.3
    arguments = ["pack", "--verify", str(pack)] if verifying else on_data(world, random, pack)
    outcome = watch.command(world, arguments)
    outcome.did = f"{path.name} {kind} {done}: {outcome.did}"
    whole = {p.name: p.read_bytes() for p in world.pack.iterdir()}
    said = Path(f"{world.log()}.out").read_text()
    if verifying and "match their checksums" in said and not _same(before, whole):
        outcome.faults.append(f"--verify found nothing wrong with {path.name}")
    return outcome


def _same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """But for the facts that no image depends on."""

    def facts(files: dict[str, bytes]) -> tuple[object, ...]:
        manifest = json.loads(files["manifest.json"])
        return tuple(files[name] for name in sorted(files) if name.endswith((".bin", ".npy"))), manifest["num_images"]

    return facts(one) == facts(other)
