"""Weights files: safetensors that timm loads, whose metadata names their architecture, arguments and image size."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import get_model_input_config
from torch import Tensor, nn

from fastmim.backbone import Backbone, resolve
from fastmim.backbone.architecture import Architecture
from fastmim.errors import RequestError, first_line, listed, shown
from fastmim.system.files import exists, is_folder, replacing
from fastmim.system.tensor_files import save_tensors
from fastmim.training import checkpoint
from fastmim.weights import hub, metadata

FORMAT = "fastmim-weights-1"
FILE = "weights.safetensors"
_SET = {"img_size", "num_classes", "in_chans"}  # timm arguments that fastmim sets itself
_DERIVED = {"window_size", "global_pool", "fc_norm"}  # timm arguments that follow from the image size or the classifier
_PREFIX = "backbone.model."  # of the timm model's tensors in a pre-training checkpoint


def save(path: Path, backbone: Backbone, *, about: Mapping[str, Any], as_is: bool = False) -> None:
    """Write a backbone so that `timm.create_model(architecture, **arguments, checkpoint_path=path)` loads it strictly.

    Position embeddings and windows are resampled to the size of the model that this call makes. The classifier,
    which pre-training lacks, is filled with zeros.

    Args:
        about: More facts for the metadata (JSON types): recipe, data, steps, mean, std.
        as_is: Do not resample; the arguments then include the present size, and the classifier is omitted.
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

    Raises:
        OSError: the file cannot be written.
    """
    facts = {**facts, "format": FORMAT, "fastmim": version("fastmim")}
    # safetensors metadata holds strings only: text as it is, everything else as JSON.
    described = {key: value if key in metadata.TEXTS else json.dumps(value) for key, value in facts.items()}
    with replacing(path) as partial:
        save_tensors(partial, tensors, described)


def read(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a weights file, of a run directory's, or of a repository of the Hub.

    Raises:
        RequestError: no such file, not safetensors, truncated, or not written by fastmim; or it holds other tensors
            than its metadata says.
    """
    if hub.holds(source):
        return hub.read(str(source))
    path = Path(source)
    path = path / FILE if is_folder(path) else path
    if not (exists(path) and path.is_file()):
        raise RequestError(
            f"weights is {shown(str(source))}; expected a fastmim weights file or a finished run directory with {FILE}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise RequestError(
            f"weights is {path}, which is damaged or not safetensors ({first_line(error)}); expected a file written by "
            f"fastmim: export it again, or bring a foreign checkpoint in with `fastmim convert`"
        ) from None
    if described.get("format") != FORMAT:
        raise RequestError(
            f"weights is {path} of format {shown(described.get('format'))}; expected {FORMAT!r}, as written by "
            f"fastmim: bring a foreign checkpoint in with `fastmim convert`"
        )
    return tensors, metadata.decode(path, described, tensors)


def load_backbone(
    source: str | Path,
    *,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    img_size: int | None = None,
) -> nn.Module:
    """Load a run's backbone as a plain timm model without a classifier, in evaluation mode.

    A weights file of a plain architecture holds position embeddings and windows resampled to the architecture's
    default size. At the size of the training, a run directory gives them as they were trained, from its last
    checkpoint; a weights file alone gives them resampled twice.

    Args:
        source: Run directory or weights file.
        backbone: The expected architecture; any other is refused.
        backbone_args: The expected arguments (depth, heads and so on); any others are refused.
        img_size: Resample position embeddings and windows to this size in pixels; as in the file if None.

    Raises:
        RequestError: the file holds another architecture or arguments (it names them), or the model cannot take the
            size.

    Example:
        >>> backbone = fastmim.load_backbone("runs/photos", img_size=128)
        >>> backbone(images).shape  # images: (B, 3, 128, 128), normalised
        torch.Size([2, 192])
    """
    tensors, facts = read(source)
    check(facts, backbone=backbone, backbone_args=backbone_args)
    return build(source, tensors, facts, img_size=img_size).eval()


def build(
    source: str | Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    img_size: int | None = None,
    classifier: bool = False,
) -> nn.Module:
    """Make the timm model of weights that `read` returned; see `load_backbone`.

    Args:
        source: The path they were read from.
        tensors: The weights.
        facts: Their metadata.
        img_size: As in `load_backbone`.
        classifier: Keep the classifier of fine-tuned weights.

    Raises:
        RequestError: the model cannot take the size.
    """
    headless = {} if classifier else {"num_classes": 0}
    try:
        model = timm.create_model(facts["architecture"], **(facts["arguments"] | headless), pretrained=False)
        own = model.state_dict()
        # Further tensors in the file are the classifier; a missing tensor is an error.
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})
    except Exception as error:  # timm refuses arguments in every way there is
        raise RequestError(
            f"weights is {source}, which does not hold the {facts['architecture']} that it says ({first_line(error)}); "
            f"expected a file written by fastmim"
        ) from error
    present = input_size(model, facts)
    if img_size in (None, present):
        return model
    architecture = architecture_of(facts)
    if not architecture.takes(img_size) or (classifier and architecture.sizing == "argument"):
        raise RequestError(
            f"img_size is {img_size}, which {architecture.name} cannot take; expected a multiple of its stride or "
            f"patch: take another size, such as {present}"
        )
    resized = architecture.resize(model, present, img_size)
    if img_size == facts["img_size"] and Path(source).is_dir() and not classifier:
        _restore(resized, Path(source), tensors, facts)
    return resized


def _restore(model: nn.Module, run: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace resampled tensors by those of the run's last checkpoint."""
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
    model.load_state_dict(read_checkpoint(last))


def read_checkpoint(saved: checkpoint.Checkpoint) -> dict[str, Tensor]:
    """The backbone's tensors in a pre-training checkpoint, under timm's names."""
    tensors = load_file(saved.path / "model.safetensors")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}


def load_into(backbone: Backbone, source: str | Path) -> None:
    """Load a run directory's or a weights file's weights into a backbone, resampled to its size.

    Raises:
        RequestError: they are of another architecture or have other arguments.
    """
    fill(backbone, source, *read(source))


def fill(backbone: Backbone, source: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """`load_into` for weights that `read` returned."""
    check(facts, backbone=backbone.name, backbone_args=backbone.args)
    model = build(source, tensors, facts, img_size=backbone.input_size)
    state = model.state_dict()
    for name in backbone.model.state_dict().keys() - state.keys():  # a fine-tuned ViT's only norm is its classifier's
        if f"fc_{name}" in state:
            state[name] = state.pop(f"fc_{name}")
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:
        raise RequestError(
            f"weights is {source}, which does not fit {backbone.name} with {backbone.args or 'no arguments'}: "
            f"{' '.join(str(error).split())[:200]}; take other weights, or the arguments they were trained with"
        ) from None
    backbone.learn_positions()


def check(facts: Mapping[str, Any], *, backbone: str | None, backbone_args: Mapping[str, Any] | None) -> None:
    """Refuse weights of another architecture, even if its tensors have the same shapes.

    The pretrained tag ("vit_base_patch16_224.mae") is not compared: it names the origin of the values. Nor are
    arguments that follow from the image size or the classifier (windows, pooling): they are adapted on loading.

    Raises:
        RequestError: something differs; the message names each difference.
    """
    wrong = []
    if backbone is not None and metadata.untagged(resolve(backbone)) != metadata.untagged(facts["architecture"]):
        wrong.append(f"backbone {facts['architecture']}, not {backbone}")
    if backbone_args is not None:
        # As in the file: tuples become lists.
        given: dict[str, Any] = json.loads(json.dumps(dict(backbone_args)))
        stored, asked = (
            {key: value for key, value in arguments.items() if key not in _SET | _DERIVED}
            for arguments in (facts["arguments"], given)
        )
        for key in sorted(stored.keys() | asked.keys()):
            if stored.get(key) != asked.get(key):
                wrong.append(f"{key} {stored.get(key, 'by default')}, not {asked.get(key, 'by default')}")
    if wrong:
        raise RequestError(f"the weights hold {'; '.join(wrong)}: load them as what they are, or take other weights")


def own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an architecture, without those that follow from the image size or the classifier."""
    return {key: value for key, value in arguments.items() if key not in _SET | _DERIVED}


def architecture_of(facts: Mapping[str, Any]) -> Architecture:
    """The architecture that a weights file's metadata describes."""
    arguments = facts["arguments"]
    further = {key: value for key, value in arguments.items() if key not in _SET}
    return Architecture(facts["architecture"], further, arguments.get("in_chans", 3))


def input_size(model: nn.Module, facts: Mapping[str, Any]) -> int:
    """Side in pixels of the images for a weights file's model; timm's default for models that take any size."""
    stored = facts["arguments"].get("img_size", get_model_input_config(model)["input_size"][-2:])
    return stored if isinstance(stored, int) else int(stored[0])


def validated_size(model: nn.Module, facts: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a fine-tuned classifier saw in its validation.

    The nearest that the model takes if it does not take those: fine-tuning resamples them.
    """
    if "img_size" in facts["arguments"]:
        return input_size(model, facts)
    return architecture_of(facts).nearest(facts["img_size"]).size


def differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, most: int = 8) -> str:
    """How names and shapes of tensors differ from the expected ones, in words; empty if they do not.

    Args:
        most: The number of names to list of each kind.
    """
    unknown = [name for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return "; ".join(
        f"{what} {listed(names, most)}"
        for what, names in (("unknown keys", unknown), ("missing keys", missing), ("other shapes", shapes))
        if names
    )
