"""An embedding on the disk while it grows: what is committed survives a kill, and `out` appears whole or not at all.

`<out>.partial/` holds `features.npy` (rows so far), `index.csv` (their paths and labels), `bad_images.txt`, and
`progress.json`, which is replaced at each commit and says how long the other files were then. What a kill left
beyond that length is cut off when the work goes on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastmim.errors import RequestError
from fastmim.system import locking

_FEATURES, _INDEX, _BAD, _PROGRESS = "features.npy", "index.csv", "bad_images.txt", "progress.json"
_ROWS_AT_ONCE = 16384


class Partial:
    """Appends rows as a context manager; `finish` afterwards.

    Args:
        folder: `<out>.partial`; made, or gone on with.
        out: The .npy or .parquet file that it will become.
        width: D.
        settings: What decides the rows, as JSON types; an unfinished part of others is refused.
        overwrite: Begin anew.

    Raises:
        RequestError: it cannot be written, or was begun with other settings.
    """

    def __init__(
        self, folder: Path, out: Path, *, width: int, settings: Mapping[str, Any], overwrite: bool = False
    ) -> None:
        self.folder, self.out, self.width = folder, out, width
        self.bad_images = out.with_suffix(".bad_images.txt")
        self.settings = json.loads(json.dumps(settings))
        self.num_read = self.num_rows = self.num_saved = 0
        self.last_name = ""
        self._bytes: dict[str, int] = {}
        try:
            if overwrite and folder.exists():
                locking.clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / _PROGRESS).exists():
                self._go_on(json.loads((folder / _PROGRESS).read_text()))
            else:
                (folder / _INDEX).write_bytes(b"path,label\r\n")
                (folder / _FEATURES).write_bytes(self._header())
                self._bytes = {name: (folder / name).stat().st_size for name in (_FEATURES, _INDEX)}
        except OSError as error:
            raise RequestError(f"out is {out}: {error.strerror}; expected a file that can be written") from None

    def _go_on(self, progress: dict[str, Any]) -> None:
        before = progress["settings"]
        differing = [
            f"{key} {before.get(key)!r} -> {self.settings.get(key)!r}"
            for key in sorted(before.keys() | self.settings.keys())
            if before.get(key) != self.settings.get(key)
        ]
        if differing:
            raise RequestError(
                f"out is {self.out}, whose unfinished part has other settings ({'; '.join(differing)}): take another "
                f"--out, or start anew with --overwrite"
            )
        self.num_read = self.num_saved = progress["num_read"]
        self.num_rows, self.last_name, self._bytes = progress["num_rows"], progress["last_name"], progress["bytes"]

    def __enter__(self) -> Partial:
        self._files: dict[str, IO[bytes]] = {}
        for name, length in self._bytes.items():
            if (self.folder / name).exists():  # not if a kill came while `finish` was moving them
                os.truncate(self.folder / name, length)
                self._files[name] = (self.folder / name).open("r+b")
                self._files[name].seek(length)
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, features: np.ndarray, names: Sequence[str], labels: Sequence[str], *, num_read: int) -> None:
        """Add rows.

        Args:
            features: (b, D) float32.
            names: b paths.
            labels: b classes, empty for none.
            num_read: Images that the rows come from, unreadable ones included.
        """
        self._files[_FEATURES].write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        text = io.StringIO()
        csv.writer(text).writerows(zip(names, labels, strict=True))
        self._files[_INDEX].write(text.getvalue().encode("utf-8", "backslashreplace"))
        self.num_read += num_read
        self.num_rows += len(features)

    def commit(self, last_name: str) -> None:
        """Have all rows so far survive a kill; `last_name` is the image that was read last."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        progress = {
            "settings": self.settings,
            "num_read": self.num_read,
            "num_rows": self.num_rows,
            "last_name": last_name,
            "bytes": {name: file.tell() for name, file in self._files.items()},
        }
        with (self.folder / f"{_PROGRESS}.tmp").open("w") as written:
            json.dump(progress, written)
            written.flush()
            os.fsync(written.fileno())
        (self.folder / f"{_PROGRESS}.tmp").replace(self.folder / _PROGRESS)
        self.num_saved = self.num_read

    def finish(self) -> None:
        """Turn all that was committed into `out`; can be called again if a kill came in between."""
        moves = {_BAD: self.bad_images}
        if self.out.suffix == ".npy":
            moves |= {_INDEX: self.out.with_suffix(".csv"), _FEATURES: self.out}
            if (self.folder / _FEATURES).exists():
                with (self.folder / _FEATURES).open("r+b") as file:
                    file.write(self._header())
                    os.fsync(file.fileno())
        elif (self.folder / _FEATURES).exists():
            moves |= {"rows.parquet": self.out}
            self._write_parquet(self.folder / "rows.parquet")
        for name, final in moves.items():  # `out` is the last: when it is there, all is
            if (self.folder / name).exists():
                (self.folder / name).replace(final)
        shutil.rmtree(self.folder)

    def _header(self) -> bytes:
        """The .npy header for the rows so far: of one length for any number, so that it is rewritten in place."""
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
        with path.open("wb") as file:
            with parquet.ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
                for names, labels, features in self._rows(start):
                    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), self.width)
                    columns = [pa.array(names), pa.array(labels, pa.string()), lists]
                    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            file.flush()
            os.fsync(file.fileno())

    def _rows(self, start: int) -> Iterator[tuple[list[str], list[str | None], np.ndarray]]:
        """The rows again, some thousands at a time: paths, labels, (b, D)."""
        with (self.folder / _FEATURES).open("rb") as features, (self.folder / _INDEX).open(newline="") as index:
            features.seek(start)
            rows = csv.reader(index)
            next(rows)
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                numbers = np.fromfile(features, dtype="<f4", count=len(chunk) * self.width)
                yield [row[0] for row in chunk], [row[1] or None for row in chunk], numbers.reshape(-1, self.width)
