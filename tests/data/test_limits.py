"""What decoding one image may cost: small files that claim to be huge, or to be decoded at great length, are refused."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, Jpeg2KImagePlugin, PngImagePlugin, TiffImagePlugin

from fastmim.data.decode import decode_box, decode_whole
from fastmim.data.greys import Decoding
from fastmim.data.limits import MAX_MEMORY, MAX_PIXELS, RESAMPLED
from fastmim.data.pixels import Box
from fastmim.data.unreadable import BadImage
from pictures import encode, patched, photograph, png

SMALL = photograph().resize((60, 40))
SIDE = 13_000  # within the limit in pixels


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def jpeg(*, side: int = SIDE, **options: object) -> bytes:
    """A JPEG whose header claims another size."""
    data = encode(options.pop("image", SMALL), **options)  # type: ignore[arg-type]
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, (frame + 5, struct.pack(">HH", side, side)))


def webp() -> bytes:
    """An animation with a larger canvas."""
    data = encode(SMALL, "WEBP", save_all=True, append_images=[photograph().resize((60, 40)).rotate(90)])
    return patched(data, (24, (SIDE - 1).to_bytes(3, "little") * 2))


def avif() -> bytes:
    data = encode(SMALL, "AVIF")
    return patched(data, (data.index(b"ispe") + 8, struct.pack(">II", SIDE, SIDE)))


def jpeg_2000(side: int = SIDE, tile: int = SIDE) -> bytes:
    data = encode(SMALL, "JPEG2000", no_jp2=True)
    return patched(data, (8, struct.pack(">IIIIII", side, side, 0, 0, tile, tile)))


def tiff(
    bits: int, *, samples: int = 1, rows_per_strip: int = SIDE, orientation: int = 1, compression: int = 8
) -> bytes:
    """A TIFF with one empty strip."""
    sample_format = 3 if bits == 32 else 1
    kind = 2 if samples == 3 else 1
    entries = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, bits), (259, 3, compression), (262, 3, kind), (273, 4, 8)]
    entries += [
        (274, 3, orientation),
        (277, 3, samples),
        (278, 4, rows_per_strip),
        (279, 4, 8),
        (339, 3, sample_format),
    ]
    directory = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in entries)
    return b"II*\0\x10\0\0\0" + bytes(8) + struct.pack("<H", len(entries)) + directory + bytes(4)


def bmp_rle() -> bytes:
    data = encode(SMALL.convert("P"), "BMP")
    return patched(data, (18, struct.pack("<II", SIDE, SIDE)), (30, struct.pack("<I", 1)))


def fits_gzip() -> bytes:
    table = {"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "PCOUNT": 0, "GCOUNT": 1}
    table |= {"ZIMAGE": "T", "ZCMPTYPE": "'GZIP_1  '", "ZBITPIX": 8, "ZNAXIS": 2, "ZNAXIS1": SIDE, "ZNAXIS2": SIDE}

    def unit(cards: dict[str, object]) -> bytes:
        text = "".join(f"{key:8}= {value}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
        return text.ljust(-(-len(text) // 2880) * 2880).encode()

    return unit({"SIMPLE": "T", "BITPIX": 8, "NAXIS": 0}) + unit(table) + zlib.compress(bytes(99), wbits=31)


def icon() -> bytes:
    """An icon whose picture is a PNG larger than any icon."""
    inside = png(3000, 3000, pixels=bytes(3001 * 3000))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


HUGE: dict[str, Callable[[], bytes]] = {
    "progressive JPEG": lambda: jpeg(progressive=True, subsampling=0),
    "progressive CMYK JPEG": lambda: jpeg(progressive=True, image=SMALL.convert("CMYK")),
    "animated WebP": webp,
    "AVIF": avif,
    "JPEG 2000": lambda: jpeg_2000(8000, 8000),
    "JPEG 2000 of many tiles": lambda: jpeg_2000(10_000, 32),
    "PNG, RGB": lambda: png(SIDE, SIDE, colour=2),
    "PNG, 16-bit RGBA": lambda: png(SIDE, SIDE, depth=16, colour=6),
    "PNG, 16-bit grey and alpha": lambda: png(SIDE, SIDE, depth=16, colour=4),
    "TIFF, float": lambda: tiff(32),
    "TIFF, RGB": lambda: tiff(8, samples=3),
    "TIFF, upside down": lambda: tiff(32, orientation=3, rows_per_strip=1),
    "TGA": lambda: patched(encode(SMALL, "TGA"), (12, struct.pack("<HH", SIDE, SIDE))),
}


@pytest.mark.parametrize("kind", HUGE)
def test_what_takes_too_much_memory_is_refused_before_it_is_decoded(kind: str) -> None:
    data = HUGE[kind]()
    for decode in (lambda: decode_box(data, 16, whole), lambda: decode_whole(data)):
        start = time.process_time()
        with pytest.raises(BadImage, match=r"decoding it takes [\d,]+ MB of memory, more than 900 MB"):
            decode()
        assert time.process_time() - start < 1


LONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "BMP, run lengths": (bmp_rle, "BMP"),
    "FITS, gzip": (fits_gzip, "FITS"),
    "QOI": (lambda: b"qoif" + struct.pack(">IIBB", SIDE, SIDE, 3, 0) + bytes(99), "QOI"),
    "PPM, plain": (lambda: b"P3 13000 13000 255 " + b"0 " * 99, "PPM"),
    "PPM, plain, a long file": (lambda: b"P1 3000 3000 " + b"0  " * 4_000_000, "PPM"),
}


@pytest.mark.parametrize("kind", LONG)
def test_what_pillow_decodes_in_python_must_be_small(kind: str) -> None:
    make, name = LONG[kind]
    with pytest.raises(BadImage, match=f"more than 10,000,000 pixels or bytes take too long to decode as {name}"):
        decode_box(make(), 16, whole)


def test_a_jpeg_2000_of_many_samples_takes_too_long() -> None:
    with pytest.raises(BadImage, match="more than 400,000,000 samples take too long to decode as JPEG2000"):
        decode_whole(jpeg_2000(11_800, 1024))


def test_an_icon_holds_no_large_picture() -> None:
    with pytest.raises(BadImage, match="more than the 4,194,304 pixels that are decoded"):
        decode_box(icon(), 16, whole)


def with_scans(num: int, *, comment: bytes = b"", side: int = SIDE, mode: str = "L") -> bytes:
    """A progressive JPEG whose last scan is repeated, after a comment."""
    data = jpeg(side=side, image=SMALL.convert(mode), progressive=True)
    last = data.rindex(b"\xff\xda")
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    return data[:-2] + (segment + data[last:-2]) * num + data[-2:]


@pytest.mark.parametrize("comment", [b"", b"the end? \xff\xd9"])
def test_scans_without_end_are_refused(comment: bytes) -> None:
    with pytest.raises(BadImage, match=r"24 or more scans of 169,000,000 pixels take too long to decode"):
        decode_box(with_scans(100, comment=comment), 16, whole)
    data = with_scans(900, comment=comment, side=4000)
    assert len(data) < 400_000
    with pytest.raises(BadImage, match=r"251 or more scans of 16,000,000 pixels"):
        decode_whole(data)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("inserted", [b"\xff\x01", b"\xff\xd3\xff", b"rubbish"])
def test_no_header_hides_the_scans(inserted: bytes, mode: str) -> None:
    """libjpeg passes over markers without a segment, padding, and what is no marker; Pillow not over all of it."""
    data = with_scans(300, mode=mode)
    frame = data.index(b"\xff\xc2")
    with pytest.raises(BadImage, match="scans of 169,000,000 pixels take too long to decode|not an image"):
        decode_whole(data[:frame] + inserted + data[frame:])


def test_a_jpeg_in_a_texture_has_few_scans() -> None:
    texture = b"BLP1" + struct.pack("<IIIIII", 0, 8, 2048, 2048, 5, 0) + bytes(128 + 4) + b"\xff\xda" * 1000
    with pytest.raises(BadImage, match="1,000 or more scans of 4,194,304 pixels"):
        decode_whole(texture)


def test_what_follows_a_progressive_jpeg_is_not_counted() -> None:
    """Phones append a video, which may hold anything."""
    data = encode(photograph(), progressive=True)
    assert np.array_equal(decode_whole(data + b"\xff\xda" * 100_000), decode_whole(data))


USUAL: dict[str, Callable[[], bytes]] = {
    "JPEG 2000 in tiles": lambda: jpeg_2000(11_000, 1024),
    "PNG, 16-bit grey": lambda: png(SIDE, SIDE, depth=16),
    "PNG, RGB": lambda: png(11_000, 11_000, colour=2),
    "TIFF, one strip": lambda: tiff(8),
}


@pytest.mark.parametrize("kind", USUAL)
def test_large_images_of_a_usual_kind_reach_their_decoder(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise OSError(f"{image.width} pixels to a row")

    for plugin in (Jpeg2KImagePlugin.Jpeg2KImageFile, PngImagePlugin.PngImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(plugin, "load", load)
    with pytest.raises(BadImage, match=r"1[13]000 pixels to a row"):
        decode_whole(USUAL[kind]())


def test_any_grey_image_of_the_most_pixels_is_within_the_limits() -> None:
    assert RESAMPLED * MAX_PIXELS < MAX_MEMORY


@pytest.mark.parametrize("size", [(29_700, 20_990), (13_000, 13_000)])
def test_the_message_names_the_limit_that_is_enough(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of 623 million pixels; 169 million, which take too much memory only."""

    def load(image: Image.Image) -> None:
        raise OSError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    data, decoding = png(*size, colour=2), Decoding()
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            decode_whole(data, decoding)
        if str(caught.value) == "decoded":
            break
        remedy = re.search(r": allow it with --max-pixels (\d+), or remove it$", str(caught.value))
        assert remedy
        decoding = Decoding(max_pixels=int(remedy[1]))
    with pytest.raises(BadImage, match="^decoded$"):
        decode_whole(data, decoding)
    assert decoding.max_pixels <= max(size[0] * size[1], MAX_PIXELS + 1)


def test_more_pixels_may_have_more_scans_and_samples() -> None:
    more = Decoding(max_pixels=2 * MAX_PIXELS)
    with pytest.raises(BadImage, match="48 or more scans of 169,000,000 pixels take too long to decode"):
        decode_box(with_scans(100), 16, whole, more)
    with pytest.raises(BadImage, match="more than 800,000,000 samples take too long to decode as JPEG2000"):
        decode_whole(jpeg_2000(16_400, 1024), more)


MODES = {"1": "PNG", "L": "PNG", "RGB": "PNG", "RGBA": "PNG", "LA": "PNG", "I;16": "PNG", "F": "TIFF", "CMYK": "TIFF"}


MEASURED = """
import sys
from pathlib import Path
from fastmim.data.decode import decode_box, decode_whole
from fastmim.data.pixels import Box

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    box = lambda height, width: Box(0, 0, height, width)
    for decode in (lambda: decode_box(data, 64, box), lambda: decode_whole(data)):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = memory("VmRSS")
        decode()
        print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of the peak")
def test_the_memory_taken_is_what_the_limits_assume(tmp_path: Path) -> None:
    """7 bytes a pixel at most, where decoding, cropping and converting whole images took up to 30.

    The extra `png` holds a PNG of this size inflated, and twice while it is written anew (`data.png`). In a process of
    its own, which has little memory to use again without taking any.
    """
    num_pixels, limits = 2000**2, {}
    for mode, kind in MODES.items():
        file = tmp_path / re.sub(r"\W", "", mode)
        image = Image.new(mode, (2000, 2000))
        file.write_bytes(encode(image, kind, **{"compression": "tiff_lzw"} if kind == "TIFF" else {}))
        inflated = 2 * len(image.tobytes()) if kind == "PNG" and importlib.util.find_spec("deflate") else 0
        limits[str(file)] = 7 * num_pixels + inflated + 40_000_000
    script = [sys.executable, "-c", MEASURED, *limits]
    taken = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    for index, (file, limit) in enumerate(limits.items()):
        assert max(map(int, taken[2 * index : 2 * index + 2])) < limit, file
