"""Opening whatever `--weights` names: a run directory, a weights file, a timm model, or an untrained backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastmim.backbone import Backbone, published, published_input, resolve
from fastmim.backbone.architecture import Architecture
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.system.files import exists, is_folder
from fastmim.system.tensor_files import checksum
from fastmim.training import checkpoint, schedule
from fastmim.weights import files, hub, licences
from fastmim.weights.licences import Origin
from fastmim.weights.metadata import crop_pct

TIMM = ("timm:", "hf-hub:timm/")
"""What may stand before the name of a timm model whose published weights are meant."""
_EXPECTED = "a run directory, a weights file, a timm model name, hf-hub:OWNER/NAME, or none (an untrained --backbone)"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Weights that were found and checked, but not yet loaded into a model."""

    kind: Literal["run", "file", "timm", "none"]
    """A pre-training checkpoint, a weights file, timm's published weights, or an untrained backbone."""
    architecture: str
    """timm's name of the model."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model, as the run's config or the file's metadata has them."""
    img_size: int | None = None
    """Side in pixels of the images that the weights were trained on; None if untrained."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0
    """Side of the evaluation crop as a share of an image's shorter side."""
    range: str | None = None
    """That of the greys that they were trained on, as the setting `range` has it; None if unknown."""
    untrained: tuple[str, ...] = ()
    """Names of the blocks that pre-training skipped."""
    origin: str
    """A description for the user."""
    origins: tuple[Origin, ...] = ()
    """The weights' own name, tag and licence, then those of what they learned from; see `weights.licences`."""
    _make: Callable[[int | None], Backbone] = field(repr=False)
    _identify: Callable[[], dict[str, Any]] = field(repr=False)

    def load(self, img_size: int | None = None) -> Backbone:
        """Make the backbone with these weights, resampled to `img_size`; at the size of their training if None.

        An untrained backbone draws its weights from PyTorch's global generator, at timm's default size if None.

        Raises:
            RequestError: the model cannot take the size, or the weights do not fit it.
            RunError: published weights cannot be loaded.
        """
        backbone = self._make(img_size)
        if img_size is not None and img_size != backbone.img_size:
            backbone.set_input_size(img_size)
        return backbone

    def identity(self) -> dict[str, Any]:
        """Facts (JSON types) that two weights share exactly if they are the same."""
        return {"architecture": self.architecture} | self._identify()


def open_weights(
    name: str | None,
    *,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    from_checkpoint: bool = False,
) -> Opened:
    """Find weights by name and check that they are the expected ones.

    Args:
        name: A run directory, a weights file, a timm model's name (its published weights; with or without "timm:"
            before it), "timm" (those of `backbone`), a repository of the Hub (hf-hub:OWNER/NAME), or "none".
        backbone: The architecture: required with "timm" and "none", otherwise the expected one, if any.
        backbone_args: Its arguments likewise.
        from_checkpoint: Open a pre-training run, finished or not, at its newest checkpoint, which holds the weights
            as they were trained; its weights file may hold them resampled.

    Raises:
        RequestError: there are no such weights, or they are of another architecture or have other arguments.
    """
    if name is None:
        raise RequestError(f"weights are not given; expected {_EXPECTED}: --weights runs/pretrain")
    if name == "none":
        return _untrained(backbone, dict(backbone_args or {}))
    if name == "timm" and backbone:
        return _published(resolve(backbone), dict(backbone_args or {}))
    if name.startswith(TIMM):
        return _published(resolve(name.removeprefix("timm:")), dict(backbone_args or {}))
    opened = _find(name, from_checkpoint)
    found = {"architecture": opened.architecture, "arguments": opened.arguments}
    files.check(found, backbone=backbone, backbone_args=backbone_args or None)
    return opened


def _find(name: str, from_checkpoint: bool) -> Opened:
    path = Path(name)
    if from_checkpoint and is_folder(path):
        saved = checkpoint.newest(path / "checkpoints")
        if saved and "target" in saved.manifest["config"]:  # not a fine-tuning run
            return _of_run(name, saved)
    if exists(path):
        return _of_file(name)
    try:
        return _published(resolve(name), {})
    except RequestError as error:
        if hub.holds(name):
            return _of_file(name)
        raise RequestError(f"weights is {name!r}; expected {_EXPECTED} ({error})") from None


def _untrained(backbone: str | None, arguments: dict[str, Any]) -> Opened:
    if backbone is None:
        raise RequestError("weights is none, but no backbone is given; expected its name: --backbone NAME")
    name = resolve(backbone)
    return Opened(
        kind="none",
        architecture=name,
        arguments=arguments,
        origin="nothing: an untrained network",
        _make=lambda size: Backbone(name, img_size=size or published_input(name)[0], args=arguments),
        _identify=lambda: {"untrained": True},
    )


def _published(name: str, arguments: dict[str, Any]) -> Opened:
    size, mean, std, crop_pct = published_input(name)
    return Opened(
        kind="timm",
        architecture=name,
        arguments=arguments,
        img_size=size,
        mean=mean,
        std=std,
        crop_pct=crop_pct,
        origin=f"timm's weights of {name}",
        origins=licences.published(*published.origin(name)),
        _make=lambda wanted: Backbone(name, img_size=wanted or size, pretrained=True, args=arguments),
        _identify=lambda: {"published": True},
    )


def _of_run(source: str, saved: checkpoint.Checkpoint) -> Opened:
    config = saved.manifest["config"]
    name, arguments, depth = config["backbone"], config.get("backbone_args", {}), config.get("encoder_depth", 1.0)
    stages = [schedule.Stage(**stage) for stage in saved.manifest["stages"]]
    size = schedule.stage_at(stages, saved.step - 1).size

    def make(_: int | None) -> Backbone:
        # Resized from the first stage's size, as in training: windows given as an argument are for that size.
        backbone = Backbone(name, img_size=stages[0].size, encoder_depth=depth, args=arguments)
        if size != stages[0].size:
            backbone.set_input_size(size)
        backbone.model.load_state_dict(files.read_checkpoint(saved))
        return backbone

    skipped = Architecture(resolve(name), arguments).fit(stages[0].size, depth).skipped if depth < 1 else ()
    return Opened(
        kind="run",
        architecture=name,
        arguments=arguments,
        img_size=size,
        range=config.get("range"),
        untrained=skipped,
        mean=tuple(saved.manifest.get("mean", IMAGENET_MEAN)),
        std=tuple(saved.manifest.get("std", IMAGENET_STD)),
        origin=f"{source} at step {saved.step}: {name} trained at {size} px",
        origins=_own(source, saved.manifest),
        _make=make,
        _identify=lambda: {"step": saved.step, "crc32": saved.manifest["files"]["model.safetensors"]["crc32"]},
    )


def _of_file(source: str) -> Opened:
    tensors, facts = files.read(source)
    name, size, num_blocks, num_trained = (
        facts[key] for key in ("architecture", "img_size", "num_blocks", "trained_blocks")
    )

    def make(_: int | None) -> Backbone:
        architecture = files.architecture_of(facts)
        backbone = Backbone(
            name,
            img_size=size,
            in_chans=architecture.in_chans,
            encoder_depth=num_trained / num_blocks if num_blocks else 1.0,
            args=architecture.args,
        )
        files.fill(backbone, source, tensors, facts)
        return backbone

    trained = f", {num_trained} of {num_blocks} blocks trained" if facts["untrained"] else ""
    return Opened(
        kind="file",
        architecture=name,
        arguments=facts["arguments"],
        img_size=size,
        mean=tuple(facts.get("mean") or IMAGENET_MEAN),
        std=tuple(facts.get("std") or IMAGENET_STD),
        crop_pct=crop_pct(facts),
        range=facts.get("range"),
        untrained=tuple(facts["untrained"]),
        origin=f"{source}: {name} trained at {size} px{trained}",
        origins=_own(source, facts),
        _make=make,
        _identify=lambda: {"step": facts.get("steps"), "crc32": checksum(tensors)},
    )


def _own(source: str, facts: Mapping[str, Any]) -> tuple[Origin, ...]:
    """The origins of weights of one's own, or of somebody's on the Hub."""
    licence = facts["licence"] if hub.holds(source) else None
    return ({"name": source, "tag": None, "licence": licence}, *facts.get("learned_from", ()))
