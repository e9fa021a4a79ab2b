"""docs/claims.md is what the records say, and a verdict needs a whole interval."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
POINT = {
    "img_size": 32,
    "target": "hog",
    "encoder_depth": 1.0,
    "decoder": "auto",
    "stages": None,
    "masks_per_image": 1,
    "init": None,
    "teacher": None,
}


@pytest.fixture(scope="module")
def claims() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("claims")
    finally:
        sys.path.pop(0)


def record(points: dict[str, tuple[dict[str, Any], list[float]]], seconds: dict[str, list[float]] | None = None) -> Any:
    """A study whose points differ from POINT as said, with top-1 by seed at 600 labels."""
    summary: dict[str, Any] = {"scratch": {"top1": {"600": spread([50.0, 51.0, 52.0])}}}
    for name, (_, seeds) in points.items():
        cost = (seconds or {}).get(name, [100.0, 101.0, 102.0])
        summary[name] = {
            "top1": {"600": spread(seeds) | {"gain": spread([a - 50 for a in seeds])}},
            "pretrain": {"images": 60_000, "device_seconds": spread(cost), "images_per_s": spread([300.0])},
        }
    config = {
        "data": "pictures",
        "num_images": 60_000,
        "num_val": 10**10,
        "networks": [["vit", {}]],
        "finetune_size": 32,
        "finetune_steps": 400,
        "seeds": 3,
        "points": {name: POINT | changed for name, (changed, _) in points.items()},
    }
    return {
        "config": config,
        "summary": summary,
        "hardware": {"processor": "a", "cores": 2},
        "command": "fastmim study --sweep x",
    }


def spread(seeds: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.mean(seeds),
        "deviation": statistics.stdev(seeds) if len(seeds) > 1 else 0.0,
        "seeds": seeds,
    }


FULL = [80.0, 81.0, 82.0]


def shifted(by: float) -> list[float]:
    return [value + by + noise for value, noise in zip(FULL, (0.05, 0, -0.05), strict=True)]


@pytest.mark.parametrize(
    ("claim", "points", "verdict"),
    [
        (0, {"a": ({"img_size": 16}, shifted(-0.3)), "b": ({}, FULL)}, "held"),
        (0, {"a": ({"img_size": 16}, shifted(-3)), "b": ({}, FULL)}, "did not hold"),
        (0, {"a": ({"img_size": 16}, [78.0, 81.0, 84.0]), "b": ({}, FULL)}, "undecided"),
        (0, {"a": ({"img_size": 16}, [80.0]), "b": ({}, [80.0])}, "undecided"),
        (2, {"a": ({"encoder_depth": 0.75}, shifted(2)), "b": ({}, FULL)}, "held"),
        (2, {"a": ({"encoder_depth": 0.75}, shifted(-2)), "b": ({}, FULL)}, "did not hold"),
        (3, {"a": ({"decoder": "256x4"}, shifted(-1)), "b": ({}, FULL)}, "held"),
        (3, {"a": ({"decoder": "256x4"}, shifted(2)), "b": ({}, FULL)}, "did not hold"),
        (4, {"a": ({"stages": "16:0.5,32:0.5"}, shifted(2)), "b": ({}, FULL)}, "held"),
        (4, {"a": ({"stages": "16:0.5,32:0.5"}, shifted(-2)), "b": ({}, FULL)}, "did not hold"),
    ],
)
def test_verdicts(claims: Any, claim: int, points: dict[str, Any], verdict: str) -> None:
    [found] = claims.findings({"study-x": record(points)}, claims.CLAIMS[claim][2])
    assert found.verdict == verdict and found.labels == "600"


@pytest.mark.parametrize(
    ("belief", "changed", "plain", "numbers"),
    [
        (0, {"target": "teacher", "teacher": "runs/public"}, {}, "teacher +2.00 (+1.88 to +2.12) against hog"),
        (1, {"target": "hog+teacher"}, {"target": "teacher"}, "hog+teacher +2.00 (+1.88 to +2.12) against teacher"),
        (
            2,
            {"target": "random-projection"},
            {"target": "pixels"},
            "random-projection +2.00 (+1.88 to +2.12) against p",
        ),
        (3, {"masks_per_image": 4}, {}, "4 +2.00 (+1.88 to +2.12) against 1"),
        (4, {"init": "runs/public"}, {}, "from public +2.00 (+1.88 to +2.12) against a fresh start"),
    ],
)
def test_beliefs_of_the_field(
    claims: Any, belief: int, changed: dict[str, Any], plain: dict[str, Any], numbers: str
) -> None:
    study = record({"a": (changed, shifted(2)), "b": (plain, FULL)})
    study["config"]["equal"] = "cost"
    [found] = claims.findings({"study-x": study}, claims.BELIEFS[belief][2])
    assert found.verdict == "held" and found.numbers.startswith(numbers)
    study["config"]["equal"] = "images"
    assert len(claims.findings({"study-x": study}, claims.BELIEFS[belief][2])) == (belief == 4)


def test_several_pairs_are_judged_together_and_alone(claims: Any) -> None:
    points = {
        "target=hog masks_per_image=1": ({}, FULL),
        "target=hog masks_per_image=4": ({"masks_per_image": 4}, shifted(2)),
        "target=pixels masks_per_image=1": ({"target": "pixels"}, FULL),
        "target=pixels masks_per_image=4": ({"target": "pixels", "masks_per_image": 4}, [81.0, 80.0, 82.0]),
    }
    study = record(points)
    study["config"]["equal"] = "cost"
    means = [1.525, 0.5, 0.975]
    interval = stats.ttest_1samp(means, 0).confidence_interval()
    together, hog, pixels = claims.findings({"study-x": study}, claims.BELIEFS[3][2])
    assert together.numbers == (
        f"4 {statistics.mean(means):+.2f} ({interval.low:+.2f} to {interval.high:+.2f}) against 1, the mean of 2 pairs"
    )
    assert hog.numbers == "4 +2.00 (+1.88 to +2.12) against 1, with target=hog" and hog.verdict == "held"
    assert pixels.numbers.endswith(" against 1, with target=pixels") and pixels.verdict == "undecided"


def test_hog_against_pixels_and_its_cost(claims: Any) -> None:
    points = {
        "a": ({"img_size": 16}, shifted(-0.5)),
        "b": ({}, FULL),
        "c": ({"img_size": 16, "target": "pixels"}, shifted(-4)),
        "d": ({"target": "pixels"}, shifted(-0.2)),
    }
    study = {"study-x": record(points, seconds={"a": [20.0, 20.0, 21.0]})}
    [target] = claims.findings(study, claims.CLAIMS[1][2])
    assert target.verdict == "held" and "lost: hog 0.50, pixels 3.80" in target.numbers
    [cost] = claims.findings(study, claims.CLAIMS[5][2])
    assert cost.verdict == "held" and "took 0.20" in cost.numbers


def test_other_studies_say_nothing(claims: Any) -> None:
    study = {"study-x": record({"a": ({"img_size": 16, "decoder": "256x4"}, FULL), "b": ({}, FULL)})}
    assert not any(claims.findings(study, judge) for _, _, judge in claims.CLAIMS)


def test_the_page(claims: Any, tmp_path: Path) -> None:
    assert "**Not tested here:**" in claims.page(tmp_path) and "No study has been recorded" in claims.page(tmp_path)
    content = record({"a": ({"img_size": 16}, shifted(-0.3)), "b": ({}, FULL)})
    (tmp_path / "study-size-2026-01-01.json").write_text("{}")  # older: passed over
    (tmp_path / "study-size-2026-01-02.json").write_text(json.dumps(content))
    page = claims.page(tmp_path)
    assert "| 600 | **held** | 16 px -0.30 (-0.42 to -0.18) against 32 px |" in page
    assert "pictures (60,000 images to pre-train on), vit; 1.0 epochs of pre-training" in page
    assert "| a | 80.7 ± 1.0 % | 101 | 300 |" in page and "| scratch | 51.0 ± 1.0 % | - | - |" in page
    assert "With 600 labels 3 of 3 pairs are told apart.\n" in page and "![" not in page


def test_points_that_the_seeds_cannot_tell_apart_are_named(claims: Any, tmp_path: Path) -> None:
    path = tmp_path / "study-size-2026-01-02.json"
    path.write_text(json.dumps(record({"a": ({"img_size": 16}, [78.0, 82.0, 84.0]), "b": ({}, FULL)})))
    path.with_suffix(".png").write_bytes(b"")
    page = claims.page(tmp_path)
    assert "With 600 labels 2 of 3 pairs are told apart; the others: a and b, +0.33 (-4.84 to +5.50)." in page
    assert "![Accuracy against cost](../benchmarks/records/study-size-2026-01-02.png)" in page


def test_few_validation_images_decide_nothing(claims: Any) -> None:
    content = record({"a": ({"encoder_depth": 0.75}, shifted(2)), "b": ({}, FULL)})
    for num_val, verdict in ((10**10, "held"), (100, "undecided")):
        content["config"]["num_val"] = num_val
        [found] = claims.findings({"study-x": content}, claims.CLAIMS[2][2])
        assert found.verdict == verdict


def test_stages_are_given_with_their_cost(claims: Any) -> None:
    points = {"a": ({"stages": "16:0.5,32:0.5"}, shifted(-2)), "b": ({}, FULL)}
    study = {"study-x": record(points, seconds={"a": [60.0, 60.0, 60.0], "b": [100.0, 100.0, 100.0]})}
    [found] = claims.findings(study, claims.CLAIMS[4][2])
    assert "against 32 px throughout, for 0.60 (0.60 to 0.60) times its device-seconds" in found.numbers


def test_a_study_without_a_gain_decides_nothing(claims: Any) -> None:
    content = record({"a": ({"img_size": 16}, shifted(-0.3)), "b": ({}, FULL)})
    for point in ("a", "b"):
        content["summary"][point]["top1"]["600"]["gain"] = spread([-1.0, 0.1, 0.2])
    [found] = claims.findings({"study-x": content}, claims.CLAIMS[0][2])
    assert found.verdict == "undecided" and "but no pre-training of this study is better than none" in found.numbers


def test_the_cost_of_an_image(claims: Any, tmp_path: Path) -> None:
    ratio = {"median": 2.0, "min": 1.5, "max": 2.5, "multiply_adds": 3.0}
    cost = {"backbone": "vit", "sizes": 128, "gmac_forward": 4.4, "images_per_s": 3.0, "times_less_than_MAE": ratio}
    config = {"baselines": {"MAE": "mae-vit-b"}, "precision": "bf16", "batch_size": 4, "threads": 1, "rounds": 5}
    content = {"config": config, "summary": {"vit-b": cost}, "hardware": {"processor": "a", "cores": 2}}
    (tmp_path / "recipes-2026-01-02.json").write_text(json.dumps(content))
    page = claims.page(tmp_path)
    assert "| vit-b | vit | 128 | 4.40 | 3.00 | 2.00, 1.50 to 2.50 (3.00) |" in page


def test_the_document_is_what_the_records_say(claims: Any) -> None:
    assert (ROOT / "docs/claims.md").read_text() == claims.page()
