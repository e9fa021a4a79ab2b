"""The output file of `embed` while it is being made: it grows in `<out>.partial`, then appears as a whole.

The folder holds `features.bin` (the rows so far), `index.csv` (their paths and labels), `bad_images.txt` and
`progress.json` (see `GrowingFiles`). The files of the result are made from them, and they are removed at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.system.files import fsync, open_regular, read_regular, write_json
from fastmim.system.growing import PROGRESS, GrowingFiles, is_count

_FEATURES, _INDEX, _BAD = "features.bin", "index.csv", "bad_images.txt"
_HEADER = b"path,label\r\n"
_ROWS_AT_ONCE = 16384


class FeatureWriter:
    """Appends rows to the files in `<out>.partial`; `finish` turns them into `out`.

    Args:
        out: The .npy or .parquet file to make.
        width: D, the length of a feature vector.
        settings: What decides the rows, as JSON types; they must equal those of an unfinished part.
        overwrite: Discard an unfinished part.

    Raises:
        RequestError: the files cannot be written, or were begun with other settings.
        RunError: what an earlier call has written is damaged.
    """

    def __init__(self, out: Path, *, width: int, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.width, self.settings = out, width, settings
        self.bad_images = out.with_suffix(".bad_images.txt")
        try:
            self.files = GrowingFiles(out, (_FEATURES, _INDEX), overwrite=overwrite)
        except OSError as error:
            raise RequestError(f"out is {out}: {error.strerror}; expected a file that can be written") from None
        if differences := self.files.differences("settings", settings):
            raise RequestError(
                f"out is {out}, whose unfinished part has other settings ({differences}): take another "
                f"--out, or start over with --overwrite"
            )
        self.num_read = self.files.num_saved
        self.num_rows = self.files.committed.get("num_rows", 0)
        if not is_count(self.num_rows) or self.files.lengths[_FEATURES] != self.num_rows * width * 4:
            raise self.files.damage(PROGRESS, "is damaged")
        try:
            self.files.recover()
        except OSError as error:
            raise RequestError(
                f"out is {out}: {error.strerror or error}; expected a file that can be written"
            ) from None

    def append(self, features: np.ndarray, names: Sequence[str], labels: Sequence[str], *, num_read: int) -> None:
        """Add b rows.

        Args:
            features: (b, D) float32.
            names: The images' paths.
            labels: Their classes, "" for none.
            num_read: The images read for these rows, unreadable ones included.
        """
        if not self.num_read:
            self.files.append(_INDEX, _HEADER)
        self.files.append(_FEATURES, np.ascontiguousarray(features, dtype="<f4").tobytes())
        text = io.StringIO()
        csv.writer(text).writerows(zip(names, labels, strict=True))
        self.files.append(_INDEX, text.getvalue().encode("utf-8", "backslashreplace"))
        self.num_read += num_read
        self.num_rows += len(features)

    def facts(self) -> dict[str, Any]:
        """What a commit records."""
        return {"settings": self.settings, "num_rows": self.num_rows}

    def finish(self) -> None:
        """Turn everything committed into `out`; can be repeated after a kill."""
        folder = self.files.folder
        moves = {_BAD: self.bad_images}
        if self.out.suffix == ".npy":
            moves |= {"paths.csv": self.out.with_suffix(".csv"), "settings.json": _settings_file(self.out)}
            moves |= {"features.npy": self.out}  # `out` comes last: once it exists, everything does
            self.files.copy(_INDEX, "paths.csv")
            self.files.copy(_FEATURES, "features.npy", header=self._header())
            write_json(folder / "settings.json", self.settings)
        else:
            moves |= {"rows.parquet": self.out}
            (folder / "rows.parquet").unlink(missing_ok=True)
            self._write_parquet(folder / "rows.parquet")
            fsync(folder / "rows.parquet")
        for name, final in moves.items():
            if name != _BAD or (folder / name).exists():
                (folder / name).replace(final)
        fsync(self.out.absolute().parent)
        clear(folder)

    def _header(self) -> bytes:
        """The .npy header for the rows so far."""
        header = io.BytesIO()
        shape = (self.num_rows, self.width)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return header.getvalue()

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        embedding = pa.list_(pa.float32(), self.width)
        schema = pa.schema(
            [("path", pa.string()), ("label", pa.string()), ("embedding", embedding)],
            metadata={"fastmim": json.dumps(self.settings)},
        )
        with path.open("wb") as file, parquet.ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
            for names, labels, features in self._rows():
                lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), self.width)
                columns = [pa.array(names), pa.array(labels, pa.string()), lists]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    def _rows(self) -> Iterator[tuple[list[str], list[str | None], np.ndarray]]:
        """Read the rows back in chunks: paths, labels, (b, D)."""
        folder = self.files.folder
        with (folder / _FEATURES).open("rb") as features, (folder / _INDEX).open(newline="", encoding="utf-8") as index:
            rows = csv.reader(index)
            next(rows)
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                numbers = np.fromfile(features, dtype="<f4", count=len(chunk) * self.width)
                yield [row[0] for row in chunk], [row[1] or None for row in chunk], numbers.reshape(-1, self.width)


def clear(folder: Path) -> None:
    """Empty the folder of a finished output: what would resume it goes first."""
    (folder / PROGRESS).unlink(missing_ok=True)
    locking.clear(folder)


def holds(out: Path, *, width: int, settings: Mapping[str, Any]) -> int | None:
    """The number of rows of a finished output that was made with these settings; None if it was not."""
    try:
        os.close(open_regular(out))
        if out.suffix == ".npy":
            found = json.loads(read_regular(_settings_file(out)))
            features = np.lib.format.open_memmap(out, mode="r")
            shape, stored = features.shape, features.dtype
        else:
            from pyarrow import parquet

            file = parquet.ParquetFile(out)
            found = json.loads((file.schema_arrow.metadata or {})[b"fastmim"])
            shape, stored = (file.metadata.num_rows, width), np.dtype("<f4")
    except Exception:  # any file may be there, and the libraries raise what they like
        return None
    same = found == json.loads(json.dumps(settings)) and stored == np.dtype("<f4")
    return int(shape[0]) if same and len(shape) == 2 and shape[1] == width else None


def _settings_file(out: Path) -> Path:
    """The settings beside a .npy file; a .parquet file holds them."""
    return out.with_suffix(".settings.json")
