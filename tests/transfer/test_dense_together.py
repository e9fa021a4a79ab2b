"""Detection and segmentation by two processes: they end with the same weights, and one validates for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import scenes
import shapes
from fastmim import weights
from processes import together

DETECT: dict[str, Any] = scenes.SEGMENT | {"num_regions": 16, "channels": 8, "lr": 0.01}


@pytest.mark.parametrize(("command", "shard"), [("segment", False), ("detect", True)])
def test_two_processes(tmp_path: Path, command: str, shard: bool) -> None:
    draw = scenes.draw_scenes if command == "segment" else shapes.draw_coco
    network = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 2, "embed_dim": 24, "num_heads": 2}}
    own = scenes.SEGMENT | {"channels": 16} if command == "segment" else DETECT
    settings = own | network | {"steps": 2, "shard": shard}
    out = tmp_path / "run"
    statuses, said = together(command, draw(tmp_path / "data"), out, settings, settings)
    assert statuses == [0, 0], said
    scored = json.loads((out / "evaluation.json").read_text())
    assert scored["step"] == 2 and scored["images"] == 4
    tensors = weights.read(out)[0]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [2]
