"""`benchmarks/gpu.py`: every part at its smallest, on the CPU; a part that stands in today's record is not run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"
PARTS = ("check", "ceilings", "step", "hog", "methods", "end-to-end", "profile", "save", "backbones")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--toy", "--rounds", "1", "--records", str(folder)]
    return subprocess.run([*command, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_part_writes_a_record_without_errors(folder: Path) -> None:
    for part in PARTS:
        record = json.loads(next(folder.glob(f"gpu-{part}-cpu-*.json")).read_text())
        assert record["summary"] and record["claim"] and record["hardware"]["device"] == "cpu"
        assert not any("error" in found for found in record["summary"].values())


def test_the_device_agrees_with_itself(folder: Path) -> None:
    record = json.loads(next(folder.glob("gpu-check-cpu-*.json")).read_text())["summary"]
    assert record["ViT"]["loss, relative difference"] == 0
    assert record["stop and go on"]["float32, equal to the bit"] is True


def test_cases_in_the_record_are_not_run_again(folder: Path) -> None:
    assert run(folder, "check", "ceilings").stdout == ""


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "chek")
    assert done.returncode == 2 and "unknown part chek; expected some of check" in done.stderr
