"""Which of timm's models give a pyramid of maps: each is built on the meta device, which computes shapes only.

    python benchmarks/pyramids.py --out benchmarks/records/pyramids-DATE.jsonl [--most 100]

A model passes if images of one and of two sizes become maps at strides 4, 8, 16 and 32, and a gradient reaches every
parameter that is to be trained. Those of docs/backbones.jsonl that can be pre-trained, up to 150 M parameters, are
tried, one architecture after another. The record is written line by line: the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch

from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.pyramid import Pyramid
from fastmim.errors import first_line

ROOT = Path(__file__).parent.parent
MOST = 150e6
SIDE = 256


def candidates() -> list[dict[str, Any]]:
    """The models that can be pre-trained, the smallest of each family first, then the next of each."""
    lines = (ROOT / "docs/backbones.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if not row["problem"] and 0 < row["parameters"] <= MOST]
    turns: dict[str, int] = {}
    ordered = []
    for row in sorted(rows, key=lambda row: row["parameters"]):
        turns[row["family"]] = turn = turns.get(row["family"], 0) + 1
        ordered.append((turn, row))
    return [row for _, row in sorted(ordered, key=lambda pair: pair[0])]


def try_model(name: str) -> dict[str, Any]:
    """What the model's pyramid is, or the problem."""
    try:
        with torch.device("meta"):
            pyramid = Pyramid(MultiScale(name, img_size=SIDE))
            trunk = pyramid.trunk
            sides = [(SIDE, SIDE), (SIDE // 2, SIDE - 32) if trunk.takes_any_size else (SIDE // 2, SIDE // 2)]
            for height, width in sides:
                maps = pyramid(torch.zeros(2, 3, height, width))
                expected = [(height // stride, width // stride) for stride in pyramid.strides]
                if [tuple(found.shape[-2:]) for found in maps] != expected:
                    return {"problem": f"its maps have the sizes {[tuple(found.shape) for found in maps]}"}
            torch.stack([found.sum() for found in maps]).sum().backward()
        if still := [n for n, p in pyramid.named_parameters() if p.requires_grad and p.grad is None]:
            return {"problem": f"no gradient reaches {', '.join(still[:3])}"}
        return {"problem": "", "strides": trunk.strides, "widths": pyramid.widths, "any_size": trunk.takes_any_size}
    except Exception as error:  # any error of a model is a result
        return {"problem": f"{type(error).__name__}: {first_line(error)}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=10**9, help="how many models to try now")
    arguments = parser.parse_args()
    out: Path = arguments.out
    before = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    done = {json.loads(line)["name"] for line in before}
    left = [row for row in candidates() if row["name"] not in done][: arguments.most]
    with out.open("a", encoding="utf-8") as file:
        for number, row in enumerate(left, 1):
            found = {"name": row["name"], "family": row["family"]} | try_model(row["name"])
            file.write(json.dumps(found) + "\n")
            file.flush()
            print(f"{number}/{len(left)}  {row['name']}  {found['problem'] or 'ok'}", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
