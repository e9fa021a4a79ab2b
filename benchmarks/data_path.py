"""CPU time of the folder data path against Pillow + torchvision v1 transforms, and how close its crops are.

    python benchmarks/data_path.py                    # cuts a corpus from the photographs found on this machine
    python benchmarks/data_path.py --images photos/   # or measures on a folder of JPEGs

One thread, no worker processes, files in the page cache, the two sides taking turns. Both start at the file
and end at a normalised float batch. The corpus is cut from scikit-image's photographs and from desktop
wallpapers (Debian: plasma-workspace-wallpapers), at the quality that brings each JPEG nearest to 100 KB.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import record
from fastmim.data import load, open_source, prepare
from fastmim.data.augment import NUM_RANDOMS, crop_box
from fastmim.data.decode import Box, decode_box, reduction, snap
from fastmim.data.files import Files

SIZE, BATCH = 128, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WALLPAPERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds"))
TARGET_BYTES = 100_000


def cut_corpus(folder: Path, num_images: int) -> int:
    """Write JPEGs of about 500 x 380 pixels and 100 KB; the number of photographs they come from."""
    generator = random.Random(0)
    photographs = [load_photograph(path) for path in find_photographs()]
    photographs = [photograph for photograph in photographs if photograph is not None]
    num_written, num_rejected = 0, 0
    used = set()
    while num_written < num_images:
        number = generator.randrange(len(photographs))
        width, height = generator.randint(460, 540), generator.randint(350, 410)
        photograph = photographs[number]
        left = generator.randint(0, photograph.width - width)
        top = generator.randint(0, photograph.height - height)
        data = encode(photograph.crop((left, top, left + width, top + height)))
        if abs(len(data) - TARGET_BYTES) > 0.25 * TARGET_BYTES:  # too smooth at any quality
            num_rejected += 1
            if num_rejected > 50 * num_images:
                raise SystemExit("too few photographs with enough detail: install plasma-workspace-wallpapers")
            continue
        (folder / f"{num_written:04}.jpg").write_bytes(data)
        num_written += 1
        used.add(number)
    return len(used)


def find_photographs() -> list[Path]:
    samples = open_source("samples")
    import skimage

    names = {samples.name(index).split("/")[1].split("#")[0] for index in range(len(samples))}
    inside = [Path(skimage.__file__).parent / "data" / name for name in names]
    around = [p for folder in WALLPAPERS for p in folder.rglob("*") if p.suffix in (".jpg", ".png")]
    # The sharpest version of each wallpaper is enough.
    largest: dict[Path, Path] = {}
    for path in around:
        kept = largest.get(path.parent)
        if kept is None or path.stat().st_size > kept.stat().st_size:
            largest[path.parent] = path
    return sorted(inside) + sorted(largest.values())


def load_photograph(path: Path) -> Image.Image | None:
    """RGB, its shorter side at most 1200 pixels; None where a tile would not fit, or it is grey."""
    with Image.open(path) as image:
        if image.mode != "RGB" or image.width < 560 or image.height < 420:
            return None
        image.thumbnail((10**6, 1200) if image.width > image.height else (1200, 10**6), Image.Resampling.LANCZOS)
        return image.copy()


def encode(tile: Image.Image) -> bytes:
    def jpeg(quality: int) -> bytes:
        buffer = io.BytesIO()
        tile.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    return min(map(jpeg, range(88, 99)), key=lambda data: abs(len(data) - TARGET_BYTES))


class Baseline(Dataset[torch.Tensor]):
    """Pillow and torchvision's v1 transforms, as ImageFolder users write it."""

    def __init__(self, source: Files) -> None:
        self.paths = [source.name(index) for index in range(len(source))]
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Path(self.paths[index]).open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


def run_baseline(source: Files) -> None:
    for _ in DataLoader(Baseline(source), batch_size=BATCH, shuffle=True, drop_last=True):
        pass


def run_fastmim(source: Files, *, normalised: bool) -> None:
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    num_steps = len(source) // BATCH
    for batch in load(source, size=SIZE, seed=0, global_batch=BATCH, first_step=0, last_step=num_steps):
        assert not batch["bad"]
        if normalised:
            prepare(batch, mean, std)


def crop_psnr(source: Files) -> list[float]:
    """dB of each image's crop against Pillow's full decode, crop and bicubic resize of the same box."""
    randoms = torch.rand(len(source), NUM_RANDOMS, generator=torch.Generator().manual_seed(0)).tolist()
    values = []
    for index, numbers in enumerate(randoms):
        data = source.read(index)
        with Image.open(io.BytesIO(data)) as image:
            box = crop_box(image.height, image.width, numbers)
            factor = reduction(box, SIZE)
            top, left, height, width = (factor * x for x in snap(box, factor, image.height, image.width))
            region = (left, top, min(left + width, image.width), min(top + height, image.height))
            reference = np.asarray(image.crop(region).resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=float)
        ours = decode_box(data, SIZE, partial(always, box)).permute(1, 2, 0).numpy()
        values.append(float(10 * np.log10(255**2 / np.mean((ours - reference) ** 2))))
    return values


def always(box: Box, height: int, width: int) -> Box:
    return box


def measure(source: Files, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(summary, raw numbers)."""
    sides = {
        "pillow+torchvision": partial(run_baseline, source),
        "fastmim": partial(run_fastmim, source, normalised=True),
        "fastmim, uint8 batches": partial(run_fastmim, source, normalised=False),
    }
    for run in sides.values():  # warm-up: imports, page cache
        run()
    seconds = record.alternate(sides, rounds=rounds)
    num_images = len(source) // BATCH * BATCH
    psnr = crop_psnr(source)
    summary = {
        "images_per_cpu_second": {n: round(num_images / statistics.median(s), 1) for n, s in seconds.items()},
        "times_fewer_cpu_seconds": {
            side: record.ratios(seconds, baseline="pillow+torchvision", side=side) for side in list(sides)[1:]
        },
        "crop_psnr_db": {"median": statistics.median(psnr), "p5": float(np.percentile(psnr, 5))},
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
        folder, num_photographs = options.images or Path(temporary), None
        if options.images is None:
            num_photographs = cut_corpus(folder, options.num_images)
        source = open_source(str(folder), cache_dir=Path(temporary) / "cache")
        assert isinstance(source, Files)
        summary, raw = measure(source, options.rounds)
        sizes = [len(source.read(index)) for index in range(len(source))]
    record.write(
        "data-path",
        claim="the folder data path reads at least 2x the images per CPU-second of Pillow + torchvision v1 "
        "transforms, its crops within 40 dB median PSNR",
        config={
            "crop_size": SIZE,
            "batch": BATCH,
            "rounds": options.rounds,
            "num_images": len(source),
            "num_photographs": num_photographs,
            "mean_bytes": round(statistics.mean(sizes)),
            "threads": 1,
        },
        summary=summary,
        raw=raw,
    )


if __name__ == "__main__":
    main()
