"""Images with label images, whose pixels are numbers of classes: found in folders, and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastmim.data.greys import Decoding
from fastmim.data.pillow import opened
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import Source, open_source
from fastmim.data.unreadable import UNREADABLE, BadImage
from fastmim.errors import RequestError, RunError
from fastmim.system.files import expanded, is_folder, read_regular

IGNORED = -1
"""The label of a pixel without a class."""

_TRAIN, _VAL = ("training", "train"), ("validation", "val")
_IMAGES, _LABELS = "images", ("annotations", "labels")
_USUAL = ImageConfig()
_NAMES = "classes.txt"
_ADE_NAMES = "objectInfo150.txt"
_EXPECTED = (
    "a folder in ADE20K's layout (images/training, images/validation, annotations/training, annotations/validation), "
    "or --data IMAGES --labels LABELS --val-data IMAGES --val-labels LABELS"
)


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """A source of images, each with a label image of the same name in a folder."""

    origin: str
    images: Source
    folder: Path
    """Of the label images."""
    ignore_index: int
    classes: list[str]
    labels: None = None

    @property
    def root(self) -> str | None:
        return self.images.root

    @property
    def decoding(self) -> Decoding:
        return self.images.decoding

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.images.remarks

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.images.read(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def key(self, index: int) -> bytes:
        return self.images.key(index)

    def position(self, index: int) -> int:
        return self.images.position(index)

    def label_path(self, index: int) -> Path:
        """The path of an image's label image."""
        inside = Path(self.name(index)).relative_to(self.root or "")
        return (self.folder / inside).with_suffix(".png")

    def read_label(self, index: int) -> np.ndarray:
        """The label image: (H, W) int16, positions in `classes`, or `IGNORED`.

        Raises:
            BadImage: it is missing or no label image, or has a number beyond the classes.
        """
        numbers = self.read_numbers(index)
        labels = numbers - (self.ignore_index == 0)
        labels[numbers == self.ignore_index] = IGNORED
        outside = (labels < IGNORED) | (labels >= len(self.classes))
        if outside.any():
            first = int(self.ignore_index == 0)
            raise BadImage(
                f"its label image {self.label_path(index)} has class {numbers[outside][0]}, not {first} to "
                f"{first + len(self.classes) - 1}, nor {self.ignore_index} for none"
            )
        return labels.astype(np.int16)

    def read_numbers(self, index: int) -> np.ndarray:
        """The label image as it is: (H, W) int32; BadImage as `read_label`."""
        path = self.label_path(index)
        try:
            data = read_regular(path)
        except OSError as error:
            raise BadImage(f"its label image {path}: {error.strerror or error}") from None
        try:
            with opened(data, self.decoding.max_pixels) as (image, _):
                if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                    raise BadImage(f"colours ({image.mode}) in place of numbers")
                return np.array(image).astype(np.int32)
        except BadImage as error:
            raise BadImage(f"its label image {path}: {error}") from None


@dataclass(frozen=True)
class Scenes:
    """Training and validation images with their label images."""

    train: LabelledPixels
    val: LabelledPixels

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.train.classes


def open_scenes(
    data: str,
    labels: str | None,
    config: ImageConfig = _USUAL,
    *,
    inherited: str | None = None,
    val_data: str | None = None,
    val_labels: str | None = None,
    classes: Path | None = None,
    ignore_index: int | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Scenes:
    """Find images and label images for training and validation.

    Args:
        data: A folder in ADE20K's layout, or a folder of images.
        labels: A folder of label images, unless `data` has its own.
        config: How images are decoded; a range that is measured is measured over the training images.
        inherited: The range of the weights that the images are for; see `sampling.decoded_as`.
        val_data: As `data`, for validation.
        val_labels: As `labels`.
        classes: File of the classes' names; if None, a `classes.txt` in `data` or ADE20K's list, else the classes are
            the numbers in the training images' labels, all of which are read for it.
        ignore_index: Number of pixels without a class; if None, 0 in ADE20K's layout and 255 otherwise.
        say: Prints a line.

    Raises:
        RequestError: there are no such folders, images or labels.
    """
    root = expanded(data) if data else Path()
    if not data:
        raise RequestError(f"data is not given; expected {_EXPECTED}")
    if labels is None:
        train_images, train_labels = _parts(data, _TRAIN, "training")
        ignore = 0 if ignore_index is None else ignore_index
    else:
        train_images, train_labels = data, expanded(labels)
        ignore = 255 if ignore_index is None else ignore_index
    if val_data is None and labels is None:
        val_images, val_folder = _parts(data, _VAL, "validation")
    elif val_data is None or val_labels is None:
        missing = "val_data" if val_data is None else "val_labels"
        raise RequestError(f"{missing} is not given; expected {_EXPECTED}")
    else:
        val_images, val_folder = val_data, expanded(val_labels)
    train = _pair(train_images, train_labels, ignore, config, inherited)
    config = ImageConfig(range=train.decoding.range, max_pixels=config.max_pixels)
    names = _read_names(classes, root) or _count_classes(train, say)
    return Scenes(replace(train, classes=names), replace(_pair(val_images, val_folder, ignore, config), classes=names))


def _parts(data: str, names: tuple[str, ...], what: str) -> tuple[str, Path]:
    """The images and the label images of a part in ADE20K's layout."""
    root = expanded(data)
    for name in names:
        for labels in _LABELS:
            if is_folder(root / _IMAGES / name) and is_folder(root / labels / name):
                return str(Path(data) / _IMAGES / name), root / labels / name
    raise RequestError(
        f"data is {data}, without a {what} part ({_IMAGES}/{names[0]} and {_LABELS[0]}/{names[0]}); expected "
        f"{_EXPECTED}"
    )


def _pair(
    images: str, folder: Path, ignore_index: int, config: ImageConfig, inherited: str | None = None
) -> LabelledPixels:
    if not is_folder(folder):
        raise RequestError(f"labels is {folder}, which is no folder; expected a folder of PNGs: {_EXPECTED}")
    source = open_source(images, config, inherited=inherited)
    if source.root is None or not is_folder(expanded(images)):
        raise RequestError(f"data is {images}, which is no folder of images; expected {_EXPECTED}")
    found = LabelledPixels(images, source, folder, ignore_index, [])
    if not any(found.label_path(index).is_file() for index in range(len(found))):
        raise RequestError(
            f"labels is {folder}, which has no label image for any of the {len(found):,} images in {images}; expected "
            f"PNGs of their names, such as {found.label_path(0)}"
        )
    return found


def _read_names(classes: Path | None, root: Path) -> list[str]:
    """The names of the classes; empty if there is no list."""
    path = next((p for p in (classes, root / _NAMES, root / _ADE_NAMES) if p and p.is_file()), classes)
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"classes is {path}: {error}; expected a text file with a name in each line") from None
    if path.name == _ADE_NAMES:  # a table: number, share, counts, names
        lines = [line.split("\t")[-1].split(",")[0] for line in lines[1:]]
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < 2:
        raise RequestError(f"classes is {path} with {len(names)} names; expected two or more, one in each line")
    return names


def _count_classes(train: LabelledPixels, say: Callable[[str], object]) -> list[str]:
    """The numbers of the classes, from 0 or 1 to the largest in the label images."""
    say(f"reading   {len(train):,} label images for the number of classes; a list with --classes saves this")
    largest = -1
    for index in range(len(train)):
        try:
            numbers = train.read_numbers(index)
        except UNREADABLE:  # reported when the image is used
            continue
        largest = max(largest, int(numbers[numbers != train.ignore_index].max(initial=-1)))
    first = int(train.ignore_index == 0)
    if largest <= first:
        raise RunError(
            f"the label images in {train.folder} have one class at most, besides {train.ignore_index} for none; "
            f"expected two or more: check --labels and --ignore-index"
        )
    return [str(number) for number in range(first, largest + 1)]
