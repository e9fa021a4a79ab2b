"""Directories: which files count, in which order, and when the cached index is used."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fastmim.data.sources import Source, open_source
from fastmim.data.sources import folder as folders
from fastmim.errors import RequestError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def settle(root: Path) -> None:
    """Make every folder look long unchanged, like finished data at the start of a run."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_names(root: Path, cache: Path) -> list[str]:
    source = open_source(str(root), cache_dir=cache)
    return [str(Path(source.name(index)).relative_to(root)) for index in range(len(source))]


def open_both_ways(root: Path, cache: Path) -> Source:
    """Scan, then read from the cache; both must agree."""
    settle(root)
    first, second = (open_source(str(root), cache_dir=cache) for _ in range(2))
    assert list(cache.rglob("*.npz"))
    assert [first.name(i) for i in range(len(first))] == [second.name(i) for i in range(len(second))]
    assert first.classes == second.classes
    assert np.array_equal(first.labels, second.labels)  # type: ignore[arg-type]
    return second


def test_images_at_any_depth_in_sorted_order(root: Path, cache: Path) -> None:
    touch(root, "b.jpg", "a.PNG", "z/1.webp", "z/y/x/2.tiff", "z-1/3.Jpeg", "notes.txt", "z/film.mpg", "README")
    expected = ["a.PNG", "b.jpg", "z/1.webp", "z-1/3.Jpeg", "z/y/x/2.tiff"]  # by folder, then by name
    assert open_names(root, cache) == expected


def test_order_does_not_depend_on_the_file_system(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, *(f"{folder}/{name}.jpg" for folder in ("p", "q", "r") for name in "dacb"))
    (root / "r" / "link").symlink_to(touch(root.parent / "elsewhere", "e.jpg"))
    expected = open_names(root, cache)
    listing = os.scandir

    class Reversed:
        def __init__(self, path: bytes) -> None:
            self.entries = sorted(listing(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[bytes]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert open_names(root, cache) == expected
    assert len(expected) == 13


def test_hidden_files_and_folders_are_skipped(root: Path, cache: Path) -> None:
    touch(root, "a.jpg", "._a.jpg", ".trash/b.jpg", "c/.d.jpg")
    assert open_names(root, cache) == ["a.jpg"]


def test_class_folders(root: Path, cache: Path) -> None:
    touch(root, "dog/1.jpg", "cat/b/2.jpg", "cat/1.jpg", "empty/notes.txt")
    source = open_both_ways(root, cache)
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None and source.labels.dtype == np.int64
    by_name = {Path(source.name(i)).relative_to(root).parts[0]: int(source.labels[i]) for i in range(len(source))}
    assert by_name == {"cat": 0, "dog": 1}


def test_one_image_outside_the_folders_means_no_classes(root: Path, cache: Path) -> None:
    touch(root, "dog/1.jpg", "cat/1.jpg", "stray.jpg")
    source = open_both_ways(root, cache)
    assert source.labels is None and source.classes is None and len(source) == 3


def test_links_to_files_and_folders_are_followed(root: Path, cache: Path) -> None:
    outside = touch(root.parent / "outside", "cats/1.jpg", "2.jpg")
    (root / "cat").symlink_to(outside / "cats")
    (root / "dog").mkdir()
    (root / "dog" / "2.jpg").symlink_to(outside / "2.jpg")
    settle(outside)
    source = open_both_ways(root, cache)
    assert [source.name(i) for i in range(2)] == [str(root / "cat/1.jpg"), str(root / "dog/2.jpg")]
    assert source.classes == ["cat", "dog"]


def test_loops_end_and_real_names_win(root: Path, cache: Path) -> None:
    touch(root, "z/real/1.jpg")
    (root / "a-link").symlink_to(root / "z" / "real")
    (root / "z" / "real" / "up").symlink_to(root)
    (root / "self.jpg").symlink_to(root / "self.jpg")
    assert open_names(root, cache) == ["self.jpg", "z/real/1.jpg"]


def test_a_broken_link_is_an_image_that_cannot_be_read(root: Path, cache: Path) -> None:
    (root / "gone.jpg").symlink_to(root / "nowhere")
    source = open_source(str(root), cache_dir=cache)
    with pytest.raises(FileNotFoundError):
        source.read(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_pipes_and_folders_named_like_images_are_not_read(root: Path, cache: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    touch(root, "album.jpg/1.jpg")
    assert open_names(root, cache) == ["album.jpg/1.jpg"]


def test_file_names_of_any_encoding(root: Path, cache: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.jpg")).write_bytes(b"latin")
    assert open_both_ways(root, cache).read(0) == b"latin"


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder", "new linked folder"])
def test_a_changed_folder_is_scanned_again(root: Path, cache: Path, change: str) -> None:
    touch(root, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    before = open_both_ways(root, cache)
    match change:
        case "add":
            touch(root, "a/0.jpg")
        case "remove":
            (root / "a/1.jpg").unlink()
        case "rename":
            (root / "b/3.jpg").rename(root / "b/4.jpg")
        case "new folder":
            touch(root, "c/5.jpg")
        case "new linked folder":
            (root / "b/link").symlink_to(touch(root.parent / "outside", "6.jpg"))
    actual = sorted(str(path) for path in root.rglob("*.jpg"))
    if change == "new linked folder":
        actual.append(str(root / "b/link/6.jpg"))
    after = open_source(str(root), cache_dir=cache)
    assert sorted(after.name(i) for i in range(len(after))) == sorted(set(actual))
    assert [before.name(i) for i in range(3)] != [after.name(i) for i in range(len(after))]


def test_the_cache_saves_the_walk(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "a/1.jpg")
    open_both_ways(root, cache)
    monkeypatch.setattr(folders, "_walk", None)
    assert open_names(root, cache) == ["a/1.jpg"]


def test_a_folder_that_has_just_changed_is_not_cached(root: Path, cache: Path) -> None:
    """Within the clock's resolution a second file may arrive without changing the folder's time."""
    touch(root, "1.jpg")
    assert open_names(root, cache) == ["1.jpg"]
    assert not list(cache.rglob("*.npz"))


def test_a_damaged_cache_is_replaced(root: Path, cache: Path) -> None:
    touch(root, "1.jpg", "2.jpg")
    open_both_ways(root, cache)
    (file,) = cache.rglob("*.npz")
    whole = file.read_bytes()
    for damage in (b"", b"junk", whole[: len(whole) // 2], whole.replace(b"1.jpg", b"x.jpg")):
        file.write_bytes(damage)
        assert open_names(root, cache) == ["1.jpg", "2.jpg"]
        assert file.read_bytes() != damage
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half-written is left


def test_an_unwritable_cache_is_no_error(root: Path, tmp_path: Path) -> None:
    touch(root, "1.jpg")
    settle(root)
    (tmp_path / "file").touch()
    assert open_names(root, tmp_path / "file" / "cache") == ["1.jpg"]


def test_the_index_is_small_when_pickled(root: Path, cache: Path) -> None:
    touch(root, *(f"class/{number:06}.jpg" for number in range(500)))
    source = open_source(str(root), cache_dir=cache)
    assert len(pickle.dumps(source)) < 500 * (len("class/000000.jpg") + 8 + 8) + 1000


def test_without_images_the_message_lists_other_extensions(root: Path, cache: Path) -> None:
    touch(root, "a.heic", "b.HEIC", "sub/c.txt", "LICENSE")
    expected = (
        r"no images among the 4 files in .*photos \(.heic 2, no ending 1, .txt 1\); expected files that end in .jpg"
    )
    with pytest.raises(RequestError, match=expected):
        open_source(str(root), cache_dir=cache)


def test_an_empty_directory(root: Path, cache: Path) -> None:
    with pytest.raises(RequestError, match=r"no images in .*photos: it holds no files; expected files that end in"):
        open_source(str(root), cache_dir=cache)


def test_a_folder_that_cannot_be_listed_is_named(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "a/1.jpg")
    listing = os.scandir

    def refuse(path: bytes) -> object:
        if path.endswith(b"/a"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RequestError, match=r"cannot list the folder .*photos/a: Permission denied"):
        open_source(str(root), cache_dir=cache)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), ProcessLookupError(3, "No such process")])
def test_a_folder_that_vanishes_is_passed_over(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Removed while its parent is scanned, or a link to that of a process that ends."""
    touch(root, "a/1.jpg", "b/2.jpg")
    listing = os.scandir

    def vanish(path: bytes) -> object:
        if path.endswith(b"/a"):
            raise error
        return listing(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert open_names(root, cache) == ["b/2.jpg"]


@pytest.mark.filterwarnings("default")
def test_run_directories_are_passed_over(root: Path, cache: Path) -> None:
    touch(root, "1.jpg", "a/2.jpg", "runs/x/config.yaml", "runs/x/metrics.jsonl", "runs/x/samples/step_1.png")
    touch(root, "study/config.yaml", "study/plan.json", "study/plot.png", "b/config.yaml", "b/3.jpg")
    with pytest.warns(UserWarning, match="passed over 2 run directories, such as runs/x, whose pictures are no train"):
        assert open_names(root, cache) == ["1.jpg", "a/2.jpg", "b/3.jpg"]
    settle(root)
    for _ in range(2):  # by a scan, and from its cache
        with pytest.warns(UserWarning, match="passed over 2 run directories"):
            assert len(open_names(root, cache)) == 3


def test_a_run_directory_that_is_asked_for_is_read(root: Path, cache: Path) -> None:
    touch(root, "config.yaml", "metrics.jsonl", "samples/step_1.png")
    assert open_names(root, cache) == ["samples/step_1.png"]


def test_files_that_are_passed_over_are_counted(root: Path, cache: Path) -> None:
    """From the cache too."""
    touch(root, *(f"scans/{number}.dcm" for number in range(30)), *(f"scans/{number}.png" for number in range(8)))
    source = open_both_ways(root, cache)
    assert source.remarks == ("left out  30 files that are not images (.dcm 30)",)
    touch(root, "README", "leer/.gitkeep", "later/notes.txt")
    assert open_source(str(root), cache_dir=cache).remarks == (
        "left out  32 files that are not images (.dcm 30, no ending 1, .txt 1)",
        "note      no images in the folders later, leer: not counted as classes",
    )
    touch(root.parent / "one", "1.jpg", "film.mp4")
    assert open_source(str(root.parent / "one"), cache_dir=cache).remarks == (
        "left out  1 file that is not an image (.mp4 1)",
    )
