"""A segmenter as one graph for other tools."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.errors import RequestError
from fastmim.transfer.segment.file import FORMAT
from fastmim.transfer.segment.segmenter import Segmenter
from fastmim.weights.export import Export, check_out, photographs, write_compared
from fastmim.weights.graphs import Graph, to_onnx, to_torch_export

_MOST = 8192
_WRITERS = {"onnx": to_onnx, "torch-export": to_torch_export}


class Logits(nn.Module):
    """The function that an export computes: (B, 3, S, S) normalised images -> logits (B, C, S, S)."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> tuple[Tensor]:
        logits = self.segmenter.logits(images)
        return (F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False),)


def export_segmenter(source: str | Path, *, to: str, out: Path, img_size: int | None, overwrite: bool) -> Export:
    """Write the segmenter of a run or weights file, reload it and compare; see `transfer.export.export`.

    Args:
        source: Run directory or weights file.
        to: "onnx" or "torch-export".
        out: The file to write.
        img_size: S; that of the training if None.
        overwrite: Replace an earlier export.

    Raises:
        RequestError: as `FORMAT.load`, or the segmenter cannot take the size, or `out` exists or has another ending.
        RunError: the format cannot express the network, or the export's outputs differ.
    """
    check_out(out, to, overwrite=overwrite)
    opened = FORMAT.load(str(source))
    design, trunk = opened.design, opened.trunk
    size = design.img_size if img_size is None else img_size
    most = _MOST if trunk.takes_any_size else trunk.img_size
    if not 1 <= size <= most:
        raise RequestError(
            f"img_size is {size}; expected 1 to {most} px for {trunk.name}: leave it out for the training's "
            f"{design.img_size} px"
        )
    normalisation = {"mean": opened.mean, "std": opened.std}
    about = {
        "architecture": trunk.name,
        "img_size": size,
        **normalisation,
        **({"range": opened.range} if opened.range not in (None, "8bit") else {}),
        "classes": design.classes,
        "first": design.first,
    }
    images = photographs(size, {"arguments": trunk.arguments(), **normalisation})
    graph = Graph(trunk.name, Logits(opened.network), images, ["logits"], about)
    difference, load = write_compared(graph, to, out, partial(_WRITERS[to], graph))
    seen = f"windows of images whose shorter side is {design.img_size} px, as in tests"
    return Export(out, size, seen, difference, load, (), "")
