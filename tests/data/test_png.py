"""PNGs inflated by `deflate` have the pixels that Pillow alone gives them, and are refused for Pillow's reasons."""

from __future__ import annotations

import importlib
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fastmim.data import png as module
from fastmim.data.decode import decode_whole
from fastmim.data.greys import Decoding
from fastmim.data.unreadable import BadImage
from pictures import encode, photograph, png

needs_deflate = pytest.mark.skipif(module.deflate is None, reason="needs deflate and kornia-rs (the extra png)")

Chunks = list[tuple[bytes, bytes]]
Stream = Callable[[bytes, random.Random], bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def without_deflate() -> Iterator[None]:
    """As if the package were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "deflate", None)
        importlib.reload(module)
        yield
    importlib.reload(module)


def files() -> dict[str, bytes]:
    """A photograph as a PNG of every mode that Pillow writes."""
    small = photograph().crop((200, 100, 290, 170))
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a camera")
    pictures = {mode: small.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    pictures["I;16"] = Image.fromarray(np.arange(6300, dtype=np.uint16).reshape(70, 90))
    encoded = {mode: encode(picture, "PNG", pnginfo=text, dpi=(72, 72)) for mode, picture in pictures.items()}
    encoded["transparent P"] = encode(pictures["P"], "PNG", transparency=7)
    encoded["transparent RGB"] = encode(pictures["RGB"], "PNG", transparency=small.getpixel((3, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded["turned"] = encode(small, "PNG", exif=exif)
    encoded["animated"] = encode(small, "PNG", save_all=True, append_images=[small.rotate(90)])
    return encoded


def verdict(data: bytes) -> np.ndarray | str:
    """The pixels, or why there are none."""
    try:
        return decode_whole(data, Decoding(levels=(0, 65535)))
    except BadImage as error:
        return str(error)


def same(data: bytes) -> bool:
    """Whether pixels or reasons are those without the package; that the file was inflated here does not matter."""
    found = verdict(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "deflate", None)
        patch.setattr(module, "kornia_rs", None)
        expected = verdict(data)
    if isinstance(found, str) or isinstance(expected, str):
        return isinstance(found, str) and isinstance(expected, str) and found == expected
    return bool(np.array_equal(found, expected))


def split(data: bytes) -> Chunks:
    position, chunks = len(SIGNATURE), []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def joined(chunks: Chunks) -> bytes:
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _flip(data: bytes, generator: random.Random) -> bytes:
    if not data:
        return b"x"
    changed = bytearray(data)
    changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _recompress(change: Callable[[bytes], bytes]) -> Stream:
    return lambda stream, generator: zlib.compress(change(zlib.decompress(stream)))


def _unfinished(stream: bytes, generator: random.Random) -> bytes:
    compressor = zlib.compressobj()
    return compressor.compress(zlib.decompress(stream)) + compressor.flush(zlib.Z_SYNC_FLUSH)


STREAMS: tuple[Stream, ...] = (
    _flip,
    lambda stream, generator: stream[: generator.randrange(len(stream))],
    lambda stream, generator: stream[: -generator.randrange(1, 9)],
    lambda stream, generator: stream[:-4] + bytes(4),
    lambda stream, generator: stream + generator.randbytes(9),
    lambda stream, generator: bytes([generator.randrange(256)]) + stream[1:],
    lambda stream, generator: b"\x18\x19" + stream[2:],
    _recompress(lambda raw: raw + raw),
    _recompress(lambda raw: raw[:-1]),
    _recompress(lambda raw: b"\x05" + raw[1:]),
    _unfinished,
)


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One change to a file: anywhere, in a chunk of any type, in the stream of the pixels, or in the header."""
    way, chunks = generator.randrange(7), split(data)
    index = generator.randrange(len(chunks))
    kind, content = chunks[index]
    if way == 0:
        return data[: generator.randrange(len(data))]
    if way == 1:  # checksums and lengths included
        return _flip(data, generator)
    if way == 2:
        position = data.index(kind) + generator.choice((-4, 0, 4, len(content) + 4))
        return data[:position] + _flip(data[position : position + 4], generator) + data[position + 4 :]
    if way == 3:
        chunks[index] = kind, _flip(content, generator)
    elif way == 4:
        chunks[index : index + 1] = generator.choice(([], [chunks[index]] * 2, [(b"zzZz", b"?"), chunks[index]]))
    elif way == 5:
        changed = generator.choice(STREAMS)(b"".join(part for name, part in chunks if name == b"IDAT"), generator)
        cut = generator.randrange(len(changed) + 1)
        first = next(number for number, chunk in enumerate(chunks) if chunk[0] == b"IDAT")
        rest = [chunk for chunk in chunks[first:] if chunk[0] != b"IDAT"]
        chunks[first:] = [(b"IDAT", changed[:cut]), (b"IDAT", changed[cut:]), *rest]
    else:
        start, values = generator.choice(((0, (89, 91, 0, 60_000)), (4, (69, 71, 1 << 31))))
        header = chunks[0][1]
        chunks[0] = b"IHDR", header[:start] + generator.choice(values).to_bytes(4) + header[start + 4 :]
    return joined(chunks)


@needs_deflate
@pytest.mark.parametrize("kind", files())
def test_pixels_are_pillows(kind: str) -> None:
    data = files()[kind]
    assert module.inflated(data, 1 << 20) != data
    assert same(data)


@needs_deflate
def test_broken_files_have_pillows_verdict() -> None:
    generator, encoded = random.Random(0), list(files().values())
    broken = [mutated(generator.choice(encoded), generator) for _ in range(400)]
    assert [number for number, data in enumerate(broken) if not same(data)] == []
    refused = sum(isinstance(verdict(data), str) for data in broken)
    assert 100 < refused < 300


@needs_deflate
@pytest.mark.parametrize("stream", range(len(STREAMS)))
def test_a_changed_stream_with_right_checksums_has_pillows_verdict(stream: int) -> None:
    chunks = split(files()["RGB"])
    index = next(number for number, chunk in enumerate(chunks) if chunk[0] == b"IDAT")
    chunks[index] = b"IDAT", STREAMS[stream](chunks[index][1], random.Random(stream))
    assert same(joined(chunks))


@needs_deflate
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(60_000, 60_000, colour=2, pixels=bytes(1000)), id="too many pixels"),
        pytest.param(png(9000, 9000, colour=2, pixels=bytes(1000)), id="too many bytes"),
        pytest.param(png(64, 64, pixels=bytes(50_000_000)), id="more than the header says"),
    ],
)
def test_nothing_large_is_inflated(data: bytes) -> None:
    tracemalloc.start()
    module.inflated(data, 1 << 27)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(data) + 100_000


@needs_deflate
def test_greys_and_colours_need_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {kind: data for kind, data in files().items() if kind in ("L", "RGB", "turned")}
    expected = {kind: verdict(data) for kind, data in plain.items()}
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    for kind, data in plain.items():
        np.testing.assert_array_equal(verdict(data), expected[kind])


def test_without_the_package_pillow_inflates(without_deflate: None) -> None:
    assert module.deflate is None
    data = files()["RGB"]
    assert module.inflated(data, 1 << 20) is data
    np.testing.assert_array_equal(decode_whole(data), np.asarray(photograph().crop((200, 100, 290, 170))))
