"""Checkpoints: whole or not there; damage is noticed; a full disk spoils nothing; no pickle anywhere."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from conftest import file_size_limit
from fastmim.errors import RequestError, RunError
from fastmim.system import files
from fastmim.training import checkpoint, optim

ABOUT = {"seed": 5, "config": {}, "num_images": 24, "stages": []}


def trained(seed: int = 0) -> tuple[nn.Module, AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    optimizer = optim.build(model, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def save(root: Path, step: int, seed: int = 0, keep_every: int | None = None) -> Path:
    return checkpoint.write(root, checkpoint.collect(step, *trained(seed), about=ABOUT), keep_every=keep_every)


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.write(tmp_path, checkpoint.collect(12, model, optimizer, about=ABOUT))
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 12 and found.manifest["seed"] == 5
    other, other_optimizer = trained(seed=1)
    checkpoint.load(found, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    ours, theirs = optim.named_state(model, optimizer), optim.named_state(other, other_optimizer)
    assert ours.keys() == theirs.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(torch.equal(ours[n][k], theirs[n][k]) for n in ours for k in ("exp_avg", "exp_avg_sq", "step"))


def test_checkpoints_of_another_version_are_refused_not_begun_anew(tmp_path: Path) -> None:
    manifest = save(tmp_path, 2) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(RequestError, match="holds checkpoints of format 2; expected format 3, which this version"):
        checkpoint.newest(tmp_path)
    later = save(tmp_path, 3)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.path == later


def test_a_pipe_for_the_only_manifest_is_not_waited_for(tmp_path: Path) -> None:
    manifest = save(tmp_path, 2) / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    assert checkpoint.newest(tmp_path) is None


def test_layout(tmp_path: Path) -> None:
    path = save(tmp_path, 12000)
    assert path.name == "step_000012000"
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optim.safetensors",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["bytes"] == (path / "model.safetensors").stat().st_size
    assert [group["weight_decay"] for group in manifest["param_groups"]] == [0.1, 0.0]


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "pipe"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2 if name != "manifest.json" else 0] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "truncate" else content)
    if damage in ("remove", "pipe"):
        path.unlink()
    if damage == "pipe":  # which nobody writes to
        os.mkfifo(path)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    save(tmp_path, 2)  # the resumed run comes to the same step again and replaces it
    assert checkpoint.newest(tmp_path).step == 2  # type: ignore[union-attr]


def test_what_a_kill_left_behind_is_ignored_and_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp_step_000000002").mkdir()
    assert checkpoint.newest(tmp_path).step == 1  # type: ignore[union-attr]
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000001", "step_000000003"]


def test_pruning_keeps_the_last_two_and_every_nth(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, keep_every=3)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [3, 6, 7]


def test_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX file size limits")
def test_a_failing_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model, optimizer = trained()
    with (
        file_size_limit(4096),
        pytest.raises(
            RunError,
            match=r"could not save step 2 .*checkpoint of step 1 in .* is intact: free space or mend the disk, and run the same",
        ),
    ):
        checkpoint.write(tmp_path, checkpoint.collect(2, model, optimizer, about=ABOUT))
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000001"]
    assert checkpoint.newest(tmp_path).step == 1  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX file size limits")
def test_a_failing_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trained()
    with file_size_limit(4096), pytest.raises(RunError, match="there is no earlier checkpoint"):
        checkpoint.write(tmp_path, checkpoint.collect(2, model, optimizer, about=ABOUT))


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    """A pickle in the place of a tensor file is damage, and nothing in it runs."""
    path = save(tmp_path, 1)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    torch.save(Evil(), path / "model.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = {
        "bytes": (path / "model.safetensors").stat().st_size,
        "crc32": files.crc32(path / "model.safetensors"),
    }
    del manifest["crc32"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    with pytest.raises(RunError, match="is not a safetensors file"):
        checkpoint.load(found, trained()[0])
    assert not marker.exists()


def damage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(bytes((path / "model.safetensors").stat().st_size))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_below_damaged_ones_stays(tmp_path: Path) -> None:
    """A run that fell back saves below the numbers of the damaged checkpoints, which are set aside."""
    for step in (80, 120):
        damage(save(tmp_path, step))
    for step in (11, 12, 13):
        save(tmp_path, step)
        assert checkpoint.newest(tmp_path).step == step  # type: ignore[union-attr]
    assert names(tmp_path) == [".damaged_step_000000080", ".damaged_step_000000120", "step_000000012", "step_000000013"]
    damage(save(tmp_path, 14))
    save(tmp_path, 15)
    assert "step_000000013" in names(tmp_path), "of two valid ones, neither is removed for a damaged one between them"


def test_foreign_names_files_and_links_are_left_alone(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "other disk"
    first = save(root, 1)
    for copy in ("step_best", "step_old", "step_000000001.bak", "step_1"):
        shutil.copytree(first, root / copy)
    first.rename(elsewhere)
    first.symlink_to(elsewhere)
    (root / "step_000000002").write_text("a file with the name of a checkpoint")
    (root / ".tmp_step_000000009").write_text("a file with the name of an unfinished one")
    (root / "notes.txt").write_text("mine")
    for step in range(2, 8):
        save(root, step, keep_every=5)
    kept = {"step_best", "step_old", "step_000000001.bak", "step_1", "step_000000001", "notes.txt"}
    assert set(names(root)) == kept | {f"step_00000000{step}" for step in (5, 6, 7)} | {".damaged_step_000000002"}
    assert (elsewhere / "manifest.json").exists() and checkpoint.newest(root).step == 7  # type: ignore[union-attr]


def test_a_linked_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 3)
    path.rename(tmp_path / "other disk")
    path.symlink_to(tmp_path / "other disk")
    assert checkpoint.newest(tmp_path / "checkpoints").step == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        '"text"',
        "[" * 100_000,
        '{"format": FORMAT, "step": 2, "files": {}}',
        '{"format": FORMAT, "step": 2, "files": []}',
        '{"format": FORMAT, "step": 2, "files": {"model.safetensors": 1, "optim.safetensors": 2}}',
        '{"format": FORMAT, "step": "2", "files": {"model.safetensors": {}, "optim.safetensors": {}}}',
        '{"format": FORMAT, "step": true, "files": {"model.safetensors": {}, "optim.safetensors": {}}}',
        '{"format": FORMAT, "step": 2, "files": {"../../secret": {"bytes": 0, "crc32": 0}}}',
        '{"format": FORMAT, "step": "' + "9" * 5000 + '"}',
        '{"format": FORMAT, "step": ' + "9" * 5000 + "}",
        "",
    ],
)
def test_an_odd_manifest_is_damage(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(manifest.replace("FORMAT", str(checkpoint.FORMAT)))
    assert checkpoint.newest(tmp_path).step == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": 25},
        {"config": {"lr": 1.0}},
        {"crc32": 0},
        *({"crc32": None} | odd for odd in (
            {"num_images": "24"}, {"config": []}, {"stages": [7]}, {"stages": None}, {"stages": [{"size": 32}]},
            {"stages": [{"size": "32", "start": 0, "stop": 4, "accumulation": 1}]},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_whose_facts_changed_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert checkpoint.newest(tmp_path).step == 1  # type: ignore[union-attr]


def test_a_manifest_without_a_checksum_of_its_own_is_valid(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    path = save(tmp_path, 2) / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "crc32"}))
    assert checkpoint.newest(tmp_path).step == 2  # type: ignore[union-attr]


def test_a_manifest_of_another_step_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / "step_000000009")
    assert checkpoint.newest(tmp_path).step == 1  # type: ignore[union-attr]


def test_a_checkpoint_that_does_not_read_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def rename_and_lose(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path.name.startswith(".tmp_step"):
            damage(moved)  # a disk that says that it has written
        return moved

    monkeypatch.setattr(Path, "rename", rename_and_lose)
    with pytest.raises(RunError, match=r"could not save step 2 .*it does not read back.*checkpoint of step 1 in"):
        save(tmp_path, 2)


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match="could not remove an old checkpoint from .*Permission denied"):
        save(tmp_path, 3)
    assert checkpoint.newest(tmp_path).step == 3  # type: ignore[union-attr]
