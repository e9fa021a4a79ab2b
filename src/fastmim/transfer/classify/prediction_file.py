"""The file of `predict`, CSV or Parquet with the same columns: it grows by batches, and appears whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fastmim.system.files import replacing


class PredictionFile(Protocol):
    """Appends rows."""

    def append(
        self, paths: Sequence[str], names: Sequence[Sequence[str]], probabilities: Sequence[Sequence[float]]
    ) -> None:
        """Add b rows.

        Args:
            paths: The images' names.
            names: (b, top) their most probable classes, in order.
            probabilities: (b, top) of these.
        """


@contextmanager
def open_file(out: Path, top: int) -> Iterator[PredictionFile]:
    """Yield the file with `top` classes in a row; it replaces `out` when the block ends.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(out) as partial:
        if out.suffix == ".csv":
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield _Csv(file, top)
        else:
            from pyarrow import parquet

            with parquet.ParquetWriter(partial, _schema(top)) as writer:
                yield _Parquet(writer, top)


def _columns(top: int) -> list[str]:
    """The columns: "path", "class", "probability", "class_2", "probability_2" and so on."""
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability"))]


class _Csv:
    def __init__(self, file: Any, top: int) -> None:
        self._writer = csv.writer(file)
        self._writer.writerow(_columns(top))

    def append(
        self, paths: Sequence[str], names: Sequence[Sequence[str]], probabilities: Sequence[Sequence[float]]
    ) -> None:
        for path, row, shares in zip(paths, names, probabilities, strict=True):
            pairs = zip(row, shares, strict=True)
            self._writer.writerow([path, *(item for name, share in pairs for item in (name, f"{share:.6f}"))])


class _Parquet:
    def __init__(self, writer: Any, top: int) -> None:
        self._writer, self._top = writer, top

    def append(
        self, paths: Sequence[str], names: Sequence[Sequence[str]], probabilities: Sequence[Sequence[float]]
    ) -> None:
        import pyarrow as pa

        # A file name that is not UTF-8 holds surrogates.
        columns: list[Any] = [[path.encode("utf-8", "backslashreplace").decode() for path in paths]]
        for rank in range(self._top):
            columns += [[row[rank] for row in names], [row[rank] for row in probabilities]]
        self._writer.write_table(pa.table(columns, schema=_schema(self._top)))


def _schema(top: int) -> Any:
    import pyarrow as pa

    kinds = {name: pa.float32() if name.startswith("probability") else pa.string() for name in _columns(top)}
    return pa.schema(list(kinds.items()))
