"""Pictures of what a network has learned: reconstructions, features, attention, neighbours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fastmim.config import Dataset
from fastmim.data.sources import objects
from fastmim.errors import RequestError, shown
from fastmim.method.visualise import visualise_run
from fastmim.transfer.features.visualise import visualise_features

What = Literal["reconstruction", "features", "attention", "neighbours"]


@dataclass(frozen=True)
class Picture:
    """A picture that `visualise` wrote; a notebook shows it."""

    out: Path
    explained_variance: float | None = None
    """Of a reconstruction: the share of the hidden blocks' variance that the predictions explain, 1 at best."""

    def _repr_png_(self) -> bytes | None:
        return self.out.read_bytes() if self.out.suffix.lower() == ".png" else None


def visualise(
    run: str | os.PathLike[str],
    *,
    what: What = "reconstruction",
    images: str | os.PathLike[str] | Dataset | None = None,
    range: str | None = None,
    out: str | os.PathLike[str] | None = None,
    num_images: int = 8,
    patch: tuple[int, int] | None = None,
    seed: int = 0,
) -> Picture:
    """Draw what a run has learned: its reconstructions, features, attention, or the images that it finds alike.

    Args:
        run: Run directory; for all but reconstructions also a weights file or a timm model.
        what: "reconstruction": image, masked image, target and prediction of a pre-training run. "features": the first
            three principal components of the patch features as colours, fitted across the images. "attention": where
            the class token of a ViT looks. "neighbours": images, each beside those with the most similar features.
        images: Images to draw, as `data` takes them. [default: the run's own]
        range: Greys of more than 8 bits that become black and white, as in `pretrain`. [default: that of the run]
        out: The picture to write. [default: reconstructions.png; else in the run's samples/, where its report finds it]
        num_images: Number of images, spread evenly over the source.
        patch: Row and column of a patch whose attention is drawn, instead of the class token's.
        seed: Decides the masks of reconstructions.

    Raises:
        RequestError: there are no such weights or images, no class token or patch, or the file cannot be written.
        RunError: none of the images can be read.

    Example:
        >>> picture = fastmim.visualise("runs/photos", images="photos/", out="reconstructions.png")
    """
    if what not in (known := get_args(What)):
        raise RequestError(f"what is {shown(what)}; expected {' or '.join(known)}")
    chosen = objects.text(images, name="images")
    path = None if out is None else Path(out)
    if what != "reconstruction":
        drawn = visualise_features(
            str(run), what=what, images=chosen, grey_range=range, out=path, num_images=num_images, patch=patch
        )
        return Picture(drawn)
    if patch is not None:
        raise RequestError(f"patch is {patch[0]},{patch[1]}, but what is {what}; expected --what attention with it")
    path = path or Path("reconstructions.png")
    explained = visualise_run(Path(run), images=chosen, grey_range=range, out=path, num_images=num_images, seed=seed)
    return Picture(path, explained)
