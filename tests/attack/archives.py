"""Hostile tar archives as --data."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from attack import watch
from attack.damage import damage_bytes
from attack.odd import ODD
from attack.outcome import Outcome
from attack.texts import on_data
from attack.world import World

PROMISE = "hostile archives: one line, nothing written or read elsewhere, no hang"
CASES = 60
SECONDS = 200


def member(name: str, data: bytes, **more: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def pack(members: list[tuple[tarfile.TarInfo, bytes]], layout: int) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout, errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def names(random: Random, photo: bytes) -> bytes:
    """Names that lead out, and names that terminals obey."""
    chosen = [*random.sample([o for o in ODD if "\udcff" not in o], 6), "../../precious.txt", "/tmp/owned.jpg"]
    members = [member(f"{name}.jpg", random.choice((photo, b"no image"))) for name in chosen]
    return pack([m for m in members if "\0" not in m[0].name], random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))


def kinds(random: Random, photo: bytes) -> bytes:
    """Links, devices, pipes and folders with the names of images."""
    types = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        b"Z",
    )
    members = [member(f"{n}.jpg", b"", type=kind, linkname="/etc/passwd") for n, kind in enumerate(types)]
    return pack([*members, member("good.jpg", photo)], tarfile.GNU_FORMAT)


def lying_sizes(random: Random, photo: bytes) -> bytes:
    """A size that the archive does not hold."""
    data = bytearray(pack([member("a.jpg", photo), member("b.jpg", photo)], tarfile.USTAR_FORMAT))
    size = random.choice(
        [b"77777777777\0", b"\x80" + bytes(3) + b"\xff" * 8, b"-1\0".ljust(12), b"x" * 12, b"\xff" * 12]
    )
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def pax(random: Random, photo: bytes) -> bytes:
    """Extended headers: many records, long names, sizes that lie."""
    records = random.choice(
        [
            {f"k{n}": "v" for n in range(20_000)},
            {"path": random.choice([o for o in ODD if "\udcff" not in o]) + ".jpg"},
            {"path": "x" * 900_000},
            {"size": random.choice(("-1", str(2**63), "x", "9" * 5000))},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**62)},
            {"hdrcharset": "BINARY", "linkpath": "/etc/passwd"},
        ]
    )
    info, data = member("a.jpg", photo)
    info.pax_headers = records
    return pack([(info, data), member("b.jpg", photo)], tarfile.PAX_FORMAT)


def gnu(random: Random, photo: bytes) -> bytes:
    """Long names that are not names, or come alone, or one after another."""
    long = random.choice((b"", b"\0", b"x" * 200_000, b"../../precious.txt\0", b"a\nb.jpg\0"))
    head = [member("././@LongLink", long, type=random.choice((b"L", b"K"))) for _ in range(random.randint(1, 50))]
    return pack([*head, member("a.jpg", photo)][: random.choice((None, -1))], tarfile.GNU_FORMAT)


def damaged(random: Random, photo: bytes) -> bytes:
    """Any of these, damaged."""
    return damage_bytes(random.choice(FAMILIES[:5])(random, photo), random)


def other(random: Random, photo: bytes) -> bytes:
    """No archive, or one in a disguise."""
    plain = pack([member("a.jpg", photo)], tarfile.USTAR_FORMAT)
    return random.choice([b"", b"x", gzip.compress(plain), photo, bytes(1024), plain[:512], plain[:600], plain * 3])


FAMILIES: list[Callable[[Random, bytes], bytes]] = [names, kinds, lying_sizes, pax, gnu, damaged, damaged, other]


def attempt(world: World, random: Random, number: int) -> Outcome:
    """One archive, or several in a pattern."""
    photo = (world.photos / "03.jpg").read_bytes()
    made = []
    for shard in range(random.choice((1, 1, 3))):
        family = random.choice(FAMILIES)
        (world.folder / f"s{shard}.tar").write_bytes(family(random, photo))
        made.append(family.__name__)
    pattern = random.choice(["s0.tar", "s*.tar", "s{0..2}.tar", "s{0..99999}.tar", "s{2..0}.tar", "s{0..0}.tar"])
    if random.random() < 0.05:
        os.mkfifo(world.folder / "s9.tar")
        pattern = "s9.tar"
    outcome = watch.command(world, on_data(world, random, Path(world.folder, pattern)))
    outcome.did = f"{', '.join(made)}: {outcome.did}"
    return outcome
