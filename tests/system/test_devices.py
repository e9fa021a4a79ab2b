"""The precision of a device: bf16 where it is fast, and a word where it is asked for and slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastmim
from conftest import SMALL, UNTRAINED
from fastmim.system.devices import resolve_bf16

NOTE = "note      bf16 is slow on this processor, which has no instructions for it; try --precision float32\n"


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_auto_is_bf16_on_processors_with_instructions_for_it(
    instructions: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    cpu = torch.device("cpu")
    assert resolve_bf16("auto", cpu) is fast
    assert resolve_bf16("bf16", cpu)
    assert not resolve_bf16("float32", cpu)
    assert not resolve_bf16("auto", torch.device("meta"))


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_works_on_any_processor_and_one_line_says_where_it_is_slow(
    fast: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast})
    settings = SMALL | {"steps": 2, "precision": "bf16", "data": photos, "out": tmp_path / "run"}
    assert fastmim.pretrain(**settings).finished
    said = capsys.readouterr().out
    assert "device    cpu, bf16, eager" in said
    assert said.count(NOTE) == (not fast)
    fastmim.embed(**UNTRAINED | {"precision": "bf16", "data": photos, "out": tmp_path / "x.npy"})
    assert capsys.readouterr().out.count(NOTE) == (not fast)
