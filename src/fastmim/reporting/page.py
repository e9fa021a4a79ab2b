"""The page: one HTML file that loads nothing, from one or several runs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from fastmim.reporting import curves, panels, tables, verdict
from fastmim.reporting.charts import Chart, Curve, Mark
from fastmim.reporting.panels import Frame
from fastmim.reporting.reading import Run, parse_time
from fastmim.reporting.study import Study
from fastmim.reporting.tables import Table, duration
from fastmim.reporting.verdict import Verdict
from fastmim.system.run_directory import RunDirectory
from fastmim.system.text import printable

if TYPE_CHECKING:
    import jinja2

FORMAT = 1
"""Of the JSON in the page."""

_PERCENT: dict[str, Any] = {"unit": "%", "scale": 100.0}
_CHARTS: dict[str, dict[str, Any]] = {
    "loss": {"title": "Loss", "height": 260},
    "explained_variance": {"title": "Explained variance of the hidden blocks"} | _PERCENT | {"points": True},
    "probe_mim_loss": {"title": "Held-out loss", "points": True},
    "probe_knn": {"title": "kNN accuracy"} | _PERCENT | {"points": True},
    "probe_effective_rank": {"title": "Effective rank of the features", "points": True},
    "val_top1": {"title": "Top-1 on the validation images"} | _PERCENT | {"points": True},
    "val_top5": {"title": "Top-5"} | _PERCENT | {"points": True},
    "val_mean_class": {"title": "Mean accuracy over classes"} | _PERCENT | {"points": True},
    "val_loss": {"title": "Validation loss", "points": True},
    "lr": {"title": "Learning rate", "zero": True},
    "grad_norm": {"title": "Gradient norm"},
    "images_per_s": {"title": "Images per second", "zero": True},
    "data_wait_share": {"title": "Time waiting for data", "zero": True} | _PERCENT,
    "memory_gb": {"title": "Peak memory", "unit": "GiB", "zero": True},
    "skipped_steps": {"title": "Skipped steps"},
}
"""How metrics are drawn, in this order; others follow under their own names."""
_UNDRAWN = {"images", "epoch", "seconds_per_step"}
_KINDS = {
    "pretrain": "Pre-training",
    "adapt": "Adaptation",
    "finetune": "Fine-tuning",
    "detect": "Detection",
    "segment": "Segmentation",
    "training": "Training",
}
_PICTURES = {
    "step": ("Pictures", "What the network sees, and what it predicts for the hidden blocks."),
    "features": ("Features", "The first principal components of the patch features, as colours."),
    "attention": ("Attention", "Where the class token looks."),
    "neighbours": ("Neighbours", "Images with the most similar features."),
    "confusion": ("Confusion", "Rows are true classes, columns are predicted ones."),
}
_MAX_PICTURED_RUNS = 6


@dataclass(frozen=True)
class Gallery:
    """The pictures of one kind."""

    kind: str
    title: str
    text: str
    frames: list[Frame]
    num_all: int


@dataclass(frozen=True)
class Shown:
    """A run and what the page says about it."""

    run: Run
    verdict: Verdict
    hue: int
    galleries: list[Gallery] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The kind of run in words."""
        return _KINDS.get(self.run.kind, self.run.kind.capitalize())

    @property
    def state(self) -> str:
        """How far the run has come, in words."""
        run = self.run
        step, total = f"{run.metrics.step:,}", f"{run.total_steps:,}"
        ago = duration(run.silent_seconds)
        return {
            "finished": f"finished after {step} steps",
            "stopped": f"stopped at step {step} of {total}",
            "running": f"at step {step} of {total}",
            "stale": f"stale: at step {step} of {total}, and nothing written for {ago}",
            "empty": "no step is logged yet",
        }[run.state]


def render(
    runs: Sequence[Run],
    *,
    study: Study | None = None,
    hourly_rate: float | None = None,
    checksums: bool = True,
    reload_seconds: int | None = None,
    now: datetime | None = None,
) -> str:
    """Make the page of one or several runs.

    Args:
        runs: From `reading.read`.
        study: The study that they belong to.
        hourly_rate: The price of a device-hour, to tell what a run has cost.
        checksums: Whether to read the weights for their SHA-256.
        reload_seconds: After how long the open page loads itself again.
        now: The time that the page names. [default: now]

    Returns:
        HTML.
    """
    alone = study is None and len(runs) == 1
    shown = [Shown(run, verdict.judge(run), hue, _galleries(run) if alone else []) for hue, run in enumerate(runs)]
    frames = {gallery.kind: _frames_data(gallery) for gallery in shown[0].galleries} if alone else {}
    style, script = _asset("page.css"), _asset("page.js")
    template = _environment().get_template("page.html")
    return template.render(
        shown=shown,
        alone=shown[0] if alone else None,
        study=study,
        scatter=_scatter_points(study) if study else [],
        charts=_charts(runs),
        facts=_facts(shown[0]) if alone else [],
        **(_single(shown[0].run, hourly_rate, checksums) if alone else {}),
        differing=None if alone else tables.differing_settings(runs[:_MAX_COMPARED]),
        pictured=[] if alone else _last_pictures(runs),
        problems=[(run.name, problem) for run in runs for problem in run.problems],
        study_problems=study.problems if study else [],
        data=_embedded(_data(shown)),
        frames=_embedded(frames),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        reload_seconds=reload_seconds,
        written=(now or datetime.now(UTC)).strftime("%d %B %Y, %H:%M UTC"),
    )


_MAX_COMPARED = 12  # columns of settings


def _single(run: Run, hourly_rate: float | None, checksums: bool) -> dict[str, Any]:
    """What only the page of a single run has."""
    return {
        "evaluations": tables.evaluation(run.evaluation) + tables.adaptation(run.adaptation),
        "changed": tables.changed_settings(run),
        "settings": tables.all_settings(run),
        "machine": tables.machine(run, hourly_rate=hourly_rate),
        "files": tables.file_list(run, checksums=checksums),
        "commands": tables.commands(run),
        "num_images": run.fact("num_images", int),
        "block_charts": _block_charts(run),
    }


@cache
def _environment() -> jinja2.Environment:
    """Everything that is put in is escaped, control characters too."""
    import jinja2  # takes a quarter of a second, which runs are spared until they write a report

    def finalize(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return jinja2.Environment(
        loader=jinja2.PackageLoader("fastmim.reporting", "assets"),
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _asset(name: str) -> str:
    return (package_files("fastmim.reporting") / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that lets nothing but this style and script work, and nothing be fetched."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _embedded(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each metric that was logged."""
    names = dict.fromkeys(name for run in runs for name in run.metrics.columns)
    ordered = [*_CHARTS, *sorted(name for name in names if name not in _CHARTS and name not in _UNDRAWN)]
    last = float(max((run.metrics.step for run in runs), default=0))
    if not last:
        return []
    marks = _marks(runs[0]) if len(runs) == 1 else []
    bins = max(8, min(curves.MAX_BINS, 900 // len(runs)))
    found = []
    for name in ordered:
        lines = [Curve(run.name, *run.metrics[name], hue) for hue, run in enumerate(runs) if len(run.metrics[name][0])]
        flat = all(np.ptp(line.values) == 0 for line in lines)
        if not lines or (name == "skipped_steps" and flat):
            continue
        how: dict[str, Any] = _CHARTS.get(name) or {"title": name.replace("_", " ").capitalize(), "points": True}
        found.append(Chart(name, lines=lines, last_step=last, marks=marks, bins=bins, **how))
    return found


_BLOCKS = {
    "attention_distance": {"title": "Mean attention distance by block", "unit": "px", "zero": True},
    "effective_rank": {"title": "Effective rank of the patch features by block", "zero": True},
}


def _block_charts(run: Run) -> list[Chart]:
    """A chart over the blocks for each of their numbers."""
    found = []
    for name, how in _BLOCKS.items():
        given = [row.get(name) for row in run.blocks]
        values = np.array([value for value in given if type(value) in (int, float)], dtype=np.float64)
        if 1 < len(values) == len(run.blocks) and np.isfinite(values).all():
            line = Curve(run.name, np.arange(1.0, len(values) + 1), values)
            options: dict[str, Any] = how | {"points": True, "over": "blocks"}
            found.append(Chart(name, lines=[line], last_step=float(len(values)), **options))
    return found


def _marks(run: Run) -> list[Mark]:
    """Stages, restarts and saves, as far as they lie inside the run."""
    found = [Mark(step, "save", f"checkpoint at step {step:,}") for step in run.saves]
    for stage in (run.fact("stages", list) or [])[1:]:
        if isinstance(stage, dict) and type(stage.get("start")) is int:
            size, start_step = tables.shown(stage.get("size")), stage["start"]
            found.append(Mark(start_step, "stage", printable(f"{size} px from step {start_step:,}")))
    for start in run.starts[1:]:
        step, time = start.get("step"), parse_time(start.get("time"))
        if type(step) is int:
            when = f" on {time:%d %B %Y, %H:%M UTC}" if time else ""
            found.append(Mark(step, "restart", f"resumed at step {step:,}{when}"))
    return [mark for mark in found if 0 <= mark.step <= run.metrics.step]


def _facts(shown: Shown) -> list[tuple[str, str]]:
    """The numbers at the top of a single run's page, as (what, value)."""
    run, last = shown.run, shown.run.metrics.last
    wanted = [
        ("loss", last("loss"), "{:.4g}"),
        ("held-out loss", last("probe_mim_loss"), "{:.4g}"),
        ("variance explained", _times(last("explained_variance"), 100), "{:.1f} %"),
        ("kNN accuracy", _times(last("probe_knn"), 100), "{:.1f} %"),
        ("top-1", _times(last("val_top1"), 100), "{:.1f} %"),
        ("mIoU", _times(last("val_miou"), 100), "{:.1f} %"),
    ]
    facts = [(name, form.format(value)) for name, value, form in wanted if value is not None]
    speed = run.metrics["images_per_s"][1]
    if len(speed):
        facts.append(("images per second", f"{np.median(speed):,.0f}"))
    if run.seconds:
        facts.append(("training time", duration(run.seconds)))
    return facts


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _galleries(run: Run) -> list[Gallery]:
    """The pictures of a run, within what a page may hold."""
    kinds = panels.find(RunDirectory(run.path).samples)
    ordered = sorted(kinds, key=lambda kind: (list(_PICTURES).index(kind) if kind in _PICTURES else 99, kind))[:8]
    found = []
    for kind in ordered:
        frames = panels.frames(kinds[kind], run.problems)
        frames = panels.within(frames, panels.MAX_BYTES // len(ordered))
        title, text = _PICTURES.get(kind, (kind.replace("_", " ").capitalize(), ""))
        if frames:
            found.append(Gallery(kind, title, text, frames, len(kinds[kind])))
    return found


def _last_pictures(runs: Sequence[Run]) -> list[tuple[Run, Frame]]:
    """The newest pictures of the first runs, for a comparison."""
    found = []
    for run in runs[:_MAX_PICTURED_RUNS]:
        pictures = panels.find(RunDirectory(run.path).samples).get("step", [])
        found += [(run, frame) for frame in panels.frames(pictures[-1:], run.problems)]
    return found


def _frames_data(gallery: Gallery) -> dict[str, Any]:
    """The frames for the slider: each picture once, and where it is shown."""
    numbers: dict[str, int] = {}
    frames = [
        [[numbers.setdefault(uri, len(numbers)) for uri in row] for row in frame.panels] for frame in gallery.frames
    ]
    return {"steps": [frame.step for frame in gallery.frames], "frames": frames, "pictures": list(numbers)}


def _data(shown: Sequence[Shown]) -> dict[str, Any]:
    """What tools and the page's script read: settings, verdicts and thinned metrics."""
    bins = max(8, min(curves.MAX_BINS, 900 // len(shown)))
    return {"format": FORMAT, "runs": [_run_data(item, bins) for item in shown]}


def _run_data(item: Shown, bins: int) -> dict[str, Any]:
    run = item.run
    metrics = {}
    for name in run.metrics.columns:
        steps, values = curves.thin(*run.metrics[name], bins=bins)
        if len(steps):
            metrics[printable(name)] = {
                "steps": [int(step) for step in steps],
                "values": [float(f"{value:.6g}") for value in values],
            }
    plain = {printable(str(name)): tables.shown(value) for name, value in run.settings.items()}
    return {
        "name": printable(run.name),
        "hue": item.hue,
        "kind": run.kind,
        "state": run.state,
        "step": run.metrics.step,
        "total_steps": run.total_steps,
        "device_hours": round(run.device_hours, 4),
        "verdict": {
            "level": item.verdict.level,
            "rule": item.verdict.findings[0].rule,
            "sentence": item.verdict.sentence,
            "findings": [vars(finding) for finding in item.verdict.findings],
        },
        "settings": plain,
        "metrics": metrics,
        "num_unreadable_images": run.num_bad,
        "problems": run.problems,
    }


def _scatter_points(study: Study) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each number of labels: the points of accuracy against cost, placed in percent of the drawing."""
    found = []
    for labels, points in study.points.items():
        most = max(point.seconds for point in points) or 1.0
        low = min(point.top1 - point.deviation for point in points)
        high = max(point.top1 + point.deviation for point in points)
        width = (high - low) or 1.0
        found.append(
            (
                labels,
                [
                    {
                        "name": point.name,
                        "x": f"{8 + 84 * point.seconds / most:.1f}",
                        "y": f"{90 - 80 * (point.top1 - low) / width:.1f}",
                        "top": f"{90 - 80 * (point.top1 + point.deviation - low) / width:.1f}",
                        "bottom": f"{90 - 80 * (point.top1 - point.deviation - low) / width:.1f}",
                        "label": f"{point.name}: {point.top1:.2f} %, {point.seconds:,.0f} device-seconds",
                    }
                    for point in points
                ],
            )
        )
    return found


__all__ = ["FORMAT", "Table", "render"]
