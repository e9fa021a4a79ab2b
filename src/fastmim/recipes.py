"""Recipes: functions that return published settings, which flags and YAML override.

Each docstring opens with the published result (ImageNet-1K top-1 after fine-tuning at 224 pixels, unless it names
another) and its source. We have not repeated these runs. MAE, SimMIM and MaskFeat are settings of the same `MIM`;
SimMIM and MaskFeat originally put their mask token over embedded patches, whereas we paint it over the pixels. What
else differs from the official code is in docs/as-published.md, with numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]


def vit_b() -> Settings:
    """83.8 % after 800 epochs, 83.6 % in 304 V100-hours (Guo et al., FastMIM, arXiv 2212.06593).

    The official code pre-trains with 6 heads and fine-tunes with 12; ours has 12 throughout.

    fastmim pretrain --recipe vit-b --data imagenet/train --out runs/vit-b
    """
    return {
        "backbone": "vit_base_patch16_224",
        "img_size": 128,
        "epochs": 800.0,
        "warmup": "20 epochs",
        "batch_size": 4096,
        "lr": 1.5e-4,
        "block": 16,
        "decoder": "256x1",
    }


def swin_b() -> Settings:
    """84.1 % after 400 epochs; COCO 52.0 box AP, 46.0 mask AP (same paper).

    The window scales with the feature map: 4 at 128 pixels, 7 at 224.

    fastmim pretrain --recipe swin-b --data imagenet/train --out runs/swin-b
    """
    return {
        "backbone": "swin_base_patch4_window7_224",
        "img_size": 128,
        "epochs": 400.0,
        "warmup": "10 epochs",
        "batch_size": 2048,
        "lr": 1.5e-4,
        "block": 32,
        "decoder": "256x4",
    }


def swin_l() -> Settings:
    """No published schedule: the paper's settings for Swin-B, applied to Swin-L.

    fastmim pretrain --recipe swin-l --data imagenet/train --out runs/swin-l
    """
    return swin_b() | {"backbone": "swin_large_patch4_window7_224"}


def pvtv2_b2() -> Settings:
    """82.5 % after 800 epochs (same paper; the released checkpoint's name says that its targets were pixels).

    Its batch, learning rate, warm-up and decoder are not published; they are Swin-B's here.

    fastmim pretrain --recipe pvtv2-b2 --data imagenet/train --out runs/pvtv2-b2
    """
    return swin_b() | {"backbone": "pvt_v2_b2", "epochs": 800.0, "warmup": "20 epochs"}


def cmt_s() -> Settings:
    """83.9 % after 800 epochs (same paper).

    Its batch, learning rate, warm-up and decoder are not published; they are Swin-B's here.

    fastmim pretrain --recipe cmt-s --data imagenet/train --out runs/cmt-s
    """
    return pvtv2_b2() | {"backbone": "cmt_s"}


def twins() -> Settings:
    """No published schedule: the paper's settings for hierarchical networks, applied to Twins-SVT-S.

    fastmim pretrain --recipe twins --data imagenet/train --out runs/twins
    """
    return pvtv2_b2() | {"backbone": "twins_svt_small"}


def convnext() -> Settings:
    """No published schedule: the paper's settings for hierarchical networks, applied to ConvNeXt-B.

    fastmim pretrain --recipe convnext --data imagenet/train --out runs/convnext
    """
    return pvtv2_b2() | {"backbone": "convnext_base"}


def fastmim_p() -> Settings:
    """FastMIM-P: no published schedule. Swin-L at rising resolution (paper, section 3.4); the shares are ours.

    fastmim pretrain --recipe fastmim-p --data imagenet/train --out runs/fastmim-p
    """
    return swin_l() | {"stages": "128:0.5,160:0.3,192:0.2"}


def mae_vit_b() -> Settings:
    """83.6 % after 1600 epochs (He et al., Masked Autoencoders, CVPR 2022).

    fastmim pretrain --recipe mae-vit-b --data imagenet/train --out runs/mae-vit-b
    """
    return {
        "backbone": "vit_base_patch16_224",
        "img_size": 224,
        "epochs": 1600.0,
        "warmup": "40 epochs",
        "batch_size": 4096,
        "lr": 1.5e-4,
        "block": 16,
        "masking": "drop",
        "decoder": "512x8",
        "target": "pixels",
    }


def simmim_swin_b() -> Settings:
    """84.0 % after 800 epochs (Xie et al., SimMIM, CVPR 2022).

    The learning rate falls to a tenth at epoch 700. The original crops by bilinear interpolation, ours is bicubic.

    fastmim pretrain --recipe simmim-swin-b --data imagenet/train --out runs/simmim-swin-b
    """
    return {
        "backbone": "swin_base_patch4_window7_224",
        "img_size": 192,
        "epochs": 800.0,
        "warmup": "10 epochs",
        "batch_size": 2048,
        "lr": 0.5e-4,
        "lr_drop": "87.5%",  # epoch 700 of 800
        "betas": (0.9, 0.999),
        "clip": 5.0,
        "crop_scale": (0.67, 1.0),
        "mask_ratio": 0.6,
        "block": 32,
        "decoder": "linear",
        "target": "rgb",
        "loss": "l1",
        "linear_init": "timm",
    }


def simmim_vit_b() -> Settings:
    """83.8 % after 800 epochs (same paper).

    The original is another ViT: relative position biases shared by all blocks in place of position embeddings, layer
    scale 0.1, and drop path 0.1 in pre-training. `fastmim convert` knows its files.

    fastmim pretrain --recipe simmim-vit-b --data imagenet/train --out runs/simmim-vit-b
    """
    return simmim_swin_b() | {"backbone": "vit_base_patch16_224", "img_size": 224}


def maskfeat_vit_b() -> Settings:
    """83.4 % after 300 epochs, 84.0 % after 1600 (Wei et al., MaskFeat, CVPR 2022; 300 epochs: MMPreTrain).

    Unlike ours, the original hides blocks in larger groups and computes HOG as Dalal and Triggs do.

    fastmim pretrain --recipe maskfeat-vit-b --data imagenet/train --out runs/maskfeat-vit-b
    """
    return {
        "backbone": "vit_base_patch16_224",
        "img_size": 224,
        "epochs": 300.0,
        "warmup": "30 epochs",
        "batch_size": 2048,
        "lr": 2e-4,
        "betas": (0.9, 0.999),
        "clip": 0.02,
        "crop_scale": (0.5, 1.0),
        "mask_ratio": 0.4,
        "block": 16,
        "decoder": "linear",
        "target": "hog",
        "linear_init": "timm",
    }


def adapt() -> Settings:
    """No published schedule: a public model adapted with a frozen copy of itself as the teacher, beside HOG.

    Over seven remote-sensing tasks, masked image modeling with a frozen teacher's features gained 3.3 points in 93
    V100-hours, going on with masked image modeling alone 1.2 points in 133 (GFM, arXiv 2302.04476). Epochs, learning
    rate and layer decay are ours, low so that little is lost, and not tuned. --init decides the backbone and, with
    `fastmim adapt`, the image size.

    fastmim adapt --init timm:vit_small_patch14_dinov2.lvd142m --data photos/ --probe labelled/ --out runs/adapted
    """
    return {
        "target": "hog+teacher",
        "teacher": "init",
        "epochs": 20.0,
        "warmup": "10%",
        "lr": 1e-4,
        "layer_decay": 0.75,
        "probe_every": "25%",
    }


RECIPES: dict[str, Callable[[], Settings]] = {
    "vit-b": vit_b,
    "swin-b": swin_b,
    "swin-l": swin_l,
    "pvtv2-b2": pvtv2_b2,
    "cmt-s": cmt_s,
    "twins": twins,
    "convnext": convnext,
    "fastmim-p": fastmim_p,
    "mae-vit-b": mae_vit_b,
    "simmim-swin-b": simmim_swin_b,
    "simmim-vit-b": simmim_vit_b,
    "maskfeat-vit-b": maskfeat_vit_b,
    "adapt": adapt,
}


def finetune_vit_b() -> Settings:
    """83.8 % with FastMIM's ViT-B (Guo et al., arXiv 2212.06593).

    fastmim finetune --recipe vit-b --weights runs/vit-b --data imagenet --out runs/vit-b-ft
    """
    return {
        "img_size": 224,
        "epochs": 100.0,
        "warmup": "5 epochs",
        "batch_size": 1024,
        "lr": 6e-4,
        "layer_decay": 0.7,
        "drop_path": 0.1,
        "crop_scale": (0.08, 1.0),
        "eval_crop": 0.875,
    }


def finetune_swin_b() -> Settings:
    """84.1 % with FastMIM's Swin-B (same paper).

    fastmim finetune --recipe swin-b --weights runs/swin-b --data imagenet --out runs/swin-b-ft
    """
    return finetune_vit_b() | {"lr": 1e-3, "layer_decay": 0.8}


FINETUNE_RECIPES: dict[str, Callable[[], Settings]] = {"vit-b": finetune_vit_b, "swin-b": finetune_swin_b}


def segment_vit_b() -> Settings:
    """ADE20K: 49.5 % mIoU with FastMIM's ViT-B (Guo et al., arXiv 2212.06593).

    The original adds relative position biases to the ViT, which timm's has not, and its pyramid has batch norms where
    ours has LayerNorms.

    fastmim segment --recipe vit-b --weights runs/vit-b --data ADEChallengeData2016 --out runs/vit-b-ade
    """
    return {
        "img_size": 512,
        "steps": 160_000,
        "warmup": "1500 steps",
        "batch_size": 16,
        "lr": 3e-4 * 16,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "drop_path": 0.1,
        "depths": (1, 3, 9, 11),
        "channels": 768,
        "test": "slide",
        "test_stride": 341,
    }


def segment_mae_vit_b() -> Settings:
    """ADE20K: 48.1 % mIoU with MAE's ViT-B (He et al., CVPR 2022; these settings, and 48.13 %: MMSegmentation).

    It differs from the original as `vit-b` does.

    fastmim segment --recipe mae-vit-b --weights mae.safetensors --data ADEChallengeData2016 --out runs/mae-ade
    """
    return segment_vit_b() | {"lr": 1e-4 * 16, "layer_decay": 0.65, "depths": (3, 5, 7, 11)}


def segment_swin_b() -> Settings:
    """ADE20K: no result of FastMIM's Swin-B is published; settings of Liu et al. (Swin, ICCV 2021).

    fastmim segment --recipe swin-b --weights runs/swin-b --data ADEChallengeData2016 --out runs/swin-b-ade
    """
    return {
        "img_size": 512,
        "steps": 160_000,
        "warmup": "1500 steps",
        "batch_size": 16,
        "lr": 6e-5 * 16,
        "weight_decay": 0.01,
        "drop_path": 0.3,
        "channels": 512,
        "test": "whole",
    }


SEGMENT_RECIPES: dict[str, Callable[[], Settings]] = {
    "vit-b": segment_vit_b,
    "mae-vit-b": segment_mae_vit_b,
    "swin-b": segment_swin_b,
}


def result(recipe: Callable[[], Settings]) -> str:
    """Return the first line of a recipe's docstring: the published result and its source."""
    return (recipe.__doc__ or "").split("\n")[0]


def describe() -> str:
    """List every recipe with its image size, length and batch, followed by its published result."""
    lines = ["fastmim pretrain --recipe"]
    for name, recipe in RECIPES.items():
        settings = recipe()
        if name == "adapt":
            lines += [f"  {name:<16}the network of --init, {settings['epochs']:g} epochs", f"{'':<18}{result(recipe)}"]
            continue
        sizes = settings.get("stages", settings["img_size"])
        how = f"{settings['backbone']}, {sizes} px, {settings['epochs']:g} epochs, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("fastmim finetune --recipe")
    for name, recipe in FINETUNE_RECIPES.items():
        settings = recipe()
        how = f"{settings['img_size']} px, {settings['epochs']:g} epochs, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("fastmim segment --recipe")
    for name, recipe in SEGMENT_RECIPES.items():
        settings = recipe()
        how = f"{settings['img_size']} px, {settings['steps']:,} steps, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("Results: as published, ImageNet-1K top-1 unless another is named; we have not repeated these runs.")
    return "\n".join(lines)
