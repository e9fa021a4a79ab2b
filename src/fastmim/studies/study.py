"""A study: its settings are checked, its budget divided, its trials run and their results reported."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmim import config as configs
from fastmim.config import takes
from fastmim.errors import RequestError, RunError
from fastmim.reporting.writing import keep_current
from fastmim.studies import budget, processes, results, settings
from fastmim.studies.budget import Speeds
from fastmim.studies.preflight import Request, check, run_settings
from fastmim.studies.processes import Slots
from fastmim.studies.settings import StudyConfig
from fastmim.studies.sweep import SMALL_SIZE, Point
from fastmim.studies.trial import FILE, Trial
from fastmim.system import display, files, locking

_CONFIG, _PLAN, _RUNS = "config.yaml", "plan.json", "runs"
_WHERE = {"device", "num_workers", "out", "weights"}


@dataclass(frozen=True)
class Studied:
    """The outcome of a study."""

    out: Path
    num_done: int
    """Finished trials; a trial is a point with a seed."""
    num_trials: int
    summary: dict[str, Any]
    """Mean, deviation and every seed, by point; empty until all trials are done."""

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes it."""
        return self.num_done == self.num_trials


@takes(StudyConfig, sweep=Sequence[str] | Mapping[str, Any])
def study(*, dry_run: bool = False, **given: Any) -> Studied:
    """Compare pre-training settings: each pre-trained, fine-tuned and probed with several seeds, and from scratch.

    The same call with the same `out` resumes, run by run.

    Args:
        dry_run: Check everything, print what can be planned without measuring, and stop.
        given: Fields of `StudyConfig` (`fastmim study --help` lists them); `sweep` may be a mapping, such as
            {"target": ["hog", "pixels"], "img_size": [16, 32]}.

    Raises:
        RequestError: the request is wrong.
        RunError: some trials failed; the others are kept, and no table is written.

    Example:
        >>> sweep = {"target": ["hog", "pixels"], "mask_ratio": [0.6, 0.75]}
        >>> studied = fastmim.study(data="labelled/", sweep=sweep, budget="2h", out="runs/study")
    """
    config = _resolve(given)
    if find_spec("matplotlib") is None:
        raise RequestError("a study needs matplotlib, which is not installed; run: pip install 'fastmim[plots]'")
    if config.budget is None and config.epochs is None and config.steps is None:
        raise RequestError(
            "budget is not given; expected how long the study may take: --budget 2h (or --epochs, --steps)"
        )
    request, slots, console = check(config), processes.find_slots(config), Console(highlight=False)
    num_trials = len(request.points) * config.seeds

    say = functools.partial(display.say, console)
    say(_describe(request, slots))
    if dry_run:
        return Studied(config.out, 0, num_trials, {})
    with locking.hold(config.out, say) as lock:
        plan = _plan(request, slots, lock, say)
        if plan is None:
            return Studied(config.out, 0, num_trials, {})
        request = request.with_finetune_steps(plan["finetune_steps"])
        say(_describe_plan(request, slots, plan))
        trials = {
            (point.name, seed): _trial(request, slots, plan, point, seed)
            for seed in range(config.seeds)
            for point in request.points
        }
        _check_done(trials.values())
        num_done = _run_all(list(trials.values()), slots, lock=lock, say=say)
        if num_done < num_trials:
            return Studied(config.out, num_done, num_trials, {})
        found = {
            point.name: [trials[point.name, seed].results() or {} for seed in range(config.seeds)]
            for point in request.points
        }
        summary = results.write(request, slots, plan, found, say=say)
        keep_current(config.out, say, ended=True)
    return Studied(config.out, num_trials, num_trials, summary)


def _run_all(trials: list[Trial], slots: Slots, *, lock: int, say: Callable[[str], None]) -> int:
    """Run the trials that are not done yet, report each as it ends, and return how many are done.

    Raises:
        RunError: some failed.
    """
    began = time.monotonic()

    def num_done() -> int:
        return sum(trial.results() is not None for trial in trials)

    def done(trial: Trial) -> None:
        clock = results.duration(time.monotonic() - began)
        say(f"[{num_done()}/{len(trials)}] {trial.name}: {results.describe(trial.results())}; {clock} since the start")

    outcome = processes.run_all(trials, slots, lock=lock, done=done)
    if outcome.failures:
        name, words = next(iter(outcome.failures.items()))
        raise RunError(
            f"{len(outcome.failures)} of {len(trials)} trials failed, first {name}: {words}; the others are kept: "
            f"fix the cause and run the same command to resume"
        )
    return num_done()


def _resolve(given: dict[str, Any]) -> StudyConfig:
    """The config of the study in `out`, with what may change of the given settings; the given one in a new `out`."""
    config = settings.build(given)
    path = config.out / _CONFIG
    if not path.exists():
        return config
    stored = settings.build(configs.read(path))
    wanted = settings.build(configs.read(path), given)
    more_seeds = {"seeds"} if wanted.seeds > stored.seeds else set()
    if differing := configs.differences(configs.to_mapping(stored), wanted, ignore=more_seeds):
        raise RequestError(
            f"out is {config.out}, which holds another study ({'; '.join(differing)}): take another --out, or drop "
            f"these settings to resume it"
        )
    return wanted


def _plan(request: Request, slots: Slots, lock: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The steps of every point: as planned by an earlier call, as set by the user, or as the budget allows."""
    config = request.config
    path = config.out / _PLAN
    if path.exists() and (config.out / _CONFIG).exists():
        known: dict[str, Any] = files.read_json(path)
        # An earlier version did not write the number of seeds.
        known.setdefault("seeds", settings.build(configs.read(config.out / _CONFIG)).seeds)
        files.write_json(path, known)
        _write_config(config)  # with the present number of seeds
        return known
    speeds, images = None, 0
    if config.budget is not None:
        speeds = budget.measure(request, slots, config.out, lock=lock, say=say)
        if speeds is None:
            return None
        seconds = settings.parse_budget(config.budget)
        request = budget.shorten_finetuning(request, speeds, slots, seconds)
        images = budget.divide(request, speeds, slots, seconds)
    elif config.epochs is not None:
        images = max(1, round(config.epochs * request.num_images))
    steps_of = functools.partial(speeds.steps, request) if speeds else request.steps
    steps = {p.folder: (config.steps or steps_of(p, images)) if p.config else 0 for p in request.points}
    plan = {
        "images": images or None,
        "steps": steps,
        "finetune_steps": request.finetune_steps,
        "seeds": config.seeds,
        "speeds": vars(speeds) if speeds else None,
    }
    files.write_json(path, plan)
    _write_config(config)  # last, because a directory with a config counts as planned
    return plan


def _write_config(config: StudyConfig) -> None:
    files.write_text(config.out / _CONFIG, configs.to_yaml(config))


def _trial(request: Request, slots: Slots, plan: dict[str, Any], point: Point, seed: int) -> Trial:
    folder = request.config.out / _RUNS / f"{point.folder}-seed{seed}"
    steps = plan["steps"][point.folder]

    def runs(device: str) -> dict[str, Any]:
        return run_settings(request, point, seed, folder, steps=steps, device=device, num_workers=slots.num_workers)

    return Trial(f"{point.name} seed {seed}", folder, runs)


def _check_done(trials: Iterable[Trial]) -> None:
    """Refuse finished trials with other settings than the rest: another version may have other defaults."""
    for trial in trials:
        if trial.results() is None or not (trial.folder / FILE).exists():
            continue
        before, now = files.read_json(trial.folder / FILE), json.loads(json.dumps(trial.runs("cpu")))
        for run, settings_now in now.items():
            for key in sorted(settings_now.keys() & before[run].keys() - _WHERE):
                if before[run][key] != settings_now[key]:
                    raise RequestError(
                        f"out is {trial.folder.parent.parent}, where {trial.name} is done with {key} "
                        f"{before[run][key]!r} ({run}), which is {settings_now[key]!r} now; expected the same "
                        f"settings for all trials: take another --out"
                    )


def _describe(request: Request, slots: Slots) -> str:
    """The study as far as it is known without measuring."""
    config, num_points = request.config, len(request.points)
    networks = "; ".join(f"{p.backbone} {p.backbone_args or ''}".strip() for p in request.points if p.config is None)
    labels = " and ".join(f"{number:,}" for number in request.labels)
    most = "up to " if config.budget and config.finetune_steps is None else ""
    augmentation = f"light augmentation (up to {SMALL_SIZE} px)" if request.finetune_size <= SMALL_SIZE else "augmented"
    swept = (" or " if config.one_at_a_time else " x ").join(config.sweep)
    lines = [
        f"data      {request.pretrain_data}: {request.num_images:,} images to pre-train on"
        + (", including the validation images, without their labels" if request.sees_validation else ""),
        f"labelled  {config.data}: {request.num_train:,} training and {request.num_val:,} validation images",
        f"sweep     {swept}, and from scratch: {num_points} points, "
        f"{results.count(config.seeds, 'seed')}, {num_points * config.seeds} trials",
        f"network   {networks}",
        f"finetune  {labels} labels at {request.finetune_size} px, {most}{request.finetune_steps} steps of up "
        f"to {request.finetune['batch_size']} images, {augmentation}, the same for all; no layer decay from scratch",
        f"runs      {slots.describe()}",
        f"out       {config.out}",
    ]
    return "\n".join(lines)


def _describe_plan(request: Request, slots: Slots, plan: dict[str, Any]) -> str:
    """The plan: the steps and, with a budget, the expected time of each point."""
    speeds = Speeds(**plan["speeds"]) if plan["speeds"] else None
    images = plan["images"] or 0
    lines = [f"plan      fine-tunings of {request.finetune_steps} steps; for each seed:"]
    for point in request.points:
        steps = plan["steps"][point.folder]
        epochs = steps * point.config.images_per_step / request.num_images if point.config else 0
        what = f"{steps:,} steps ({epochs:.1f} epochs) of pre-training" if point.config else "no pre-training"
        if speeds:
            training = speeds.pretraining_seconds(request, point, images) if point.config else 0.0
            total = speeds.trial_seconds(request, point, images)
            what += f", {results.duration(training)}; {results.duration(total)} with fine-tuning and probing"
        lines.append(f"  {point.name}: {what}")
    if speeds:
        total = speeds.study_seconds(request, slots, images) + speeds.measuring
        added = request.config.seeds - plan["seeds"]
        lines.append(
            f"total     {results.duration(total)}; {results.count(added, 'seed')} more than the budget of "
            f"{request.config.budget} was for"
            if added
            else f"total     {results.duration(total)} of the budget of {request.config.budget} "
            f"({budget.RESERVE:.0%} of it is kept in reserve)"
        )
    return "\n".join(lines)
