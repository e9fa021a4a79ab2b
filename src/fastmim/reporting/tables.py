"""The tables of a report: evaluations, settings, machine, files and the commands to go on from here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmim.published import FINETUNE_RECIPES, RECIPES
from fastmim.reporting.curves import short
from fastmim.reporting.reading import Run
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory

MAX_ROWS = 200
_SHARES = ("accuracy", "top1", "top5", "mean_class", "miou", "iou", "ap", "recall", "precision", "share", "knn")
_BIG = 1 << 28  # bytes of a file whose checksum takes a while


@dataclass(frozen=True)
class Table:
    """Rows of cells; all columns but the first are numbers if `numbers`."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = False
    codes: bool = False
    """The last column holds checksums."""
    bars: Sequence[float] = field(default=())
    """A share of 1 for each row, drawn as a bar."""


def evaluation(scores: Mapping[str, Any]) -> list[Table]:
    """The scores of an evaluation.json as tables, whatever command wrote it.

    Numbers by name become one table, worst first, and so does each mapping of names to mappings of numbers.
    """
    plain = [(name, value) for name, value in scores.items() if _is_number(value)]
    found = []
    if plain:
        rows = [[_words(name), _value(name, value)] for name, value in plain]
        found.append(Table("Scores", ["score", "value"], rows, numbers=True))
    for name, value in scores.items():
        if isinstance(value, Mapping) and value:
            found.append(_by_name(name, value))
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            columns = list(dict.fromkeys(str(key) for row in value for key in row))
            rows = [[_value(key, row.get(key)) for key in columns] for row in value[:MAX_ROWS]]
            found.append(Table(_words(name), [_words(key) for key in columns], rows, note=_left_out(value)))
    return found


def adaptation(scores: Mapping[str, Any]) -> list[Table]:
    """The scores of an adaptation.json, before the first step and after the last."""
    before, after = (found if isinstance(found := scores.get(when), Mapping) else {} for when in ("before", "after"))
    names = [name for name, value in before.items() if _is_number(value)]
    rows = [[_words(name), _value(name, before[name]), _value(name, after.get(name))] for name in names]
    note = "The untouched decoder has not been trained, so that the held-out loss before the first step is high."
    return [Table("Before and after", ["score", "before", "after"], rows, note=note, numbers=True)] if rows else []


def _by_name(name: str, scores: Mapping[str, Any]) -> Table:
    nested = {key: value for key, value in scores.items() if isinstance(value, Mapping)}
    if not nested:
        rows = [[str(key), _value(str(key), value)] for key, value in list(scores.items())[:MAX_ROWS]]
        return Table(_words(name), ["name", "value"], rows, note=_left_out(scores), numbers=True)
    columns = list(dict.fromkeys(str(key) for value in nested.values() for key in value))
    ranked = next((column for column in columns if column in _SHARES), columns[0] if columns else "")

    def rank(item: tuple[str, Mapping[str, Any]]) -> float:
        value = item[1].get(ranked)
        return float(value) if value is not None and _is_number(value) else math.inf

    ordered = sorted(nested.items(), key=rank)[:MAX_ROWS]
    rows = [[str(key), *(_value(column, value.get(column)) for column in columns)] for key, value in ordered]
    first = [value.get(ranked) for _, value in ordered]
    shares = ranked in _SHARES and all(value is None or (_is_number(value) and 0 <= value <= 1) for value in first)
    return Table(
        _words(name),
        ["class" if name.startswith("per_class") else "name", *map(_words, columns)],
        rows,
        note=_left_out(nested),
        numbers=True,
        bars=[float(value or 0) for value in first] if shares else (),
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _value(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    if not _is_number(value):
        return shown(value)
    is_share = type(value) is float and 0 <= value <= 1 and any(name == s or name.endswith(f"_{s}") for s in _SHARES)
    if is_share:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if type(value) is int else f"{value:.4g}"


_WORDS = {
    "knn_top1": "kNN, top-1",
    "linear_top1": "linear probe, top-1",
    "val_loss": "loss",
    "val_top1": "top-1",
    "val_top5": "top-5",
    "val_mean_class": "mean over classes",
}


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _left_out(rows: Sequence[Any] | Mapping[str, Any]) -> str:
    return f"The first {MAX_ROWS} of {len(rows):,}." if len(rows) > MAX_ROWS else ""


def shown(value: Any) -> str:
    """A setting as text, of which no more than a line is left."""
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


def changed_settings(run: Run) -> Table | None:
    """The settings that differ from those of the run's recipe, or else from the defaults."""
    recipe = run.settings.get("recipe")
    recipes = FINETUNE_RECIPES if run.kind == "finetune" else RECIPES
    published = recipes[recipe]() if isinstance(recipe, str) and recipe in recipes else {}
    defaults = run.fact("defaults", dict) or {}
    rows = []
    for name, value in run.settings.items():
        before = published.get(name, defaults.get(name, value))
        if name not in ("out", "recipe") and _plain(before) != _plain(value):
            rows.append([name, shown(value), shown(before)])
    if not rows:
        return None
    return Table("", ["setting", "this run", f"recipe {recipe}" if published else "default"], rows)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def all_settings(run: Run) -> Table:
    """Every setting."""
    return Table("", ["setting", "value"], [[str(name), shown(value)] for name, value in run.settings.items()])


def differing_settings(runs: Sequence[Run]) -> Table | None:
    """The settings in which runs differ, a row each."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "out")
    rows = []
    for name in names:
        values = [_plain(run.settings.get(name)) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([name, *(shown(run.settings[name]) if name in run.settings else "–" for run in runs)])
    return Table("", ["setting", *(run.name for run in runs)], rows) if rows else None


def file_list(run: Run, *, checksums: bool) -> Table:
    """The files of a run that one would keep, with their sizes and, if wanted, SHA-256 checksums."""
    directory = RunDirectory(run.path)
    weights = [directory.weights, directory.best_weights, directory.weights_before]
    paths = [*weights, directory.config, directory.metrics, directory.evaluation, directory.adaptation]
    rows = []
    for path in paths:
        if path.is_file():
            size = path.stat().st_size
            rows.append([path.name, num_bytes(size), _sha256(path) if checksums and size <= _BIG else "–"])
    for step in run.saves[-3:]:
        folder = directory.checkpoints / f"step_{step:09d}"
        size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
        rows.append([f"checkpoints/{folder.name}/", num_bytes(size), "in its manifest.json"])
    return Table("", ["file", "size", "SHA-256"], rows, codes=True)


def _sha256(path: Path) -> str:
    with os.fdopen(files.open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def num_bytes(size: float) -> str:
    """A size as text."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`, `4 d 2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def machine(run: Run, *, hourly_rate: float | None = None) -> Table:
    """Where the run was made, with which versions, for how long, and at what cost."""
    hardware = run.fact("hardware", dict) or {}
    device = hardware.get("accelerator") or hardware.get("processor")
    versions = run.fact("versions", dict) or run.versions
    processes = run.fact("processes", int) or 1
    rows = [
        ("device", shown(device) if device else ""),
        ("cores", shown(hardware.get("cores", ""))),
        ("processes", f"{processes}" if processes > 1 else ""),
        ("precision", f"{run.fact('precision', str) or ''}{', compiled' if run.fact('compiled', bool) else ''}"),
        ("peak memory", f"{peak:.2f} GiB" if (peak := run.metrics.last("memory_gb")) else ""),
        ("versions", ", ".join(f"{name} {shown(value)}" for name, value in versions.items())),
        ("time of training", duration(run.seconds) if run.seconds else ""),
        ("device-hours", short(float(f"{run.device_hours:.2g}")) if run.seconds else ""),
        ("cost", f"{run.device_hours * hourly_rate:,.2f} at {hourly_rate:g} a device-hour" if hourly_rate else ""),
        ("starts", f"{len(run.starts)}" if len(run.starts) > 1 else ""),
    ]
    return Table("", [], [[name, value] for name, value in rows if value])


def commands(run: Run) -> list[tuple[str, str]]:
    """What to type next, each with what it does; words are quoted for a shell."""
    path, data = str(run.path), shown(run.settings.get("data") or "labelled/")
    line = _command_line
    if run.state != "finished":
        known = {"pretrain", "adapt", "finetune", "detect", "segment"}
        return [(line("fastmim", run.kind, "--out", path), "resume the run")] if run.kind in known else []
    if run.kind in ("pretrain", "adapt"):
        return [
            (line("fastmim", "finetune", "--weights", path, "--data", "labelled/"), "train a classifier from it"),
            (line("fastmim", "probe", "--weights", path, "--data", "labelled/"), "measure its frozen features"),
            (line("fastmim", "embed", "--weights", path, "--data", data, "--out", "features.npy"), "a vector an image"),
            (line("fastmim", "visualise", path), "more pictures"),
            (line("fastmim", "export", path, "--to", "timm", "--out", "backbone"), "a folder for timm"),
        ]
    if run.kind == "finetune":
        return [
            (line("fastmim", "predict", "--weights", path, "--data", "new/", "--out", "predictions.csv"), "use it"),
            (line("fastmim", "export", path, "--to", "timm", "--out", "classifier"), "a folder for timm"),
        ]
    return []


def _command_line(*words: str) -> str:
    return shlex.join(words)
