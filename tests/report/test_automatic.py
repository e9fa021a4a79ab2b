"""The report that training writes by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import fastmim
from conftest import SMALL
from fastmim.reporting import page
from tuning import finetune


def pretrain(out: Path, photos: Path, **settings: Any) -> Any:
    return fastmim.pretrain(**(SMALL | {"data": str(photos), "out": out, "report": "auto"} | settings))


def embedded(out: Path) -> dict[str, Any]:
    found = re.search(r'id="fastmim-report">(.*?)</script>', (out / "report.html").read_text())
    assert found
    return json.loads(found[1])["runs"][0]


def test_a_run_writes_its_report_as_it_goes_on_and_at_its_end(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    render = page.render

    def watched(runs: Any, **options: Any) -> str:
        seen.append((runs[0].metrics.step, runs[0].state, options["checksums"]))
        return render(runs, **options)

    monkeypatch.setattr(page, "render", watched)
    out = tmp_path / "run"
    pretrain(out, photos, picture_every="4 steps")
    assert seen == [(4, "running", False), (8, "running", False), (12, "finished", True)]
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    run = embedded(out)
    assert (run["kind"], run["step"], run["total_steps"]) == ("pretrain", 12, 12)
    text = (out / "report.html").read_text()
    assert text.count('<img src="data:image/webp') == 6 * (4 + 2 + 3)  # of reconstructions, features, attention
    [start] = [json.loads(line) for line in (out / "starts.jsonl").read_text().splitlines()]
    assert start["defaults"]["batch_size"] == 256 and start["num_images"] == 24 and start["hardware"]["device"] == "cpu"


def test_never(tmp_path: Path, photos: Path) -> None:
    pretrain(tmp_path / "run", photos, report="never", picture_every="6 steps")
    assert not (tmp_path / "run/report.html").exists()


def test_training_outlives_a_report_that_fails(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(page, "render", fail)
    assert pretrain(tmp_path / "run", photos).finished
    assert "the report could not be written (ZeroDivisionError: a fault)" in capsys.readouterr().out


def test_fine_tuning_shows_its_scores(tmp_path: Path, labelled: Path) -> None:
    out = finetune(tmp_path / "tuned", labelled, steps=4, report="auto").out
    text = (out / "report.html").read_text()
    assert embedded(out)["kind"] == "finetune" and "mean over classes" in text and "Top-1 on the validation" in text


def test_a_resumed_run_marks_where(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos)
    (out / "weights.safetensors").unlink()
    for newest in sorted((out / "checkpoints").iterdir())[1:]:
        newest.rename(tmp_path / newest.name)
    pretrain(out, photos)
    starts = [json.loads(line)["step"] for line in (out / "starts.jsonl").read_text().splitlines()]
    assert starts == [0, 8] and "resumed at step 8 on" in (out / "report.html").read_text()
