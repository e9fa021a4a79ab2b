"""Labelled images for training and validation, found apart or split by a hash of their keys."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmim.data.greys import Decoding
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.objects import with_labels
from fastmim.data.sources.source import NoSuchSplit
from fastmim.errors import RequestError
from fastmim.system.files import expanded, is_folder

TRAIN_FOLDER = "train"
_ENOUGH = 4  # images of a class, so that one of them is held out whatever the share
VAL_NAMES = ("val", "validation", "valid", "test")
"""Validation folders beside `train/` and validation splits of datasets; the first that exists is used."""

_USUAL = ImageConfig()
_WITH_SPLITS = ("torchvision://", "hf://")
_EXPECTED = (
    "class folders (data/cat/1.jpg), train/ and val/ with class folders, a list with a label in each row, "
    "or torchvision://NAME"
)


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a source, with labels in a list of classes of its own."""

    origin: str
    source: Source
    indices: np.ndarray
    """(N,) int64, positions in `source`."""
    labels: np.ndarray
    """(N,) int64, positions in `classes`."""
    classes: list[str]

    @property
    def root(self) -> str | None:
        return self.source.root

    @property
    def decoding(self) -> Decoding:
        return self.source.decoding

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.source.remarks

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def key(self, index: int) -> bytes:
        return self.source.key(int(self.indices[index]))

    def position(self, index: int) -> int:
        return self.source.position(int(self.indices[index]))


@dataclass(frozen=True)
class Labelled:
    """Training and validation images. The labels of both are positions in `classes`."""

    train: Source
    val: Source
    classes: list[str]
    """The classes of `train`; `val` may lack some."""
    held_out: bool
    """Whether `val` was split off from `data` rather than found apart."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of both; the range is the same."""
        more = [line for line in self.val.remarks if not line.startswith("range")]
        return tuple(dict.fromkeys([*self.train.remarks, *more]))


def open_labelled(
    data: str,
    config: ImageConfig = _USUAL,
    *,
    inherited: str | None = None,
    val_data: str | None = None,
    val_share: float = 0.1,
) -> Labelled:
    """Open labelled images.

    Validation images are `val_data` if given; else, for a directory, `val/`, `validation/`, `valid/` or `test/`
    beside its `train/`; for a torchvision or HuggingFace dataset named without a split, its first split of these
    names that has labels; else a share of the images of each class, rounded to whole images but at least one of four,
    chosen by a hash of their path within the directory (or of their position). That split is the same in every run and
    on every machine; images that are added to a class move few others of it between the parts, and none of other
    classes. A class always keeps an image for training. A folder called `train` is an ordinary class if it has sibling
    folders and none of them has one of those names.

    Args:
        data: Anything that `open_source` takes and that has labels.
        config: How images are decoded; a range that is measured is measured over the training images.
        inherited: The range of the weights that the images are for; see `sampling.decoded_as`.
        val_data: The same, for validation; its classes are matched by name.
        val_share: Share of the images to hold out for validation if none are found, between 0 and 1.

    Raises:
        RequestError: There are no labels, only one class, labels out of range, validation images of a class that
            training lacks, or no images left for validation.
    """
    if not 0 < val_share < 1:
        raise RequestError(f"val_share is {val_share:g}; expected more than 0 and less than 1, such as 0.1")
    train = with_labels(open_source(_training_part(data), config, inherited=inherited))
    config = ImageConfig(range=train.decoding.range, max_pixels=config.max_pixels)
    if val_data is not None:
        val: Source | None = with_labels(open_source(val_data, config))
    else:
        val = _val_split(data, config) if data.startswith(_WITH_SPLITS) else _val_folder(data, config)
    labels, classes = _check(train)
    if val is not None:
        return Labelled(train, _match(val, train, classes), classes, held_out=False)
    is_val = _choose(train, labels, val_share)
    if not is_val.any():
        raise RequestError(
            f"--val-share {val_share:g} of the {len(train)} images in {data} leaves none to validate on; "
            f"raise it, or name others with --val-data"
        )

    def part(name: str, chosen: np.ndarray) -> Subset:
        indices = np.flatnonzero(chosen)
        return Subset(f"{data} ({name} part)", train, indices, labels[indices], classes)

    return Labelled(part("training", ~is_val), part("validation", is_val), classes, held_out=True)


def limit_labels(source: Source, num_labels: int, *, seed: int = 0) -> Subset:
    """Take `num_labels` images, equally many of each class, for experiments with few labels.

    Classes with fewer images give all of them, and the others make up the difference. (seed, path) decides which
    images are taken, so a smaller number with the same seed takes a subset of a larger one.

    Raises:
        RequestError: There are fewer labels than classes, or more than images.
    """
    labels, classes = _labels(source), source.classes or []
    if not len(np.unique(labels)) <= num_labels <= len(labels):
        raise RequestError(
            f"--num-labels {num_labels}; expected at least one for each of the {len(np.unique(labels))} classes, "
            f"and at most the {len(labels)} training images of {source.origin}"
        )
    hashes = _hashes(source, salt=f"labels {seed}")
    by_class = np.lexsort((hashes, labels))
    starts = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty_like(labels)  # position of an image among those of its class
    rank[by_class] = np.arange(len(labels)) - starts
    indices = np.sort(np.lexsort((hashes, rank))[:num_labels])
    return Subset(f"{source.origin} ({num_labels} labels)", source, indices, labels[indices], classes)


def _training_part(data: str) -> str:
    """The directory's `train/`, if that holds the training images; else the directory."""
    root = expanded(data)
    if not is_folder(root / TRAIN_FOLDER):
        return data
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return str(Path(data) / TRAIN_FOLDER) if len(folders) == 1 or folders & set(VAL_NAMES) else data


def _val_folder(data: str, config: ImageConfig) -> Source | None:
    if _training_part(data) == data:
        return None
    found = [name for name in VAL_NAMES if is_folder(expanded(data) / name)]
    return open_source(str(Path(data) / found[0]), config) if found else None


def _val_split(data: str, config: ImageConfig) -> Source | None:
    """The validation split; None if the user named a split, or no split of these names has labels."""
    if "split=" in data:
        return None
    for name in VAL_NAMES:
        try:
            val = open_source(f"{data}{'&' if '?' in data else '?'}split={name}", config)
        except NoSuchSplit:
            continue
        if val.labels is not None:  # some datasets do not publish their test labels
            return val
    return None


def _check(source: Source) -> tuple[np.ndarray, list[str]]:
    """The labels and classes of training images."""
    labels = _labels(source)
    classes = source.classes or [str(number) for number in range(int(labels.max()) + 1)]
    _check_range(source, labels, len(classes))
    present = np.unique(labels)
    if len(present) < 2:
        raise RequestError(
            f"{source.origin} has one class only ({classes[present[0]]}); expected two or more: {_EXPECTED}"
        )
    return labels, classes


def _match(val: Source, train: Source, classes: list[str]) -> Source:
    """Express the labels of a validation source as positions in the training images' `classes`."""
    labels, names = _labels(val), val.classes or classes
    _check_range(val, labels, len(names))
    trained = {classes[number]: number for number in np.unique(_labels(train)).tolist()}
    if unknown := [names[number] for number in np.unique(labels).tolist() if names[number] not in trained]:
        raise RequestError(
            f"{val.origin} has images of {_list(unknown)}, but training has none; expected {_list([*trained])}: "
            f"remove them, or add such images to the training data"
        )
    mapped = np.array([trained.get(name, -1) for name in names], dtype=np.int64)[labels]
    return Subset(val.origin, val, np.arange(len(val)), mapped, classes)


def _labels(source: Source) -> np.ndarray:
    if source.labels is None:
        raise RequestError(f"{source.origin} has no labels; expected {_EXPECTED}")
    return source.labels


def _choose(source: Source, labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool, True for validation: of each class the images with the lowest hashes, at least one of four images.

    If that chooses none, it is one of each class that has more than one.
    """
    hashes = _hashes(source, salt="val")
    by_class = np.lexsort((hashes, labels))
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    num_val = np.maximum(np.floor(share * sizes + 0.5).astype(np.int64), sizes >= _ENOUGH).clip(max=sizes - 1)
    if not num_val.any():
        num_val = (sizes > 1).astype(np.int64)
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)  # of each image in its class, by hash
    is_val = np.zeros(len(labels), dtype=bool)
    is_val[by_class] = rank < np.repeat(num_val, sizes)
    return is_val


def _hashes(source: Source, *, salt: str) -> np.ndarray:
    """(N,) uint64, uniform, of the images' keys: a pack is split like its source, and so is a moved folder."""
    salt_key = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    keys = map(source.key, range(len(source)))
    digests = b"".join(hashlib.blake2b(key, digest_size=8, key=salt_key).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


def _check_range(source: Source, labels: np.ndarray, num_classes: int) -> None:
    if labels.max() >= num_classes:
        raise RequestError(
            f"{source.origin} has label {labels.max()}; expected 0 to {num_classes - 1} for its {num_classes} classes: "
            f"fix the labels"
        )


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
