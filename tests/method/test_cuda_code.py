"""What a training step adds to its network compiles for a GPU, which the machines of the suite do not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "cuda_code.py"


def test_every_kernel_compiles() -> None:
    pytest.importorskip("triton", reason="torch for CPUs alone comes without it")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("masks", "visible positions", "flip and normalise", "HOG", "pixels", "projection", "keys of copies"):
        assert f"{name}: triton_" in done.stdout
