"""The page: what it shows of runs of every kind, and of directories in any state."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fastmim import cli
from fastmim.errors import RequestError
from fastmim.reporting import page, panels, reading, writing
from report.made_up import PRETRAIN, START, add_pictures, add_start, make_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\"'&</style>"


class Parsed(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def written(*runs: Path, **options: Any) -> str:
    path, _ = writing.write(runs, out=runs[0].parent / "page.html", **options)
    return path.read_text()


def embedded(text: str) -> dict[str, Any]:
    """What tools read back."""
    found = re.search(r'<script type="application/json" id="fastmim-report">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


def test_a_run_with_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "photos", probe_knn=lambda t: 0.4 + 0.2 * t)
    add_start(run, step=500, hours=4, total_steps=1000)
    add_pictures(run, range(100, 1001, 100))
    (run / "bad_images.txt").write_text("a.jpg\tnot an image: begins with b'GIF'\nb.png\ttruncated\n")
    (run / "checkpoints/step_000001000").mkdir(parents=True)
    text = written(run, hourly_rate=2.5)
    parsed = Parsed(text)
    for words in (
        "Learning. The loss fell",
        "Pre-training of vit_small_patch16_224 on photos, finished after 1,000 steps",
        "12,000 training images from photos",
        "2 could not be read.",
        "a.jpg not an image: begins with b'GIF'",
        "setting this run default lr 0.0003 0.00015",
        "device an accelerator",
        "processes 2",
        "device-hours 0.11 cost 0.28 at 2.5 a device-hour starts 2",
        f"weights.safetensors 7 bytes {hashlib.sha256(b'weights').hexdigest()}",
        "checkpoints/step_000001000/",
        f"fastmim finetune --weights {run} --data labelled/",
        "160 px from step 600",
        "resumed at step 500 on 20 November 2026, 13:00 UTC",
    ):
        assert words in parsed.text, words
    data = embedded(text)
    assert data["format"] == 1 and data["runs"][0]["state"] == "finished"
    assert data["runs"][0]["metrics"]["probe_knn"]["values"][-1] == 0.6
    assert data["runs"][0]["metrics"]["loss"]["steps"][-1] == 1000
    assert data["runs"][0]["device_hours"] == round(1000 * 0.2 * 2 / 3600, 4)
    assert sum(tag == "figure" for tag, _ in parsed.elements) == 7
    assert sum(tag == "img" for tag, _ in parsed.elements) == 6  # two panels of three images


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "photos")
    add_pictures(run, range(100, 301, 100))
    parsed = Parsed(written(run))
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "audio", "video", "source")
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:image/webp;base64,") or name not in attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    [policy] = [a["content"] for t, a in parsed.elements if t == "meta" and "http-equiv" in a]
    assert policy and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    settings = PRETRAIN | {"data": HOSTILE, "backbone": HOSTILE, "recipe": HOSTILE, HOSTILE: HOSTILE}
    run = make_run(tmp_path / "<b>run", settings=settings, **{HOSTILE: lambda t: t})
    (run / "bad_images.txt").write_text(f"{HOSTILE}\t{HOSTILE}\n")
    scores = {HOSTILE: 0.5, "per_class": {HOSTILE: {"accuracy": 0.5, HOSTILE: HOSTILE}}, "list": [{HOSTILE: HOSTILE}]}
    (run / "evaluation.json").write_text(json.dumps(scores))
    add_start(run, command=HOSTILE, step=100, time=HOSTILE, stages=[0, {"size": HOSTILE, "start": 300}])
    add_pictures(run, range(100, 301, 100), titles=(HOSTILE, "b"))
    text = written(run, make_run(tmp_path / "other")) + written(run)
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"b"}) and "alert(1)" in parsed.text
    assert sum(tag == "script" for tag, _ in parsed.elements) == 6
    assert all(attributes.get("src") != "x" and "onerror" not in attributes for _, attributes in parsed.elements)
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2J\\u202e" in parsed.text


def test_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "line 3 (copy)")
    assert f"fastmim finetune --weights '{run}' --data labelled/" in Parsed(written(run)).text
    unfinished = make_run(tmp_path / "half", finished=False)
    assert f"fastmim pretrain --out {unfinished}" in Parsed(written(unfinished)).text


def test_a_recipe_is_what_settings_are_compared_with(tmp_path: Path) -> None:
    settings = PRETRAIN | {"recipe": "vit-b", "backbone": "vit_base_patch16_224", "img_size": 128, "batch_size": 256}
    found = Parsed(written(make_run(tmp_path / "run", settings=settings))).text
    assert "What differs from the recipe. setting this run recipe vit-b batch_size 256 4096 lr 0.0003 0.00015" in found


def test_a_fine_tuning_with_its_evaluation(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "tuned", command="finetune", settings={"data": "labelled", "mixup": 0.8}, val_top1=lambda t: t
    )
    per_class = {
        "cat": {"accuracy": 0.9, "images": 10},
        "dog": {"accuracy": 0.25, "images": 4},
        "eel": {"accuracy": None},
    }
    scores = {"step": 1000, "images": 14, "val_top1": 0.8125, "val_loss": 0.51234567, "per_class": per_class}
    (run / "evaluation.json").write_text(json.dumps(scores))
    found = Parsed(written(run)).text
    assert "Fine-tuning on labelled, finished" in found and "top-1 went from 9.1 to 100.0 %" in found
    assert "images 14 top-1 81.2 % loss 0.5123" in found
    assert "class accuracy images dog 25.0 % 4 cat 90.0 % 10 eel n/a n/a" in found
    assert f"fastmim predict --weights {run}" in found


def test_several_runs(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a/run")
    two = make_run(tmp_path / "b/run", settings=PRETRAIN | {"lr": 0.001}, num_lines=10, finished=False)
    text = written(one, two)
    found = Parsed(text).text
    assert f"setting {one} {two} lr 0.0003 0.001 steps 1000 100" in found  # the names are not enough
    assert "Learning" in found and "Too short to say" in found
    assert [run["name"] for run in embedded(text)["runs"]] == [str(one), str(two)]


def test_a_hundred_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n:03d}", settings=PRETRAIN | {"seed": n}) for n in range(100)]
    text = written(*runs)
    assert len(text) < 3e6 and len(embedded(text)["runs"]) == 100
    assert "94 others" in Parsed(text).text


def test_a_study(tmp_path: Path) -> None:
    study = tmp_path / "study"
    make_run(study / "runs/base-seed0/pretrain")
    (study / "runs/base-seed0/trial.json").write_text('{"pretrain": {}}')
    (study / "runs/base-seed0/pretrain.json").write_text("{}")
    (study / "runs/scratch-seed0").mkdir()
    (study / "runs/scratch-seed0/trial.json").write_text("broken")
    (study / "plan.json").write_text("{}")
    found = Parsed(written(study)).text
    assert "Study, 1 of 2 begun trials done" in found and "base-seed0 Learning" in found
    assert "scratch-seed0: " in found and "is damaged" in found
    record = Path(__file__).parents[2] / "benchmarks/records/study-design-28-2026-11-22.json"
    shutil.copy(record, study / "record.json")
    found = Parsed(written(study)).text
    assert "encoder_depth=0.75 318 69.07 ± 0.55 (+9.96)" in found and "Accuracy against cost, 600 labels" in found
    (study / "record.json").write_text('{"summary": 3}')
    assert "record.json is not the record of a study" in Parsed(written(study)).text


def test_a_directory_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "a.txt"):
        (tmp_path / "a.txt").write_text("")
        with pytest.raises(RequestError, match="expected a run directory, with a config.yaml or a metrics.jsonl, as"):
            written(path)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["report", str(tmp_path)])
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_nothing_is_not_a_run() -> None:
    with pytest.raises(RequestError, match="run is not given; expected one or more run directories"):
        writing.write([])
    with pytest.raises(RequestError, match="hourly_rate is 0; expected the price of a device-hour, such as 2.5"):
        writing.write([Path("run")], hourly_rate=0)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "starts.jsonl"])
def test_an_empty_run(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("")
    found = Parsed(written(run)).text
    assert "no step is logged yet" in found and "Nothing is logged yet" in found


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('not JSON\n{"step": 1010, "loss": NaN}\n{"step": 10')
    (run / "config.yaml").write_text("a: [")
    (run / "evaluation.json").write_text("{")
    (run / "samples").mkdir()
    (run / "samples/step_000000100.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (run / "samples/notes.txt").write_text("kept")
    (run / "checkpoints").write_text("a file")
    found = Parsed(written(run)).text
    for words in (
        "run: config.yaml cannot be read",
        "evaluation.json cannot be read",
        "metrics.jsonl: 2 of 103 lines are not the metrics of a step",
        "samples/step_000000100.png cannot be shown",
        "checkpoints cannot be read",
        "config.yaml is missing or cannot be read.",
        "The loss is not finite at step 1,010",
    ):
        assert words in found, words


def test_pipes_and_huge_files_are_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    (run / "starts.jsonl").unlink()
    os.mkfifo(run / "evaluation.json")
    with (run / "starts.jsonl").open("wb") as file:
        file.truncate(1 << 23)
    found = Parsed(written(run)).text
    assert "evaluation.json cannot be read" in found and "starts.jsonl cannot be read (larger than 4 MiB)" in found


def test_states_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", total=5000, finished=False)
    end = START + timedelta(seconds=2 * 99)
    assert reading.read(run, now=end + timedelta(seconds=30)).state == "running"
    stale = reading.read(run, now=end + timedelta(hours=3))
    assert stale.state == "stale"
    text = page.render([stale], now=end)
    assert "stale: at step 1,000 of 5,000, and nothing written for 3 h" in Parsed(text).text
    assert reading.read(run, ended=True).state == "stopped"
    assert "stopped at step 1,000 of 5,000" in Parsed(page.render([reading.read(run, ended=True)])).text
    seldom = make_run(tmp_path / "seldom", total=5000, finished=False, settings=PRETRAIN | {"log_every": 1000})
    assert reading.read(seldom, now=end + timedelta(minutes=30)).state == "running"  # a line each 200 s


def test_a_watched_page_reloads_while_the_run_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", total=5000, finished=False)
    running = reading.read(run, now=START + timedelta(seconds=200))
    text = page.render([running], reload_seconds=10)
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in text and 'data-reload="10"' in text
    assert "refresh" not in page.render([running])


def test_watch_follows_a_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", total=2000, finished=False)
    monkeypatch.setattr(reading, "STALE_SECONDS", 1e12)
    said, seen = [], []

    def go_on(seconds: float) -> None:
        seen.append(embedded((run / "report.html").read_text())["runs"][0]["step"])
        lines = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(lines + json.dumps({"step": seen[-1] + 500, "loss": 0.05}) + "\n")
        if seen[-1] + 500 == 2000:
            (run / "weights.safetensors").write_bytes(b"")

    monkeypatch.setattr(writing.time, "sleep", go_on)
    assert writing.watch([run], say=said.append) == run / "report.html"
    assert seen == [1000, 1500] and embedded((run / "report.html").read_text())["runs"][0]["step"] == 2000
    assert said == [f"wrote {run / 'report.html'}; open it in a browser: it follows the run"]
    assert "data-reload" not in (run / "report.html").read_text()


def test_where_the_page_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    for arguments, path in (
        (runs[:1], tmp_path / "a/report.html"),
        (runs, Path("report.html")),
        ([*runs[:1], "--out", "new/x.html"], Path("new/x.html")),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["report", *arguments])
        assert exit_.value.code == 0 and path.exists() and f"wrote {path}" in capsys.readouterr().out


def test_an_out_that_cannot_be_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RequestError, match=r"out is .*; expected an HTML file that can be written: name another with --out"
    ):
        writing.write([run], out=tmp_path / "file/x.html")


def test_panels_are_cut_from_the_sheets_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_pictures(run, range(10, 501, 10), rows=2)
    found = panels.find(run / "samples")["step"]
    problems: list[str] = []
    frames = panels.frames(found, problems)
    assert [frame.step for frame in frames] == [*range(10, 501, 80), 500] and len(found) == 50 and not problems
    assert len(panels.frames(found[:12], problems)) == panels.MAX_FRAMES
    later = panels.frames([*found, (510, found[0][1])], problems)  # those shown before still are, but for the last
    assert [frame.step for frame in later] == [*range(10, 501, 80), 510] and not problems
    assert (frames[0].step, frames[-1].step) == (10, 500) and frames[0].titles == ["image", "prediction"]
    assert frames[0].panels[0] == frames[-1].panels[0] and frames[0].panels[1] != frames[-1].panels[1]
    assert panels.num_characters(frames) < sum(len(uri) for frame in frames for row in frame.panels for uri in row)
    few = panels.within(frames, 40_000)
    assert 1 <= len(few) < len(frames) and few[-1] is frames[-1]


def test_a_sheet_without_panels_is_shown_whole(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    sheet = Image.fromarray(np.zeros((400, 3000, 3), dtype=np.uint8))
    sheet.save(folder / "confusion_000000100.png")
    for number, places in enumerate(
        ({"left": 0}, {"left": 0, "top": 0, "width": 10**9, "height": 1, "gap": 0, "rows": 1, "titles": ["a"]}, [])
    ):
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text("fastmim", json.dumps(places))
        sheet.save(folder / f"confusion_{number + 1:09d}.png", pnginfo=text)
    problems: list[str] = []
    for frame in panels.frames(panels.find(folder)["confusion"], problems):
        assert frame.titles == [""] and len(frame.panels) == 1
    assert not problems and panels.frames([(1, tmp_path / "none.png")], problems) == [] and "none.png" in problems[0]


def test_settings_of_any_type(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(
        yaml.safe_dump({"a": None, "b": [1, {"c": 2.5}], "d": "x" * 5000, "e": float("nan")})
    )
    found = Parsed(written(run)).text
    assert 'a not set b [1, {"c": 2.5}]' in found and "…" in found and "x" * 201 not in found
