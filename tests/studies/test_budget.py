"""A budget is divided so that all points see the same number of images or cost the same; one that is too small names the least."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastmim
from fastmim.errors import RequestError
from fastmim.studies import budget, processes
from fastmim.studies import settings as study_settings
from fastmim.studies.budget import Speeds
from fastmim.studies.preflight import Request, check
from fastmim.studies.processes import Slots
from small_study import draw_classes, fork_trials, settings


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures of lying and upright bars."""
    return draw_classes(tmp_path_factory.mktemp("bars"))


def request(bars: Path, allowed: str, **others: Any) -> Request:
    given = settings(bars, sweep={"target": ["hog", "pixels"]}, seeds=2, steps=None, budget=allowed) | others
    return check(study_settings.build(given))


def speeds(found: Request) -> Speeds:
    """Half a second for each step, and 10 s for each trial besides."""
    folders = [point.folder for point in found.points]
    zeros = dict.fromkeys(folders, 0.0)
    steps = {folder: 0.5 if "target" in folder else 0.0 for folder in folders}
    return Speeds(0.0, dict.fromkeys(folders, 10.0), zeros, steps, zeros)


ONE, TWO = (Slots(("cpu",) * number, 1, 0) for number in (1, 2))


def test_the_budget_is_used(bars: Path) -> None:
    found = request(bars, "30m")
    images = budget.divide(found, speeds(found), ONE, 1800)
    used = speeds(found).study_seconds(found, ONE, images)
    # 6 trials of 10 s; the rest of 90 % of the budget is for 4 pre-trainings of steps of 8 images and half a second.
    assert images // 8 == pytest.approx((0.9 * 1800 - 60) / 4 / 0.5, abs=2)
    assert 0.88 * 1800 < used <= 0.9 * 1800


def test_equal_cost_gives_cheaper_points_more_steps(bars: Path) -> None:
    found = request(bars, "30m", equal="cost")
    hog, pixels = (point for point in found.points if point.config)
    measured = speeds(found)
    measured.step[pixels.folder] = 0.125
    images = budget.divide(found, measured, ONE, 1800)
    steps = [measured.steps(found, point, images) for point in found.points]
    # 6 trials of 10 s; a quarter of the rest of 90 % of the budget is for each of 4 pre-trainings, whatever a step takes.
    assert steps == [0, pytest.approx(390 / 0.5, abs=2), 4 * steps[1]]
    assert steps[1] == images // 8
    training = [measured.pretraining_seconds(found, point, images) for point in (hog, pixels)]
    assert training[0] == training[1] == pytest.approx(390, abs=2)


def test_fine_tuning_takes_half_of_the_budget_at_most(bars: Path) -> None:
    open_ended = {"steps": None, "budget": "30m", "finetune_steps": None}
    found = check(study_settings.build(settings(bars, sweep={"target": ["hog", "pixels"]}, seeds=2) | open_ended))
    # Two fine-tunings (the one with 4 labels a quarter the batch) of a second a step: 1.25 s a step, times 6 trials.
    slow = replace(speeds(found), step=dict.fromkeys(speeds(found).step, 1.0))
    steps = [
        budget.shorten_finetuning(found, slow, ONE, seconds).finetune_steps for seconds in (10_000, 2400, 1800, 60)
    ]
    assert steps == [400, 150, 110, 100]
    assert found.finetune_steps == 400
    given = request(bars, "30m")
    assert budget.shorten_finetuning(given, slow, ONE, 60).finetune_steps == 4


def test_two_devices_do_about_twice_as_much(bars: Path) -> None:
    found = request(bars, "30m")
    one, two = (budget.divide(found, speeds(found), slots, 1800) for slots in (ONE, TWO))
    assert 1.7 * one < two < 2.1 * one


def test_jobs_start_on_the_first_free_slot() -> None:
    assert budget.makespan([3, 1, 1, 1], 2) == 3
    assert budget.makespan([1, 1, 1, 3], 2) == 4
    assert budget.makespan([2, 2], 1) == 4


def test_a_budget_that_is_too_small_is_refused_with_the_least_that_is_enough(bars: Path) -> None:
    found = request(bars, "10s")
    with pytest.raises(RequestError, match="budget is 10s, which cannot hold 6 trials 1 at a time on cpu") as error:
        budget.divide(found, speeds(found), ONE, 10)
    enough = str(error.value).partition("expected at least ")[2].partition(":")[0]
    # 40 images in steps of 8 are an epoch: 6 * 10 s + 4 * 5 * 0.5 s, and a reserve of 10 %.
    assert enough == "78s"
    assert "and 4 steps for each fine-tuning; expected" in str(error.value)
    assert budget.divide(found, speeds(found), ONE, study_settings.parse_budget(enough)) >= 40


@pytest.mark.parametrize(("seconds", "text"), [(80.2, "81s"), (130, "3m"), (7140, "119m"), (7800.5, "2h11m")])
def test_budgets_are_rounded_up(seconds: float, text: str) -> None:
    assert budget.enough(seconds) == text and study_settings.parse_budget(text) >= seconds


def test_speeds_are_measured_once(bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_trials(monkeypatch)
    given: dict[str, Any] = settings(bars, steps=None, budget="0.01s", out=tmp_path / "study", parallel=2)
    with pytest.raises(RequestError, match="budget is 0.01s, which cannot hold 2 trials 2 at a time on cpu") as error:
        fastmim.study(**given)
    measured = json.loads((tmp_path / "study/speed.json").read_text())["speeds"]
    assert 0 < measured["step"]["01-target-hog"] < 5 and measured["measuring"] > 0
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["speed.json"]

    monkeypatch.setattr(processes, "run_all", lambda *_, **__: pytest.fail("measured again"))
    with pytest.raises(RequestError) as again:  # another budget, the same measurement and the same answer
        fastmim.study(**given | {"budget": "0.02s"})
    assert str(again.value).partition("expected")[2] == str(error.value).partition("expected")[2]
