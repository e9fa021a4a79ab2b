"""The results of a study: means and deviations, a table, plots and a record."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from fastmim import config as configs
from fastmim.bench import records
from fastmim.bench.markdown import Table, markdown
from fastmim.studies import differences, plot
from fastmim.studies.preflight import Request
from fastmim.studies.processes import Slots
from fastmim.studies.settings import StudyConfig
from fastmim.system import files

Results = dict[str, list[dict[str, Any]]]
"""For each point by name and each seed: the results of each run by name."""

TABLE, RECORD, PLOT = "table.md", "record.json", "accuracy_against_cost"
_WIDTH = 200
"""Columns of the printed table where there is no terminal: cells folded to 80 columns are hard to read."""


def write(
    request: Request, slots: Slots, plan: dict[str, Any], results: Results, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Print the table, write table.md, the plots and the record into the study's directory; return the summary."""
    config, labels = request.config, [str(number) for number in request.labels]
    summary = summarise(request, results)
    header, rows = tabulate(summary)
    Table("", header, rows).print(Console(highlight=False), width=_WIDTH)
    for number in labels:
        say(differences.order(summary, number, request.num_val))
    if any(differences.ties(summary, number, request.num_val) for number in labels):
        more = _more_seeds(config, max(differences.MIN_SEEDS, 2 * config.seeds))
        images = count(request.num_val, "validation image")
        say(f"{TABLE} lists the others; more seeds or more than {images} may tell them apart: {more}")
    shared = "pre-trainings of equal cost, " if config.equal == "cost" else ""
    title = (
        f"{config.data}, {shared}{request.finetune_steps} steps of fine-tuning at {request.finetune_size} px, "
        f"{count(config.seeds, 'seed')}"
    )
    ordered = "\n\n".join(differences.describe(summary, number, request.num_val) for number in labels)
    files.write_text(config.out / TABLE, f"{title}\n\n{markdown(header, rows)}\n\n{ordered}\n\n{LEGEND}\n")
    for suffix in ("png", "svg"):
        plot.draw(summary, config.out / f"{PLOT}.{suffix}", title=title)
    record = _record(request, slots, plan, results, summary)
    files.write_json(config.out / RECORD, record)
    written = [TABLE, f"{PLOT}.png", f"{PLOT}.svg", RECORD]
    say(f"wrote {', '.join(str(config.out / name) for name in written)}")
    if config.records:
        path = records.save(config.records, record)
        shutil.copyfile(config.out / f"{PLOT}.png", path.with_suffix(".png"))
        say(f"wrote {path}")
    return summary


LEGEND = (
    "Top-1 in % on the validation images, evaluated once, after the last step: mean ± standard deviation over the "
    "seeds; in brackets the gain over the same network from scratch, paired by seed. Device-seconds are those of "
    "pre-training, without evaluating and saving; runs that share a processor slow each other down. Two points are "
    "told apart if zero is outside the 95 % confidence interval of their difference. It takes three seeds or more, and "
    "combines their spread, paired by seed (Student's t), with the sampling error of the validation images."
)


def summarise(request: Request, results: Results) -> dict[str, Any]:
    """For each point: top-1 in % by number of labels and by probe, gain over scratch, device-seconds and images/s."""
    return {
        point.name: _summarise_point(
            results[point.name],
            results[request.scratch(point).name] if point.config else None,
            settings=point.swept,
        )
        for point in request.points
    }


def _summarise_point(
    seeds: Sequence[dict[str, Any]], scratch: Sequence[dict[str, Any]] | None, *, settings: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"settings": settings, "top1": {}, "total_device_seconds": {}}
    pretraining = [runs["pretrain"] for runs in seeds if "pretrain" in runs]
    if pretraining:
        found["pretrain"] = {
            "steps": pretraining[0]["steps"],
            "images": pretraining[0]["images"],
            "device_seconds": spread([run["device_seconds"] for run in pretraining]),
            "images_per_s": spread([run["images_per_s"] for run in pretraining]),
        }
    for name in (name for name in seeds[0] if name.startswith("finetune-")):
        labels = name.removeprefix("finetune-")
        top1 = [100 * runs[name]["top1"] for runs in seeds]
        found["top1"][labels] = spread(top1)
        costs = [runs[name]["device_seconds"] + runs.get("pretrain", {}).get("device_seconds", 0.0) for runs in seeds]
        found["total_device_seconds"][labels] = spread(costs)
        if scratch:
            gains = [mine - 100 * other[name]["top1"] for mine, other in zip(top1, scratch, strict=True)]
            found["top1"][labels]["gain"] = spread(gains)
    if "probe" in seeds[0]:
        found["probe"] = spread([100 * runs["probe"]["top1"] for runs in seeds])
        found["probe"]["method"] = seeds[0]["probe"]["method"]
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for a single value) and the values, rounded to three decimals."""
    deviation = round(statistics.stdev(values), 3) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 3), "deviation": deviation, "seeds": [round(v, 3) for v in values]}


def tabulate(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and rows of the table."""
    first = next(iter(summary.values()))
    labels = list(first["top1"])
    probe = [f"{first['probe']['method']} probe"] if "probe" in first else []
    header = ["pre-training", "images/s", "device-seconds", *(f"{int(n):,} labels" for n in labels), *probe]
    rows = []
    for name, point in summary.items():
        cost = (
            [plus_minus(point["pretrain"][key], 0) for key in ("images_per_s", "device_seconds")]
            if "pretrain" in point
            else ["", "0"]
        )
        rows.append([name, *cost, *(_accuracy(point["top1"][n]) for n in labels)])
        if probe:
            rows[-1].append(plus_minus(point["probe"], 2))
    return header, rows


def _accuracy(found: dict[str, Any]) -> str:
    gain = f" ({found['gain']['mean']:+.2f})" if "gain" in found else ""
    return plus_minus(found, 2) + gain


def plus_minus(found: dict[str, Any], digits: int) -> str:
    """Mean and, for several seeds, standard deviation, from `spread`."""
    deviation = f" ± {found['deviation']:,.{digits}f}" if found["deviation"] is not None else ""
    return f"{found['mean']:,.{digits}f}{deviation}"


def describe(results: dict[str, Any] | None) -> str:
    """A trial's results in a line."""
    words = []
    for name, run in (results or {}).items():
        if name == "pretrain":
            words.append(f"pre-trained {run['steps']:,} steps at {run['images_per_s']:,.0f} images/s")
        elif name == "probe":
            words.append(f"{run['method']} {run['top1']:.1%}")
        else:
            words.append(f"{int(name.removeprefix('finetune-')):,} labels {run['top1']:.1%}")
    return ", ".join(words)


def count(number: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def duration(amount: float) -> str:
    """A duration as text: `90 s`, `25 min`, `2 h 5 min`."""
    if amount < 100:
        return f"{amount:.0f} s"
    minutes = round(amount / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _record(
    request: Request, slots: Slots, plan: dict[str, Any], results: Results, summary: dict[str, Any]
) -> dict[str, Any]:
    config = request.config
    record = records.make(
        f"study-{config.out.resolve().name}",
        claim=f"Compares {' x '.join(config.sweep)}, and from scratch, by accuracy after fine-tuning.",
        config=configs.to_mapping(config)
        | {
            "labels": list(request.labels),
            "finetune_size": request.finetune_size,
            "finetune_steps": request.finetune_steps,
            "finetune": request.finetune,
            "num_images": request.num_images,
            "num_train": request.num_train,
            "num_val": request.num_val,
            "sees_validation": request.sees_validation,
            "networks": [[p.backbone, p.backbone_args] for p in request.points if p.config is None],
            "points": {p.name: configs.to_mapping(p.config) for p in request.points if p.config},
            "plan": plan,
        },
        raw=results,
        summary=summary,
        device=slots.devices[0],
        command=command(config, plan),
    )
    record["hardware"] |= {"device": slots.devices[0].partition(":")[0], "side_by_side": len(slots.devices)}
    return record


def command(config: StudyConfig, plan: dict[str, Any]) -> str:
    """The command line that planned the study, followed by one that added seeds, if any were added."""
    first = _command_line(dataclasses.replace(config, seeds=plan["seeds"]))
    if plan["seeds"] == config.seeds:
        return first
    return f"{first} && {_more_seeds(config, config.seeds)}"


def _more_seeds(config: StudyConfig, seeds: int) -> str:
    return shlex.join(["fastmim", "study", "--seeds", str(seeds), "--out", str(config.out)])


def _command_line(config: StudyConfig) -> str:
    words = ["fastmim", "study"]
    defaults = configs.to_mapping(StudyConfig())
    for key, value in configs.to_mapping(config).items():
        if value == defaults[key]:
            continue
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, dict):
            words += [word for name, item in value.items() for word in (f"{flag}.{name}", str(item))]
        else:
            words += [word for item in (value if isinstance(value, list) else [value]) for word in (flag, str(item))]
    return shlex.join(words)
