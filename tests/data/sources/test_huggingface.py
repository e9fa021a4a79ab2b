"""hf:// on local datasets of every form, and the messages for missing ones."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from fastmim.data.labelled import open_labelled
from fastmim.data.loader import load
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.source import NoSuchSplit
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError, RunError
from pictures import encode, photograph

PICTURES = [encode(photograph().crop((10 * n, 0, 10 * n + 64, 48))) for n in range(6)]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the network and progress bars, and use a cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(label: list[Any] | None = None, kind: Any = None, **more: list[Any]) -> datasets.Dataset:
    columns: dict[str, Any] = {"image": [{"bytes": data, "path": None} for data in PICTURES], **more}
    features = {"image": datasets.Image(), **{name: datasets.Value("string") for name in more}}
    if label is not None:
        columns["label"], features["label"] = label, kind or datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def write(folder: Path, dataset: datasets.Dataset, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def classes(source: Source) -> list[str] | None:
    return None if source.labels is None else [source.classes[label] for label in source.labels]


def test_encoded_bytes_come_from_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.ClassLabel(names=["cat", "dog", "emu"])
    write(tmp_path / "set", table([2, 0, 2, 1, 1, 0], kind, note=list("abcdef")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for request in ("hf://./set", f"hf://{tmp_path}/set", "hf://~/set"):
        source = open_source(request)
        assert [source.read(index) for index in range(len(source))] == PICTURES
        assert source.name(3) == f"{request}#3" and source.origin == request
    assert source.classes == ["cat", "dog", "emu"]
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [2, 0, 2, 1, 1, 0]
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
    assert again.read(4) == PICTURES[4]
    assert len(pickle.dumps(source)) < 20_000  # less than two of the pictures: tables are mapped, not sent


def test_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", table([0, 1] * 3))
    write(folder, table([7, 8, 9] * 2).select(range(3)), "test")
    assert len(open_source(f"hf://{folder}")) == 6
    assert classes(open_source(f"hf://{folder}?split=test")) == ["7", "8", "9"]
    with pytest.raises(NoSuchSplit, match=r"""Unknown split "val". Should be one of \['train', 'test'\]"""):
        open_source(f"hf://{folder}?split=val")


@pytest.mark.parametrize("several", [False, True])
def test_folders_of_save_to_disk(tmp_path: Path, several: bool) -> None:
    dataset = table()
    (datasets.DatasetDict(train=dataset, val=dataset) if several else dataset).save_to_disk(tmp_path / "saved")
    source = open_source(f"hf://{tmp_path}/saved")
    assert source.read(5) == PICTURES[5] and source.labels is None and source.classes is None
    if several:
        with pytest.raises(NoSuchSplit, match=r"no split 'test'; expected train or val: add \?split=..."):
            open_source(f"hf://{tmp_path}/saved?split=test")
    else:
        with pytest.raises(NoSuchSplit, match=r"no split 'test'; the folder holds one table: leave out \?split=..."):
            open_source(f"hf://{tmp_path}/saved?split=test")


def test_a_folder_of_files(tmp_path: Path) -> None:
    """The table of `datasets`' imagefolder holds paths, not bytes."""
    for number, data in enumerate(PICTURES):
        path = tmp_path / ("dog", "cat")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    source = open_source(f"hf://{tmp_path}")
    assert sorted(source.read(index) for index in range(6)) == sorted(PICTURES)
    assert source.classes == ["cat", "dog"]
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(OSError, match="No such file"):
        source.read(0)


def test_rows_name_files_of_their_own_folder_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"not for everyone")
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images/0.jpg").write_bytes(PICTURES[0])
    os.mkfifo(folder / "images/pipe.jpg")
    named = ["images/0.jpg", str(folder / "images/0.jpg"), str(tmp_path / "secret"), "../secret", "images/pipe.jpg"]
    column = {"image": [{"bytes": None, "path": path} for path in named]}
    kind = datasets.Features(image={"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(column, kind).cast(datasets.Features(image=datasets.Image()))
    pq.write_table(rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata), folder / "t.parquet")
    source = open_source(f"hf://{folder}")
    assert source.read(0) == source.read(1) == PICTURES[0]
    for index in (2, 3):
        with pytest.raises(BadImage, match=r"the row names .*/secret, a file outside of the dataset's folder"):
            source.read(index)
    with pytest.raises(OSError, match="not a regular file"):
        source.read(4)


# Columns


def test_the_column_of_images(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in PICTURES]
    two = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "note": datasets.Value("string")})
    columns = {"image": images, "mask": images[::-1], "note": list("abcdef")}
    write(tmp_path / "two", datasets.Dataset.from_dict(columns, two))
    with pytest.raises(
        RequestError, match=r"has several image columns: image, mask; choose the one .* with \?column=..."
    ):
        open_source(f"hf://{tmp_path}/two")
    assert open_source(f"hf://{tmp_path}/two?column=mask").read(0) == PICTURES[5]
    with pytest.raises(RequestError, match=r"no column 'masks'; expected image or mask"):
        open_source(f"hf://{tmp_path}/two?column=masks")
    with pytest.raises(RequestError, match=r"the column note holds string; expected images"):
        open_source(f"hf://{tmp_path}/two?column=note")
    raw = datasets.Dataset.from_dict({"jpeg": PICTURES}, datasets.Features({"jpeg": datasets.Value("binary")}))
    write(tmp_path / "raw", raw)
    with pytest.raises(RequestError, match=r"has no image column among jpeg \(binary\); choose the one"):
        open_source(f"hf://{tmp_path}/raw")
    assert open_source(f"hf://{tmp_path}/raw?column=jpeg").read(2) == PICTURES[2]


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    write(tmp_path / "number", table([10, 9, 10, 9, 10, 9]))
    assert classes(open_source(f"hf://{tmp_path}/number")) == ["10", "9"] * 3
    assert open_source(f"hf://{tmp_path}/number").classes == ["9", "10"]
    write(tmp_path / "text", table(animal=["cat", "dog"] * 3))
    assert open_source(f"hf://{tmp_path}/text").labels is None
    assert classes(open_source(f"hf://{tmp_path}/text?label=animal")) == ["cat", "dog"] * 3
    with pytest.raises(RequestError, match=r"the column image holds Image; expected labels, as in animal"):
        open_source(f"hf://{tmp_path}/text?label=image")
    with pytest.raises(RequestError, match=r"no column 'x'; expected labels, as in animal"):
        open_source(f"hf://{tmp_path}/text?label=x")


def test_missing_labels(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["cat", "dog"])
    write(tmp_path / "none", table([-1] * 6, kind))
    assert open_source(f"hf://{tmp_path}/none").labels is None
    for name, labels, feature in (("one", [0, 1, -1, 0, 0, 0], kind), ("null", [0, 1, None, 3, 0, 0], None)):
        write(tmp_path / name, table(labels, feature))
        with pytest.raises(RequestError, match=r"1 of 6 rows have no label; expected a label in every row or in none"):
            open_source(f"hf://{tmp_path}/{name}")


def test_rows_without_images_are_bad_images(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict(
        {"image": [None, {"bytes": b"", "path": None}, *({"bytes": data, "path": None} for data in PICTURES)]},
        datasets.Features({"image": datasets.Image()}),
    )
    write(tmp_path / "set", dataset)
    source = open_source(f"hf://{tmp_path}/set")
    for index in (0, 1):
        with pytest.raises(BadImage, match="the row has no image"):
            source.read(index)
    [batch] = load(source, size=32, seed=0, global_batch=8, first_step=0, last_step=1)
    assert sorted(batch["bad"]) == [(f"hf://{tmp_path}/set#{index}", "the row has no image") for index in (0, 1)]


def test_workers_read_them(tmp_path: Path) -> None:
    source = open_source(f"hf://{write(tmp_path / 'set', table([0, 1] * 3))}")
    options = {"size": 32, "seed": 0, "global_batch": 3, "first_step": 0, "last_step": 4}
    expected = list(load(source, **options))
    found = list(load(source, num_workers=1, start_method="fork", **options))
    for a, b in zip(expected, found, strict=True):
        assert a["images"].equal(b["images"]) and a["labels"].equal(b["labels"]) and a["bad"] == b["bad"] == []


def test_they_can_be_split_for_training(tmp_path: Path) -> None:
    dataset = datasets.concatenate_datasets([table([0, 1] * 3)] * 10)
    found = open_labelled(f"hf://{write(tmp_path / 'set', dataset)}", val_share=0.3)
    assert found.classes == ["0", "1"] and len(found.train) + len(found.val) == 60


def test_their_own_validation_split_is_used(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["0", "1"])
    folder = write(tmp_path / "set", table([0, 1] * 3, kind))
    write(folder, table([-1] * 6, kind), "validation")  # does not publish its labels
    write(folder, table([1] * 6, kind), "test")
    found = open_labelled(f"hf://{folder}")
    assert (len(found.train), len(found.val)) == (6, 6) and found.val.origin.endswith("?split=test")
    named = open_labelled(f"hf://{folder}?split=train", val_share=0.5)
    assert len(named.train) + len(named.val) == 6


# Refusals


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"hf://owner/name needs the datasets library .*pip install 'fastmim\[hf\]'"):
        open_source("hf://owner/name")


def test_unknown_options_and_names(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'spilt' is not an option; expected split=..., column=..., label=..."):
        open_source("hf://owner/name?spilt=test")
    for data in ("hf://", "hf://?split=test", "hf:///"):
        with pytest.raises(RequestError, match="names no dataset; expected hf://owner/name"):
            open_source(data)
    with pytest.raises(RequestError, match=rf"no such folder: {tmp_path}/x; correct it, or give hf://owner/name"):
        open_source(f"hf://{tmp_path}/x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"hf://.*/empty: .*correct the name or its options"):
        open_source(f"hf://{tmp_path}/empty")


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="corresponds to no data"):
        open_source(f"hf://{write(tmp_path / 'none', table([0] * 6).select([]))}")
    folder = write(tmp_path / "some", table([0] * 6))
    assert len(open_source(f"hf://{folder}?split=train[:2]")) == 2
    with pytest.raises(RequestError, match="corresponds to no data"):
        open_source(f"hf://{folder}?split=train[6:]")


@pytest.mark.usefixtures("no_network")
def test_offline(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One attempt, without the hub's own lines about five more."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # to be restored
    with pytest.raises(
        RunError, match=r"^hf://owner/name could not be fetched: [^\n]*; go online, or name a folder"
    ) as caught:
        open_source("hf://owner/name")
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_a_folders_script_is_not_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", table())
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nimport os\nos.abort()\n")
    with pytest.raises((RequestError, RunError), match=r"[Ss]cript"):
        open_source(f"hf://{folder}")
    assert not (tmp_path / "ran").exists()
