"""The rules of the verdict, each on a run that was made up to break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmim.reporting import page, reading, verdict
from fastmim.reporting.verdict import Verdict
from report.made_up import make_run


def judge(path: Path, **course: Any) -> Verdict:
    return verdict.judge(reading.read(make_run(path / "run", **course)))


def test_a_run_that_learns(tmp_path: Path) -> None:
    found = judge(
        tmp_path,
        loss=lambda t: 0.1 - 0.05 * t,
        noise=0.0,
        probe_mim_loss=lambda t: 0.2 - 0.1 * t,
        probe_knn=lambda t: 0.4 + 0.2 * t,
        probe_effective_rank=lambda t: 20 + 10 * t,
    )
    assert (found.level, found.word) == ("good", "Learning")
    # Means of the first and last tenth of 100 lines; the probe's first line is at a tenth of the run.
    first, last = 0.1 - 0.05 * np.arange(10).mean() / 99, 0.1 - 0.05 * np.arange(90, 100).mean() / 99
    assert f"The loss fell {100 * (1 - last / first):.0f} %" in found.sentence
    assert "the held-out loss fell 48 %, kNN went from 41.8 to 60.0 %, no step was skipped" in found.sentence


@pytest.mark.parametrize(
    ("course", "rule", "level", "text"),
    [
        ({"num_lines": 19}, "short", "unclear", "19 log lines so far; a verdict takes 20"),
        ({"num_lines": 1}, "short", "unclear", "1 log line so far"),
        (
            {"loss": lambda t: 0.05 + 0.1 * np.exp(-9 * t) + 0.3 * np.maximum(t - 0.6, 0)},
            "diverged",
            "bad",
            "the loss rose from 0.05",
        ),
        ({"loss": lambda t: np.where(t > 0.9, np.nan, 1 - t)}, "diverged", "bad", "not finite at step 1,000"),
        ({"loss": lambda t: 0.1 + 0 * t}, "flat", "bad", "the loss "),
        ({"loss": lambda t: 0.1 - 0.001 * t}, "flat", "bad", "fell by less than 2 %"),
        (
            {"probe_effective_rank": lambda t: 30 - 25 * t},
            "collapsed",
            "bad",
            "their effective rank is 5.0, from 27.7 at step 100",
        ),
        ({"probe_effective_rank": lambda t: 1.5 + 0 * t}, "collapsed", "bad", "vary in few directions"),
        (
            {"probe_mim_loss": lambda t: 0.1 + 0.1 * (t - 0.5) ** 2},
            "overfit",
            "warning",
            "the held-out loss has risen from 0.1 at step 500 to 0.125",
        ),
        (
            {"val_loss": lambda t: 1 + (t - 0.5) ** 2, "loss": lambda t: 2 - t},
            "overfit",
            "warning",
            "the validation loss has risen",
        ),
        ({"data_wait_share": lambda t: 0.45 + 0 * t}, "starved", "warning", "waits for data 45 % of the time"),
        (
            {"skipped_steps": lambda t: np.floor(50 * t)},
            "skipped",
            "warning",
            "50 of 1,000 steps were skipped, as they were not finite",
        ),
        (
            {"images_per_s": lambda t: np.where(t > 0.8, 400.0, 1000.0)},
            "slowed",
            "warning",
            "the speed fell to 400 images/s, from a usual 1,000",
        ),
    ],
)
def test_each_rule(tmp_path: Path, course: dict[str, Any], rule: str, level: str, text: str) -> None:
    run = make_run(tmp_path / "run", **course)
    if rule == "slowed":  # a run of one stage
        (run / "starts.jsonl").unlink()
    found = verdict.judge(reading.read(run))
    assert (found.findings[0].rule, found.level) == (rule, level)
    assert text in found.findings[0].text
    assert rule == "short" or found.findings[0].advice
    assert not found.sentence[0].islower() and found.sentence.endswith(".")


def test_a_warning_does_not_hide_that_a_run_learns(tmp_path: Path) -> None:
    found = judge(tmp_path, data_wait_share=lambda t: 0.5 + 0 * t)
    assert found.word == "Learning, but waiting for data"
    assert found.sentence.startswith("The device waits for data 50 % of the time; the loss fell")


@pytest.mark.parametrize(
    ("scores", "level", "word", "text"),
    [
        ((0.4, 0.5, "better", 10.0, [2.5, 17.5]), "good", "Better than before", "is better (+10.0 points of"),
        ((0.5, 0.4, "worse", -10.0, [-17.5, -2.5]), "bad", "Worse than before", "95 % interval -17.5 to -2.5)"),
        ((0.5, 0.5, "no difference", 0.0, [-3.0, 3.0]), "unclear", "No difference shown", "show no difference"),
        ((0.5, 0.5, "marvellous", 0.0, [-3.0, 3.0]), "unclear", "Too short to say", "9 log lines"),
        ((0.5, 0.5, "better", None, []), "unclear", "Too short to say", "9 log lines"),
    ],
)
def test_an_adaptation_is_judged_by_its_labelled_images(
    tmp_path: Path, scores: tuple[Any, ...], level: str, word: str, text: str
) -> None:
    before, after, said, difference, interval = scores
    run = make_run(tmp_path / "run", num_lines=9, command="adapt")
    content: dict[str, Any] = {when: {"linear_top1": top1} for when, top1 in (("before", before), ("after", after))}
    content["verdict"] = {"word": said, "difference": difference, "interval": interval}
    (run / "adaptation.json").write_text(json.dumps(content))
    read = reading.read(run)
    found = verdict.judge(read)
    assert (found.level, found.word) == (level, word) and text in found.sentence
    assert f"<td>{100 * before:.1f} %</td><td>{100 * after:.1f} %</td>" in page.render([read])


def test_larger_images_of_a_later_stage_are_no_slowing_down(tmp_path: Path) -> None:
    found = judge(tmp_path, images_per_s=lambda t: np.where(t > 0.8, 400.0, 1000.0))
    assert found.word == "Learning"


def test_no_run_is_judged_before_it_logs(tmp_path: Path) -> None:
    found = judge(tmp_path, num_lines=0, total=100, finished=False)
    assert found.sentence == "Nothing is logged yet; a verdict takes 20."


def test_noise_is_not_divergence(tmp_path: Path) -> None:
    assert judge(tmp_path, loss=lambda t: 0.05 + 0.02 * np.exp(-9 * t), noise=0.02).word != "Diverged"


def test_documented_thresholds_are_the_ones_in_use() -> None:
    text = (Path(__file__).parents[2] / "docs/report.md").read_text()
    for rule, number in {
        "diverged": f"{verdict.DIVERGED:g} times",
        "flat": f"{100 * verdict.FLAT:g} %",
        "collapsed": f"{100 * verdict.COLLAPSED:g} %",
        "overfit": f"{verdict.OVERFIT:g} times",
        "starved": f"{100 * verdict.STARVED:g} %",
        "skipped": f"{100 * verdict.SKIPPED:g} %",
        "slowed": f"{100 * verdict.SLOWED:g} %",
        "short": f"{verdict.MIN_LINES} log lines",
    }.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{rule}`")]
        assert number in row
