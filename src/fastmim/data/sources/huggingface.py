"""HuggingFace datasets by name: rows of Arrow tables, whose encoded images go straight to the decoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.sources.source import ByPosition, NoSuchSplit
from fastmim.data.unreadable import BadImage, one_line
from fastmim.errors import RequestError, RunError
from fastmim.system import hub
from fastmim.system.files import expanded, read_regular

OPTIONS = ("split", "column", "label", "config", "revision")
_LABELS = ("label", "labels")
_BINARY = {"binary", "large_binary"}


@dataclass(frozen=True, eq=False)
class Rows(ByPosition):
    """Encoded images in one column of a dataset."""

    dataset: Any
    """That column only, not decoded. Its tables are memory-mapped files, so it is small when pickled."""
    column: str
    folders: tuple[str, ...]
    """Where files that rows name may lie: the dataset's folder, or the caches of the hub."""

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> bytes:
        cell = self.dataset[index][self.column]
        if isinstance(cell, dict):  # {"bytes": ..., "path": ...}, either of which may be missing
            cell = cell["bytes"] or (self._read_file(cell["path"]) if cell["path"] else None)
        if not cell:
            raise BadImage("the row has no image")
        return bytes(cell)

    def _read_file(self, path: str) -> bytes:
        path = os.path.normpath(os.path.join(self.folders[0], path))  # noqa: PTH118 - keeps links
        if not any(path.startswith(folder + os.sep) for folder in self.folders):
            raise BadImage(f"the row names {path}, a file outside of the dataset's folder")
        return read_regular(path)


def open_huggingface(name: str, options: Mapping[str, str], *, origin: str) -> Rows:
    """Open a dataset of the hub or a local one. It is prepared in HuggingFace's own cache.

    Args:
        name: "owner/name", or a folder (./folder, ~/folder, /folder) of Parquet files or other files that
            `datasets` reads without a script, or one that `Dataset.save_to_disk` wrote.
        options: Any of `OPTIONS`. By default the split is train, the column is the only image column, and the
            label is the only class column or one called label.
        origin: The `--data` that the user wrote.

    Raises:
        RequestError: `datasets` is not installed, or the dataset, split or column does not exist, or has no rows.
        NoSuchSplit: The dataset has no such split.
        RunError: The dataset could not be fetched or prepared.
    """
    if not name.strip("/"):
        raise RequestError(f"--data {origin} names no dataset; expected hf://owner/name or hf://./folder")
    dataset = _load(name, options, origin)
    column = _image_column(dataset.features, options.get("column"), origin)
    labels, classes = _labels(dataset, _label_column(dataset.features, options.get("label"), origin), origin)
    undecoded = _undecoded(dataset.select_columns([column]), column)
    return Rows(undecoded, column, _folders(name), origin=origin, labels=labels, classes=classes)


def rows(dataset: Any, *, origin: str) -> Rows:
    """The rows of a dataset that a Python program has loaded; its images may lie anywhere.

    Raises:
        RequestError: it has no image column or several, or a transform of its own, which would not be applied.
    """
    if dataset.format["type"] == "custom":
        raise RequestError(
            f"--data {origin} has a transform, which would not be applied, as images are cropped as they are decoded; "
            f"expected none: dataset.with_format(None)"
        )
    column = _image_column(dataset.features, None, origin)
    labels, classes = _labels(dataset, _label_column(dataset.features, None, origin), origin)
    plain = dataset.with_format(None).select_columns([column])
    return Rows(_undecoded(plain, column), column, ("",), origin=origin, labels=labels, classes=classes)


def _local(name: str) -> Path | None:
    return expanded(name) if name[0] in "./~" else None


def _folders(name: str) -> tuple[str, ...]:
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = _local(name)
    places = [folder, folder.resolve()] if folder else [config.HF_DATASETS_CACHE, HF_HUB_CACHE]
    return tuple(str(Path(place).absolute()).rstrip(os.sep) for place in places)


def _load(name: str, options: Mapping[str, str], origin: str) -> Any:
    """The split as a `datasets.Dataset`."""
    try:  # takes over a second, which other sources are spared
        from datasets import config, load_dataset, load_from_disk
        from huggingface_hub import constants
    except ImportError as error:
        missing = one_line(error)
        raise RequestError(
            f"--data {origin} needs the datasets library ({missing}): pip install 'fastmim[hf]'"
        ) from None
    split = options.get("split", "train")
    folder = _local(name)
    if folder and not folder.is_dir():
        raise RequestError(f"--data {origin}: no such folder: {folder.absolute()}; correct it, or give hf://owner/name")
    if not folder and not hub.reachable():  # what is cached is found at once, and nothing is tried again and again
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    saved = folder and any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            loaded = load_from_disk(str(folder))
        else:
            loaded = load_dataset(
                str(folder or name), options.get("config"), split=split, revision=options.get("revision")
            )
    except (FileNotFoundError, ValueError) as error:  # DatasetNotFoundError is a FileNotFoundError
        kind = NoSuchSplit if "Unknown split" in str(error) else RequestError  # `datasets` raises a plain ValueError
        raise kind(f"--data {origin}: {one_line(error)}; correct the name or its options") from None
    except Exception as error:  # the hub's client and readers of a dozen formats raise anything
        raise RunError(
            f"{origin} could not be fetched: {one_line(error)}; go online, or name a folder of its files as hf://./folder"
        ) from None
    if isinstance(loaded, Mapping):
        if split not in loaded:
            raise NoSuchSplit(f"--data {origin}: no split {split!r}; expected {' or '.join(loaded)}: add ?split=...")
        loaded = loaded[split]
    elif saved and "split" in options and str(loaded.split) != split:
        raise NoSuchSplit(f"--data {origin}: no split {split!r}; the folder holds one table: leave out ?split=...")
    return loaded


def _image_column(features: Mapping[str, Any], given: str | None, origin: str) -> str:
    kinds = {name: _kind(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if given is not None:
        if given not in kinds:
            raise RequestError(f"--data {origin}: no column {given!r}; expected {' or '.join(images or kinds)}")
        if kinds[given] != "Image" and kinds[given] not in _BINARY:
            raise RequestError(f"--data {origin}: the column {given} holds {kinds[given]}; expected images")
        return given
    if len(images) != 1:
        seen = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        count = f"several image columns: {', '.join(images)}" if images else f"no image column among {seen}"
        how = "?column=..." if origin.startswith("hf://") else "dataset.select_columns"
        raise RequestError(f"--data {origin} has {count}; choose the one with encoded images with {how}")
    return images[0]


def _undecoded(dataset: Any, column: str) -> Any:
    from datasets import Image

    if _kind(dataset.features[column]) == "Image":
        return dataset.cast_column(column, Image(decode=False))
    return dataset


def _label_column(features: Mapping[str, Any], given: str | None, origin: str) -> str | None:
    kinds = {name: _kind(feature) for name, feature in features.items()}
    fit = [name for name, kind in kinds.items() if kind in ("ClassLabel", "string") or "int" in kind or kind == "bool"]
    if given is not None:
        if given not in fit:
            what = f"the column {given} holds {kinds[given]}" if given in kinds else f"no column {given!r}"
            raise RequestError(f"--data {origin}: {what}; expected labels, as in {' or '.join(fit) or '(none)'}")
        return given
    classes = [name for name in fit if kinds[name] == "ClassLabel"]
    return classes[0] if len(classes) == 1 else next((name for name in _LABELS if name in fit), None)


def _labels(dataset: Any, column: str | None, origin: str) -> tuple[np.ndarray | None, list[str] | None]:
    """(N,) int64 and the classes; None without labels, which some test splits mark by -1."""
    if column is None:
        return None, None
    values = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    names = getattr(dataset.features[column], "names", None)
    num_missing = values.null_count or (int((values.to_numpy() < 0).sum()) if names else 0)
    if num_missing == len(dataset):
        return None, None
    if num_missing:
        raise RequestError(
            f"--data {origin}: {num_missing:,} of {len(dataset):,} rows have no {column}; expected a label in every "
            f"row or in none: choose another column with ?label=..."
        )
    if names:
        return values.to_numpy().astype(np.int64), list(names)
    distinct, labels = np.unique(values.to_numpy(), return_inverse=True)
    return labels.astype(np.int64), [str(value) for value in distinct.tolist()]


def _kind(feature: Any) -> str:
    """A feature's type: Image, ClassLabel, or Arrow's name for a plain value."""
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind
