"""`fastmim embed` end to end: both formats, kills at any moment, bad images, refusals."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

import conftest
import fastmim
from conftest import SMALL
from fastmim import Backbone, RequestError, RunError
from fastmim.data.augment import normalise
from fastmim.data.center_crops import load_centers
from fastmim.data.sources import open_source
from fastmim.system import growing
from fastmim.transfer.features import embed as embedding
from fastmim.transfer.features import feature_file
from fastmim.transfer.features.encoder import Encoder
from fastmim.transfer.features.extraction import extract, gather
from fastmim.transfer.features.feature_file import FeatureWriter
from processes import fork, wait_until

UNTRAINED = conftest.UNTRAINED | {"batch_size": 5}


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    """24 photographs in two classes; one is corrupted, and the class names are hard to quote and encode."""
    root = tmp_path / "data"
    for name in ("Ätna", 'b, "c"\nd'):
        (root / name).mkdir(parents=True)
    for number, photo in enumerate(sorted(photos.iterdir())):
        shutil.copy(photo, root / ("Ätna" if number % 2 else 'b, "c"\nd') / photo.name)
    (root / "Ätna" / "03.jpg").write_bytes(b"<html>")
    return root


def embed(data: Path, out: Path, **settings: Any) -> Any:
    return fastmim.embed(**(UNTRAINED | {"data": str(data), "out": out} | settings))


def expected(data: Path) -> tuple[list[str], list[str], np.ndarray]:
    """The paths, labels and features of the readable images."""
    source = open_source(str(data))
    torch.manual_seed(0)
    encoder = Encoder(Backbone(SMALL["backbone"], img_size=32, args=SMALL["backbone_args"]))
    found = gather(extract(encoder, source, batch_size=5), "photos")
    positions = found.indices.tolist()
    assert source.labels is not None and source.classes is not None
    labels = [source.classes[source.labels[index]] for index in positions]
    return [source.name(index) for index in positions], labels, found.features.numpy()


def test_numpy_and_its_index(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "new" / "features.npy"
    result = embed(folder, out, max_bad_share=0.1)
    assert result.finished and (result.num_images, result.num_rows, result.width) == (24, 23, 48)
    paths, labels, features = expected(folder)
    assert np.array_equal(np.load(out), features)
    with out.with_suffix(".csv").open(newline="") as index:
        rows = list(csv.reader(index))
    assert rows == [["path", "label"], *([path, label] for path, label in zip(paths, labels, strict=True))]
    [bad] = out.with_suffix(".bad_images.txt").read_text().splitlines()
    assert "03.jpg\t" in bad
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "features.bad_images.txt",
        "features.csv",
        "features.npy",
        "features.settings.json",
    ]


def test_parquet(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmim.transfer.features.feature_file._ROWS_AT_ONCE", 10)
    out = tmp_path / "features.parquet"
    embed(folder, out, max_bad_share=0.1)
    table = parquet.read_table(out)
    paths, labels, features = expected(folder)
    assert table.column("path").to_pylist() == paths and table.column("label").to_pylist() == labels
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[48]"
    assert np.array_equal(np.stack(table.column("embedding").to_numpy()), features)
    assert b'"untrained": true' in table.schema.metadata[b"fastmim"]


def test_without_labels_the_column_is_null(tmp_path: Path, photos: Path) -> None:
    embed(photos, tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet").column("label").null_count == 24


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    embed(folder, whole, max_bad_share=0.1)
    append, calls = FeatureWriter.append, []

    def append_and_die(self: FeatureWriter, *args: Any, **kwargs: Any) -> None:
        append(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:  # rows that no commit has confirmed are on the disk
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "COMMIT_SECONDS", 0)
        patch.setattr(FeatureWriter, "append", append_and_die)
        with pytest.raises(Killed):
            embed(folder, out, max_bad_share=0.1)
    assert not out.exists()
    unfinished = tmp_path / f"killed{suffix}.partial"
    assert (unfinished / "features.bin").stat().st_size > 10 * 48 * 4
    embed(folder, out, max_bad_share=0.1)
    said = capsys.readouterr().out
    assert "resuming at image 10 of 24" in said
    assert (f", their paths and labels in {out.with_suffix('.csv')}" in said) == (suffix == ".npy")
    assert out.read_bytes() == whole.read_bytes() and not unfinished.exists()
    if suffix == ".npy":
        assert out.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()
    assert out.with_suffix(".bad_images.txt").read_bytes() == whole.with_suffix(".bad_images.txt").read_bytes()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_kill_while_finishing_loses_nothing(
    tmp_path: Path, folder: Path, suffix: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    embed(folder, whole, max_bad_share=0.1)
    replace, moves = Path.replace, []

    def replace_and_die(self: Path, target: Path) -> Path:
        if target.parent == tmp_path:
            moves.append(target)
            if len(moves) > at:
                raise Killed
        return replace(self, target)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_die)
        patch.setattr(feature_file, "clear", die)
        with pytest.raises(Killed):
            embed(folder, out, max_bad_share=0.1)
    embed(folder, out, max_bad_share=0.1)
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"killed{suffix}.partial").exists()


def test_sigterm_saves_and_exits_75(tmp_path: Path, photos: Path) -> None:
    listed = tmp_path / "many.csv"
    listed.write_text("".join(f"{photo}\n" for photo in sorted(photos.iterdir()) * 1000))
    out = tmp_path / "features.npy"
    found = tmp_path / "features.npy.partial/features.bin"
    with fork("embed", listed, out, UNTRAINED | {"batch_size": 1}, errors=tmp_path / "errors") as process:
        wait_until(lambda: found.exists() and found.stat().st_size >= 20_000, seconds=60)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "of 24000 images; run the same command to resume" in errors and "Traceback" not in errors
    assert (tmp_path / "features.npy.partial" / "progress.json").exists() and not out.exists()


def test_too_many_bad_images_stop_the_embedding(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RunError, match=r"1 of 24 images \(4.2%\) cannot be read.*raise --max-bad-share above 0.01"):
        embed(folder, tmp_path / "x.npy", max_bad_share=0.01)
    assert not (tmp_path / "x.npy").exists()


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "COMMIT_SECONDS", 0)
    write, calls = growing.write_json, []

    def fill(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_json", fill)
        with pytest.raises(RunError, match="No space left on device; the first 10 of 24 images are safe: free space"):
            embed(photos, tmp_path / "x.npy")
    assert embed(photos, tmp_path / "x.npy").finished
    embed(photos, tmp_path / "y.npy")
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()


def stop_early(monkeypatch: pytest.MonkeyPatch, photos: Path, out: Path) -> None:
    """Leave an unfinished embedding behind, ten images in."""
    append = FeatureWriter.append

    def append_and_die(self: FeatureWriter, *args: Any, **kwargs: Any) -> None:
        if self.num_read == 10:
            raise Killed
        append(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "COMMIT_SECONDS", 0)
        patch.setattr(FeatureWriter, "append", append_and_die)
        with pytest.raises(Killed):
            embed(photos, out)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_an_unfinished_embedding_that_lost_data_is_never_completed(
    tmp_path: Path, photos: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"x{suffix}"
    stop_early(monkeypatch, photos, out)
    unfinished = growing.partial_folder(out)
    for name in ("features.bin", "index.csv"):
        path = unfinished / name
        content = path.read_bytes()[: json.loads((unfinished / "progress.json").read_text())["bytes"][name]]
        half = len(content) // 2
        for left in (b"", content[:1], content[:half], content[:-1], content[:half] + bytes(len(content) - half)):
            path.write_bytes(left)
            with pytest.raises(
                RunError, match=rf"{name} (has|differs).*; expected what .* start over with --overwrite"
            ):
                embed(photos, out)
        path.write_bytes(content + b"written after the last commit")
    good = (unfinished / "progress.json").read_text()
    for text in ("", "[]", "{}", "7", json.dumps(json.loads(good) | {"facts": {"num_rows": 11}})):
        (unfinished / "progress.json").write_text(text)
        with pytest.raises(RunError, match=r"progress.json is damaged.*: start over with --overwrite"):
            embed(photos, out)
    (unfinished / "progress.json").write_text(good)
    assert embed(photos, out).finished
    embed(photos, tmp_path / f"y{suffix}")
    assert out.read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_the_same_command_again_finds_it_finished(
    tmp_path: Path, photos: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"x{suffix}"
    embed(photos, out)
    before = sorted(tmp_path.iterdir())
    growing.partial_folder(out).mkdir()
    (growing.partial_folder(out) / "features.bin").write_bytes(b"")  # killed while removing it
    again = embed(photos, out)
    assert again.finished and (again.num_images, again.num_rows) == (24, 24)
    assert "is finished already: 24 x 48; nothing to do" in capsys.readouterr().out.replace("\n", " ")
    assert sorted(tmp_path.iterdir()) == before
    for settings in ({"seed": 1}, {"img_size": 64, "dry_run": True}):
        with pytest.raises(RequestError, match=r"which exists; expected a new file: take another, or add --overwrite"):
            embed(photos, out, **settings)
    out.write_bytes(b"")
    with pytest.raises(RequestError, match=r"which exists; expected a new file"):
        embed(photos, out)
    assert sorted(tmp_path.iterdir()) == before


def test_an_unfinished_part_of_something_else_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = tmp_path / "x.npy", tmp_path / "data"
    shutil.copytree(photos, data)
    stop_early(monkeypatch, data, out)
    with pytest.raises(RequestError, match=r"unfinished part has other settings \(block -1 -> 0; seed 0 -> 1\): take"):
        embed(data, out, seed=1, block=0)
    (data / "00.jpg").rename(data / "zz.jpg")
    with pytest.raises(RequestError, match=r"whose image 10 is .*10.jpg; expected .*09.jpg, as when this began"):
        embed(data, out)
    assert embed(data, out, overwrite=True).finished
    with pytest.raises(RequestError, match=r"x\.npy, which exists; expected a new file: take another, or add --over"):
        embed(data, out, seed=1)
    assert embed(data, out, overwrite=True, seed=1).finished


def test_a_dry_run_writes_nothing(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed(photos, tmp_path / "x.npy", dry_run=True)
    assert "24 images" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "data is not given; expected images: --data photos/"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"out": "features.csv"}, "out is features.csv; expected a name that ends in .parquet or .npy"),
        ({"out": "/dev/null/x.npy"}, "out is /dev/null/x.npy: .*; expected a path that can be written"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, photos: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        fastmim.embed(**(UNTRAINED | {"data": str(photos), "out": tmp_path / "x.npy"} | settings))
    assert "\n" not in str(error.value)


def test_an_unreadable_unfinished_part_is_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "x.npy.partial/progress.json").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"out is .*x.npy: not a regular file; expected a file that can be written"):
        embed(photos, tmp_path / "x.npy")


def test_parquet_without_pyarrow_is_refused(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pyarrow is not installed; run: pip install 'fastmim\[embed\]', or take a"):
        embed(photos, tmp_path / "x.parquet")


def test_patches_are_the_map_row_by_row(tmp_path: Path, photos: Path) -> None:
    patches, means = tmp_path / "patches.npy", tmp_path / "means.npy"
    result = embed(photos, patches, pool="patches")
    embed(photos, means)
    rows = np.load(patches).reshape(24, 4, 4, 48)
    assert result.width == 4 * 4 * 48 and np.allclose(rows.mean(axis=(1, 2)), np.load(means), atol=1e-5)
    torch.manual_seed(0)
    backbone = Backbone(SMALL["backbone"], img_size=32, args=SMALL["backbone_args"]).eval()
    encoder = Encoder(backbone)
    [batch] = load_centers(open_source(str(photos)), size=32, batch_size=24)
    with torch.no_grad():
        found = backbone.inner_map(normalise(batch["images"], encoder.mean, encoder.std), encoder.block)[0]
    assert np.allclose(rows, found.permute(0, 2, 3, 1), atol=1e-5)
    assert json.loads(patches.with_suffix(".settings.json").read_text())["grid"] == [4, 4]
    with pytest.raises(RequestError, match="pool is 'patches', no vector of an image; expected --pool avg, cls or"):
        fastmim.probe(data=photos, pool="patches", out=tmp_path / "a.json", **UNTRAINED)


def test_attention_of_the_class_token_head_by_head(tmp_path: Path, photos: Path) -> None:
    embed(photos, tmp_path / "attention.npy", pool="attention")
    rows = np.load(tmp_path / "attention.npy").reshape(24, -1, 4, 4)
    torch.manual_seed(0)
    backbone = Backbone(SMALL["backbone"], img_size=32, args=SMALL["backbone_args"]).eval()
    encoder = Encoder(backbone)
    [batch] = load_centers(open_source(str(photos)), size=32, batch_size=24)
    maps, num_prefix = backbone.attention_maps(normalise(batch["images"], encoder.mean, encoder.std))
    expected = maps[-1][:, :, 0, num_prefix:].unflatten(-1, (4, 4))
    assert rows.shape == expected.shape and np.allclose(rows, expected, atol=1e-6)
    with pytest.raises(RequestError, match="pool is 'attention', but .* gives no class token; expected avg"):
        fastmim.embed(
            data=photos, pool="attention", weights="none", backbone="test_convnext", img_size=32, out=tmp_path / "b.npy"
        )
