"""The budget of a study: measured speeds, and the number of images or seconds that each pre-training gets."""

from __future__ import annotations

import heapq
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fastmim.errors import RequestError, RunError
from fastmim.studies import processes
from fastmim.studies.preflight import Request, run_settings
from fastmim.studies.processes import Slots
from fastmim.studies.settings import FEWEST_FINETUNE_STEPS, MAX_EPOCHS, MIN_STEPS, MOST_FINETUNE_STEPS
from fastmim.studies.sweep import Point
from fastmim.studies.trial import Trial
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.training.schedule import plan_stages, stage_at

RESERVE = 0.1
"""Share of the budget kept in reserve for errors of the measurement."""

TUNING = 0.5
"""The largest share of the budget for fine-tuning and probing, unless the user sets their length."""

_FOLDER, _FILE = "speed", "speed.json"
_STEPS = 8
_STAGE_STEPS = 4  # the least at each size


@dataclass(frozen=True)
class Speeds:
    """Seconds as measured with as many trials side by side as in the study, by the point's folder."""

    measuring: float
    """The measurement itself."""
    start: dict[str, float]
    """A process before its first run."""
    overhead: dict[str, float]
    """A pre-training, or a fine-tuning from scratch, except for its steps: data, model, evaluation, saving."""
    step: dict[str, float]
    """A step of a pre-training, or of a fine-tuning with the most labels."""
    probe: dict[str, float]
    """A probe."""

    def trial_seconds(self, request: Request, point: Point, images: int) -> float:
        """A trial: all runs of a point with one seed."""
        scratch = request.scratch(point).folder
        most = request.batch(max(request.labels))
        tuning = sum(
            self.overhead[scratch] + request.finetune_steps * self.step[scratch] * request.batch(number) / most
            for number in request.labels
        )
        total = self.start[point.folder] + tuning + self.probe[scratch]
        return total + (self.pretraining_seconds(request, point, images) if point.config else 0.0)

    def pretraining_seconds(self, request: Request, point: Point, images: int) -> float:
        """A pre-training of so many steps."""
        return self.overhead[point.folder] + self.steps(request, point, images) * self.step[point.folder]

    def steps(self, request: Request, point: Point, images: int) -> int:
        """Pre-training steps: on so many images or, if costs are equal, as many as the dearest point's on them cost."""
        if request.config.equal == "images" or point.config is None:
            return request.steps(point, images)
        seconds = max(request.steps(other, images) * self.step[other.folder] for other in request.points)
        return max(1, int(seconds / self.step[point.folder]))

    def study_seconds(self, request: Request, slots: Slots, images: int) -> float:
        """From the start of the first trial to the end of the last one."""
        durations = [self.trial_seconds(request, point, images) for point in request.points]
        return makespan(durations * request.config.seeds, len(slots.devices))


def makespan(durations: Sequence[float], num_slots: int) -> float:
    """The end of the last job, if they start in order, each as soon as a slot is free."""
    ends = [0.0] * num_slots
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def needed(request: Request, speeds: Speeds, slots: Slots, images: int) -> float:
    """The budget in seconds of a study whose (dearest, if costs are equal) pre-trainings see so many images."""
    return (speeds.study_seconds(request, slots, images) + speeds.measuring) / (1 - RESERVE)


def fewest_images(request: Request) -> int:
    """The least for every pre-training: an epoch, or 100 steps where that is less."""
    return min(request.num_images, MIN_STEPS * _largest_batch(request))


def shorten_finetuning(request: Request, speeds: Speeds, slots: Slots, budget: float) -> Request:
    """Shorten fine-tuning until it leaves half of the budget for pre-training, unless the user set its length.

    Args:
        budget: Seconds.
    """
    if request.config.finetune_steps is not None:
        return request
    for steps in range(MOST_FINETUNE_STEPS, FEWEST_FINETUNE_STEPS, -10):
        shorter = request.with_finetune_steps(steps)
        leaves_half = speeds.study_seconds(shorter, slots, 0) <= TUNING * budget
        if leaves_half and needed(shorter, speeds, slots, fewest_images(request)) <= budget:
            return shorter
    return request.with_finetune_steps(FEWEST_FINETUNE_STEPS)


def divide(request: Request, speeds: Speeds, slots: Slots, budget: float) -> int:
    """The largest number of images per pre-training, or of the dearest if costs are equal, that fits into the budget.

    Args:
        budget: Seconds.

    Raises:
        RequestError: `fewest_images` does not fit.
    """
    fewest = fewest_images(request)
    most = max(fewest, round(MAX_EPOCHS * request.num_images))
    if (least := needed(request, speeds, slots, fewest)) > budget:
        num_trials = len(request.points) * request.config.seeds
        raise RequestError(
            f"budget is {request.config.budget}, which cannot hold {num_trials} trials {slots.describe()}, even with "
            f"{fewest:,} images for each pre-training and {request.finetune_steps} steps for each fine-tuning; "
            f"expected at least {enough(least)}: raise it, or lower --seeds, --finetune-steps or the number of points"
        )
    while most - fewest > _largest_batch(request):
        middle = (fewest + most) // 2
        fits = needed(request, speeds, slots, middle) <= budget
        fewest, most = (middle, most) if fits else (fewest, middle)
    return fewest


def _largest_batch(request: Request) -> int:
    return max(point.config.batch_size for point in request.points if point.config)


def enough(seconds: float) -> str:
    """A budget of at least `seconds`, in whole minutes from two minutes on."""
    if seconds < 120:
        return f"{math.ceil(seconds)}s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes}m" if minutes < 120 else f"{minutes // 60}h{minutes % 60}m"


def measure(request: Request, slots: Slots, out: Path, *, lock: int, say: Callable[[str], None]) -> Speeds | None:
    """Time a few steps of every point and of a fine-tuning, or read the result of an earlier call.

    Returns:
        The speeds; None if a signal stopped it.

    Raises:
        RunError: a run failed.
    """
    trials = [_trial(request, slots, point, out / _FOLDER) for point in request.points]
    wanted = json.loads(json.dumps({t.name: t.runs("-") for t in trials}))  # as the file has it
    if (out / _FILE).exists() and (found := files.read_json(out / _FILE))["of"] == wanted:
        return Speeds(**found["speeds"])
    say(f"measuring the speed of {len(trials)} points, {slots.describe()}")
    shutil.rmtree(out / _FOLDER, ignore_errors=True)
    began = time.monotonic()
    outcome = processes.run_all(trials, slots, lock=lock, done=lambda trial: None)
    if outcome.stopped:
        return None
    for name, words in outcome.failures.items():
        raise RunError(f"{name}: {words}")
    speeds = _read(request, trials, outcome.seconds, time.monotonic() - began)
    files.write_json(out / _FILE, {"of": wanted, "speeds": vars(speeds)})
    shutil.rmtree(out / _FOLDER)
    return speeds


def _trial(request: Request, slots: Slots, point: Point, out: Path) -> Trial:
    folder = out / point.folder

    def runs(device: str) -> dict[str, Any]:
        steps = (
            max(_STEPS, *(math.ceil(_STAGE_STEPS / share) for _, share in point.config.sizes())) if point.config else 0
        )
        runs = run_settings(request, point, 0, folder, steps=steps, device=device, num_workers=slots.num_workers)
        short = {"log_every": 1, "save_every": 10**6}
        if point.config:  # its fine-tuning takes as long as that from scratch
            return {"pretrain": runs["pretrain"] | short | {"picture_every": "never"}}
        most = f"finetune-{max(request.labels)}"
        return {most: runs[most] | short | {"steps": _STEPS}} | {k: v for k, v in runs.items() if k == "probe"}

    return Trial(point.name, folder, runs)


def _read(request: Request, trials: Sequence[Trial], walls: dict[str, float], measuring: float) -> Speeds:
    speeds = Speeds(measuring, {}, {}, {}, {})
    for point, trial in zip(request.points, trials, strict=True):
        results = trial.results()
        assert results
        name = next(iter(results))
        speeds.step[point.folder] = _seconds_per_step(point, trial.folder / name)
        # All but steps at full speed: opening, compiling, evaluating, saving.
        run = results[name]
        speeds.overhead[point.folder] = max(0.0, run["wall_seconds"] - run["steps"] * speeds.step[point.folder])
        known = sum(result["wall_seconds"] for result in results.values())
        speeds.start[point.folder] = max(0.0, walls[trial.name] - known)
        speeds.probe[point.folder] = results["probe"]["wall_seconds"] if "probe" in results else 0.0
    return speeds


def _seconds_per_step(point: Point, run: Path) -> float:
    """The median at each size without the first step there, weighted by the sizes' shares."""
    seconds = {
        line["step"] - 1: line["seconds_per_step"]
        for line in RunDirectory(run).read_metrics()
        if "seconds_per_step" in line
    }
    if point.config is None:
        return median([value for step, value in seconds.items() if step])
    config = point.config
    stages = plan_stages(config.sizes(), total_steps=len(seconds), device_batch=config.batch_size, micro_batch=None)
    return sum(
        share * median([s for step, s in seconds.items() if stage_at(stages, step) is stage and step > stage.start])
        for stage, (_, share) in zip(stages, config.sizes(), strict=True)
    )
