"""`micro_batch="auto"`: the largest part of a batch that fits, tried on a model that runs out where it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fastmim
from conftest import SMALL
from fastmim.errors import RequestError
from fastmim.training import micro_batch


class Limited(nn.Module):
    """Has memory for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.tried = room, list[int]()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.tried.append(len(images))
        images = self.norm(images)
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"loss": (images * self.weight).mean()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "weights.safetensors") for run in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def largest(model: nn.Module) -> int:
    return micro_batch.largest_micro_batch(
        model,
        lambda batch: model(**batch)["loss"],
        lambda num_images: {"images": torch.zeros(num_images, 3, 4, 4)},
        batch_size=12,
        img_size=4,
        device=torch.device("cpu"),
    )


def test_the_largest_equal_part_that_fits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "tells_when_full", lambda device: True)
    model = Limited(5)
    assert largest(model) == 4
    assert model.tried == [12, 6, 4]
    assert model.weight.grad is None
    assert model.norm.num_batches_tracked == 0 and model.norm.running_var.eq(1).all(), "the trial leaves no trace"
    assert largest(Limited(100)) == 12


def test_where_nothing_fits_the_smallest_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "tells_when_full", lambda device: True)
    with pytest.raises(RequestError, match="not even 1 image of 4 px fits in the memory of cpu; expected a smaller"):
        largest(Limited(0))


def test_auto_is_refused_where_memory_does_not_tell(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match="micro_batch is 'auto' on cpu; expected a CUDA device"):
        fastmim.pretrain(**SMALL, data=str(photos), out=tmp_path, micro_batch="auto")


def test_a_run_takes_what_fits(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses as with the part given as a number, and the plan says how many go at once."""
    monkeypatch.setattr(micro_batch, "tells_when_full", lambda device: True)
    monkeypatch.setattr(fastmim.MIM, "forward", _limited(fastmim.MIM.forward, room=4), raising=True)
    fastmim.pretrain(**SMALL, data=str(photos), out=tmp_path / "auto", micro_batch="auto")
    fastmim.pretrain(**SMALL, data=str(photos), out=tmp_path / "four", micro_batch=4)
    assert same_weights(tmp_path / "auto", tmp_path / "four")


def _limited(forward: Any, *, room: int) -> Any:
    def limited(self: nn.Module, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, keys)  # type: ignore[no-any-return]

    return limited


def test_checkpointed_activations_train_the_same(tmp_path: Path, photos: Path) -> None:
    for name, on in (("plain", False), ("checkpointed", True)):
        fastmim.pretrain(**SMALL, data=str(photos), out=tmp_path / name, checkpoint_activations=on)
    assert same_weights(tmp_path / "plain", tmp_path / "checkpointed")


def test_fine_tuning_takes_both(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, path in enumerate(sorted(photos.iterdir())):
        label = tmp_path / "labelled" / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        (label / path.name).symlink_to(path)
    monkeypatch.setattr(micro_batch, "tells_when_full", lambda device: True)
    settings = {name: SMALL[name] for name in SMALL if name != "picture_every"} | {"steps": 2, "drop_path": 0.0}
    more = {"weights": "none", "data": str(tmp_path / "labelled"), "val_share": 0.3}
    for name, form in (("plain", {}), ("saving", {"micro_batch": "auto", "checkpoint_activations": True})):
        fastmim.finetune(**settings, **more, **form, out=tmp_path / name)
    assert same_weights(tmp_path / "plain", tmp_path / "saving")
