"""What a study says about a claim: rules for verdicts, and a judge for each claim of `claims.py`.

A study speaks to a claim if its points differ in the claim's subject and in nothing else. Differences are paired by
seed (same labels, same order) and judged by their 95 % interval, so that few seeds give "undecided", not a finding.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastmim.studies import differences
from fastmim.studies.differences import Interval

MARGIN = 1.0
"""Points of accuracy that count as "nearly the same"."""

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided"

Record = dict[str, Any]
Verdicts = Iterator[tuple[str, str]]
"""Pairs of a verdict and its numbers."""

Judge = Callable[[Record, str], Verdicts]
"""(study, number of labels) -> what the study says."""


def within_margin(found: Interval) -> str:
    """Whether a difference is within the margin."""
    _, low, high = found
    if low >= -MARGIN and high <= MARGIN:
        return HELD
    return NOT if low > MARGIN or high < -MARGIN else UNDECIDED


def above_zero(found: Interval) -> str:
    """Whether a difference is positive."""
    _, low, high = found
    return HELD if low > 0 else NOT if high < 0 else UNDECIDED


def no_worse(found: Interval) -> str:
    """Whether a difference is at worst within the margin; an improvement counts as held."""
    _, low, high = found
    return HELD if low >= -MARGIN else NOT if high < -MARGIN else UNDECIDED


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on several comparisons together."""
    return next((v for v in (NOT, UNDECIDED) if v in verdicts), HELD)


def points(record: Record) -> dict[str, dict[str, Any]]:
    """The pre-training settings of the pre-trained points, by name."""
    return dict(record["config"]["points"])


def groups(record: Record, *varied: str) -> Iterator[dict[Any, str]]:
    """Points that differ in `varied` only: names by the values of `varied` (by the value itself if it is one).

    Whether there is a teacher belongs to the target.
    """
    found: dict[str, dict[Any, str]] = {}
    for name, config in points(record).items():
        implied = ("teacher",) if "target" in varied else ()
        rest = {key: value for key, value in config.items() if key not in varied + implied}
        value = tuple(config.get(key) for key in varied)  # older records lack newer settings
        found.setdefault(json.dumps(rest, sort_keys=True), {})[value if len(varied) > 1 else value[0]] = name
    yield from (group for group in found.values() if len(group) > 1)


def top1(record: Record, name: str, labels: str) -> list[float]:
    """Top-1 of a point in %, by seed."""
    return list(record["summary"][name]["top1"][labels]["seeds"])


def against(record: Record, labels: str, group: dict[Any, str], baseline: Any, others: Sequence[Any]) -> dict[Any, Any]:
    """The difference of each of `others` to a baseline, by its value in the group."""
    return {key: between(record, labels, group[key], group[baseline]) for key in others}


def between(record: Record, labels: str, a: str, b: str) -> Interval:
    """Top-1 of a minus top-1 of b, in points."""
    return differences.between(record["summary"], labels, a, b, num_val=record["config"]["num_val"])


def mean_between(record: Record, labels: str, pairs: Sequence[tuple[str, str]]) -> Interval:
    """The mean over pairs of points of top-1 of the first minus top-1 of the second, in points."""
    seeds = [(top1(record, a, labels), top1(record, b, labels)) for a, b in pairs]
    means = [statistics.mean(values) for values in zip(*(_minus(a, b) for a, b in seeds), strict=True)]
    all_points = [values for pair in seeds for values in pair]
    sampling = differences.sampling_variance(*all_points, num_val=record["config"]["num_val"]) / len(pairs) ** 2
    return differences.interval(means, sampling=sampling)


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def resolution(record: Record, labels: str) -> Verdicts:
    """Claim 1: each smaller size against the largest."""
    for group in groups(record, "img_size"):
        first = points(record)[next(iter(group.values()))]
        if first["target"] != "hog" or first["stages"] is not None:
            continue
        largest = max(group)
        found = against(record, labels, group, largest, sorted(group)[:-1])
        numbers = "; ".join(f"{size} px {differences.words(found[size])} against {largest} px" for size in found)
        yield worst([within_margin(each) for each in found.values()]), numbers


def target(record: Record, labels: str) -> Verdicts:
    """Claim 2: the loss of pixels from the largest size to the smallest, minus that of HOG."""
    for group in groups(record, "img_size", "target"):
        sizes = sorted({size for size, kind in group if {(size, "hog"), (size, "pixels")} <= group.keys()})
        if len(sizes) < 2:
            continue
        low, high = sizes[0], sizes[-1]
        seeds = {key: top1(record, group[key], labels) for key in group}
        loss = {kind: _minus(seeds[high, kind], seeds[low, kind]) for kind in ("hog", "pixels")}
        four = [seeds[size, kind] for size in (low, high) for kind in ("hog", "pixels")]
        sampling = differences.sampling_variance(*four, num_val=record["config"]["num_val"])
        found = differences.interval(_minus(loss["pixels"], loss["hog"]), sampling=sampling)
        lost = ", ".join(f"{kind} {statistics.mean(values):.2f}" for kind, values in loss.items())
        yield above_zero(found), f"from {high} to {low} px lost: {lost}; pixels lose more by {differences.words(found)}"


def depth(record: Record, labels: str) -> Verdicts:
    """Claim 3: all but the last blocks against all."""
    for group in groups(record, "encoder_depth"):
        if 1.0 not in group:
            continue
        found = against(record, labels, group, 1.0, [share for share in sorted(group) if 0.5 <= share < 1])
        if found:
            numbers = (
                f"{share:.0%} of the blocks {differences.words(each)} against all" for share, each in found.items()
            )
            yield worst([no_worse(each) for each in found.values()]), "; ".join(numbers)


def decoder(record: Record, labels: str) -> Verdicts:
    """Claim 4: the decoder that `auto` chooses against each other one."""
    for group in groups(record, "decoder"):
        if "auto" not in group:
            continue
        others = {name: between(record, labels, group["auto"], group[name]) for name in group if name != "auto"}
        numbers = "; ".join(f"auto {differences.words(found)} against {name}" for name, found in others.items())
        yield worst([no_worse(found) for found in others.values()]), numbers


def stages(record: Record, labels: str) -> Verdicts:
    """Claim 5: rising resolution against one resolution throughout."""
    for group in groups(record, "stages"):
        if None in group:
            found = against(record, labels, group, None, [plan for plan in group if plan])
            size = points(record)[group[None]]["img_size"]
            numbers = "; ".join(
                f"{plan} {differences.words(found[plan])} against {size} px throughout, for "
                f"{words_of_ratio(seconds_ratio(record, group[plan], group[None]))} times its device-seconds"
                for plan in found
            )
            yield worst([above_zero(each) for each in found.values()]), numbers


def cost(record: Record, labels: str) -> Verdicts:
    """Claim 6: HOG at the smallest size against pixels at the largest (SimMIM's form), for the same images."""
    for group in groups(record, "img_size", "target"):
        ours = [size for size, kind in group if kind == "hog"]
        theirs = [size for size, kind in group if kind == "pixels"]
        if not ours or not theirs or min(ours) >= max(theirs):
            continue
        a, b = group[min(ours), "hog"], group[max(theirs), "pixels"]
        ratio, gap = seconds_ratio(record, a, b), between(record, labels, a, b)
        cheap = HELD if ratio[2] <= 0.25 else NOT if ratio[1] > 0.25 else UNDECIDED
        numbers = (
            f"HOG at {min(ours)} px took {words_of_ratio(ratio)} times the device-seconds of pixels at "
            f"{max(theirs)} px; accuracy {differences.words(gap)}"
        )
        yield worst([cheap, no_worse(gap)]), numbers


def seconds_ratio(record: Record, a: str, b: str) -> Interval:
    """Device-seconds of a's pre-training over b's, paired by seed."""
    seconds = [record["summary"][name]["pretrain"]["device_seconds"]["seeds"] for name in (a, b)]
    return differences.interval([x / y for x, y in zip(*seconds, strict=True)])


def words_of_ratio(found: Interval) -> str:
    """A ratio as text."""
    mean, low, high = found
    return f"{mean:.2f}" + (f" ({low:.2f} to {high:.2f})" if math.isfinite(low) else " (too few seeds)")


def beats(setting: str, value: Any, other: Any, *, equal_cost: bool = True) -> Judge:
    """A judge of whether one value of a setting beats another, in studies that gave all the same device-seconds.

    Args:
        setting: The setting.
        value: What is said to be better.
        other: What it is compared with.
        equal_cost: Whether studies of equal numbers of images are passed over.
    """

    def judge(record: Record, labels: str) -> Verdicts:
        if equal_cost and record["config"].get("equal") != "cost":
            return
        pairs = [(each[value], each[other]) for each in groups(record, setting) if {value, other} <= each.keys()]
        if len(pairs) > 1:
            found = mean_between(record, labels, pairs)
            yield (
                above_zero(found),
                f"{value} {differences.words(found)} against {other}, the mean of {len(pairs)} pairs",
            )
        for a, b in pairs:
            found = between(record, labels, a, b)
            rest = ", ".join(word for word in a.split() if not word.startswith(f"{setting}=")) if len(pairs) > 1 else ""
            yield above_zero(found), f"{value} {differences.words(found)} against {other}{rest and f', with {rest}'}"

    return judge


def continued(record: Record, labels: str) -> Verdicts:
    """Pre-training that starts from a network's weights against a fresh start."""
    for group in groups(record, "init"):
        for init in filter(None, group if None in group else ()):
            found = between(record, labels, group[init], group[None])
            yield above_zero(found), f"from {Path(str(init)).name} {differences.words(found)} against a fresh start"


CLAIMS: tuple[tuple[str, str, Judge], ...] = (
    (
        "A wide range of pre-training resolutions gives nearly the same fine-tuning result",
        f"every smaller size is within {MARGIN:g} point of the largest (HOG targets)",
        resolution,
    ),
    (
        "HOG holds up better than RGB when the resolution falls",
        "pixels lose more than HOG from the largest size to the smallest",
        target,
    ),
    (
        "The shallow blocks matter most, so the last ones can be left out",
        f"half or more of the blocks lose at most {MARGIN:g} point against all",
        depth,
    ),
    (
        "The decoder should match the network's size",
        f"the decoder that `auto` chooses loses at most {MARGIN:g} point against any other tried",
        decoder,
    ),
    ("Raising the resolution in stages helps large models", "stages beat one resolution throughout", stages),
    (
        "All this costs about a fifth of MAE or SimMIM",
        f"at most a quarter of the device-seconds for the same images, with a loss of at most {MARGIN:g} point; the "
        "other side is SimMIM's form (pixels at the full size, hidden blocks encoded), not SimMIM itself",
        cost,
    ),
)

_COST = "for the same device-seconds"
BELIEFS: tuple[tuple[str, str, Judge], ...] = (
    (
        "A frozen teacher's features are a better target than HOG, for a small network above all",
        f"they beat HOG {_COST}",
        beats("target", "teacher", "hog"),
    ),
    (
        "HOG beside a teacher's features is better than the features alone",
        f"both beat the features alone {_COST}",
        beats("target", "hog+teacher", "teacher"),
    ),
    (
        "A random projection of the pixels is a better target than the pixels themselves",
        f"it beats pixels {_COST}",
        beats("target", "random-projection", "pixels"),
    ),
    (
        "Several masks of an image pay, as reading it and the teacher's features are shared",
        f"four masks of an image beat one {_COST}",
        beats("masks_per_image", 4, 1),
    ),
    (
        "Going on from a public model beats a fresh start",
        "pre-training that begins with its weights beats pre-training that begins with random ones",
        continued,
    ),
)
