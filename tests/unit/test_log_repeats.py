"""Records that are alike are summed up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from listener.log_repeats import Repeats


def test_the_first_of_a_kind_are_written_and_the_others_counted() -> None:
    repeats: Repeats[str] = Repeats(first=2, window=30.0)
    assert [repeats.admit("dead", 100.0 + n) for n in range(5)] == [True, True, False, False, False]
    assert repeats.admit("sent", 105.0)
    assert not repeats.ended(129.9)
    assert repeats.left(120.0) == 10.0
    assert repeats.ended(130.0)
    assert repeats.take() == [("dead", 3)]
    assert not repeats.ended(1000.0)
    assert repeats.admit("dead", 131.0)


def test_kinds_without_end_are_not_remembered() -> None:
    repeats: Repeats[int] = Repeats(first=1)
    assert all(repeats.admit(kind, 0.0) for kind in range(2000))
    assert len(repeats._counts) == 1000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 10.0))))
def test_each_record_is_written_or_counted(records: list[tuple[str, float]]) -> None:
    repeats: Repeats[str] = Repeats(first=3, window=20.0)
    now, written, left_out = 0.0, 0, 0
    for kind, after in records:
        now += after
        if repeats.ended(now):
            left_out += sum(count for _, count in repeats.take())
        written += repeats.admit(kind, now)
    left_out += sum(count for _, count in repeats.take())
    assert written + left_out == len(records)
