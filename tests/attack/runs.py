"""Damaged and forged run directories: resumed, exported, drawn, fine-tuned from."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from random import Random

from attack import damage, kills, watch
from attack.outcome import Outcome
from attack.texts import tuning
from attack.world import FEATURES, World, pretrain, words

PROMISE = "damaged run directories: one line, or a resumed run with the same bits"
CASES = 100
SECONDS = 200
KEPT = ("config.yaml", "metrics.jsonl", "checkpoints", "weights.safetensors", "samples", "bad_images.txt", ".lock")


def doors(world: World, run: Path) -> dict[str, list[str]]:
    """Every command that takes a run."""
    out = world.folder / "out" / "made"
    return {
        "resume": pretrain(world.photos, run, steps=8),
        "resume by out alone": ["pretrain", "--out", str(run)],
        "resume from its config": ["pretrain", "--config", f"{run}/config.yaml", "--out", str(run)],
        "overwrite": [*pretrain(world.photos, run, steps=1), "--overwrite"],
        "init": pretrain(world.photos, out, steps=1, init=run),
        "finetune": words("finetune", world.labelled, out, tuning() | {"weights": str(run)}),
        "embed": words("embed", world.photos, out.with_suffix(".npy"), FEATURES | {"weights": str(run)}),
        "export": ["export", str(run), "--to", "timm", "--out", str(out)],
        "visualise": ["visualise", str(run), "--images", str(world.photos), "--out", f"{out}.png"],
    }


def spoil(run: Path, random: Random) -> str:
    """Damage one file, or forge it so that its checksums are right; say what was done."""
    saved = sorted((run / "checkpoints").iterdir())
    inner = [saved[-1] / name for name in ("manifest.json", "model.safetensors", "optim.safetensors")]
    path = random.choice([*(run / name for name in KEPT), *inner, *inner, *saved])
    kind = random.choice(("bytes", "bytes", "forged", "forged", "replaced"))
    if kind == "replaced" or not path.is_file():
        return f"{path.name} replaced by {damage.replace(path, random)}"
    if kind == "bytes":
        path.write_bytes(damage.damage_bytes(path.read_bytes(), random))
        return f"{path.name} damaged"
    if path.name == "manifest.json":
        path.write_bytes(damage.damage_text(path.read_text(), random))
    elif path.name == "metrics.jsonl":
        lines = path.read_text().splitlines()
        lines.insert(random.randrange(len(lines)), damage.damage_text(lines[-1], random).decode(errors="replace"))
        path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    elif path.name == "config.yaml":
        lines = path.read_text().splitlines()
        at = random.randrange(len(lines))
        lines[at : at + 1] = random.choice(
            ([], [lines[at].partition(":")[0] + f": {random.choice(damage.VALUES)!r}"], ["7"])
        )
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(damage.damage_bytes(path.read_bytes(), random))
        _forge(path)
    return f"{path.name} forged"


def _forge(path: Path) -> None:
    """Give the manifest the checksum of a changed file."""
    manifest_path = path.with_name("manifest.json")
    if manifest_path.exists():
        manifest = json.loads(manifest_path.read_text())
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
        manifest_path.write_text(json.dumps(manifest))


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Damage a run of which the last checkpoint or the weights may be missing, and use it."""
    run = world.folder / "out" / "run"
    shutil.copytree(world.run, run)
    (run / "bad_images.txt").write_text("x.jpg\tbroken\n")
    (run / "samples").mkdir(exist_ok=True)
    unfinished = random.random() < 0.5
    if unfinished:
        (run / "weights.safetensors").unlink()
        shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    done = spoil(run, random)
    # A pipe as --config is for the user to write to.
    possible = [
        d for d in doors(world, run) if done != "config.yaml replaced by a pipe" or d != "resume from its config"
    ]
    door = random.choice(possible)
    outcome = watch.command(world, doors(world, run)[door])
    outcome.did = f"{done}{', unfinished' if unfinished else ''}, {door}: {outcome.did}"
    finished = (run / "weights.safetensors").is_file() and "done" in Path(f"{world.log()}.out").read_text()
    if door == "resume" and finished and "forged" not in done:
        outcome.faults += kills.differences(world.run, run)
    return outcome
