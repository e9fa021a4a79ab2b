"""Several masks of an image in a run: batches count copies, an epoch still reads every image once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim.data import loader
from fastmim.errors import RequestError


def run(out: Path, photos: Path, **more: Any) -> Any:
    settings = SMALL | {"data": str(photos), "out": out, "batch_size": 24, "masks_per_image": 3, "log_every": 1}
    return fastmim.pretrain(**(settings | more))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_batch_counts_copies_and_an_epoch_reads_every_image_once(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = [], loader.load

    def counting(source: Any, **options: Any) -> Any:
        for batch in load(source, **options):
            read.append(batch["keys"])
            yield batch

    monkeypatch.setattr(loader, "load", counting)
    out = run(tmp_path / "run", photos, steps=None, epochs=2).out
    assert [len(keys) for keys in read] == [8] * 6  # 24 images in three steps of eight
    assert len(torch.cat(read[:3]).unique()) == 24
    last = lines(out)[-1]
    assert (last["step"], last["images"], last["epoch"]) == (6, 48, 2.0)
    rates = [line["lr"] for line in lines(out)]
    assert max(rates) == pytest.approx(1e-2 * 24 / 256, rel=0.1)  # per 256 images of the batch


@pytest.mark.parametrize("masking", ["in-place", "drop"])
def test_micro_batches_give_the_same_losses(tmp_path: Path, photos: Path, masking: str) -> None:
    """A micro-batch holds whole images with their copies."""
    whole, parts = (
        run(tmp_path / str(limit), photos, steps=3, masking=masking, micro_batch=limit).out for limit in (None, 7)
    )
    assert [line["loss"] for line in lines(parts)] == pytest.approx([line["loss"] for line in lines(whole)], rel=1e-4)
    ours, theirs = (load_file(out / "weights.safetensors") for out in (whole, parts))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-2)


def test_the_plan_says_how_many_copies(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", photos, dry_run=True, micro_batch=7)
    said = capsys.readouterr().out
    assert "batch     24 images (3 copies of 8), 6 at once; " in said
    assert re.search("masking .* in-place, 3 masks an image", said)


def test_a_default_batch_is_lowered_to_all_copies_of_all_images(tmp_path: Path, photos: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "batch_size"} | {"masks_per_image": 16}
    out = fastmim.pretrain(**settings | {"data": str(photos), "out": tmp_path, "steps": 1}).out
    assert fastmim.config.read(out / "config.yaml")["batch_size"] == 256  # 16 of 24 images
    (tmp_path / "few").mkdir()
    for number in range(5):
        (tmp_path / f"few/{number}.jpg").symlink_to(photos / f"{number:02d}.jpg")
    out = fastmim.pretrain(**settings | {"data": str(tmp_path / "few"), "out": tmp_path / "run", "steps": 1}).out
    assert fastmim.config.read(out / "config.yaml")["batch_size"] == 80


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"masks_per_image": 5},
            "masks_per_image is 5 with a batch of 24; expected a divisor, .* --batch-size 20 or 25",
        ),
        ({"masks_per_image": 0}, "masks_per_image is 0; expected at least 1"),
        ({"micro_batch": 2}, "micro_batch is 2; expected at least 3, as the copies of an image stay together: raise"),
        ({"batch_size": 75}, "24 images in .* are fewer than one batch of 25"),
    ],
)
def test_wrong_requests(settings: dict[str, Any], message: str, tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match=message):
        run(tmp_path / "run", photos, **settings)
    assert not (tmp_path / "run").exists()
