"""Durations, learning rate and stages against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmim.training import schedule
from fastmim.training.schedule import Stage


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("100", 100),
        ("100 steps", 100),
        ("2 epochs", 20),
        ("1.5 ep", 15),
        ("1e3 images", 16),
        ("5%", 10),
        ("0", 0),
    ],
)
def test_durations(duration: str, steps: int) -> None:
    assert schedule.to_steps(duration, total_steps=200, steps_per_epoch=10, batch_size=64) == steps


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rate = [schedule.learning_rate(s, peak=2.0, warmup_steps=4, total_steps=12) for s in range(13)]
    assert rate[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate[8] == pytest.approx(1.0)  # half-way down the cosine
    assert rate[12] == pytest.approx(0.0)
    assert rate[6] == pytest.approx(1 + math.cos(math.pi / 4))


def test_the_learning_rate_falls_to_a_tenth_in_place_of_the_cosine() -> None:
    rate = [schedule.learning_rate(s, peak=2.0, warmup_steps=2, total_steps=10, drop_step=7) for s in range(10)]
    assert rate == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.2]


def test_a_linear_decay_is_a_line_from_the_first_step_that_the_warm_up_multiplies() -> None:
    rate = [schedule.learning_rate(s, peak=2.0, warmup_steps=2, total_steps=10, decay="linear") for s in range(11)]
    assert rate == pytest.approx([1.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_stages_keep_the_global_batch_and_shrink_the_micro_batch() -> None:
    stages = schedule.plan_stages(((128, 0.5), (160, 0.3), (192, 0.2)), total_steps=10, device_batch=64, micro_batch=32)
    # 32 at once at 128 px; 32 * (128/160)^2 = 20 -> 16 divides 64; 32 * (128/192)^2 = 14 -> 8.
    assert stages == [Stage(128, 0, 5, 2), Stage(160, 5, 8, 4), Stage(192, 8, 10, 8)]
    assert [schedule.stage_at(stages, s).size for s in (0, 4, 5, 7, 8, 10)] == [128, 128, 160, 160, 192, 192]


@given(
    total=st.integers(1, 10_000),
    shares=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 512),
    micro=st.none() | st.integers(1, 600),
)
def test_stages_cover_every_step_once(total: int, shares: list[int], batch: int, micro: int | None) -> None:
    sizes = tuple((128 + 32 * i, share / sum(shares)) for i, share in enumerate(shares))
    stages = schedule.plan_stages(sizes, total_steps=total, device_batch=batch, micro_batch=micro)
    assert [s.start for s in stages] == [0, *(s.stop for s in stages[:-1])]
    assert stages[-1].stop == total
    assert all(batch % s.accumulation == 0 for s in stages)
