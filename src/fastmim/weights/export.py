"""Exports of a trained backbone for other tools: timm and transformers, plain tensors, ONNX, torch.export.

Every export is reloaded the way its reader will load it and compared with the backbone on the built-in
photographs before it is renamed into place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.system.files import exists, write_json
from fastmim.system.tensor_files import save_tensors, share
from fastmim.weights import files, transformers_layout
from fastmim.weights.graphs import Graph, Reloaded, compare, to_onnx, to_torch_export
from fastmim.weights.metadata import crop_pct
from fastmim.weights.model_card import model_card

NUM_PHOTOGRAPHS = 8

Outputs = tuple[Tensor, Tensor]
Writer = Callable[[Path], tuple[Reloaded, str]]
"""Writes an export; returns it reloaded, and the Python code that does so."""


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
    def graph(self) -> Graph:
        """The function that the export computes."""
        return Graph(self.name, Features(self.model), self.images, self.outputs, self.about)

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
    images: str
    """What of an image the network sees, in words."""
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
            f"wrote     {self.path}, for images of {self.img_size} px: {self.images}",
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
            .safetensors, one file for `checkpoint_path`), "hf" (a directory in transformers' own layout, of the
            architectures in `transformers_layout.FAMILIES`), "state-dict" (.safetensors, the backbone's tensors only),
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
    check_out(out, to, overwrite=overwrite)
    subject = _prepare(source, img_size)
    difference, load = write_compared(subject.graph, to, out, partial(_WRITERS[to], subject))
    untrained = tuple(subject.facts["untrained"])
    images = f"the central {100 * crop_pct(subject.facts):g} % of the shorter side, resized bicubically"
    return Export(out, subject.img_size, images, difference, load, untrained, subject.advice)


def write_compared(graph: Graph, to: str, out: Path, writer: Writer) -> tuple[float, str]:
    """Write an export, reload it, compare it, and move it into place.

    Returns:
        The largest difference on the photographs, and the Python code that loads the export.

    Raises:
        RequestError: `out` cannot be written.
        RunError: the format cannot express the network, or the export's outputs differ.
    """
    try:
        with locking.staging(out, print) as folder:
            unfinished = folder / out.name
            reloaded, load = writer(unfinished)
            difference = compare(graph, reloaded, to)
            _settle(unfinished, out)
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror or error}; expected a path that can be written") from None
    return difference, load.replace(str(unfinished), str(out))


def check_out(out: Path, to: str, *, overwrite: bool) -> None:
    """Refuse a path that exists, or whose ending belongs to another format."""
    ending = {"timm": ".safetensors", "state-dict": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}.get(to)
    is_directory = to == "hf" or (to == "timm" and out.suffix != ending)
    # A directory may be named photos-v1.2, but backbone.pth is surely meant to be a file.
    suffixes = (".bin", ".onnx", ".pt", ".pt2", ".pth", *([".safetensors"] if to == "hf" else []))
    if out.suffix in suffixes if is_directory else out.suffix != ending:
        expected = [
            *(["a directory"] if to in ("timm", "hf") else []),
            *([f"a file ending in {ending}"] if ending else []),
        ]
        raise RequestError(f"out is {out}; expected {' or '.join(expected)} for {to}")
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


def _settle(unfinished: Path, out: Path) -> None:
    """Move the export into place; other files in a directory stay."""
    if unfinished.is_dir():
        out.mkdir(exist_ok=True)
    # ONNX may have written a second file with the weights beside the first.
    written, destination = (unfinished, out) if unfinished.is_dir() else (unfinished.parent, out.parent)
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


def _to_transformers(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    if subject.facts.get("classes"):
        raise RequestError(
            "to is 'hf', and the weights are a classifier; expected a backbone alone: take --to timm, whose directory "
            "transformers' TimmWrapperForImageClassification reads"
        )
    if find_spec("transformers") is None:
        raise RequestError("to is 'hf', which needs transformers: pip install 'fastmim[transformers]'")
    try:
        layout = transformers_layout.layout_of(subject.model, subject.img_size, subject.images.shape[1])
    except transformers_layout.Unsupported as error:
        raise RequestError(
            f"to is 'hf', and the weights are {subject.name}, which transformers lacks ({error}); expected one of "
            f"{transformers_layout.FAMILIES}: take --to timm, which transformers' TimmWrapperModel reads"
        ) from None
    path.mkdir()
    save_tensors(path / "model.safetensors", layout.tensors, {"format": "pt"})
    write_json(path / "config.json", layout.config)
    write_json(
        path / "preprocessor_config.json",
        transformers_layout.preprocessor(subject.img_size, **normalisation(subject.facts)),
    )
    options = "".join(f", {name}={value!r}" for name, value in layout.options.items())
    load = f"transformers.{layout.config['architectures'][0]}.from_pretrained"
    card = model_card(subject.facts, load=f"{load}({path.name!r}{options})", library="transformers")
    (path / "README.md").write_text(card, encoding="utf-8")
    return transformers_layout.reload(path, layout, subject.model), f"{load}({str(path)!r}{options})"


def _to_state_dict(subject: Subject, path: Path) -> tuple[Reloaded, str]:
    save_tensors(path, subject.model.state_dict())
    model = timm.create_model(subject.name, **subject.arguments, checkpoint_path=str(path)).eval()
    return Features(model), _call(subject.name, **subject.arguments, checkpoint_path=str(path))


def _call(name: str, **arguments: Any) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"timm.create_model({name!r}{given})"


_WRITERS: dict[str, Callable[[Subject, Path], tuple[Reloaded, str]]] = {
    "timm": _to_timm,
    "hf": _to_transformers,
    "state-dict": _to_state_dict,
    "onnx": lambda subject, path: to_onnx(subject.graph, path),
    "torch-export": lambda subject, path: to_torch_export(subject.graph, path),
}
