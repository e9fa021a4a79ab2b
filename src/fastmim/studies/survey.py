"""The survey of timm's models: a check that trains each for a few steps, and its report."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain, zip_longest
from pathlib import Path

from fastmim.backbone import family, find
from fastmim.bench.markdown import markdown
from fastmim.errors import RequestError
from fastmim.studies.survey_process import STEPS, Row, heap_checks, try_model
from fastmim.system.files import write_text


def check(
    pattern: str,
    *,
    max_parameters: float = 150e6,
    img_size: int = 128,
    out: Path = Path("docs/backbones.md"),
    journal: Path | None = None,
) -> int:
    """Train each matching model for `STEPS` steps in a process of its own, and write a table.

    A crash or a stall costs that model only. The table and the journal are written after each model, so a survey can
    be stopped at any time. One model of each architecture comes first, then the second of each, and so on.

    Args:
        pattern: Shell pattern on timm's names.
        max_parameters: Larger models are skipped.
        img_size: Side of the images in pixels.
        out: The Markdown file to write.
        journal: A file that keeps each model's outcome; models that pass in it in this way are not run again.

    Returns:
        0, the exit status: models that fail are a result, not an error.

    Raises:
        RequestError: no name matches, or the journal is not one.
    """
    names = find(pattern)
    rows = _read(journal)
    out.parent.mkdir(parents=True, exist_ok=True)
    left = [name for name in names if name not in rows or not _settled(rows[name], max_parameters)]
    for number, name in enumerate(chain([""], _by_turns(left, rows))):
        if name:
            rows[name] = try_model(name, max_parameters, img_size)
            print(f"{number}/{len(left)}  {name}  {rows[name].problem or 'ok'}", flush=True)
        tried = [rows[name] for name in names if name in rows and rows[name].parameters <= max_parameters]
        num_untried = sum(name not in rows for name in names)
        write_text(out, report(tried, pattern, max_parameters, img_size, num_untried=num_untried))
        if journal is not None:
            write_text(journal, "".join(json.dumps(asdict(rows[name])) + "\n" for name in sorted(rows)))
    failed = sum(bool(row.problem) for row in tried)
    print(f"{len(tried) - failed} of {len(tried)} pass: {out}")
    return 0


def report(rows: list[Row], pattern: str, max_parameters: float, img_size: int, *, num_untried: int = 0) -> str:
    """The report in Markdown: how many models pass, why the others fail, and a table for each family."""
    passed, failed = [row for row in rows if not row.problem], [row for row in rows if row.problem]
    lines = [
        "# Backbones",
        "",
        f"Written by `fastmim backbones '{pattern}' --check` with timm {version('timm')} and torch {version('torch')}.",
        f"Each model up to {max_parameters / 1e6:.0f} M parameters was built at {img_size} px and trained on random "
        f"images (two a step, HOG target, float32, CPU).",
        "",
        f"**{len(passed)} of {len(rows)} pass ({len(passed) / max(1, len(rows)):.1%}).** Stride and width are those "
        f'of the map at {img_size} px. Weights marked "resized" can be resampled to other image sizes and load in timm '
        f'at its own; those marked "as is" keep the size they were trained at, since timm cannot resample them.',
        "",
        *_thoroughness(passed),
        *_unfinished(num_untried),
        *_reasons(failed),
    ]
    families = defaultdict(list)
    for row in passed:
        families[row.family].append(row)
    for name, members in sorted(families.items()):
        cells = [
            (r.name, f"{r.stride}", f"{r.width}", f"{r.parameters / 1e6:.1f}", _weights(r), _trained(r))
            for r in members
        ]
        header = ("name", "stride", "width", "parameters (M)", "weights", "trained")
        lines += [f"## {name}", "", markdown(header, cells, num_text=6), ""]
    return "\n".join(lines)


def _weights(row: Row) -> str:
    return "resized" if row.resizes else "as is"


def _trained(row: Row) -> str:
    steps = f"{row.steps} steps" if row.steps > 1 else "1 step"
    return f"{steps}, heap checked" if row.heap_checked else steps


def _thoroughness(passed: list[Row]) -> Iterator[str]:
    """How many of the models that pass were trained in which way."""
    thorough = [row for row in passed if row.steps == STEPS and row.heap_checked]
    lesser = len(passed) - len(thorough)
    yield (
        f"**{len(thorough)} of these {len(passed)} were trained for {STEPS} steps, each in a process of its own that "
        f'glibc ends if it writes past a block of memory** ("{STEPS} steps, heap checked")'
        + (f"; the other {lesser} as their rows say." if lesser else ".")
    )
    yield ""


def _unfinished(num_untried: int) -> Iterator[str]:
    if num_untried:
        yield f"**Unfinished:** {num_untried} more names, of any size, were not tried yet; the same command resumes."
        yield ""


def _reasons(failed: list[Row]) -> Iterator[str]:
    if failed:
        cells = [(row.name, f"{row.parameters / 1e6:.1f}", row.problem) for row in failed]
        header = ("name", "parameters (M)", "reason")
        yield from ("## Not these", "", markdown(header, cells, num_text=3), "")


def _read(journal: Path | None) -> dict[str, Row]:
    """The outcomes in an earlier journal, by name."""
    if journal is None or not journal.exists():
        return {}
    try:
        rows = [Row(**json.loads(line)) for line in journal.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"{journal} is not the journal of a survey ({error}): expected a line of JSON for each model; "
            f"move it away, or choose another --out"
        ) from error
    return {row.name: row for row in rows}


def _settled(row: Row, max_parameters: float) -> bool:
    """Whether a model is too large, or passed the steps and the checks that it would get now."""
    thorough = row.steps == STEPS and (row.heap_checked or not heap_checks())
    return row.parameters > max_parameters or (thorough and not row.problem)


def _by_turns(names: Sequence[str], rows: Mapping[str, Row]) -> Iterator[str]:
    """One model of each architecture, then another of each, and so on; the smallest first, where that is known."""
    groups = defaultdict(list)
    for name in sorted(names, key=lambda name: rows[name].parameters if name in rows else math.inf):
        groups[family(name), re.split(r"[^a-z]", name)[0]].append(name)
    for turn in zip_longest(*groups.values()):
        yield from filter(None, turn)
