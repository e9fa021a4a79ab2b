"""Write docs/claims.md, the paper's claims and what our studies say about them: `python benchmarks/claims.py`.

Reads the studies' records, `benchmarks/records/study-*.json` (`fastmim study --records benchmarks/records`);
`judges.py` says when a claim counts as held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastmim.bench import records
from fastmim.bench.markdown import markdown
from fastmim.studies import differences
from fastmim.studies.results import count, plus_minus
from fastmim.system import files
from judges import BELIEFS, CLAIMS, HELD, NOT, UNDECIDED, Judge, Record, points, top1

ROOT = Path(__file__).parent.parent
RECORDS, OUT = ROOT / "benchmarks/records", ROOT / "docs/claims.md"


@dataclass(frozen=True)
class Finding:
    """What one study says about one claim, for one number of labels."""

    record: str
    labels: str
    verdict: str
    numbers: str


HEAD = f"""# The paper's claims, tested

Written by `python benchmarks/claims.py` from the studies in `benchmarks/records/`; do not edit.

The claims are those of FastMIM (Guo et al., arXiv 2212.06593), made there with ViT-B, Swin-B and others on
ImageNet-1K. Differences below are in points of top-1 after fine-tuning, paired by seed, with their 95 % interval,
which combines the spread of the seeds (Student's t; at least three) with the sampling error of the validation images,
as if the points' errors were independent: rather too wide than too narrow. "{HELD}" and "{NOT}" need the whole interval
on one side, and a study in which pre-training is better than none; everything else is "{UNDECIDED}", the usual outcome
of few seeds and a small difference.
"""

FIELD = """## What the field believes, tested in the same way

These are claims of others about targets and starts, on which whole methods rest. Device-seconds, not steps, are equal,
so that a dear target has to earn its cost. What plays the public model and the teacher is a network of the study's own
architecture, one for all seeds, trained with the labels of other classes than the study's: those in `public` of
`benchmarks/halves.py` (600 steps) and of `benchmarks/tiles.py --halves` (400 steps), each step on 128 images, by
`fastmim finetune --weights none --lr 4e-3 --warmup 20% --crop-scale 0.5 1.0 --randaugment none --mixup 0 --cutmix 0
--reprob 0`.
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


def findings(studies: dict[str, Record], judge: Judge) -> list[Finding]:
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


def section(heading: str, claim: tuple[str, str, Judge], found: dict[str, Record]) -> Iterator[str]:
    """A claim, when we count it as held, and what the studies say."""
    text, rule, judge = claim
    rows = [(f"{int(f.labels):,}", f"**{f.verdict}**", f.numbers, link(f.record)) for f in findings(found, judge)]
    told = markdown(("labels", "verdict", "result", "study"), rows, num_text=4)
    untested = "**Not tested here:** no record of a study speaks to it."
    yield f"{heading}{text}\n\nWe count it as held if {rule}.\n\n{told if rows else untested}\n"


def page(folder: Path = RECORDS) -> str:
    """The whole document."""
    found = studies(folder)
    parts = [HEAD]
    for number, claim in enumerate(CLAIMS, start=1):
        parts += section(f"## {number}. ", claim, found)
    parts.append(FIELD)
    for claim in BELIEFS:
        parts += section("### ", claim, found)
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
