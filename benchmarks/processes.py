"""The losses of two processes against those of one: `python benchmarks/processes.py`.

All take the same command of 30 steps in float32 on the CPU, whose global batch two processes share through gloo: with
the whole model in each (DDP), and with its state divided between them (`--shard`, FSDP2), where its blocks are listed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fastmim.bench import records

STEPS = 30
SMALL_VIT = "--backbone vit_tiny_patch16_224 --backbone-args.patch_size 8 --backbone-args.embed_dim 48"
SMALL_VIT += " --backbone-args.depth 2 --backbone-args.num_heads 3 --img-size 32"
SMALL_SWIN = "--backbone swin_tiny_patch4_window7_224 --backbone-args.embed_dim 24 --img-size 64"
CASES = {
    "ViT": SMALL_VIT,
    "ViT, tokens dropped": f"{SMALL_VIT} --masking drop",
    "ViT, accumulation": f"{SMALL_VIT} --micro-batch 2",
    "ViT, two stages": f"{SMALL_VIT} --stages 32:0.5,48:0.5",
    "Swin": SMALL_SWIN,
    "ConvNeXt": "--backbone test_convnext --img-size 64",
    "ResNet": "--backbone resnet10t --img-size 64",
}
NO_BLOCKS = ("ResNet",)  # `--shard` refuses them
WAYS = {"one": "--devices 1", "two, DDP": "--devices 2", "two, FSDP2": "--devices 2 --shard"}
SHARED = "--data samples --batch-size 16 --lr 1e-3 --log-every 1 --num-workers 1 --device cpu --precision float32"
SHARED += f" --steps {STEPS} --trackers none --picture-every never"


def main() -> None:
    raw: dict[str, dict[str, list[float]]] = {}
    for name, words in CASES.items():
        ways = WAYS if name not in NO_BLOCKS else dict(list(WAYS.items())[:2])
        raw[name] = {way: losses(f"{words} {flags}") for way, flags in ways.items()}
        print(f"{name}: {apart(raw[name])}", flush=True)
    records.write(
        Path(__file__).parent / "records",
        "processes",
        show=True,
        claim="Two processes train as one does, whole or divided: their losses differ by rounding.",
        config={"steps": STEPS, "cases": CASES, "shared": SHARED, "ways": WAYS},
        raw=raw,
        summary={name: {"largest relative difference of the loss": apart(found)} for name, found in raw.items()},
    )


def losses(words: str) -> list[float]:
    """The loss of each step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fastmim", "pretrain", *SHARED.split(), *words.split(), "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


def apart(found: dict[str, list[float]]) -> dict[str, float]:
    """The largest relative difference of each way from one process, and of the two ways from each other."""
    one, whole, *divided = found.values()
    pairs = {"DDP from one": (one, whole)}
    for other in divided:
        pairs |= {"FSDP2 from one": (one, other), "FSDP2 from DDP": (whole, other)}
    return {name: max(abs(a - b) / a for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}


if __name__ == "__main__":
    main()
