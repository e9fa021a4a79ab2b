"""Text files that list images, with or without labels."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np

from fastmim.data.pillow import image_extensions
from fastmim.data.sources.files import Files
from fastmim.data.sources.index import NameTable
from fastmim.errors import RequestError
from fastmim.system.files import exists, read_regular

_HEADERS = {"path", "file", "filename", "file_name", "filepath", "image", "image_path"}
_NUM_PROBED = 16
_MAX_SHOWN = 200  # characters of a row in a message


def read_list(path: Path, *, origin: str) -> Files:
    """Open a text file that lists images.

    Each row holds one image: its path, relative to the list's folder, and optionally a label (a name or a
    number) after a comma (.csv), a tab (.tsv, .txt), or a space if every row of a .txt reads
    "image.ext number". A header row "path" or "path,label" is skipped. A missing file counts as an unreadable
    image when it is read.

    Raises:
        RequestError: The list is empty, its rows do not match, or none of 16 probed files exists.
    """
    try:
        text = read_regular(path).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise RequestError(f"cannot read the list {origin}: {error.strerror}") from None
    if "\0" in text:
        raise RequestError(f"the list {origin} holds NUL characters; expected text in UTF-8: save it as that")
    try:
        rows = _rows(text, path.suffix.lower())
    except csv.Error as error:
        raise RequestError(
            f"cannot read the list {origin}: {error}; expected one path a line, and no open quotes"
        ) from None
    if rows and rows[0][0].strip().casefold() in _HEADERS:
        rows = rows[1:]
    if not rows:
        raise RequestError(f"the list {origin} names no images: expected one path a line")
    for number, row in enumerate(rows, start=1):
        if len(row) > 2 or len(row) != len(rows[0]) or not all(row):
            raise RequestError(
                f"{origin}, entry {number}: {_shown(row)} does not read like the first, {_shown(rows[0])}: "
                f"expected a path, or a path and a label, in every row"
            )
    labels, classes = _labels([row[1] for row in rows]) if len(rows[0]) == 2 else (None, None)
    root = path.absolute().parent
    files = Files(origin, str(root), NameTable.build([os.fsencode(row[0]) for row in rows]), labels, classes)
    probed = range(0, len(files), -(-len(files) // _NUM_PROBED))
    if not any(exists(files.name(index)) for index in probed):
        raise RequestError(
            f"{origin}: no such file: {rows[0][0][:_MAX_SHOWN]} (nor any other that was checked); "
            f"paths are taken relative to the list's folder, {root}"
        )
    return files


def _rows(text: str, suffix: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if suffix != ".txt":
        rows = csv.reader(lines, delimiter="," if suffix == ".csv" else "\t", skipinitialspace=True)
        return [[cell.strip() for cell in row] for row in rows]
    if any("\t" in line for line in lines):
        return [[cell.strip() for cell in line.split("\t")] for line in lines]
    # "n01440764/x.JPEG 0", as in ImageNet's lists. Spaces are common in paths, so the number only counts as a
    # label if all rows have this form.
    ends = "|".join(re.escape(end) for end in image_extensions())
    numbered = [re.fullmatch(rf"(.+(?:{ends}))\s+(\d+)", line.strip(), re.IGNORECASE) for line in lines]
    return [
        list(match.groups()) if match and all(numbered) else [line.strip()]
        for match, line in zip(numbered, lines, strict=True)
    ]


def _shown(row: list[str]) -> str:
    return repr(",".join(row)[:_MAX_SHOWN])


def _labels(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Class names -> (N,) int64 and the distinct names, sorted as numbers if all are numbers."""
    distinct = set(names)
    classes = (
        sorted(distinct, key=int) if all(re.fullmatch(r"[0-9]{1,18}", name) for name in distinct) else sorted(distinct)
    )
    number = {name: position for position, name in enumerate(classes)}
    return np.array([number[name] for name in names], dtype=np.int64), classes
