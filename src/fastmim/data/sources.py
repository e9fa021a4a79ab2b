"""Where images come from: one string -> a Source, which gives encoded bytes or pixels by index."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np

from fastmim.config import RequestError
from fastmim.data.files import read_list
from fastmim.data.huggingface import open_huggingface
from fastmim.data.packed import is_packed, open_packed
from fastmim.data.samples import open_samples
from fastmim.data.scan import scan
from fastmim.data.shard_names import name_shards
from fastmim.data.shards import open_shards
from fastmim.data.torchvision_sets import open_torchvision

_ACCEPTED = (
    "a directory of images or a pack of them, .tar shards such as 'shards/{000..127}.tar', a .txt, .csv or .tsv list "
    "of paths, samples, hf://OWNER/NAME, or torchvision://NAME"
)
_LISTS = {".txt", ".csv", ".tsv"}


class Source(Protocol):
    """Images by index. Small when pickled, safe to fork, the same in every process."""

    @property
    def origin(self) -> str:
        """What the user wrote, for messages."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, positions in `classes`; None if the source has none."""

    @property
    def classes(self) -> list[str] | None:
        """The classes' names; None if the source has none."""

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, index: int) -> bytes | np.ndarray:
        """An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            OSError, BadImage: It cannot be read.
        """

    def name(self, index: int) -> str:
        """What to call the image in messages: its path, or "samples/coffee.png#3"."""


def open_source(data: str, *, cache_dir: Path | None = None) -> Source:
    """Open what `--data` names.

    Args:
        data: "samples", "torchvision://NAME?split=test&root=/path", "hf://owner/name?split=test&column=image", a
            directory of images or one that `fastmim pack` made, tar shards ("shards/{000..127}.tar", "shards/*.tar",
            one .tar, or a directory of nothing else), or a .txt, .csv or .tsv list. A directory called samples is
            "./samples".
        cache_dir: For indices of directories and downloads; $XDG_CACHE_HOME/fastmim or ~/.cache/fastmim
            if None.

    Returns:
        A source of at least one image.

    Raises:
        RequestError: There is no such source, or it holds no images.
        RunError: A dataset could not be fetched.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastmim"
    if data == "samples":
        return open_samples()
    scheme, separator, rest = data.partition("://")
    if separator and scheme == "torchvision":
        return open_torchvision(rest, origin=data, cache_dir=cache_dir)
    if separator and scheme == "hf":
        return open_huggingface(rest, origin=data)
    if separator or not data:
        raise RequestError(f"--data {data or repr(data)} is not understood; expected {_ACCEPTED}")
    path = Path(data).expanduser()
    if path.is_dir() and is_packed(path):
        return open_packed(path, origin=data)
    if shards := name_shards(data):
        return open_shards(shards, origin=data, cache_dir=cache_dir)
    if path.is_dir():
        return scan(path, origin=data, cache_dir=cache_dir)
    if path.is_file() and path.suffix.lower() in _LISTS:
        return read_list(path, origin=data)
    if path.exists():
        raise RequestError(f"--data {data} is a file, not a list of images; expected {_ACCEPTED}")
    raise RequestError(f"--data {data}: {_what_is_missing(path)} expected {_ACCEPTED}")


def _what_is_missing(path: Path) -> str:
    parent = path.absolute().parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        near = get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    except OSError:
        near = []
    advice = f"did you mean {parent / near[0]}? Otherwise" if near else ""
    return f"no such file or directory ({parent} holds no {path.name!r}); {advice}".rstrip()


def faster(source: Source) -> str:
    """What to do where the device waits for images of this source."""
    if is_packed(Path(source.origin)):
        return "raise --num-workers, or pack with --codec raw"
    return f"`fastmim pack {source.origin} packed/` once and give --data packed/, or raise --num-workers"
