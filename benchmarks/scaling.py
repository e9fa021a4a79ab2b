"""Write docs/scaling.md, what to expect of 8, 64 and 512 GPUs: `python benchmarks/scaling.py`.

One device's steps come from the record of benchmarks/gpu.py; the rest is the model of `fastmim.bench.scaling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmim.bench import records, scaling, tables
from fastmim.bench.flops import count_flops
from fastmim.bench.markdown import markdown, number
from fastmim.bench.scaling import Cluster, Step
from fastmim.bench.settings import CostConfig
from fastmim.method.mim import MIM
from fastmim.system import files

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs/scaling.md"
DEVICES = (8, 64, 512)
BATCHES = (4096, 16384)
NETWORKS = {"cards of 400 GB/s a node (eight of 400 Gb/s)": 400.0, "one card of 12.5 GB/s a node (100 Gb/s)": 12.5}
SWINS = ("swin_base_patch4_window7_224", "swin_large_patch4_window7_224")

TEXT = """\
# What to expect of more GPUs

Written by `python benchmarks/scaling.py`. **A model on paper:** fastmim has run on one GPU, and on several processes
of a CPU; nothing below was measured on more than one GPU. `fastmim cost --devices N` makes the same prediction from
your own record of `fastmim bench`, for your network and links.

## The model

A step of N devices that share a batch of B images takes

    max(fixed + B / N x per image + exchange, data)

- **fixed** and **per image** are a line through one device's step times at several batch sizes
  ({source}). Where only one batch size was measured, the fixed part is taken
  as 0, and scaling looks better than it is.
- **exchange**: gradients are 4 bytes a parameter. A ring sends 2 (N - 1) / N of them over the slowest link, in buckets
  of 25 MiB, with 2 log2 N hops of 20 microseconds for each. The backward pass, two thirds of the arithmetic, hides
  what is sent while it runs; the last bucket is ready only when it has ended.
- **data**: the images of a node over the rate at which it reads and decodes (`--loader`, which
  `fastmim bench --only data` measures). Taken as fast enough below.
- Links are assumed: {inside:g} GB/s between the devices of a node, and between nodes what the headings say.

Not in the model: stragglers, a network that others use, a file system that slows down. Saving runs behind the training.

## One device

{devices}

Swin-L was not measured: its time per image is Swin-B's times the ratio of their multiply-adds ({ratio:.2f}).

{predictions}\
## Where it stops, and what to change

- The recipes' batch of 4096 limits scaling: on 512 devices it is 8 images each, and neither kernel launches nor
  gradients shrink with it. A larger batch is another training: the learning rate follows it linearly, and whether
  accuracy holds at 16384 has not been tried.
- "fixed costs": the device waits for kernels to be launched. Only more images per device help. Dropping tokens saves
  arithmetic, which is then no longer what takes the time.
- "gradients": more network cards help in proportion; without them, fewer nodes do as well.
- "data": pack the images (`fastmim pack`), raw if need be, or give a node more cores.
- `--shard` (FSDP2) is for models that do not fit. It sends half as much again as DistributedDataParallel.
"""


def main() -> None:
    path = records.newest(ROOT / "benchmarks/records", "gpu-step-cuda")
    if path is None:
        raise SystemExit("benchmarks/records holds no gpu-step-cuda-DATE.json: run benchmarks/gpu.py")
    record = files.read_json(path)
    measured = scaling.steps(record)
    base, large = (MIM(name, img_size=128) for name in SWINS)
    ratio = count_flops(large, 128, "cpu") / count_flops(base, 128, "cpu")
    swin = measured[f"{SWINS[0]}, in-place"]
    steps = {
        "ViT-B": measured["vit_base_patch16_224, in-place"],
        "ViT-B, tokens dropped": measured["vit_base_patch16_224, drop"],
        "Swin-L": replace(swin, per_image=swin.per_image * ratio, gradient_bytes=scaling.gradient_bytes(large)),
    }
    OUT.write_text(
        TEXT.format(
            source=f"`{path.name}`: {tables.where(record)}",
            inside=CostConfig.inside,
            devices=alone(steps),
            ratio=ratio,
            predictions="".join(section(name, steps, between) for name, between in NETWORKS.items()),
        )
    )
    print(f"wrote {OUT.relative_to(ROOT)}")


def alone(steps: Mapping[str, Step]) -> str:
    """The table of one device's steps."""
    rows: list[list[Any]] = [
        [name, number(1e3 * step.fixed), number(1e6 * step.per_image), number(step.gradient_bytes / 1e6)]
        for name, step in steps.items()
    ]
    return markdown(("network, 128 px, HOG", "fixed, ms", "an image, microseconds", "gradients, MB"), rows)


def section(network: str, steps: Mapping[str, Step], between: float) -> str:
    """The predictions for one kind of network between the nodes."""
    rows = []
    for name, step in steps.items():
        for batch in BATCHES:
            one = scaling.predict(step, Cluster(1), batch)
            cells = []
            for devices in DEVICES:
                cluster = Cluster(devices, CostConfig.devices_per_node, CostConfig.inside, between)
                found = scaling.predict(step, cluster, batch)
                share = found.images_per_s / (devices * one.images_per_s)
                cells.append(f"{number(found.images_per_s)} ({share:.0%}, {found.bound})")
            rows.append([name, str(batch), *cells])
    header = ("network", "batch", *(f"{devices} GPUs" for devices in DEVICES))
    title = f"## With {network}\n\nImages/s (share of N times one device, and what takes most of the step's time)."
    return f"{title}\n\n{markdown(header, rows, num_text=2)}\n\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
