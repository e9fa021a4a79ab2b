"""How exact batch norms are on a CPU, in one process and in several: `python benchmarks/batch_norm.py`.

The first norm of a ResNet sees real crops in channels-last order, as in training. torch's own norm, which one process
uses, and the norm that sums over processes, here over a single one, are compared with float64. It explains why the
losses of a ResNet on two processes differ more from those of one (`processes.py`) than other networks' do.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import timm
import torch
import torch.distributed as dist

from fastmim.bench import records
from fastmim.data.loader import load
from fastmim.data.sources import open_source
from fastmim.training.batch_norm import share_batch_norms

BATCHES, BATCH_SIZE, SIZE = 8, 16, 64


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    convolution, own = model.conv1[0].to(memory_format=torch.channels_last), model.conv1[1].train()
    shared = copy.deepcopy(own)
    batches = load(open_source("samples"), size=SIZE, seed=0, global_batch=BATCH_SIZE, first_step=0, last_step=BATCHES)
    errors: dict[str, list[float]] = {"torch's own": [], "over processes": []}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        share_batch_norms(shared, torch.device("cpu"))
        for batch in batches:
            images = (batch["images"].float() / 255 - 0.45) / 0.225
            maps = convolution(images.contiguous(memory_format=torch.channels_last)).detach()
            exact = torch.nn.functional.batch_norm(maps.double(), None, None, training=True, eps=own.eps)
            for name, norm in zip(errors, (own, shared), strict=True):
                errors[name].append((norm(maps).detach() - exact).abs().max().item())
        dist.destroy_process_group()
    records.write(
        Path(__file__).parent / "records",
        "batch-norm",
        show=True,
        claim="The norm that sums over processes is nearer to float64 than torch's own in channels-last order.",
        config={"batches": BATCHES, "batch_size": BATCH_SIZE, "size": SIZE},
        raw=errors,
        summary={name: {"largest error of a unit-variance output": max(found)} for name, found in errors.items()},
    )


if __name__ == "__main__":
    main()
