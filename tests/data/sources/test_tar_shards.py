"""Tar shards: members written by tarfile and tar are found, nothing is extracted, and damage is reported."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import subprocess
import tarfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim.data.labelled import open_labelled
from fastmim.data.loader import load
from fastmim.data.sources import Source, open_source, tar_shards
from fastmim.errors import RequestError
from pictures import encode, photograph

PICTURES = [encode(photograph().crop((10 * n, 0, 10 * n + 64, 48))) for n in range(6)]


def write(path: Path, members: Iterable[tuple[str, bytes]], file_format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=file_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labelled(first: int, count: int = 2) -> list[tuple[str, bytes]]:
    numbers = range(first, first + count)
    return [m for n in numbers for m in ((f"{n:06d}.cls", b"%d\n" % (10 - n)), (f"{n:06d}.jpg", PICTURES[n]))]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number in range(3):
        write(tmp_path / "shards" / f"{number:03d}.tar", labelled(2 * number))
    return tmp_path / "shards"


def test_nothing_is_extracted_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "in" / "here"
    hostile = [f"{tmp_path}/absolute.jpg", "../escape.jpg", "a/../../../up.png", "./plain.jpg"]
    path = write(place / "x.tar", [(name, PICTURES[0]) for name in hostile])
    monkeypatch.chdir(place)
    source = open_source("x.tar", cache_dir=tmp_path / "cache")
    assert names(source) == [f"{path}#{name}" for name in hostile]
    assert all(source.read(index) == PICTURES[0] for index in range(4))
    assert [p.name for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".png")] == []


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def short_names(source: Source) -> list[str]:
    return [name.rpartition("/")[2] if "#" not in name else name.rpartition("#")[2] for name in names(source)]


# Tar formats


@pytest.mark.parametrize("file_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_that_tarfile_writes(tmp_path: Path, file_format: int) -> None:
    long = "d" * 60 + "/" + "n" * 90  # beyond the 100 bytes of a header, within a ustar header's prefix
    wanted = ["plain.jpg", f"{long}.jpg", "café.png"]
    if file_format != tarfile.USTAR_FORMAT:
        wanted += ["x" * 300 + ".jpg", "ü" * 200 + "/b.webp"]
    path = write(tmp_path / "a.tar", [(n, PICTURES[i]) for i, n in enumerate(wanted)], file_format)
    source = open_source(str(path), cache_dir=tmp_path / "cache")
    assert short_names(source) == [Path(f"#{n}").as_posix()[1:] for n in wanted]
    with tarfile.open(path) as tar:
        for index, member in enumerate(tar):
            assert source.name(index) == f"{path}#{member.name}"
            assert source.read(index) == tar.extractfile(member).read() == PICTURES[index]


def test_files_of_gnu_tar(tmp_path: Path) -> None:
    program = shutil.which("tar")
    if program is None:
        pytest.skip("no tar program")
    folder = tmp_path / "in"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "1.jpg").write_bytes(PICTURES[1])
    (folder / "cats" / ("long" * 40 + ".jpg")).write_bytes(PICTURES[2])
    (folder / "link.jpg").symlink_to("cats/1.jpg")
    (folder / "hard.jpg").hardlink_to(folder / "cats" / "1.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "sparse.jpg").open("wb") as file:  # more pieces than fit in a header
        for piece in range(12):
            file.seek(piece * 1_000_000)
            file.write(b"piece")
    (folder / "after.jpg").write_bytes(PICTURES[3])
    order = ["./cats", "link.jpg", "hard.jpg", "pipe.jpg", "sparse.jpg", "after.jpg"]
    for tar_format in ("gnu", "pax"):
        path = tmp_path / f"{tar_format}.tar"
        subprocess.run([program, "-cSf", path, f"--format={tar_format}", *order], cwd=folder, check=True)
        source = open_source(str(path), cache_dir=tmp_path / "cache")
        found = {name.rpartition("/")[2].rpartition("#")[2]: i for i, name in enumerate(names(source))}
        assert found.keys() == {"1.jpg", "long" * 40 + ".jpg", "after.jpg"}  # no links, pipes, sparse files
        assert source.read(found["after.jpg"]) == PICTURES[3] and source.read(found["1.jpg"]) == PICTURES[1]


def test_other_members_are_skipped(tmp_path: Path) -> None:
    members = [("readme.txt", b"x"), ("._0.jpg", b"macOS"), ("0.json", b'{"label": 3}'), ("0.JPG", PICTURES[0])]
    with tarfile.open(write(tmp_path / "a.tar", members), "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("evil.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = open_source(str(tmp_path / "a.tar"), cache_dir=tmp_path / "cache")
    assert short_names(source) == ["0.JPG"] and source.labels is None and source.classes is None


# Patterns


@pytest.mark.parametrize("pattern", ["{000..002}.tar", "00{0..2}.tar", "00{0,1,2}.tar", "*.tar", "00[0-2].tar", ""])
def test_several_shards(three: Path, pattern: str, tmp_path: Path) -> None:
    source = open_source(str(three / pattern), cache_dir=tmp_path / "cache")
    assert [source.read(index) for index in range(len(source))] == PICTURES
    assert source.name(3) == f"{three}/001.tar#000003.jpg"
    assert source.classes == ["5", "6", "7", "8", "9", "10"]
    assert source.labels is not None and source.labels.dtype == np.int64
    assert [source.classes[label] for label in source.labels] == ["10", "9", "8", "7", "6", "5"]


def test_braces_as_a_shell_expands_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a-8.tar", "a-9.tar", "a-10.tar", "b-9.tar"):
        write(tmp_path / name, [(f"{name}.jpg", PICTURES[0])])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert short_names(open_source("~/a-{8..10}.tar")) == ["a-8.tar.jpg", "a-9.tar.jpg", "a-10.tar.jpg"]
    assert short_names(open_source("~/a-{9..8}.tar")) == ["a-9.tar.jpg", "a-8.tar.jpg"]
    assert short_names(open_source("~/{a,b}-{9..9}.tar")) == ["a-9.tar.jpg", "b-9.tar.jpg"]


def test_a_directory_with_images_is_not_a_directory_of_shards(three: Path, tmp_path: Path) -> None:
    (three / "sizes.json").write_text("{}")
    assert len(open_source(str(three), cache_dir=tmp_path / "cache")) == 6
    (three / "photo.jpg").write_bytes(PICTURES[0])
    assert names(open_source(str(three), cache_dir=tmp_path / "cache")) == [str(three / "photo.jpg")]


def test_wrong_names(three: Path) -> None:
    with pytest.raises(RequestError, match=rf"no such shard: {three}/003.tar \(of 4\); correct the range, or fetch"):
        open_source(f"{three}/{{000..003}}.tar")
    with pytest.raises(RequestError, match=r"x\*.tar: no file matches the pattern; expected .tar shards"):
        open_source(f"{three}/x*.tar")
    with pytest.raises(RequestError, match=r"no such file or directory .* did you mean .*00.\.tar\?"):
        open_source(f"{three}/00.tar")
    with pytest.raises(RequestError, match=r"\{a\.\.c\} is not understood; expected \{000\.\.127\} or \{a,b\}"):
        open_source(f"{three}/{{a..c}}.tar")
    with pytest.raises(RequestError, match=r"\{0\.\.9999999\} is more than 1,000,000 shards"):
        open_source(f"{three}/{{0..9999999}}.tar")
    with pytest.raises(RequestError, match=r"names more than 1,000,000 shards; correct the range"):
        open_source(f"{three}/{{0..99999}}{{0..99}}{'{0..9}' * 40}.tar")
    with pytest.raises(RequestError, match=r"0000\} is not understood; expected"):
        open_source(f"{three}/{{0..1{'0' * 5000}}}.tar")


@pytest.mark.parametrize(
    ("name", "command"),
    [("a.tar.gz", "gunzip"), ("a.tgz", "gunzip"), ("{0..9}.tar.zst", "unzstd"), ("a.tar.xz", "unxz")],
)
def test_compressed_shards_are_refused(tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(
        RequestError, match=rf"is compressed, so its images cannot be read at random; {command} it first"
    ):
        open_source(str(tmp_path / name))


# Labels


@pytest.mark.parametrize("text", ["cat", "1.5", "", "9" * 30])
def test_labels_are_integers(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.tar", [("0.jpg", PICTURES[0]), ("0.cls", text.encode())])
    with pytest.raises(RequestError, match=rf"the shard {path}: 0.cls holds '{text}'; expected the number of a class"):
        open_source(str(path))


def test_labels_for_all_or_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [*labelled(0), ("set/7.jpg", PICTURES[2]), ("8.jpg", PICTURES[3])])
    with pytest.raises(
        RequestError, match=rf"2 of 4 images have no label, the first is {path}#set/7.jpg; expected a .cls"
    ):
        open_source(str(path))


def test_keys_end_at_the_first_dot(tmp_path: Path) -> None:
    members = [("a/0.left.jpg", PICTURES[0]), ("a/0.right.jpg", PICTURES[1]), ("b/0.jpg", PICTURES[2])]
    path = write(tmp_path / "a.tar", [*members, ("b/0.cls", b" 1"), ("a/0.cls", b"-3\n")])  # labels may come after
    source = open_source(str(path))
    assert source.classes == ["-3", "1"]
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1]


def test_labelled_shards_split(tmp_path: Path) -> None:
    members = [m for n in range(60) for m in ((f"{n}.jpg", PICTURES[n % 6]), (f"{n}.cls", b"%d" % (n % 2)))]
    found = open_labelled(str(write(tmp_path / "a.tar", members)), val_share=0.3)
    assert found.classes == ["0", "1"] and len(found.train) + len(found.val) == 60 and len(found.val) > 5


# Damage


def test_a_truncated_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [(f"{n}.jpg", PICTURES[n]) for n in range(3)])
    whole = (tmp_path / "a.tar").read_bytes()
    starts = []
    with tarfile.open(tmp_path / "a.tar") as tar:
        starts = [member.offset for member in tar]
    cuts = {starts[2] + 700: 2, starts[2] + 100: 2, starts[2]: 2, starts[1] + 512: 1}  # in data, header, between
    for number, (cut, num_whole) in enumerate(cuts.items()):
        path = tmp_path / f"cut{number}.tar"
        path.write_bytes(whole[:cut])
        with pytest.warns(
            UserWarning, match=rf"the shard {path} is damaged \(it is truncated .*: only the {num_whole} images"
        ):
            source = open_source(f"{tmp_path}/{{a,cut{number}}}.tar", cache_dir=tmp_path / "cache")
        assert len(source) == 3 + num_whole
        assert source.read(3) == PICTURES[0]
    broken = bytearray(whole)
    broken[starts[1] + 10] ^= 1
    (tmp_path / "broken.tar").write_bytes(broken)
    with pytest.warns(UserWarning, match="a header's checksum is wrong at byte .*: only the 1 images before"):
        assert len(open_source(str(tmp_path / "broken.tar"))) == 1


def test_the_warning_is_repeated_from_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [(f"{n}.jpg", PICTURES[n]) for n in range(3)])
    path.write_bytes(path.read_bytes()[: len(PICTURES[0]) + 1600])
    os.utime(path, (1e9, 1e9))
    for _ in range(2):
        with pytest.warns(UserWarning, match="is damaged"):
            open_source(str(path), cache_dir=tmp_path / "cache")


def test_hostile_headers_end_the_walk(tmp_path: Path) -> None:
    """Sizes that are negative, not numbers or beyond the file, and a pax header of a gigabyte."""
    first = write(tmp_path / "a.tar", [("0.jpg", PICTURES[0])]).read_bytes()
    first = first[: 512 + -(-len(PICTURES[0]) // 512) * 512]
    for kind, size in (
        (b"0", b"\xff" * 12),
        (b"0", b"-0000000001\0"),
        (b"0", b"77777777777\0"),
        (b"x", b"00400000000\0"),
        (b"0", b"\x80" + b"\xff" * 11),
    ):
        header = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT))
        header[124:136], header[156:157] = size, kind
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
        (tmp_path / "b.tar").write_bytes(first + header[:512] + bytes(2048))
        with pytest.warns(UserWarning, match="is damaged"):
            assert len(open_source(str(tmp_path / "b.tar"), cache_dir=tmp_path / "cache")) == 1


def test_a_long_pax_header_takes_no_time(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = len(PICTURES[0])
    records = b"4 =\n" * 260_000  # a megabyte
    pax = tarfile.TarInfo("pax")
    pax.size, pax.type = len(records), tarfile.XHDTYPE
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(pax, io.BytesIO(records))
        tar.addfile(info, io.BytesIO(PICTURES[0]))
    start = time.process_time()
    assert open_source(str(path), cache_dir=tmp_path / "cache").read(0) == PICTURES[0]
    assert time.process_time() - start < 3  # 13 s when each record copied the rest


def test_files_that_are_not_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(RequestError, match=r"the shard .*a.tar is not a tar \(.*\); recreate it with tar"):
        open_source(str(tmp_path / "a.tar"))
    (tmp_path / "b.tar").write_bytes(gzip.compress(os.urandom(2000)))
    with pytest.raises(RequestError, match=r"the shard .*b.tar is not a tar \(.*\); it is gzipped: gunzip it first"):
        open_source(str(tmp_path / "b.tar"))
    (tmp_path / "c.tar").write_bytes(b"")
    with pytest.raises(
        RequestError, match=r"no images in the 1 shards of .*\(files: none; .*c.tar: it is truncated at byte 0"
    ):
        open_source(str(tmp_path / "c.tar"))


def test_no_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.txt", b""), ("b.txt", b""), ("c", b"")])
    with pytest.raises(
        RequestError, match=r"no images in the 1 shards of .*a.tar \(files: .txt 2, no ending 1\); expected"
    ):
        open_source(str(path))


def test_a_shard_that_cannot_be_opened(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RequestError, match=r"cannot read the shard .*tar: Permission denied"):
        open_source(f"{three}/000.tar")


# The index and reading


def test_the_index_is_cached_while_no_shard_changes(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    for path in three.iterdir():
        os.utime(path, (1e9, 1e9))
    first = open_source(f"{three}/*.tar", cache_dir=cache)
    walked: list[int] = []
    walk = tar_shards.members
    monkeypatch.setattr(tar_shards, "members", lambda fd: (walked.append(fd), walk(fd))[1])
    again = open_source(f"{three}/*.tar", cache_dir=cache)
    assert not walked and names(again) == names(first) and again.read(5) == PICTURES[5]
    assert again.labels is not None and again.labels.tolist() == first.labels.tolist()
    write(three / "001.tar", labelled(0, 4))  # another size and time
    changed = open_source(f"{three}/*.tar", cache_dir=cache)
    assert len(walked) == 3 and len(changed) == 8
    [kept] = (cache / "shards").iterdir()  # an index of shards that have just been written is not cached
    kept.write_bytes(b"damaged")
    os.utime(write(three / "001.tar", labelled(2)), (1e9, 1e9))
    assert names(open_source(f"{three}/*.tar", cache_dir=cache)) == names(first)


def test_a_shard_that_changes_during_a_run(three: Path, tmp_path: Path) -> None:
    source = open_source(f"{three}/*.tar", cache_dir=tmp_path / "cache")
    write(three / "002.tar", labelled(0, 3))
    assert source.read(0) == PICTURES[0]
    with pytest.raises(OSError, match="the shard has changed since it was indexed"):
        source.read(4)


def test_many_shards_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(150):
        write(tmp_path / f"{number}.tar", [("0.png", b"%d" % number)])
    descriptors = Path("/proc/self/fd")
    before = len([*descriptors.iterdir()]) if descriptors.exists() else 0
    source = open_source(f"{tmp_path}/{{0..149}}.tar", cache_dir=tmp_path / "cache")
    assert [source.read(index) for index in range(150)] == [b"%d" % number for number in range(150)]
    assert not before or len([*descriptors.iterdir()]) <= before + 128


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_read_them(three: Path, tmp_path: Path, start_method: str) -> None:
    source = open_source(f"{three}/*.tar", cache_dir=tmp_path / "cache")
    assert source.read(0) == PICTURES[0]  # a shard is open before the workers start
    assert len(pickle.dumps(source)) < 3000
    options = {"size": 32, "seed": 0, "global_batch": 3, "first_step": 0, "last_step": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        expected = list(load(source, **options))
        found = list(load(source, num_workers=1, start_method=start_method, **options))
    for a, b in zip(expected, found, strict=True):
        assert a["images"].equal(b["images"]) and a["labels"].equal(b["labels"]) and a["bad"] == b["bad"] == []


def test_pretraining_resumes_exactly(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SMALL | {"data": f"{three}/{{000..002}}.tar", "batch_size": 4, "save_every": 2, "steps": 4}
    whole = fastmim.pretrain(**settings, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / "weights.safetensors").unlink()
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step_000000004")
    resumed = fastmim.pretrain(**settings, out=tmp_path / "half")
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    expected, found = load_file(whole.weights), load_file(resumed.weights)
    assert expected.keys() == found.keys() and all(expected[name].equal(found[name]) for name in expected)
