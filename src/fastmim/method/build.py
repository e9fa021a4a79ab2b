"""The MIM of a config, or of a checkpoint, and its start from weights of another run."""

from __future__ import annotations

import functools

import torch

from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.method.targets import TARGETS
from fastmim.system.text import printable
from fastmim.training import checkpoint, schedule
from fastmim.weights import decoders, files, load_into


def build_model(config: PretrainConfig, *, resuming: bool = False) -> MIM:
    """Build the MIM of a config at the first stage's size, after a trial of every other stage's size.

    Args:
        resuming: Load no published weights, because a checkpoint replaces them.

    Raises:
        RequestError: the backbone is unknown or cannot take one of the sizes.
    """
    sizes = [size for size, _ in config.sizes()]
    build = functools.partial(
        MIM,
        config.backbone,
        img_size=sizes[0],
        target=TARGETS[config.target],
        masking=config.masking,
        mask_ratio=config.mask_ratio,
        block=config.block,
        decoder=config.decoder_size(),
        loss=config.loss,
        encoder_depth=config.encoder_depth,
        pretrained=config.init == "timm" and not resuming,
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


def load_checkpointed(config: PretrainConfig, found: checkpoint.Checkpoint) -> MIM:
    """Build the model of a checkpoint, at the image size it was saved at, and load its weights."""
    model = build_model(config, resuming=True)
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
