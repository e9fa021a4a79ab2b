"""The verdict on a run: whether it learns, what is wrong with it, and what to try.

Each rule looks at the metrics alone, or at an adaptation's scores before and after, and has a threshold of its own,
named here; docs/report.md explains them. A rule that needs a metric which was not logged says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastmim.reporting.curves import short
from fastmim.reporting.reading import Run

MIN_LINES = 20
"""Log lines with a loss below which nothing is said about learning."""
DIVERGED = 1.2
"""The loss at the end, against its lowest mean over a tenth of the run, of a run that has diverged."""
FLAT = 0.02
"""The share by which the loss must fall."""
STARVED = 0.2
"""The share of its time that a device may wait for data."""
COLLAPSED, MIN_RANK = 0.5, 2.0
"""The share of its highest value to which the effective rank may fall, and the lowest that is no collapse."""
OVERFIT = 1.03
"""The held-out loss at the end, against its lowest, of a run that overfits while its training loss falls."""
SKIPPED = 0.01
"""The share of steps that may be skipped because they were not finite."""
SLOWED = 0.6
"""The share of the usual speed below which the last tenth of a run counts as slow."""

LEVELS = ("bad", "warning", "unclear", "good")
"""From the worst to the best: the worst finding decides the verdict."""


@dataclass(frozen=True)
class Finding:
    """One sentence about a run."""

    level: str
    """One of `LEVELS`."""
    rule: str
    """The rule that found it, such as `diverged`."""
    text: str
    advice: str = ""
    """What to try."""


@dataclass(frozen=True)
class Verdict:
    """What to think of a run."""

    level: str
    word: str
    """`learning`, `diverged`, ... : the rule in a word or two."""
    sentence: str
    findings: list[Finding]
    """All of them, the worst first."""


def judge(run: Run) -> Verdict:
    """Apply every rule to a run."""
    found = [finding for rule in RULES if (finding := rule(run))]
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    worst = found[0]
    word = _WORDS[worst.rule]
    if worst.level == "warning" and any(finding.rule == "learning" for finding in found):
        word = f"Learning, but {word[0].lower()}{word[1:]}"
    others = [finding.text for finding in found[1:] if finding.level == "good"] if worst.level != "bad" else []
    sentence = "; ".join([worst.text, *others])
    return Verdict(worst.level, word, f"{sentence[0].upper()}{sentence[1:]}.", found)


_WORDS = {
    "short": "Too short to say",
    "learning": "Learning",
    "diverged": "Diverged",
    "flat": "Not learning",
    "collapsed": "Collapsed",
    "overfit": "Overfitting",
    "starved": "Waiting for data",
    "skipped": "Skipping steps",
    "slowed": "Slowing down",
    "better": "Better than before",
    "worse": "Worse than before",
    "no difference": "No difference shown",
}


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The means of the first and of the last tenth."""
    few = max(1, len(values) // 10)
    return float(values[:few].mean()), float(values[-few:].mean())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.1f} %"


def _short_run(run: Run) -> Finding | None:
    num = len(run.metrics["loss"][1])
    if num >= MIN_LINES or _adapted(run):
        return None
    said = "nothing is logged yet" if num == 0 else f"{num} log line{'s' * (num > 1)} so far"
    return Finding("unclear", "short", f"{said}; a verdict takes {MIN_LINES}")


_ADAPTED = {
    "better": ("good", "the adapted network is better", ""),
    "worse": (
        "bad",
        "the adapted network is worse",
        "go on with the untouched weights (weights_before.safetensors), or adapt with a lower --lr or on more images",
    ),
    "no difference": (
        "unclear",
        "the labelled images show no difference between the adapted network and the untouched one",
        "judge by more labelled images (--probe), or adapt for longer or on more images",
    ),
}


def _adapted(run: Run) -> Finding | None:
    match run.adaptation.get("verdict"):
        case {"word": str(word), "difference": float(gain), "interval": [float(low), float(high)]} if word in _ADAPTED:
            level, text, advice = _ADAPTED[word]
            interval = f"{gain:+.1f} points of the linear probe's top-1, 95 % interval {low:+.1f} to {high:+.1f}"
            return Finding(level, word, f"{text} ({interval})", advice)
    return None


def _learning(run: Run) -> Finding | None:
    loss = run.metrics["loss"][1]
    if len(loss) < MIN_LINES or _diverged(run) or _flat(run):
        return None
    first, last = _ends(loss)
    parts = [f"the loss fell {_percent(1 - last / first)}" if first > 0 else f"the loss fell to {short(last)}"]
    for name, words in (("probe_mim_loss", "the held-out loss"), ("val_loss", "the validation loss")):
        values = run.metrics[name][1]
        if len(values) > 1 and values[0] > 0:
            change = values[-1] / values[0] - 1
            parts.append(f"{words} {'fell' if change < 0 else 'rose'} {_percent(abs(change))}")
    for name, words in (("probe_knn", "kNN"), ("val_top1", "top-1"), ("val_miou", "mIoU"), ("val_ap", "AP")):
        values = run.metrics[name][1]
        if len(values) > 1:
            parts.append(f"{words} went from {100 * values[0]:.1f} to {100 * values[-1]:.1f} %")
        elif len(values):
            parts.append(f"{words} is {100 * values[-1]:.1f} %")
    if not run.metrics.last("skipped_steps"):
        parts.append("no step was skipped")
    return Finding("good", "learning", ", ".join(parts))


def _diverged(run: Run) -> Finding | None:
    advice = "lower the learning rate (--lr), lengthen the warm-up (--warmup 10%), or clip gradients (--clip 1)"
    all_steps, all_loss = run.metrics.columns.get("loss", (np.empty(0), np.empty(0)))
    if len(all_loss) and not np.isfinite(all_loss[-1]):
        return Finding("bad", "diverged", f"the loss is not finite at step {all_steps[-1]:,.0f}", advice)
    steps, loss = run.metrics["loss"]
    if len(loss) < MIN_LINES:
        return None
    tenths = [part.mean() for part in np.array_split(loss, 10)]
    lowest = int(np.argmin(tenths))
    rise = tenths[-1] - tenths[lowest]
    if tenths[-1] > DIVERGED * abs(tenths[lowest]) and rise > 3 * _noise(loss):
        step = np.array_split(steps, 10)[lowest][-1]
        text = f"the loss rose from {short(tenths[lowest])} to {short(tenths[-1])} after step {step:,.0f}"
        return Finding("bad", "diverged", text, advice)
    return None


def _noise(values: np.ndarray) -> float:
    """How much neighbours differ, as a standard deviation; robust to single spikes."""
    return float(np.median(np.abs(np.diff(values)))) / 0.954


def _flat(run: Run) -> Finding | None:
    loss = run.metrics["loss"][1]
    if len(loss) < MIN_LINES or _diverged(run):
        return None
    first, last = _ends(loss)
    if last < first - FLAT * abs(first):
        return None
    change = "did not fall" if last >= first else f"fell by less than {_percent(FLAT)}"
    return Finding(
        "bad",
        "flat",
        f"the loss {change} ({short(first)} at first, {short(last)} now)",
        "raise the learning rate (--lr), train longer, and look at the pictures: are the images what you expect?",
    )


def _collapsed(run: Run) -> Finding | None:
    steps, rank = run.metrics["probe_effective_rank"]
    if not len(rank):
        return None
    if rank[-1] >= MIN_RANK and (len(rank) < 2 or rank[-1] >= COLLAPSED * rank.max()):
        return None
    was = f", from {rank.max():.1f} at step {steps[rank.argmax()]:,.0f}" if len(rank) > 1 else ""
    return Finding(
        "bad",
        "collapsed",
        f"the features vary in few directions: their effective rank is {rank[-1]:.1f}{was}",
        "lower the learning rate, raise --mask-ratio, or stop at an earlier checkpoint (--keep-every)",
    )


def _overfit(run: Run) -> Finding | None:
    loss = run.metrics["loss"][1]
    for name, words in (("probe_mim_loss", "held-out"), ("val_loss", "validation")):
        steps, held = run.metrics[name]
        if len(held) < 3 or len(loss) < MIN_LINES:
            continue
        lowest = int(held.argmin())
        before = run.metrics["loss"][0] <= steps[lowest]
        if held[-1] <= OVERFIT * held[lowest] or not before.any() or before.all():
            continue
        if loss[~before].mean() < loss[before][-max(1, before.sum() // 10) :].mean():
            return Finding(
                "warning",
                "overfit",
                f"the {words} loss has risen from {short(held[lowest])} at step {steps[lowest]:,.0f} to "
                f"{short(held[-1])} while the training loss fell",
                "train for fewer epochs, on more images, or with stronger augmentation (a smaller --crop-scale)",
            )
    return None


def _starved(run: Run) -> Finding | None:
    _, share = run.metrics["data_wait_share"]
    if len(share) < 3:
        return None
    usual = float(np.median(share[1:]))  # workers start before the first
    if usual <= STARVED:
        return None
    return Finding(
        "warning",
        "starved",
        f"the device waits for data {_percent(usual)} of the time",
        "pack the images (`fastmim pack`), or take more --num-workers",
    )


def _skipped(run: Run) -> Finding | None:
    skipped = run.metrics.last("skipped_steps")
    if not skipped:
        return None
    share = skipped / max(run.metrics.step, 1)
    text = f"{skipped:,.0f} of {run.metrics.step:,} steps were skipped, as they were not finite"
    return Finding(
        "warning" if share > SKIPPED else "good", "skipped", text, "lower the learning rate, or clip gradients (--clip)"
    )


def _slowed(run: Run) -> Finding | None:
    speed = run.metrics["images_per_s"][1]
    stages = run.fact("stages", list) or []
    if len(speed) < MIN_LINES or len(stages) > 1:  # larger images take longer
        return None
    usual, last = float(np.median(speed)), float(speed[-max(1, len(speed) // 10) :].mean())
    if last >= SLOWED * usual:
        return None
    text = f"the speed fell to {short(last)} images/s, from a usual {short(usual)}"
    return Finding("warning", "slowed", text, "look for other work on the machine, a hot device or a slow disk")


RULES: tuple[Callable[[Run], Finding | None], ...] = (
    _short_run,
    _diverged,
    _flat,
    _collapsed,
    _overfit,
    _starved,
    _skipped,
    _slowed,
    _adapted,
    _learning,
)
