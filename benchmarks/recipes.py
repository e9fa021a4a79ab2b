"""The cost of an image in each recipe, in time and multiply-adds, against MAE at 224 pixels and SimMIM at 192.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py
    python benchmarks/recipes.py --device cuda --batch-size 64 --rounds 20

Each recipe trains its own network at its own size, by the step of `fastmim.bench`: forward, backward and AdamW on uint8
batches on the device. The recipes take turns; each is built anew for its turn, since they would not fit in memory
together, and makes an untimed step first. A recipe with stages counts each stage by its share.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastmim import config as configs
from fastmim.bench import flops, records
from fastmim.bench.steps import Form, fastmim_step, forms, synthetic_batch
from fastmim.bench.timing import Times, ratios, take_turns
from fastmim.method import build
from fastmim.method.settings import PretrainConfig
from fastmim.published import RECIPES

BASELINES = {"MAE": "mae-vit-b", "SimMIM": "simmim-swin-b"}


def stages(recipe: str) -> Iterator[tuple[PretrainConfig, float]]:
    """A recipe at each of its sizes, and the size's share of the images."""
    whole = configs.build(PretrainConfig, RECIPES[recipe]())
    for size, share in whole.sizes():
        yield configs.build(PretrainConfig, RECIPES[recipe](), {"img_size": size, "stages": None}), share


def time_step(config: PretrainConfig, form: Form, *, device: str, batch_size: int) -> tuple[Times, float]:
    """The time of a step after a warm-up, and the operations of an image's forward pass."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = build.build_model(config).to(device).train()
    operations = flops.count_flops(model, config.img_size, device)
    step = fastmim_step(model, synthetic_batch(batch_size, config.img_size, device), form)
    return take_turns({"step": step}, rounds=1, device=device, warm_up=1 if device == "cpu" else 3), operations


def measure(names: list[str], form: Form, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the recipes in turns.

    Returns:
        The summary, and the seconds for an image by recipe and round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in names}
    operations: dict[str, float] = {}
    for number in range(options.rounds):
        for name in names:
            spent = operations[name] = 0.0
            for config, share in stages(name):
                times, each = time_step(config, form, device=options.device, batch_size=options.batch_size)
                spent += share * times.seconds["step"][0] / options.batch_size
                operations[name] += share * each
            seconds[name].append(spent)
            print(f"round {number + 1} of {options.rounds}: {name} {1 / spent:.2f} images/s", flush=True)
    summary = {}
    for name in names:
        config = configs.build(PretrainConfig, RECIPES[name]())
        summary[name] = {
            "backbone": config.backbone,
            "sizes": config.stages or config.img_size,
            "gmac_forward": operations[name] / 2e9,
            "images_per_s": 1 / statistics.median(seconds[name]),
        } | {
            f"times_less_than_{method}": ratios(seconds, baseline=baseline, side=name)
            | {"multiply_adds": operations[baseline] / operations[name]}
            for method, baseline in BASELINES.items()
        }
    return summary, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    form = forms(options.device)[-1]
    summary, seconds = measure(list(RECIPES), form, options)
    records.write(
        Path(__file__).parent / "records",
        "recipes",
        show=True,
        claim="An image costs a fraction in FastMIM's recipes of its cost in MAE at 224 px and SimMIM at 192 px.",
        config=vars(options)
        | {"precision": form.precision, "compile": form.compile, "baselines": BASELINES}
        | {"threads": torch.get_num_threads()},
        raw={"seconds_per_image": seconds},
        summary=summary,
        device=options.device,
    )


if __name__ == "__main__":
    main()
