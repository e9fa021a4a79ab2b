"""Mutated images through the decoder: an array of the right shape, or a bad image."""

from __future__ import annotations

import io
import resource
import struct
import time
from random import Random

import numpy as np
from PIL import Image

from attack import forks, watch
from attack.outcome import Outcome
from attack.world import World

PROMISE = "a damaged image is a bad image: no other error, no hang, no memory taken"
BATCH = 500
CASES = 400
SECONDS = 180
LIMIT_SECONDS = 5.0
LIMIT_BYTES = 1 << 30

SAVED = {  # Pillow's format -> modes and options
    "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})],
    "PNG": [("RGB", {}), ("RGBA", {}), ("L", {}), ("1", {}), ("P", {}), ("I;16", {}), ("LA", {})],
    "GIF": [("P", {}), ("L", {"save_all": True})],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True})],
    "TIFF": [("RGB", {"compression": kind}) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    + [("1", {"compression": "group4"}), ("F", {}), ("I", {}), ("I;16", {}), ("CMYK", {}), ("LAB", {})],
    "JPEG2000": [("RGB", {}), ("L", {"irreversible": True})],
    "AVIF": [("RGB", {}), ("RGBA", {})],
    "BMP": [("RGB", {}), ("L", {}), ("1", {}), ("RGBA", {})],
    "DIB": [("RGB", {})],
    "PCX": [("RGB", {}), ("L", {}), ("1", {}), ("P", {})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {}), ("I", {}), ("F", {})],
    "SGI": [("RGB", {}), ("L", {}), ("RGBA", {})],
    "TGA": [("RGB", {}), ("RGBA", {"compression": "tga_rle"}), ("L", {}), ("P", {})],
    "ICO": [("RGBA", {"sizes": [(32, 32)]}), ("RGB", {"sizes": [(16, 16)], "bitmap_format": "bmp"})],
    "ICNS": [("RGBA", {})],
    "IM": [("RGB", {}), ("L", {}), ("P", {})],
    "MSP": [("1", {})],
    "XBM": [("1", {})],
    "SPIDER": [("F", {})],
    "DDS": [("RGB", {}), ("RGBA", {"pixel_format": "DXT5"}), ("L", {})],
    "BLP": [("P", {})],
    "QOI": [("RGB", {}), ("RGBA", {})],
}


def make_seeds() -> list[tuple[str, bytes]]:
    """Small intact files: those that this Pillow can write, and hand-made ones of formats it only reads."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (6, 8, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse, "RGBA").resize((40, 28), Image.Resampling.BICUBIC)
    seeds = []
    for file_format, variants in SAVED.items():
        for mode, options in variants:
            image = _in_mode(picture, mode)
            buffer = io.BytesIO()
            try:
                image.save(buffer, file_format, **options)
            except (KeyError, OSError, ValueError):  # not in this Pillow
                continue
            seeds.append((f"{file_format} {mode} {options or ''}".strip(), buffer.getvalue()))
    return seeds + _hand_made(seeds)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode in ("F", "I"):
        return picture.convert("L").convert(mode)
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return picture.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else picture.convert(mode)


def _hand_made(seeds: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    pixels = bytes(range(256)) * 4
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 16, 16, 8, 3) + struct.pack(">III", 0, 0, 0) + b"\0\0" + pixels[:768]
    sun = struct.pack(">8I", 0x59A66A95, 16, 16, 24, 768, 1, 0, 0) + pixels[:768]
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                   16", "NAXIS2  =                   16", "END"]
    fits = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + pixels[:256].ljust(2880, b"\0")
    pcx = dict(seeds).get("PCX L", b"")
    dcx = struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx
    xpm = b'/* XPM */\nstatic char *x[] = {\n"4 2 2 1",\n". c #ff0000",\n"# c #00ff00",\n".#.#",\n"#.#.",\n};\n'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(%pipe%touch owned) (w) file\n%%EOF\n"
    iptc = _iptc(eps), _iptc(dict(seeds)["JPEG RGB"])
    orientation = struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x0112, 3, 1, 6) + bytes(4)
    exif = b"\xff\xe1" + struct.pack(">H", len(orientation) + 8) + b"Exif\0\0" + orientation
    jpeg = dict(seeds)["JPEG RGB"]
    more = {"PSD": psd, "SUN": sun, "FITS": fits, "DCX": dcx, "XPM": xpm, "JPEG turned": jpeg[:2] + exif + jpeg[2:]}
    more |= {"EPS": eps, "IPTC with EPS": iptc[0], "IPTC with JPEG": iptc[1], "PDF": b"%PDF-1.4\n%\xe2\xe3\n" + jpeg}
    return list(more.items())


def _iptc(inside: bytes) -> bytes:
    """A container that Pillow opens with any of its plugins, and so an EPS with Ghostscript."""
    facts = {(3, 20): b"\0\x10", (3, 30): b"\0\x10", (3, 60): b"\x01\x01", (3, 65): b"\x01", (3, 120): b"\x05\0"}
    fields = [*facts.items(), ((8, 10), inside)]
    return b"".join(struct.pack(">BBBH", 0x1C, *key, len(value)) + value for key, value in fields)


def mutate(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """One to three of: flipped bits, set bytes, truncation, a splice, a doubled piece, an edited number near the start."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        if len(changed) < 8:
            break
        kind, at = random.randrange(6), random.randrange(len(changed))
        if kind == 0:
            for _ in range(random.randint(1, 8)):
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            other = random.choice(others)
            changed[at:] = other[random.randrange(len(other)) :]
        elif kind == 4:
            piece = changed[at : at + random.randint(1, 64)]
            changed[at:at] = piece * random.randint(1, 8)
        else:
            at = random.randrange(min(len(changed) - 4, 128))
            number = random.choice((0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, random.getrandbits(32)))
            width = random.choice((1, 2, 4))
            changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, random.choice(("big", "little")))
    return bytes(changed)


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Decode BATCH mutated images, in a process of its own."""
    forks.redirect(world.log())  # libtiff writes to the terminal itself
    watch.guard(world.folder / "seen", [world.folder.parent])
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    seeds = make_seeds()
    outcome = Outcome(tries=0, did=f"{BATCH} of {len(seeds)} seeds")
    others = [data for _, data in seeds]
    for _ in range(BATCH):
        name, data = random.choice(seeds)
        mutated = mutate(data, random, others)
        (world.folder / "image").write_bytes(mutated)  # which a crash leaves behind
        outcome.tries += 1
        outcome.faults += [f"{name}, {len(mutated)} bytes: {fault}" for fault in decode(mutated, random)]
    outcome.faults += [f"forbidden: {line}" for line in (world.folder / "seen").read_text().splitlines()]
    return outcome


def decode(data: bytes, random: Random) -> list[str]:
    """Decode a file in both ways of the product, and check what comes of it."""
    from fastmim.data.decode import BadImage, Box, decode_box, decode_whole

    began, before = time.process_time(), peak()
    faults = []
    try:
        if random.random() < 0.5:
            crop = decode_box(data, 16, lambda height, width: Box(0, 0, max(1, height // 2), max(1, width // 2)))
            if tuple(crop.shape) != (3, 16, 16) or str(crop.dtype) != "torch.uint8":
                faults.append(f"a crop of {crop.dtype} {tuple(crop.shape)}")
        else:
            whole = decode_whole(data, short_side=24)
            if whole.dtype != np.uint8 or whole.ndim != 3 or whole.shape[2] not in (1, 3) or 0 in whole.shape:
                faults.append(f"an array of {whole.dtype} {whole.shape}")
    except BadImage as error:
        if "\n" in str(error):
            faults.append(f"a reason of several lines: {str(error)[:200]!r}")
    except Exception as error:
        faults.append(f"traceback: {type(error).__name__}: {error}")
    if (took := time.process_time() - began) > LIMIT_SECONDS:
        faults.append(f"took {took:.1f} s")
    if (grown := peak() - before) > LIMIT_BYTES:
        faults.append(f"took {grown >> 20} MiB")
    return faults


def peak() -> int:
    """The most bytes of memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
