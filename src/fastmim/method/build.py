"""The MIM of a config, or of a checkpoint, and its start from weights of another run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import torch

from fastmim.backbone import resolve
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.method.joint import Joint
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.method.targets import TARGETS
from fastmim.method.teacher import Teacher
from fastmim.system.text import printable
from fastmim.training import checkpoint, schedule
from fastmim.weights import Opened, decoders, files, load_into, open_weights
from fastmim.weights.metadata import untagged
from fastmim.weights.opening import TIMM

Config = TypeVar("Config", bound=PretrainConfig)


def build_model(config: PretrainConfig, *, resuming: bool = False, teacher: Teacher | None = None) -> MIM:
    """Build the MIM of a config at the first stage's size, after a trial of every other stage's size.

    Args:
        resuming: Load no published weights, because a checkpoint replaces them.
        teacher: Of a target that needs one, from `load_teacher`.

    Raises:
        RequestError: the backbone is unknown or cannot take one of the sizes.
    """
    named = TARGETS | ({"teacher": teacher} if teacher else {})
    parts = [named[name] for name in config.targets()]
    target = parts[0] if len(parts) == 1 else Joint(*parts)
    sizes = [size for size, _ in config.sizes()]
    build = functools.partial(
        MIM,
        config.backbone,
        img_size=sizes[0],
        target=target,
        masking=config.masking,
        mask_ratio=config.mask_ratio,
        masks_per_image=config.masks_per_image,
        block=config.block,
        decoder=config.decoder_size(),
        loss=config.loss,
        encoder_depth=config.encoder_depth,
        pretrained=from_timm(config.init) and not resuming,
        learn_positions=config.init is not None,
        linear_init=config.linear_init,
        backbone_args=config.backbone_args,
    )
    if len(sizes) > 1:  # a size that fails should fail now, not days into the run
        trial = build()
        for size in sizes[1:]:
            trial.set_input_size(size)
        torch.manual_seed(config.seed)  # the trial drew its weights from the same generator
    model = build()
    if config.checkpoint_activations:
        model.backbone.checkpoint_activations()
    return model


def from_timm(init: str | None) -> bool:
    """Whether `init` names published weights of timm, which timm itself loads into its models."""
    return init is not None and (init == "timm" or init.startswith(TIMM))


def with_backbone(config: Config) -> Config:
    """The config with the backbone that its `init` has, if it names no other; with `timm:NAME`, that is NAME.

    Raises:
        RequestError: there are no such weights, or `timm:NAME` has another architecture than `backbone` says.
    """
    init, given = config.init, config.given
    if init in (None, "timm"):
        return config
    if init.startswith(TIMM):
        name = resolve(init.removeprefix("timm:"))
        if "backbone" in given and untagged(resolve(config.backbone)) != untagged(name):
            raise RequestError(
                f"init is {init} with backbone {config.backbone}; expected weights of that architecture: leave out "
                f"--backbone, or take others"
            )
        return type(config)(**given | {"backbone": name})
    if "backbone" in given:
        return config
    found = open_weights(init)
    return type(config)(
        **{"backbone_args": files.own_arguments(found.arguments)} | given | {"backbone": found.architecture}
    )


def open_teacher(config: PretrainConfig) -> Opened | None:
    """Find the weights of a config's teacher; None if its target needs none.

    Raises:
        RequestError: there are no such weights, or target, teacher and init do not belong together.
    """
    name = config.teacher
    if "teacher" not in config.targets():
        if name is not None or config.teacher_size is not None:
            raise RequestError(
                f"teacher is {name} with target {config.target}; expected a target that uses it: add --target teacher "
                f"or --target hog+teacher"
            )
        return None
    if name is None:
        raise RequestError(
            f"target is {config.target}, and teacher is not given; expected a timm model, a run, a weights file or "
            f"init: add --teacher NAME"
        )
    if name == "init":
        if config.init is None:
            raise RequestError(
                "teacher is init, and init is not given; expected the weights that the student starts from: add --init"
            )
        return open_weights(config.init, backbone=config.backbone, backbone_args=config.backbone_args)
    try:
        return open_weights(name, from_checkpoint=True)
    except RequestError as error:
        raise RequestError(f"teacher is {name}: {error}") from None


def load_teacher(config: PretrainConfig, opened: Opened, *, mean: Sequence[float], std: Sequence[float]) -> Teacher:
    """Load the teacher of a config whose target needs one.

    Args:
        opened: From `open_teacher`.
        mean: Normalisation of the student's images, per channel, for pixels in [0, 1].
        std: Likewise.

    Raises:
        RequestError: the network cannot take the size.
        RunError: published weights cannot be loaded.
    """
    return Teacher(opened, img_size=config.teacher_size, error=config.teacher_loss, mean=mean, std=std)


def normalisation(found: checkpoint.Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the images of a checkpoint's run, per channel, for pixels in [0, 1]."""
    return tuple(found.manifest.get("mean", IMAGENET_MEAN)), tuple(found.manifest.get("std", IMAGENET_STD))


def load_checkpointed(config: PretrainConfig, found: checkpoint.Checkpoint) -> MIM:
    """Build the model of a checkpoint, at the image size it was saved at, and load its weights."""
    mean, std = normalisation(found)
    opened = open_teacher(config)
    teacher = load_teacher(config, opened, mean=mean, std=std) if opened else None
    model = build_model(config, resuming=True, teacher=teacher)
    stages = [schedule.Stage(**stage) for stage in found.manifest["stages"]]
    size = schedule.stage_at(stages, found.step - 1).size  # at a stage's boundary, that of the stage before
    if size != model.backbone.img_size:
        model.set_input_size(size)
    checkpoint.load(found, model)
    return model


def start_from(model: MIM, init: str, *, target: str) -> str:
    """Load the backbone of a run or of a weights file, and the decoder and the mask token that belong to it.

    A decoder is taken whole or not at all: if it has other layers than the model's or learned another target, the
    model's own stays as it is.

    Args:
        model: The model to fill.
        init: Run directory or weights file.
        target: The model's target by its name in settings.

    Returns:
        What was taken, and why the rest was not, as one line for the user.

    Raises:
        RequestError: the backbone is another, or a file is damaged.
    """
    load_into(model.backbone, init)
    found = decoders.read(init)
    taken, untrained = ["encoder"], []
    for part, prefix in decoders.PARTS.items():
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
        theirs = {name: tensor for name, tensor in found.tensors.items() if name.startswith(prefix)}
        if not own:  # a model that drops tokens paints no pixels
            continue
        if not theirs:
            why = f"{found.where} has none" if found.tensors else found.where
        elif part == "decoder" and found.targets and target not in found.targets:
            why = f"it has learned {' or '.join(found.targets)}, not {target}"
        else:
            why = files.differences(theirs, own, most=2)
        if why:
            untrained.append(f"{part} untrained ({why})")
        else:
            model.load_state_dict(theirs, strict=False)
            taken.append(part)
    return printable("; ".join([f"{', '.join(taken)} of {init}", *untrained]))
