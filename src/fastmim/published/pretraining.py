"""Published settings of pre-training."""

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
    rate and layer decay are ours, low so that little is lost: with 16 times the learning rate a small network lost
    about three times as much of what it knew (benchmarks/adaptation.py). --init decides the backbone and, with
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
