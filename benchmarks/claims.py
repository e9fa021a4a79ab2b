"""Write docs/claims.md, the paper's claims and what our studies say about them: `python benchmarks/claims.py`.

Reads the studies' records, `benchmarks/records/study-*.json` (`fastmim study --records benchmarks/records`). A study
speaks to a claim if its points differ in the claim's subject and in nothing else. Differences are paired by seed (same
labels, same order) and judged by their 95 % interval, so that few seeds give "undecided", not a finding.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.bench import records
from fastmim.bench.markdown import markdown
from fastmim.studies import differences
from fastmim.studies.differences import Interval
from fastmim.studies.results import count, plus_minus
from fastmim.system import files

ROOT = Path(__file__).parent.parent
RECORDS, OUT = ROOT / "benchmarks/records", ROOT / "docs/claims.md"

MARGIN = 1.0
"""Points of accuracy that count as "nearly the same"."""

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided"

Record = dict[str, Any]
Verdicts = Iterator[tuple[str, str]]
"""Pairs of a verdict and its numbers."""


@dataclass(frozen=True)
class Finding:
    """What one study says about one claim, for one number of labels."""

    record: str
    labels: str
    verdict: str
    numbers: str


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
    """Points that differ in `varied` only: names by the values of `varied` (by the value itself if it is one)."""
    found: dict[str, dict[Any, str]] = {}
    for name, config in points(record).items():
        rest = {key: value for key, value in config.items() if key not in varied}
        value = tuple(config[key] for key in varied)
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
        loss = {
            kind: [a - b for a, b in zip(seeds[high, kind], seeds[low, kind], strict=True)]
            for kind in ("hog", "pixels")
        }
        four = [seeds[size, kind] for size in (low, high) for kind in ("hog", "pixels")]
        sampling = differences.sampling_variance(*four, num_val=record["config"]["num_val"])
        found = differences.interval(
            [p - h for p, h in zip(loss["pixels"], loss["hog"], strict=True)], sampling=sampling
        )
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


CLAIMS: tuple[tuple[str, str, Callable[[Record, str], Verdicts]], ...] = (
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

HEAD = f"""# The paper's claims, tested

Written by `python benchmarks/claims.py` from the studies in `benchmarks/records/`; do not edit.

The claims are those of FastMIM (Guo et al., arXiv 2212.06593), made there with ViT-B, Swin-B and others on
ImageNet-1K. Differences below are in points of top-1 after fine-tuning, paired by seed, with their 95 % interval,
which combines the spread of the seeds (Student's t; at least three) with the sampling error of the validation images,
as if the points' errors were independent: rather too wide than too narrow. "{HELD}" and "{NOT}" need the whole interval
on one side, and a study in which pre-training is better than none; everything else is "{UNDECIDED}", the usual outcome
of few seeds and a small difference.
"""

FOOT = """
Small networks, small images and short pre-training say little about ViT-B on ImageNet: a claim that did not hold
here may hold there, and vice versa. All points were fine-tuned with the same settings, which were tuned for none
of them. Device-seconds were measured while runs shared the machine, which shows in their spread.
"""


def studies(folder: Path) -> dict[str, Record]:
    """The newest record of each study, by file name."""
    newest = {path.stem[:-11]: path for path in sorted(folder.glob("study-*.json"))}
    return {path.name: files.read_json(path) for path in newest.values()}


def results(path: Path, record: Record) -> str:
    """All points of a study, and the pairs that are told apart."""
    summary, labels = record["summary"], labels_of(record)
    rows = []
    for name, point in summary.items():
        cells = [plus_minus(point["top1"][number], 1) + " %" for number in labels]
        before = point.get("pretrain")
        cells += [f"{before[key]['mean']:,.0f}" if before else "-" for key in ("device_seconds", "images_per_s")]
        rows.append([name, *cells])
    header = ["pre-training", *(f"{int(number):,} labels" for number in labels), "device-seconds", "images/s"]
    plot = path.with_suffix(".png")
    picture = [f"![Accuracy against cost](../benchmarks/records/{plot.name})\n"] if plot.exists() else []
    told = [differences.describe(summary, number, record["config"]["num_val"]) + "\n" for number in labels]
    return "\n".join([f"### {path.stem}\n", markdown(header, rows), "", *told, *picture])


def labels_of(record: Record) -> list[str]:
    """The numbers of labels of a study's fine-tunings."""
    return list(next(iter(record["summary"].values()))["top1"])


def gains(record: Record, labels: str) -> bool:
    """Whether any pre-training is better than none; otherwise a comparison of its settings means nothing."""
    for name in points(record):
        mine, gain = top1(record, name, labels), record["summary"][name]["top1"][labels]["gain"]["seeds"]
        scratch = [a - b for a, b in zip(mine, gain, strict=True)]
        sampling = differences.sampling_variance(mine, scratch, num_val=record["config"]["num_val"])
        if differences.interval(gain, sampling=sampling)[1] > 0:
            return True
    return False


def findings(studies: dict[str, Record], judge: Callable[[Record, str], Verdicts]) -> list[Finding]:
    """What all studies say about a claim."""
    useless = "; but no pre-training of this study is better than none"
    return [
        Finding(file, labels, verdict, numbers)
        if gains(record, labels)
        else Finding(file, labels, UNDECIDED, numbers + useless)
        for file, record in studies.items()
        for labels in labels_of(record)
        for verdict, numbers in judge(record, labels)
    ]


def limits(record: Record) -> str:
    """The data, networks, length and machine of a study."""
    config = record["config"]
    lengths = {point["pretrain"]["images"] for point in record["summary"].values() if "pretrain" in point}
    epochs = " to ".join(dict.fromkeys(f"{n / config['num_images']:.1f}" for n in (min(lengths), max(lengths))))
    networks = "; ".join(f"{name} {args or ''}".strip() for name, args in config["networks"])
    return (
        f"{config['data']} ({config['num_images']:,} images to pre-train on), {networks}; {epochs} epochs of "
        f"pre-training, fine-tuned at {config['finetune_size']} px for {config['finetune_steps']} steps, "
        f"{count(config['seeds'], 'seed')}, on {records.machine(record)}: `{record['command']}`"
    )


def costs(path: Path) -> str:
    """The cost of an image in each recipe, from a record of `benchmarks/recipes.py`."""
    record = files.read_json(path)
    config, names = record["config"], record["config"]["baselines"]
    rows = []
    for name, found in record["summary"].items():
        cells = [name, found["backbone"], str(found["sizes"])]
        cells += [f"{found['gmac_forward']:.2f}", f"{found['images_per_s']:.2f}"]
        ratios = [found[f"times_less_than_{method}"] for method in names]
        cells += [f"{r['median']:.2f}, {r['min']:.2f} to {r['max']:.2f} ({r['multiply_adds']:.2f})" for r in ratios]
        rows.append(cells)
    baselines = [f"times less than {method} (by multiply-adds)" for method in names]
    header = ["recipe", "network", "px", "GMAC forward", "images/s", *baselines]
    return (
        "## What an image costs in each recipe\n\n"
        f"A training step at the recipe's own size, {config['precision']}, batches of {config['batch_size']}, "
        f"{config['threads']} thread(s), on {records.machine(record)}; the baselines are our recipes "
        f"{' and '.join(names.values())}; medians of {config['rounds']} rounds, with their range "
        f"({link(path.name)}). With batches this small AdamW's own work, whose multiply-adds are not counted, weighs "
        f"more than in training.\n\n{markdown(header, rows, num_text=3)}\n"
    )


def link(file: str) -> str:
    """A link from docs/ to a record."""
    return f"[{file}](../benchmarks/records/{file})"


def page(folder: Path = RECORDS) -> str:
    """The whole document."""
    found = studies(folder)
    parts = [HEAD]
    for number, (claim, rule, judge) in enumerate(CLAIMS, start=1):
        rows = [(f"{int(f.labels):,}", f"**{f.verdict}**", f.numbers, link(f.record)) for f in findings(found, judge)]
        told = markdown(("labels", "verdict", "result", "study"), rows, num_text=4)
        untested = "**Not tested here:** no record of a study speaks to it."
        parts.append(f"## {number}. {claim}\n\nWe count it as held if {rule}.\n\n{told if rows else untested}\n")
    if found:
        parts.append("## What the studies found\n")
        parts.append("Top-1 after fine-tuning, mean and standard deviation over the seeds; cost of pre-training.\n")
    parts += [results(folder / file, record) for file, record in found.items()]
    recipes = records.newest(folder, "recipes")
    parts += [costs(recipes)] if recipes else []
    parts.append("## Limits of the evidence\n")
    parts += [f"- {file}: {limits(record)}" for file, record in found.items()] or ["No study has been recorded yet.\n"]
    parts.append(FOOT)
    return "\n".join(parts)


if __name__ == "__main__":
    OUT.write_text(page())
    print(f"wrote {OUT.relative_to(ROOT)}")
