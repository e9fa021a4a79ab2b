"""Damage to files: random bytes, and JSON whose values are of another kind, size or name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

VALUES: list[Any] = [None, True, 0, -1, 7, 2.5, 1e308, 10**30, "", "x", "../x", "/etc/passwd", [], [1], {}, {"a": "x"}]
VALUES += [float("nan"), float("inf"), "\x1b[31m", "[/red]", "a\0b", "x" * 5000, [[]], {"": None}, 2**63, -(2**63)]


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Flip bits, cut, repeat, blank or empty."""
    kind = random.randrange(6)
    changed = bytearray(data)
    at = random.randrange(len(changed) + 1)
    if kind == 0 and changed:
        for _ in range(random.randint(1, 20)):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = random.randbytes(random.randint(1, 100))
    elif kind == 3:
        changed[at : at + 100] = bytes(min(100, len(changed) - at))
    elif kind == 4:
        changed += changed[-at:]
    else:
        changed.clear()
    return bytes(changed)


def damage_json(content: Any, random: Random) -> Any:
    """Another value, name or order somewhere in a JSON document."""
    if isinstance(content, dict) and content and random.random() < 0.85:
        key = random.choice(list(content))
        kind = random.random()
        if kind < 0.15:
            return {k: v for k, v in content.items() if k != key}
        if kind < 0.25:
            return content | {str(random.choice(VALUES)): random.choice(VALUES)}
        return content | {key: damage_json(content[key], random)}
    if isinstance(content, list) and content and random.random() < 0.7:
        at = random.randrange(len(content))
        return [*content[:at], damage_json(content[at], random), *content[at + 1 :]]
    return random.choice(VALUES)


def damage_text(text: str, random: Random) -> bytes:
    """A JSON text with other values, or no JSON at all."""
    if random.random() < 0.15:
        return random.choice([b"null", b"7", b"[" * 100_000, b"\xff\xfe", b"", b"{", b'{"a": ' * 2000, b"9" * 6000])
    if random.random() < 0.15:
        return damage_bytes(text.encode(), random)
    return json.dumps(damage_json(json.loads(text), random)).encode(errors="surrogatepass")


def replace(path: Path, random: Random) -> str:
    """Put something of another kind in a file's place: nothing, a folder, a link, a pipe; say which."""
    kind = random.choice(
        ("nothing", "a folder", "a link to nothing", "a link to itself", "a pipe", "a link out", "/dev/zero")
    )
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        targets = {"a link to nothing": "no-such", "a link to itself": path.name, "a link out": "../precious.txt"}
        path.symlink_to(targets.get(kind, kind))
    return kind
