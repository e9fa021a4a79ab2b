"""`fastmim pack`: the whole pass, bad images, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmim.data.packs import packing, writer
from fastmim.data.packs.writer import PackWriter
from fastmim.data.sources import open_source
from fastmim.errors import RequestError, RunError
from packs import FILES, assert_same, pack


def test_any_number_of_workers_makes_the_same_pack(folder: Path, whole: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "packed", num_workers=2).num_images == 100
    assert_same(tmp_path / "packed", whole)
    assert not (tmp_path / "packed.partial").exists()


def test_a_pack_of_a_pack_equals_one_of_the_source(folder: Path, whole: Path, tmp_path: Path) -> None:
    pack(whole, tmp_path / "packed")
    for name in FILES[:3]:
        assert (tmp_path / "packed" / name).read_bytes() == (whole / name).read_bytes()
    assert open_source(str(tmp_path / "packed")).name(3) == str(folder / "003.png")


def test_blocks_cover_the_images_and_find_damage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", 200_000)
    pack(folder, tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed/manifest.json").read_text())
    assert [block["num_images"] for block in manifest["blocks"]] == [32, 32, 32, 4]
    assert packing.verify(tmp_path / "packed") == 100
    with (tmp_path / "packed/images.bin").open("r+b") as file:
        for place in (350_000, 900_000):
            file.seek(place)
            file.write(bytes([255 - file.read(1)[0]]))
    with pytest.raises(RunError, match=r"block 1 \(images 32 to 63, .*\); block 3 \(images 96 to 99"):
        packing.verify(tmp_path / "packed")


def test_the_same_command_again_finds_it_finished(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After kills in the last moments, and of a finished pack; leftovers of its making are removed."""
    out = tmp_path / "packed"
    pack(folder, out, short_side=16)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "clean", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(folder, out, overwrite=True)
    (out / "bad_images.1.tmp").write_text("")
    assert {"rows.bin", "progress.json", "replaced"} < {path.name for path in out.iterdir()}
    again = pack(folder, out)
    assert again.finished and again.num_images == 100
    assert "is finished already: 100 images; nothing to do" in capsys.readouterr().out.replace("\n", " ")
    assert_same(out, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    (out / "names.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="a pack already; expected a new directory"):
        pack(folder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_pack_behind_a_link_is_replaced_and_its_target_is_kept(folder: Path, whole: Path, tmp_path: Path) -> None:
    out, disk = tmp_path / "packed", tmp_path / "disk"
    pack(folder, disk, short_side=16)
    out.symlink_to(disk)
    (tmp_path / "packed.replaced").mkdir()
    (tmp_path / "packed.replaced/thesis").write_text("")
    assert pack(folder, out, overwrite=True).finished
    assert not out.is_symlink() and len(open_source(str(disk))) == 100
    assert_same(out, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "packed", "packed.replaced"]
    assert (tmp_path / "packed.replaced/thesis").exists()


def test_bad_images_are_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        data = (folder / f"{number:03}.png").read_bytes()
        (photos / f"{number:03}.png").write_bytes(data[:500] if number in (0, 20) else data)
    with pytest.raises(
        RunError, match="1 of 40 images .* cannot be read, the first is .*000.png .*raise --max-bad-share"
    ):
        pack(photos, tmp_path / "packed", max_bad_share=0.01)
    result = pack(photos, tmp_path / "packed", max_bad_share=0.05)
    assert result.finished and result.num_images == 38 and result.num_read == 40
    lines = (tmp_path / "packed/bad_images.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == ["000.png", "020.png"]
    packed = open_source(str(tmp_path / "packed"))
    assert [packed.name(0), packed.name(37)] == [str(photos / "001.png"), str(photos / "039.png")]
    for path in photos.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="none of the 40 images in .* can be read: check that the files are images"):
        pack(photos, tmp_path / "empty", max_bad_share=1)


def test_a_pack_is_replaced_only_on_request_and_once_the_new_one_is_complete(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    pack(folder, out, short_side=16)
    with pytest.raises(
        RequestError, match="a pack already; expected a new directory: take another, or add --overwrite"
    ):
        pack(folder, out)
    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "append", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert not pack(folder, out, overwrite=True).finished
    assert open_source(str(out)).read(0).shape == (16, 21, 3)  # type: ignore[union-attr]
    with pytest.raises(
        RequestError, match=r"was begun differently \(short_side 48 -> 32\): take another directory, or"
    ):
        pack(folder, out, short_side=32)
    pack(folder, out, overwrite=True)
    assert_same(out, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]


def test_resuming_with_other_images_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, order in zip(lists, (range(100), range(99, -1, -1)), strict=True):
        path.write_text("".join(f"{folder}/{number:03}.png\n" for number in order))
    append = PackWriter.append
    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "append", lambda *a: (append(*a), os.kill(os.getpid(), signal.SIGTERM)))
        pack(lists[0], tmp_path / "packed")
    lists[0].write_text(lists[1].read_text())
    with pytest.raises(RequestError, match="whose image 16 is .*084.png; expected .*015.png, as when this began"):
        pack(lists[0], tmp_path / "packed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "webp"}, "codec is 'webp'; expected jpeg or raw"),
        ({"short_side": 0}, "short_side is 0; expected at least 1 pixel"),
        ({"num_workers": -1}, r"num_workers is -1; expected 0 \(work in the main process\) or more"),
        ({"max_bad_share": 2.0}, "max_bad_share is 2; expected 0 to 1"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        pack(folder, tmp_path / "packed", **options)


def test_unusable_output_paths_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="which exists and is no pack; expected a new directory"):
        pack(folder, tmp_path, overwrite=True)
    with pytest.raises(RequestError, match=r"out is .*file/packed: Not a directory; expected a path that can be"):
        pack(folder, tmp_path / "file/packed")
    (tmp_path / "packed.partial/progress.json").mkdir(parents=True)
    with pytest.raises(
        RequestError, match=r"out is .*packed: not a regular file; expected a directory that can be made"
    ):
        pack(folder, tmp_path / "packed")


def test_labels_that_are_not_integers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves:
        origin, classes, labels = "halves", ["a"], np.full(20, 0.5)

        def __len__(self) -> int:
            return 20

    monkeypatch.setattr(packing, "open_source", lambda data, config: Halves())
    with pytest.raises(RequestError, match=r"halves has labels of type float64 \(20,\); expected 20 integers"):
        packing.pack("halves", tmp_path / "packed")
