"""Class folders of tiny images, and the settings of a study that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from fastmim.studies import trial_process
from processes import Forked

NETWORK: dict[str, Any] = {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}


def draw_classes(root: Path) -> Path:
    """Draw noisy bars, 16 x 16 pixels, of two classes, lying and upright: 40 images in train/ and 20 in val/."""
    generator = np.random.default_rng(0)
    for part, number in (("train", 20), ("val", 10)):
        for name in ("lying", "upright"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 60, (16, 16), dtype=np.uint8)
                at = int(generator.integers(2, 12))
                if name == "lying":
                    pixels[at : at + 3] += 150
                else:
                    pixels[:, at : at + 3] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def settings(images: Path, **more: Any) -> dict[str, Any]:
    """The settings of a study of one point and scratch, with one seed."""
    small: dict[str, Any] = {
        "data": str(images),
        "sweep": ["target=hog"],
        "set": ["img_size=16", "batch_size=8", "mask_ratio=0.5"],
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": NETWORK,
        "seeds": 1,
        "steps": 6,
        "labels": "4,16",
        "finetune_steps": 4,
        "device": "cpu",
        "parallel": 1,
    }
    return small | more


def fork_trials(patch: pytest.MonkeyPatch) -> None:
    """Let the trials of a study be forks, which have torch already."""

    def start(words: Sequence[str], *, stdout: IO[bytes], env: dict[str, str], **_: Any) -> Forked:
        reading, writing = os.pipe()

        def run() -> None:
            os.setsid()
            os.close(writing)
            os.dup2(reading, 0)
            sys.argv[1:] = words[-1:]
            trial_process.main()

        process = Forked(run, Path(str(stdout.name)), **env)
        os.close(reading)
        process.stdin = os.fdopen(writing, "wb")
        return process

    popen = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    patch.setattr("fastmim.studies.processes.subprocess", popen)
