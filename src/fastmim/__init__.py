"""Pre-train any timm backbone on your own images: masked image modeling at low resolution (FastMIM).

import fastmim

model = fastmim.MIM("swin_tiny_patch4_window7_224", img_size=128, target=fastmim.HOG())
model(images)["loss"].backward()

if __name__ == "__main__":  # needed on macOS and Windows, where data workers import the script
    run = fastmim.pretrain(data="photos/", backbone="swin_tiny_patch4_window7_224", out="runs/photos")
    backbone = fastmim.load_backbone("runs/photos")    # a plain timm model
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from fastmim.errors import RequestError, RunError

if TYPE_CHECKING:
    from fastmim.adaptation.adapt import adapt
    from fastmim.backbone import Backbone
    from fastmim.data.packs.packing import pack
    from fastmim.method.mim import MIM
    from fastmim.method.targets import HOG, Joint, Pixels, RandomProjection
    from fastmim.method.teacher import Teacher
    from fastmim.pretraining import pretrain
    from fastmim.studies.study import study
    from fastmim.transfer.classify.finetune import finetune
    from fastmim.transfer.classify.predict import predict
    from fastmim.transfer.detect.detect import detect
    from fastmim.transfer.export import export
    from fastmim.transfer.features.embed import embed
    from fastmim.transfer.features.probe import probe
    from fastmim.transfer.segment.segment import segment
    from fastmim.weights import load_backbone
    from fastmim.weights.convert import convert

# Imported at first use: `fastmim --help` must not wait for torch.
_HOMES = {
    "Backbone": "fastmim.backbone",
    "HOG": "fastmim.method.targets",
    "Joint": "fastmim.method.targets",
    "MIM": "fastmim.method.mim",
    "Pixels": "fastmim.method.targets",
    "RandomProjection": "fastmim.method.targets",
    "Teacher": "fastmim.method.teacher",
    "adapt": "fastmim.adaptation.adapt",
    "convert": "fastmim.weights.convert",
    "detect": "fastmim.transfer.detect.detect",
    "embed": "fastmim.transfer.features.embed",
    "export": "fastmim.transfer.export",
    "finetune": "fastmim.transfer.classify.finetune",
    "load_backbone": "fastmim.weights",
    "pack": "fastmim.data.packs.packing",
    "predict": "fastmim.transfer.classify.predict",
    "pretrain": "fastmim.pretraining",
    "probe": "fastmim.transfer.features.probe",
    "segment": "fastmim.transfer.segment.segment",
    "study": "fastmim.studies.study",
}

__all__ = [
    "HOG",
    "MIM",
    "Backbone",
    "Joint",
    "Pixels",
    "RandomProjection",
    "RequestError",
    "RunError",
    "Teacher",
    "__version__",
    "adapt",
    "convert",
    "detect",
    "embed",
    "export",
    "finetune",
    "load_backbone",
    "pack",
    "predict",
    "pretrain",
    "probe",
    "segment",
    "study",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("fastmim")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
