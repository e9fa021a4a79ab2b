"""Files that grow: a kill loses only what no commit has confirmed, whatever the images are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fastmim.errors import RequestError
from fastmim.system.growing import GrowingFiles
from fastmim.system.signals import Stopped


class Named:
    """Images whose names are not UTF-8."""

    origin = "photos"

    def __init__(self, stem: str = "\udce9") -> None:
        self.stem = stem

    def __len__(self) -> int:
        return 6

    def name(self, index: int, /) -> str:
        return f"{self.stem}{index}"


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def write(out: Path, images: Named, *, kill_at: int = 7) -> GrowingFiles:
    """Append the number of each image, committing each but the one at which the kill comes."""
    files = GrowingFiles(out, ("numbers", "words"))
    files.recover()
    done = files.num_saved

    def steps() -> Iterator[int]:
        for number in range(done + 1, 7):
            files.append("numbers", b"%d" % number)
            if number == kill_at:
                raise Killed
            files.append("words", memoryview(b"image "))
            yield number

    facts = {"settings": {"size": (8, 8)}}
    files.grow(images, steps(), lambda: facts, seconds=-1.0, console=Console())
    return files


def test_a_pass_resumes_at_the_last_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kill_at in (1, 4):
        with pytest.raises(Killed):
            write(tmp_path / "out", Named(), kill_at=kill_at)
    folder = tmp_path / "out.partial"
    assert (folder / "numbers").read_bytes() == b"1234" and (folder / "words").read_bytes() == b"image " * 3
    for stale in ("progress.json.tmp", ".progress.json.1.tmp"):
        (folder / stale).write_text("{")
    files = write(tmp_path / "out", Named())
    assert "resuming at image 3 of 6" in capsys.readouterr().out
    assert files.lengths == {"numbers": 6, "words": 36} and files.num_saved == 6
    assert (folder / "numbers").read_bytes() == b"123456" and (folder / "words").read_bytes() == b"image " * 6
    assert sorted(path.name for path in folder.iterdir()) == ["numbers", "progress.json", "words"]
    assert GrowingFiles(tmp_path / "out", (), overwrite=True).committed == {} and not list(folder.iterdir())


def test_what_was_appended_before_data_ceased_to_come_is_committed(tmp_path: Path) -> None:
    files = GrowingFiles(tmp_path / "out", ("numbers",))

    def steps() -> Iterator[int]:
        for number in range(1, 4):
            files.append("numbers", b"%d" % number)
            yield number
        raise Stopped("stopped")

    files.grow(Named(), steps(), dict, seconds=60.0, console=Console())
    again = GrowingFiles(tmp_path / "out", ("numbers",))
    again.recover()
    assert (again.num_saved, (again.folder / "numbers").read_bytes()) == (3, b"123")


def test_other_images_and_other_settings(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "out", Named(), kill_at=4)
    with pytest.raises(RequestError, match=r"data is photos, whose image 3 is x2; expected .2, as when this began"):
        write(tmp_path / "out", Named("x"))
    files = GrowingFiles(tmp_path / "out", ("numbers", "words"))
    assert files.differences("settings", {"size": (8, 8)}) == ""
    assert files.differences("settings", {"size": (8, 9), "seed": 1}) == "seed None -> 1; size [8, 8] -> [8, 9]"
    assert GrowingFiles(tmp_path / "other", ()).differences("settings", {"seed": 1}) == ""
