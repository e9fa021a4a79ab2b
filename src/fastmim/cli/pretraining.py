"""The commands `pretrain`, `adapt`, `recipes`, `backbones` and `visualise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import fastmim
from fastmim import published
from fastmim.adaptation.settings import AdaptConfig
from fastmim.cli.app import OPTIONS, AsFlags, Options, Switch, app
from fastmim.errors import DONE, RequestError
from fastmim.method.settings import PretrainConfig
from fastmim.system.text import printable


@app.command
def pretrain(settings: Annotated[PretrainConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Pre-train a backbone by masked image modeling. The same command again resumes."""
    return options.call(fastmim.pretrain, settings, "at step {step} of {total_steps}", on_devices=True)


@app.command
def adapt(settings: Annotated[AdaptConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Adapt a public model to your own images, unlabelled, and say whether it got better.

    `fastmim adapt --init timm:vit_small_patch14_dinov2.lvd142m --data photos/ --probe labelled/` starts from the public
    weights, keeps a frozen copy of them as the teacher, and predicts its features and HOG of hidden blocks. On --probe,
    labelled images, the network is measured before the first step and after the last, and the last lines say: better,
    worse, or no difference that these images can show. A line tells where a licence restricts use. The same command
    again resumes.
    """
    return options.call(fastmim.adapt, settings, "at step {step} of {total_steps}", on_devices=True)


@app.command(name="recipes")
def list_recipes() -> int:
    """List the published recipes with size, epochs, batch, and the result as published."""
    print(published.describe())
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
    if check:
        if img_size < 1:
            raise RequestError(f"img_size is {img_size}; expected at least 1 pixel, such as 128")
        from fastmim.studies import survey

        journal = out.with_suffix(".jsonl")
        return survey.check(pattern, max_parameters=max_parameters * 1e6, img_size=img_size, out=out, journal=journal)
    from fastmim.studies import listing

    listing.print_list(pattern, max_parameters=max_parameters, img_size=img_size)
    return DONE


@app.command
def visualise(
    run: str,
    *,
    what: Literal["reconstruction", "features", "attention", "neighbours"] = "reconstruction",
    images: str | None = None,
    range: str | None = None,
    out: Path | None = None,
    num_images: int = 8,
    patch: tuple[int, int] | None = None,
    seed: int = 0,
) -> int:
    """Draw what a run has learned: its reconstructions, features, attention, or the images that it finds alike.

    Parameters
    ----------
    run
        Run directory; for all but reconstructions also a weights file or a timm model.
    what
        reconstruction: image, masked image, target and prediction of a pre-training run. features: the first three
        principal components of the patch features as colours, fitted across the images. attention: where the class
        token of a ViT looks. neighbours: images, each beside those with the most similar features.
    images
        Images to draw, as --data takes them. [default: the run's own]
    range
        Greys of more than 8 bits that become black and white, as in pretrain. [default: that of the run]
    out
        PNG file to write. [default: reconstructions.png; else in the run's samples/, where `fastmim report` finds it]
    num_images
        Number of images, spread evenly over the source.
    patch
        Row and column of a patch whose attention is drawn, instead of the class token's.
    seed
        Decides the masks of reconstructions.
    """
    from fastmim.method.loss import describe_explained

    found = fastmim.visualise(
        run, what=what, images=images, range=range, out=out, num_images=num_images, patch=patch, seed=seed
    )
    explained = found.explained_variance
    about = "" if explained is None else f": {describe_explained(explained)}"
    print(printable(f"wrote {found.out}{about}"))
    return DONE
