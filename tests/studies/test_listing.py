"""The list of backbones: a table that is the survey's, printed without torch, or made anew where it does not apply.

After a survey with another version of timm, run `python tests/studies/test_listing.py`, which writes the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import fastmim
from fastmim.backbone import describe
from fastmim.errors import RequestError
from fastmim.studies import listing

SURVEY = Path(__file__).parents[2] / "docs/backbones.jsonl"


def surveyed() -> dict[str, listing.Entry]:
    rows = [row for row in map(json.loads, SURVEY.read_text().splitlines()) if row["name"] != "cmt_s"]  # not timm's
    return {row["name"]: listing.Entry(row["name"], row["stride"], row["width"], row["parameters"]) for row in rows}


def test_the_table_is_that_of_the_survey() -> None:
    found = {entry.name: entry for entry in listing.known("*", 128)}
    assert list(found) == timm.list_models()
    assert surveyed().items() <= found.items()


@pytest.mark.parametrize("pattern", ["*", "swin_t*", "resnet1[08]*", "cmt_s", "vit_*_patch16_224", "*v2_b?"])
def test_patterns_find_what_timm_finds(pattern: str) -> None:
    assert [entry.name for entry in listing.known(pattern, 128)] == timm.list_models(pattern)


def test_the_table_and_the_models_agree(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listing.print_list("resnet1[08]*", max_parameters=10)
    told = capsys.readouterr().out
    assert "resnet10t" in told and "resnet18" not in told
    monkeypatch.setattr(listing, "version", lambda package: "0.0")  # another timm
    listing.print_list("resnet1[08]*", max_parameters=10)
    assert capsys.readouterr().out == told
    for name in ("vit_tiny_patch16_224", "cmt_s"):
        assert listing.known(name, 128) == []
    monkeypatch.undo()
    for name in ("vit_tiny_patch16_224", "cmt_s"):
        assert listing.known(name, 128) == [listing.Entry(name, *describe(name, 128))]


def test_another_size_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    listing.print_list("vit_tiny_patch16_224", img_size=96)
    assert "vit_tiny_patch16_224      16    192             5.5" in capsys.readouterr().out


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown backbone 'resnat\\*'"):
        listing.print_list("resnat*")


def test_the_command_does_not_import_torch() -> None:
    code = "import sys; from fastmim.cli import main\ntry: main(['backbones', 'swin_*'])\nfinally: print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "swin_tiny_patch4_window7_224" in result.stdout
    assert "'fastmim.studies.listing'" in result.stdout
    assert "'torch'" not in result.stdout and "'timm'" not in result.stdout


if __name__ == "__main__":
    tried = surveyed()
    entries = [tried.get(name) or listing.Entry(name, *describe(name, 128)) for name in timm.list_models()]
    lines = [listing.title(128), *(",".join(map(str, entry)) for entry in entries)]
    listing.TABLE.write_text("\n".join(lines) + "\n")


def test_from_python_models_are_rows() -> None:
    rows = fastmim.backbones("resnet1[08]*", max_parameters=10)
    assert {"resnet10t"} <= {row.name for row in rows} and all(row.parameters <= 10e6 for row in rows)
    assert next(row for row in rows if row.name == "resnet10t")[1:3] == (32, 512)
    with pytest.raises(RequestError, match="img_size is 0; expected at least 1 pixel, such as 128"):
        fastmim.backbones(img_size=0)
