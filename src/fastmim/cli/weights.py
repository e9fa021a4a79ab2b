"""The commands `export` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

import fastmim
from fastmim import config as configs
from fastmim.cli.app import Overwrite, Switch, app
from fastmim.errors import DONE, RequestError
from fastmim.system.display import say

FORMATS = "timm, hf, state-dict, onnx or torch-export"


@app.command
def export(
    run: Path,
    *,
    to: str | None = None,
    out: Path | None = None,
    img_size: int | None = None,
    overwrite: Overwrite = False,
) -> int:
    """Write a run's backbone, classifier or segmenter for other libraries, load it again and compare.

    Parameters
    ----------
    run
        Run directory or weights file.
    to
        timm (a directory that timm and transformers load, or one .safetensors file), hf (a directory in transformers'
        own layout: ViT, DINOv2, Swin, ConvNeXt, PVTv2), state-dict (.safetensors),
        onnx or torch-export (.pt2; of a segmenter these two hold the whole network). Required.
    out
        Directory or file to write. Required.
    img_size
        Image side in pixels. [default: that of a classifier's or segmenter's validation; for a backbone, most often the
        architecture's own]
    """
    if to is None or out is None:
        missing, expected = ("to", FORMATS) if to is None else ("out", "a directory or file to write")
        raise RequestError(f"{missing} is not given; expected {expected}, as in --to timm --out backbone")
    exported = fastmim.export(run, to=to, out=out, img_size=img_size, overwrite=overwrite)
    say(Console(highlight=False), exported.describe())
    return DONE


@app.command
def convert(
    file: Path,
    *,
    out: Path,
    backbone: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    keep_head: Switch = False,
    overwrite: Overwrite = False,
) -> int:
    """Convert another project's checkpoint (FastMIM, MAE, SimMIM, timm) to a weights file, without running its code.

    Parameters
    ----------
    file
        PyTorch pickle or safetensors file.
    out
        The .safetensors file to write, for use with `pretrain --init`, `finetune --weights` and other commands.
    backbone
        Any timm model. [default: inferred from the tensors]
    backbone_args
        Arguments for timm.create_model, such as --backbone-args.depth 4.
    keep_head
        Keep the classifier of a fine-tuned checkpoint.
    """
    args = {
        name.replace("-", "_"): configs.parse(f"backbone_args.{name}", str(value))
        for name, value in (backbone_args or {}).items()
    }
    converted = fastmim.convert(
        file, out=out, backbone=backbone, backbone_args=args, keep_head=keep_head, overwrite=overwrite
    )
    say(Console(highlight=False), converted.describe())
    return DONE
