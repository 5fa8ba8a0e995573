"""Ramps: hand-worked values, monotony, and time that goes on from round to round."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.semi.ramps import ema_decay, line, ramp_down, ramp_up


def test_ramp_up_at_start_half_and_end() -> None:
    assert ramp_up(0, length=100, peak=2.0) == pytest.approx(2.0 * math.exp(-5.0))
    assert ramp_up(50, length=100, peak=2.0) == pytest.approx(2.0 * math.exp(-1.25))
    assert ramp_up(100, length=100, peak=2.0) == 2.0
    assert ramp_up(1000, length=100, peak=2.0) == 2.0


def test_ramp_down_at_start_half_and_end() -> None:
    assert ramp_down(0, total=200, length=100, peak=0.3) == 0.3
    assert ramp_down(100, total=200, length=100, peak=0.3) == 0.3
    assert ramp_down(150, total=200, length=100, peak=0.3) == pytest.approx(0.3 * math.exp(-1.25))
    assert ramp_down(200, total=200, length=100, peak=0.3) == pytest.approx(0.3 * math.exp(-5.0))
    assert ramp_down(10_000, total=200, length=100, peak=0.3) == pytest.approx(0.3 * math.exp(-5.0))


@given(st.floats(0, 400), st.floats(0, 400), st.floats(1, 300))
def test_up_never_falls_down_never_rises_and_they_mirror(first: float, second: float, length: float) -> None:
    early, late = sorted((first, second))
    assert ramp_up(early, length=length) <= ramp_up(late, length=length) <= 1.0
    assert ramp_down(early, total=400, length=length) >= ramp_down(late, total=400, length=length) > 0.0
    assert ramp_down(first, total=400, length=length) == ramp_up(400 - first, length=length)


def test_a_line_at_start_half_and_end() -> None:
    assert line(0, total=200, start=4.0) == 4.0
    assert line(100, total=200, start=4.0) == 2.5
    assert line(200, total=200, start=4.0) == 1.0
    assert line(10_000, total=200, start=4.0) == 1.0
    assert line(-1, total=200, start=4.0) == 4.0
    assert [line(step, total=3, start=1.0) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("length", [0, -1, float("nan")])
def test_a_ramp_without_length_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match="length"):
        ramp_up(0, length=length)


def test_the_teacher_s_memory_grows_from_nothing_to_its_ceiling() -> None:
    assert ema_decay(0) == 0.0
    assert ema_decay(1) == 0.5
    assert ema_decay(9) == pytest.approx(0.9)
    assert ema_decay(99) == pytest.approx(0.99)
    assert ema_decay(100_000) == 0.99
