"""Published settings of fine-tuning, segmentation and detection."""

from __future__ import annotations

from collections.abc import Callable

from fastmim.published.pretraining import Settings


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


def detect_swin_b() -> Settings:
    """COCO: 52.0 % box AP, 46.0 % mask AP with FastMIM's Swin-B (Guo et al., arXiv 2212.06593).

    The original starts from the fine-tuned classifier, pastes objects of any other image where ours are of one that is
    read with it, normalises the heads by synchronised batch norms where ours have LayerNorm, and lowers the learning
    rate again at epoch 33. Its batch is 4 images a device, of which it does not name the number: 16 is ours.

    fastmim detect --recipe swin-b --weights runs/swin-b --data coco --out runs/swin-b-coco
    """
    return {
        "img_size": 1024,
        "scale": (0.1, 2.0),
        "copy_paste": True,
        "epochs": 36.0,
        "warmup": "1000 steps",
        "batch_size": 16,
        "lr": 6e-5 * 16,
        "lr_drop": "27 epochs",
        "weight_decay": 0.05,
        "drop_path": 0.2,
    }


def detect_vit_b() -> Settings:
    """COCO: 51.6 % box AP, 45.9 % mask AP with MAE's ViT-B (Li et al., ViTDet, ECCV 2022; Detectron2's settings).

    The original adds relative position biases to the ViT, which timm's has not, and lowers the learning rate again at
    step 177,546.

    fastmim detect --recipe vit-b --weights runs/vit-b --data coco --out runs/vit-b-coco
    """
    return {
        "img_size": 1024,
        "scale": (0.1, 2.0),
        "steps": 184_375,
        "warmup": "250 steps",
        "batch_size": 64,
        "lr": 1e-4 * 4,
        "lr_drop": "163889 steps",
        "weight_decay": 0.1,
        "layer_decay": 0.7,
        "drop_path": 0.1,
        "window": 14,
    }


def detect_swin_t() -> Settings:
    """COCO: no result of FastMIM's Swin-T is published; settings of Liu et al. (Swin, ICCV 2021), 12 epochs.

    The original brings the shorter side of an image to 480 to 800 pixels, ours the longer side to 640 to 1067, which is
    the same for photographs of 4:3; it lowers the learning rate again at epoch 11.

    fastmim detect --recipe swin-t --weights runs/swin-t --data coco --out runs/swin-t-coco
    """
    return {
        "img_size": 1067,
        "scale": (0.6, 1.0),
        "epochs": 12.0,
        "warmup": "1000 steps",
        "batch_size": 16,
        "lr": 1e-4 * 16,
        "lr_drop": "8 epochs",
        "weight_decay": 0.05,
        "drop_path": 0.1,
    }


def detect_convnext_t() -> Settings:
    """COCO: no result of FastMIM's ConvNeXt-T is published; settings of Liu et al. (ConvNeXt, CVPR 2022), 36 epochs.

    Image sizes differ from the original as in `swin-t`, and it lowers the learning rate again at epoch 33.

    fastmim detect --recipe convnext-t --weights runs/convnext-t --data coco --out runs/convnext-t-coco
    """
    own = {"epochs": 36.0, "lr_drop": "27 epochs", "layer_decay": 0.95, "drop_path": 0.4}
    return detect_swin_t() | own


def detect_pvtv2_b2() -> Settings:
    """COCO: no result of FastMIM's PVTv2-B2 is published; settings of Wang et al. (PVTv2, 2022), 12 epochs.

    Image sizes differ from the original as in `swin-t`: it has 800 pixels at the shorter side.

    fastmim detect --recipe pvtv2-b2 --weights runs/pvtv2-b2 --data coco --out runs/pvtv2-b2-coco
    """
    return detect_swin_t() | {"scale": (1.0, 1.0), "lr": 2e-4 * 16, "weight_decay": 1e-4}


DETECT_RECIPES: dict[str, Callable[[], Settings]] = {
    "swin-b": detect_swin_b,
    "vit-b": detect_vit_b,
    "swin-t": detect_swin_t,
    "convnext-t": detect_convnext_t,
    "pvtv2-b2": detect_pvtv2_b2,
}
