"""Packs hold the images of their source in every process, and any damage gives one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastmim
from fastmim.data import labelled
from fastmim.data.decode import decode_whole
from fastmim.data.labelled import open_labelled
from fastmim.data.loader import load
from fastmim.data.packs import packing
from fastmim.data.packs.packing import verify
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.pack import INDEX, ROW
from fastmim.data.sources.source import ByPosition
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError, RunError
from pictures import encode, photograph

CODECS = ["jpeg", "raw"]
FILES = ["images.bin", "index.npy", "names.bin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photographs in two classes, some of them grey or small."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(30):
        picture = photograph().crop((10 * number, 20, 10 * number + 150, 120))
        picture = picture.resize((60, 40)) if number % 3 == 0 else picture
        path = root / ("cat", "dog")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(picture.convert("L" if number % 5 == 0 else "RGB"), "JPEG" if number % 4 else "PNG"))
    return root


@pytest.fixture(scope="module")
def packs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packs")
    for codec in CODECS:
        fastmim.pack(folder, root / codec, codec=codec, short_side=64, num_workers=0)
    return root


@pytest.fixture
def copy(packs: Path, tmp_path: Path) -> Path:
    """A raw pack that a test may damage."""
    return shutil.copytree(packs / "raw", tmp_path / "packed")


def batches(source: Source, **options: Any) -> list[dict[str, Any]]:
    return list(load(source, size=32, seed=3, global_batch=8, first_step=0, last_step=6, **options))


@pytest.mark.parametrize("codec", CODECS)
def test_a_pack_is_its_source_shrunk(codec: str, folder: Path, packs: Path) -> None:
    whole, packed = open_source(str(folder)), open_source(str(packs / codec))
    assert packed.origin == str(packs / codec) and len(packed) == 30
    assert packed.classes == whole.classes == ["cat", "dog"]
    assert packed.labels is not None and packed.labels.dtype == np.int64
    assert packed.labels.tolist() == list(whole.labels if whole.labels is not None else [])
    assert [packed.name(i) for i in range(30)] == [whole.name(i) for i in range(30)]
    assert [packed.key(i) for i in range(30)] == [whole.key(i) for i in range(30)]
    for index in range(30):
        content = packed.read(index)
        pixels = decode_whole(content)
        assert min(pixels.shape[:2]) == (64 if index in larger(whole) else 40)
        assert isinstance(content, bytes) == (codec == "jpeg")


def larger(whole: Source) -> set[int]:
    return {index for index in range(len(whole)) if int(Path(whole.name(index)).stem) % 3}


def test_raw_images_are_views_of_the_file(packs: Path) -> None:
    packed = open_source(str(packs / "raw"))
    pixels = packed.read(0)
    assert isinstance(pixels, np.ndarray) and pixels.base is not None and not pixels.flags.writeable


@pytest.mark.parametrize("codec", CODECS)
def test_a_pack_is_small_when_pickled_and_the_same_for_any_workers(codec: str, packs: Path) -> None:
    packed = open_source(str(packs / codec))
    alone = batches(packed)
    assert all(not batch["bad"] for batch in alone)
    assert len(pickle.dumps(packed)) < 1000  # though it has been read from
    for others in (batches(packed, num_workers=2), batches(pickle.loads(pickle.dumps(packed)))):  # noqa: S301 - our own
        for a, b in zip(alone, others, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in ("images", "labels", "keys"))


def test_a_spawned_worker_opens_it_for_itself(packs: Path) -> None:
    packed = open_source(str(packs / "raw"))
    spawned = batches(packed, num_workers=1, start_method="spawn")
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(batches(packed), spawned, strict=True))


@pytest.mark.parametrize("codec", CODECS)
def test_validation_images_are_those_of_the_source(codec: str, folder: Path, packs: Path) -> None:
    names = []
    for data in (folder, packs / codec):
        found = open_labelled(str(data), val_share=0.3)
        names.append([found.val.name(i) for i in range(len(found.val))])
    assert names[0] == names[1] != []


def test_images_without_paths_are_split_by_their_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of 60 arrays, one of which is unreadable."""
    monkeypatch.setattr(packing, "open_source", lambda data, config: Tensors())
    packing.pack("tensors", tmp_path / "packed", num_workers=0, codec="raw")
    monkeypatch.undo()
    packed = open_source(str(tmp_path / "packed"))
    assert len(packed) == 59 and packed.name(10) == "tensors#11"
    assert packed.root is None and packed.position(10) == 11 and packed.key(10) == b"11"
    chosen = []
    for source in (Tensors(), packed):
        monkeypatch.setattr(labelled, "open_source", lambda data, config, source=source, **kwargs: source)
        val = open_labelled("tensors", val_share=0.5).val
        chosen.append([val.name(i) for i in range(len(val))])
    # One image fewer in a class moves one more of that class, at most.
    assert len(set(chosen[0]) ^ set(chosen[1])) <= 2 and len(chosen[1]) == 30


class Tensors(ByPosition):
    """Pixels and a class for each image but no paths, like torchvision's datasets."""

    def __init__(self) -> None:
        super().__init__(origin="tensors", labels=np.arange(60) % 2, classes=["a", "b"])

    def __len__(self) -> int:
        return 60

    def read(self, index: int) -> np.ndarray:
        if index == 7:
            raise BadImage("broken")
        return np.full((8, 9), index, np.uint8)


# Damage


def change(pack: Path, **fields: Any) -> None:
    manifest = json.loads((pack / "manifest.json").read_text())
    (pack / "manifest.json").write_text(json.dumps(manifest | fields))


def test_the_message_for_a_truncated_pack_names_the_block(copy: Path) -> None:
    data = (copy / "images.bin").read_bytes()
    (copy / "images.bin").write_bytes(data[:-1000])
    wanted = rf"images.bin has {len(data) - 1000:,} bytes; expected {len(data):,}, truncated in block 0 of 1: copy the pack again"
    with pytest.raises(RequestError, match=wanted):
        open_source(str(copy))
    with pytest.raises(RequestError, match=wanted):
        verify(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(RequestError, match=rf"packed/{name} of the pack cannot be read: No such file"):
        open_source(str(copy))


def test_a_flipped_byte_is_found_by_verify(copy: Path) -> None:
    assert verify(copy) == 30
    with (copy / "images.bin").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 4]))
    assert len(open_source(str(copy))) == 30
    with pytest.raises(
        RunError, match=r"is damaged in block 0 \(images 0 to 29, \S+00.jpg to \S+29.jpg\): copy it again"
    ):
        verify(copy)


def test_a_flipped_byte_in_the_index_is_found_by_verify_and_survived(copy: Path) -> None:
    with (copy / INDEX).open("r+b") as file:
        file.seek(-12, 2)  # the height of the last image
        file.write(b"\x01")
    with pytest.raises(RunError, match="is damaged in index.npy"):
        verify(copy)
    with pytest.raises(BadImage, match="its row in index.npy is damaged: see fastmim pack --verify"):
        open_source(str(copy)).read(29)
    assert {name for batch in batches(open_source(str(copy))) for name, _ in batch["bad"]} <= {
        open_source(str(copy)).name(29)
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "is a pack of format version 2; expected 1 or less: update fastmim"),
        ({"version": "new"}, "is a pack of format version new; expected 1 or less: update fastmim"),
        ({"num_images": 0}, "the pack .* holds no images; expected at least one: copy the pack again, or recreate it"),
        ({"format": "other"}, 'manifest.json does not belong to a pack; expected "format": "fastmim-pack"'),
        ({"codec": "webp", "classes": 3}, "manifest.json has invalid values for classes"),
        ({"codec": "webp"}, "manifest.json has invalid values for codec"),
        ({"num_images": 31}, r"index.npy cannot be read \(holds .* \(30,\); expected .* \(31,\)"),
    ],
)
def test_an_invalid_manifest(fields: dict[str, Any], message: str, copy: Path) -> None:
    change(copy, **fields)
    with pytest.raises(RequestError, match=message):
        open_source(str(copy))


def test_a_manifest_that_is_not_json(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": ')
    with pytest.raises(RequestError, match="manifest.json cannot be read"):
        open_source(str(copy))


def replace_index(pack: Path, rows: np.ndarray) -> None:
    np.save(pack / INDEX, rows, allow_pickle=False)
    files = json.loads((pack / "manifest.json").read_text())["files"]
    change(pack, files=files | {INDEX: {"bytes": (pack / INDEX).stat().st_size, "crc32": 0}})


def test_labels_that_are_not_integers(copy: Path) -> None:
    rows = np.load(copy / INDEX, allow_pickle=False)
    replace_index(copy, rows.astype([(n, "<f8" if n == "label" else ROW[n]) for n in ROW.names or ()]))
    with pytest.raises(RequestError, match=r"index.npy cannot be read \(holds .*'label', '<f8'.*: copy the pack"):
        open_source(str(copy))


def test_an_invalid_index(copy: Path) -> None:
    replace_index(copy, np.arange(30))
    with pytest.raises(RequestError, match=r"index.npy cannot be read \(holds int64 \(30,\); expected"):
        open_source(str(copy))
    (copy / INDEX).write_bytes(b"x" * (copy / INDEX).stat().st_size)
    with pytest.raises(RequestError, match="index.npy cannot be read"):
        open_source(str(copy))


BLOCK = {"num_images": 30, "end": 1, "crc32": 0}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        *[({"num_images": number}, "num_images") for number in (True, 30.0, 10**18, 10**40, -1)],
        *[({"files": files}, "files") for files in ({}, {"a\0": {"bytes": 0}}, dict.fromkeys(FILES, "x"))],
        *[({"files": {name: {"bytes": size, "crc32": 0} for name in FILES}}, "files") for size in (1.5, "1", None, -1)],
        *[({"blocks": [block]}, "blocks") for block in (7, [], BLOCK, BLOCK | {"end": -1}, BLOCK | {"crc32": "x"})],
        ({"blocks": []}, "blocks"),
        ({"classes": [1, "b"]}, "classes"),
        ({"root": 1}, "root"),
        ({"classes": ["a"]}, "labels"),
        ({"classes": None, "labelled": 1}, "labelled"),
    ],
)
def test_values_that_lie(fields: dict[str, Any], wrong: str, copy: Path) -> None:
    change(copy, **fields)
    for read in (open_source, verify):
        with pytest.raises(RequestError, match=f"packed.*({wrong}|holds no images|30,)") as error:
            read(str(copy))
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_files_that_are_listed_beyond_the_known_ones_are_not_looked_at(copy: Path) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    change(copy, files=files | {"../../secret": 7, "a\0": {"bytes": 0}})
    assert verify(copy) == 30


@pytest.mark.parametrize("labels", [(0, 2), (-1, 1), (0, 10**18)])
def test_labels_out_of_range(labels: tuple[int, int], copy: Path) -> None:
    rows = np.load(copy / INDEX, allow_pickle=False)
    rows["label"][:2] = labels
    replace_index(copy, rows)
    with pytest.raises(RequestError, match=rf"index.npy has labels from {min(labels)} to .*; expected 0 to 1: copy"):
        open_source(str(copy))
    change(copy, classes=None)
    if max(labels) < 10**6 and min(labels) >= 0:
        assert len(open_source(str(copy))) == 30
    else:
        with pytest.raises(RequestError, match="expected 0 to 1048575"):
            open_source(str(copy))


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_lie_make_bad_images(codec: str, packs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(packs / codec, tmp_path / "packed")
    rows, huge = np.load(copy / INDEX, allow_pickle=False), 2**63 - 1
    for number, fields in enumerate(
        [{"offset": -5}, {"offset": huge}, {"length": -1}, {"length": 2**31 - 1}, {"offset": huge, "length": 2**31 - 1}]
    ):
        for field, value in fields.items():
            rows[field][number] = value
    rows["name_end"][5:8] = (-7, huge, 3)
    rows["height"][9], rows["width"][9] = -1, 2**31 - 1
    replace_index(copy, rows)
    packed = open_source(str(copy))
    for number in range(5):
        with pytest.raises(BadImage, match="its row in index.npy is damaged"):
            packed.read(number)
    assert all(isinstance(packed.name(number), str) for number in range(30))
    if codec == "raw":
        with pytest.raises(BadImage, match="its row in index.npy is damaged"):
            packed.read(9)


def test_empty_files(copy: Path) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    for name in ("images.bin", "names.bin"):
        (copy / name).write_bytes(b"")
        files[name]["bytes"] = 0
    change(copy, files=files, blocks=[{"num_images": 30, "end": 0, "crc32": 0}])
    packed = open_source(str(copy))
    assert isinstance(packed.name(3), str)
    with pytest.raises(BadImage, match="its row in index.npy is damaged"):
        packed.read(3)
    with pytest.raises(RunError, match="is damaged in names.bin"):
        verify(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_no_file_of_a_pack(name: str, copy: Path) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(RequestError, match=f"packed/{name} of the pack cannot be read: not a regular file"):
        open_source(str(copy))


def test_verify_of_no_pack(folder: Path) -> None:
    with pytest.raises(RequestError, match="is not a pack; expected a directory that fastmim pack made"):
        verify(folder)
