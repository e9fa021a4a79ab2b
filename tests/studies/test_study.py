"""A whole study: killed and resumed run by run, its table, plots and record."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fastmim
from fastmim import cli
from fastmim.errors import RequestError, RunError
from fastmim.studies import processes
from processes import Forked, wait_until
from small_study import draw_classes, fork_trials, settings


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures of lying and upright bars."""
    return draw_classes(tmp_path_factory.mktemp("bars"))


def write_settings(given: dict[str, Any], folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in given.items()}))
    return path


def stop_when(happened: Callable[[], object]) -> None:
    """Send this process SIGTERM once it has happened."""

    def wait() -> None:
        while not happened():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_study_that_is_stopped_and_killed_resumes(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_trials(monkeypatch)
    out = tmp_path / "study"
    given = settings(bars, steps=300, out=out, records=tmp_path / "records", probe="none", labels="4")
    scratch, killed = out / "runs/scratch-seed0", out / "runs/01-target-hog-seed0"

    def checkpoints() -> list[Path]:
        return list(killed.glob("pretrain/checkpoints/step*"))

    stop_when(checkpoints)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["study", "--config", str(write_settings(given, tmp_path))])
    assert exit_.value.code == 75
    assert capsys.readouterr().err == "stopped and saved after 1 of 2 trials; run the same command to resume\n"
    finished = times(scratch)

    stopped_at = max(path.name for path in checkpoints())
    command = ["study", "--config", str(write_settings(given, tmp_path))]
    with Forked(lambda: cli.main(command), tmp_path / "killed.log") as process:
        wait_until(lambda: max(path.name for path in checkpoints()) > stopped_at, seconds=90)
        assert process.poll() is None
        process.kill()
    assert not (killed / "pretrain.json").exists()

    # The run of the killed study saves itself; the next study waits for it, and needs no setting but `out`.
    result = fastmim.study(out=out)
    assert result.finished and times(scratch) == finished
    assert len(re.findall(r"resuming at step \d+ of 300", (killed / "log.txt").read_text())) == 2
    assert json.loads((killed / "pretrain.json").read_text())["images"] == 2400
    point = result.summary["target=hog"]
    assert point["pretrain"]["images_per_s"]["mean"] > 0 and point["top1"]["4"]["gain"]["deviation"] is None

    record = json.loads((out / "record.json").read_text())
    copy, plot = sorted((tmp_path / "records").iterdir())
    assert plot.read_bytes() == (out / "accuracy_against_cost.png").read_bytes() and plot.stem == copy.stem
    assert json.loads(copy.read_text()) == record and copy.name == f"study-study-{record['date']}.json"
    assert record["command"].startswith("fastmim study --data") and "--sweep target=hog" in record["command"]
    assert record["summary"] == result.summary and set(record["raw"]) == {"scratch", "target=hog"}
    table = (out / "table.md").read_text()
    assert "| scratch |" in table and "| target=hog |" in table
    assert (out / "accuracy_against_cost.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "accuracy_against_cost.svg").read_text()

    path = scratch / "trial.json"
    settings_before = path.read_text()
    path.write_text(settings_before.replace('"lr": 0.004', '"lr": 0.002'))
    with pytest.raises(RequestError, match=r"scratch seed 0 is done with lr 0.002 \(finetune-4\), which is 0.004 now"):
        fastmim.study(out=out)
    path.write_text(settings_before)

    everything = times(out / "runs")
    assert fastmim.study(out=out).finished and times(out / "runs") == everything
    with pytest.raises(RequestError, match=r"holds another study \(labels '4' -> '6'\): take another --out"):
        fastmim.study(**given | {"labels": "6"})
    capsys.readouterr()


def test_seeds_are_added_to_a_study_that_is_done(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_trials(monkeypatch)
    monkeypatch.setattr("fastmim.studies.budget.MAX_EPOCHS", 1.0)  # otherwise it would take ten minutes
    out = tmp_path / "study"
    fastmim.study(**settings(bars, steps=None, budget="10m", out=out, probe="none", labels="4"))
    said = capsys.readouterr().out
    assert "With 4 labels 0 of 1 pairs are told apart" in said and "(too few seeds)" in (out / "table.md").read_text()
    assert (
        f"more seeds or more than 20 validation images may tell them apart: fastmim study --seeds 3 --out {out}" in said
    )
    plan, first = json.loads((out / "plan.json").read_text()), times(out / "runs")
    earlier = {key: value for key, value in plan.items() if key != "seeds"}  # as an earlier version wrote it
    (out / "plan.json").write_text(json.dumps(earlier))

    result = fastmim.study(out=out, seeds=2)
    assert result.finished and result.num_trials == 4 and json.loads((out / "plan.json").read_text()) == plan
    assert first.items() <= times(out / "runs").items()
    assert "1 seed more than the budget of 10m was for" in capsys.readouterr().out
    assert len(result.summary["scratch"]["top1"]["4"]["seeds"]) == 2
    command = json.loads((out / "record.json").read_text())["command"]
    assert "--seeds 1" in command and command.endswith(f"&& fastmim study --seeds 2 --out {out}")
    assert yaml.safe_load((out / "config.yaml").read_text())["seeds"] == 2
    with pytest.raises(RequestError, match=r"holds another study \(seeds 2 -> 1\)"):
        fastmim.study(out=out, seeds=1)


def test_a_directory_that_cannot_be_written(bars: Path) -> None:
    with pytest.raises(RequestError, match="expected a path that can be written"):
        fastmim.study(**settings(bars, out=bars / "train/lying/0.png"))


def test_a_failure_is_named_and_the_others_are_kept(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: Any, **named: Any) -> dict[str, Any]:
        return {"pretrain": {"data": str(tmp_path / "gone")}}

    monkeypatch.setattr("fastmim.studies.study.run_settings", broken)
    done = tmp_path / "study/runs/scratch-seed0/pretrain.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    with pytest.raises(RunError, match=r"1 of 2 trials failed, first target=hog seed 0: --data .*gone: no such file"):
        fastmim.study(**settings(bars, out=tmp_path / "study"))
    assert done.read_text() == "{}"


def test_the_command_plans_without_running(bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "--data", str(bars), "--sweep", "target=hog,pixels", "--sweep", "encoder_depth=0.5,1"]
    words += ["--set", "img_size=16", "--set", "batch_size=8", "--labels", "4,16", "--budget", "1h", "--dry-run"]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--device", "cpu", "--out", str(tmp_path / "study")])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0 and not (tmp_path / "study").exists()
    assert "5 points, 3 seeds, 15 trials" in printed and "4 and 16 labels at 16 px" in printed


def test_threads_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmim.studies import settings as study_settings

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    assert processes.find_slots(study_settings.build({"device": "cpu"})) == processes.Slots(("cpu",) * cores, 1, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert processes.find_slots(study_settings.build({"device": "cpu"})) == processes.Slots(("cpu",), 64, 0)
    assert len(processes.find_slots(study_settings.build({"device": "cpu", "parallel": 3})).devices) == 3
