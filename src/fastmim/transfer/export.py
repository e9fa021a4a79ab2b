"""`export`: what a run trained, for other tools: its backbone or classifier, or the segmenter as a whole."""

from __future__ import annotations

from pathlib import Path

from fastmim.errors import RequestError
from fastmim.transfer.segment.export import export_segmenter
from fastmim.weights import export as backbones
from fastmim.weights import files
from fastmim.weights.export import Export

_GRAPHS = ("onnx", "torch-export")


def export(
    source: str | Path, *, to: str, out: str | Path, img_size: int | None = None, overwrite: bool = False
) -> Export:
    """Write a run's network for other tools, reload it and compare.

    Args:
        source: Run directory or weights file. Of a detector, its backbone; of a segmenter too, but for "onnx" and
            "torch-export", which take it as a whole: normalised images (B, 3, S, S) -> logits (B, C, S, S).
        to: "timm" (a directory in the layout of timm's hub, which transformers also reads; or, if `out` ends in
            .safetensors, one file for `checkpoint_path`), "hf" (a directory in transformers' own layout, where it has
            the architecture), "state-dict" (.safetensors, the backbone's tensors only), "onnx" or "torch-export"
            (.pt2). The last two take batches of any size and compute, of a backbone, features and an embedding or
            logits; see `weights.export.Features`.
        out: The directory or file to write.
        img_size: Side of the images in pixels. If None, that at which a fine-tuned classifier or a segmenter was
            validated; for a backbone alone that of the weights file, most often the architecture's default.
        overwrite: Replace an earlier export.

    Raises:
        RequestError: no such weights, a size that the network cannot take, a path that exists or does not suit the
            format, a missing package, or a detector as a graph.
        RunError: the format cannot express the network, or the export's outputs differ.

    Example:
        >>> exported = fastmim.export("runs/photos", to="timm", out="backbone/")
    """
    facts = files.read(source)[1] if to in _GRAPHS else {}
    if "detector" in facts:
        raise RequestError(
            f"weights is {source}, a detector, and to is {to!r}; expected timm or state-dict, as its number "
            f"of boxes differs from image to image, which no graph has: export its backbone (--to timm), or find "
            f"objects with `fastmim detect --predict`"
        )
    if "segmenter" in facts:
        return export_segmenter(source, to=to, out=Path(out), img_size=img_size, overwrite=overwrite)
    return backbones.export(source, to=to, out=out, img_size=img_size, overwrite=overwrite)
