"""Recipes: functions that return published settings, which flags and YAML override.

Each docstring opens with the published result (ImageNet-1K top-1 after fine-tuning at 224 pixels, unless it names
another) and its source. We have not repeated these runs. MAE, SimMIM and MaskFeat are settings of the same `MIM`;
SimMIM and MaskFeat originally put their mask token over embedded patches, whereas we paint it over the pixels. What
else differs from the official code is in docs/as-published.md, with numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from fastmim.published.pretraining import RECIPES, Settings
from fastmim.published.transfer import DETECT_RECIPES, FINETUNE_RECIPES, SEGMENT_RECIPES

__all__ = ["DETECT_RECIPES", "FINETUNE_RECIPES", "RECIPES", "SEGMENT_RECIPES", "Settings", "describe", "result"]


def result(recipe: Callable[[], Settings]) -> str:
    """Return the first line of a recipe's docstring: the published result and its source."""
    return (recipe.__doc__ or "").split("\n")[0]


def describe() -> str:
    """List every recipe with its image size, length and batch, followed by its published result."""
    lines = ["fastmim pretrain --recipe"]
    for name, recipe in RECIPES.items():
        settings = recipe()
        if name == "adapt":
            lines += [f"  {name:<16}the network of --init, {settings['epochs']:g} epochs", f"{'':<18}{result(recipe)}"]
            continue
        sizes = settings.get("stages", settings["img_size"])
        how = f"{settings['backbone']}, {sizes} px, {settings['epochs']:g} epochs, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("fastmim finetune --recipe")
    for name, recipe in FINETUNE_RECIPES.items():
        settings = recipe()
        how = f"{settings['img_size']} px, {settings['epochs']:g} epochs, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("fastmim segment --recipe")
    for name, recipe in SEGMENT_RECIPES.items():
        settings = recipe()
        how = f"{settings['img_size']} px, {settings['steps']:,} steps, batch {settings['batch_size']}"
        lines += [f"  {name:<16}{how}", f"{'':<18}{result(recipe)}"]
    lines.append("fastmim detect --recipe")
    for name, recipe in DETECT_RECIPES.items():
        settings = recipe()
        length = f"{settings['steps']:,} steps" if "steps" in settings else f"{settings['epochs']:g} epochs"
        lines += [
            f"  {name:<16}{settings['img_size']} px, {length}, batch {settings['batch_size']}",
            f"{'':<18}{result(recipe)}",
        ]
    lines.append("Results: as published, ImageNet-1K top-1 unless another is named; we have not repeated these runs.")
    return "\n".join(lines)
