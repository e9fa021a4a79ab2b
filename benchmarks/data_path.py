"""CPU time of reading images against Pillow + torchvision, and how close the crops are.

    python benchmarks/data_path.py                    # on images cut from the photographs of this machine
    python benchmarks/data_path.py --images photos/   # on a folder of JPEGs

The times are those of `fastmim bench --only data`, in more rounds and on more photographs (`wallpapers.py`) or yours:
one thread, no worker processes, files in the page cache. The baseline and "fastmim" start at the file and end at a
normalised float batch; "uint8 batches" leave normalising to the device. The record adds the PSNR of the crops.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import wallpapers
from fastmim.bench import corpus, data_path, records
from fastmim.bench.data_path import BATCH, SIZE
from fastmim.data.augment import NUM_RANDOMS, crop_box
from fastmim.data.decode import Box, decode_box, reduction, snap
from fastmim.data.sources import Source

NAMES = {
    "folder, float batches": "fastmim",
    "folder": "fastmim, uint8 batches",
    "jpeg pack": "jpeg pack, uint8 batches",
    "raw pack": "raw pack, uint8 batches",
}
"""The record's names of the pipelines of `fastmim bench`."""


def crop_psnr(source: Source, originals: Source) -> list[float]:
    """PSNR in dB of each crop against Pillow's full decode and bicubic resize of the same box of the original."""
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
        ours = decode_box(data, SIZE, lambda height, width, box=box: box).permute(1, 2, 0).numpy()
        values.append(float(10 * np.log10(255**2 / np.mean((ours - reference) ** 2))))
    return values


def picture_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width of an image as it is stored."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def reference_crop(image: Image.Image, box: Box, height: int, width: int) -> np.ndarray:
    """The crop of a box given in the coordinates of a (height, width) version of the image."""
    rows, columns = image.height / height, image.width / width
    left, top = box.left * columns, box.top * rows
    right = min(left + box.width * columns, image.width)
    bottom = min(top + box.height * rows, image.height)
    if (height, width) == (image.height, image.width):
        image, left, top, right, bottom = image.crop((left, top, right, bottom)), 0, 0, right - left, bottom - top
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(small, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; without it images are cut from photographs")
    parser.add_argument("--num-images", type=int, default=512, help="number of images to cut")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, num_photographs = options.images or Path(temporary, "photos"), None
        if options.images is None:
            folder.mkdir()
            num_photographs = corpus.cut_corpus(folder, options.num_images, wallpapers.photographs())
        tiers = corpus.make_tiers(folder, Path(temporary))
        pipelines, times = data_path.measure(tiers, rounds=options.rounds)
        sizes = {name: round(corpus.mean_bytes(source)) for name, source in tiers.items()}
        psnr = {name: crop_psnr(source, tiers["folder"]) for name, source in tiers.items()}
        num_images = len(tiers["folder"])
    records.write(
        Path(__file__).parent / "records",
        "data-path",
        show=True,
        claim="per CPU-second, a folder is read at least 2.2x, a JPEG pack 3.5x and a raw pack 15x as fast as by "
        "Pillow + torchvision v1 transforms, crops within 40 dB median PSNR",
        config={
            "crop_size": SIZE,
            "batch": BATCH,
            "rounds": options.rounds,
            "num_images": num_images,
            "num_photographs": num_photographs,
            "mean_bytes": sizes,
            "short_side": corpus.SHORT_SIDE,
            "threads": 1,
        },
        summary={
            "images_per_cpu_second": {
                NAMES.get(name, "pillow+torchvision"): found["images_per_cpu_s"] for name, found in pipelines.items()
            },
            "times_fewer_cpu_seconds": {name: pipelines[ours]["times_faster"] for ours, name in NAMES.items()},
            "crop_psnr_db": {
                name: {"median": statistics.median(values), "p5": float(np.percentile(values, 5))}
                for name, values in psnr.items()
            },
        },
        raw=times.raw() | {"psnr_db": psnr},
    )


if __name__ == "__main__":
    main()
