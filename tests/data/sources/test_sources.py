"""The kinds of `--data`, and the messages for anything else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fastmim.data.augment import decode_center
from fastmim.data.labelled import open_labelled
from fastmim.data.sources import Source, open_source, samples
from fastmim.errors import RequestError, RunError
from pictures import encode, photograph


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photograph().resize((60, 40))))
    return root


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_samples_are_hundreds_of_real_tiles() -> None:
    source = open_source("samples")
    assert len(source) >= 256  # the default batch
    assert source.labels is None and source.classes is None
    assert len(set(names(source))) == len(source)
    assert "samples/coffee.png#3" in names(source)
    for index in range(len(source)):
        tile = source.read(index)
        assert isinstance(tile, np.ndarray) and tile.dtype == np.uint8 and min(tile.shape[:2]) >= 190
    assert all(decode_center(source.read(index), 64).shape == (3, 64, 64) for index in (0, len(source) - 1))
    assert len(pickle.dumps(source)) < 50_000  # boxes, not pixels


def test_tiles_reach_every_edge_of_their_photograph() -> None:
    source = open_source("samples")
    pixels = np.asarray(photograph())
    tiles = [source.read(i) for i in range(len(source)) if source.name(i).startswith("samples/coffee")]
    side = tiles[0].shape[0]
    assert np.array_equal(tiles[0], pixels[:side, :side])
    assert np.array_equal(tiles[-1], pixels[-side:, -side:])


def test_samples_without_scikit_images_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_folder", lambda: tmp_path)
    with pytest.raises(RunError, match=r"photograph astronaut.png cannot be read .* reinstall scikit-image"):
        open_source("samples")


def test_samples_of_some_photographs() -> None:
    source = open_source("samples://rocket,coffee,rocket")
    whole = [name for name in names(open_source("samples")) if "coffee" in name or "rocket" in name]
    assert sorted(names(source)) == sorted(whole) and names(source)[0] == "samples/rocket.jpg#0"
    assert source.origin == "samples://rocket,coffee,rocket"
    with pytest.raises(RequestError, match="'tree' is no built-in photograph; expected some of astronaut,brick,camera"):
        open_source("samples://coffee,tree")


def test_a_directory_called_samples_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "samples/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert len(open_source("./samples", cache_dir=tmp_path / "cache")) == 1


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder(tmp_path, "photos/a.jpg")
    assert names(open_source("~/photos")) == [str(tmp_path / "photos/a.jpg")]


@pytest.mark.parametrize("data", ["s3://bucket/x", "ftp://x", "samples://", ""])
def test_unknown_schemes_list_what_is_accepted(data: str) -> None:
    with pytest.raises(
        RequestError, match=r"is not understood; expected a directory of images or .* torchvision://NAME"
    ):
        open_source(data)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(RequestError, match=r"photo.jpg is a file, not a list of images; expected a directory"):
        open_source(str(tmp_path / "photo.jpg"))


def test_the_message_for_a_missing_directory_names_the_nearest_parent(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        RequestError, match=rf"no such file .*{tmp_path} holds no 'phtos'.*did you mean {tmp_path}/photos\?"
    ):
        open_source(str(tmp_path / "phtos"))
    with pytest.raises(RequestError, match=rf"{tmp_path} holds no 'x'\); expected a directory"):
        open_source(str(tmp_path / "x" / "y" / "train"))


@pytest.mark.parametrize("data", ["~nosuchuser/photos", "hf://~nosuchuser", "torchvision://MNIST?root=~nosuchuser"])
def test_an_unknown_home_directory_is_refused(data: str) -> None:
    for open_it in (open_source, open_labelled):
        with pytest.raises(RequestError, match="~nosuchuser.* begins with a home directory that is not known"):
            open_it(data)


@pytest.mark.parametrize("data", ["x" * 5000, "a/" * 3000, "photos\0", "x" * 300 + ".tar", "x" * 300 + "{0..9}.tar"])
def test_what_cannot_be_a_path_does_not_exist(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for open_it in (open_source, open_labelled):
        with pytest.raises(RequestError, match="no such (file or directory|shard)"):
            open_it(data)


# Lists


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_plain_list_is_relative_to_its_folder(tmp_path: Path) -> None:
    folder(tmp_path, "a b.jpg", "sub/c, d.jpg")
    source = open_source(write(tmp_path / "list.txt", f"sub/c, d.jpg\n\n{tmp_path}/a b.jpg\r\n"))
    assert names(source) == [str(tmp_path / "sub/c, d.jpg"), str(tmp_path / "a b.jpg")]
    assert source.labels is None and source.classes is None
    assert source.read(1) == (tmp_path / "a b.jpg").read_bytes()
    assert names(pickle.loads(pickle.dumps(source))) == names(source)  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label\na.jpg,dog\nb.jpg,cat\nc.jpg,dog\n"),
        ("list.csv", '\ufeffFile, class\n"a.jpg", dog\n"b.jpg", cat\n"c.jpg", dog\n'),
        ("list.tsv", "a.jpg\tdog\nb.jpg\tcat\nc.jpg\tdog\n"),
        ("list.txt", "a.jpg\tdog\nb.jpg\tcat\nc.jpg\tdog\n"),
    ],
)
def test_labels_by_name(tmp_path: Path, name: str, text: str) -> None:
    folder(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    source = open_source(write(tmp_path / name, text))
    assert [Path(n).name for n in names(source)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("name", "sign"), [("list.csv", ","), ("list.txt", " ")])
def test_labels_by_number_sort_as_numbers(tmp_path: Path, name: str, sign: str) -> None:
    folder(tmp_path, "a.jpg", "b.JPEG", "c.png")
    source = open_source(write(tmp_path / name, f"a.jpg{sign}10\nb.JPEG{sign}9\nc.png{sign}10\n"))
    assert source.classes == ["9", "10"]
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]


def test_a_number_after_a_space_may_be_part_of_a_name(tmp_path: Path) -> None:
    folder(tmp_path, "shot 1", "a.jpg 2")
    source = open_source(write(tmp_path / "list.txt", "shot 1\na.jpg 2\n"))
    assert names(source) == [str(tmp_path / "shot 1"), str(tmp_path / "a.jpg 2")]
    assert source.labels is None


def test_file_names_of_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    path = tmp_path / "list.txt"
    Path(str(tmp_path / "caf\udce9.jpg")).write_bytes(b"latin")
    assert open_source(str(path)).read(0) == b"latin"


@pytest.mark.parametrize("text", ["", "\n \n", "path,label\n"])
def test_empty_lists(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match=r"list.csv names no images: expected one path a line"):
        open_source(write(tmp_path / "list.csv", text))


@pytest.mark.parametrize("row", ["b.jpg", "b.jpg,1,2", "b.jpg,", ",1"])
def test_uneven_rows_are_named(tmp_path: Path, row: str) -> None:
    folder(tmp_path, "a.jpg")
    with pytest.raises(
        RequestError, match=rf"list.csv, entry 2: '{row}' (does not read like the first, 'a.jpg,1'|has 3 columns)"
    ):
        open_source(write(tmp_path / "list.csv", f"a.jpg,1\n{row}\n"))


def test_a_list_of_missing_files_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"no such file: a.jpg .* relative to the list's folder, {tmp_path}"):
        open_source(write(tmp_path / "list.txt", "a.jpg\nb.jpg\n"))
    folder(tmp_path, "b.jpg")  # single missing files count as unreadable images when they are read
    assert len(open_source(str(tmp_path / "list.txt"))) == 2


def test_an_unreadable_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "list.txt", "a.jpg")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RequestError, match=r"cannot read the list .*list.txt: Permission denied"):
        open_source(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_list_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.csv").write_text("a.jpg,1\nb.jpg,2\n", encoding=encoding)
    with pytest.raises(RequestError, match=r"list.csv holds NUL characters; expected text in UTF-8: save it as that"):
        open_source(str(tmp_path / "list.csv"))


def test_rows_beyond_measure(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(RequestError, match=r"cannot read the list .*list.csv: field larger than field limit"):
        open_source(write(tmp_path / "list.csv", "a.jpg\n" + "b" * 200_000))
    with pytest.raises(RequestError, match=r"entry 2: .* does not read like the first") as caught:
        open_source(write(tmp_path / "list.csv", "a.jpg,1\n" + "b" * 100_000))
    assert len(str(caught.value)) < 1000
    with pytest.raises(RequestError, match=r"no such file: bbbb") as caught:
        open_source(write(tmp_path / "list.txt", "b" * 100_000))
    assert len(str(caught.value)) < 1000
    source = open_source(write(tmp_path / "list.csv", f"a.jpg,{'1' * 5000}\nb.jpg,2\n"))
    assert source.classes == ["1" * 5000, "2"]  # names, not numbers


@pytest.mark.parametrize(
    "text",
    [
        "Pfad;Klasse\na.jpg;gut\nb/c.jpg;Ausschuß\n",
        "sep=;\r\nPfad;Klasse\r\na.jpg;gut\r\nb/c.jpg;Ausschuß\r\n",
        "name\tclass\na.jpg\tgut\nb/c.jpg\tAusschuß\n",
        "path,label\na.jpg,gut\nb\\c.jpg,Ausschuß\n",
        "a.jpg,gut\nb/c.jpg,Ausschuß\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_lists_from_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    folder(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    source = open_source(str(tmp_path / "list.csv"))
    assert names(source) == [str(tmp_path / "a.jpg"), str(tmp_path / "b/c.jpg")]
    assert all(isinstance(source.read(index), bytes) for index in range(2))
    assert source.classes == ["Ausschuß", "gut"] and source.labels is not None and source.labels.tolist() == [1, 0]
    said = f"note      {tmp_path / 'list.csv'} is not UTF-8: read as Windows-1252; save it as UTF-8 if names look wrong"
    assert source.remarks == ((said,) if encoding == "cp1252" else ())


def test_names_in_lists_are_taken_as_they_are_if_such_files_exist(tmp_path: Path) -> None:
    """With separators of other lists, and with bytes that are not UTF-8."""
    folder(tmp_path, "a;b.jpg", "c,d.jpg", "e\\f.jpg", "Maß.jpg")
    raw = os.fsencode(tmp_path) + b"/Ma\xdf2.jpg"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "a;b.jpg").read_bytes())
    for text in (b"a;b.jpg", b"c,d.jpg", b"e\\f.jpg", b"Ma\xdf.jpg", b"Ma\xdf2.jpg", b"Path of it\na;b.jpg"):
        (tmp_path / "list.csv").write_bytes(text)
        source = open_source(str(tmp_path / "list.csv"))
        assert len(source) == 1 and isinstance(source.read(0), bytes), text


def test_a_list_of_more_columns_names_them(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg")
    expected = (
        r"list.csv, entry 1: 'a.jpg,train,1' has 3 columns; expected a path, or a path and a label, in every row: "
    )
    with pytest.raises(RequestError, match=expected + "remove the others"):
        open_source(write(tmp_path / "list.csv", "path,split,label\na.jpg,train,1\n"))
