"""Hostile lists, configs, flags and names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from attack import watch
from attack.odd import NUMBERS, ODD
from attack.outcome import Outcome
from attack.world import FEATURES, World, pretrain, words
from conftest import SMALL

PROMISE = "hostile lists, configs, flags and names: one line, nothing executed or written elsewhere"
CASES = 100
SECONDS = 200

SETTINGS: dict[str, list[str]] = {
    "numbers": [
        "seed",
        "lr",
        "warmup",
        "weight-decay",
        "betas",
        "clip",
        "crop-scale",
        "mask-ratio",
        "encoder-depth",
        "block",
        "max-bad-share",
        "micro-batch",
        "keep-every",
        "save-every",
        "log-every",
        "picture-every",
        "epochs",
    ],
    "texts": [
        "backbone",
        "init",
        "target",
        "masking",
        "decoder",
        "loss",
        "device",
        "precision",
        "trackers",
        "stages",
        "recipe",
        "probe",
        "probe-every",
        "data",
        "out",
        "warmup",
        "num-workers",
        "backbone-args.depth",
        "no-such-flag",
    ],
}


def flags(world: World, random: Random) -> list[str]:
    """One flag of a small pre-training with a value that it should not have."""
    kind = random.choice(list(SETTINGS))
    name, value = random.choice(SETTINGS[kind]), random.choice(NUMBERS if kind == "numbers" else ODD)
    base = {k: v for k, v in (SMALL | {"steps": 1}).items() if name != "epochs" or k != "steps"}
    given = pretrain_with(world, base)
    if name in ("epochs", "steps"):  # 2**63 epochs are a long run, not a fault
        given.append("--dry-run")
    return [*given, f"--{name}={value}".replace("\0", "\\0" if random.random() < 0.5 else "\0")]


def pretrain_with(world: World, settings: dict[str, Any], **paths: Path) -> list[str]:
    """The arguments of a pre-training with these settings and no others."""
    return words("pretrain", paths.get("data", world.photos), paths.get("out", world.folder / "out"), settings)


def lists(world: World, random: Random) -> list[str]:
    """A list of paths and labels, some of them odd."""
    photos = sorted(map(str, world.photos.iterdir()))
    end = random.choice((".txt", ".csv", ".tsv"))
    between = {".txt": "\t", ".csv": ",", ".tsv": "\t"}[end]
    labels = random.random() < 0.5
    rows = []
    for _ in range(random.randint(1, 30)):
        path = random.choice(ODD) if random.random() < 0.3 else random.choice(photos)
        label = random.choice([*NUMBERS, "x" * 140_000, "a b"]) if random.random() < 0.2 else "3"
        rows.append(f"{path}{between}{label}" if labels else path)
    data = "\n".join(rows).encode(errors="surrogatepass")
    for _ in range(random.choice((0, 0, 5))):
        at = random.randrange(len(data) + 1)
        data = data[:at] + random.randbytes(3) + data[at:]
    file = world.folder / f"list{end}"
    file.write_bytes(data)
    return on_data(world, random, file)


def on_data(world: World, random: Random, data: Path) -> list[str]:
    """A command that reads images."""
    out, share = world.folder / "out", random.choice(({}, {"max_bad_share": 0.9}))
    return random.choice(
        [
            pretrain(data, out, steps=2, **share),
            ["pack", str(data), f"{out}/pack", "--num-workers", "0", *(["--max-bad-share", "0.9"] if share else [])],
            words("embed", data, out / "features.npy", FEATURES | {"weights": str(world.run)} | share),
            words("finetune", data, out, tuning() | share),
            ["visualise", str(world.run), "--images", str(data), "--out", f"{out}/drawn.png"],
        ]
    )


def tuning() -> dict[str, Any]:
    """A fine-tuning of one step."""
    kept = ("backbone", "backbone_args", "img_size", "batch_size", "device", "num_workers", "trackers")
    return {key: SMALL[key] for key in kept} | {"weights": "none", "steps": 1}


def configs(world: World, random: Random) -> list[str]:
    """A YAML file, as it should not be."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    texts = [bomb + "lr: *j\n", bomb + "backbone: *j\n", "- 1\n- 2\n", "null\n", "7\n", "lr: [1\n", "lr: 1\nlr: 2\n"]
    texts += ["1: 2\nlr: 1\n", "null: 1\n", "[1, 2]: 3\n", "lr: !!python/object/apply:os.system ['touch pwned']\n"]
    texts += [
        "!!python/object/new:os.system [touch pwned]\n",
        "lr: !!python/name:os.system\n",
        "[" * 100_000,
        "a: " * 5000,
    ]
    texts += [
        "lr: !!binary aGVsbG8=\n",
        "lr: 2001-01-01\n",
        "&a [*a]\n",
        "lr: &a {x: *a}\n",
        "? {a: b}\n: c\n",
        "\ttab: 1\n",
    ]
    texts += [
        f"{name}: {value!r}\n" for name in ("data", "init", "backbone", "backbone_args", "stages") for value in ODD[:9]
    ]
    texts += [
        f"{name.replace('-', '_')}: {v}\n" for name in SETTINGS["numbers"] for v in ("[]", "{}", "nan", ".inf", "x")
    ]
    data = random.choice(texts).encode(errors="surrogatepass")
    data = random.choice([data, data, data, b"\xff\xfe" + data, data + b"\x00", data + b"\x80", data[: len(data) // 2]])
    file = world.folder / "config.yaml"
    file.write_bytes(data)
    command = random.choice(("pretrain", "pretrain", "finetune", "pack", "embed", "probe", "study"))
    return [command, "--config", str(file), "--dry-run"]


def names(world: World, random: Random) -> list[str]:
    """A folder of images whose names are odd; some of them are unreadable, so that their names are told."""
    folder = world.folder / "images" / random.choice(("plain", "[red]", "a\nb", "\x1b[31m"))
    shutil.copytree(world.photos, folder)
    for number, odd in enumerate(random.sample(ODD, 8)):
        name = os.fsencode(odd.replace("\0", "").replace("/", "_").replace("\udcff", "\udc80")[:100])
        target = os.path.join(os.fsencode(folder), name + b"%d.jpg" % number)  # noqa: PTH118
        with open(target, "wb") as file:  # noqa: PTH123 - names that are not UTF-8
            file.write(random.choice((b"", b"\x1b[31m not an image", (world.photos / "01.jpg").read_bytes())))
    return on_data(world, random, folder)


def outs(world: World, random: Random) -> list[str]:
    """A place to write to whose name is odd, or that is something else already."""
    odd = world.folder / "out" / random.choice([text for text in ODD if text and not text.startswith((".", "/"))])
    if len(str(odd)) < 1000:
        odd.parent.mkdir(parents=True, exist_ok=True)
    kind = random.randrange(4)
    if kind == 0 and "\0" not in str(odd) and len(odd.name) < 200 and odd.parent.exists() and "\udcff" not in odd.name:
        random.choice([Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])(odd)
    return random.choice(
        [
            pretrain(world.photos, odd, steps=1),
            ["pack", str(world.photos), str(odd), "--num-workers", "0"],
            words("embed", world.photos, odd.with_name(f"{odd.name}.npy"), FEATURES | {"weights": str(world.run)}),
            words("finetune", world.labelled, odd, tuning()),
            ["visualise", str(world.run), "--out", str(odd)],
            ["export", str(world.run), "--to", "state-dict", "--out", f"{odd}.safetensors"],
            ["export", str(world.run), "--to", "timm", "--out", str(odd)],
        ]
    )


def attempt(world: World, random: Random, number: int) -> Outcome:
    """One odd text."""
    family = (flags, lists, configs, names, outs)[number % 5]
    arguments = family(world, random)
    outcome = watch.command(world, arguments)
    outcome.did = f"{family.__name__}: {outcome.did}"
    if list(world.folder.rglob("pwned")):
        outcome.faults.append("executed: a text was run")
    return outcome
