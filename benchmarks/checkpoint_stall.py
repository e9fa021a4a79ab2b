"""How long training waits for a checkpoint, and what writing it costs the steps meanwhile.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_stall.py

The state is a ViT-B's with AdamW, 1 GB. Four ways to save it take turns: fastmim's; its writer in line with the
training, as where memory has no room for a copy; `torch.save`; and `async_save` of torch.distributed.checkpoint. Only
fastmim's flush the files to the disk and read them back. Then steps are timed, with and without a checkpoint being
written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp

from fastmim.bench import records
from fastmim.bench.timing import spread
from fastmim.method.mim import MIM
from fastmim.training import checkpoint, optim
from fastmim.training.saving import Saver
from fastmim.training.world import ALONE

ABOUT: dict[str, Any] = {"config": {}, "num_images": 1, "stages": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=1, help="of the steps that are timed")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MIM(options.backbone, img_size=128)
    optimizer = optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))
    step(model, optimizer, options.batch_size)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # async_save needs one
    with tempfile.TemporaryDirectory() as folder:
        saves = waits(model, optimizer, Path(folder), options.rounds)
        steps = slow_down(model, optimizer, Path(folder), options)
    dist.destroy_process_group()
    state = checkpoint.collect(1, model, optimizer, about=ABOUT)
    records.write(
        Path(__file__).parent / "records",
        "checkpoint-stall",
        show=True,
        claim="Training waits for the copy of its state to host memory, not for the disk.",
        config=vars(options)
        | {"threads": torch.get_num_threads(), "state_gb": state.num_bytes / 1e9, "load_average": os.getloadavg()[0]},
        raw=saves | steps,
        summary={
            "seconds_that_training_waits": {name: spread(found["waits"]) for name, found in saves.items()},
            "first_save": {name: found["first"][0] for name, found in saves.items()},
            "seconds_until_saved": {name: spread(found["saved"]) for name, found in saves.items()},
            "seconds_per_step": {name: spread(found) for name, found in steps["steps"].items()},
            "step_while_written_over_alone": statistics.median(steps["steps"]["while written"])
            / statistics.median(steps["steps"]["alone"]),
        },
    )


def step(model: MIM, optimizer: torch.optim.AdamW, batch_size: int) -> None:
    model(torch.randn(batch_size, 3, 128, 128))["loss"].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


Finish = Callable[[], object]
"""Waits until a save is over."""


def waits(model: MIM, optimizer: torch.optim.AdamW, folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds until each way lets training go on, and until the checkpoint is there."""
    saver = Saver(folder / "fastmim", keep_every=None, world=ALONE, say=print)

    def ours(number: int) -> Finish:
        saver.save(number, model, optimizer, about=ABOUT)
        return saver.wait

    def in_line(number: int) -> Finish:
        checkpoint.write(folder / "in line", checkpoint.collect(number, model, optimizer, about=ABOUT))
        return nothing

    def torch_save(number: int) -> Finish:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"{number}.pt")
        return nothing

    def async_save(number: int) -> Finish:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        response = dcp.async_save(state, checkpoint_id=folder / f"dcp {number}")
        return getattr(response, "upload_completion", response).result

    ways: dict[str, Callable[[int], Finish]] = {
        "fastmim": ours,
        "fastmim in line": in_line,
        "torch.save": torch_save,
        "async_save": async_save,
    }
    found: dict[str, dict[str, list[float]]] = {name: {"first": [], "waits": [], "saved": []} for name in ways}
    for number in range(rounds + 1):
        for name, save in ways.items():
            began = time.perf_counter()
            finish = save(number + 1)
            waited = time.perf_counter() - began
            finish()
            found[name]["first" if number == 0 else "waits"].append(waited)
            if number:
                found[name]["saved"].append(time.perf_counter() - began)
            for leftover in [*folder.glob("*.pt"), *folder.glob("dcp *")]:
                leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
    return found


def nothing() -> None:
    """There is nothing to wait for."""


def slow_down(
    model: MIM, optimizer: torch.optim.AdamW, folder: Path, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Seconds of steps alone and of steps that begin and end while a checkpoint is written, by turns."""
    found: dict[str, list[float]] = {"alone": [], "while written": []}

    def timed(name: str) -> None:
        began = time.perf_counter()
        step(model, optimizer, options.batch_size)
        seconds = time.perf_counter() - began
        if name == "alone" or writing():
            found[name].append(seconds)

    with Saver(folder / "steps", keep_every=None, world=ALONE, say=print) as saver:
        for number in range(options.rounds):
            for _ in range(3):
                timed("alone")
            saver.save(number + 1, model, optimizer, about=ABOUT)
            while writing():
                timed("while written")
            saver.wait()
    return {"steps": found}


def writing() -> bool:
    """Whether a checkpoint is being written."""
    return any(thread.name == "save" for thread in threading.enumerate())


if __name__ == "__main__":
    main()
