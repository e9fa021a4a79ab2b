"""Exports of a trained backbone for other tools: timm and transformers, plain tensors, ONNX, torch.export.

Every export is reloaded the way its reader will load it and compared with the backbone on the built-in
photographs before it is renamed into place.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from fastmim.config import nearest
from fastmim.data.augment import decode_center, normalise
from fastmim.data.sources import open_source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError, RunError, first_line
from fastmim.system import locking
from fastmim.system.files import exists
from fastmim.system.tensor_files import save_tensors, share
from fastmim.weights import files
from fastmim.weights.metadata import crop_pct
from fastmim.weights.model_card import model_card

NUM_PHOTOGRAPHS = 8
TOLERANCE = 1e-4
"""Largest allowed difference between export and backbone, as a share of the largest feature or of 1."""

_ONE_FILE = 1_500_000_000  # bytes of weights above which ONNX stores them in a second file; protobuf is limited to 2 GB

Outputs = tuple[Tensor, Tensor]
Reloaded = Callable[[Tensor], Outputs]


class Features(nn.Module):
    """The function that an export computes: (B, C, S, S) normalised images -> (features, embedding or logits).

    `features` is the output of the timm model's `forward_features`: tokens (B, N, D), or a map in the layout of its
    family. The second output is that of `forward_head`, which the timm model itself returns: the pooled `embedding`
    (B, D) or, for fine-tuned weights, `logits` (B, number of classes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Outputs:
        features = self.model.forward_features(images)
        return features, self.model.forward_head(features)


@dataclass(frozen=True)
class Subject:
    """A backbone to be exported."""

    model: nn.Module
    tensors: dict[str, Tensor]
    """The weights as one file for `checkpoint_path`."""
    facts: dict[str, Any]
    """Their metadata; its `arguments` fit `tensors`."""
    arguments: dict[str, Any]
    """The arguments with which timm makes `model`."""
    img_size: int
    validated_size: int
    """Side in pixels of the images that the weights were trained and validated on."""
    images: Tensor
    """(8, C, S, S) normalised photographs."""

    @property
    def name(self) -> str:
        """timm's name of the model."""
        return str(self.facts["architecture"])

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of `Features`."""
        return ["features", "logits" if self.facts.get("classes") else "embedding"]

    @property
    def about(self) -> dict[str, Any]:
        """Metadata for readers of the export (JSON types)."""
        classes = {"classes": self.facts["classes"]} if self.facts.get("classes") else {}
        grey_range = {"range": self.facts["range"]} if self.facts.get("range", "8bit") != "8bit" else {}
        return {
            "architecture": self.name,
            "img_size": self.img_size,
            **preprocessing(self.facts),
            **grey_range,
            **classes,
        }

    @property
    def advice(self) -> str:
        """What to know of a classifier whose images have another size than those it was validated on; or ""."""
        if not self.facts.get("classes") or self.validated_size == self.img_size:
            return ""
        return f"validated at {self.validated_size} px: at {self.img_size} px its scores may differ"


@dataclass(frozen=True)
class Export:
    """The result of an export."""

    path: Path
    img_size: int
    crop_pct: float
    """Side of the central crop as a share of an image's shorter side."""
    max_difference: float
    """The largest difference of any feature on the built-in photographs, in float32."""
    load: str
    """Python code that loads it."""
    untrained: tuple[str, ...]
    """Blocks that pre-training skipped: they are exported with their initial values."""
    advice: str
    """What to know of its scores; or ""."""

    def describe(self) -> str:
        """A summary of several lines."""
        lines = [
            f"wrote     {self.path}, for images of {self.img_size} px: the central "
            f"{100 * self.crop_pct:g} % of the shorter side, resized bicubically",
            f"checked   reloaded; the largest difference on {NUM_PHOTOGRAPHS} photographs is "
            f"{self.max_difference:.1e} (float32)",
            f"load      {self.load}",
        ]
        if self.untrained:
            lines.append(f"untrained {', '.join(self.untrained)}: left out of pre-training, fine-tune before use")
        if self.advice:
            lines.append(f"note      {self.advice}")
        return "\n".join(lines)


def export(
    source: str | Path, *, to: str, out: str | Path, img_size: int | None = None, overwrite: bool = False
) -> Export:
    """Write a backbone for other tools, reload it and compare.

    Args:
        source: Run directory or weights file.
        to: "timm" (a directory in the layout of timm's hub, which transformers also reads; or, if `out` ends in
            .safetensors, one file for `checkpoint_path`), "state-dict" (.safetensors, the backbone's tensors only),
            "onnx" or "torch-export" (.pt2). The last two take batches of any size and compute `Features`.
        out: The directory or file to write.
        img_size: Side of the images in pixels. If None, that at which a fine-tuned classifier was validated; for a
            backbone without a classifier that of the weights file, most often the architecture's default.
        overwrite: Replace an earlier export.

    Raises:
        RequestError: no such weights, a size that the backbone cannot take, a path that exists or does not suit the
            format, or a missing package.
        RunError: the format cannot express the model, or the export's outputs differ.
    """
    out = Path(out)
    if to not in _WRITERS:
        raise RequestError(f"to is {to!r}; expected one of {', '.join(_WRITERS)}{nearest(to, _WRITERS)}")
    _check_out(out, to, overwrite=overwrite)
    subject = _prepare(source, img_size)
    try:
        with locking.staging(out, print) as folder:
            partial = folder / out.name
            reloaded, load = _WRITERS[to](subject, partial)
            difference = _compare(subject, reloaded, to)
            _settle(partial, out)
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror or error}; expected a path that can be written") from None
    load = load.replace(str(partial), str(out))
    untrained = tuple(subject.facts["untrained"])
    return Export(out, subject.img_size, crop_pct(subject.facts), difference, load, untrained, subject.advice)


def _check_out(out: Path, to: str, *, overwrite: bool) -> None:
    """Refuse a path that exists, or whose ending belongs to another format."""
    ending = {"timm": ".safetensors", "state-dict": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}[to]
    is_directory = to == "timm" and out.suffix != ending
    # A directory may be named photos-v1.2, but backbone.pth is surely meant to be a file.
    if out.suffix in (".bin", ".onnx", ".pt", ".pt2", ".pth") if is_directory else out.suffix != ending:
        raise RequestError(
            f"out is {out}; expected {'a directory or ' if to == 'timm' else ''}a file ending in {ending} for {to}"
        )
    if not exists(out):
        return
    if out.is_dir() != is_directory:
        raise RequestError(
            f"out is {out}, a {'directory' if out.is_dir() else 'file'} that exists; expected a path that is free"
        )
    if not overwrite:
        raise RequestError(f"out is {out}, which exists; expected a path that is free: take another, or --overwrite")


def _prepare(source: str | Path, img_size: int | None) -> Subject:
    tensors, facts = files.read(source)
    classifier = bool(facts.get("classes"))
    model = files.build(source, tensors, facts, img_size=img_size, classifier=classifier).eval()
    arguments, validated_size = files.architecture_of(facts).arguments(model), facts["img_size"]
    if img_size is None:
        img_size = files.validated_size(model, facts) if classifier else files.input_size(model, facts)
    else:
        tensors, facts = dict(model.state_dict()), facts | {"arguments": arguments, "img_size": img_size}
    return Subject(model, tensors, facts, arguments, img_size, validated_size, photographs(img_size, facts))


def photographs(img_size: int, facts: Mapping[str, Any]) -> Tensor:
    """(8, C, S, S) built-in photographs, evenly chosen, normalised for the backbone."""
    samples = open_source("samples")
    spread = range(0, len(samples), len(samples) // NUM_PHOTOGRAPHS)[:NUM_PHOTOGRAPHS]
    pixels = torch.stack([decode_center(samples.read(index), img_size) for index in spread])
    channels = torch.arange(facts["arguments"].get("in_chans", 3)) % 3
    return normalise(pixels, *(torch.tensor(values) for values in normalisation(facts).values()))[:, channels]


def normalisation(facts: Mapping[str, Any]) -> dict[str, list[float]]:
    """The normalisation of a backbone's images: pixels in [0, 1], minus `mean`, divided by `std`."""
    return {"mean": list(facts.get("mean", IMAGENET_MEAN)), "std": list(facts.get("std", IMAGENET_STD))}


def preprocessing(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How images are cropped, resized and normalised before the network, in timm's words (JSON types)."""
    cropping = {"interpolation": "bicubic", "crop_pct": crop_pct(facts), "crop_mode": "center"}
    return {**cropping, **normalisation(facts)}


def _compare(subject: Subject, reloaded: Reloaded, to: str) -> float:
    """The largest difference over all features of the photographs, as one batch and as a single image.

    Raises:
        RunError: the difference is too large.
    """
    worst = 0.0
    for images in (subject.images, subject.images[:1]):
        with torch.no_grad():
            pairs = list(zip(Features(subject.model)(images), reloaded(images), strict=True))
        difference = max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs)
        largest = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
        if not difference <= TOLERANCE * largest:  # also true of NaN
            raise RunError(
                f"{subject.name} exported to {to} differs from the backbone by {difference:.1e} on {len(images)} "
                f"photographs; expected at most {TOLERANCE * largest:.0e}: take another format, and report the model"
            )
        worst = max(worst, difference)
    return worst


def _settle(partial: Path, out: Path) -> None:
    """Move the export into place; other files in a directory stay."""
    if partial.is_dir():
        out.mkdir(exist_ok=True)
    # ONNX may have written a second file with the weights beside the first.
    written, destination = (partial, out) if partial.is_dir() else (partial.parent, out.parent)
    for file in written.iterdir():
        share(file)
        file.replace(destination / file.name)


def _to_timm(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    if path.suffix != ".safetensors":
        return _to_hub_layout(subject, path)
    files.write(path, subject.tensors, subject.facts)
    arguments = subject.facts["arguments"]
    model: Any = timm.create_model(subject.name, **arguments, checkpoint_path=str(path)).eval()
    if "embedding" in subject.outputs:  # the file's classifier is all zeros
        model.reset_classifier(0)
    return Features(model), _call(subject.name, **arguments, checkpoint_path=str(path))


def _to_hub_layout(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    images = {**preprocessing(subject.facts), "input_size": tuple(subject.images.shape[1:])}
    labels = {"label_names": subject.facts["classes"]} if "logits" in subject.outputs else {}
    save_for_hf(subject.model, str(path), model_config=labels, safe_serialization=True, data_config=images)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # transformers passes the number of classes itself, and would pass it twice. The tag and licence are those of the
    # published weights, not of these.
    config["model_args"].pop("num_classes", None)
    for key in ("tag", "license"):
        config["pretrained_cfg"].pop(key, None)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = model_card(subject.facts, load=_call(f"local-dir:{path.name}", pretrained=True))
    (path / "README.md").write_text(card, encoding="utf-8")
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return Features(model), _call(f"local-dir:{path}", pretrained=True)


def _to_state_dict(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    save_tensors(path, subject.model.state_dict())
    model = timm.create_model(subject.name, **subject.arguments, checkpoint_path=str(path)).eval()
    return Features(model), _call(subject.name, **subject.arguments, checkpoint_path=str(path))


def _to_torch_export(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    torch.export.save(_trace(subject), path, extra_files={"fastmim.json": json.dumps(subject.about)})
    return torch.export.load(path).module(), f'torch.export.load("{path}").module()'


def _to_onnx(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise RequestError(f"to is 'onnx', which needs {', '.join(missing)}: pip install 'fastmim[onnx]'")
    import onnxruntime

    program = _trace(subject)
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=subject.outputs
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"ONNX cannot express {subject.name}: it has no operator for {_operator(error)}; "
            f"expected a model of standard operators: export it to torch-export, or choose another backbone"
        ) from error
    converted.model.metadata_props["fastmim"] = json.dumps(subject.about)
    num_bytes = sum(tensor.nbytes for tensor in subject.model.state_dict().values())
    converted.save(path, external_data=num_bytes > _ONE_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        features, pooled = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(features), torch.from_numpy(pooled)

    return run, f'onnxruntime.InferenceSession("{path}")'


def _trace(subject: Subject) -> torch.export.ExportedProgram:
    """The features as a graph, for batches of any size."""
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        with _quiet():
            return torch.export.export(Features(subject.model), (subject.images[:2],), dynamic_shapes=(batch,))
    except Exception as error:  # tracing raises many kinds of errors
        raise RunError(
            f"torch.export cannot trace {subject.name}: {first_line(error)}; expected a model without control flow "
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


def _call(name: str, **arguments: Any) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"timm.create_model({name!r}{given})"


_WRITERS: dict[str, Callable[[Subject, Path], tuple[Reloaded, str]]] = {
    "timm": _to_timm,
    "state-dict": _to_state_dict,
    "onnx": _to_onnx,
    "torch-export": _to_torch_export,
}
