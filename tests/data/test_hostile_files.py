"""Pipes, devices and huge files with the names of images are unreadable images; nothing waits for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastmim
from fastmim.data.center_crops import load_centers
from fastmim.data.loader import load
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.torchvision_datasets import Arrays
from fastmim.errors import RequestError
from fastmim.system import files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX special files")

REASONS = {
    "pipe.jpg": "not a regular file",
    "device.jpg": "not a regular file",
    "huge.jpg": "larger than 1024 MiB",
    "gone.jpg": "No such file or directory",
}


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    os.mkfifo(tmp_path / "pipe")
    (data / "pipe.jpg").symlink_to(tmp_path / "pipe")
    (data / "device.jpg").symlink_to("/dev/zero")
    (data / "gone.jpg").symlink_to(tmp_path / "nothing")
    with (data / "huge.jpg").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    return data


def found_bad(source: Source) -> dict[str, str]:
    """What an evaluation pass and a training epoch report; both must agree."""
    evaluated = [bad for batch in load_centers(source, size=16, batch_size=8) for bad in batch["bad"]]
    options = {"size": 16, "seed": 0, "global_batch": len(source), "first_step": 0, "last_step": 1}
    trained = [bad for batch in load(source, **options) for bad in batch["bad"]]  # type: ignore[arg-type]
    assert sorted(evaluated) == sorted(trained)
    return {Path(name).name: reason for name, reason in evaluated}


def test_special_files_in_a_folder_are_skipped(folder: Path, tmp_path: Path) -> None:
    assert found_bad(open_source(str(folder), cache_dir=tmp_path / "cache")) == REASONS
    packed = fastmim.pack(folder, tmp_path / "packed", num_workers=0, max_bad_share=0.5)
    assert packed.num_images == 24
    listed = (tmp_path / "packed/bad_images.txt").read_text().splitlines()
    assert {Path(line.split("\t")[0]).name: line.split("\t")[1] for line in listed} == REASONS


def test_special_files_in_a_list_are_skipped(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    good = [str(path) for path in sorted(folder.glob("0*.jpg"))]
    listed.write_text("\n".join([*good, "/dev/null", str(folder / "pipe.jpg"), str(tmp_path)]) + "\n")
    bad = found_bad(open_source(str(listed)))
    assert bad["pipe.jpg"] == bad["null"] == "not a regular file"
    assert bad[tmp_path.name] in ("Is a directory", "not a regular file")


def test_a_file_that_passes_for_regular_and_keeps_its_readers_waiting_is_skipped(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg does, which only root may read; a pipe with a silent writer stands in for it."""
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    os.mkfifo(data / "silent.jpg")
    writer = os.open(data / "silent.jpg", os.O_RDWR)
    monkeypatch.setattr(files.stat, "S_ISREG", lambda mode: True)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, sorted(data.iterdir()))) + "\n")
    assert found_bad(open_source(str(listed))) == {"silent.jpg": "not a regular file"}
    os.close(writer)


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos.tar")
    with pytest.raises(RequestError, match=r"cannot read the shard .*photos.tar: not a regular file"):
        open_source(str(tmp_path / "photos.tar"), cache_dir=tmp_path / "cache")


ERRORS = [MemoryError(), ValueError("odd"), RecursionError("maximum recursion depth exceeded"), RuntimeError("no")]


class Moody(Arrays):
    """Images 0 to 3 fail in other ways than an image usually does."""

    def read(self, index: int) -> np.ndarray:
        if index < len(ERRORS):
            raise ERRORS[index]
        return super().read(index)


def test_whatever_one_image_raises_makes_it_unreadable() -> None:
    assert found_bad(Moody(np.zeros((12, 20, 20), np.uint8), origin="moody")) == {
        "moody#0": "MemoryError",
        "moody#1": "ValueError: odd",
        "moody#2": "RecursionError: maximum recursion depth exceeded",
        "moody#3": "RuntimeError: no",
    }
