"""Every kind of file decodes to the upright RGB image that a viewer shows, or to a BadImage with the reason."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from fastmim.data.decode import decode_box, decode_whole
from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.jpeg import jpeg_orientation
from fastmim.data.pillow import image_extensions, only_images
from fastmim.data.pixels import Box
from fastmim.data.unreadable import BadImage
from pictures import encode, patched, photograph, png, psnr

BOX = Box(top=20, left=150, height=300, width=260)
REGION = (150, 20, 410, 320)


def crop(data: bytes | np.ndarray, size: int = 128, box: Box = BOX, decoding: Decoding = PLAIN) -> torch.Tensor:
    return decode_box(data, size, lambda height, width: box, decoding)


def reference(image: Image.Image, size: int = 128) -> Image.Image:
    return image.crop(REGION).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("file_format", "options", "decibels"),
    [
        ("PNG", {}, 60),
        ("BMP", {}, 60),
        ("TIFF", {}, 60),
        ("PPM", {}, 60),
        ("WEBP", {"lossless": True}, 60),
        ("GIF", {}, 35),
        ("JPEG", {}, 38),
        ("JPEG", {"progressive": True}, 38),
        ("JPEG", {"subsampling": 0}, 38),
    ],
)
def test_crops_are_pillows(file_format: str, options: dict[str, object], decibels: float) -> None:
    ours = crop(encode(photograph(), file_format, **options))
    assert ours.shape == (3, 128, 128) and ours.dtype == torch.uint8
    assert psnr(ours, reference(photograph())) > decibels


def test_an_unreduced_jpeg_crop_is_pillows_of_the_same_file() -> None:
    data = encode(photograph())
    assert psnr(crop(data, size=160), reference(Image.open(io.BytesIO(data)), size=160)) > 55


@pytest.mark.parametrize(("size", "factor", "decibels"), [(140, 1, 55), (130, 2, 38), (65, 4, 36), (16, 8, 40)])
def test_jpeg_crops_keep_their_place_at_every_reduction(size: int, factor: int, decibels: float) -> None:
    """Against a full decode, whose box is moved to whole reduced pixels as documented."""
    data = encode(photograph().crop((0, 0, 597, 395)))  # sides that no reduction divides
    box = Box(47, 101, 261, 303)
    left, top, width, height = (factor * round(x / factor) for x in (box.left, box.top, box.width, box.height))
    ours, full = crop(data, size=size, box=box), Image.open(io.BytesIO(data))

    def likeness(right: int, down: int) -> float:
        region = (left + right, top + down, left + right + width, top + down + height)
        return psnr(ours, full.crop(region).resize((size, size), Image.Resampling.BICUBIC))

    assert likeness(0, 0) > decibels
    assert likeness(0, 0) > max(likeness(*shift) for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_grey_stays_grey() -> None:
    grey = photograph().convert("L")
    for file_format in ("JPEG", "PNG"):
        ours = crop(encode(grey, file_format))
        assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2])
        assert psnr(ours, reference(grey)) > 38


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "YCbCr", "LAB"])
def test_other_modes_look_as_pillow_shows_them(mode: str) -> None:
    if mode == "LAB":  # Pillow converts to LAB only through a colour profile
        plain = Image.new("L", (600, 400), 128)
        image = Image.merge("LAB", [photograph().convert("L"), plain, plain])
    else:
        image = photograph().convert(mode)
    data = encode(image, "TIFF")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert psnr(crop(data), reference(expected)) > 50


def test_cmyk_jpeg_and_a_png_named_jpg_go_through_pillow() -> None:
    assert psnr(crop(encode(photograph().convert("CMYK"))), reference(photograph())) > 42
    # Names do not matter: the bytes decide.
    assert psnr(crop(encode(photograph(), "PNG")), reference(photograph())) > 60


def grey_levels(image_format: str, values: np.ndarray, levels: tuple[float, float] | None) -> torch.Tensor:
    return crop(encode(Image.fromarray(values), image_format), decoding=Decoding(levels))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("levels", "factor", "start"), [((0, 65535), 257, 0), ((0, 4080), 16, 0), ((300, 810), 2, 300)]
)
def test_greys_are_mapped_by_the_levels_of_their_source(
    image_format: str, levels: tuple[float, float], factor: int, start: int
) -> None:
    grey = photograph().convert("L")
    values = np.asarray(grey).astype(np.uint16) * factor + start
    assert psnr(grey_levels(image_format, values, levels), reference(grey)) > 55
    # A dark image stays dark: the levels are not its own.
    dark = np.full((400, 600), start + 10 * factor, dtype=np.uint16)
    assert grey_levels(image_format, dark, levels).unique().tolist() == [10]


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_signed_and_float_greys_are_mapped_alike(kind: type) -> None:
    pixels = np.asarray(photograph().convert("L")).astype(np.int64)
    expected = grey_levels("PNG", (pixels * 100).astype(np.uint16), (1000, 20_000))
    assert torch.equal(grey_levels("TIFF", (pixels * 100 - 9000).astype(kind), (-8000, 11_000)), expected)
    assert expected.min() == 0 and expected.max() == 255  # what lies beyond the levels is not wrapped


def test_pfm_is_mapped_like_any_float_and_nan_is_black() -> None:
    """PFM, which Pillow reads as the format "PPM" that also holds 16-bit integers."""
    values = np.asarray(photograph().convert("L")).astype(np.float32) / 100 - 1
    assert torch.equal(grey_levels("PPM", values, (-1, 1.5)), grey_levels("TIFF", values, (-1, 1.5)))
    for value, level in ((np.nan, 0), (np.inf, 255), (-np.inf, 0)):
        assert grey_levels("TIFF", np.full((400, 600), value, np.float32), (-1, 1)).unique().tolist() == [level]


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.uint16])
def test_greys_beyond_8_bits_in_a_source_without_such_are_refused(kind: type) -> None:
    pixels = np.asarray(photograph().convert("L")).astype(kind)
    assert torch.equal(grey_levels("TIFF", pixels, None), crop(encode(photograph().convert("L"), "PNG")))
    with pytest.raises(BadImage, match=r"its greys run from 0 to 4080, .* have 8 bits: .* as in --range 0:65535"):
        grey_levels("TIFF", pixels * kind(16), None)


def test_16_bit_colour_png_is_scaled() -> None:
    """The file is assembled by hand because Pillow cannot write it."""
    values = np.asarray(photograph()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    data = png(600, 400, depth=16, colour=2, pixels=rows)
    assert psnr(crop(data), reference(photograph())) > 60


def test_transparency_is_composited_on_white() -> None:
    image = photograph().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (crop(encode(image, "PNG")) == 255).all()
    image.putalpha(Image.new("L", image.size, 255))
    assert psnr(crop(encode(image, "PNG")), reference(photograph())) > 60
    image.putalpha(Image.new("L", image.size, 127))
    half = Image.blend(Image.new("RGB", image.size, "white"), photograph(), 127 / 255)
    assert psnr(crop(encode(image, "PNG")), reference(half)) > 45


def test_palette_with_transparency() -> None:
    image = Image.new("P", (600, 400), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert crop(encode(image, "PNG"))[:, 0, 0].tolist() == [0, 0, 255]
    assert (crop(encode(image, "PNG", transparency=1)) == 255).all()
    assert (crop(encode(image, "PNG", transparency=bytes([255, 0]))) == 255).all()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    first, second = Image.new("RGB", (600, 400), (200, 30, 30)), Image.new("RGB", (600, 400), (0, 0, 200))
    data = encode(first, file_format, save_all=True, append_images=[second])
    assert (crop(data).float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 6


# How each orientation stores the upright picture (EXIF 2.3, table of tag 0x0112), as Pillow operations.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    operation = STORED[orientation]
    stored = photograph() if operation is None else photograph().transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, file_format, exif=exif.tobytes())
    seen = []
    ours = decode_box(data, 128, lambda height, width: seen.append((height, width)) or BOX)
    assert seen == [(400, 600)]
    assert psnr(ours, reference(photograph())) > 38


def exif_block(order: str, entries: list[tuple[int, int, int]]) -> bytes:
    mark, end = (b"II", "<") if order == "little" else (b"MM", ">")
    body = struct.pack(f"{end}H", len(entries))
    for tag, kind, value in entries:
        field = struct.pack(f"{end}HH", value, 0) if kind == 3 else struct.pack(f"{end}I", value)
        body += struct.pack(f"{end}HHI", tag, kind, 1) + field
    return b"Exif\0\0" + mark + struct.pack(f"{end}HI", 42, 8) + body + bytes(4)


def with_segment(content: bytes) -> bytes:
    jpeg = encode(Image.new("L", (8, 8)))
    return jpeg[:2] + b"\xff\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_found_in_any_byte_order(order: str, kind: int) -> None:
    entries = [(0x010F, 4, 0), (0x0112, kind, 6), (0x0128, 3, 2)]
    assert jpeg_orientation(with_segment(exif_block(order, entries))) == 6


@pytest.mark.parametrize(
    "content",
    [
        exif_block("big", [(0x0112, 3, 9)]),
        exif_block("big", [(0x0128, 3, 6)]),
        exif_block("big", [(0x0112, 3, 6)])[:20],
        b"Exif\0\0garbage",
        b"Exif\0\0",
        b"http://ns.adobe.com/xap/1.0/\0<x/>",
    ],
)
def test_invalid_exif_means_upright(content: bytes) -> None:
    data = with_segment(content)
    assert jpeg_orientation(data) == 1
    assert crop(data, size=8, box=Box(0, 0, 8, 8)).shape == (3, 8, 8)


def test_arrays_are_cropped_directly() -> None:
    pixels = np.asarray(photograph())
    pixels.setflags(write=False)
    assert psnr(crop(pixels), reference(photograph())) > 60
    grey = np.asarray(photograph().convert("L"))
    assert torch.equal(crop(grey), crop(grey[..., None]))


def damaged() -> dict[str, tuple[bytes, str]]:
    jpeg, picture = encode(photograph()), encode(photograph(), "PNG")
    flipped = bytearray(jpeg)
    flipped[53_959] ^= 0x5A
    return {
        "truncated JPEG": (jpeg[: len(jpeg) // 2], "Premature end of JPEG file"),
        "damaged JPEG": (bytes(flipped), "Corrupt JPEG data"),
        "truncated CMYK": (encode(photograph().convert("CMYK"))[:30_000], "truncated"),
        "truncated PNG": (picture[: len(picture) // 2], "truncated"),
        "zero bytes": (b"", "not an image: the file is empty"),
        "HTML": (b"<!DOCTYPE html><html></html>", "not an image: begins with b'<!DOCTYPE html>"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "header only": (jpeg[:200], "."),
    }


@pytest.mark.parametrize("kind", damaged())
def test_corrupted_files_give_the_reason(kind: str) -> None:
    data, reason = damaged()[kind]
    with pytest.raises(BadImage, match=reason) as caught:
        crop(data)
    assert "\n" not in str(caught.value)


def field(record: int, dataset: int, content: bytes) -> bytes:
    """A field of an IPTC file."""
    return bytes((0x1C, record, dataset)) + len(content).to_bytes(2, "big") + content


def eps_in_iptc() -> bytes:
    """An IPTC file whose picture is PostScript, which Pillow gives to Ghostscript."""
    size = [field(3, tag, (9).to_bytes(4, "big")) for tag in (20, 30)]
    header = field(3, 60, b"\x01\x00") + b"".join(size) + field(3, 120, b"\x00\x00\x00\x05")
    return header + field(8, 10, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")


def test_no_picture_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a file nor inside another format, nor where a dataset opens its own files."""
    ran: list[object] = []

    def ghostscript(*args: object, **kwargs: object) -> Image.Image:
        ran.append(args)
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: ghostscript().im)
    Image.open(io.BytesIO(eps_in_iptc())).load()
    assert ran, "Pillow itself would have started it"
    ran.clear()
    before = Image.ID[:]
    for decode in (crop, decode_whole):
        with pytest.raises(BadImage, match="not an image: begins with b'.x1c"):
            decode(eps_in_iptc())
    with only_images(), pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(eps_in_iptc()))
    assert not ran and before == Image.ID and ".iim" not in image_extensions()


def test_damaged_tiffs_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff itself would write to standard error, past Python, what files make it say."""
    data = encode(photograph(), "TIFF", compression="tiff_adobe_deflate")
    damaged = patched(data, (8, b"no deflate"))
    with pytest.raises(BadImage, match="decoder error"):
        crop(damaged)
    samples = patched(data, (data.index(b"\x15\x01\x03\x00\x01\x00\x00\x00") + 8, b"\xc8"))
    with pytest.raises(BadImage, match="a TIFF of 200 channels of 8-bit integers; expected grey, or RGB of 8 or 16"):
        crop(samples)  # Pillow logs that 200 samples are too many
    assert not capfd.readouterr().err
    with pytest.raises(OSError, match="decoder error"):
        Image.open(io.BytesIO(damaged)).load()
    assert "ZIPDecode" in capfd.readouterr().err, "Pillow's own use is as it was"


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_arrays_of_other_kinds_are_refused(array: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"array of .*, not uint8 \(H, W\), \(H, W, 1\) or \(H, W, 3\)"):
        crop(array)


def bombs() -> list[bytes]:
    """Small files whose headers claim 65,000 x 65,000 pixels."""
    jpeg = bytearray(encode(Image.new("L", (8, 8))))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return [bytes(jpeg), png(65_000, 65_000, pixels=bytes(10_000_000))]


@pytest.mark.parametrize("number", [0, 1])
def test_bombs_are_refused_before_they_are_decoded(number: int) -> None:
    data = bombs()[number]
    assert len(data) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="more than the 178,956,970 pixels that are decoded"):
            crop(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_pixel_limit_is_the_callers() -> None:
    for file_format in ("JPEG", "PNG"):
        data = encode(photograph(), file_format)
        assert crop(data, decoding=Decoding(max_pixels=240_000)).shape == (3, 128, 128)
        remedy = "more than the 239,999 pixels that are decoded: allow it with --max-pixels 240000, or remove it"
        with pytest.raises(BadImage, match=remedy):
            crop(data, decoding=Decoding(max_pixels=239_999))


def test_pillows_own_limit_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # at which Pillow would refuse
    assert crop(data).shape == (3, 128, 128)
    assert Image.MAX_IMAGE_PIXELS == 1000


SMALL = photograph().resize((64, 48))


@given(
    data=st.sampled_from([encode(SMALL), encode(SMALL, "PNG"), encode(SMALL, "GIF"), encode(SMALL, "TIFF"), b""]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=4)), max_size=4),
    length=st.integers(0, 10_000),
)
@settings(max_examples=150)
def test_no_bytes_break_it(data: bytes, edits: list[tuple[int, bytes]], length: int) -> None:
    broken = bytearray(data[:length])
    for position, content in edits:
        broken[position : position + len(content)] = content
    with contextlib.suppress(BadImage):
        result = decode_box(bytes(broken), 16, lambda h, w: Box(0, 0, h, w), Decoding(max_pixels=10**6))
        assert result.shape == (3, 16, 16) and result.dtype == torch.uint8


def test_image_extensions() -> None:
    endings = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".ppm"} <= endings
    assert not endings & {".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt", ".wmf"}


@pytest.mark.parametrize("num_channels", [1, 3])
def test_an_image_of_the_very_size_is_copied_as_it_is(num_channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, num_channels), dtype=np.uint8)
    before = array.copy()
    image = decode_box(array, 32, lambda height, width: Box(0, 0, height, width))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.broadcast_to(before, (32, 32, 3)))
    array[:] = 0
    assert np.array_equal(image[0].numpy(), before[..., 0])
