"""`fastmim pack` goes on after any interruption, and never completes a pack that lost data."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmim.data.packs import packing, writer
from fastmim.data.packs.writer import PackWriter
from fastmim.data.sources.pack import ROW
from fastmim.errors import RequestError, RunError
from fastmim.system import growing
from fastmim.system.growing import GrowingFiles
from packs import assert_same, pack


@pytest.mark.parametrize("commit_seconds", [0.0, 1000.0])
def test_a_stopped_pack_resumes(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_seconds: float
) -> None:
    """A pack stopped by SIGTERM, then killed with an unfinished write, then finished, equals an uninterrupted one."""
    monkeypatch.setattr(packing, "COMMIT_SECONDS", commit_seconds)
    append, calls = PackWriter.append, []

    def counting(self: PackWriter, *arguments: Any) -> None:
        calls.append(1)
        append(self, *arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(calls) == 4:
            raise KeyboardInterrupt  # like a kill: nothing catches it

    monkeypatch.setattr(PackWriter, "append", counting)
    stopped = pack(folder, tmp_path / "packed")
    assert not stopped.finished and stopped.num_read == 32 and not (tmp_path / "packed").exists()
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "packed")
    assert pack(folder, tmp_path / "packed").finished
    assert len(calls) == (4 + 4 if commit_seconds == 0 else 4 + 5)  # of seven batches; saved ones are not read again
    assert_same(tmp_path / "packed", whole)


def test_a_kill_between_the_last_image_and_the_rename(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, to: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(folder, tmp_path / "packed")
    assert Path.rename is rename and not (tmp_path / "packed").exists()
    assert pack(folder, tmp_path / "packed").finished
    assert_same(tmp_path / "packed", whole)


def test_a_full_disk_is_one_line_and_resumable(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "COMMIT_SECONDS", 0.0)
    append = GrowingFiles.append

    def full(self: GrowingFiles, name: str, content: bytes | memoryview) -> None:
        if self.lengths["rows.bin"] >= 48 * ROW.itemsize:
            append(self, name, memoryview(content)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingFiles, "append", full)
        message = "could not write .*packed.partial: No space left on device; the first 48 of 100 images are safe: free"
        with pytest.raises(RunError, match=message):
            pack(folder, tmp_path / "packed")
    assert pack(folder, tmp_path / "packed").finished
    assert_same(tmp_path / "packed", whole)


def test_nothing_is_safe_before_the_first_commit(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_json", refuse)
        with pytest.raises(RunError, match="Disk quota exceeded; the first 0 of 100 images are safe: free space or"):
            pack(folder, tmp_path / "packed")
    assert pack(folder, tmp_path / "packed").finished
    assert_same(tmp_path / "packed", whole)


def stop_after(monkeypatch: pytest.MonkeyPatch, num_batches: int, folder: Path, out: Path) -> Path:
    """Leave an unfinished pack behind; all of it is committed."""
    append, calls = PackWriter.append, []

    def counting(self: PackWriter, *arguments: Any) -> None:
        append(self, *arguments)
        calls.append(1)
        if len(calls) == num_batches:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "append", counting)
        pack(folder, out)
    return growing.partial_folder(out)


@pytest.mark.parametrize("num_batches", [2, 7])
def test_an_unfinished_pack_that_lost_data_is_never_completed(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_batches: int
) -> None:
    """Files are cut, filled with zeros, removed and linked, after 32 of 100 images and after all of them."""
    monkeypatch.setattr(writer, "BLOCK_BYTES", 200_000)
    out = tmp_path / "packed"
    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        if num_batches == 7:
            with pytest.raises(KeyboardInterrupt):
                pack(folder, out)
        else:
            stop_after(monkeypatch, num_batches, folder, out)
    unfinished = growing.partial_folder(out)
    for name in ("images.bin", "names.bin", "rows.bin"):
        path, content = unfinished / name, (unfinished / name).read_bytes()
        half = len(content) // 2
        for left in (b"", content[:1], content[:half], content[:-1], content[:half] + bytes(len(content) - half)):
            path.write_bytes(left)
            what = "differs from its checksum" if len(left) == len(content) else f"has {len(left):,} bytes, fewer than"
            with pytest.raises(RunError, match=rf"{name} {what}.*; expected what .* start over with --overwrite"):
                pack(folder, out)
            assert path.read_bytes() == left
        path.unlink()
        with pytest.raises(RunError, match=rf"{name} has 0 bytes, fewer than"):
            pack(folder, out)
        (tmp_path / "elsewhere").write_bytes(content + b"more")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RequestError, match=r"out is .*packed: .*symbolic links; expected a directory that can be"):
            pack(folder, out)
        assert (tmp_path / "elsewhere").read_bytes() == content + b"more"
        path.unlink()
        path.write_bytes(content + b"written after the last commit")
    assert pack(folder, out).finished and packing.verify(out) == 100
    assert (out / "images.bin").read_bytes() == (whole / "images.bin").read_bytes()


def test_rows_damaged_while_packing_do_not_enter_the_pack(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = PackWriter.finish

    def damage(self: PackWriter, about: Any) -> None:
        rows = self.files.folder / "rows.bin"
        rows.write_bytes(bytes(rows.stat().st_size))
        finish(self, about)

    monkeypatch.setattr(PackWriter, "finish", damage)
    with pytest.raises(RunError, match=r"rows.bin differs from its checksum"):
        pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_damaged_record_of_progress_is_one_line(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    path = stop_after(monkeypatch, 2, folder, out) / "progress.json"
    good = json.loads(path.read_text())
    facts, huge = good["facts"], 10**5000
    (tmp_path / "precious").write_text("precious")
    broken: list[Any] = [[], {}, None, 7, "x", good | {"version": 1}, good | {"num_read": "x"}, good | {"bytes": []}]
    broken += [good | {"bytes": good["bytes"] | {"../precious": 0}}, good | {"bytes": {"images.bin": 0}}]
    broken += [good | {"crc32": good["crc32"] | {"rows.bin": 1.5}}, good | {"num_read": huge}, good | {"last_name": 1}]
    broken += [good | {"facts": facts | fields} for fields in ({"num_images": -1}, {"num_images": True}, {"blocks": 1})]
    broken += [good | {"facts": facts | fields} for fields in ({"open_block": None}, {"blocks": [7]}, {"request": 1})]
    old = {"request": {}, "next": 32, "num_images": 32, "last_name": "x", "blocks": [], "bytes": good["bytes"]}
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    texts = ["", "{", "[" * 100_000, "\0", *map(json.dumps, [*broken, old])]
    sys.set_int_max_str_digits(limit)
    for text in texts:
        path.write_text(text)
        with pytest.raises(RunError, match=r"progress.json is damaged.*: start over with --overwrite") as error:
            pack(folder, out)
        assert "\n" not in str(error.value)
    path.write_text(json.dumps(good | {"num_read": 1000}))
    with pytest.raises(RequestError, match="whose image 1000 is missing; expected .*031.png, as when this began"):
        pack(folder, out)
    assert (tmp_path / "precious").read_text() == "precious"
    assert pack(folder, out, overwrite=True).finished
    assert_same(out, whole)
