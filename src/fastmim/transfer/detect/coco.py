"""Images with boxes and masks in COCO's format, as a source: found in folders, and what is wrong with them counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastmim.data.greys import Decoding
from fastmim.data.settings import ImageConfig
from fastmim.data.sources.files import Files
from fastmim.data.sources.index import NameTable
from fastmim.data.sources.sampling import decoded_as
from fastmim.errors import RequestError, listed
from fastmim.system.files import exists, expanded, is_folder
from fastmim.system.text import printable
from fastmim.transfer.detect.annotations import (
    Entry,
    Objects,
    read_categories,
    read_file,
    read_images,
    read_objects,
)
from fastmim.transfer.detect.outlines import parsed

_PARTS = {"training": "train2017", "validation": "val2017"}
_EXPECTED = (
    "a folder in COCO's layout (annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, "
    "val2017/), or --data TRAIN.json --images DIR --val-data VAL.json --val-images DIR"
)
_USUAL = ImageConfig()


@dataclass(frozen=True, eq=False)
class Scenes:
    """A source of images with objects."""

    origin: str
    """The annotation file."""
    images: Files
    ids: list[int]
    """Of the images, in the file."""
    sizes: np.ndarray
    """(N, 2) int64: height and width in pixels, according to the file."""
    objects: Objects
    classes: list[str]
    categories: list[int]
    """The numbers of the classes in the file."""
    remarks: tuple[str, ...] = ()
    labels: None = None

    @property
    def root(self) -> str | None:
        return self.images.root

    @property
    def decoding(self) -> Decoding:
        return self.images.decoding

    @property
    def has_masks(self) -> bool:
        """Whether there are outlines besides the boxes."""
        return bool(self.objects.outlines)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.images.read(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def key(self, index: int) -> bytes:
        return self.images.key(index)

    def position(self, index: int) -> int:
        return index

    def objects_of(self, index: int) -> range:
        """The positions in `objects` of an image's objects."""
        return range(int(self.objects.first[index]), int(self.objects.first[index + 1]))

    def ground_truth(self, indices: Iterable[int]) -> dict[str, Any]:
        """Some images with their objects in COCO's format, crowds included; BadImage as `outlines.parsed`."""
        images, annotations, objects = [], [], self.objects
        for index in indices:
            height, width = self.sizes[index].tolist()
            images.append({"id": self.ids[index], "height": height, "width": width})
            for number in self.objects_of(index):
                annotation = {
                    "id": number + 1,
                    "image_id": self.ids[index],
                    "category_id": self.categories[objects.labels[number]],
                    "bbox": objects.boxes[number].tolist(),
                    "area": float(objects.areas[number]),
                    "iscrowd": int(objects.crowds[number]),
                }
                if objects.outlines:
                    annotation["segmentation"] = parsed(objects.outlines[number])
                annotations.append(annotation)
        names = zip(self.categories, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True)
class Parts:
    """Training and validation images with their objects."""

    train: Scenes
    val: Scenes


def open_scenes(
    data: str,
    images: str | None = None,
    config: ImageConfig = _USUAL,
    *,
    val_data: str | None = None,
    val_images: str | None = None,
    masks: bool | None = None,
    max_absent: float = 0.05,
    inherited: str | None = None,
) -> Parts:
    """Find training and validation images with their annotations.

    Args:
        data: A folder in COCO's layout, or an annotation file.
        images: The folder of an annotation file's images.
        config: How images are decoded; a range that is measured is measured over the training images.
        val_data: As `data`, for validation; the same folder if None.
        val_images: As `images`.
        masks: Read outlines; if None, if the training file has any.
        max_absent: The largest share of a file's images that may be absent.
        inherited: The range of the weights that the images are for; see `sampling.decoded_as`.

    Raises:
        RequestError: there are no such files or folders, they are not COCO's, or too many images are absent.
    """
    if not data:
        raise RequestError(f"data is not given; expected {_EXPECTED}")
    for name, given in (("data", data), ("val_data", val_data)):
        if given is not None and not exists(expanded(given)):
            raise RequestError(f"{name} is {given}, which does not exist; expected {_EXPECTED}")
    if val_data is None and not is_folder(expanded(data)):
        raise RequestError(f"val_data is not given; expected {_EXPECTED}")
    train_file, train_folder = _locate(data, images, "training")
    val_file, val_folder = _locate(data if val_data is None else val_data, val_images, "validation")
    train = _read(train_file, train_folder, masks=masks, max_absent=max_absent)
    files = cast(Files, decoded_as(train.images, config, inherited=inherited))
    val = _read(val_file, val_folder, masks=train.has_masks, max_absent=max_absent, like=train)
    train = replace(train, images=files, remarks=(*files.remarks, *train.remarks, *val.remarks))
    config = ImageConfig(range=files.decoding.range, max_pixels=config.max_pixels)
    return Parts(train, replace(val, images=cast(Files, decoded_as(val.images, config))))


def _locate(data: str, images: str | None, what: str) -> tuple[Path, Path]:
    """The annotation file and the folder of images of a part."""
    file, folder = expanded(data), expanded(images) if images is not None else None
    prefix = "val_" if what == "validation" else ""
    if is_folder(file):
        name = _PARTS[what]
        file, folder = file / "annotations" / f"instances_{name}.json", folder or file / name
        if not file.is_file():
            raise RequestError(f"{prefix}data is {data}, without a {what} part ({file}); expected {_EXPECTED}")
    if folder is None:
        raise RequestError(f"{prefix}images is not given; expected {_EXPECTED}")
    if not is_folder(folder):
        raise RequestError(f"{prefix}images is {folder}, which is no folder; expected {_EXPECTED}")
    return file, folder


def _read(file: Path, folder: Path, *, masks: bool | None, max_absent: float, like: Scenes | None = None) -> Scenes:
    """Read a part, whose classes are those of another part."""
    content = read_file(file)
    names = read_categories(file, content["categories"])
    if like is not None and names != dict(zip(like.categories, like.classes, strict=True)):
        raise RequestError(
            f"val_data is {file} with the categories {_numbered(names.keys(), names.values())}; expected those of "
            f"{like.origin}, {_numbered(like.categories, like.classes)}"
        )
    entries = read_images(file, content["images"])
    images, absent = _present(folder, entries)
    if not images or len(absent) > max_absent * len(entries):
        example = f", such as {printable(absent[0].name)}" if absent else ""
        raise RequestError(
            f"images is {folder}, which lacks {len(absent):,} of the {len(entries):,} images of {file}{example}; "
            f"expected at most {max_absent:.0%} to be absent: give their folder, or raise --max-bad-share"
        )
    if masks is None:
        masks = any(isinstance(found, dict) and found.get("segmentation") for found in content["annotations"])
    skipped: Counter[str] = Counter()
    objects = read_objects(
        file,
        content["annotations"],
        images,
        list(names),
        absent=frozenset(entry.id for entry in absent),
        masks=masks,
        skipped=skipped,
    )
    left_out = ", ".join(f"{number:,} with {what}" for what, number in skipped.most_common())
    if not len(objects.labels):
        raise RequestError(
            f"data is {file}, without an object that can be used ({left_out or 'it has none'}); expected boxes in its "
            f'"annotations"'
        )
    return Scenes(
        origin=str(file),
        images=Files(str(file), str(folder.absolute()), NameTable.build([os.fsencode(e.name) for e in images])),
        ids=[entry.id for entry in images],
        sizes=np.array([(entry.height, entry.width) for entry in images], dtype=np.int64),
        objects=objects,
        classes=list(names.values()),
        categories=list(names),
        remarks=tuple(_remarks(file, folder, absent, left_out, objects, list(names.values()))),
    )


def _numbered(numbers: Iterable[int], names: Iterable[str]) -> str:
    return printable(listed([f"{number} {name}" for number, name in zip(numbers, names, strict=True)], 5))


def _present(folder: Path, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The images whose files are there, and the others. Each folder is listed once, as files may be many and far."""
    listings: dict[Path, frozenset[str]] = {}
    present: list[Entry] = []
    absent: list[Entry] = []
    for entry in entries:
        path = folder / entry.name
        if path.parent not in listings:
            try:
                listings[path.parent] = frozenset(os.listdir(path.parent))  # noqa: PTH208 - names, not paths
            except OSError:
                listings[path.parent] = frozenset()
        (present if path.name in listings[path.parent] else absent).append(entry)
    return present, absent


def _remarks(
    file: Path, folder: Path, absent: Sequence[Entry], left_out: str, objects: Objects, classes: list[str]
) -> Iterable[str]:
    """Lines for a plan about what cannot be used."""
    if absent:
        yield f"note      skipped {len(absent):,} images of {file} that are not in {folder}"
    if left_out:
        yield f"note      skipped objects of {file}: {left_out}"
    counts = np.bincount(objects.labels, minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        yield f"note      no example of {printable(listed(empty, 5))} in {file}"
