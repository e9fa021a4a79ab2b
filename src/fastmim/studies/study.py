"""A study from its request to its table: checked, measured, divided, run, reported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fastmim import config as configs
from fastmim.errors import RequestError, RunError
from fastmim.studies import budget, processes, report, settings, trial
from fastmim.studies.budget import Speeds
from fastmim.studies.points import SMALL_SIZE, Point
from fastmim.studies.preflight import Request, check, settings_of
from fastmim.studies.processes import Slots, Trial
from fastmim.studies.settings import StudyConfig
from fastmim.system import locking

_CONFIG, _PLAN, _RUNS = "config.yaml", "plan.json", "runs"
_WHERE = {"device", "num_workers", "out", "weights"}


@dataclass(frozen=True)
class Studied:
    """How a study ended."""

    out: Path
    num_done: int
    """Trials (a point with a seed) that are done."""
    num_trials: int
    summary: dict[str, Any]
    """Means, deviations and every seed, by point; empty before the end."""

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes."""
        return self.num_done == self.num_trials


def study(*, dry_run: bool = False, **given: Any) -> Studied:
    """Compare pre-training settings: each pre-trained, fine-tuned and probed with several seeds, and from scratch.

    The same call with the same `out` resumes, run by run.

    Args:
        dry_run: Check everything, print the plan as far as it is known without measuring, and stop.
        given: Fields of `StudyConfig` (`fastmim study --help` lists them); `sweep` may be a mapping, such as
            {"target": ["hog", "pixels"], "img_size": [16, 32]}.

    Raises:
        RequestError: the request is wrong.
        RunError: some of the runs failed; the others are kept, and there is no table.
    """
    config = _resolve(given)
    if find_spec("matplotlib") is None:
        raise RequestError("a study draws with matplotlib, which is not installed; run: pip install 'fastmim[plots]'")
    if config.budget is None and config.epochs is None and config.steps is None:
        raise RequestError(
            "budget is not given; expected how long the study may take: --budget 2h (or --epochs, --steps)"
        )
    request, slots, console = check(config), processes.find_slots(config), Console(highlight=False)
    num_trials = len(request.points) * config.seeds

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

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
        results = {
            point.name: [trials[point.name, seed].results() or {} for seed in range(config.seeds)]
            for point in request.points
        }
        summary = report.write(request, slots, plan, results, say=say)
    return Studied(config.out, num_trials, num_trials, summary)


def _run_all(trials: list[Trial], slots: Slots, *, lock: int, say: Callable[[str], None]) -> int:
    """Run what is not done yet, each trial said as it ends; how many are done then.

    Raises:
        RunError: some failed.
    """
    began = time.monotonic()

    def num_done() -> int:
        return sum(job.results() is not None for job in trials)

    def done(job: Trial) -> None:
        clock = report.seconds(time.monotonic() - began)
        say(f"[{num_done()}/{len(trials)}] {job.name}: {report.describe(job.results())}; {clock} since the start")

    outcome = processes.run_all(trials, slots, lock=lock, done=done)
    if outcome.failures:
        name, words = next(iter(outcome.failures.items()))
        raise RunError(
            f"{len(outcome.failures)} of {len(trials)} trials failed, first {name}: {words}; the others are kept: "
            f"mend the cause and run the same command to go on"
        )
    return num_done()


def _resolve(given: dict[str, Any]) -> StudyConfig:
    """The study that `out` holds, if it holds one, else the one that is asked for."""
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
    """The steps of every point: as they were planned, as they are asked for, or as the budget allows."""
    config = request.config
    path = config.out / _PLAN
    if path.exists() and (config.out / _CONFIG).exists():
        known: dict[str, Any] = trial.read_json(path)
        known.setdefault("seeds", settings.build(configs.read(config.out / _CONFIG)).seeds)  # of an earlier version
        trial.write_json(path, known)
        _write_config(config)  # with the seeds that are asked for now
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
    steps = {p.folder: (config.steps or request.steps(p, images)) if p.config else 0 for p in request.points}
    plan = {
        "images": images or None,
        "steps": steps,
        "finetune_steps": request.finetune_steps,
        "seeds": config.seeds,
        "speeds": vars(speeds) if speeds else None,
    }
    trial.write_json(path, plan)
    _write_config(config)  # last: a directory with a config holds a study whose plan is made
    return plan


def _write_config(config: StudyConfig) -> None:
    partial = config.out / ".config.tmp"
    partial.write_text(yaml.safe_dump(configs.to_mapping(config), sort_keys=False))
    partial.replace(config.out / _CONFIG)


def _trial(request: Request, slots: Slots, plan: dict[str, Any], point: Point, seed: int) -> Trial:
    folder = request.config.out / _RUNS / f"{point.folder}-seed{seed}"
    steps = plan["steps"][point.folder]

    def runs(device: str) -> dict[str, Any]:
        return settings_of(request, point, seed, folder, steps=steps, device=device, num_workers=slots.num_workers)

    return Trial(f"{point.name} seed {seed}", folder, runs)


def _check_done(trials: Iterable[Trial]) -> None:
    """What is done must have been done as the rest will be: another version may have other defaults."""
    for job in trials:
        if job.results() is None or not (job.folder / trial.FILE).exists():
            continue
        before, now = trial.read_json(job.folder / trial.FILE), json.loads(json.dumps(job.runs("cpu")))
        for run, settings_now in now.items():
            for key in sorted(settings_now.keys() & before[run].keys() - _WHERE):
                if before[run][key] != settings_now[key]:
                    raise RequestError(
                        f"out is {job.folder.parent.parent}, where {job.name} is done with {key} {before[run][key]!r} "
                        f"({run}), which is {settings_now[key]!r} now; expected one version's settings for all: take "
                        f"another --out"
                    )


def _describe(request: Request, slots: Slots) -> str:
    """What is known before anything is measured."""
    config, num_points = request.config, len(request.points)
    networks = "; ".join(f"{p.backbone} {p.backbone_args or ''}".strip() for p in request.points if p.config is None)
    labels = " and ".join(f"{number:,}" for number in request.labels)
    most = "up to " if config.budget and config.finetune_steps is None else ""
    augmentation = f"light augmentation (up to {SMALL_SIZE} px)" if request.finetune_size <= SMALL_SIZE else "augmented"
    swept = (" or " if config.one_at_a_time else " x ").join(config.sweep)
    lines = [
        f"data      {request.pretrain_data}: {request.num_images:,} images to pre-train on"
        + (", of which those held out to validate on are seen without labels" if request.sees_validation else ""),
        f"labelled  {config.data}: {request.num_train:,} images train, {request.num_val:,} validate",
        f"sweep     {swept}, and from scratch: {num_points} points, "
        f"{report.count(config.seeds, 'seed')}, {num_points * config.seeds} trials",
        f"network   {networks}",
        f"finetune  {labels} labels at {request.finetune_size} px, {most}{request.finetune_steps} steps of up "
        f"to {request.finetune['batch_size']} images, {augmentation}, the same for all; no layer decay from scratch",
        f"runs      {slots.describe()}",
        f"out       {config.out}",
    ]
    return "\n".join(lines)


def _describe_plan(request: Request, slots: Slots, plan: dict[str, Any]) -> str:
    """How the budget is divided."""
    speeds = Speeds(**plan["speeds"]) if plan["speeds"] else None
    images = plan["images"] or 0
    lines = [f"plan      fine-tunings of {request.finetune_steps} steps; for each seed:"]
    for point in request.points:
        steps = plan["steps"][point.folder]
        epochs = steps * point.config.batch_size / request.num_images if point.config else 0
        what = f"{steps:,} steps ({epochs:.1f} epochs) of pre-training" if point.config else "no pre-training"
        if speeds:
            training = speeds.pretraining(request, point, images) if point.config else 0.0
            total = speeds.trial(request, point, images)
            what += f", {report.seconds(training)}; {report.seconds(total)} with fine-tuning and probing"
        lines.append(f"  {point.name}: {what}")
    if speeds:
        total = speeds.study(request, slots, images) + speeds.measuring
        added = request.config.seeds - plan["seeds"]
        lines.append(
            f"total     {report.seconds(total)}; {report.count(added, 'seed')} more than the budget of "
            f"{request.config.budget} was for"
            if added
            else f"total     {report.seconds(total)} of the budget of {request.config.budget} "
            f"({budget.RESERVE:.0%} of it is kept in reserve)"
        )
    return "\n".join(lines)
