"""Write docs/claims.md, what the paper claims and what our studies say to it: `python benchmarks/claims.py`.

Reads the studies' records, `benchmarks/records/study-*.json` (`fastmim study --records benchmarks/records`). A study
speaks to a claim if its points differ in what the claim is about and in nothing else. Differences are paired by seed
(same labels, same order) and judged by their 95 % interval, so that few seeds give "undecided", not a finding.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.studies import differences

ROOT = Path(__file__).parent.parent
RECORDS, OUT = ROOT / "benchmarks/records", ROOT / "docs/claims.md"

MARGIN = 1.0
"""Points of accuracy that count as "nearly the same"."""

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided"

Record = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one study says to one claim, for one number of labels."""

    record: str
    labels: str
    verdict: str
    numbers: str


def nearly_same(low: float, high: float) -> str:
    """Whether a difference is within the margin."""
    if low >= -MARGIN and high <= MARGIN:
        return HELD
    return NOT if low > MARGIN or high < -MARGIN else UNDECIDED


def above(low: float, high: float, limit: float = 0.0) -> str:
    """Whether a difference is above a limit."""
    return HELD if low > limit else NOT if high < limit else UNDECIDED


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on all of several comparisons."""
    return next((v for v in (NOT, UNDECIDED) if v in verdicts), HELD)


def points(record: Record) -> dict[str, dict[str, Any]]:
    """The pre-trained points: what each was pre-trained with."""
    return dict(record["config"]["points"])


def groups(record: Record, *varied: str) -> Iterator[dict[Any, str]]:
    """Points that differ in `varied` only: names by the values of `varied` (by the value, where it is one)."""
    found: dict[str, dict[Any, str]] = {}
    for name, config in points(record).items():
        rest = {key: value for key, value in config.items() if key not in varied}
        value = tuple(config[key] for key in varied)
        found.setdefault(json.dumps(rest, sort_keys=True), {})[value if len(varied) > 1 else value[0]] = name
    yield from (group for group in found.values() if len(group) > 1)


def top1(record: Record, name: str, labels: str) -> list[float]:
    """In %, by seed."""
    return list(record["summary"][name]["top1"][labels]["seeds"])


def difference(record: Record, labels: str, a: str, b: str) -> tuple[float, float, float]:
    """a - b."""
    return differences.between(record["summary"], labels, a, b)


def resolution(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 1: each smaller size against the largest."""
    for group in groups(record, "img_size"):
        if points(record)[next(iter(group.values()))]["target"] != "hog" or None not in stages_of(record, group):
            continue
        largest = max(group)
        found = {size: difference(record, labels, group[size], group[largest]) for size in sorted(group)[:-1]}
        numbers = "; ".join(f"{size} px {differences.words(found[size])} against {largest} px" for size in found)
        yield worst([nearly_same(low, high) for _, low, high in found.values()]), numbers


def stages_of(record: Record, group: dict[Any, str]) -> set[Any]:
    """The stages of a group's points."""
    return {points(record)[name]["stages"] for name in group.values()}


def target(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 2: what pixels lose from the largest size to the smallest, less what HOG loses."""
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
        found = differences.interval([p - h for p, h in zip(loss["pixels"], loss["hog"], strict=True)])
        lost = ", ".join(f"{kind} {statistics.mean(values):.2f}" for kind, values in loss.items())
        yield above(*found[1:]), f"from {high} to {low} px lost: {lost}; pixels lose more by {differences.words(found)}"


def depth(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 3: all but the last blocks against all."""
    for group in groups(record, "encoder_depth"):
        if 1.0 not in group:
            continue
        shares = [share for share in sorted(group) if 0.5 <= share < 1]
        found = {share: difference(record, labels, group[share], group[1.0]) for share in shares}
        if found:
            # Better than all blocks is as good as the claim asks.
            verdicts = [
                HELD if low >= -MARGIN else NOT if high < -MARGIN else UNDECIDED for _, low, high in found.values()
            ]
            numbers = "; ".join(
                f"{share:.0%} of the blocks {differences.words(found[share])} against all" for share in found
            )
            yield worst(verdicts), numbers


def decoder(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 4: the decoder that `auto` chooses against each other one."""
    for group in groups(record, "decoder"):
        if "auto" not in group:
            continue
        others = {name: difference(record, labels, group["auto"], group[name]) for name in group if name != "auto"}
        numbers = "; ".join(f"auto {differences.words(found)} against {name}" for name, found in others.items())
        yield (
            worst(
                [HELD if low >= -MARGIN else NOT if high < -MARGIN else UNDECIDED for _, low, high in others.values()]
            ),
            numbers,
        )


def stages(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 5: rising resolution against one resolution throughout."""
    for group in groups(record, "stages"):
        if None in group:
            found = {plan: difference(record, labels, group[plan], group[None]) for plan in group if plan}
            size = points(record)[group[None]]["img_size"]
            numbers = "; ".join(
                f"{plan} {differences.words(found[plan])} against {size} px throughout, for "
                f"{share_of_seconds(record, group[plan], group[None])} times its device-seconds"
                for plan in found
            )
            yield worst([above(low, high) for _, low, high in found.values()]), numbers


def cost(record: Record, labels: str) -> Iterator[tuple[str, str]]:
    """Claim 6: HOG at the smallest size against pixels at the largest (SimMIM's form), for the same images."""
    for group in groups(record, "img_size", "target"):
        ours = [(size, kind) for size, kind in group if kind == "hog"]
        theirs = [(size, kind) for size, kind in group if kind == "pixels"]
        if not ours or not theirs or min(ours)[0] >= max(theirs)[0]:
            continue
        a, b = group[min(ours)], group[max(theirs)]
        shares = ratios_of_seconds(record, a, b)
        _, low, high = differences.interval(shares)
        gap = difference(record, labels, a, b)
        cheap = HELD if high <= 0.25 else NOT if low > 0.25 else UNDECIDED
        good = HELD if gap[1] >= -MARGIN else NOT if gap[2] < -MARGIN else UNDECIDED
        numbers = (
            f"HOG at {min(ours)[0]} px took {share_of_seconds(record, a, b)} times the device-seconds of pixels at "
            f"{max(theirs)[0]} px; accuracy {differences.words(gap)}"
        )
        yield worst([cheap, good]), numbers


def ratios_of_seconds(record: Record, a: str, b: str) -> list[float]:
    """Device-seconds of a's pre-training over b's, by seed."""
    seconds = [record["summary"][name]["pretrain"]["device_seconds"]["seeds"] for name in (a, b)]
    return [x / y for x, y in zip(*seconds, strict=True)]


def share_of_seconds(record: Record, a: str, b: str) -> str:
    """The same for the reader."""
    mean, low, high = differences.interval(ratios_of_seconds(record, a, b))
    return f"{mean:.2f}" + (f" ({low:.2f} to {high:.2f})" if math.isfinite(low) else " (one seed)")


CLAIMS: tuple[tuple[str, str, Callable[[Record, str], Iterator[tuple[str, str]]]], ...] = (
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
ImageNet-1K. Differences below are in points of top-1 after fine-tuning, paired by seed, with their 95 % interval
(Student's t). "{HELD}" and "{NOT}" need the whole interval on one side, and a study in which pre-training is better
than none; everything else is "{UNDECIDED}", which is what few seeds give when a difference is small.
"""

FOOT = """
Small networks, small pictures and short pre-training say little about ViT-B on ImageNet: a claim that did not
hold here may hold there, and the other way round. All points were fine-tuned with the same settings, tuned for
none of them. Device-seconds were measured while runs shared the machine; a study's spread shows it.
"""


def studies(folder: Path) -> dict[str, Record]:
    """The newest record of each study, by file name."""
    newest = {path.stem[:-11]: path for path in sorted(folder.glob("study-*.json"))}
    return {path.name: json.loads(path.read_text()) for path in newest.values()}


def results(path: Path, record: Record) -> str:
    """Every point of a study, and which of them its seeds can order."""
    summary, labels = record["summary"], labels_of(record)
    lines = [
        f"### {path.stem}\n",
        f"| pre-training | {' | '.join(f'{int(number):,} labels' for number in labels)} | device-seconds | images/s |",
        f"|---{'|---:' * (len(labels) + 2)}|",
    ]
    for name, point in summary.items():
        cells = [plus_minus(point["top1"][number]) + " %" for number in labels]
        before = point.get("pretrain")
        cells += [f"{before[key]['mean']:,.0f}" if before else "-" for key in ("device_seconds", "images_per_s")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    plot = path.with_suffix(".png")
    picture = [f"![Accuracy against cost](../benchmarks/records/{plot.name})\n"] if plot.exists() else []
    return "\n".join([*lines, "", *(differences.describe(summary, number) + "\n" for number in labels), *picture])


def plus_minus(found: dict[str, Any]) -> str:
    """Mean and standard deviation, where there is one."""
    return f"{found['mean']:.1f}" + (f" ± {found['deviation']:.1f}" if len(found["seeds"]) > 1 else "")


def labels_of(record: Record) -> list[str]:
    """The numbers of labels that a study has fine-tuned on."""
    return list(next(iter(record["summary"].values()))["top1"])


def gains(record: Record, labels: str) -> bool:
    """Whether any pre-training is better than none: if not, how its settings compare means nothing."""
    found = [record["summary"][name]["top1"][labels]["gain"]["seeds"] for name in points(record)]
    return any(differences.interval(seeds)[1] > 0 for seeds in found)


def findings(records: dict[str, Record], judge: Callable[[Record, str], Iterator[tuple[str, str]]]) -> list[Finding]:
    """What all studies say to a claim."""
    useless = "; but no pre-training of this study is better than none"
    return [
        Finding(file, labels, verdict, numbers)
        if gains(record, labels)
        else Finding(file, labels, UNDECIDED, numbers + useless)
        for file, record in records.items()
        for labels in labels_of(record)
        for verdict, numbers in judge(record, labels)
    ]


def limits(record: Record) -> str:
    """What the evidence of a study is."""
    config = record["config"]
    lengths = {point["pretrain"]["images"] for point in record["summary"].values() if "pretrain" in point}
    epochs = " to ".join(dict.fromkeys(f"{n / config['num_images']:.1f}" for n in (min(lengths), max(lengths))))
    networks = "; ".join(f"{name} {args or ''}".strip() for name, args in config["networks"])
    return (
        f"{config['data']} ({config['num_images']:,} images to pre-train on), {networks}; {epochs} epochs of "
        f"pre-training, fine-tuned at {config['finetune_size']} px for {config['finetune_steps']} steps, "
        f"{config['seeds']} seed{'s' if config['seeds'] > 1 else ''}, on {machine(record)}: `{record['command']}`"
    )


def costs(path: Path) -> str:
    """What an image costs in each recipe, from a record of `benchmarks/recipes.py`."""
    record = json.loads(path.read_text())
    config, names = record["config"], record["config"]["baselines"]
    against = [f"times less than {method} (by multiply-adds)" for method in names]
    lines = [
        "## What an image costs in each recipe\n",
        f"A training step at the recipe's own size, {config['precision']}, batches of {config['batch_size']}, "
        f"{config['threads']} thread(s), on {machine(record)}; the baselines are our recipes "
        f"{' and '.join(names.values())}; medians of {config['rounds']} rounds, with their range "
        f"([{path.name}](../benchmarks/records/{path.name})). With batches this small AdamW's own work, which has no "
        "multiply-adds here, weighs more than in training.\n",
        f"| recipe | network | px | GMAC forward | images/s | {' | '.join(against)} |",
        f"|---|---|---|{'---:|' * (2 + len(names))}",
    ]
    for name, cost in record["summary"].items():
        cells = [name, cost["backbone"], str(cost["sizes"])]
        cells += [f"{cost['gmac_forward']:.2f}", f"{cost['images_per_s']:.2f}"]
        for method in names:
            times = cost[f"times_less_than_{method}"]
            cells.append(
                f"{times['median']:.2f}, {times['min']:.2f} to {times['max']:.2f} ({times['multiply_adds']:.2f})"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def machine(record: Record) -> str:
    """What a record was measured on."""
    hardware = record["hardware"]
    return str(hardware.get("accelerator", f"{hardware['processor']}, {hardware['cores']} cores"))


def page(folder: Path = RECORDS) -> str:
    """The whole document."""
    records = studies(folder)
    parts = [HEAD]
    for number, (claim, rule, judge) in enumerate(CLAIMS, start=1):
        found = findings(records, judge)
        parts.append(f"## {number}. {claim}\n\nWe count it as held if {rule}.\n")
        if not found:
            parts.append("**Not tested here:** no record of a study speaks to it.\n")
            continue
        parts.append("| labels | here | what came out | study |\n|---|---|---|---|")
        for f in found:
            link = f"[{f.record}](../benchmarks/records/{f.record})"
            parts.append(f"| {int(f.labels):,} | **{f.verdict}** | {f.numbers} | {link} |")
        parts.append("")
    if records:
        parts.append("## What the studies found\n")
        parts.append("Top-1 after fine-tuning, mean and standard deviation over the seeds; cost of pre-training.\n")
    parts += [results(folder / file, record) for file, record in records.items()]
    parts += [costs(path) for path in sorted(folder.glob("recipes-[0-9]*.json"))[-1:]]
    parts.append("## Limits of the evidence\n")
    if not records:
        parts.append("No study has been recorded yet.\n")
    parts += [f"- {file}: {limits(record)}" for file, record in records.items()]
    parts.append(FOOT)
    return "\n".join(parts)


if __name__ == "__main__":
    OUT.write_text(page())
    print(f"wrote {OUT.relative_to(ROOT)}")
