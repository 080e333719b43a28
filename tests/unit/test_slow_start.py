"""How fast sending starts again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.limits.slow_start import SlowStart, after_losses, after_pause

ramps = st.builds(
    SlowStart,
    first=st.integers(1, 100_000),
    step=st.floats(0.01, 60.0),
    since=st.floats(-1e6, 1e6),
)
ages = st.floats(-10.0, 1e7)
mosts = st.integers(1, 100_000)


def test_it_doubles_with_every_step() -> None:
    ramp = SlowStart(8, 1.0, since=100.0)
    assert [ramp.limit(100.0 + n / 2, 1000) for n in range(6)] == [8, 8, 16, 16, 32, 32]
    assert ramp.limit(110.0, 1000) == 1000
    assert ramp.grows_in(100.25) == 0.75


def test_a_time_before_its_beginning_is_its_beginning() -> None:
    ramp = SlowStart(8, 1.0, since=100.0)
    assert (ramp.limit(50.0, 1000), ramp.grows_in(50.0)) == (8, 1.0)


@given(ramps, ages, mosts)
def test_it_always_lets_something_through_and_never_too_much(ramp: SlowStart, age: float, most: int) -> None:
    assert 1 <= ramp.limit(ramp.since + age, most) <= most


@given(ramps, ages, st.floats(0.0, 1e6), mosts)
def test_it_never_narrows(ramp: SlowStart, age: float, later: float, most: int) -> None:
    now = ramp.since + age
    assert ramp.limit(now, most) <= ramp.limit(now + later, most)


@given(ramps, ages, mosts)
def test_after_the_time_it_names_it_is_wider(ramp: SlowStart, age: float, most: int) -> None:
    now = ramp.since + age
    wait = ramp.grows_in(now)
    assert 0.0 < wait <= ramp.step
    before, after = ramp.limit(now, most), ramp.limit(max(now, ramp.since) + wait * 1.001 + 1e-6, most)
    assert after == most or after >= 2 * before


@pytest.mark.parametrize(
    ("lost", "first"), [(0, 1000), (1, 1000), (2, 125), (3, 15), (4, 1), (5, 1), (1_000_000, 1)]
)
def test_each_death_after_the_first_makes_the_start_narrower(lost: int, first: int) -> None:
    ramp = after_losses(lost, 1000, 50.0)
    assert ramp.limit(50.0, 1000) == first
    assert ramp.limit(50.0 + 60.0, 1000) == 1000


@given(st.integers(0, 10_000), mosts)
def test_however_many_have_died_something_is_sent(lost: int, most: int) -> None:
    assert 1 <= after_losses(lost, most, 0.0).limit(0.0, most) <= most
    assert after_losses(lost + 1, most, 0.0).first <= after_losses(lost, most, 0.0).first


def test_after_a_pause_it_starts_with_a_few() -> None:
    assert after_pause(7.0).limit(7.0, 1000) == 8
    assert after_pause(7.0).limit(7.0, 3) == 3
    assert after_pause(7.0).limit(14.0, 1000) == 1000
