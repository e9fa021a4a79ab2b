"""CPU time of reading a folder and packs of it against Pillow + torchvision v1 transforms, and how close the crops are.

    python benchmarks/data_path.py                    # cuts a corpus from the photographs found on this machine
    python benchmarks/data_path.py --images photos/   # or measures on a folder of JPEGs

One thread, no worker processes, files in the page cache, all sides taking turns. The baseline starts at the file
and ends at a normalised float batch. So does "fastmim"; "uint8 batches" is what fastmim's workers do, the rest being
the device's. The packs are of short side 256, by `fastmim pack`. The corpus is cut from scikit-image's photographs and
from desktop wallpapers (Debian: plasma-workspace-wallpapers), at the quality that brings each JPEG nearest to 100 KB.
`fastmim bench` measures the same in a few rounds; this adds how close the crops are.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image

from fastmim.bench.corpus import cut_corpus, make_tiers
from fastmim.bench.data_path import BATCH, SIZE, read, read_plainly
from fastmim.data.augment import NUM_RANDOMS, crop_box
from fastmim.data.decode import Box, decode_box, reduction, snap
from fastmim.data.sources import Source


def crop_psnr(source: Source, originals: Source) -> list[float]:
    """dB of each image's crop against Pillow's full decode and bicubic resize of the same box of the original."""
    randoms = torch.rand(len(source), NUM_RANDOMS, generator=torch.Generator().manual_seed(0)).tolist()
    values = []
    for index, numbers in enumerate(randoms):
        data = source.read(index)
        height, width = picture_size(data)
        box = crop_box(height, width, numbers)
        factor = reduction(box, SIZE) if isinstance(data, bytes) else 1
        snapped = Box(*(factor * x for x in snap(box, factor, height, width)))
        with Image.open(originals.name(index)) as image:
            reference = reference_crop(image, snapped, height, width)
        ours = decode_box(data, SIZE, partial(always, box)).permute(1, 2, 0).numpy()
        values.append(float(10 * np.log10(255**2 / np.mean((ours - reference) ** 2))))
    return values


def picture_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def reference_crop(image: Image.Image, box: Box, height: int, width: int) -> np.ndarray:
    """A box of a (height, width) version of the image, cut from the image itself."""
    rows, columns = image.height / height, image.width / width
    left, top = box.left * columns, box.top * rows
    right = min(left + box.width * columns, image.width)
    bottom = min(top + box.height * rows, image.height)
    if (height, width) == (image.height, image.width):
        image, left, top, right, bottom = image.crop((left, top, right, bottom)), 0, 0, right - left, bottom - top
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(small, dtype=float)


def always(box: Box, height: int, width: int) -> Box:
    return box


def measure(tiers: dict[str, Source], rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time every tier and the baseline in turns.

    Args:
        tiers: From `make_tiers`; "folder" holds what the baseline reads.

    Returns:
        (summary, raw numbers)
    """
    folder = tiers["folder"]
    sides = {
        "pillow+torchvision": partial(read_plainly, folder, BATCH),
        "fastmim": partial(read, folder, BATCH, normalised=True),
        "fastmim, uint8 batches": partial(read, folder, BATCH, normalised=False),
    }
    for name in list(tiers)[1:]:
        sides[f"{name}, uint8 batches"] = partial(read, tiers[name], BATCH, normalised=False)
    for run in sides.values():  # warm-up: imports, page cache
        run()
    seconds = record.alternate(sides, rounds=rounds)
    num_images = len(folder) // BATCH * BATCH
    psnr = {name: crop_psnr(source, folder) for name, source in tiers.items()}
    summary = {
        "images_per_cpu_second": {n: round(num_images / statistics.median(s), 1) for n, s in seconds.items()},
        "times_fewer_cpu_seconds": {
            side: record.ratios(seconds, baseline="pillow+torchvision", side=side) for side in list(sides)[1:]
        },
        "crop_psnr_db": {
            name: {"median": statistics.median(values), "p5": float(np.percentile(values, 5))}
            for name, values in psnr.items()
        },
    }
    return summary, {"cpu_seconds_per_round": seconds, "images_per_round": num_images, "psnr_db": psnr}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; without it a corpus is cut")
    parser.add_argument("--num-images", type=int, default=512, help="size of the corpus that is cut")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, num_photographs = options.images or Path(temporary, "photos"), None
        if options.images is None:
            folder.mkdir()
            num_photographs = cut_corpus(folder, options.num_images)
        tiers = make_tiers(folder, Path(temporary))
        summary, raw = measure(tiers, options.rounds)
        sizes = {
            name: round(statistics.mean(memoryview(source.read(index)).nbytes for index in range(len(source))))
            for name, source in tiers.items()
        }
    record.write(
        "data-path",
        claim="per CPU-second, a folder is read at least 2.2x, a JPEG pack 3.5x and a raw pack 15x as fast as by "
        "Pillow + torchvision v1 transforms, crops within 40 dB median PSNR",
        config={
            "crop_size": SIZE,
            "batch": BATCH,
            "rounds": options.rounds,
            "num_images": len(tiers["folder"]),
            "num_photographs": num_photographs,
            "mean_bytes": sizes,
            "short_side": 256,
            "threads": 1,
        },
        summary=summary,
        raw=raw,
    )


if __name__ == "__main__":
    main()
