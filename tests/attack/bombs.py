"""Small files that ask for much: decompression bombs within the pixel limit, and beyond."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from attack import forks, images, watch
from attack.outcome import Outcome
from attack.world import World

PROMISE = "no image file under 1 MB takes more than 1 GiB or 5 s of one core"
SECONDS = 240
MAX_BYTES = 1 << 20


def png(side: int, depth: int, colour: int, channels: int) -> bytes:
    """A black PNG."""
    row = bytes(1 + -(-side * depth * channels // 8))
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    chunks = (struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(side: int, bits: int, kind: int, photometric: int = 1, channels: int = 1, rows: int = 1) -> bytes:
    """A TIFF whose strips are all the same few compressed bytes. `kind`: 1 unsigned, 2 signed, 3 float."""
    strip = zlib.compress(bytes(rows * -(-side * bits * channels // 8)), 9)
    num = -(-side // rows)
    lists = 8 + len(strip) + len(strip) % 2
    body = struct.pack("<2sHI", b"II", 42, lists + 8 * num) + strip + bytes(len(strip) % 2)
    body += struct.pack(f"<{num}I", *[8] * num) + struct.pack(f"<{num}I", *[len(strip)] * num)
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, bits), (259, 3, 1, 8), (262, 3, 1, photometric)]
    tags += [(273, 4, num, lists), (277, 3, 1, channels), (278, 4, 1, rows), (279, 4, num, lists + 4 * num)]
    tags += [(339, 3, 1, kind)]
    return body + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)


def animated_webp(side: int) -> bytes:
    """A canvas of that side, and a frame of one pixel."""
    pixel = saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    canvas = (side - 1).to_bytes(3, "little") * 2
    frame = bytes(12) + (100).to_bytes(3, "little") + b"\0" + pixel
    chunks = [(b"VP8X", b"\x02\0\0\0" + canvas), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(b)) + b + bytes(len(b) % 2) for name, b in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose first AC scan is repeated."""
    data = saved(Image.new("L", (side, side), 99), "JPEG", progressive=True, quality=50)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    return data[: starts[1]] + data[starts[1] : starts[2]] * scans + data[starts[1] :]


def bmp_rle(side: int) -> bytes:
    """A run-length BMP that ends at once."""
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 2, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + 2, 0, 0, 54 + 1024) + info + bytes(1024) + b"\0\x01"


def sgi_rle(side: int) -> bytes:
    """All rows of all channels are the same bytes."""
    row = b"\xff\0" * (side // 127) + bytes((128 + side % 127, 0)) + b"\0"
    head = struct.pack(">HBBHHHHII", 474, 1, 1, 3, side, side, 3, 0, 255).ljust(512, b"\0")
    num = 3 * side
    return head + struct.pack(f">{num}I", *[512 + 8 * num] * num) + struct.pack(f">{num}I", *[len(row)] * num) + row


def tga_rle(side: int) -> bytes:
    """Grey runs of 128 pixels."""
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 11, 0, 0, 0, 0, 0, side, side, 8, 0) + b"\xff\0" * (side * side // 128)


def qoi(side: int) -> bytes:
    """Runs of 62 pixels, in a format that Pillow decodes in Python."""
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfd" * (side * side // 62 + 1) + bytes(7) + b"\x01"


def xpm(side: int) -> bytes:
    """Text of one colour."""
    row = b'"' + b"." * side + b'",\n'
    return b'/* XPM */\nstatic char *x[] = {\n"%d %d 1 1",\n". c #ff0000",\n' % (side, side) + row * side + b"};\n"


def in_icon(inside: bytes) -> bytes:
    """An icon that holds a PNG."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def in_icns(inside: bytes) -> bytes:
    """A Macintosh icon that holds a PNG."""
    return b"icns" + struct.pack(">I", 16 + len(inside)) + b"ic09" + struct.pack(">I", 8 + len(inside)) + inside


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def blank(file_format: str, side: int, mode: str = "RGB", **options: object) -> bytes:
    """One colour, as Pillow writes it."""
    return saved(Image.new(mode, (side, side)), file_format, **options)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG RGB": lambda: png(13_300, 8, 2, 3),
    "PNG RGBA": lambda: png(13_300, 8, 6, 4),
    "PNG 16-bit RGBA": lambda: png(11_000, 16, 6, 4),
    "PNG grey and alpha": lambda: png(13_300, 8, 4, 2),
    "PNG 16-bit grey": lambda: png(13_300, 16, 0, 1),
    "PNG of one bit": lambda: png(13_300, 1, 0, 1),
    "PNG over the limit": lambda: png(25_000, 1, 0, 1),
    "TIFF of floats": lambda: tiff(13_300, 32, 3),
    "TIFF of integers": lambda: tiff(13_300, 32, 2),
    "TIFF of 16 bits": lambda: tiff(13_300, 16, 1),
    "TIFF of one bit": lambda: tiff(13_300, 1, 1),
    "TIFF in one strip": lambda: tiff(13_300, 8, 1, rows=13_300),
    "TIFF CIELAB": lambda: tiff(11_000, 8, 1, photometric=8, channels=3),
    "WebP animation": lambda: animated_webp(13_000),
    "JPEG of many scans": lambda: many_scans(4096, 2500),
    "JPEG": lambda: blank("JPEG", 9000, "L"),
    "JPEG progressive": lambda: blank("JPEG", 9000, progressive=True),
    "JPEG CMYK": lambda: blank("JPEG", 4500, "CMYK"),
    "GIF": lambda: blank("GIF", 13_300, "L"),
    "BMP of runs": lambda: bmp_rle(13_300),
    "SGI of runs": lambda: sgi_rle(13_300),
    "TGA of runs": lambda: tga_rle(8000),
    "QOI of runs": lambda: qoi(7_900),
    "XPM": lambda: xpm(1000),
    "JPEG 2000": lambda: blank("JPEG2000", 5000),
    "AVIF": lambda: blank("AVIF", 4000, speed=10),
    "WebP": lambda: blank("WEBP", 9000, lossless=True, method=0),
    "ICO with a PNG": lambda: in_icon(png(13_300, 8, 2, 3)),
    "ICNS with a PNG": lambda: in_icns(png(13_300, 8, 6, 4)),
}
CASES = 2 * len(BOMBS)


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Make a bomb in another process, and decode it in this one: as a whole in the first round, a crop of it in the second."""
    name = list(BOMBS)[number % len(BOMBS)]
    file = Path("bomb")
    forks.aside(lambda: file.write_bytes(BOMBS[name]()))
    forks.redirect(world.log())
    watch.limit_memory(watch.MEMORY)
    data = file.read_bytes()
    if not 0 < len(data) < MAX_BYTES:
        raise ValueError(f"{name} has {len(data)} bytes")
    faults = images.decode(data, Random(number // len(BOMBS)))
    return Outcome(did=f"{name}, {len(data):,} bytes", faults=[f"{name}: {fault}" for fault in faults])
