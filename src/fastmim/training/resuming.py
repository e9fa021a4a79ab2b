"""Whether a checkpoint can be resumed on these images and for this many steps."""

from __future__ import annotations

from collections.abc import Mapping

from fastmim.errors import RequestError
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.plan import Plan
from fastmim.training.settings import TrainConfig

_REMEDY = "give it the same images, another --out, or --overwrite"


def check_images(config: TrainConfig, found: Checkpoint, *, num_images: int, fingerprints: Mapping[str, str]) -> None:
    """Refuse other images than the run began with; they may have moved.

    Args:
        config: The settings of the run.
        found: The checkpoint.
        num_images: Training images.
        fingerprints: Of the images of each setting that names some (`sources.fingerprint`).

    Raises:
        RequestError: there are more or fewer images, or they have other names.
    """
    if (expected := found.manifest["num_images"]) != num_images:
        raise RequestError(
            f"data is {config.data} with {num_images} images; expected the {expected} that the run in {config.out} "
            f"began with: {_REMEDY}"
        )
    before = found.manifest.get("fingerprints", {})
    for setting, now in fingerprints.items():
        if before.get(setting, now) != now:
            raise RequestError(
                f"{setting} is {getattr(config, setting) or config.data}, whose images have other names than those "
                f"that the run in {config.out} began with: {_REMEDY}"
            )


def check_length(config: TrainConfig, found: Checkpoint, *, total_steps: int) -> None:
    """Refuse to end a run earlier than it was begun to, and to train one longer whose image sizes rise.

    Raises:
        RequestError: the length of the run cannot be this.
    """
    stages = found.manifest["stages"]
    before = stages[-1]["stop"]
    expected = "no fewer" if total_steps < before else "as many, since its image sizes rise at shares of its length"
    if total_steps < before or (total_steps > before and len(stages) > 1):
        raise RequestError(
            f"out is {config.out}, a run of {before} steps, not {total_steps}; expected {expected}: take another "
            f"--out, from its weights with --init {config.out}"
        )


def describe_changes(config: TrainConfig, plan: Plan, found: Checkpoint) -> list[str]:
    """Lines for the console about what differs from the run that began: where the images lie, how many steps."""
    lines, step = [], found.step
    if (data := found.manifest["config"].get("data")) != config.data:
        lines.append(f"moved     the images were in {data}; those of now have the same names")
    if (before := found.manifest["stages"][-1]["stop"]) < plan.total_steps:
        lines.append(
            f"longer    {plan.total_steps} steps instead of {before}: from step {step} on, the learning rate follows "
            f"the schedule of {plan.total_steps} (now {plan.learning_rate(step):.2e})"
        )
    return lines
