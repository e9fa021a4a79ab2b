"""Cases of `gpu.py` that compare ways to run the same compiled step: launched or replayed, attention fused or not."""

from __future__ import annotations

import copy
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.bench import steps
from fastmim.bench.cases import Case
from fastmim.bench.timing import ratios, take_turns
from gpu_speed import synchronize, turn

WANTED = (
    ("vit_base_patch16_224", "drop"),
    ("swin_base_patch4_window7_224", "in-place"),
    ("pvt_v2_b2", "in-place"),
    ("vit_small_patch16_224", "in-place"),
)
LAUNCHED, REPLAYED, PLAIN = "launched", "replayed", "replayed, plain attention"


def cases(options: Namespace) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """A step of each backbone in each way, on 256 images."""
    wanted, batch = ((("test_vit", "in-place"),), 4) if options.toy else (WANTED, 256)
    return {
        f"{backbone}, {masking}, batch {batch}": partial(
            replay, Case(backbone=backbone, masking=masking), batch, options
        )
        for backbone, masking in wanted
    }


def replay(case: Case, batch_size: int, options: Namespace) -> dict[str, Any]:
    """Times of each way, what of it the processor needs, and how far its weights are from those of the first."""
    torch.manual_seed(0)
    model = case.build().to(options.device).train()
    batch = steps.synthetic_batch(batch_size, case.img_size, options.device)
    start = flat(model)
    sides: dict[str, Callable[[], None]] = {}
    found: dict[str, dict[str, Any]] = {}
    ends: dict[str, Tensor] = {}
    for way in (LAUNCHED, REPLAYED, *([PLAIN] if has_attention(model) else [])):
        mine = with_plain_attention(copy.deepcopy(model)) if way == PLAIN else copy.deepcopy(model)
        cuda = options.device.startswith("cuda")
        form = steps.Form(precision="bf16" if cuda else "float32", compile=cuda, cuda_graphs=cuda and way != LAUNCHED)
        began = time.perf_counter()
        sides[way] = steps.fastmim_step(mine, batch, form)
        for _ in range(5):
            sides[way]()
        ends[way] = flat(mine)
        found[way] = {"seconds_to_compile": time.perf_counter() - began} | memory(options)
    with turn(options):
        times = take_turns(sides, rounds=options.rounds, device=options.device, warm_up=2)
        for way, run in sides.items():
            found[way] |= {
                "ms": 1000 * statistics.median(times.wall[way]),
                "host_ms": host_ms(run, options),
                "times_faster": ratios(times.wall, baseline=LAUNCHED, side=way),
                "change_of_weights": relative(ends[way] - ends[LAUNCHED], ends[LAUNCHED] - start),
            }
    return {"batch_size": batch_size, "ways": found}


def host_ms(run: Callable[[], None], options: Namespace) -> float:
    """Milliseconds until the processor has asked the device for a step's work."""
    seconds = []
    for _ in range(options.rounds):
        synchronize(options)
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def has_attention(model: nn.Module) -> bool:
    return any(hasattr(module, "fused_attn") for module in model.modules())


def with_plain_attention(model: nn.Module) -> nn.Module:
    """The model, each attention of which is two matrix products and a softmax."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module._forward_pre_hooks.clear()
            module.fused_attn = False  # type: ignore[assignment]
    return model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def relative(difference: Tensor, change: Tensor) -> float:
    return (difference.norm() / change.norm()).item()


def memory(options: Namespace) -> dict[str, float]:
    """MiB that the process holds on the device, recordings included."""
    if not options.device.startswith("cuda"):
        return {}
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() / 2**20
    return {"held_between_steps_mib": held}
