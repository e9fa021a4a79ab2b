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
_SURROGATES = re.compile("[\ud800-\udfff]")  # stand for bytes that are not UTF-8
_MAX_SHOWN = 200  # characters of a row in a message


def read_list(path: Path, *, origin: str) -> Files:
    """Open a text file that lists images.

    Each row holds one image: its path, relative to the list's folder, and optionally a label (a name or a
    number) after a comma, semicolon or tab (.csv), a tab (.tsv, .txt), or a space if every row of a .txt reads
    "image.ext number". A header row is skipped: "path" or the like, or no name of an image where the next row has
    one. Text that is not UTF-8 is taken for Windows-1252, unless it names files as it is; paths may have
    backslashes. A missing file counts as an unreadable image when it is read.

    Raises:
        RequestError: The list is empty, its rows do not match, or none of 16 probed files exists.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise RequestError(f"cannot read the list {origin}: {error.strerror}") from None
    if b"\0" in data:
        raise RequestError(f"the list {origin} holds NUL characters; expected text in UTF-8: save it as that")
    root = path.absolute().parent
    try:
        rows, is_utf8 = _rows(data, path.suffix.lower(), root)
    except csv.Error as error:
        raise RequestError(
            f"cannot read the list {origin}: {error}; expected one path a line, and no open quotes"
        ) from None
    if not rows:
        raise RequestError(f"the list {origin} names no images: expected one path a line")
    _check(rows, origin)
    labels, classes = _labels([row[1] for row in rows]) if len(rows[0]) == 2 else (None, None)
    remark = f"note      {origin} is not UTF-8: read as Windows-1252; save it as UTF-8 if names look wrong"
    files = Files(
        origin,
        str(root),
        NameTable.build([os.fsencode(row[0]) for row in rows]),
        labels,
        classes,
        remarks=() if is_utf8 else (remark,),
    )
    if not any(_exist(rows, root)):
        raise RequestError(
            f"{origin}: no such file: {rows[0][0][:_MAX_SHOWN]} (nor any other that was checked); "
            f"paths are taken relative to the list's folder, {root}"
        )
    return files


def _check(rows: list[list[str]], origin: str) -> None:
    for number, row in enumerate(rows, start=1):
        expected = "expected a path, or a path and a label, in every row"
        if len(row) > 2:
            raise RequestError(
                f"{origin}, entry {number}: {_shown(row)} has {len(row)} columns; {expected}: remove the others"
            )
        if len(row) != len(rows[0]) or not all(row):
            raise RequestError(
                f"{origin}, entry {number}: {_shown(row)} does not read like the first, {_shown(rows[0])}: {expected}"
            )


def _rows(data: bytes, suffix: str, root: Path) -> tuple[list[list[str]], bool]:
    """The rows of a list in the reading that names most files, the usual one first; False if it is not UTF-8."""
    delimiters = [",", ";", "\t"] if suffix == ".csv" else ["\t"]
    text, is_utf8 = data.decode("utf-8-sig", "surrogateescape"), True
    if _SURROGATES.search(text):  # bytes that are not UTF-8 are meant as they are if a file is called so
        rows = [row for delimiter in delimiters for row in _split(text, suffix, delimiter)]
        if not any(_exist([row for row in rows if _SURROGATES.search(row[0])], root)):
            text, is_utf8 = data.decode("cp1252", "replace"), False
    usual = best = _without_header(_split(text, suffix, delimiters[0]))
    for delimiter in delimiters:
        if all(_exist(best, root)):
            break
        rows = usual if delimiter == delimiters[0] else _without_header(_split(text, suffix, delimiter))
        slashed = [[row[0].replace("\\", "/"), *row[1:]] for row in rows]
        best = max(best, rows, slashed, key=lambda rows: sum(_exist(rows, root)))
    return best, is_utf8


def _exist(rows: list[list[str]], root: Path) -> list[bool]:
    """Whether each of at most 16 files of these rows, evenly spread, exists."""
    return [exists(Path(root, row[0])) for row in rows[:: max(1, -(-len(rows) // _NUM_PROBED))]]


def _without_header(rows: list[list[str]]) -> list[list[str]]:
    names = [row[0].casefold() for row in rows[:2]]
    is_header = names[:1] and (names[0] in _HEADERS or (_has_ending(names[-1]) and not _has_ending(names[0])))
    return rows[1:] if is_header else rows


def _has_ending(name: str) -> bool:
    return os.path.splitext(name)[1] in image_extensions()  # noqa: PTH122 - a name of any length


def _split(text: str, suffix: str, delimiter: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if suffix == ".csv" and lines and re.fullmatch("sep=.", lines[0].strip()):  # for Excel
        lines = lines[1:]
    if suffix != ".txt":
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
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
