"""The lines of metrics.jsonl as columns: millions of them in seconds, whatever some of them hold."""

from __future__ import annotations

import gc
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from fastmim.system import files

_CHUNK = 1 << 16  # bytes of lines that are decoded together: small enough for a processor's cache
_LARGEST = 1 << 53  # step that a float64 holds exactly
_STEP = methodcaller("get", "step")
_MAX_NAMES = 200  # of metrics; a run has about twenty


@dataclass
class Metrics:
    """The metrics of a run, by name."""

    columns: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """For each metric: steps and values, both (N,) float64, in increasing order of steps; NaN where null was logged."""
    first_time: str = ""
    """The time of the first line, in ISO 8601; empty if none says it."""
    last_time: str = ""
    num_lines: int = 0
    num_unreadable: int = 0
    """Lines that are not the metrics of a step."""

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, without those that are not finite; empty if it was never logged."""
        steps, values = self.columns.get(name, (np.empty(0), np.empty(0)))
        finite = np.isfinite(values)
        return steps[finite], values[finite]

    def last(self, name: str) -> float | None:
        """The last finite value of a metric."""
        values = self[name][1]
        return float(values[-1]) if len(values) else None

    @property
    def step(self) -> int:
        """The last step of any line."""
        return int(max((steps[-1] for steps, _ in self.columns.values() if len(steps)), default=0))


def read(path: Path) -> Metrics:
    """Read a metrics.jsonl; lines that are not a step's are counted and left out.

    Raises:
        OSError: it cannot be read.
    """
    found = Metrics()
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with os.fdopen(files.open_regular(path), "rb") as file, _without_garbage_collection():
        while lines := file.readlines(_CHUNK):
            rows = _rows(lines)
            found.num_lines += len(lines)
            found.num_unreadable += len(lines) - len(rows)
            found.first_time = found.first_time or _first_time(rows)
            found.last_time = _first_time(reversed(rows)) or found.last_time
            for names, alike in _by_names(rows):
                _add_columns(parts, names, alike)
    for name, pairs in parts.items():
        steps, values = (np.concatenate(column) for column in zip(*pairs, strict=True))
        if np.any(steps[1:] < steps[:-1]):  # lines were added by hand, or come from two processes
            order = np.argsort(steps, kind="stable")
            steps, values = steps[order], values[order]
        found.columns[name] = steps, values
    return found


def _rows(lines: list[bytes]) -> list[dict[str, Any]]:
    """The lines that hold an object with a step."""
    try:
        rows = orjson.loads(b"[" + b",".join(lines) + b"]")  # faster than line by line
        if len(rows) != len(lines):
            raise ValueError
    except (ValueError, RecursionError):
        rows = list(map(_decoded, lines))
    if set(map(type, rows)) == {dict} and set(map(type, map(_STEP, rows))) == {int}:
        steps = list(map(_STEP, rows))
        if min(steps) > -_LARGEST and max(steps) < _LARGEST:
            return rows
    return [row for row in rows if type(row) is dict and type(row.get("step")) is int and abs(row["step"]) < _LARGEST]


def _decoded(line: bytes) -> Any:
    """A line on its own; Python's decoder takes NaN, which orjson does not."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _by_names(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """The rows in groups that have the same names, which are few."""
    if rows and _are_alike(rows):
        yield tuple(rows[0]), rows
        return
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    yield from groups.items()


def _are_alike(rows: list[dict[str, Any]]) -> bool:
    """Whether all have the names of the first; without a loop of Python's, as there may be millions."""
    if set(map(len, rows)) != {len(rows[0])}:
        return False
    try:
        deque(map(itemgetter(*rows[0]), rows), maxlen=0)
    except KeyError:
        return False
    return True


def _add_columns(
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]], names: Sequence[str], rows: list[dict[str, Any]]
) -> None:
    numeric = [name for name in names if name not in ("step", "time")][:_MAX_NAMES]
    values = _values(rows, ["step", *numeric])
    for name, column in zip(numeric, values[1:], strict=True):
        is_number = name == "loss" or not np.isnan(column).all()  # a loss may be null throughout
        if is_number and (name in parts or len(parts) < _MAX_NAMES):
            parts.setdefault(name, []).append((values[0], column))


def _values(rows: list[dict[str, Any]], names: list[str]) -> np.ndarray:
    """(number of names, number of rows); NaN for what is not a number."""
    if len(names) == 1:
        return np.array([[row["step"] for row in rows]], dtype=np.float64)
    try:
        return np.array(list(map(itemgetter(*names), rows)), dtype=np.float64).T
    except (TypeError, ValueError, OverflowError):
        return np.array([[_number(row[name]) for row in rows] for name in names], dtype=np.float64)


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float) else float("nan")
    except OverflowError:
        return float("nan")


def _first_time(rows: Iterable[Mapping[str, Any]]) -> str:
    return next((row["time"] for row in rows if isinstance(row.get("time"), str)), "")


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of small objects that refer to nothing would be searched for circles again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
