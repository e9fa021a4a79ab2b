"""What the extra `png` gives: a folder against Pillow + torchvision, and decoding PNGs of every kind.

    OMP_NUM_THREADS=1 python benchmarks/png_reading.py

Photographs of about 500 x 380 pixels are written as PNGs by Pillow. fastmim reads them with the extra `png`
(deflate, kornia-rs) and without it; the pixels are compared first.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from fastmim.bench import records
from fastmim.bench.corpus import cut_corpus
from fastmim.bench.data_path import REFERENCE, read, read_plainly
from fastmim.bench.timing import Seconds, ratios, take_turns
from fastmim.data import png
from fastmim.data.decode import decode_whole
from fastmim.data.sources import open_source

BATCH = 32
MODES = {"RGB": "RGB", "grey": "L", "RGBA": "RGBA", "palette": "P"}
WITHOUT, WITH = "fastmim without the extra", "fastmim"


def without_the_extra(run: Callable[[], Any]) -> Any:
    """Run it as if the packages were not installed."""
    with patch.object(png, "deflate", None), patch.object(png, "kornia_rs", None):
        return run()


def as_png(image: Image.Image, mode: str) -> bytes:
    """The picture as Pillow writes it."""
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def decode_all(files: list[bytes]) -> list[np.ndarray]:
    """Every file decoded."""
    return [decode_whole(data) for data in files]


def sides(run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The two of fastmim."""
    return {WITHOUT: partial(without_the_extra, run), WITH: run}


def row(seconds: Seconds, num_images: int) -> dict[str, Any]:
    """Milliseconds an image of each side, and how many times faster fastmim is than the others."""
    return {
        "cpu_ms_per_image": {name: 1000 * float(np.median(found)) / num_images for name, found in seconds.items()},
        "times_faster": {name: ratios(seconds, baseline=name, side=WITH) for name in seconds if name != WITH},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    summary: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    with ExitStack() as stack:
        cut, folder, cache = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3))
        cut_corpus(cut, options.num_images)
        pictures = [Image.open(path) for path in sorted(cut.iterdir())]
        for number, picture in enumerate(pictures):
            (folder / f"{number:04}.png").write_bytes(as_png(picture, "RGB"))
        source = open_source(str(folder), cache_dir=cache)
        reading = partial(read, source, BATCH, normalised=True)
        times = take_turns({REFERENCE: partial(read_plainly, source, BATCH)} | sides(reading), rounds=options.rounds)
        summary["folder"], raw["folder"] = row(times.cpu, len(source) // BATCH * BATCH), times.raw()
        for kind, mode in MODES.items():
            files = [as_png(picture, mode) for picture in pictures]
            expected = without_the_extra(partial(decode_all, files))
            assert all(map(np.array_equal, decode_all(files), expected)), kind
            times = take_turns(sides(partial(decode_all, files)), rounds=options.rounds)
            summary[kind] = {"kb": mean(map(len, files)) / 1000} | row(times.cpu, len(files))
            raw[kind] = times.raw()
    records.write(
        Path(__file__).parent / "records",
        "png-reading",
        show=True,
        claim="A folder of PNGs is read faster with the extra png, and its pixels stay Pillow's.",
        config=vars(options)
        | {"batch": BATCH, "threads": 1, "deflate": version("deflate"), "kornia-rs": version("kornia-rs")},
        raw=raw,
        summary=summary,
    )


if __name__ == "__main__":
    main()
