"""What the charts show of the points that were noted."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from listener.metrics.shared import Figures
from listener.web.page.history import (
    SPAN_S,
    STEP_S,
    History,
    Point,
    Series,
    Sums,
    accepted_since,
    added,
    quantile,
    series,
)

BOUNDS = (0.1, 1.0, 10.0, math.inf)
NOON = 86_400.0 * 20_000 + 43_200.0

sums = st.builds(
    Sums,
    sent=st.integers(0, 1000),
    failed=st.dictionaries(st.sampled_from(["UNREGISTERED", "INTERNAL", ""]), st.integers(0, 50)),
    oldest_due=st.floats(0, 1e6),
)
steps = st.lists(
    st.tuples(st.floats(0.01, 400.0), st.none() | sums, st.lists(st.integers(0, 9), min_size=4, max_size=4)),
    max_size=40,
)


def points_of(given: list[tuple[float, Sums | None, list[int]]]) -> list[Point]:
    """The points after these steps: seconds since the one before, what was read, what each bucket gained."""
    points: list[Point] = []
    at, counts = NOON, [0] * len(BOUNDS)
    for seconds, read, gained in given:
        at += seconds
        counts = [one + more for one, more in zip(counts, gained, strict=True)]
        points = added(points, Point(at, read, tuple(counts)))
    return points


@settings(deadline=None)
@given(steps)
def test_the_charts_go_together_and_no_rate_is_negative(
    given: list[tuple[float, Sums | None, list[int]]],
) -> None:
    points = points_of(given)
    found = series(points, BOUNDS)
    lists = [found.accepted, found.oldest_due, found.p50, found.p99, *found.failed.values()]
    assert {len(each) for each in lists} == {len(found.at)} == {len(points)}
    assert list(found.at) == sorted(set(found.at))
    assert all(value is None or value >= 0.0 for each in lists for value in each)
    for low, high in zip(found.p50, found.p99, strict=True):
        assert (low is None) is (high is None)
        assert low is None or high is None or low <= high


@settings(deadline=None)
@given(steps)
def test_there_is_a_gap_exactly_where_nothing_was_read(
    given: list[tuple[float, Sums | None, list[int]]],
) -> None:
    points = points_of(given)
    found = series(points, BOUNDS)
    for index, point in enumerate(points):
        assert (found.oldest_due[index] is None) is (point.sums is None)
        if index:
            one = points[index - 1]
            is_gap = point.sums is None or one.sums is None or one.at // 86_400 != point.at // 86_400
            assert (found.accepted[index] is None) is is_gap


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 12.0), st.booleans()), min_size=1, max_size=300))
def test_the_points_are_bounded_and_cover_the_span(given: list[tuple[float, bool]]) -> None:
    points: list[Point] = []
    at, first = NOON, NOON + given[0][0]
    for seconds, is_read in given:
        at += seconds
        points = added(points, Point(at, Sums(0, {}, 0.0) if is_read else None))
    assert points[-1].at == at
    assert len(points) <= 2 * SPAN_S / STEP_S + 3
    assert at - SPAN_S <= points[0].at <= max(first, at - SPAN_S + STEP_S + 12.0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=300))
def test_thinning_loses_no_accepted_push(gained: list[int]) -> None:
    points: list[Point] = []
    sent = 0
    for second, more in enumerate(gained):
        sent += more
        points = added(points, Point(NOON + second, Sums(sent, {}, 0.0)))
    found = series(points, BOUNDS)
    total = sum(
        rate * (two - one)
        for rate, one, two in zip(found.accepted[1:], found.at, found.at[1:], strict=False)
        if rate is not None
    )
    assert total == pytest.approx(sum(gained[1:]))
    assert accepted_since(points, NOON) == sum(gained[1:])


def test_a_reading_that_failed_leaves_a_gap_although_points_are_thinned() -> None:
    points: list[Point] = []
    for second in range(30):
        read = None if second == 12 else Sums(second, {}, 0.0)
        points = added(points, Point(NOON + second, read))
    assert any(point.sums is None for point in points)


def test_the_sums_lose_a_day_at_midnight() -> None:
    midnight = 86_400.0 * 20_001
    points = [Point(midnight - 5, Sums(900, {"X": 5}, 0.0)), Point(midnight + 5, Sums(400, {"X": 1}, 0.0))]
    found = series(points, BOUNDS)
    assert found.accepted == [None, None]
    assert found.failed == {}


def test_a_push_that_is_sent_again_makes_no_negative_rate() -> None:
    points = [Point(NOON, Sums(10, {"X": 5}, 0.0)), Point(NOON + 10, Sums(10, {"X": 3, "Y": 2}, 0.0))]
    found = series(points, BOUNDS)
    assert found.failed == {"Y": [None, 0.2]}


def test_without_points_there_are_no_charts() -> None:
    assert series([], BOUNDS) == Series(at=[], accepted=[], failed={}, oldest_due=[], p50=[], p99=[])


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50), st.sampled_from([0.5, 0.99, 1.0]))
@example([0.0, 0.0, 0.0], 1.0)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    counts = [0] * len(BOUNDS)
    for value in values:
        counts[bisect_left(BOUNDS, value)] += 1
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    bucket = bisect_left(BOUNDS, true)
    found = quantile(counts, BOUNDS, share)
    assert found is not None
    low = BOUNDS[bucket - 1] if bucket else 0.0
    assert low <= found <= (low if BOUNDS[bucket] == math.inf else BOUNDS[bucket])


def test_a_quantile_of_nothing_is_not_known() -> None:
    assert quantile([0, 0, 0, 0], BOUNDS, 0.5) is None


@pytest.mark.parametrize(
    ("since", "accepted"), [(NOON - 1, None), (NOON, 30), (NOON + 5, 30), (NOON + 10, 20), (NOON + 30, None)]
)
def test_what_was_accepted_since_a_time(since: float, accepted: int | None) -> None:
    points = [Point(NOON + 10 * n, Sums(10 * n, {}, 0.0)) for n in range(4)]
    assert accepted_since(points, since) == accepted


def test_what_was_accepted_is_not_known_across_a_gap() -> None:
    points = [Point(NOON, Sums(0, {}, 0.0)), Point(NOON + 10, None), Point(NOON + 20, Sums(9, {}, 0.0))]
    assert accepted_since(points, NOON) is None


def test_an_hour_of_what_ended_is_remembered_minute_by_minute() -> None:
    now = NOON
    history = History(BOUNDS, lambda: (0, 0, 0, 0), lambda: now)
    for minute in range(120):
        history.note(Sums(10 * minute, {"X": minute, "Y": 7}, 0.0))
        history.note(None)  # a reading that failed hides nothing
        now += 60
    accepted, failed = history.ended_within(3600.0)
    assert 580 <= accepted <= 600
    assert failed == {"X": accepted // 10}
    assert history.ended_within(600.0) == (90, {"X": 9})


def test_what_ended_before_the_first_reading_does_not_count() -> None:
    history = History(BOUNDS, lambda: (0, 0, 0, 0), lambda: NOON)
    history.note(Sums(1000, {"X": 50}, 0.0))
    assert history.ended_within(3600.0) == (0, {})


def test_both_readings_and_samples_are_noted() -> None:
    now = NOON
    history = History(BOUNDS, lambda: (int(now - NOON), 0, 0, 0), lambda: now)
    figures = Figures(
        depth={}, due={}, oldest_due={"high": 1.0, "normal": 3.0}, scheduled=0, unwritable={}, workers=1,
        notify_queue=0.0, snapshot_age=None, clock_offset=0.0, sent=100, failed={"X": 1},
    )  # fmt: skip
    history.note_figures(figures)
    now += 10
    history.note(Sums(150, {"X": 6}, 0.0))
    now += 10
    history.note_figures(None)
    found = history.series()
    assert found.at == [NOON, NOON + 10, NOON + 20]
    assert (found.accepted, found.failed) == ([None, 5.0, None], {"X": [None, 0.5, None]})
    assert found.oldest_due == [3.0, 0.0, None]
    assert found.p50[0] is found.p99[0] is None
    assert found.p50[1:] == pytest.approx([0.05, 0.05])
    assert found.p99[1:] == pytest.approx([0.099, 0.099])
