"""Training and validation images, found in folders and splits or split by a hash; few labels; refusals."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from fastmim.data.labelled import Labelled, limit_labels, open_labelled
from fastmim.data.sources import Source
from fastmim.errors import RequestError
from pictures import encode, photograph


def folder(root: Path, **counts: int) -> Path:
    """Write class folders with the given numbers of files; "a__b" is a/b."""
    for name, count in counts.items():
        place = root / name.replace("__", "/")
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (place / f"{number}.jpg").write_bytes(b"")
    return root


def names(source: Source, root: Path) -> set[str]:
    return {str(Path(source.name(index)).relative_to(root)) for index in range(len(source))}


def described(source: Source) -> list[tuple[str, str]]:
    assert source.labels is not None and source.classes is not None
    return [(Path(source.name(index)).parent.name, source.classes[label]) for index, label in enumerate(source.labels)]


def idx_set(root: Path, train: list[int], test: list[int]) -> str:
    """Write a FashionMNIST whose images have these labels."""
    for part, labels in (("train", train), ("t10k", test)):
        pixels = np.arange(len(labels) * 16, dtype=np.uint8)
        contents = {"images-idx3": struct.pack(">4B3I", 0, 0, 8, 3, len(labels), 4, 4) + pixels.tobytes()}
        contents["labels-idx1"] = struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels)
        for name, data in contents.items():
            (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
    return f"torchvision://FashionMNIST?root={root}"


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_train_and_val_folders(tmp_path: Path, val: str) -> None:
    folder(tmp_path, train__cat=3, train__dog=2, train__eel=1, **{f"{val}__dog": 2, f"{val}__eel": 1})
    found = open_labelled(str(tmp_path))
    assert found.classes == ["cat", "dog", "eel"]
    assert len(found.train) == 6 and len(found.val) == 3  # val may lack a class
    for source in (found.train, found.val):
        assert all(place == name for place, name in described(source))
    assert found.val.origin == str(tmp_path / val)


def test_val_goes_before_test(tmp_path: Path) -> None:
    folder(tmp_path, train__cat=3, train__dog=2, test__dog=2, val__cat=1, unlabelled=3)
    assert len(open_labelled(str(tmp_path)).val) == 1


def test_a_lone_train_folder_is_split_and_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    folder(tmp_path / "lone", train__cat=30, train__dog=20)
    assert open_labelled(str(tmp_path / "lone"), val_share=0.3).classes == ["cat", "dog"]
    folder(tmp_path / "vehicles", train=20, car=20)
    assert open_labelled(str(tmp_path / "vehicles"), val_share=0.3).classes == ["car", "train"]


def test_val_data_by_name(tmp_path: Path) -> None:
    folder(tmp_path / "a", cat=3, dog=2, eel=1)
    folder(tmp_path / "b", dog=1, eel=1)
    found = open_labelled(str(tmp_path / "a"), val_data=str(tmp_path / "b"))
    assert described(found.val) == [("dog", "dog"), ("eel", "eel")]
    assert found.val.labels is not None and found.val.labels.tolist() == [1, 2]


def test_the_split_is_disjoint_whole_and_about_the_share(tmp_path: Path) -> None:
    folder(tmp_path, cat=400, dog=100, eel=1)
    found = open_labelled(str(tmp_path), val_share=0.2)
    train, val = names(found.train, tmp_path), names(found.val, tmp_path)
    assert not train & val and len(train | val) == 501
    assert [sum(name.startswith(kind) for name in val) for kind in ("cat", "dog", "eel")] == [80, 20, 0]
    assert "eel/0.jpg" in train  # a class always keeps an image for training
    for source in (found.train, found.val):
        assert all(place == name for place, name in described(source))


def test_the_split_survives_moving_and_adding(tmp_path: Path) -> None:
    folder(tmp_path / "old", cat=60, dog=60)
    before = open_labelled(str(tmp_path / "old"), val_share=0.3)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    folder(tmp_path / "new", ant=50, cat=120)
    after = open_labelled(str(tmp_path / "new"), val_share=0.3)
    for earlier, later in ((before.train, after.train), (before.val, after.val)):
        moved = names(earlier, tmp_path / "old") - names(later, tmp_path / "new")
        assert len(moved) <= 5 and not any(name.startswith("dog") for name in moved)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((4, 4, 4), (1, 1, 1)), ((2, 3, 1), (1, 1, 0)), ((14, 15, 4), (1, 2, 1)), ((2, 3, 4), (0, 0, 1))],
)
def test_small_sets_have_a_validation_part(tmp_path: Path, counts: tuple[int, ...], expected: tuple[int, ...]) -> None:
    folder(tmp_path, **dict(zip(("ant", "bee", "cat"), counts, strict=True)))
    val = open_labelled(str(tmp_path)).val
    assert val.labels is not None
    assert tuple(np.bincount(val.labels, minlength=3)) == expected


def test_subsets_read_and_pickle(tmp_path: Path) -> None:
    folder(tmp_path, cat=5, dog=5)
    for number in range(5):
        (tmp_path / "cat" / f"{number}.jpg").write_bytes(encode(photograph().resize((8 + number, 8))))
    found: Labelled = pickle.loads(pickle.dumps(open_labelled(str(tmp_path), val_share=0.4)))  # noqa: S301 - our own
    for source in (found.train, found.val):
        assert all(source.read(index) == Path(source.name(index)).read_bytes() for index in range(len(source)))


def test_torchvision_splits(tmp_path: Path) -> None:
    data = idx_set(tmp_path, [0, 1, 2, 1], [1, 2])
    found = open_labelled(data)
    assert (len(found.train), len(found.val)) == (4, 2)
    assert found.val.labels is not None and found.val.labels.tolist() == [1, 2]
    assert found.classes[1] == "Trouser"
    one = open_labelled(f"{data}&split=train", val_share=0.5)  # no other split is used if one is named
    assert len(one.train) + len(one.val) == 4


def test_few_labels_are_balanced_and_nested(tmp_path: Path) -> None:
    folder(tmp_path, ant=3, cat=100, dog=80)
    source = open_labelled(str(tmp_path), val_share=0.01).train
    few, more = limit_labels(source, 12), limit_labels(source, 30)
    assert np.bincount(few.labels).tolist() == [3, 5, 4] or np.bincount(few.labels).tolist() == [3, 4, 5]
    assert set(np.bincount(more.labels).tolist()) == {3, 13, 14}
    assert names(few, tmp_path) < names(more, tmp_path)
    assert names(few, tmp_path) != names(limit_labels(source, 12, seed=1), tmp_path)
    assert all(place == name for place, name in described(few))


@pytest.mark.parametrize("num", [2, 200])
def test_too_few_or_too_many_labels(tmp_path: Path, num: int) -> None:
    folder(tmp_path, ant=3, cat=10, dog=8)
    source = open_labelled(str(tmp_path), val_share=0.2).train
    expected = f"--num-labels {num}; expected at least one for each of the 3 classes, and at most the {len(source)}"
    with pytest.raises(RequestError, match=expected):
        limit_labels(source, num)


def test_no_labels(tmp_path: Path) -> None:
    folder(tmp_path / "flat", **{".": 3})
    with pytest.raises(RequestError, match=r"flat has no labels; expected class folders \(data/cat/1.jpg\)"):
        open_labelled(str(tmp_path / "flat"))
    folder(tmp_path / "half", train__cat=2, train__dog=2, val=3)
    with pytest.raises(RequestError, match=r"half/val has no labels"):
        open_labelled(str(tmp_path / "half"))
    with pytest.raises(RequestError, match=r"samples has no labels"):
        open_labelled("samples")


def test_one_class_only(tmp_path: Path) -> None:
    folder(tmp_path, cat=20)
    with pytest.raises(RequestError, match=r"has one class only \(cat\); expected two or more"):
        open_labelled(str(tmp_path))


def test_classes_of_val_that_train_lacks_are_named(tmp_path: Path) -> None:
    folder(tmp_path, train__cat=3, train__dog=2, val__dog=2, val__eel=1, val__fox=1)
    with pytest.raises(
        RequestError, match=r"val has images of eel, fox, but training has none; expected cat, dog: remove them"
    ):
        open_labelled(str(tmp_path))
    data = idx_set(tmp_path, [0, 1, 1], [0, 9])
    with pytest.raises(RequestError, match=r"has images of Ankle boot, but training has none"):
        open_labelled(data)


def test_labels_out_of_range(tmp_path: Path) -> None:
    data, remedy = idx_set(tmp_path, [0, 12], [0]), "expected 0 to 9 for its 10 classes: fix the labels"
    with pytest.raises(RequestError) as caught:
        open_labelled(data)
    assert str(caught.value) == f"{data} has label 12; {remedy}"
    data = idx_set(tmp_path, [0, 1], [0, 10])
    with pytest.raises(RequestError) as caught:
        open_labelled(data)
    assert str(caught.value) == f"{data}&split=test has label 10; {remedy}"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_shares_out_of_range(tmp_path: Path, share: float) -> None:
    with pytest.raises(RequestError, match=r"val_share is .*; expected more than 0 and less than 1, such as 0.1"):
        open_labelled(str(folder(tmp_path, cat=2, dog=2)), val_share=share)


def test_nothing_left_to_validate_on(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--val-share 0.9 of the 2 images in .* leaves none to validate on"):
        open_labelled(str(folder(tmp_path, cat=1, dog=1)), val_share=0.9)


def test_missing_files_of_a_split_are_an_error_not_another_split(tmp_path: Path) -> None:
    data = idx_set(tmp_path, [0, 1], [0])
    for file in tmp_path.glob("t10k-*"):
        file.write_bytes(b"damaged")
    with pytest.raises(RequestError, match="t10k"):
        open_labelled(data)
