"""The training step on several backbones, sizes, targets and maskings, against its plain reference form."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmim.bench import flops, memory
from fastmim.bench.cases import Case
from fastmim.bench.references import LEARNING_RATE, plain, reference_step
from fastmim.bench.timing import Sides, Times, ratios, take_turns
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.mim import MIM
from fastmim.system import devices
from fastmim.training import optim
from fastmim.training.loop import Batch, make_forward, train_step
from fastmim.training.meter import Meter


@dataclass(frozen=True, kw_only=True)
class Form:
    """A variant of fastmim's step."""

    precision: Literal["float32", "bf16"]
    compile: bool = False
    cuda_graphs: bool = False

    @property
    def name(self) -> str:
        """Its name in records and tables."""
        return f"fastmim {self.precision}{' compiled' * self.compile}{', CUDA graphs' * self.cuda_graphs}"


def forms(device: str, precision: str = "auto") -> list[Form]:
    """The variants of fastmim's step to time on the device; the last is the one recommended there.

    Args:
        device: Where they run.
        precision: "float32", "bf16", or "auto" for what training takes there.
    """
    bf16 = devices.resolve_bf16(precision, torch.device(device))
    eager = Form(precision="bf16" if bf16 else "float32")
    return [eager, replace(eager, compile=True)] if device.startswith("cuda") else [eager]


def reference(form: Form, device: str) -> str:
    """The precision of the plain form that a form is compared with: the same, or on CUDA float16 for bfloat16."""
    return "fp16" if device.startswith("cuda") and form.precision == "bf16" else form.precision


def synthetic_batch(num_images: int, img_size: int, device: str) -> dict[str, Tensor]:
    """A batch of noise on the device, as the loader makes them: uint8 images (B, 3, S, S) and keys (B,)."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, 3, img_size, img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {"images": images.to(device), "keys": torch.arange(num_images, device=device)}


def fastmim_step(model: MIM, batch: dict[str, Tensor], form: Form) -> Callable[[], None]:
    """A training step as in `loop.fit`, on the model's device.

    Args:
        model: Updated in place.
        batch: "images" uint8 (B, 3, S, S) and "keys" (B,), on the device.
        form: Precision and compilation.
    """
    device = batch["images"].device
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    prepare = functools.partial(augment.prepare, mean=mean, std=std)
    return loop_step(model, prepare, optim.build(model, weight_decay=0.05, betas=(0.9, 0.95)), batch, form)


def loop_step(
    model: nn.Module,
    prepare: Callable[[Batch], Mapping[str, Any]],
    optimizer: torch.optim.AdamW,
    batch: dict[str, Tensor],
    form: Form,
) -> Callable[[], None]:
    """A step as in `loop.fit` of any model that returns a loss; see `fastmim_step`."""
    device = batch["images"].device
    bf16 = form.precision == "bf16"
    forward = make_forward(model, prepare, device, bf16=bf16, compile=form.compile, cuda_graphs=form.cuda_graphs)
    meter = Meter(0, device=device, batch_size=len(batch["keys"]), steps_per_epoch=1)

    def step() -> None:
        train_step(model, forward, itertools.repeat(batch), optimizer, meter, learning_rate=LEARNING_RATE)

    return step


def measure(
    case: Case,
    *,
    device: str,
    batch_size: int,
    rounds: int,
    peaks: dict[str, float],
    precision: str = "auto",
    alone: bool = False,
    turn: AbstractContextManager[Any] | None = None,
) -> tuple[dict[str, Any], Times]:
    """Time the forms of a case in turns, against the plain form of their precision.

    Args:
        case: The model.
        device: Where it is trained.
        batch_size: Images in a step.
        rounds: Timed steps of each form.
        peaks: `flops.matmul_tflops` by precision.
        precision: As in `forms`.
        alone: Leave out the plain form, and the memory.
        turn: Entered when all forms have compiled and run, to time them.

    Returns:
        The case's summary, and the times.
    """
    torch.compiler.reset()  # torch.compile gives up after a number of recompilations
    model = case.build().to(device).train()
    gflop = flops.STEP * flops.count_flops(model, case.img_size, device) / 1e9
    batch = synthetic_batch(batch_size, case.img_size, device)
    ours = forms(device, precision)
    sides: dict[str, Callable[[], Any]] = {}
    if not alone:
        compared = reference(ours[-1], device)
        sides[f"plain {compared}"] = reference_step(plain(model), batch, compared)
    sides |= {form.name: fastmim_step(model, batch, form) for form in ours}
    warm_up(sides, device)
    with turn or nullcontext():
        times = take_turns(sides, rounds=rounds, device=device, warm_up=0)
        return summarise(sides, times, device=device, batch_size=batch_size, gflop=gflop, peaks=peaks), times


def warm_up(sides: Sides, device: str) -> None:
    """Compile, allocate and fill caches: on a device three steps of each side, on a CPU one."""
    take_turns(sides, rounds=0, device=device, warm_up=1 if device == "cpu" else 3)


def summarise(
    sides: Sides, times: Times, *, device: str, batch_size: int, gflop: float, peaks: dict[str, float]
) -> dict[str, Any]:
    """The summary of forms that took turns: the plain one, if it is there, first, the one recommended last.

    Args:
        sides: A step of each form by name, of which the second word is the precision.
        times: Of their turns.
        device: Where they ran.
        batch_size: Images in a step.
        gflop: Operations of an image in a step, in 10^9.
        peaks: `flops.matmul_tflops` by precision.
    """
    first, best = next(iter(sides)), list(sides)[-1]
    compared, rates = first.startswith("plain"), times.rates(batch_size)
    found: dict[str, dict[str, Any]] = {}
    for name, run in sides.items():
        per_s = rates[name].get("images_per_cpu_s", rates[name]["images_per_s"])
        found[name] = rates[name] | {"share_of_peak": per_s * gflop / 1000 / peaks[name.split()[1]]}
        if compared:
            found[name]["memory_mib"] = memory.peak_mib(run, device)
            found[name]["times_faster"] = ratios(times.seconds, baseline=first, side=name)
    faster = {"times_faster": found[best]["times_faster"]} if compared else {}
    return {"gflop_per_image": gflop, "fastmim": best, "forms": found} | faster
