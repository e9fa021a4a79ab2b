"""`benchmarks/gpu.py`: every part at its smallest, on the CPU; a part that stands in today's record is not run again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = ("check", "ceilings", "step", "replay", "hog", "methods", "end-to-end", "profile", "save", "backbones")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    tf32 = torch.backends.cudnn.allow_tf32
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("gpu")
    torch.backends.cudnn.allow_tf32 = tf32


def run(gpu: Any, folder: Path, *words: str) -> int:
    status: int = gpu.main(["--device", "cpu", "--toy", "--rounds", "1", "--records", str(folder), *words])
    return status


@pytest.fixture(scope="module")
def folder(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    assert run(gpu, folder) == 0
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


def test_cases_in_the_record_are_not_run_again(gpu: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gpu, folder, "check", "ceilings") == 0 and capsys.readouterr().out == ""


def test_an_unknown_part_is_named(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(gpu, tmp_path, "chek")
    assert "unknown part chek; expected some of check" in capsys.readouterr().err
