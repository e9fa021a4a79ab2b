"""safetensors files: the same contents give the same bytes, and a full disk is an OSError."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from conftest import file_size_limit
from fastmim.system.tensor_files import save_tensors

METADATA = {name: f'{name} "é" \\ \n\t\x01\x7f\u2028 \U0001f600' for name in "gfedcba"}


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).view(2, 3).T, "a": torch.zeros((), dtype=torch.bfloat16)}
    for number in range(6):
        save_tensors(tmp_path / str(number), tensors, METADATA)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    loaded = load_file(tmp_path / "0")
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == METADATA


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX file size limits")
def test_a_disk_that_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    with file_size_limit(4096), pytest.raises(OSError, match="weights") as caught:
        save_tensors(tmp_path / "weights", {"a": torch.zeros(9999)})
    assert caught.value.errno == errno.EFBIG


def test_what_safetensors_refuses_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("header too large")

    monkeypatch.setattr("fastmim.system.tensor_files.save_file", refuse)
    with pytest.raises(OSError, match="header too large: '.*weights'"):
        save_tensors(tmp_path / "weights", {})
