"""How many rows one statement may have after statements have timed out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from listener.postgres.batch_limit import BatchLimit


def test_it_halves_and_grows_again() -> None:
    limit = BatchLimit(100)
    assert limit.rows(0.0) == 100
    limit.timed_out(80, 0.0)
    assert limit.rows(1.0) == 40
    limit.timed_out(40, 1.0)
    assert limit.rows(2.0) == 20
    assert [limit.rows(now) for now in (6.0, 7.0, 11.0, 16.0, 21.0)] == [40, 40, 80, 100, 100]


def test_a_limit_that_has_grown_too_early_stays_longer_the_next_time() -> None:
    limit, now, pauses = BatchLimit(100), 0.0, []
    limit.timed_out(100, now)
    for _ in range(10):
        began = now
        while limit.rows(now) == 50:
            now += 1.0
        pauses.append(now - began)
        limit.timed_out(100, now)
    assert pauses == sorted(pauses)
    assert pauses[0] == 5.0
    assert pauses[-1] == 900.0


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 1000.0), st.integers(1, 1000)), max_size=50),
)
def test_it_always_lets_a_row_through_and_never_more_than_the_most(
    most: int, events: list[tuple[bool, float, int]]
) -> None:
    limit, now = BatchLimit(most), 0.0
    for times_out, seconds, rows in events:
        now += seconds
        if times_out:
            limit.timed_out(min(rows, limit.rows(now)), now)
        assert 1 <= limit.rows(now) <= most
    before = limit.rows(now)
    assert limit.rows(now + 1000.0) >= min(most, 2 * before)


@given(st.integers(2, 1000), st.integers(1, 1000))
def test_repeated_timeouts_end_at_one_row(most: int, capacity: int) -> None:
    limit = BatchLimit(most)
    tries = 0
    while limit.rows(0.0) > capacity:
        limit.timed_out(limit.rows(0.0), 0.0)
        tries += 1
    assert tries <= 10
    assert limit.rows(0.0) >= min(most, (capacity + 1) // 2)
