"""Backbone weights as files that timm loads, which say what they are and refuse to be loaded as something else."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import get_model_input_config
from torch import Tensor, nn

from fastmim.backbone import Backbone, resolve
from fastmim.backbone.architecture import Source
from fastmim.errors import RequestError
from fastmim.training import checkpoint

FORMAT = "fastmim-weights-1"
FILE = "weights.safetensors"
_TEXTS = ("format", "fastmim", "architecture")
_SET = {"img_size", "num_classes", "in_chans"}  # timm arguments that fastmim sets and nobody asks a backbone for
_FOLLOWING = {"window_size", "global_pool", "fc_norm"}  # those that follow from the image size or the classifier
_IN_CHECKPOINT = "backbone.model."  # how a checkpoint of a pre-training run calls the timm model


def save(path: Path, backbone: Backbone, *, about: Mapping[str, Any], as_is: bool = False) -> None:
    """Write a backbone as `timm.create_model(architecture, **arguments, checkpoint_path=path)` loads it strictly.

    Position embeddings and windows are resampled by timm to the size that this call builds. The classifier,
    which pre-training does not have, is there as zeros.

    Args:
        about: More facts for the metadata (JSON types): recipe, data, steps, mean, std.
        as_is: Resample nothing; the arguments then hold the present size, and there is no classifier.
    """
    facts = {
        "architecture": backbone.name,
        "arguments": backbone.arguments(as_is=as_is),
        "img_size": backbone.img_size,
        "num_blocks": backbone.num_blocks,
        "trained_blocks": backbone.trained_blocks,
        "untrained": list(backbone.untrained_blocks),
    }
    write(path, backbone.native_state_dict(as_is=as_is), facts | dict(about))


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with the metadata of a weights file; the file appears whole or not at all.

    Args:
        facts: "architecture", "arguments", "img_size", "num_blocks", "trained_blocks", "untrained" and whatever
            else is known (JSON types).
    """
    facts = {**facts, "format": FORMAT, "fastmim": version("fastmim")}
    # safetensors metadata holds strings only: text as it is, everything else as JSON.
    metadata = {key: value if key in _TEXTS else json.dumps(value) for key, value in facts.items()}
    partial = path.with_suffix(".tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        share(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def share(file: Path) -> None:
    """Give a file the permissions that new files have here: safetensors makes its files private."""
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def read(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a weights file, or of a run directory's.

    Raises:
        RequestError: no such file, not safetensors or cut short, or not written by fastmim.
    """
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise RequestError(
            f"weights is {source}; expected a fastmim weights file or a finished run directory with {FILE}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"weights is {path}, which is damaged or not safetensors ({error}); expected a file written by fastmim: "
            f"export it again, or bring a foreign checkpoint in with `fastmim convert`"
        ) from None
    if metadata.get("format") != FORMAT:
        raise RequestError(
            f"weights is {path} of format {metadata.get('format')!r}; expected {FORMAT!r}, as written by fastmim: "
            f"bring a foreign checkpoint in with `fastmim convert`"
        )
    return tensors, {k: v if k in _TEXTS else json.loads(v) for k, v in metadata.items()}


def load_backbone(
    source: str | Path,
    *,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    img_size: int | None = None,
) -> nn.Module:
    """A run's backbone as a plain timm model without a classifier.

    A weights file of a plain architecture holds position embeddings and windows as timm resampled them to the
    architecture's own size. At the size that a run was trained at, a run directory gives them as they were
    trained, from its last checkpoint; a weights file alone gives them resampled twice.

    Args:
        source: Run directory or weights file.
        backbone: The architecture that is expected; anything else is refused.
        backbone_args: The arguments that are expected (depth, heads and so on); anything else is refused.
        img_size: Resample position embeddings and windows to this size in pixels; as in the file if None.

    Raises:
        RequestError: the file does not hold what was expected, with what differs; or the model cannot take the size.
    """
    tensors, facts = read(source)
    check(facts, backbone=backbone, backbone_args=backbone_args)
    return build(source, tensors, facts, img_size=img_size)


def build(
    source: str | Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    img_size: int | None = None,
    classifier: bool = False,
) -> nn.Module:
    """The timm model of weights that have been read; see `load_backbone`.

    Args:
        source: Where they were read from.
        tensors: As `read` gives them.
        facts: As `read` gives them.
        img_size: As in `load_backbone`.
        classifier: Keep the classifier of fine-tuned weights.

    Raises:
        RequestError: the model cannot take the size.
    """
    headless = {} if classifier else {"num_classes": 0}
    model = timm.create_model(facts["architecture"], **(facts["arguments"] | headless))
    own = model.state_dict()
    # What the file has beyond the model is the classifier; anything missing is an error.
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})
    present = made_for(model, facts)
    if img_size in (None, present):
        return model
    maker = source_of(facts)
    if not maker.takes(img_size) or (classifier and maker.sizing == "argument"):
        raise RequestError(
            f"img_size is {img_size}, which {maker.name} cannot take; expected a multiple of its stride or patch: "
            f"take another size, such as {present}"
        )
    resized = maker.resize(model, present, img_size)
    if img_size == facts["img_size"] and Path(source).is_dir() and not classifier:
        _restore(resized, Path(source), tensors, facts)
    return resized


def _restore(model: nn.Module, run: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Undo the resampling of a weights file with the run's last checkpoint, where anything was resampled."""
    if all(tensors[name].shape == tensor.shape for name, tensor in model.state_dict().items()):
        return
    last = checkpoint.newest(run / "checkpoints")
    if last is None or last.step != facts.get("steps"):
        warnings.warn(
            f"{run} has no checkpoint of step {facts.get('steps')}: position embeddings and windows for "
            f"{facts['img_size']} px are resampled from {run / FILE} and differ a little from those trained",
            stacklevel=3,
        )
        return
    trained = load_file(last.path / "model.safetensors")
    prefix = _IN_CHECKPOINT
    model.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})


def load_into(backbone: Backbone, source: str | Path) -> None:
    """Take weights, resampled to the backbone's size.

    Raises:
        RequestError: they are not those of this architecture with these arguments.
    """
    model = load_backbone(source, backbone=backbone.name, backbone_args=backbone.args, img_size=backbone.input_size)
    try:
        backbone.model.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise RequestError(
            f"weights is {source}, which does not fit {backbone.name} with {backbone.args or 'no arguments'}: "
            f"{' '.join(str(error).split())[:200]}; take other weights, or the arguments they were trained with"
        ) from None


def check(facts: Mapping[str, Any], *, backbone: str | None, backbone_args: Mapping[str, Any] | None) -> None:
    """Refuse weights of another architecture, even one whose tensors have the same shapes.

    A pretrained tag ("vit_base_patch16_224.mae") says where values came from and is not compared. What follows
    from the image size or the classifier (windows, pooling) is not either: it is brought to what is needed.

    Raises:
        RequestError: naming each difference.
    """
    wrong = []
    if backbone is not None and _architecture(resolve(backbone)) != _architecture(facts["architecture"]):
        wrong.append(f"backbone {facts['architecture']}, not {backbone}")
    if backbone_args is not None:
        # As the file has them: tuples are lists there.
        given: dict[str, Any] = json.loads(json.dumps(dict(backbone_args)))
        stored, asked = (
            {key: value for key, value in arguments.items() if key not in _SET | _FOLLOWING}
            for arguments in (facts["arguments"], given)
        )
        for key in sorted(stored.keys() | asked.keys()):
            if stored.get(key) != asked.get(key):
                wrong.append(f"{key} {stored.get(key, 'by default')}, not {asked.get(key, 'by default')}")
    if wrong:
        raise RequestError(f"the weights hold {'; '.join(wrong)}: load them as what they are, or take other weights")


def source_of(facts: Mapping[str, Any]) -> Source:
    """How timm makes the model that a weights file is for."""
    arguments = facts["arguments"]
    further = {key: value for key, value in arguments.items() if key not in _SET}
    return Source(facts["architecture"], further, arguments.get("in_chans", 3))


def made_for(model: nn.Module, facts: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a weights file's model takes as it is; timm's own where any size will do."""
    stored = facts["arguments"].get("img_size", get_model_input_config(model)["input_size"][-2:])
    return stored if isinstance(stored, int) else int(stored[0])


def _architecture(name: str) -> str:
    return name.partition(".")[0]
