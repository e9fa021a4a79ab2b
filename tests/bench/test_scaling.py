"""Predictions for several devices: the line through measured steps, the exchange of gradients, and `cost --devices`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastmim
from fastmim.bench import scaling
from fastmim.bench.scaling import Cluster, Step
from fastmim.cli import main
from fastmim.method.mim import MIM

ROOT = Path(__file__).parents[2]


def test_a_line_through_measured_steps() -> None:
    rates = {images: images / (0.01 + 1e-4 * images) for images in (256, 512, 1024)}
    step = scaling.fit(rates, 100)
    assert step.fixed == pytest.approx(0.01) and step.per_image == pytest.approx(1e-4)
    assert scaling.fit({256: 1000.0}, 100) == Step(0.0, pytest.approx(1e-3), 100)
    faster_when_small = scaling.fit({1: 1000.0, 100: 500.0}, 100)  # no negative time for nothing
    assert faster_when_small.fixed == 0 and 1e-3 < faster_when_small.per_image < 2e-3


def test_gradients_are_hidden_by_the_backward_pass_but_for_the_last_bucket() -> None:
    step = Step(fixed=0.01, per_image=1e-3, gradient_bytes=100 * 2**20)  # four buckets
    alone = scaling.predict(step, Cluster(1), 100)
    assert alone.seconds == pytest.approx(0.01 + 0.1) and alone.images_per_s == pytest.approx(100 / 0.11)
    assert alone.bound == "arithmetic"
    sent = 2 * 7 / 8 * 100 * 2**20 / 300e9
    eight = scaling.predict(step, Cluster(8, latency=0), 800)
    assert eight.exchange == pytest.approx(sent / 4) and eight.arithmetic == pytest.approx(0.1)
    slow = scaling.predict(step, Cluster(16, between=1.0, latency=0), 1600)
    sent = 2 * 15 / 16 * 100 * 2**20 / 1e9
    assert slow.exchange == pytest.approx(sent - 2 / 3 * 0.1) and slow.bound == "gradients"
    hops = scaling.predict(step, Cluster(16, between=1.0, latency=1e-3), 1600).exchange - slow.exchange
    assert hops == pytest.approx(4 * 2 * 4 * 1e-3)


def test_a_node_that_reads_slowly_decides() -> None:
    step = Step(fixed=0.0, per_image=1e-3, gradient_bytes=4)
    found = scaling.predict(step, Cluster(16, loader=1000.0), 1600)
    assert found.bound == "data" and found.seconds == pytest.approx(800 / 1000)
    assert scaling.predict(step, Cluster(4, loader=1e6), 400).bound == "arithmetic"


def test_the_page_on_scaling_belongs_to_the_newest_record() -> None:
    path = max((ROOT / "benchmarks/records").glob("gpu-step-cuda-*.json"))
    cases = scaling.cases(json.loads(path.read_text()))
    name = "vit_base_patch16_224"
    rates = {
        int(case.rpartition(" ")[2]): found["forms"][found["fastmim"]]["images_per_s"]
        for case, found in cases.items()
        if case.startswith(f"{name}, in-place")
    }
    with torch.device("meta"):
        step = scaling.fit(rates, scaling.gradient_bytes(MIM(name)))
    predicted = scaling.predict(step, Cluster(64, between=12.5), 16384)
    text = (ROOT / "docs/scaling.md").read_text()
    assert path.name in text and f"{predicted.images_per_s:,.0f} (" in text.partition("12.5 GB/s")[2]


def test_cost_for_several_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = {"fastmim float32": {"images_per_cpu_s": 100.0, "images_per_s": 90.0}}
    case = {"fastmim": "fastmim float32", "forms": forms}
    record = {
        "name": "bench-step", "date": "2026-11-26", "config": {"batch_size": 16, "threads": 1},
        "hardware": {"device": "cpu", "processor": "a processor"}, "versions": {"torch": "2"},
        "summary": {"cases": {"test_vit, 160 px, hog, in-place": case}},
    }  # fmt: skip
    (tmp_path / "bench-step-2026-11-26.json").write_text(json.dumps(record))
    words = ["cost", "--images", "64000", "--epochs", "9", "--records", str(tmp_path), "--devices", "4"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--batch-size", "64", "--loader", "20"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "on 4 devices, predicted from bench-step-2026-11-26" in text
    assert "data" in text and "20" in text and "5%" in text  # 20 images/s of 4 x 100, bound by data: 8 hours
    [row] = fastmim.cost(images=64_000, epochs=9, records=tmp_path, devices=4, batch_size=64, loader=20)
    assert row.hours == pytest.approx(8) and row.of_linear == pytest.approx(0.05) and row.bound_by == "data"
    with pytest.raises(SystemExit) as done:
        main([*words, "--batch-size", "63"])
    assert done.value.code == 2
    said = "batch_size is 63, which does not divide among 4 devices; expected a multiple, such as 60"
    assert said in capsys.readouterr().err
