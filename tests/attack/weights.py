"""Weights files with forged metadata and tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from attack import damage, watch
from attack.outcome import Outcome
from attack.texts import tuning
from attack.world import FEATURES, World, pretrain, with_metadata, words

PROMISE = "forged weights files: one line, nothing fetched or run"
CASES = 80
SECONDS = 200

URL = "http://127.0.0.1:9/x"
ARGUMENTS: list[dict[str, Any]] = [
    {"pretrained": True},
    {"pretrained": True, "pretrained_cfg_overlay": {"url": URL}},
    {"pretrained_cfg": {"url": URL, "hf_hub_id": "evil/model"}},
    {"checkpoint_path": "/etc/passwd"},
    {"cache_dir": "/etc"},
    {"depth": 10**6},
    {"depth": 10**9},
    {"depth": -1},
    {"depth": "x"},
    {"embed_dim": 10**7},
    {"embed_dim": 0},
    {"num_heads": 7},
    {"patch_size": 0},
    {"patch_size": [1, 2, 3]},
    {"img_size": 10**9},
    {"img_size": -32},
    {"img_size": []},
    {"in_chans": 10**6},
    {"num_classes": 10**9},
    {"features_only": True},
    {"scriptable": True},
    {"exportable": True},
    {"act_layer": "os.system"},
    {"norm_layer": "__import__('os').system('touch pwned')"},
    {"block_fn": "x"},
    {"weight_init": "x"},
    {"no_such_argument": 1},
]
ARCHITECTURES = [
    "hf-hub:evil/model",
    "hf_hub:evil/model",
    "local-dir:/etc",
    "no_such",
    "",
    "\x1b[31m",
    "[/red]",
    "../x",
]
ARCHITECTURES += [
    "resnet50",
    "vit_giant_patch14_clip_224",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224.x",
    "a\0b",
]


def metadata(file: Path, random: Random) -> bytes:
    """Other facts about the tensors."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    kind = random.randrange(4)
    if kind == 0:
        arguments = json.loads(header["arguments"]) | random.choice(ARGUMENTS)
        return with_metadata(file, {"arguments": json.dumps(arguments)})
    if kind == 1:
        return with_metadata(file, {"architecture": random.choice(ARCHITECTURES)})
    key = random.choice(list(header))
    if kind == 2:
        return with_metadata(
            file, {key: random.choice([None, "", "x", "[" * 100_000, "9" * 5000, "nan", "{", "\x1b[31m"])}
        )
    return with_metadata(file, {key: json.dumps(random.choice(damage.VALUES))})


def layout(file: Path, random: Random) -> bytes:
    """Other names, shapes, types and places of tensors."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = random.choice([key for key in header if key != "__metadata__"])
    facts = header[name]
    kind = random.randrange(7)
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[random.choice(("x", "../x", "__class__", "a.b.c", name.upper()))] = header.pop(name)
    elif kind == 2:
        facts["dtype"] = random.choice(("F64", "F16", "I8", "BOOL", "x", "", None, "F8_E4M3"))
    elif kind == 3:
        facts["shape"] = random.choice(
            ([], [0], [-1], [2**62], [*facts["shape"], 1], facts["shape"][::-1], None, [2.5])
        )
    elif kind == 4:
        facts["data_offsets"] = random.choice(([0, 0], [0, 2**62], [8, 4], [-4, 4], [], [0, 4], None))
    elif kind == 5:
        header = damage.damage_json(header, random)
    else:
        body = random.choice((b"", body[:-1], body + b"x", b"\xff" * len(body)))
    text = json.dumps(header).encode()
    size = random.choice([len(text)] * 8 + [0, 2**63, len(text) + 1])
    return struct.pack("<Q", size) + text + body


def plain(file: Path, random: Random) -> bytes:
    """Damaged bytes."""
    return damage.damage_bytes(file.read_bytes(), random)


def doors(world: World, file: Path) -> dict[str, list[str]]:
    """Every command that takes a weights file."""
    out = world.folder / "out" / "made"
    frozen = FEATURES | {"weights": str(file)}
    return {
        "init": pretrain(world.photos, out, steps=1, init=file),
        "finetune": words("finetune", world.labelled, out, tuning() | {"weights": str(file)}),
        "probe": words("probe", world.labelled, out.with_suffix(".json"), frozen),
        "embed": words("embed", world.photos, out.with_suffix(".npy"), frozen),
        "timm": ["export", str(file), "--to", "timm", "--out", str(out)],
        "state-dict": ["export", str(file), "--to", "state-dict", "--out", f"{out}.safetensors"],
        "convert": ["convert", str(file), "--out", f"{out}.safetensors"],
    }


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Forge a weights file and take it through one door."""
    forge = random.choice([metadata, metadata, metadata, layout, layout, plain])
    file = world.folder / "weights.safetensors"
    file.write_bytes(forge(world.run / "weights.safetensors", random))
    (world.folder / "out").mkdir()
    door = random.choice(list(doors(world, file)))
    outcome = watch.command(world, doors(world, file)[door])
    outcome.did = f"{forge.__name__} through {door}: {outcome.did}"
    if list(world.folder.rglob("pwned")):
        outcome.faults.append("executed: a text was run")
    return outcome
