"""`fastmim pack`: stored images, resuming after any interruption, bad images, full disks, refusals."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

import fastmim
from conftest import SMALL, losses
from fastmim import cli
from fastmim.data.decode import decode_whole
from fastmim.data.packs import packing, writer
from fastmim.data.packs.shrinking import make_small
from fastmim.data.packs.writer import PackWriter
from fastmim.data.sources import open_source
from fastmim.data.sources.pack import ROW
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError, RunError
from fastmim.system import growing
from fastmim.system.growing import GrowingFiles
from pictures import encode, photograph, psnr
from processes import Forked, wait_until

FILES = ["images.bin", "index.npy", "names.bin", "manifest.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 small photographs."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(100):
        tile = photograph().crop((4 * number, 50, 4 * number + 80, 50 + 60))
        (root / f"{number:03}.png").write_bytes(encode(tile, "PNG"))
    return root


def pack(folder: Path, out: Path, **options: Any) -> packing.Packing:
    return packing.pack(folder, out, **({"num_workers": 0, "codec": "raw", "short_side": 48} | options))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted pack, which every interrupted one must equal."""
    out = tmp_path_factory.mktemp("whole") / "packed"
    assert pack(folder, out).finished
    return out


def assert_same(a: Path, b: Path) -> None:
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


# How an image is stored


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_stored_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph().resize((300, 200)), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    pixels = decode_whole(data, short_side=96)
    assert pixels.shape == ((96, 144, 3) if orientation < 5 else (144, 96, 3))
    wanted = upright.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC)
    assert psnr(Image.fromarray(pixels), wanted) > 37  # libjpeg upsamples chroma in two ways
    content, shape = make_small(data, codec="jpeg", short_side=96, quality=95)
    assert shape == pixels.shape and psnr(Image.fromarray(decode_whole(content)), Image.fromarray(pixels)) > 37


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_large_jpegs_are_shrunk_by_the_decoder_and_stay_close(scale: int) -> None:
    picture = photograph().resize((128 * scale * 3 // 2 + 5, 128 * scale + 3), Image.Resampling.BICUBIC)
    pixels = decode_whole(encode(picture), short_side=64)
    assert pixels.shape[0] == 64
    assert psnr(Image.fromarray(pixels), picture.resize((pixels.shape[1], 64), Image.Resampling.BICUBIC)) > 33


def test_a_small_jpeg_is_kept_unchanged() -> None:
    small = encode(photograph().resize((80, 64)), quality=70)
    assert make_small(small, codec="jpeg", short_side=64) == (small, (64, 80, 3))
    assert make_small(small, codec="jpeg", short_side=63)[0] != small
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encode(photograph().resize((80, 64)), exif=exif)
    assert make_small(turned, codec="jpeg", short_side=64)[0] != turned


def test_jpeg_keeps_colour_at_full_resolution_and_raw_keeps_everything() -> None:
    png = encode(photograph().resize((90, 60)), "PNG")
    content, shape = make_small(png, codec="jpeg", short_side=64)
    assert simplejpeg.decode_jpeg_header(content) == (60, 90, "YCbCr", "444") and shape == (60, 90, 3)
    content, shape = make_small(png, codec="raw", short_side=64)
    assert np.array_equal(np.frombuffer(content, np.uint8).reshape(shape), np.asarray(photograph().resize((90, 60))))
    grey = encode(photograph().convert("L").resize((90, 60)), "PNG")
    assert make_small(grey, codec="raw", short_side=64)[1] == (60, 90, 1)
    assert simplejpeg.decode_jpeg_header(make_small(grey, codec="jpeg", short_side=64)[0])[2] == "Gray"
    turned = np.asarray(photograph())[::-1, ::-1]  # neither writable nor contiguous
    assert make_small(turned, codec="raw", short_side=64)[1] == (64, 96, 3)
    for short_side in (64, 1000):  # shrunk, and at its own size
        content, shape = make_small(turned, codec="jpeg", short_side=short_side, quality=95)
        encoded, pixels = decode_whole(content), decode_whole(turned, short_side=short_side)
        assert encoded.shape == shape and psnr(Image.fromarray(encoded), Image.fromarray(pixels)) > 35


def test_an_image_too_long_for_a_jpeg_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="70000 x 4 cannot be a JPEG"):
        make_small(np.zeros((4, 70_000), np.uint8), codec="jpeg", short_side=64)


def test_the_quality_of_jpegs_is_chosen(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for quality in (None, 95):
        out = tmp_path / f"packed-{quality}"
        pack(folder, out, codec="jpeg", dry_run=True, **({"quality": quality} if quality else {}))
        assert f"pack      jpeg of quality {quality or 90}, shorter side 48 px" in capsys.readouterr().out
        pack(folder, out, codec="jpeg", **({"quality": quality} if quality else {}))
        assert json.loads((out / "manifest.json").read_text())["quality"] == (quality or 90)
        sizes[quality] = (out / "images.bin").stat().st_size
    assert sizes[95] > 1.2 * sizes[None]
    with pytest.raises(RequestError, match="packed-95, a pack already"):  # it has another quality
        pack(folder, tmp_path / "packed-95", codec="jpeg")
    for quality in (0, 101):
        with pytest.raises(RequestError, match=f"quality is {quality}; expected 1 to 100, such as 90"):
            pack(folder, tmp_path / "packed", quality=quality)


# The whole pass


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


# The command


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(words))
    return int(exit_.value.code or 0)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "packed")
    assert run("pack", str(folder), out, "--codec", "raw", "--short-side", "48", "--num-workers", "0") == 0
    assert f"wrote {out}: 100 images, 0.9 MB, 9.2 KB an image" in capsys.readouterr().out.replace("\n", " ")
    assert run("pack", "--verify", out) == 0 and run("pack", out, "--verify") == 0
    assert "all 100 images match their checksums" in capsys.readouterr().out
    (tmp_path / "packed/names.bin").write_bytes(bytes((tmp_path / "packed/names.bin").stat().st_size))
    assert run("pack", "--verify", out) == 1
    assert "is damaged in names.bin" in capsys.readouterr().err
    assert run("pack", str(folder)) == 2 and run("pack", str(folder), out, "--verify") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].endswith("out is not given; expected two arguments, images and the directory to make")
    assert errors[1].endswith("expected one directory with --verify")


def test_a_dry_run_and_a_config_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pack.yaml").write_text(f"data: {folder}\nout: packed\ncodec: raw\nshort_side: 32\n")
    assert run("pack", "--config", "pack.yaml", "--short-side", "48", "--num-workers", "0", "--dry-run") == 0
    said = capsys.readouterr().out
    assert ": 100 images\n" in said and "raw, shorter side 48 px at most" in said and "out       packed" in said
    assert [path.name for path in tmp_path.iterdir()] == ["pack.yaml"]
    assert run("pack", "--config", "pack.yaml", "--num-workers", "0") == 0
    assert open_source("packed").read(0).shape == (32, 43, 3)  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "append", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert run("pack", "--config", "pack.yaml", "--num-workers", "0", "--overwrite") == 75
    assert "run the same command without --overwrite to resume" in capsys.readouterr().err


def test_the_command_resumes_after_a_signal(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(photograph(), "PNG"))
    (tmp_path / "list.txt").write_text("photo.png\n" * 400)
    words = ["pack", "list.txt", "packed", "--codec", "raw", "--num-workers", "2"]

    def command() -> None:
        os.setsid()
        os.chdir(tmp_path)
        cli.main(words)

    images = tmp_path / "packed.partial/images.bin"
    with Forked(command, tmp_path / "log", errors=tmp_path / "errors") as process:
        wait_until(lambda: images.exists() and images.stat().st_size, seconds=60)
        os.killpg(process.pid, signal.SIGTERM)  # as torchrun and SLURM do: the workers get it too
        _, errors = process.communicate(60)
    assert process.returncode == 75 and "run the same command to resume" in errors
    assert not (tmp_path / "packed").exists()
    with Forked(command, tmp_path / "log") as process:
        assert process.wait(60) == 0
    assert packing.verify(tmp_path / "packed") == 400


# Training on it


def curve(folder: Path, out: Path) -> list[float]:
    fastmim.pretrain(**(SMALL | {"data": str(folder), "out": out, "steps": 4, "log_every": 1}))
    return losses(out)


def test_training_on_a_raw_pack_at_native_size_is_identical(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", short_side=60)
    assert curve(tmp_path / "packed", tmp_path / "b") == curve(folder, tmp_path / "a")


def test_training_on_a_jpeg_pack_is_close(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", short_side=60, codec="jpeg")
    a, b = curve(folder, tmp_path / "a"), curve(tmp_path / "packed", tmp_path / "b")
    assert torch.tensor(b).allclose(torch.tensor(a), rtol=0.02)
