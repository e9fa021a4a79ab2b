"""A photograph in any file format, and the similarity of two images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def photograph() -> Image.Image:
    """RGB, 600 x 400: a cup of coffee, with no symmetry."""
    return Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB")


def encode(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}) | options)
    return buffer.getvalue()


def psnr(a: torch.Tensor | Image.Image, b: torch.Tensor | Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of uint8 (C, H, W) tensors or Pillow images."""
    a, b = (
        np.moveaxis(np.asarray(x.convert("RGB")), 2, 0) if isinstance(x, Image.Image) else x.numpy() for x in (a, b)
    )
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG of any header, whatever its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    """Replace bytes at the given positions."""
    changed = bytearray(data)
    for position, content in changes:
        changed[position : position + len(content)] = content
    return bytes(changed)
