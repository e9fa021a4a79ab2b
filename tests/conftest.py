"""What several tests share: a folder of small photographs and a run small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastmim.data.sources import open_source

# 0.1 M parameters, 4 x 4 positions: a step takes milliseconds.
SMALL: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "img_size": 32,
    "batch_size": 8,
    "steps": 12,
    "lr": 1e-2,
    "save_every": 4,
    "log_every": 2,
    "num_workers": 0,
    "device": "cpu",
    "trackers": "none",
    "picture_every": "never",
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs of 96 x 80 pixels, cut from the built-in photographs."""
    folder = tmp_path_factory.mktemp("photos")
    samples = open_source("samples")
    for number in range(24):
        pixels = samples.read(number * len(samples) // 24)
        Image.fromarray(pixels).convert("RGB").resize((96, 80)).save(folder / f"{number:02d}.jpg")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors: threads only get in each other's way."""
    torch.set_num_threads(1)
