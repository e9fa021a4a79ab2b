"""Distances to the papers' own code: features, losses, gradients, position tables, learning rates, CMT-S.

    OMP_NUM_THREADS=1 python benchmarks/parity.py

No foreign code runs here. Small checkpoints in the official layouts, with random weights, go through `fastmim.convert`,
and what comes out is compared with the formulas of `tests/parity` and `tests/foreign_models.py` in float64. BEFORE is
what was measured once, on commit a647802, against the official code itself (FastMIM d4eea0d, MAE efb2a80, SimMIM
d3e29bc) with equal weights, images and masks; a dash where nothing was. "rel" is the norm of the difference over the
norm; of a loss, its relative difference. HOG itself is not compared here: losses take ours as the target.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT / "tests")  # not beside but instead of this folder: the tests have a package of this file's name

import fastmim  # noqa: E402
from fastmim.backbone import Backbone, Classifier  # noqa: E402
from fastmim.backbone.initial import sincos_table  # noqa: E402
from fastmim.bench import records  # noqa: E402
from fastmim.data.statistics import IMAGENET_MEAN  # noqa: E402
from foreign_models import Maker, swin_forward  # noqa: E402
from parity import checkpoints, reference, test_position_tables  # noqa: E402

REFUSED = "refused"
BEFORE: dict[str, tuple[str, str]] = {
    # check -> unit, what was measured before
    "features, FastMIM ViT": ("rel", "6.1e-7"),
    "features, FastMIM Swin": ("rel", "7.5e-7"),
    "features, FastMIM PVTv2": ("rel", REFUSED),
    "features, FastMIM CMT": ("rel", REFUSED),
    "features, MAE ViT": ("rel", "6.6e-7"),
    "features, SimMIM Swin": ("rel", "0"),
    "features, SimMIM ViT": ("rel", "1.9e-7"),
    "predictions, FastMIM ViT": ("rel", "-"),
    "predictions, FastMIM ViT, pixels": ("rel", "2.3e-3, decoder by hand"),
    "predictions, FastMIM Swin": ("rel", "1.8e-6, decoder by hand"),
    "predictions, FastMIM PVTv2": ("rel", "1.8e-6, all by hand"),
    "predictions, FastMIM CMT": ("rel", REFUSED),
    "predictions, MAE ViT": ("rel", "0.252, decoder by hand"),
    "predictions, SimMIM Swin": ("rel", "-"),
    "predictions, SimMIM ViT": ("rel", "-"),
    "loss, FastMIM ViT": ("rel", "1.3e-4 (absolute)"),
    "loss, FastMIM ViT, pixels": ("rel", "1.0e-4 (absolute)"),
    "loss, FastMIM Swin": ("rel", "1.2e-7 (absolute)"),
    "loss, FastMIM PVTv2": ("rel", "0"),
    "loss, FastMIM CMT": ("rel", REFUSED),
    "loss, MAE ViT": ("rel", "1.6e-3"),
    "loss, SimMIM Swin": ("rel", "0 (absolute, on their reconstruction)"),
    "loss, SimMIM ViT": ("rel", "1.2e-7 (absolute, on their reconstruction)"),
    "gradients, FastMIM ViT": ("rel", "-"),
    "gradients, FastMIM ViT, pixels": ("rel", "3e-3 to 7e-3"),
    "gradients, FastMIM Swin": ("rel", "3e-6"),
    "gradients, FastMIM PVTv2": ("rel", "3e-6"),
    "gradients, FastMIM CMT": ("rel", REFUSED),
    "gradients, MAE ViT": ("rel", "0.06 to 0.09"),
    "gradients, SimMIM Swin": ("rel", "-"),
    "gradients, SimMIM ViT": ("rel", "-"),
    "mean recorded for MAE's encoder that is converted by name, from ImageNet's": ("difference", "0.094"),
    "logits, fine-tuned ViT": ("rel", "0.242"),
    "logits, fine-tuned Swin": ("rel", "3.1e-7, by hand"),
    "sine-cosine positions": ("rel", "0.62"),
    "Swin's tables, window 4 to 7": ("rel", "0.087"),
    "Swin's tables, window 6 to 7": ("rel", "0.019"),
    "Swin's tables, window 7 to 12": ("rel", "-"),
    "Swin's tables, window 4 to 7 and back": ("rel", "-"),
    "Swin's tables, window 6 to 7 and back": ("rel", "-"),
    "Swin's tables, window 7 to 12 and back": ("rel", "-"),
    "ViT's learned positions, grid 8 to 14": ("rel", "8.3e-3"),
    "layer decay, ViT-B": ("tensors at another rate", "0 of 150"),
    "layer decay, Swin-B": ("tensors at another rate", "11 of 329"),
    "layer decay, PVTv2-B2": ("tensors at another rate", "316 of 334"),
    "layer decay, CMT-S": ("distinct rates, theirs 27", "27"),
    "CMT-S, parameters": ("theirs 26,256,160", "25.560 M"),
    "CMT-S, multiply-adds at 224 px": ("theirs 4.03 G", "3.92 G"),
}


def rel(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def pretrainings(folder: Path) -> dict[str, float]:
    """Features, predictions, losses and gradients of every layout through `convert` and `--init`."""
    found: dict[str, float] = {}
    for name, make in checkpoints.CHECKPOINTS.items():
        official = make()
        conversion = checkpoints.converted(folder, official.state, official.network)
        settings = official.settings | {"img_size": official.size}
        model, _ = checkpoints.started(conversion, **settings)
        images, output = checkpoints.run(model, official.size)
        state = checkpoints.in_double(official.state)
        token = model.mask_token
        if token is not None and "mask_token" not in state:  # SimMIM's replaces no pixels
            state["mask_token"] = token.detach().double()
        weights = [official.first[0]] + (["mask_token"] if token is not None else [])
        for weight in weights:
            state[weight].requires_grad_()
        expected = checkpoints.loss(official, state, images, output)
        expected.backward()
        output["loss"].backward()
        with torch.no_grad():
            if f"features, {name}" in BEFORE:
                features = official.features(state, images.double())
                found[f"features, {name}"] = rel(model.backbone(images), features)
            predicted = official.predict(state, images.double(), output["mask"])
        ours = output["prediction"].detach().flatten(2).transpose(1, 2)
        if official.settings.get("target") == "pixels":  # theirs end in the colour, ours begin with it
            side = official.size // output["mask"].shape[-1]
            predicted = predicted.unflatten(2, (side, side, 3)).movedim(-1, 2).flatten(2)
        found[f"predictions, {name}"] = rel(ours, predicted)
        found[f"loss, {name}"] = abs(float(output["loss"].detach().double() / expected.detach() - 1))
        own = dict(model.named_parameters())
        names = [f"backbone.model.{official.first[1]}", "mask_token"]
        found[f"gradients, {name}"] = max(
            rel(gradient(own[ours]).flatten(), gradient(state[theirs]).flatten())
            for ours, theirs in zip(names, weights, strict=False)
        )
    return found


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def finetuned(folder: Path) -> dict[str, float]:
    """Logits of fine-tuned files, and the normalisation of an encoder that is converted by timm's name."""
    generator = torch.Generator().manual_seed(2)
    weights = reference.official_checkpoint(out_channels=1, mask_token=(1, 3, 1, 1))
    body = {key: value for key, value in weights.items() if key.startswith(("blocks", "patch_embed", "cls", "pos"))}
    encoder = {**body, "norm.weight": weights["norm.weight"], "norm.bias": weights["norm.bias"]}
    mean = checkpoints.converted(folder, encoder, checkpoints.VIT).mean
    body |= {f"fc_norm.{part}": torch.randn(reference.WIDTH, generator=generator) for part in ("weight", "bias")}
    body |= {"head.weight": torch.randn(5, reference.WIDTH, generator=generator), "head.bias": torch.arange(5.0)}
    images = torch.randn(2, 3, 32, 32, generator=generator)
    vit = rel(logits(folder, body, checkpoints.VIT, images), reference.classify(images, body))

    make = Maker()
    make.swin("", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
    state = checkpoints.in_double(make.state)
    features = swin_forward(state, images.double(), prefix="", heads=(1, 2, 4), window=2).mean((1, 2))
    make.linear("head", 128, 5)
    expected = F.linear(features, make.state["head.weight"].double(), make.state["head.bias"].double())
    tuned = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: t for key, t in make.state.items()}
    return {
        "mean recorded for MAE's encoder that is converted by name, from ImageNet's": max(
            abs(a - b) for a, b in zip(mean, IMAGENET_MEAN, strict=True)
        ),
        "logits, fine-tuned ViT": vit,
        "logits, fine-tuned Swin": rel(logits(folder, tuned, checkpoints.SWIN, images), expected),
    }


def logits(folder: Path, state: dict[str, Tensor], network: dict[str, Any], images: Tensor) -> Tensor:
    torch.save({"model": state}, folder / "tuned.pth")
    path = fastmim.convert(
        folder / "tuned.pth", out=folder / "t.safetensors", overwrite=True, keep_head=True, **network
    ).path
    facts = fastmim.weights.read(path)[1]
    model = timm.create_model(facts["architecture"], **facts["arguments"], checkpoint_path=path)
    with torch.no_grad():
        return model.eval()(images)


def tables() -> dict[str, float]:
    """Tables over positions at other sizes: Swin's smooth ones, a ViT's random one, and sines and cosines."""
    found = {"sine-cosine positions": rel(sincos_table((4, 4), 48), reference.sincos(48))}
    for size, window, larger, new in test_position_tables.GROWING:
        backbone = test_position_tables.swin(size, test_position_tables.peak)
        before = test_position_tables.first_table(backbone).detach()[:, 0].clone()
        backbone.set_input_size(larger)
        after = test_position_tables.first_table(backbone).detach()[:, 0].clone()
        expected = test_position_tables.published(before.view(2 * window - 1, -1).numpy(), new)
        found[f"Swin's tables, window {window} to {new}"] = rel(after, torch.from_numpy(expected).flatten())
        backbone.set_input_size(size)
        back = test_position_tables.first_table(backbone).detach()[:, 0]
        found[f"Swin's tables, window {window} to {new} and back"] = rel(back, before)
    backbone = Backbone("vit_tiny_patch16_224", img_size=128, args={"embed_dim": 48, "depth": 1})
    before = backbone.model.pos_embed.data.normal_()[:, 1:].clone()  # type: ignore[union-attr, operator]
    backbone.set_input_size(224)
    expected = F.interpolate(before.transpose(1, 2).unflatten(2, (8, 8)), (14, 14), mode="bicubic").flatten(2)
    after = backbone.model.pos_embed.detach()[:, 1:]  # type: ignore[union-attr, index]
    found["ViT's learned positions, grid 8 to 14"] = rel(after.transpose(1, 2), expected)
    return found


def vit_layer(name: str) -> int:
    part = name.split(".")
    return int(part[1]) + 1 if part[0] == "blocks" else 13 if part[0] in ("fc_norm", "norm", "head") else 0


def swin_layer(name: str) -> int:
    part, depths = name.split("."), (2, 2, 18, 2)
    if part[0] != "layers":
        return 0 if part[0] == "patch_embed" else 25
    before = sum(depths[: int(part[1])])
    return before if part[2] == "downsample" else before + int(part[3]) + 1


def pvt_layer(name: str) -> int:
    part, depths = name.split("."), (3, 4, 6, 3)
    if part[0] != "stages" or name.startswith("stages.3.norm"):
        return 0 if part[0] == "patch_embed" else 17
    before, here = sum(depths[: int(part[1])]), depths[int(part[1])]
    if part[2] == "blocks":
        return before + int(part[3]) + 1
    return before if part[2] == "downsample" else before + here


def layer_decay() -> dict[str, float]:
    """Tensors whose learning rate is not layer decay to the power of the layers above: `*_layer` are the authors'."""
    families: dict[str, tuple[str, dict[str, Any], int, Callable[[str], int]]] = {
        "ViT-B": ("vit_base_patch16_224", {"embed_dim": 48, "num_heads": 3}, 13, vit_layer),
        "Swin-B": ("swin_base_patch4_window7_224", {"embed_dim": 32, "num_heads": (1, 2, 4, 8)}, 25, swin_layer),
        "PVTv2-B2": ("pvt_v2_b2", {"embed_dims": (8, 16, 40, 64)}, 17, pvt_layer),
    }
    found: dict[str, float] = {}
    for family, (name, arguments, last, layer) in families.items():
        measured = exponents(name, arguments)
        found[f"layer decay, {family}"] = sum(round(measured[key]) != last - layer(key) for key in measured)
    small = {"stem_width": 8, "embed_dims": (16, 24, 32, 48), "num_heads": (1, 1, 2, 2), "head_width": 64}
    found["layer decay, CMT-S"] = len({round(value, 6) for value in exponents("cmt_s", small).values()})
    return found


def exponents(name: str, arguments: dict[str, Any]) -> dict[str, float]:
    """How often the layer decay multiplies the learning rate of each parameter."""
    model = Classifier(name, num_classes=5, img_size=224, args=arguments)
    names = {parameter: key for key, parameter in model.model.named_parameters()}
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    return {names[p]: -math.log2(group["lr_scale"]) for group in groups for p in group["params"]}


def cmt() -> dict[str, float]:
    """The size and the cost of CMT-S in fine-tuning; its final norm is there in pre-training only."""
    with torch.device("meta"):
        model = timm.create_model("cmt_s").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("norm."))
    return {"CMT-S, parameters": parameters, "CMT-S, multiply-adds at 224 px": counter.get_total_flops() / 2}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        found = pretrainings(Path(folder)) | finetuned(Path(folder)) | tables() | layer_decay() | cmt()
    missing = BEFORE.keys() ^ found.keys()
    assert not missing, missing
    records.write(
        Path(__file__).parent / "records",
        "parity",
        show=True,
        claim="Features, losses, gradients, position tables and learning rates are those of the papers' own code.",
        config={"before": "commit a647802 against FastMIM d4eea0d, MAE efb2a80, SimMIM d3e29bc", "weights": "random"},
        raw=found,
        summary={
            check: {"unit": unit, "before": before, "now": found[check]} for check, (unit, before) in BEFORE.items()
        },
    )


if __name__ == "__main__":
    main()
