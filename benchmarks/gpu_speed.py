"""Cases of `gpu.py` that measure speed and memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fastmim.bench import corpus, end_to_end, flops, hog, memory, steps
from fastmim.bench.cases import METHODS, Case
from fastmim.bench.timing import ratios, take_turns
from fastmim.errors import RequestError
from fastmim.training import optim
from fastmim.training.loop import make_forward
from fastmim.training.micro_batch import largest_micro_batch
from fastmim.training.saving import Saver
from fastmim.training.world import ALONE

Cases = Mapping[str, Callable[[], dict[str, Any]]]

HOG_BATCH = 512
TOY = "test_vit"
BACKBONES = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base", "pvt_v2_b2")
VIT = BACKBONES[0]


def ceilings(options: Namespace) -> Cases:
    """Large matrix products, and a copy within the device's memory."""
    names = ("float32", "bf16", "fp16")
    found: dict[str, Callable[[], dict[str, Any]]] = {
        f"matrix product, {name}": lambda name=name: {"tflops": peaks(options)[name]}  # type: ignore[misc]
        for name in names
    }
    return found | {"copy": lambda: {"gb_per_s": copy_rate(options)}}


def steps_(options: Namespace) -> Cases:
    """A step of each backbone in its plain form and in fastmim's, over the batch size for a ViT."""
    wanted = [(VIT, masking, batch) for batch in (256, 1024, 512, 2048) for masking in MASKINGS]
    wanted[2:2] = [(backbone, "in-place", 256) for backbone in BACKBONES[1:]]
    if options.toy:
        wanted = [(TOY, masking, 8) for masking in MASKINGS]
    return {
        f"{backbone}, {masking}, batch {batch}": partial(step, Case(backbone=backbone, masking=masking), batch, options)
        for backbone, masking, batch in wanted
    }


MASKINGS: tuple[Any, ...] = ("in-place", "drop")


def step(case: Case, batch_size: int, options: Namespace) -> dict[str, Any]:
    """The forms of a training step, taking turns."""
    summary, _ = steps.measure(
        case,
        device=options.device,
        batch_size=batch_size,
        rounds=options.rounds,
        peaks=peaks(options),
        turn=turn(options),
    )
    return summary


def hogs(options: Namespace) -> Cases:
    """The HOG target of a batch, its time and its share of the rate of a copy."""
    batch = 8 if options.toy else HOG_BATCH
    compiled = options.device.startswith("cuda")

    def measure() -> dict[str, Any]:
        summary, times = hog.measure(
            device=options.device, batch_size=batch, rounds=options.rounds * 5, compile=compiled
        )
        read, written = batch * 3 * 128 * 128 * 4, batch * 27 * 16 * 16 * 4
        for name, found in summary.items():
            seconds = statistics.median(times.wall[name])
            share = (read + written) / seconds / 1e9 / copy_rate(options)
            found |= {"microseconds": seconds * 1e6, "share_of_copy_rate": share}
        return {"forms": summary}

    return {f"batch {batch}": measure}


def methods_(options: Namespace) -> Cases:
    """MAE, SimMIM and FastMIM on a ViT, and those that do not drop tokens on a Swin."""
    return {name: partial(methods, name, options) for name in ([TOY] if options.toy else BACKBONES[:2])}


def methods(backbone: str, options: Namespace) -> dict[str, Any]:
    """A step of each method that the backbone supports, taking turns."""
    torch.compiler.reset()
    device, batch = options.device, 4 if options.toy else 256
    form = steps.forms(device)[-1]
    sides: dict[str, Callable[[], Any]] = {}
    operations = {}
    for method, settings in METHODS.items():
        case = Case.of(method, backbone)
        try:
            model = case.build().to(device).train()
        except RequestError:
            if settings.get("masking") != "drop":
                raise
            continue
        operations[method] = flops.count_flops(model, case.img_size, device)
        sides[method] = steps.fastmim_step(model, steps.synthetic_batch(batch, case.img_size, device), form)
    steps.warm_up(sides, device)
    with turn(options):
        times = take_turns(sides, rounds=options.rounds, device=device, warm_up=0)
    rates = times.rates(batch)
    found = {
        method: rates[method]
        | {
            "gflop_forward": operations[method] / 1e9,
            "memory_mib": memory.peak_mib(run, device),
            "times_slower": ratios(times.seconds, baseline=method, side="FastMIM 128"),
        }
        for method, run in sides.items()
    }
    return {"form": form.name, "batch_size": batch, "methods": found}


def runs(options: Namespace) -> Cases:
    """Whole runs from a folder of JPEGs and its packs, against batches in memory."""

    def measure() -> dict[str, Any]:
        toy = options.toy
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder, "photos")
            photos.mkdir()
            corpus.cut_corpus(photos, 16 if toy else 64)
            for file in list(photos.iterdir()):  # cutting takes longer than the runs do
                for number in range(0 if toy else 63):
                    (photos / f"{file.stem}-{number}.jpg").hardlink_to(file)
            tiers = corpus.make_tiers(photos, Path(folder))
            summary, _ = end_to_end.measure(
                tiers,
                Path(folder),
                device=options.device,
                backbone=TOY if toy else VIT,
                backbone_args=None,
                batch_size=8 if toy else 512,
                steps=4 if toy else 60,
                rounds=1,
                bf16=steps.forms(options.device)[-1].precision == "bf16",
            )
        return summary

    return {"tiers": measure}


def profiles(options: Namespace) -> Cases:
    """The kernels that take most of a step's time."""
    if options.toy:
        return {TOY: partial(profile, Case(backbone=TOY), 4, options)}
    wanted = [(VIT, "in-place"), (VIT, "drop"), *((name, "in-place") for name in BACKBONES[1:])]
    return {
        f"{name}, {masking}": partial(profile, Case(backbone=name, masking=masking), 256, options)
        for name, masking in wanted
    }


def profile(case: Case, batch_size: int, options: Namespace) -> dict[str, Any]:
    """Milliseconds of a step's largest kernels, and the share of the time in which the device had nothing to do."""
    mim = case.build().to(options.device).train()
    form = steps.forms(options.device)[-1]
    run = steps.fastmim_step(mim, steps.synthetic_batch(batch_size, case.img_size, options.device), form)
    repeats, start = 5, 0.0
    for _ in range(3):
        run()
    synchronize(options)
    with torch.profiler.profile() as profiler:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        synchronize(options)
        wall = (time.perf_counter() - start) / repeats
    busy: Counter[str] = Counter()
    on_device = options.device.startswith("cuda")
    for event in profiler.events() or []:
        is_kernel = str(event.device_type).endswith("CUDA")
        if is_kernel == on_device:
            busy[event.name[:90]] += event.self_device_time_total if on_device else event.self_cpu_time_total
    milliseconds = {name: us / repeats / 1000 for name, us in busy.most_common(25)}
    return {
        "form": form.name,
        "batch_size": batch_size,
        "wall_ms": wall * 1000,
        "busy_ms": sum(busy.values()) / repeats / 1000,
        "ms": milliseconds,
    }


def saves(options: Namespace) -> Cases:
    """Seconds for which training waits for a checkpoint; the largest micro-batch that fits."""
    return {"checkpoint": partial(save, options), "micro-batch": partial(micro_batch, options)}


def save(options: Namespace) -> dict[str, Any]:
    case = Case(backbone=TOY if options.toy else VIT)
    mim = case.build().to(options.device).train()
    optimizer = optim.build(mim, weight_decay=0.05, betas=(0.9, 0.95))
    for parameter in mim.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    about = {"config": {}, "num_images": 1, "stages": []}
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), keep_every=None, world=ALONE, say=print) as saver:
        seconds = []
        for number in range(1, 5):
            start = time.perf_counter()
            saver.save(number, mim, optimizer, about=about)
            seconds.append(time.perf_counter() - start)
            saver.wait()
        size = sum(file.stat().st_size for file in Path(folder, "step_000000004").iterdir())
    first, *later = seconds  # the first save allocates the memory of the copy
    return {"blocking_seconds": statistics.median(later), "first_blocking_seconds": first, "mib": size / 2**20}


def micro_batch(options: Namespace) -> dict[str, Any]:
    if not options.device.startswith("cuda"):
        return {"left out": "only CUDA devices say when they are full"}
    mim = Case(backbone=VIT).build().to(options.device).train()
    device = torch.device(options.device)

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        return {"images": batch["images"] / 127.5 - 1, "keys": batch["keys"]}

    found = largest_micro_batch(
        mim,
        make_forward(mim, prepare, device, bf16=True, compile=False),
        lambda count: steps.synthetic_batch(count, 128, options.device),
        batch_size=16384,
        img_size=128,
        device=device,
    )
    return {"largest": found, "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30}


def peaks(options: Namespace) -> dict[str, float]:
    """Throughput of large matrix products, in 10^12 operations a second, by precision."""
    return _peaks(options.device, 64 if options.toy else None)


@cache
def _peaks(device: str, side: int | None) -> dict[str, float]:
    return {name: flops.matmul_tflops(device, name, side=side) for name in ("float32", "bf16", "fp16")}


def copy_rate(options: Namespace) -> float:
    """Bytes read and written by a copy within the device's memory, in GB/s."""
    return _copy_rate(options.device, 2**22 if options.toy else 2**30)


@cache
def _copy_rate(device: str, num_floats: int) -> float:
    source = torch.randn(num_floats, device=device)
    target = torch.empty_like(source)
    times = take_turns({"copy": lambda: target.copy_(source)}, rounds=9, device=device, warm_up=2)
    return 2 * source.nbytes / statistics.median(times.wall["copy"]) / 1e9


def turn(options: Namespace) -> AbstractContextManager[Any]:
    """Wait until no other process that was given the same file is timing."""
    return nullcontext() if options.turn is None else FileLock(options.turn)


def synchronize(options: Namespace) -> None:
    if options.device != "cpu":
        torch.accelerator.synchronize()
