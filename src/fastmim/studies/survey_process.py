"""One model of a survey, built and trained for a few steps in a process of its own while glibc checks the heap."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from fastmim.backbone import describe, family

STEPS = 6
_TIMEOUT = 1800.0  # seconds for one model
_PRELOADED = ("timm", "torch", "fastmim.method.mim")


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
    steps: int = 0  # training steps that it was to make; 0 if it was not tried, as it is too large
    heap_checked: bool = False  # whether a write past a block of memory would have ended its process


@cache
def heap_checks() -> Mapping[str, str]:
    """Environment under which glibc ends a process that wrote past a block of memory; empty on other systems."""
    checks = {"MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}  # since glibc 2.34 it takes both
    complaint = b"other systems have no glibc"
    if sys.platform == "linux":
        complaint = subprocess.run(["true"], env=os.environ | checks, capture_output=True, check=True).stderr
    return {} if complaint else checks


def try_model(name: str, max_parameters: float, img_size: int) -> Row:
    """Try a model; if its process dies or stalls, that is the row's problem."""
    row = in_process(_train, name, max_parameters, img_size)
    if row.parameters > max_parameters:
        return row
    return replace(row, steps=STEPS, heap_checked=bool(heap_checks()))


def in_process(train: Callable[..., Row], name: str, *args: Any) -> Row:
    """Call `train(name, *args)` in a process of its own, under `heap_checks`, and return its row.

    The processes are forks of one that has imported torch and timm, which takes seconds; on Windows each imports them.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, train, name, *args), daemon=True)
    with _environment(heap_checks()):
        process.start()
    theirs.close()
    try:
        row: Row = ours.recv() if ours.poll(_TIMEOUT) else Row(name, problem=f"took more than {_TIMEOUT:.0f} s")
    except EOFError:
        process.join()
        row = Row(name, problem=f"its process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return row


def _context() -> Any:  # typeshed has no name for what these contexts share
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start meanwhile; the first start of all starts their server."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _serve(pipe: Connection, train: Callable[..., Row], name: str, *args: Any) -> None:
    row = train(name, *args)
    gc.collect()  # glibc checks a block when it is freed
    pipe.send(row)


def _train(name: str, max_parameters: float, img_size: int) -> Row:
    """Treat a model as a run does: build it, make some steps, export the weights as timm loads them."""
    import timm
    import torch

    from fastmim.method.mim import MIM

    facts: dict[str, Any] = {"name": name, "family": family(name)}
    try:
        facts["stride"], facts["width"], facts["parameters"] = describe(name, img_size)
        if facts["parameters"] > max_parameters:
            return Row(**facts)
        model = MIM(name, img_size=img_size)
        facts["stride"], facts["width"] = model.backbone.stride, model.backbone.width
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for step in range(STEPS):
            loss = model(torch.rand(2, 3, img_size, img_size))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not loss.isfinite():
                return Row(**facts, problem=f"the loss is {loss.item()} in step {step + 1}")
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
