"""What the quality of a JPEG pack costs and gives: bytes, the crops' distance to those of a raw pack, time to read.

    OMP_NUM_THREADS=1 python benchmarks/jpeg_quality.py

Photographs of about 500 x 380 pixels and 100 KB are shrunk as `fastmim pack` does. The same boxes of 128 pixels are cut
from every form of an image; the peak signal-to-noise ratio is that of a crop against the raw pack's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmim.bench import records
from fastmim.bench.corpus import SHORT_SIDE, cut_corpus
from fastmim.bench.timing import ratios, take_turns
from fastmim.data.augment import NUM_RANDOMS, decode_crop
from fastmim.data.decode import decode_whole
from fastmim.data.packs.shrinking import make_small

QUALITIES = (95, 90, 85)
SIZE = 128


def crops(images: list[Any], randoms: list[list[float]]) -> list[Tensor]:
    """One crop of each image, (3, SIZE, SIZE) uint8."""
    return [decode_crop(image, SIZE, numbers) for image, numbers in zip(images, randoms, strict=True)]


def psnr(a: Tensor, b: Tensor) -> float:
    """The peak signal-to-noise ratio in dB; 100 for equal crops."""
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cut_corpus(Path(folder), options.num_images)
        files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    forms: dict[str, list[Any]] = {"raw": [decode_whole(data, short_side=SHORT_SIDE) for data in files]}
    for quality in QUALITIES:
        small = [make_small(data, codec="jpeg", short_side=SHORT_SIDE, quality=quality)[0] for data in files]
        forms[f"quality {quality}"] = small
    randoms = torch.rand(len(files), NUM_RANDOMS, generator=torch.Generator().manual_seed(0)).tolist()
    wanted = crops(forms["raw"], randoms)
    times = take_turns({name: partial(crops, images, randoms) for name, images in forms.items()}, rounds=options.rounds)
    summary: dict[str, Any] = {}
    for name, images in forms.items():
        sizes = [image.nbytes if name == "raw" else len(image) for image in images]
        distances = sorted(psnr(a, b) for a, b in zip(crops(images, randoms), wanted, strict=True))
        summary[name] = {
            "kb_per_image": statistics.mean(sizes) / 1000,
            "psnr_median": statistics.median(distances),
            "psnr_5_percent": distances[len(distances) // 20],
            "cpu_ms_per_image": 1000 * statistics.median(times.cpu[name]) / len(files),
            "times_faster": ratios(times.cpu, baseline="quality 95", side=name),
        }
    records.write(
        Path(__file__).parent / "records",
        "jpeg-quality",
        show=True,
        claim="A JPEG pack of quality 90 is a third smaller than one of 95, and within 2 dB of it.",
        config=vars(options) | {"short_side": SHORT_SIDE, "crop_size": SIZE, "threads": 1},
        raw=times.raw(),
        summary=summary,
    )


if __name__ == "__main__":
    main()
