"""The output file of `embed` while it is being made: it grows in `<out>.partial`, then appears as a whole.

The folder holds `features.npy` (the rows so far), `index.csv` (their paths and labels), `bad_images.txt` and
`progress.json` (see `GrowingFiles`).
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.errors import RequestError
from fastmim.system.files import fsync
from fastmim.system.growing import GrowingFiles

_FEATURES, _INDEX, _BAD = "features.npy", "index.csv", "bad_images.txt"
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
        committed = self.files.committed
        self.num_read = self.num_saved = committed.get("num_read", 0)
        self.num_rows = committed.get("num_rows", 0)

    def append(self, features: np.ndarray, names: Sequence[str], labels: Sequence[str], *, num_read: int) -> None:
        """Add b rows.

        Args:
            features: (b, D) float32.
            names: The images' paths.
            labels: Their classes, "" for none.
            num_read: The images read for these rows, unreadable ones included.
        """
        if not self.num_read:
            self.files.append(_FEATURES, self._header())
            self.files.append(_INDEX, b"path,label\r\n")
        self.files.append(_FEATURES, np.ascontiguousarray(features, dtype="<f4").tobytes())
        text = io.StringIO()
        csv.writer(text).writerows(zip(names, labels, strict=True))
        self.files.append(_INDEX, text.getvalue().encode("utf-8", "backslashreplace"))
        self.num_read += num_read
        self.num_rows += len(features)

    def commit(self, num_read: int, last_name: str) -> None:
        """Make all rows so far survive a kill; a later call checks the name of the image read last."""
        self.files.commit(
            {"settings": self.settings, "num_read": num_read, "num_rows": self.num_rows, "last_name": last_name}
        )
        self.num_saved = num_read

    def finish(self) -> None:
        """Turn everything committed into `out`; can be repeated after a kill."""
        folder, moves = self.files.folder, {_BAD: self.bad_images}
        if self.out.suffix == ".npy":
            moves |= {_INDEX: self.out.with_suffix(".csv"), _FEATURES: self.out}
            if (folder / _FEATURES).exists():
                with (folder / _FEATURES).open("r+b") as file:
                    file.write(self._header())
                fsync(folder / _FEATURES)
        elif (folder / _FEATURES).exists():
            moves |= {"rows.parquet": self.out}
            self._write_parquet(folder / "rows.parquet")
            fsync(folder / "rows.parquet")
        for name, final in moves.items():  # `out` comes last: once it exists, everything does
            if (folder / name).exists():
                (folder / name).replace(final)
        shutil.rmtree(folder)

    def _header(self) -> bytes:
        """The .npy header for the rows so far; its length is fixed, so it can be rewritten in place."""
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
        start = len(self._header())
        with path.open("wb") as file, parquet.ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
            for names, labels, features in self._rows(start):
                lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), self.width)
                columns = [pa.array(names), pa.array(labels, pa.string()), lists]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    def _rows(self, start: int) -> Iterator[tuple[list[str], list[str | None], np.ndarray]]:
        """Read the rows back in chunks: paths, labels, (b, D)."""
        folder = self.files.folder
        with (folder / _FEATURES).open("rb") as features, (folder / _INDEX).open(newline="", encoding="utf-8") as index:
            features.seek(start)
            rows = csv.reader(index)
            next(rows)
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                numbers = np.fromfile(features, dtype="<f4", count=len(chunk) * self.width)
                yield [row[0] for row in chunk], [row[1] or None for row in chunk], numbers.reshape(-1, self.width)
