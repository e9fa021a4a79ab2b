"""Images that a Python program has in memory: a dataset, or a list of pictures, arrays or paths, as `data`."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fastmim.config import Dataset, Settings
from fastmim.data.pixels import to_array
from fastmim.data.sources import huggingface
from fastmim.data.sources.files import Files
from fastmim.data.sources.index import NameTable
from fastmim.data.sources.source import ByPosition, Source
from fastmim.data.unreadable import UNREADABLE, BadImage, one_line, reason
from fastmim.errors import RequestError, shown
from fastmim.system.files import expanded, read_regular

SCHEME = "python"
_EXPECTED = (
    "a PIL image, an array of uint8 (H, W, 3), a tensor (3, H, W) of uint8 or of 0 to 1, a path, or a tuple or a dict "
    "(`image`) with one of them"
)
_CHANNELS = (1, 3)


class Given(str):
    """The text that stands for an object in settings and config.yaml; it carries the object as far as `open_source`."""

    images: Any

    def __new__(cls, images: Any, *, name: str) -> Given:
        try:
            length = len(images)
        except TypeError:
            length = -1
        if isinstance(images, Mapping) or length < 0 or not hasattr(images, "__getitem__"):
            kind = f"of {', '.join(map(str, images))}, " if isinstance(images, Mapping) else ""
            raise RequestError(
                f"{name} is a {type(images).__name__}, {kind}without items by number; expected a map-style dataset, a "
                f"list of images, or the text that the command line takes"
            )
        self = super().__new__(cls, f"{SCHEME}://{type(images).__name__}[{length}]")
        self.images = images
        return self

    def __deepcopy__(self, memo: object) -> str:  # for config.yaml, by `dataclasses.asdict`
        return str(self)


def named(settings: Mapping[str, Any], cls: type[Settings]) -> dict[str, Any]:
    """Put a `Given` in place of each dataset or list among the settings of this class.

    Raises:
        RequestError: one is no map-style dataset.
    """
    return {name: text(value, name=name) if name in cls.FROM_PYTHON else value for name, value in settings.items()}


def text(value: str | os.PathLike[str] | Dataset | None, *, name: str) -> str | None:
    """The text of a setting that is a path, or a dataset or a list.

    Raises:
        RequestError: it is something else.
    """
    if isinstance(value, str | None):
        return value
    return str(value) if isinstance(value, os.PathLike) else Given(value, name=name)


@dataclass(frozen=True, eq=False, kw_only=True)
class Items(ByPosition):
    """A map-style dataset, or a list."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> bytes | np.ndarray:
        image = self.image(index)
        return to_array(image, self.decoding) if isinstance(image, Image.Image) else image

    def image(self, index: int) -> Image.Image | bytes | np.ndarray:
        """The image of an item: a picture, an encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            BadImage, OSError: the dataset cannot read it, or it is something else.
        """
        try:
            image = self.dataset[index]
        except UNREADABLE:
            raise
        except Exception as error:  # a dataset is anybody's code
            raise BadImage(f"{type(error).__name__}: {one_line(error)}") from None
        image = _part(image, 0, "image")
        if isinstance(image, str | os.PathLike):
            return read_regular(expanded(os.fspath(image)))
        return image if isinstance(image, Image.Image | bytes) else _array(image)

    def __getstate__(self) -> dict[str, Any]:
        """For data workers that are started afresh, which import the modules of the classes that they are sent."""
        main = sys.modules["__main__"]
        if type(self.dataset).__module__ == "__main__" and not hasattr(main, "__file__"):
            raise pickle.PicklingError(f"{type(self.dataset).__name__} is defined in a notebook, or at a prompt")
        return self.__dict__


def _part(item: Any, number: int, name: str) -> Any:
    """The image or the label of an item; None if it has none."""
    if isinstance(item, Mapping):
        return item.get(name)
    if isinstance(item, tuple | list):
        return item[number] if number < len(item) else None
    return None if number else item


def _array(image: Any) -> np.ndarray:
    """uint8 (H, W) or (H, W, C) of an array or a tensor.

    Raises:
        BadImage: it is something else.
    """
    kind = f"{type(image).__name__}" + (f" of {image.dtype} {tuple(image.shape)}" if hasattr(image, "dtype") else "")
    if isinstance(image, Tensor) and image.ndim in (2, 3):
        if image.is_floating_point():
            low, high = image.aminmax()
            if not 0 <= low <= high <= 1:
                raise BadImage(f"{kind} from {low:g} to {high:g}")
            image = (image * 255).round().byte()
        image = (image.movedim(0, 2) if image.ndim == 3 else image).cpu().numpy()
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size
    if is_image and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in _CHANNELS)):
        return image
    raise BadImage(kind)


def open_given(given: Given) -> Source:
    """Open a dataset or a list, with its labels as far as they need no reading of items.

    Raises:
        RequestError: it is empty, or its first item is no image.
    """
    images, origin = given.images, str(given)
    if not len(images):
        raise RequestError(f"--data {origin} has no images; expected at least one")
    if type(images).__module__.partition(".")[0] == "datasets":
        return huggingface.rows(images, origin=origin)
    if isinstance(images, list | tuple) and all(isinstance(item, str | os.PathLike) for item in images):
        paths = [os.fsencode(expanded(os.fspath(path)).absolute()) for path in images]
        if not Path(os.fsdecode(paths[0])).is_file():
            raise RequestError(f"--data {origin} begins with {shown(str(images[0]))}; expected a list of image files")
        return Files(origin, "", NameTable.build(paths))
    source = Items(dataset=images, origin=origin)
    _check_first(source)
    targets = getattr(images, "targets", None)  # as torchvision's datasets have them
    if targets is not None and len(targets) == len(images):
        return _with_labels(source, targets)
    return source


def with_labels(source: Source) -> Source:
    """The source, with labels from a pass over its items if it is a dataset that has them nowhere else.

    Raises:
        RequestError: an item has no label, or cannot be read.
    """
    if not isinstance(source, Items) or source.labels is not None:
        return source
    return _with_labels(source, [_label(source, index) for index in range(len(source))])


def _label(source: Items, index: int) -> Any:
    try:
        label = _part(source.dataset[index], 1, "label")
    except Exception as error:
        raise RequestError(
            f"--data {source.origin}: item {index} cannot be read ({reason(error)}); expected an image and its label: "
            f"give the dataset `targets`, a list of all labels, or leave it out"
        ) from None
    if label is None:
        raise RequestError(f"--data {source.origin}: item {index} has no label; expected items (image, label)")
    return label


def _with_labels(source: Items, targets: Sequence[Any]) -> Items:
    labels = np.array([target.item() if isinstance(target, Tensor) else target for target in targets])
    classes = getattr(source.dataset, "classes", None)
    if labels.dtype.kind in "US":
        names, numbers = np.unique(labels, return_inverse=True)
        return dataclasses.replace(source, labels=numbers.astype(np.int64), classes=[str(name) for name in names])
    if labels.ndim != 1 or labels.dtype.kind not in "iub" or labels.min() < 0:
        raise RequestError(
            f"--data {source.origin} has labels such as {shown(targets[0])}; expected a number from 0 on, or the name "
            f"of a class, for each image"
        )
    return dataclasses.replace(
        source, labels=labels.astype(np.int64), classes=None if classes is None else list(map(str, classes))
    )


def _check_first(source: Items) -> None:
    """Refuse a dataset of something else at once; a damaged first image is skipped like any other."""
    try:
        source.image(0)
    except (BadImage, NotImplementedError) as error:
        said = f"item 0 is no image ({reason(error)}); expected {_EXPECTED}"
        raise RequestError(f"--data {source.origin}: {said}") from None
    except UNREADABLE:
        return
