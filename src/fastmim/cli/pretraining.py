"""The commands `pretrain`, `recipes`, `backbones` and `visualise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import fastmim
from fastmim import recipes
from fastmim.cli.app import OPTIONS, AsFlags, Options, Switch, app
from fastmim.errors import DONE, RequestError
from fastmim.method.settings import PretrainConfig
from fastmim.system.text import printable


@app.command
def pretrain(settings: Annotated[PretrainConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Pre-train a backbone by masked image modeling. The same command again resumes."""
    return options.call(fastmim.pretrain, settings, "at step {step} of {total_steps}", on_devices=True)


@app.command(name="recipes")
def list_recipes() -> int:
    """List the published recipes with size, epochs, batch, and the result as published."""
    print(recipes.describe())
    return DONE


@app.command
def backbones(
    pattern: str = "*",
    *,
    check: Switch = False,
    max_parameters: float = 150,
    img_size: int = 128,
    out: Path = Path("docs/backbones.md"),
) -> int:
    """List the backbones that can be pre-trained, with stride, width and parameters.

    Parameters
    ----------
    pattern
        Names to list, such as 'swin*'.
    check
        Build each one, train it for six steps in a process of its own (on Linux under glibc's heap checks), and write
        a table of the successes and of the reasons for failures. It can be stopped and resumed.
    max_parameters
        Largest model to list, in millions of parameters.
    img_size
        Image side in pixels.
    out
        Table that --check writes; a .jsonl beside it keeps every outcome, so that a later call skips the successes.
    """
    from fastmim.studies import survey

    if img_size < 1:
        raise RequestError(f"img_size is {img_size}; expected at least 1 pixel, such as 128")
    if check:
        journal = out.with_suffix(".jsonl")
        return survey.check(pattern, max_parameters=max_parameters * 1e6, img_size=img_size, out=out, journal=journal)
    return survey.table(pattern, max_parameters=max_parameters * 1e6, img_size=img_size)


@app.command
def visualise(
    run: Path,
    *,
    images: str | None = None,
    range: str | None = None,
    out: Path = Path("reconstructions.png"),
    num_images: int = 8,
    seed: int = 0,
) -> int:
    """Draw the reconstructions of a pre-training run: image, masked image, target, prediction.

    Parameters
    ----------
    run
        Run directory.
    images
        Images to draw, as --data takes them. [default: the run's own]
    range
        Greys of more than 8 bits that become black and white, as in pretrain. [default: that of the run]
    out
        PNG file to write.
    num_images
        Number of images, spread evenly over the source.
    seed
        Decides the masks.
    """
    from fastmim.method import visualise
    from fastmim.method.loss import describe_explained

    explained = visualise.visualise_run(run, images=images, grey_range=range, out=out, num_images=num_images, seed=seed)
    print(printable(f"wrote {out}: {describe_explained(explained)}"))
    return DONE
