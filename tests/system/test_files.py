"""Files that are read and replaced: damage is named, and what is left of a replacement can be found."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from fastmim.errors import RunError
from fastmim.system import files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged .Expecting value.*; expected JSON: restore or remove it"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"9" * 5000, "is damaged"),
        (b"[4]", r"holds \[4\]; expected a JSON object: restore or remove it"),
    ],
)
def test_json_that_is_damaged_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(RunError, match=f"plan.json {message}"):
        files.read_json(tmp_path / "plan.json")


def test_a_replacement_that_fails_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    files.write_text(path, "old")
    with suppress(ZeroDivisionError), files.replacing(path) as partial:
        partial.write_text("new")
        partial.with_name(".tmpAbCdEf").write_text("of the writer's own")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".weights.1.tmp", ".weights.2.tmp"):
        (tmp_path / name).mkdir()
    for name in ("weights", ".weights.tmp", ".weightier.1.tmp", "weights.1.tmp"):
        (tmp_path / name).write_text("mine")
    files.remove_leftovers(tmp_path / "weights")
    assert {path.name for path in tmp_path.iterdir()} == {
        "weights",
        ".weights.tmp",
        ".weightier.1.tmp",
        "weights.1.tmp",
    }
