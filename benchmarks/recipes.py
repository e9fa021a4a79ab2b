"""What an image costs in each recipe, beside its multiply-adds, against MAE at 224 pixels and SimMIM at 192.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py
    python benchmarks/recipes.py --device cuda --batch-size 64 --rounds 20

Each recipe at its own network and size, in full, by the step of `fastmim.bench`: uint8 batches that are on the device
already, forward, backward, AdamW. Recipes take turns; each is built anew for its turn, as all of them together would
not fit in memory, and makes one step before the one that counts. A recipe with stages counts each of them by its share.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import record
import torch
from fastmim.bench.records import Times, take_turns

from fastmim import config as configs
from fastmim.bench import peak
from fastmim.bench.steps import Form, fastmim_step
from fastmim.method import build
from fastmim.method.settings import PretrainConfig
from fastmim.recipes import RECIPES

BASELINES = {"MAE": "mae-vit-b", "SimMIM": "simmim-swin-b"}


def stages(recipe: str) -> Iterator[tuple[PretrainConfig, float]]:
    """A recipe at each of its sizes, with the size's share of the images."""
    whole = configs.build(PretrainConfig, RECIPES[recipe]())
    for size, share in whole.sizes():
        yield configs.build(PretrainConfig, RECIPES[recipe](), {"img_size": size, "stages": None}), share


def time_step(config: PretrainConfig, form: Form, *, device: str, batch_size: int) -> tuple[Times, float]:
    """A step's time, after one that does not count, and the forward pass's operations for an image."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = build.build_model(config).to(device).train()
    flops = peak.count_flops(model, config.img_size, device)
    step = fastmim_step(model, peak.synthetic(batch_size, config.img_size, device), form)
    return take_turns({"step": step}, rounds=1, device=device, warm_up=1 if device == "cpu" else 3), flops


def measure(names: list[str], form: Form, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the recipes in turns.

    Returns:
        (summary, seconds for an image by recipe and round)
    """
    seconds: dict[str, list[float]] = {name: [] for name in names}
    flops: dict[str, float] = {}
    for number in range(options.rounds):
        for name in names:
            spent = flops[name] = 0.0
            for config, share in stages(name):
                times, each = time_step(config, form, device=options.device, batch_size=options.batch_size)
                spent += share * times.seconds["step"][0] / options.batch_size
                flops[name] += share * each
            seconds[name].append(spent)
            print(f"round {number + 1} of {options.rounds}: {name} {1 / spent:.2f} images/s", flush=True)
    summary = {}
    for name in names:
        config = configs.build(PretrainConfig, RECIPES[name]())
        summary[name] = {
            "backbone": config.backbone,
            "sizes": config.stages or config.img_size,
            "gmac_forward": flops[name] / 2e9,
            "images_per_s": 1 / statistics.median(seconds[name]),
        } | {
            f"times_less_than_{method}": record.ratios(seconds, baseline=baseline, side=name)
            | {"multiply_adds": flops[baseline] / flops[name]}
            for method, baseline in BASELINES.items()
        }
    return summary, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    peaks = {precision: peak.matmul_tflops(options.device, precision) for precision in ("float32", "bf16")}
    form = Form(precision="bf16" if peak.has_bf16(peaks) else "float32", compile=options.device.startswith("cuda"))
    summary, seconds = measure(list(RECIPES), form, options)
    record.write(
        "recipes",
        claim="An image costs FastMIM's recipes a fraction of what it costs MAE at 224 px and SimMIM at 192 px.",
        config=vars(options)
        | {"precision": form.precision, "compile": form.compile, "baselines": BASELINES}
        | {"threads": torch.get_num_threads()},
        raw={"seconds_per_image": seconds},
        summary=summary,
        device=options.device,
    )


if __name__ == "__main__":
    main()
