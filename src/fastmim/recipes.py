"""Published settings as functions that return configs' values; flags and YAML override them.

The scores in the docstrings are the papers', measured by their authors after fine-tuning at 224 pixels on
ImageNet-1K. We have not repeated the ImageNet runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def vit_b() -> dict[str, Any]:
    """FastMIM ViT-B (Guo et al., arXiv 2212.06593): 83.8 % top-1 after 800 epochs; 304 V100-hours for 83.6 %.

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


def swin_b() -> dict[str, Any]:
    """FastMIM Swin-B (same paper): 84.1 % top-1 after 400 epochs; COCO 52.0 box AP, 46.0 mask AP.

    The window is 4 at 128 pixels (a fixed share of the map) and 7 at 224.

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


def pvtv2_b2() -> dict[str, Any]:
    """FastMIM PVTv2-B2 (same paper): 82.5 % top-1 after 800 epochs.

    fastmim pretrain --recipe pvtv2-b2 --data imagenet/train --out runs/pvtv2-b2
    """
    return swin_b() | {"backbone": "pvt_v2_b2", "epochs": 800.0, "warmup": "20 epochs"}


RECIPES: dict[str, Callable[[], dict[str, Any]]] = {"vit-b": vit_b, "swin-b": swin_b, "pvtv2-b2": pvtv2_b2}


def finetune_vit_b() -> dict[str, Any]:
    """Fine-tuning FastMIM's ViT-B: 83.8 % top-1 on ImageNet-1K (Guo et al., arXiv 2212.06593).

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


def finetune_swin_b() -> dict[str, Any]:
    """Fine-tuning FastMIM's Swin-B: 84.1 % top-1 on ImageNet-1K (same paper).

    fastmim finetune --recipe swin-b --weights runs/swin-b --data imagenet --out runs/swin-b-ft
    """
    return finetune_vit_b() | {"lr": 1e-3, "layer_decay": 0.8}


FINETUNE_RECIPES: dict[str, Callable[[], dict[str, Any]]] = {"vit-b": finetune_vit_b, "swin-b": finetune_swin_b}
