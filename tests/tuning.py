"""Fine-tunings that take a second, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim.transfer.classify import finetune as finetuning

NETWORK = {key: SMALL[key] for key in ("backbone", "backbone_args")}
TINY: dict[str, Any] = {key: value for key, value in SMALL.items() if key not in (*NETWORK, "picture_every")} | {
    "eval_every": "4 steps"
}
PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "reprob": 0.0, "randaugment": "none", "drop_path": 0.0}


def finetune(out: Path, data: Path, **settings: Any) -> finetuning.Result:
    begin = {} if "weights" in settings else NETWORK
    return fastmim.finetune(**(TINY | begin | {"data": str(data), "out": out} | settings))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(out: Path) -> list[dict[str, Any]]:
    changing = ("time", "images_per_s", "seconds_per_step", "data_wait_share", "memory_gb")
    path = out / "metrics.jsonl"
    read = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if key not in changing} for line in read]
