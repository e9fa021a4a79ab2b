"""Labelled images for training and for validation: found, or split by a hash so that the split stays as it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError

TRAIN_FOLDER = "train"
VAL_NAMES = ("val", "validation", "valid", "test")
"""Folders beside `train/` and splits of sets that are validated on: the first that is there."""

_WITH_SPLITS = ("torchvision://", "hf://")
# That a set has no such split, as we, torchvision and datasets say it; missing files are no reason to go on.
_NO_SPLIT = ("no split", "for argument split", "Unknown split")

_EXPECTED = (
    "class folders (data/cat/1.jpg), train/ and val/ with class folders, a list with a label in each row, "
    "or torchvision://NAME"
)


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a source, with labels in another list of classes if need be."""

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
    """What is trained on and what is validated on. The labels of both are positions in `classes`."""

    train: Source
    val: Source
    classes: list[str]
    """Those of `train`; `val` may lack some."""
    held_out: bool
    """Whether `val` was split off from `data`, not found apart."""


def open_labelled(data: str, *, val_data: str | None = None, val_share: float = 0.1) -> Labelled:
    """Open labelled images.

    Validation images are `val_data` if given; else, of a directory, `val/`, `validation/`, `valid/` or `test/`
    beside its `train/`; of a torchvision or HuggingFace set that is named without a split, its split of one of
    these names that has labels; else a share of the images, chosen by a hash of their path within the directory
    (or of their number). Such a split is the same in every run and on every machine, and an image that is added
    later moves no other one (but for the one image that a class always keeps for training). A folder called
    `train` is a class like any other if there are other folders and none of those names.

    Args:
        data: Anything that `open_source` takes and that has labels.
        val_data: The same, for validation; its classes are matched by name.
        val_share: Share of the images to validate on, between 0 and 1, if they are not found apart.

    Raises:
        RequestError: No labels, one class only, labels beyond the classes, validation images of a class that is
            not trained, or nothing left to validate on.
    """
    if not 0 < val_share < 1:
        raise RequestError(f"val_share is {val_share:g}; expected more than 0 and less than 1, such as 0.1")
    train = open_source(_training_part(data))
    if val_data is not None:
        val: Source | None = open_source(val_data)
    else:
        val = _val_split(data) if data.startswith(_WITH_SPLITS) else _val_folder(data)
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
    """As many images of each class as possible, `num_labels` in all: for experiments with few labels.

    Classes with fewer images give all of theirs, and the others the rest. Which ones is decided by (seed, path),
    so that a smaller number with the same seed takes some of what a larger one takes.

    Raises:
        RequestError: Fewer labels than classes, or more than there are images.
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
    """The directory's `train/`, if that is what holds the training images."""
    root = Path(data).expanduser()
    if not (root / TRAIN_FOLDER).is_dir():
        return data
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return str(Path(data) / TRAIN_FOLDER) if len(folders) == 1 or folders & set(VAL_NAMES) else data


def _val_folder(data: str) -> Source | None:
    if _training_part(data) == data:
        return None
    there = [name for name in VAL_NAMES if (Path(data).expanduser() / name).is_dir()]
    return open_source(str(Path(data) / there[0])) if there else None


def _val_split(data: str) -> Source | None:
    """The split to validate on; None if the user named a split, or the set has none of these with labels."""
    if "split=" in data:
        return None
    for name in VAL_NAMES:
        try:
            val = open_source(f"{data}{'&' if '?' in data else '?'}split={name}")
            if val.labels is not None:  # some sets keep their test labels to themselves
                return val
        except RequestError as error:
            if not any(words in str(error) for words in _NO_SPLIT):
                raise
    return None


def _check(source: Source) -> tuple[np.ndarray, list[str]]:
    """Labels and classes of training images."""
    labels = _labels(source)
    classes = source.classes or [str(number) for number in range(int(labels.max()) + 1)]
    if labels.max() >= len(classes):
        raise RequestError(
            f"{source.origin} has label {labels.max()}; expected {_up_to(len(classes))}: mend its labels"
        )
    present = np.unique(labels)
    if len(present) < 2:
        raise RequestError(
            f"{source.origin} has one class only ({classes[present[0]]}); expected two or more: {_EXPECTED}"
        )
    return labels, classes


def _match(val: Source, train: Source, classes: list[str]) -> Source:
    """A validation source with its labels as positions in the training images' `classes`."""
    labels, names = _labels(val), val.classes or classes
    if labels.max() >= len(names):
        raise RequestError(f"{val.origin} has label {labels.max()}; expected {_up_to(len(names))}")
    trained = {classes[number]: number for number in np.unique(_labels(train)).tolist()}
    if unknown := [names[number] for number in np.unique(labels).tolist() if names[number] not in trained]:
        raise RequestError(
            f"{val.origin} has images of {_list(unknown)}, of which training has none; expected {_list([*trained])}: "
            f"remove them, or add such images to the training ones"
        )
    mapped = np.array([trained.get(name, -1) for name in names], dtype=np.int64)[labels]
    return Subset(val.origin, val, np.arange(len(val)), mapped, classes)


def _labels(source: Source) -> np.ndarray:
    if source.labels is None:
        raise RequestError(f"{source.origin} has no labels; expected {_EXPECTED}")
    return source.labels


def _choose(source: Source, labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool, the images to validate on. Of each class the one with the highest hash always trains."""
    hashes = _hashes(source, salt="val")
    is_val = hashes < np.uint64(share * 2.0**64)
    by_class = np.lexsort((hashes, labels))
    last = np.flatnonzero(np.diff(labels[by_class], append=-1))
    is_val[by_class[last]] = False
    return is_val


def _hashes(source: Source, *, salt: str) -> np.ndarray:
    """(N,) uint64, uniform, of the images' keys: a pack is split like its source, and so is a moved folder."""
    salt_key = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    keys = map(source.key, range(len(source)))
    digests = b"".join(hashlib.blake2b(key, digest_size=8, key=salt_key).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


def _up_to(num_classes: int) -> str:
    return f"0 to {num_classes - 1} for its {num_classes} classes: mend its labels"


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
