"""Records are dated files, the later of a day replacing the earlier; tables are the same in Markdown and on a console."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console

from fastmim.bench import records
from fastmim.bench.markdown import Table, markdown, number
from fastmim.errors import RequestError

TODAY = date.today().isoformat()


def test_a_later_record_of_the_same_day_replaces_the_earlier_one(tmp_path: Path) -> None:
    for value in (1.0, 2.123456):
        path = records.write(tmp_path, "bench-x", claim="c", config={}, raw={}, summary={"value": value})
    assert [p.name for p in tmp_path.iterdir()] == [path.name] == [f"bench-x-{TODAY}.json"]
    assert json.loads(path.read_text())["summary"] == {"value": 2.1235}
    (tmp_path / "bench-x-2001-01-01.json").write_text("{}")
    (tmp_path / f"bench-x-cuda-{TODAY}.json").write_text("{}")
    assert records.newest(tmp_path, "bench-x") == path
    assert records.newest(tmp_path, "bench-y") is None


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="records is .*file: .*; expected a writable directory"):
        records.prepare(tmp_path / "file")


def test_tables() -> None:
    table = Table("Speed", ("form", "images/s"), [("a | b", number(1234.5)), ("c", number(None))], "On a CPU.")
    text = "| form | images/s |\n|---|---:|\n| a / b | 1,234 |\n| c | - |"
    assert markdown(table.header, table.rows) == text
    assert table.markdown() == f"### Speed\n\n{text}\n\nOn a CPU.\n"
    console = Console(file=io.StringIO(), width=20)
    table.print(console, width=60)
    printed = console.file.getvalue()
    assert "1,234" in printed and "On a CPU." in printed
