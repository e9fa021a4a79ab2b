"""The survey of timm's models, on a few of them, and its report."""

from __future__ import annotations

import pytest

from fastmim.errors import RequestError
from fastmim.studies import survey
from fastmim.studies.survey import Row


def test_table_lists_matching_models(capsys):
    assert survey.table("resnet1[08]*", max_parameters=10e6) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "stride", "width", "parameters", "(M)"]
    assert [line.split() for line in lines[1:]] == [["resnet10t", "32", "512", "4.9"]]  # resnet18 has 11 million


def test_table_refuses_a_pattern_without_models():
    with pytest.raises(RequestError, match="unknown backbone 'resnat\\*'"):
        survey.table("resnat*")


def test_check_trains_each_model_and_remembers_it(tmp_path, capsys):
    out, journal = tmp_path / "docs" / "backbones.md", tmp_path / "journal.jsonl"
    options = {"max_parameters": 10e6, "out": out, "journal": journal}
    assert survey.check("resnet1[08]*", **options) == 0
    assert "1 of 1 pass" in capsys.readouterr().out
    text = out.read_text()
    assert "**1 of 1 pass (100.0%).**" in text
    assert "| resnet10t | 32 | 512 | 4.9 | resized |" in text
    assert "resnet18" not in text

    assert survey.check("resnet1[08]*", **options) == 0
    assert "resnet10t  ok" not in capsys.readouterr().out  # it was not run again


def test_a_model_that_ends_its_process_costs_that_model_only():
    with survey._Worker() as worker:
        worker._process.kill()
        worker._process.join()
        row = worker.run("resnet10t", 1, 128)
        assert row == Row("resnet10t", problem="its process ended with status -9")
        assert worker.run("resnet10t", 1, 128).parameters == pytest.approx(4.9e6, rel=0.01)


def test_report_gives_the_reason_of_each_failure():
    rows = [
        Row("vit", "vision_transformer", 5_500_000, 16, 192, resizes=True),
        Row("mixer", "mlp_mixer", 18_000_000, 32, 512),
        Row("halo", "byobnet", 12_000_000, 32, 2048, problem="takes 256 | 512 px only"),
    ]
    text = survey.report(rows, "*", 150e6, 128)
    assert "**2 of 3 pass (66.7%).**" in text
    assert "| halo | 12.0 | takes 256 / 512 px only |" in text
    assert "| vit | 16 | 192 | 5.5 | resized |" in text
    assert "| mixer | 32 | 512 | 18.0 | as is |" in text


def test_a_survey_that_is_stopped_leaves_its_table(tmp_path, monkeypatch):
    def run(worker, name, *_):
        if name != "resnet10t":
            raise KeyboardInterrupt
        return Row(name, "resnet", 5_000_000, 32, 512)

    monkeypatch.setattr(survey._Worker, "run", run)
    out = tmp_path / "backbones.md"
    with pytest.raises(KeyboardInterrupt):
        survey.check("resnet1[04]*", out=out, journal=tmp_path / "backbones.jsonl")
    assert "**1 of 1 pass (100.0%).**" in out.read_text()
    assert "**Unfinished:** 7 more names, of any size, were not tried yet" in out.read_text()
