"""The survey of timm's models: a table of those that match a pattern, and a check that trains each for one step."""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from fastmim.backbone import describe, find
from fastmim.bench.markdown import markdown

_TIMEOUT = 600.0  # seconds for one model


@dataclass(frozen=True)
class Row:
    """One model at one image size; `problem` is empty where it can be pre-trained."""

    name: str
    family: str = ""  # timm's module
    parameters: int = 0
    stride: int = 0
    width: int = 0
    resizes: bool = False  # whether its weights can be resampled to timm's own size
    problem: str = ""


def table(pattern: str, *, max_parameters: float = 150e6, img_size: int = 128) -> int:
    """Print stride, width and parameters of the models whose names match a shell pattern.

    Returns:
        0, the exit status.

    Raises:
        RequestError: no name matches.
    """
    names = find(pattern)
    wide = max(map(len, names))
    print(f"{'name':<{wide}}  stride  width  parameters (M)")
    for name in names:
        stride, width, parameters = describe(name, img_size)
        if parameters <= max_parameters:
            print(f"{name:<{wide}}  {stride:>6}  {width:>5}  {parameters / 1e6:>14.1f}", flush=True)
    return 0


def check(
    pattern: str,
    *,
    max_parameters: float = 150e6,
    img_size: int = 128,
    out: Path = Path("docs/backbones.md"),
    journal: Path | None = None,
) -> int:
    """Train each matching model for one step, so that a crash or a stall costs that model only; write a table.

    Args:
        pattern: Shell pattern on timm's names.
        max_parameters: Larger models are skipped.
        img_size: Side of the images in pixels.
        out: The Markdown file to write.
        journal: A file that keeps each model's outcome; models that pass in it are not run again.

    Returns:
        0, the exit status: models that fail are a result, not an error.

    Raises:
        RequestError: no name matches.
    """
    names = find(pattern)
    rows = _passed(journal, names)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _Worker() as worker:
            for name in names:
                if name in rows:
                    continue
                rows[name] = row = worker.run(name, max_parameters, img_size)
                print(f"{len(rows)}/{len(names)}  {name}  {row.problem or 'ok'}", flush=True)
                if journal is not None:
                    with journal.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
    finally:  # a survey takes hours, and leaves its table if it is stopped
        tried = [rows[name] for name in names if name in rows and rows[name].parameters <= max_parameters]
        out.write_text(report(tried, pattern, max_parameters, img_size, num_untried=len(names) - len(rows)))
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
        f"Each model up to {max_parameters / 1e6:.0f} M parameters was built at {img_size} px and trained for one "
        f"step (two random images, HOG target, float32, CPU).",
        "",
        f"**{len(passed)} of {len(rows)} pass ({len(passed) / max(1, len(rows)):.1%}).** Stride and width are those "
        f'of the map at {img_size} px. Weights marked "resized" can be resampled to other image sizes and load in timm '
        f'at its own; those marked "as is" keep the size they were trained at, since timm cannot resample them.',
        "",
        *_unfinished(num_untried),
        *_reasons(failed),
    ]
    families = defaultdict(list)
    for row in passed:
        families[row.family].append(row)
    for family, members in sorted(families.items()):
        cells = [
            (r.name, f"{r.stride}", f"{r.width}", f"{r.parameters / 1e6:.1f}", "resized" if r.resizes else "as is")
            for r in members
        ]
        header = ("name", "stride", "width", "parameters (M)", "weights")
        lines += [f"## {family}", "", markdown(header, cells, num_text=5), ""]
    return "\n".join(lines)


def _unfinished(num_untried: int) -> Iterator[str]:
    if num_untried:
        yield f"**Unfinished:** {num_untried} more names, of any size, were not tried yet; the same command resumes."
        yield ""


def _reasons(failed: list[Row]) -> Iterator[str]:
    if failed:
        cells = [(row.name, f"{row.parameters / 1e6:.1f}", row.problem) for row in failed]
        yield from ("## Not these", "", markdown(("name", "parameters (M)", "reason"), cells, num_text=3), "")


def _passed(journal: Path | None, names: Iterable[str]) -> dict[str, Row]:
    """The models that passed or were too large in an earlier journal."""
    if journal is None or not journal.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in journal.read_text().splitlines()]
    return {row.name: row for row in rows if row.name in set(names) and not row.problem}


class _Worker:
    """A worker process that trains one model after another, and is replaced if a model kills or stalls it."""

    def __enter__(self) -> _Worker:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, name: str, max_parameters: float, img_size: int) -> Row:
        """A model's row, whatever happens to the process."""
        problem = f"took more than {_TIMEOUT:.0f} s"
        with suppress(EOFError, ConnectionError):
            self._pipe.send((name, max_parameters, img_size))
            if self._pipe.poll(_TIMEOUT):
                row: Row = self._pipe.recv()
                return row
        if not self._process.is_alive():
            problem = f"its process ended with status {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return Row(name, problem=problem)


def _serve(pipe: Connection) -> None:
    with suppress(EOFError, ConnectionError):  # the survey has ended
        while True:
            pipe.send(_train_one_step(*pipe.recv()))


def _train_one_step(name: str, max_parameters: float, img_size: int) -> Row:
    """Treat a model as a run does: build it, make a step, export the weights as timm loads them."""
    import timm
    import torch

    from fastmim.method.mim import MIM

    facts = {"name": name, "family": timm.models.model_entrypoint(name).__module__.rpartition(".")[2]}
    try:
        facts["stride"], facts["width"], facts["parameters"] = describe(name, img_size)
        if facts["parameters"] > max_parameters:
            return Row(**facts)
        model = MIM(name, img_size=img_size)
        facts["stride"], facts["width"] = model.backbone.stride, model.backbone.width
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        loss = model(torch.rand(2, 3, img_size, img_size))["loss"]
        loss.backward()
        optimizer.step()
        if not loss.isfinite():
            return Row(**facts, problem=f"the loss is {loss.item()}")
        still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if still:
            return Row(**facts, problem=f"no gradient reaches {', '.join(still[:3])}")
        arguments = model.backbone.arguments()
        with torch.device("meta"):
            expected = timm.create_model(name, **arguments).state_dict()
        shapes = {key: value.shape for key, value in model.backbone.native_state_dict().items()}
        if shapes != {key: value.shape for key, value in expected.items()}:
            return Row(**facts, problem="its weights do not fit the model that timm makes")
        return Row(**facts, resizes="img_size" not in arguments)
    except Exception as error:  # any error of a model is a result
        return Row(**facts, problem=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
