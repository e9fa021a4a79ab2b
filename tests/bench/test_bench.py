"""`fastmim bench` and `fastmim cost`: every part at its smallest with its record, tables, chart, wrong requests."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

import fastmim
from fastmim import cli
from fastmim.bench import chart, tables
from fastmim.bench.bench import bench
from fastmim.bench.cases import cases
from fastmim.bench.settings import PARTS, BenchConfig, CostConfig
from fastmim.bench.steps import forms
from fastmim.bench.timing import ratios
from fastmim.errors import RequestError

TODAY = date.today().isoformat()


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(words))
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of every part at its smallest, with a tiny ViT."""
    folder = tmp_path_factory.mktemp("records")
    config = BenchConfig(records=folder, quick=True, backbones="test_vit", rounds=1, device="cpu")
    bench(config, console=Console(quiet=True))
    return folder


def load(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / f"bench-{part}-{TODAY}.json").read_text())


@pytest.mark.parametrize("part", PARTS)
def test_every_part_writes_its_record(folder: Path, part: str) -> None:
    record = load(folder, part)
    assert record["claim"] and record["date"] == TODAY
    assert record["hardware"]["device"] == "cpu" and record["hardware"]["processor"]
    assert {"python", "torch", "timm", "fastmim"} <= record["versions"].keys()
    assert record["config"]["threads"] == 1 and record["config"]["rounds"] in (1, 3)
    assert record["raw"]


def test_ratios_follow_from_the_raw_numbers(folder: Path) -> None:
    for part, key in (("data", "pipelines"), ("hog", "forms")):
        record = load(folder, part)
        seconds = record["raw"]["cpu_seconds"]
        reference = next(iter(seconds))
        for name, numbers in record["summary"][key].items():
            _, _, kind = name.partition(", ")
            own = f"{reference}, {kind}" if f"{reference}, {kind}" in seconds else reference
            expected = ratios(seconds, baseline=own, side=name)
            assert numbers["times_faster"] == pytest.approx(expected, rel=1e-4)
            assert numbers["images_per_cpu_s"] > 0 and numbers["images_per_s"] > 0


def test_kinds_of_files(folder: Path) -> None:
    record = load(folder, "data")
    kinds = ("4000 x 3000", "PNG", "WebP")
    assert list(record["summary"]["pipelines"]) == [
        "Pillow + torchvision",
        *("folder, float batches", "folder", "jpeg pack", "raw pack"),
        *(f"{way}, {kind}" for kind in kinds for way in ("Pillow + torchvision", "folder")),
    ]
    sizes = record["config"]["mean_bytes"]
    assert sizes["4000 x 3000"] > 1e6 and sizes["PNG"] > sizes["folder"] > sizes["WebP"]


def test_the_training_step_against_its_reference(folder: Path) -> None:
    cases = load(folder, "step")["summary"]["cases"]
    *compared, alone = cases
    assert [name.partition(", ")[2] for name in compared] == [
        "128 px, hog, in-place",
        "128 px, hog, drop",
        "MAE 224",
        "SimMIM 192",
    ]
    check_forms([cases[name] for name in compared])
    whole, dropped, mae, simmim = (cases[name]["gflop_per_image"] for name in compared)
    assert dropped < whole < simmim and mae > dropped
    assert alone == "test_vit, 128 px, hog, in-place, batch 4"
    (form,) = cases[alone]["forms"].values()
    assert 0 < form["share_of_peak"] < 1 and "times_faster" not in form


def check_forms(cases: list[dict[str, Any]]) -> None:
    """On a CPU a step has two forms of one precision."""
    for case in cases:
        (plain, before), (ours, after) = case["forms"].items()
        assert plain.split()[1] == ours.split()[1] and case["fastmim"] == ours
        assert before["times_faster"]["median"] == 1 and after["times_faster"] == case["times_faster"]
        assert all(n["memory_mib"] > 1 and 0 < n["share_of_peak"] < 1 for n in (before, after))


def test_fine_tuning(folder: Path) -> None:
    record = load(folder, "finetune")
    step, augmentation = record["summary"]["cases"].values()
    check_forms([step])
    assert list(augmentation["forms"]) == ["timm on Pillow", "fastmim"]
    raw = record["raw"]["224 px, augmentation"]["cpu_seconds"]
    expected = ratios(raw, baseline="timm on Pillow", side="fastmim")
    assert augmentation["times_faster"] == pytest.approx(expected, rel=1e-4)


def test_the_precision_of_a_step_can_be_chosen() -> None:
    assert [form.name for form in forms("cpu", "float32")] == ["fastmim float32"]
    assert [form.name for form in forms("cuda:0", "bf16")] == ["fastmim bf16", "fastmim bf16 compiled"]


def test_tiers(folder: Path) -> None:
    tiers = load(folder, "end-to-end")["summary"]["tiers"]
    assert list(tiers) == ["folder", "jpeg pack", "raw pack", "batches in memory"]
    assert all(0 <= numbers["data_wait_share"] <= 1 for numbers in tiers.values())


def test_tables_and_chart_are_made_from_the_records(folder: Path) -> None:
    text = (folder / "bench.md").read_text()
    for part in PARTS:
        record = load(folder, part)
        made = tables.table(record)
        assert made.markdown() in text
        assert all(len(row) == len(made.header) for row in made.rows)
        assert made.rich().row_count == len(made.rows)
        _, _, bars = chart.panel(record)
        assert all(after - before > 0.99 for before, after in pairwise(chart.positions(bars)))
    with Image.open(folder / "bench.png") as image:
        assert image.width > 1000 and image.height > 1000


def test_a_part_measured_again_leaves_the_others_in_table_and_chart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--quick", "--only", "hog", "--backbones", "test_vit", "--device", "cpu", "--records", str(folder))
    assert command("bench", *words) == 0
    printed = capsys.readouterr().out
    assert "HOG target" in printed and "Training step" not in printed and "minutes in all" in printed
    text = (folder / "bench.md").read_text()
    assert "HOG target" in text and "Training step" in text


def test_records_of_an_accelerator_have_one_clock(folder: Path, tmp_path: Path) -> None:
    record = load(folder, "step")
    record["hardware"] = {"processor": "x", "cores": 16, "device": "cuda", "accelerator": "A Large GPU"}
    for case in record["summary"]["cases"].values():
        for numbers in case["forms"].values():
            del numbers["images_per_cpu_s"]
    made = tables.table(record | {"name": "bench-step-cuda"})
    assert made.header == ("step", "images/s", "MiB", "of peak", "times faster")
    assert all(len(row) == len(made.header) for row in made.rows)
    assert "A Large GPU" in made.note and "wall-clock time" in made.note
    chart.draw([record], tmp_path / "chart.png")


def test_a_backbone_that_cannot_drop_tokens_is_not_trained_by_mae() -> None:
    assert [case.name for case in cases(["test_convnext"])] == [
        "test_convnext, 128 px, hog, in-place",
        "test_convnext, SimMIM 192",
    ]
    assert cases(["test_vit", "test_convnext"])[-1].name == "test_convnext, SimMIM 192"


def test_a_chart_needs_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"matplotlib is not installed; run: pip install 'fastmim\[plots\]'"):
        chart.draw([load(folder, "hog")], folder / "none.png")


def test_cost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = load(folder, "step")
    case, found = next(iter(record["summary"]["cases"].items()))
    rate = found["forms"][found["fastmim"]]["images_per_cpu_s"]
    rows = fastmim.cost(images=36_000, epochs=100, records=folder)
    by_name = {row.step: row.hours for row in rows if row.source == f"bench-step-{TODAY}"}
    assert by_name[f"{case}: {found['fastmim']}"] == pytest.approx(1000 / rate)
    assert {(row.source, row.unit) for row in rows} == {(f"bench-step-{TODAY}", "core-hours")}
    path = folder / f"bench-step-{TODAY}.json"
    assert command("cost", "--images", "1281167", "--epochs", "800", "--record", str(path)) == 0
    text = capsys.readouterr().out
    assert "1,281,167 images x 800 epochs" in text and "core-hours" in text
    assert any("MAE 224" in row.step for row in rows)
    assert fastmim.cost(images=1000, epochs=1, record=path, devices=8, batch_size=4096)
    fine_tuning = folder / f"bench-finetune-{TODAY}.json"
    with pytest.raises(RequestError, match="expected a bench-step record of fastmim bench"):
        fastmim.cost(images=1, epochs=1, record=fine_tuning)


def test_cost_tries_a_step_where_there_are_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmim.bench.cost.seconds_per_image", lambda *_, **__: (0.01, 64))
    words = ("cost", "--images", "36000", "--epochs", "100", "--img-size", "32", "--device", "cpu")
    assert command(*words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "36,000 images x 100 epochs, by a trial on this machine" in text and "pass on 64 images" in text
    assert re.search(r"vit_small_patch16_224, 32 px\W+100\W+10\W", text)
    assert command(*words, "--backbone", "test_vit") == 0
    assert "test_vit, 32 px" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert BenchConfig().records == CostConfig(images=1, epochs=1).records == Path("runs/bench")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "--only", "data,stepp"), "only names 'stepp'; expected some of data, hog, step.*did you mean step"),
        (("bench", "--batch-size", "0"), "batch_size is 0; expected at least 1"),
        (("bench", "--rounds", "0"), "rounds is 0; expected at least 1"),
        (("bench", "--device", "cuda:77"), "device is 'cuda:77'; expected one that this machine has"),
        (("bench", "--backbones", "vit_smal"), "unknown backbone 'vit_smal'.*nearest"),
        (
            ("bench", "--device", "cpu", "--records", "file/records"),
            "records is file/records: .*expected a writable directory",
        ),
        (("cost", "--images", "0", "--epochs", "1"), "images is 0; expected at least 1"),
        (("cost", "--images", "1", "--epochs", "-1"), "epochs is -1.0; expected more than 0"),
        (("cost", "--images", "1", "--epochs", "1", "--backbone", "vit_smal"), "unknown backbone 'vit_smal'.*nearest"),
        (("cost", "--images", "1", "--epochs", "1", "--img-size", "0"), "img_size is 0; expected at least 1"),
        (("cost", "--images", "1", "--epochs", "1", "--record", "none.json"), "record is none.json: No such file"),
        (
            ("cost", "--images", "1", "--epochs", "1", "--record", "file"),
            "record is file; expected a bench-step record",
        ),
    ],
)
def test_wrong_requests_are_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no record")
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(RequestError, match=message):
        raise RequestError(error)


def test_help_does_not_import_torch() -> None:
    script = "import sys; from fastmim import cli\ntry: cli.main(['bench', '--help'])\nexcept SystemExit: pass\n"
    check = "heavy = {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script + check], check=True, stdout=subprocess.DEVNULL)
