"""The survey of timm's models, on a few of them, and its report."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import asdict

import pytest

from fastmim.errors import RequestError
from fastmim.studies import survey
from fastmim.studies.survey_process import Row, heap_checks, in_process


def test_check_trains_each_model_and_remembers_it(tmp_path, capsys):
    out, journal = tmp_path / "docs" / "backbones.md", tmp_path / "journal.jsonl"
    earlier = [Row("resnet10t", "resnet", 4_922_016, 32, 512, resizes=True, steps=1), Row("vit", "vit", problem="none")]
    journal.write_text("".join(json.dumps(asdict(row)) + "\n" for row in earlier))
    options = {"max_parameters": 10e6, "img_size": 64, "out": out, "journal": journal}
    assert survey.check("resnet1[08]*", **options) == 0
    assert "1 of 1 pass" in capsys.readouterr().out
    checked = bool(heap_checks())
    text = out.read_text()
    assert "**1 of 1 pass (100.0%).**" in text
    assert f"| resnet10t | 32 | 512 | 4.9 | resized | 6 steps{', heap checked' if checked else ''} |" in text
    assert f"**{int(checked)} of these 1 were trained for 6 steps" in text
    assert "resnet18" not in text
    rows = {row["name"]: row for row in map(json.loads, journal.read_text().splitlines())}
    assert (rows["resnet10t"]["steps"], rows["resnet10t"]["heap_checked"]) == (6, checked)
    assert rows["resnet18"]["steps"] == 0  # too large
    assert rows["vit"] == asdict(earlier[1])  # other names keep their rows

    assert survey.check("resnet1[08]*", **options) == 0
    assert "resnet10t  ok" not in capsys.readouterr().out  # it was not run again


def test_a_damaged_journal_is_refused(tmp_path):
    journal = tmp_path / "backbones.jsonl"
    for line in ('{"name": "resn', '["resnet10t"]', '{"nome": "resnet10t"}'):
        journal.write_text(line)
        with pytest.raises(
            RequestError, match=r"backbones\.jsonl is not the journal of a survey .*choose another --out"
        ):
            survey.check("resnet10t", out=tmp_path / "backbones.md", journal=journal)


def die(name):
    os.abort()


def write_past_a_block(name):
    block = ctypes.create_string_buffer(1000)
    ctypes.memset(block, 1, 1001)
    return Row(name)


def test_a_model_that_ends_its_process_costs_that_model_only():
    assert in_process(die, "resnet10t") == Row("resnet10t", problem="its process ended with status -6")


@pytest.mark.skipif(not heap_checks(), reason="glibc's malloc checks are missing")
def test_a_model_that_writes_past_a_block_of_memory_fails():
    assert in_process(write_past_a_block, "resnet10t").problem == "its process ended with status -6"


def test_one_model_of_each_architecture_comes_first(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(survey, "try_model", lambda name, *_: tried.append(name) or Row(name, "family", 1, 32, 512))
    survey.check("regnet[xy]_00[24]", out=tmp_path / "backbones.md")
    assert tried == ["regnetx_002", "regnety_002", "regnetx_004", "regnety_004"]


def test_report_gives_the_reason_of_each_failure():
    rows = [
        Row("vit", "vision_transformer", 5_500_000, 16, 192, resizes=True, steps=6, heap_checked=True),
        Row("mixer", "mlp_mixer", 18_000_000, 32, 512, steps=1),
        Row("halo", "byobnet", 12_000_000, 32, 2048, problem="takes 256 | 512 px only", steps=6, heap_checked=True),
    ]
    text = survey.report(rows, "*", 150e6, 128)
    assert "**2 of 3 pass (66.7%).**" in text
    assert "**1 of these 2 were trained for 6 steps, each in a process of its own" in text
    assert "; the other 1 as their rows say." in text
    assert "| halo | 12.0 | takes 256 / 512 px only |" in text
    assert "| vit | 16 | 192 | 5.5 | resized | 6 steps, heap checked |" in text
    assert "| mixer | 32 | 512 | 18.0 | as is | 1 step |" in text


def test_a_survey_that_is_stopped_leaves_its_table(tmp_path, monkeypatch):
    def try_model(name, *_):
        if name != "resnet10t":
            raise KeyboardInterrupt
        return Row(name, "resnet", 5_000_000, 32, 512)

    monkeypatch.setattr(survey, "try_model", try_model)
    out = tmp_path / "backbones.md"
    with pytest.raises(KeyboardInterrupt):
        survey.check("resnet1[04]*", out=out, journal=tmp_path / "backbones.jsonl")
    assert "**1 of 1 pass (100.0%).**" in out.read_text()
    assert "**Unfinished:** 7 more names, of any size, were not tried yet" in out.read_text()
