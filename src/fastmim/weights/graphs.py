"""Networks as graphs for other tools, by ONNX and torch.export; and the comparison of an export with its network."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.errors import RequestError, RunError, first_line

TOLERANCE = 1e-4
"""Largest allowed difference between an export and its network, as a share of the largest output or of 1."""

_ONE_FILE = 1_500_000_000  # bytes of weights above which ONNX stores them in a second file; protobuf is limited to 2 GB

Reloaded = Callable[[Tensor], Sequence[Tensor]]
"""An export as its reader loads it: (B, C, S, S) images -> outputs."""


@dataclass(frozen=True)
class Graph:
    """A network to be exported."""

    name: str
    network: nn.Module
    """(B, C, S, S) normalised images -> as many tensors as there are `outputs`, for any B."""
    images: Tensor
    """(8, C, S, S) normalised photographs, on which an export is compared."""
    outputs: list[str]
    about: dict[str, Any]
    """Metadata for readers of the export (JSON types)."""


def compare(graph: Graph, reloaded: Reloaded, to: str) -> float:
    """The largest difference over all outputs for the photographs, as one batch and as a single image.

    Raises:
        RunError: the difference is too large.
    """
    worst = 0.0
    for images in (graph.images, graph.images[:1]):
        with torch.no_grad():
            pairs = list(zip(graph.network(images), reloaded(images), strict=True))
        difference = max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs)
        largest = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
        if not difference <= TOLERANCE * largest:  # also true of NaN
            raise RunError(
                f"{graph.name} exported to {to} differs from the network by {difference:.1e} on {len(images)} "
                f"photographs; expected at most {TOLERANCE * largest:.0e}: take another format, and report the model"
            )
        worst = max(worst, difference)
    return worst


def to_torch_export(graph: Graph, path: Path) -> tuple[Reloaded, str]:
    """Write a .pt2 file; return it reloaded, and the Python code that does so."""
    torch.export.save(_trace(graph), path, extra_files={"fastmim.json": json.dumps(graph.about)})
    return torch.export.load(path).module(), f'torch.export.load("{path}").module()'


def to_onnx(graph: Graph, path: Path) -> tuple[Reloaded, str]:
    """Write an .onnx file, with a second one beside it if it is large; return it reloaded, and the code that does so.

    Raises:
        RequestError: a package is missing.
        RunError: the network cannot be expressed.
    """
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise RequestError(f"to is 'onnx', which needs {', '.join(missing)}: pip install 'fastmim[onnx]'")
    import onnxruntime

    program = _trace(graph)
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=graph.outputs
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"ONNX cannot express {graph.name}: it has no operator for {_operator(error)}; "
            f"expected a model of standard operators: export it to torch-export, or choose another backbone"
        ) from error
    converted.model.metadata_props["fastmim"] = json.dumps(graph.about)
    num_bytes = sum(tensor.nbytes for tensor in graph.network.state_dict().values())
    converted.save(path, external_data=num_bytes > _ONE_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]

    return run, f'onnxruntime.InferenceSession("{path}")'


def _trace(graph: Graph) -> torch.export.ExportedProgram:
    """The network as a graph, for batches of any size."""
    batch = {0: torch.export.Dim("batch", min=1)}
    graph.network.requires_grad_(False)  # attention that needs no gradient has strides that ONNX can express
    try:
        with _quiet():
            return torch.export.export(graph.network, (graph.images[:2],), dynamic_shapes=(batch,))
    except Exception as error:  # tracing raises many kinds of errors
        raise RunError(
            f"torch.export cannot trace {graph.name}: {first_line(error)}; expected a model without control flow "
            f"that depends on values: export it to timm, or choose another backbone"
        ) from error


def _operator(error: Exception) -> str:
    """The operator that ONNX lacks, or the error's first line if it names none."""
    named = re.search(r"op='([\w.]+)'", str(error))
    return named[1] if named else first_line(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings from inside PyTorch during tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
