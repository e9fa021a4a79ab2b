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
from typing import Any

# Imported at first use: `fastmim --help` must not wait for torch. Editors and type checkers read __init__.pyi, which
# tests/test_signatures.py writes from this and from the settings.
_HOMES = {
    "Backbone": "fastmim.backbone",
    "HOG": "fastmim.method.targets",
    "Joint": "fastmim.method.joint",
    "MIM": "fastmim.method.mim",
    "Pixels": "fastmim.method.targets",
    "RandomProjection": "fastmim.method.targets",
    "RequestError": "fastmim.errors",
    "RunError": "fastmim.errors",
    "Teacher": "fastmim.method.teacher",
    "adapt": "fastmim.adaptation.adapt",
    "backbones": "fastmim.studies.listing",
    "convert": "fastmim.weights.convert",
    "cost": "fastmim.bench.cost",
    "detect": "fastmim.transfer.detect.detect",
    "embed": "fastmim.transfer.features.embed",
    "export": "fastmim.transfer.export",
    "finetune": "fastmim.transfer.classify.finetune",
    "load_backbone": "fastmim.weights",
    "pack": "fastmim.data.packs.packing",
    "predict": "fastmim.transfer.classify.predict",
    "pretrain": "fastmim.pretraining",
    "probe": "fastmim.transfer.features.probe",
    "recipes": "fastmim.published",
    "report": "fastmim.reporting.writing",
    "segment": "fastmim.transfer.segment.segment",
    "study": "fastmim.studies.study",
    "visualise": "fastmim.transfer.visualise",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("fastmim")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
