"""Two processes extract features as one does: the same rows in the same order, the same scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import fastmim
from conftest import UNTRAINED
from fastmim import RequestError
from fastmim.system.processes import Place
from fastmim.training.sharing import Share
from fastmim.training.world import World
from fastmim.transfer.features.feature_file import FeatureWriter
from processes import together

APPEND = FeatureWriter.append


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """24 photographs, the fourth of which is none."""
    root = tmp_path_factory.mktemp("folder") / "photos"
    shutil.copytree(photos, root)
    (root / "03.jpg").write_bytes(b"<html>")
    return root


def test_two_processes_embed_stop_and_go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writing process is asked to stop in the first round; the last one has a batch for it alone."""
    settings = UNTRAINED | {"batch_size": 5}
    fastmim.embed(**settings, data=str(folder), out=tmp_path / "one.npy")
    whole = np.load(tmp_path / "one.npy")

    def append(self: FeatureWriter, *args: Any, **options: Any) -> None:
        APPEND(self, *args, **options)
        if self.num_read == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "append", append)
        statuses, said = together("embed", folder, tmp_path / "two.npy", settings, settings)
    assert statuses == [75, 75], said
    assert said.count("after 10 of 24 images; run the same command to resume") == 1
    statuses, said = together("embed", folder, tmp_path / "two.npy", settings, settings)
    assert statuses == [0, 0], said
    assert said.count("resuming at image 10 of 24") == said.count("23 x 48") == 1
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), whole, rtol=1e-6, atol=1e-6)
    for name in ("csv", "bad_images.txt"):
        assert (tmp_path / f"two.{name}").read_bytes() == (tmp_path / f"one.{name}").read_bytes()
    statuses, said = together("embed", folder, tmp_path / "two.npy", settings, settings)
    assert statuses == [0, 0] and said.count("nothing to do") == 1


def test_two_processes_without_enough_images(folder: Path, tmp_path: Path) -> None:
    """One complains for both."""
    settings = UNTRAINED | {"max_bad_share": 0.01}
    statuses, said = together("embed", folder, tmp_path / "x.npy", settings, settings)
    assert statuses == [1, 1] and said.count("raise --max-bad-share above 0.01") == said.count("fastmim:") == 1


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_two_processes_probe(labelled: Path, tmp_path: Path, method: str) -> None:
    settings = UNTRAINED | {"batch_size": 7, "method": method}
    fastmim.probe(**settings, data=str(labelled), out=tmp_path / "one.json")
    statuses, said = together("probe", labelled, tmp_path / "two.json", settings, settings)
    assert statuses == [0, 0], said
    assert said.count("effective rank") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["results"] == one["results"] and (two["num_train"], two["num_val"]) == (64, 24)
    assert two["effective_rank"] == pytest.approx(one["effective_rank"], rel=1e-5)


def test_other_images_are_refused(photos: Path, tmp_path: Path) -> None:
    statuses, said = together("embed", photos, tmp_path / "x.npy", UNTRAINED, UNTRAINED | {"batch_size": 3})
    assert statuses == [2, 2] and said.count("batch_size is 3 in process 1; expected 256, as in process 0") == 2


@pytest.mark.parametrize("command", ["embed", "probe"])
def test_several_devices_need_the_command_line(photos: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / ("x.npy" if command == "embed" else "x.json")
    with pytest.raises(RequestError, match="devices is 2 in one process; expected the command line"):
        getattr(fastmim, command)(**UNTRAINED, data=str(photos), out=out, devices=2)


@pytest.mark.parametrize(("num", "batch", "size", "first"), [(0, 4, 2, 0), (7, 4, 3, 0), (31, 7, 2, 3), (24, 4, 1, 0)])
def test_shares_are_every_nth_batch(num: int, batch: int, size: int, first: int) -> None:
    positions = np.arange(first, num)
    for rank in range(size):
        place = Place(rank=rank, size=size, local_rank=rank, local_size=size)
        with patch.object(World, "_meet"):
            found = Share(num, batch, World(place), first)
        expected = positions[(positions - first) // batch % size == rank].tolist()
        assert list(found) == expected and len(found) == len(expected) and found[1:5] == expected[1:5]


def test_a_share_of_a_billion_images_is_no_list() -> None:
    share = Share(10**9, 256, World())
    assert len(share) == 10**9 and share[10**9 - 2 :] == [10**9 - 2, 10**9 - 1]
