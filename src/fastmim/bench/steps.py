"""The training step on several backbones, sizes, targets and maskings, against its plain reference form."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastmim.backbone import Backbone
from fastmim.backbone.maps import drops_tokens
from fastmim.bench import flops, memory
from fastmim.bench.references import LEARNING_RATE, plain, reference_step
from fastmim.bench.timing import Times, ratios, take_turns
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.mim import MIM
from fastmim.method.targets import TARGETS
from fastmim.system import devices
from fastmim.training import optim
from fastmim.training.loop import make_forward, train_step
from fastmim.training.meter import Meter


@dataclass(frozen=True, kw_only=True)
class Form:
    """A variant of fastmim's step."""

    precision: Literal["float32", "bf16"]
    compile: bool = False

    @property
    def name(self) -> str:
        """Its name in records and tables."""
        return f"fastmim {self.precision}{' compiled' if self.compile else ''}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to train."""

    backbone: str
    img_size: int = 128
    target: str = "hog"
    masking: Literal["in-place", "drop"] = "in-place"
    backbone_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in records and tables."""
        return f"{self.backbone}, {self.img_size} px, {self.target}, {self.masking}"

    def build(self) -> MIM:
        """Build the model, always with the same weights."""
        torch.manual_seed(0)
        target = TARGETS[self.target]
        args = dict(self.backbone_args)
        return MIM(self.backbone, img_size=self.img_size, target=target, masking=self.masking, backbone_args=args)


def cases(backbones: Sequence[str]) -> list[Case]:
    """Each backbone with FastMIM's settings, and variants of the first one that change one setting each."""
    first = functools.partial(Case, backbone=backbones[0])
    variants = [first(target="pixels"), first(img_size=96)]
    if drops_tokens(Backbone(backbones[0]).model):
        variants.insert(0, first(masking="drop"))
    return [*(Case(backbone=name) for name in backbones), *variants]


def forms(device: str) -> list[Form]:
    """The variants of fastmim's step to time on the device; the last is the one recommended there."""
    if device.startswith("cuda"):
        return [Form(precision="bf16"), Form(precision="bf16", compile=True)]
    fast = devices.has_fast_bf16(torch.device(device))
    return [Form(precision="float32")] + ([Form(precision="bf16")] if fast else [])


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
    forward = make_forward(model, prepare, device, bf16=form.precision == "bf16", compile=form.compile)
    optimizer = optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))
    meter = Meter(0, device=device, batch_size=len(batch["keys"]), steps_per_epoch=1)

    def step() -> None:
        train_step(model, forward, itertools.repeat(batch), optimizer, meter, learning_rate=LEARNING_RATE)

    return step


def measure(
    case: Case, *, device: str, batch_size: int, rounds: int, peaks: dict[str, float]
) -> tuple[dict[str, Any], Times]:
    """Time the forms of a case in turns, each against the plain form of its precision.

    Args:
        case: The model.
        device: Where it is trained.
        batch_size: Images in a step.
        rounds: Timed steps of each form.
        peaks: `flops.matmul_tflops` by precision.

    Returns:
        The case's summary, and the times.
    """
    torch.compiler.reset()  # torch.compile gives up after a number of recompilations
    model = case.build().to(device).train()
    gflop = flops.STEP * flops.count_flops(model, case.img_size, device) / 1e9
    batch = synthetic_batch(batch_size, case.img_size, device)
    sides: dict[str, Callable[[], Any]] = {}
    precisions: dict[str, str] = {}
    baselines: dict[str, str] = {}
    ours = forms(device)
    for form in ours:
        precision = reference(form, device)
        baseline = f"plain {precision}"
        if baseline not in sides:
            sides[baseline], precisions[baseline] = reference_step(plain(model), batch, precision), precision
        sides[form.name], precisions[form.name] = fastmim_step(model, batch, form), form.precision
        baselines |= {baseline: baseline, form.name: baseline}
    times = take_turns(sides, rounds=rounds, device=device, warm_up=1 if device == "cpu" else 3)
    rates = times.rates(batch_size)
    summary: dict[str, dict[str, Any]] = {}
    for name, run in sides.items():
        per_s = rates[name].get("images_per_cpu_s", rates[name]["images_per_s"])
        summary[name] = rates[name] | {
            "memory_mib": memory.peak_mib(run, device),
            "share_of_peak": per_s * gflop / 1000 / peaks[precisions[name]],
            "times_faster": ratios(times.seconds, baseline=baselines[name], side=name),
        }
    best = ours[-1].name
    return {
        "gflop_per_image": gflop,
        "fastmim": best,
        "times_faster": summary[best]["times_faster"],
        "forms": summary,
    }, times
