"""Recipes: functions that return published settings, which flags and YAML override.

Each docstring opens with the published result (ImageNet-1K top-1 after fine-tuning at 224 pixels, unless it names
another) and its source. We have not repeated these runs. MAE, SimMIM and MaskFeat are settings of the same `MIM`;
SimMIM and MaskFeat originally put their mask token over embedded patches, whereas we paint it over the pixels. What
else differs from the official code is in docs/as-published.md, with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastmim.published.pretraining import RECIPES, Settings
from fastmim.published.transfer import DETECT_RECIPES, FINETUNE_RECIPES, SEGMENT_RECIPES

__all__ = [
    "DETECT_RECIPES",
    "FINETUNE_RECIPES",
    "RECIPES",
    "SEGMENT_RECIPES",
    "Recipe",
    "describe",
    "recipes",
    "result",
]

_COMMANDS: Mapping[str, Mapping[str, Callable[[], Settings]]] = {
    "pretrain": RECIPES,
    "finetune": FINETUNE_RECIPES,
    "segment": SEGMENT_RECIPES,
    "detect": DETECT_RECIPES,
}


class Recipe(NamedTuple):
    """Published settings of a command."""

    command: str
    """The command, and the function of `fastmim`, that takes it as `recipe`."""
    name: str
    settings: Settings
    """What it sets, apart from the defaults."""
    result: str
    """The result as published, and its source."""


def result(recipe: Callable[[], Settings]) -> str:
    """Return the first line of a recipe's docstring: the published result and its source."""
    return (recipe.__doc__ or "").split("\n")[0]


def recipes() -> list[Recipe]:
    """List the recipes of all commands.

    `fastmim.pretrain(recipe="vit-b")` starts from one; settings that are given beside it override its own.

    Example:
        >>> settings = {recipe.name: recipe.settings for recipe in fastmim.recipes() if recipe.command == "pretrain"}
        >>> settings["swin-b"]["batch_size"]
        2048
    """
    return [
        Recipe(command, name, recipe(), result(recipe))
        for command, found in _COMMANDS.items()
        for name, recipe in found.items()
    ]


def describe() -> str:
    """List every recipe with its image size, length and batch, followed by its published result."""
    lines: list[str] = []
    for recipe in recipes():
        if (title := f"fastmim {recipe.command} --recipe") not in lines:
            lines.append(title)
        lines += [f"  {recipe.name:<16}{_summary(recipe)}", f"{'':<18}{recipe.result}"]
    lines.append("Results: as published, ImageNet-1K top-1 unless another is named; we have not repeated these runs.")
    return "\n".join(lines)


def _summary(recipe: Recipe) -> str:
    settings = recipe.settings
    length = f"{settings['steps']:,} steps" if "steps" in settings else f"{settings['epochs']:g} epochs"
    if recipe.name == "adapt":
        return f"the network of --init, {length}"
    network = f"{settings['backbone']}, " if recipe.command == "pretrain" else ""
    sizes = settings.get("stages", settings["img_size"])
    return f"{network}{sizes} px, {length}, batch {settings['batch_size']}"
