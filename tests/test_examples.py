"""The example in the docstring of every public object runs."""

from __future__ import annotations

import doctest
import functools
import io
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch

import fastmim
from scenes import SEGMENT, draw_scenes
from shapes import draw_coco

QUICK: dict[str, Any] = {"num_workers": 0, "device": "cpu", "precision": "float32"}
ONE: dict[str, Any] = QUICK | {"steps": 1, "batch_size": 2, "trackers": "none", "report": "never"}
DENSE = ONE | {name: SEGMENT[name] for name in ("img_size", "num_pictures")} | {"channels": 16, "scale": (0.5, 1.5)}
SMALLER: dict[str, dict[str, Any]] = {
    "pretrain": ONE | {"picture_every": "never"},
    "adapt": ONE | {"picture_every": "never", "img_size": 64},
    "finetune": ONE | {"img_size": 64},
    "segment": DENSE,
    "detect": DENSE | {"img_size": 64, "num_regions": 16},
    "probe": QUICK,
    "embed": QUICK,
    "predict": QUICK,
    "pack": {"num_workers": 0},
    "study": {"dry_run": True, "labels": "10%,50%", "set": ("batch_size=8",)},
}
"""Settings beside those of the examples, so that each takes a second."""

FIRST = ("pretrain", "finetune")
"""What the others need."""


def test_every_public_object_has_an_example() -> None:
    assert [name for name in fastmim.__all__ if name != "__version__" and not _examples(name)] == []


def _examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(getattr(fastmim, name).__doc__)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photos: Path, labelled: Path) -> Iterator[Path]:
    """A folder with the images and the checkpoint that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "photos").symlink_to(photos)
    (folder / "labelled").symlink_to(labelled)
    draw_scenes(folder / "scenes")
    draw_coco(folder / "coco")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / "mae_pretrain_vit.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("fastmim.bench.cost.seconds_per_image", lambda *_, **__: (0.01, 64))
        yield folder


def test_examples_run(place: Path) -> None:
    """As written, but with `SMALLER` settings, and from the run instead of published weights."""
    small: dict[str, Any] = {name: getattr(fastmim, name) for name in fastmim.__all__}
    small |= {name: functools.partial(small[name], **settings) for name, settings in SMALLER.items()}
    names = {"fastmim": types.SimpleNamespace(**small), "numpy": numpy, "images": torch.randn(2, 3, 128, 128)}
    for name in sorted(set(small) - {"__version__"}, key=lambda name: (name not in FIRST, name != "pretrain", name)):
        for example in _examples(name):
            source = example.source.replace("timm:vit_tiny_patch16_224", "runs/photos")
            with redirect_stdout(io.StringIO()) as said:
                exec(compile(source, f"the example of {name}", "single"), names)
            assert said.getvalue().endswith(example.want), name
