"""Cases of `gpu.py` that compare a device's numbers with the CPU's, and try many backbones."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fastmim
from fastmim.bench.steps import Form, fastmim_step, synthetic_batch
from fastmim.method.targets import HOG
from fastmim.system.run_directory import RunDirectory
from fastmim.training.loop import make_forward

Cases = Mapping[str, Callable[[], dict[str, Any]]]

HOG_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE, BF16_TOLERANCE = 1e-5, 1e-5, 1e-3, 2e-2
"""Largest differences: of a HOG value, and relative ones of float32 losses, of gradients and of bf16 losses."""

MODELS = {
    "ViT": "vit_small_patch16_224",
    "ViT, tokens dropped": "vit_small_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "ConvNeXt": "convnext_tiny",
    "ResNet": "resnet50",
    "PVTv2": "pvt_v2_b2",
}


def cases(options: Namespace) -> Cases:
    """HOG, loss and gradient of several backbones, and runs that stop and go on."""
    found: dict[str, Callable[[], dict[str, Any]]] = {"HOG": partial(hog, options)}
    for name, backbone in MODELS.items():
        if options.toy:
            backbone = "test_convnext" if "Conv" in name else "test_vit"
        found[name] = partial(model, backbone, "drop" if "dropped" in name else "in-place", options)
    return found | {"stop and go on": partial(resume, options), "fine-tune and embed": partial(transfer, options)}


def hog(options: Namespace) -> dict[str, Any]:
    """The largest difference of HOG from the CPU's, eager and compiled, on noise and on photographs."""
    noise = torch.randn(64, 3, 128, 128)
    steps = torch.randint(0, 256, (64, 3, 128, 128)).float() / 255  # ties at the bins' edges, as in photographs
    forms: dict[str, Callable[[Tensor], Tensor]] = {"eager": HOG()}
    if not options.toy:  # compiling takes minutes
        forms["compiled"] = torch.compile(HOG())
    found: dict[str, Any] = {}
    for kind, images in (("noise", noise), ("8-bit levels", steps)):
        expected = HOG()(images)
        for form, target in forms.items():
            difference = (target(images.to(options.device)).cpu() - expected).abs()
            found[f"{kind}, {form}"] = difference.max().item()
            found[f"{kind}, {form}, share above 1e-5"] = (difference > HOG_TOLERANCE).float().mean().item()
    check("HOG", max(v for k, v in found.items() if k.startswith("noise") and "share" not in k), HOG_TOLERANCE)
    return found


def model(backbone: str, masking: str, options: Namespace) -> dict[str, Any]:
    """Loss and gradient against the CPU's in float32, compiled against eager, bf16 against float32, graph breaks."""
    torch.backends.cudnn.allow_tf32 = False  # or convolutions have ten bits of mantissa
    torch.manual_seed(0)
    mim = fastmim.MIM(backbone, img_size=128, masking=masking)  # type: ignore[arg-type]
    batch = synthetic_batch(8, 128, "cpu")
    # In float32 before they are sent: devices divide differently, and a gradient of 0 +- 1e-7 falls into HOG's first
    # bin on one and into the last on the other, which changes a loss by up to 1e-4.
    batch["images"] = batch["images"] / 127.5 - 1
    expected = loss_and_gradient(mim, batch, "cpu")
    mim.to(options.device)
    eager = loss_and_gradient(mim, batch, options.device)
    counters.clear()
    compiled = loss_and_gradient(mim, batch, options.device, compile=not options.toy)
    breaks = sum(counters["graph_break"].values())
    cuda = options.device.startswith("cuda")
    for _ in range(3):  # run, recorded, replayed
        halved = loss_and_gradient(mim, batch, options.device, bf16=True, compile=not options.toy, cuda_graphs=cuda)
    found = {
        "loss": expected[0].item(),
        "loss, relative difference": relative(eager[0], expected[0]),
        "gradient, relative difference": relative(eager[1], expected[1]),
        "compiled: loss": relative(compiled[0], expected[0]),
        "compiled: gradient": relative(compiled[1], expected[1]),
        "compiled bf16, replayed: loss": relative(halved[0], expected[0]),
        "compiled bf16, replayed: gradient": relative(halved[1], expected[1]),
        "graph breaks": breaks,
    }
    for name, limit in (("loss, relative difference", LOSS_TOLERANCE), ("compiled: loss", LOSS_TOLERANCE)):
        check(name, found[name], limit)
    check("gradient", found["gradient, relative difference"], GRADIENT_TOLERANCE)
    check("bf16 loss", found["compiled bf16, replayed: loss"], BF16_TOLERANCE)
    check("graph breaks", breaks, 0)
    return found


def loss_and_gradient(mim: nn.Module, batch: dict[str, Tensor], device: str, **form: bool) -> tuple[Tensor, Tensor]:
    """The loss and all gradients in one vector, on the CPU."""
    mim.zero_grad(set_to_none=True)
    mim.train()
    form = {"bf16": False, "compile": False} | form
    forward = make_forward(mim, dict, torch.device(device), **form)
    loss = forward({name: value.to(device) for name, value in batch.items()})
    loss.backward()
    gradients = [p.grad.flatten().cpu() for p in mim.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients)


def resume(options: Namespace) -> dict[str, Any]:
    """Weights of a staged run that went on from its middle, against one that did not stop."""
    found: dict[str, Any] = {}
    for precision in ("float32", "bf16"):
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder, "whole"), Path(folder, "parts")
            settings = run_settings(options) | {"precision": precision}
            silent(fastmim.pretrain, **settings, out=whole)
            shutil.copytree(whole, parts)
            newest = max(RunDirectory(parts).checkpoints.glob("step_*"))
            shutil.rmtree(newest)
            RunDirectory(parts).weights.unlink()
            silent(fastmim.pretrain, **settings, out=parts)
            a, b = (load_file(RunDirectory(out).weights) for out in (whole, parts))
            found[f"{precision}, equal to the bit"] = all(torch.equal(a[name], b[name]) for name in a)
            difference = max(relative(b[name].float(), a[name].float()) for name in a if a[name].is_floating_point())
            found[f"{precision}, largest relative difference"] = difference
    check("resumed weights", found["float32, largest relative difference"], 1e-3)
    return found


def transfer(options: Namespace) -> dict[str, Any]:
    """Embedding and a probe of a run's weights on the device against the CPU's."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        silent(fastmim.pretrain, **run_settings(options), out=run)
        features = []
        for device in ("cpu", options.device):
            backbone = fastmim.load_backbone(RunDirectory(run).weights).to(device).eval()
            images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
            with torch.no_grad():
                features.append(backbone.forward_features(images).float().cpu())
    found = {"features, relative difference": relative(features[1], features[0])}
    check("features", found["features, relative difference"], 1e-4)
    return found


def run_settings(options: Namespace) -> dict[str, Any]:
    return {
        "data": "samples",
        "backbone": "test_vit",
        "backbone_args": {"drop_path_rate": 0.2},  # its random numbers must be the same after a stop
        "stages": "64:0.5,96:0.5",
        "batch_size": 16,
        "steps": 12,
        "save_every": 5,
        "log_every": 4,
        "num_workers": 1,
        "device": options.device,
        "trackers": "none",
        "picture_every": "never",
    }


def backbones(options: Namespace) -> Cases:
    """A compiled training step of every twentieth model of timm, small ones only."""
    names = timm.list_models()[::20] if not options.toy else ["test_vit", "test_resnet"]
    return {name: partial(backbone_step, name, options) for name in names}


def backbone_step(name: str, options: Namespace) -> dict[str, Any]:
    """Two steps; losses finite."""
    try:
        mim = fastmim.MIM(name, img_size=128)
    except fastmim.RequestError as error:
        return {"refused": str(error)[:200]}
    num_parameters = sum(p.numel() for p in mim.parameters()) / 1e6
    if num_parameters > 150:
        return {"left out": f"{num_parameters:.0f} M parameters"}
    mim.to(options.device).train()
    counters.clear()
    cuda = options.device.startswith("cuda")
    step = fastmim_step(mim, synthetic_batch(8, 128, options.device), Form(precision="bf16", compile=cuda))
    step()
    step()
    finite = all(bool(p.isfinite().all()) for p in mim.parameters())
    if not finite:
        raise ArithmeticError("weights are not finite after two steps")
    return {"graph breaks": sum(counters["graph_break"].values()), "million parameters": num_parameters}


def relative(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


def check(what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ArithmeticError(f"{what}: {value:.3g}; expected at most {limit:.3g}")


def silent(function: Callable[..., Any], **settings: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = function(**settings)
    if not result.finished:  # by a signal, which is meant for this script as well
        sys.exit(1)
