"""Each state of a push is shown once, in whatever order the commits come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from listener.operating.records import Ended, PushLine
from listener.operating.tail import Shown

_START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return _START + timedelta(seconds=seconds)


def line(number: int, seconds: float, status: str = "sent") -> PushLine:
    return PushLine(
        UUID(int=number), status, "normal", "user", "", None, None, None, 0, at(seconds), at(seconds), None
    )


@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 99)), max_size=40),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
def test_each_state_is_shown_once(written: list[tuple[int, int]], steps: list[int]) -> None:
    """A row is written at a tenth of a second, and its commit comes up to 9.9 s later."""
    rows = [(line(number, tenth / 10), (tenth + later) / 10) for number, (tenth, later) in enumerate(written)]
    shown = Shown(_START)
    seen: list[UUID] = []
    now = 0.0
    while now < 75.0:
        since = shown.since
        visible = [row for row, committed in rows if committed <= now and row.updated_at >= since]
        seen += [row.id for row in shown.news(Ended(visible, at(now), None)).lines]
        now += steps[int(now * 10) % len(steps)] / 10
    assert sorted(seen) == sorted(row.id for row, _ in rows)


def test_another_status_of_the_same_push_is_another_state() -> None:
    shown = Shown(_START)
    assert len(shown.news(Ended([line(1, 1.0)], at(2), None)).lines) == 1
    assert len(shown.news(Ended([line(1, 2.5, "delivered")], at(3), None)).lines) == 1
    assert len(shown.news(Ended([line(1, 2.5, "delivered")], at(4), None)).lines) == 0


def test_a_gap_is_told_and_an_overlap_is_not() -> None:
    shown = Shown(_START)
    shown.news(Ended([], at(5), None))
    assert not shown.news(Ended([], at(6), at(4))).is_cut
    assert shown.news(Ended([], at(9), at(7))).is_cut


def test_what_is_remembered_is_bounded_by_the_overlap() -> None:
    shown = Shown(_START)
    for second in range(1, 60):
        shown.news(Ended([line(second, second)], at(second), None))
    assert len(shown._states) <= 12
