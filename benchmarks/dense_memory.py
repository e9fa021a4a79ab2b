"""Memory that a ViT-B's pyramid keeps for the backward pass at 1024 px: all attention or windows, checkpoints or not.

    python benchmarks/dense_memory.py [--img-size 1024 --out benchmarks/records/dense-memory-DATE.json]

Nothing is measured on a device: the forward pass runs on the meta device, which has shapes and no numbers, and the
bytes of all tensors that autograd saves are added up, each storage once and parameters left out. On that device
attention is plain and saves its matrices of tokens by tokens; fused attention does not, so the sum without them is
given beside. With checkpoints, the block that is being computed again comes on top.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.pyramid import Pyramid
from fastmim.system.files import write_json

NAME, WINDOW = "vit_base_patch16_224", 14
ROOT = Path(__file__).parent.parent


def saved_bytes(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Bytes of the tensors that a forward pass saves, without parameters; and of these, of attention's matrices."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, Any] = {}
    matrices: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage  # kept alive, so that no other takes its number
            if tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2] >= WINDOW**2:
                matrices.add(storage._cdata)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = model(images)
    del maps
    sizes = {number: storage.nbytes() for number, storage in seen.items()}
    return sum(sizes.values()), sum(sizes[number] for number in matrices)


def case(img_size: int, *, window: int | None, checkpoints: bool) -> dict[str, Any]:
    """MiB for an image in float32."""
    with torch.device("meta"):
        trunk = MultiScale(NAME, img_size=img_size, drop_path=0.0, window=window)
        if checkpoints:
            trunk.checkpoint_activations()
        total, matrices = saved_bytes(Pyramid(trunk).train(), torch.zeros(1, 3, img_size, img_size))
    sizes = {"mib": round(total / 2**20, 1), "mib_without_matrices": round((total - matrices) / 2**20, 1)}
    return {"window": window, "checkpoints": checkpoints, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--img-size", type=int, default=1024)
    parser.add_argument(
        "--out", type=Path, default=ROOT / f"benchmarks/records/dense-memory-{datetime.date.today()}.json"
    )
    arguments = parser.parse_args()
    cases = []
    for window in (None, WINDOW):
        for checkpoints in (False, True):
            cases.append(case(arguments.img_size, window=window, checkpoints=checkpoints))
            print(cases[-1], flush=True)
    about = {"backbone": NAME, "img_size": arguments.img_size, "images": 1, "precision": "float32", "device": "meta"}
    write_json(arguments.out, about | {"torch": torch.__version__, "cases": cases})


if __name__ == "__main__":
    main()
