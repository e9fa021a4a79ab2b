"""How `fastmim pack` stores an image."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from fastmim.data.decode import decode_whole
from fastmim.data.packs.shrinking import make_small
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError
from packs import pack
from pictures import encode, photograph, psnr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_stored_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph().resize((300, 200)), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    pixels = decode_whole(data, short_side=96)
    assert pixels.shape == ((96, 144, 3) if orientation < 5 else (144, 96, 3))
    wanted = upright.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC)
    assert psnr(Image.fromarray(pixels), wanted) > 37  # libjpeg upsamples chroma in two ways
    content, shape = make_small(data, codec="jpeg", short_side=96, quality=95)
    assert shape == pixels.shape and psnr(Image.fromarray(decode_whole(content)), Image.fromarray(pixels)) > 37


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_large_jpegs_are_shrunk_by_the_decoder_and_stay_close(scale: int) -> None:
    picture = photograph().resize((128 * scale * 3 // 2 + 5, 128 * scale + 3), Image.Resampling.BICUBIC)
    pixels = decode_whole(encode(picture), short_side=64)
    assert pixels.shape[0] == 64
    assert psnr(Image.fromarray(pixels), picture.resize((pixels.shape[1], 64), Image.Resampling.BICUBIC)) > 33


def test_a_small_jpeg_is_kept_unchanged() -> None:
    small = encode(photograph().resize((80, 64)), quality=70)
    assert make_small(small, codec="jpeg", short_side=64) == (small, (64, 80, 3))
    assert make_small(small, codec="jpeg", short_side=63)[0] != small
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encode(photograph().resize((80, 64)), exif=exif)
    assert make_small(turned, codec="jpeg", short_side=64)[0] != turned


def test_jpeg_keeps_colour_at_full_resolution_and_raw_keeps_everything() -> None:
    png = encode(photograph().resize((90, 60)), "PNG")
    content, shape = make_small(png, codec="jpeg", short_side=64)
    assert simplejpeg.decode_jpeg_header(content) == (60, 90, "YCbCr", "444") and shape == (60, 90, 3)
    content, shape = make_small(png, codec="raw", short_side=64)
    assert np.array_equal(np.frombuffer(content, np.uint8).reshape(shape), np.asarray(photograph().resize((90, 60))))
    grey = encode(photograph().convert("L").resize((90, 60)), "PNG")
    assert make_small(grey, codec="raw", short_side=64)[1] == (60, 90, 1)
    assert simplejpeg.decode_jpeg_header(make_small(grey, codec="jpeg", short_side=64)[0])[2] == "Gray"
    turned = np.asarray(photograph())[::-1, ::-1]  # neither writable nor contiguous
    assert make_small(turned, codec="raw", short_side=64)[1] == (64, 96, 3)
    for short_side in (64, 1000):  # shrunk, and at its own size
        content, shape = make_small(turned, codec="jpeg", short_side=short_side, quality=95)
        encoded, pixels = decode_whole(content), decode_whole(turned, short_side=short_side)
        assert encoded.shape == shape and psnr(Image.fromarray(encoded), Image.fromarray(pixels)) > 35


def test_an_image_too_long_for_a_jpeg_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="70000 x 4 cannot be a JPEG"):
        make_small(np.zeros((4, 70_000), np.uint8), codec="jpeg", short_side=64)


def test_the_quality_of_jpegs_is_chosen(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for quality in (None, 95):
        out = tmp_path / f"packed-{quality}"
        pack(folder, out, codec="jpeg", dry_run=True, **({"quality": quality} if quality else {}))
        assert f"pack      jpeg of quality {quality or 90}, shorter side 48 px" in capsys.readouterr().out
        pack(folder, out, codec="jpeg", **({"quality": quality} if quality else {}))
        assert json.loads((out / "manifest.json").read_text())["quality"] == (quality or 90)
        sizes[quality] = (out / "images.bin").stat().st_size
    assert sizes[95] > 1.2 * sizes[None]
    with pytest.raises(RequestError, match="packed-95, a pack already"):  # it has another quality
        pack(folder, tmp_path / "packed-95", codec="jpeg")
    for quality in (0, 101):
        with pytest.raises(RequestError, match=f"quality is {quality}; expected 1 to 100, such as 90"):
            pack(folder, tmp_path / "packed", quality=quality)
