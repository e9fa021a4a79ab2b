"""Pinned loss curves, which every refactor must reproduce. After a change that is meant to alter training, run
`python tests/test_golden.py` and explain in the commit why the curves moved."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import fastmim
from conftest import SMALL, losses

GOLDEN = Path(__file__).parent / "golden"
RUNS: dict[str, dict[str, Any]] = {
    "vit-hog": {},
    "vit-pixels-staged": {"target": "pixels", "stages": "32:0.5,48:0.5", "micro_batch": 4},
    "convnext-hog": {"backbone": "test_convnext", "backbone_args": {}, "img_size": 64},
}


def curve(name: str, out: Path) -> list[float]:
    fastmim.pretrain(**(SMALL | {"data": "samples", "out": out, "lr": 1e-2} | RUNS[name]))
    return losses(out)


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_curve_equals_the_pinned_one(name: str, tmp_path: Path) -> None:
    pinned = json.loads((GOLDEN / f"{name}.json").read_text())
    # Processors round differently; over 12 steps the difference stays below a thousandth.
    assert curve(name, tmp_path / "run") == pytest.approx(pinned, rel=1e-3)


if __name__ == "__main__":
    for run in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            (GOLDEN / f"{run}.json").write_text(json.dumps(curve(run, Path(folder))) + "\n")
