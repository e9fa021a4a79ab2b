"""Feature extraction from files against the bare forward pass on a tensor in memory: the same model and batches.

    python benchmarks/features.py [--backbone vit_small_patch16_224 --img-size 224 --workers 1 --rounds 5]
    python benchmarks/features.py --backbone vit_tiny_patch16_224 --patch-size 4 --img-size 32 --picture-size 32 \
        --images 1024 --batch-size 256 --workers 0 --record features-small

The claim is about what extraction adds (waiting for data, copying, normalising, pooling), not about the speed of the
data path, so the model must be large enough that data is not the limit; the record has the rate of reading alone, too.
There are two clocks: wall-clock time, which is what a user sees but which other programs disturb, and the CPU time of
the main process, which they do not (and which leaves out the workers: with none, it has the reading too).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from PIL import Image

from fastmim import Backbone
from fastmim.bench import records
from fastmim.bench.timing import ratios, take_turns
from fastmim.data.center_crops import load_centers
from fastmim.data.sources import open_source
from fastmim.system.devices import resolve_bf16, resolve_device
from fastmim.transfer.features.encoder import Encoder
from fastmim.transfer.features.extraction import extract


def write_photographs(folder: Path, number: int, size: int = 500) -> None:
    """JPEGs from the built-in photographs, of about 100 KB at 500 px."""
    samples = open_source("samples")
    for index in range(number):
        picture = Image.fromarray(samples.read(index * len(samples) // number)).convert("RGB")
        picture.resize((size, size)).save(folder / f"{index:05d}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--patch-size", type=int, help="of a ViT, if not the one that its name tells")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--picture-size", type=int, default=500)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", default="features")
    options = parser.parse_args()
    device = resolve_device(options.device)
    bf16 = resolve_bf16("auto", device)
    args = {"patch_size": options.patch_size} if options.patch_size else {}
    backbone = Backbone(options.backbone, img_size=options.img_size, args=args)
    encoder = Encoder(backbone.to(device)).eval().requires_grad_(False)
    tensors = torch.randn(options.batch_size, 3, options.img_size, options.img_size, device=device)

    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), options.images, options.picture_size)
        source = open_source(folder, cache_dir=Path(folder) / ".cache")

        def bare() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                for _ in range(options.images // options.batch_size):
                    encoder.backbone.model(tensors).cpu()

        def extracting() -> None:
            stream = extract(encoder, source, batch_size=options.batch_size, num_workers=options.workers, bf16=bf16)
            assert sum(len(found.features) for found in stream) == options.images

        def reading() -> None:
            for _ in load_centers(
                source, size=options.img_size, batch_size=options.batch_size, num_workers=options.workers
            ):
                pass

        sides = {"bare forward": bare, "extract": extracting, "reading alone": reading}
        times = take_turns(sides, rounds=options.rounds)

    summary = {
        "images_per_s": {name: options.images / statistics.median(took) for name, took in times.wall.items()},
        "extract over bare forward, wall": ratios(times.wall, baseline="bare forward", side="extract"),
        "extract over bare forward, CPU of the main process": ratios(
            times.cpu, baseline="bare forward", side="extract"
        ),
    }
    records.write(
        Path(__file__).parent / "records",
        options.record,
        show=True,
        claim="feature extraction runs at 95 % or more of the bare forward pass's images/s",
        config=vars(options) | {"bf16": bf16, "threads": torch.get_num_threads()},
        raw={"wall_seconds": times.wall, "cpu_seconds": times.cpu},
        summary=summary,
        device=str(device),
    )


if __name__ == "__main__":
    main()
