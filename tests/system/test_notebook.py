"""Progress and pictures in the output of a notebook's cell."""

from __future__ import annotations

import base64
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import fastmim
from conftest import SMALL


class Handle:
    """What IPython's `display` returns: a place whose content can be replaced."""

    def __init__(self, content: dict[str, str]) -> None:
        self.contents = [content]

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.contents.append(content)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """A kernel: an `IPython` with the two functions that are called, and the places in its output."""
    places: list[Handle] = []

    def display(content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        places.append(Handle(content))
        return places[-1]

    shell = types.SimpleNamespace(kernel="a kernel")
    kernel: Any = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    return places


def test_a_notebook_shows_progress_and_the_last_picture_in_place(
    shown: list[Handle], photos: Path, tmp_path: Path
) -> None:
    fastmim.pretrain(data=photos, out=tmp_path, **SMALL | {"steps": 4, "picture_every": "50%"})
    [lines] = [place.contents for place in shown if "image/png" not in place.contents[0]]
    [pictures] = [place.contents for place in shown if "image/png" in place.contents[0]]
    assert lines[-1]["text/plain"].startswith("step 4/4  epoch ")
    assert len(pictures) == 2
    last = (tmp_path / "samples/step_000000004.png").read_bytes()
    assert base64.b64decode(pictures[-1]["image/png"]) == last


def test_a_prompt_is_no_notebook(shown: list[Handle], photos: Path, tmp_path: Path) -> None:
    sys.modules["IPython"].get_ipython = lambda: object()  # type: ignore[attr-defined]
    fastmim.pretrain(data=photos, out=tmp_path, **SMALL | {"steps": 2, "picture_every": "100%"})
    assert not shown
