"""The HOG target against its one-hot form: what `fastmim bench --only hog` leaves out.

    OMP_NUM_THREADS=1 python benchmarks/hog.py
    python benchmarks/hog.py --device cuda --batch-size 512

On a CPU the one-hot form makes 250 MiB of intermediate tensors for 32 images. The C library usually returns their
memory to the system, and getting it anew, page by page, is more than half of the form's CPU time; in a process whose
history has made the library keep that memory it takes none. So the forms are timed in both states (glibc only), with
their page faults and resident memory. The record also has the compiled form and how far the two forms agree.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from fastmim.bench import hog, records
from fastmim.bench.references import PlainHOG
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.targets import HOG

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")


def photographs(size: int = 128) -> Tensor:
    """Photographs from scikit-image, normalised as for a network: (7, 3, size, size)."""
    squares = []
    for name in PHOTOGRAPHS:
        pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None]
        side = min(pixels.shape[-2:])
        squares.append(F.interpolate(pixels[..., :side, :side], (size, size), mode="bicubic", antialias=True))
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
    return (torch.cat(squares) / 255 - mean) / std


def difference(images: Tensor) -> dict[str, float]:
    """The largest difference between the two forms, and the share of histograms that differ by over 1e-5.

    On photographs some do. In flat regions the convolution's rounding leaves gradients of 1e-7, which normalisation
    turns into a full histogram, where ours are 0. Where gx would be 0 but for rounding, and gy is negative, float32
    atan2 rounds to pi, which is bin 0 rather than bin 8.
    """
    apart = (HOG()(images) - PlainHOG().to(images.device)(images)).abs().unflatten(1, (-1, 9)).amax(2)
    return {"max": apart.max().item(), "share_over_1e-5": (apart > 1e-5).float().mean().item()}


def resident_mib(run: Callable[[], Any]) -> float:
    """Growth of the process's high-water mark of resident memory in one run (Linux)."""

    def status(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # KiB

    ctypes.CDLL(None).malloc_trim(0)  # memory freed by earlier runs must not serve this one
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    run()
    return (status("VmHWM") - before) / 1024


def keep_memory() -> None:
    """Have glibc's malloc return nothing to the system from now on."""
    mmap_max, trim_threshold = -4, -1  # malloc.h
    ctypes.CDLL(None).mallopt(mmap_max, 0)
    ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)


def page_faults(run: Callable[[], Any]) -> int:
    """Pages obtained from the system in one run."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, 128, 128, device=options.device)
    forms, times = hog.measure(**vars(options), compile=True)
    raw: dict[str, Any] = {"usually": times.raw()}
    summary: dict[str, Any] = {
        "forms": forms,
        "times_faster_eager": forms[hog.OURS]["times_faster"],
        "times_faster_compiled": forms[hog.COMPILED]["times_faster"],
        "difference_from_obvious": {
            "random_normal": difference(images),
            "random_8_bit": difference(torch.randint(0, 256, images.shape, device=options.device).float()),
            "photographs": difference(photographs().to(options.device)),
        },
    }
    if options.device == "cpu":
        sides = hog.forms(images, compile=True)
        for run in sides.values():
            run()  # compiles
        summary["resident_mib"] = {name: resident_mib(run) for name, run in sides.items()}
        usually = {name: page_faults(run) for name, run in sides.items()}
        keep_memory()
        kept, times = hog.measure(**vars(options), compile=True)
        raw["memory_kept"] = times.raw()
        summary["times_faster_eager_memory_kept"] = kept[hog.OURS]["times_faster"]
        summary["page_faults"] = {
            name: {"usually": usually[name], "memory_kept": page_faults(run)} for name, run in sides.items()
        }
    records.write(
        Path(__file__).parent / "records",
        "hog" if options.device == "cpu" else f"hog-{options.device}",
        show=True,
        claim="The HOG target takes under a fifth of the one-hot form's time (a quarter to a third where malloc keeps "
        "memory) and a quarter of its memory.",
        config={"images": list(images.shape), "cell": 8, "threads": 1, "rounds": options.rounds},
        raw=raw,
        summary=summary,
        device=options.device,
    )


if __name__ == "__main__":
    main()
