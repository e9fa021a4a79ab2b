"""Curves: thinning, smoothing, ticks; and reading millions of lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmim.reporting import curves, metrics


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000),
    st.integers(1, 40),
)
def test_thinning_keeps_the_ends_and_every_bin_s_extremes(values: list[float], bins: int) -> None:
    column = np.array(values)
    steps = np.arange(10.0, 10.0 * len(column) + 1, 10.0)
    kept_steps, kept = curves.thin(steps, column, bins=bins)
    assert len(kept) <= max(4 * bins, 0) or len(values) <= 4 * bins
    assert (kept_steps[0], kept_steps[-1]) == (steps[0], steps[-1])
    assert (kept.min(), kept.max()) == (column.min(), column.max())
    assert np.all(np.diff(kept_steps) > 0)
    assert np.array_equal(column[np.searchsorted(steps, kept_steps)], kept)


def test_a_single_spike_survives() -> None:
    column = np.zeros(1_000_000)
    column[654_321], column[654_322] = 7.0, -3.0
    _, kept = curves.thin(np.arange(1_000_000.0), column)
    assert len(kept) <= 4 * curves.MAX_BINS and {7.0, -3.0} <= set(kept)


def test_smoothing_is_the_mean_of_equal_parts() -> None:
    steps, values = np.arange(300.0), np.arange(300.0) % 3
    mean_steps, means = curves.smooth(steps, values, bins=100)
    assert np.allclose(means, 1.0) and np.allclose(mean_steps, steps.reshape(100, 3).mean(1))
    assert curves.smooth(steps[:100], values[:100], bins=60)[0] is not None


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 1000), [0, 500, 1000]),
        ((0.04, 0.16), [0.05, 0.1, 0.15]),
        ((0.28, 0.62), [0.3, 0.4, 0.5, 0.6]),
        ((-3, 3), [-2, 0, 2]),
        ((5, 5), []),
        ((float("nan"), 1), []),
    ],
)
def test_ticks_are_few_and_round(bounds: tuple[float, float], expected: list[float]) -> None:
    assert curves.ticks(*bounds) == expected


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_inside(low: float, width: float) -> None:
    found = curves.ticks(low, low + width)
    slack = 1e-6 * (width + abs(low))
    assert len(found) <= 4 and all(low - slack <= tick <= low + width + slack for tick in found)


def test_logarithmic_ticks() -> None:
    assert curves.log_ticks(0.02, 3000) == [0.1, 1, 10, 100, 1000][::2]


def test_numbers_as_axes_show_them() -> None:
    numbers = [0, 0.05, 0.25, 1500, 20_000, 3e6, 2e-5, -4.5, 1234.5, 2.5e9]
    assert [curves.short(n) for n in numbers] == [
        *("0", "0.05", "0.25", "1,500", "20k", "3M", "2e-5", "-4.5", "1,234", "2.5G")
    ]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_metrics_with_gaps_nulls_and_lines_of_all_kinds(tmp_path: Path) -> None:
    lines = [
        '{"step": 10, "loss": 0.5, "lr": 0.1}',
        "not JSON",
        '{"step": 20, "loss": null, "lr": 0.2}',
        '{"step": 20, "val_top1": 0.75}',
        "[1, 2]",
        '{"step": "30", "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": 99999999999999999999, "loss": 1}',
        '{"step": 40, "loss": "<b>", "lr": {"a": [1]}, "time": 7}',
        '{"step": 50, "loss": NaN, "lr": 0.5, "time": "2026-11-26T10:00:00+00:00"}',
        "[" * 20_000,
        '{"step": 45, "loss": 0.25}',
        '{"step": 60, "loss": 0.1',
    ]
    found = metrics.read(write(tmp_path / "metrics.jsonl", lines))
    assert (found.num_lines, found.num_unreadable) == (13, 7)
    assert found["loss"][0].tolist() == [10, 45] and found["loss"][1].tolist() == [0.5, 0.25]
    assert found["lr"][1].tolist() == [0.1, 0.2, 0.5] and found["val_top1"][1].tolist() == [0.75]
    assert found.step == 50 and found.last_time == "2026-11-26T10:00:00+00:00"
    assert found["nothing"][0].size == 0 and found.last("nothing") is None


def test_metrics_equal_a_plain_reading(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"step": step, "loss": float(random.normal())} | ({"val": 1.5 * step} if step % 7 == 0 else {})
        for step in range(1, 20_001)
    ]
    found = metrics.read(write(tmp_path / "metrics.jsonl", [json.dumps(row) for row in rows]))
    assert found["loss"][1].tolist() == [row["loss"] for row in rows]
    assert found["val"][0].tolist() == [row["step"] for row in rows if "val" in row]
    assert found.num_unreadable == 0


def test_a_metric_that_nobody_could_draw_is_left_out(tmp_path: Path) -> None:
    rows = [json.dumps({"step": 1} | {f"metric{n}": n for n in range(1000)})]
    assert len(metrics.read(write(tmp_path / "metrics.jsonl", rows)).columns) <= 200
