"""Charts as SVG that fills the width it is given: lines in a plot that stretches, text beside it that does not.

An outer `<svg>` has no `viewBox`, so its text keeps its size on any screen, and places are percentages of the width.
The lines are in an inner `<svg>` with `preserveAspectRatio="none"`: to zoom, a script changes its `viewBox`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from fastmim.reporting import curves
from fastmim.system.text import printable

TOP, BOTTOM = 16, 26
"""Room above the plot, and below it for the labels of the x axis, in pixels."""
MAX_HUES = 6
"""Runs with a colour of their own; the others are grey."""

UNITS = 1000  # of the plot's height
_MARGIN = 0.06  # of the range of values, above and below the curve


@dataclass(frozen=True)
class Curve:
    """A metric of one run."""

    label: str
    steps: np.ndarray
    """(N,) increasing."""
    values: np.ndarray
    """(N,) finite."""
    hue: int = 0
    """Which colour; see `MAX_HUES`."""


@dataclass(frozen=True)
class Mark:
    """A moment in a run."""

    step: float
    kind: str
    """`restart`, `save` or `stage`."""
    label: str = ""
    """In words; printable."""


@dataclass(frozen=True)
class Chart:
    """A metric of one or more runs over steps."""

    name: str
    """The metric's, for scripts."""
    title: str
    lines: Sequence[Curve]
    last_step: float
    """Where the x axis ends."""
    unit: str = ""
    """Shown beside the title."""
    scale: float = 1.0
    """Factor from the values to what is shown, such as 100 for percent."""
    zero: bool = False
    """Whether the y axis begins at 0."""
    marks: Sequence[Mark] = field(default=())
    points: bool = False
    """Mark every point: for metrics that are measured now and then."""
    height: int = 170
    """In pixels."""
    over: str = "steps"
    """What the x axis counts."""
    bins: int = curves.MAX_BINS
    """See `curves.thin`; fewer for many curves."""

    @property
    def plot_height(self) -> int:
        """In pixels."""
        return self.height - TOP - BOTTOM

    @property
    def last(self) -> str:
        """The last value, of a single run."""
        if len(self.lines) != 1:
            return ""
        value = float(self.lines[0].values[-1]) * self.scale
        return f"{value:.1f}" if self.unit == "%" else curves.short(value)

    def svg(self) -> Markup:
        """Draw the chart: the labels of the y axis, and beside them the plot."""
        axis = _axis(self)
        lines = _joined(_line(curve, self, axis) for curve in self.lines)
        plot = Markup(
            '<svg class="plot" y="{}" width="100%" height="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">{}</svg>'
        ).format(TOP, self.plot_height, _number(self.last_step), UNITS, lines)
        parts = [
            *(_gridline(value, axis, self) for value in axis.ticks),
            *(_mark(mark, self) for mark in self.marks),
            plot,
            *(_step_label(step, self) for step in curves.ticks(0, self.last_step, most=6) if step.is_integer()),
        ]
        title = f"{self.title} in {self.unit}" if self.unit else self.title
        label = printable(f"{title} over {self.over}" + (f"; last value {self.last}" if self.last else ""))
        bounds = axis.low, axis.high, int(axis.log), self.last_step
        values = _joined(_value_label(value, axis, self) for value in axis.ticks)
        return Markup(
            '<div class="plotted"><svg class="values" width="48" height="{0}" aria-hidden="true">{1}</svg>'
            '<svg class="chart {10}" width="100%" height="{0}" role="img" aria-label="{2}" data-name="{3}" '
            'data-scale="{4}" data-low="{5}" data-high="{6}" data-log="{7}" data-last="{8}">{9}</svg></div>'
        ).format(self.height, values, label, printable(self.name), self.scale, *bounds, _joined(parts), self.over)


@dataclass(frozen=True)
class _Axis:
    """The y axis: its bounds and ticks in shown units, and whether it is logarithmic."""

    low: float
    high: float
    ticks: list[float]
    log: bool

    def y(self, value: np.ndarray | float) -> np.ndarray:
        """Where a shown value is, as a share of the height from the top."""
        low, high, values = self.low, self.high, np.asarray(value, dtype=np.float64)
        if self.log:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, self.low))
        return 1 - (values - low) / (high - low)


def _axis(chart: Chart) -> _Axis:
    values = np.concatenate([curve.values for curve in chart.lines]) * chart.scale
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 50 * low and high > 20 * float(np.median(values)):
        low, high = low / 1.2, high * 1.2
        marked = curves.log_ticks(low, high)
        if len(marked) > 1:
            return _Axis(low, high, marked, log=True)
    if chart.zero:
        low = min(low, 0.0)
    margin = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    low, high = (low if chart.zero and low == 0 else low - margin), high + margin
    return _Axis(low, high, curves.ticks(low, high), log=False)


def _line(curve: Curve, chart: Chart, axis: _Axis) -> Markup:
    """A run's curve; of a single run with many points also its mean, over the points in a lighter colour."""
    steps, values = curves.thin(curve.steps, curve.values, bins=chart.bins)
    mean = curves.smooth(curve.steps, curve.values, bins=max(15, chart.bins // 5))
    hue = f"hue{curve.hue}" if curve.hue < MAX_HUES else "other"
    drawn = []
    if len(mean[0]) < len(curve.steps):
        if len(chart.lines) == 1:
            drawn.append(_path(steps, values * chart.scale, axis, f"raw {hue}"))
        steps, values = mean
    drawn.append(_path(steps, values * chart.scale, axis, hue))
    if chart.points and len(steps) <= 60:
        drawn.append(_path(steps, values * chart.scale, axis, f"points {hue}", dots=True))
    return _joined(drawn)


def _path(steps: np.ndarray, values: np.ndarray, axis: _Axis, classes: str, *, dots: bool = False) -> Markup:
    """A polyline, or a dot for each point: a line of no length with round ends keeps its shape when stretched."""
    heights = axis.y(values) * UNITS
    if dots or len(steps) == 1:
        classes = classes if dots else f"points {classes}"
        text = "".join(f"M{_number(x)} {_number(y)}h0" for x, y in zip(steps, heights, strict=True))
    else:
        text = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in zip(steps, heights, strict=True))
    return Markup('<path class="{}" d="{}"/>').format(classes, text)


def _gridline(value: float, axis: _Axis, chart: Chart) -> Markup:
    return Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_number(_place(value, axis, chart)))


def _value_label(value: float, axis: _Axis, chart: Chart) -> Markup:
    place = _number(_place(value, axis, chart) + 4)
    return Markup('<text class="tick end" x="38" y="{}">{}</text>').format(place, curves.short(value))


def _place(value: float, axis: _Axis, chart: Chart) -> float:
    """Pixels from the top."""
    return TOP + float(axis.y(value)) * chart.plot_height


def _step_label(step: float, chart: Chart) -> Markup:
    share = step / chart.last_step
    anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
    return Markup('<text class="tick step {}" x="{}%" y="{}">{}</text>').format(
        anchor, _number(100 * share), chart.height - 8, curves.short(step)
    )


def _mark(mark: Mark, chart: Chart) -> Markup:
    bottom = chart.height - BOTTOM
    top = bottom - 5 if mark.kind == "save" else TOP
    return Markup(
        '<line class="mark {0}" data-step="{1}" x1="{2}%" x2="{2}%" y1="{3}" y2="{4}"><title>{5}</title></line>'
    ).format(mark.kind, _number(mark.step), _number(100 * mark.step / chart.last_step), top, bottom, mark.label)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _number(value: float) -> str:
    """Few digits: a page holds thousands of them."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
