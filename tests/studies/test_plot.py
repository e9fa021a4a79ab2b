"""A plot of many points with long names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmim.studies.plot import draw


@pytest.mark.parametrize("labels", [["500"], ["600", "6000"]])
def test_nothing_is_cut_off(tmp_path: Path, labels: list[str]) -> None:
    number = {"mean": 50.0, "deviation": 1.0}
    point: dict[str, Any] = {
        "top1": dict.fromkeys(labels, number),
        "total_device_seconds": dict.fromkeys(labels, number),
    }
    names = [
        f"target={target} masks_per_image={masks}" for target in ("hog", "random-projection") for masks in range(6)
    ]
    title = "runs/halves/own, pre-trainings of equal cost, 140 steps of fine-tuning at 28 px, 5 seeds, and more besides"
    draw({"scratch": point} | {name: point | {"pretrain": {}} for name in names}, tmp_path / "plot.png", title=title)
    picture = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    assert (picture < 128).any()
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()
