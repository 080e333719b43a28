"""Which indexes a search looks through, how their entries become one list, and where a list goes on."""

from __future__ import annotations

import math
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.operating import order
from listener.operating.filters import STATUSES, Filter, FilterFault
from listener.operating.order import Entry, Plan, Position, Source

_ALL = ("pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled")


def source(name: str) -> Source:
    return Source(name, "over", "updated_at", _ALL, _ALL)


Row = tuple[float, bool, UUID]


def scan(rows: list[Row], start: Position, limit: int, window: int) -> list[Entry]:
    """What the statement does, in Python: ``rows`` are in order."""
    behind = [row for row in rows if row[0] <= start.key]
    looked = behind[start.skip :][:window]
    found, positions = [], {start.key: start.skip}
    for number, (key, matches, push) in enumerate(looked, 1):
        positions[key] = positions.get(key, 0) + 1
        if matches or number == window:
            found.append(Entry(push, key, positions[key], matches, number == window))
    return found[:limit]


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([5.0, 4.0, 3.0, -math.inf, math.inf]), st.booleans()), max_size=12
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_every_match_is_listed_once_and_in_order(
    drawn: list[list[tuple[float, bool]]], limit: int, window: int
) -> None:
    number = iter(range(1000))
    sources = [
        [(key, matches, UUID(int=next(number))) for key, matches in sorted(rows, key=lambda row: -row[0])]
        for rows in drawn
    ]
    plan = Plan(tuple(source("abc"[place]) for place in range(len(sources))), is_merged=True)
    listed: list[tuple[float, UUID]] = []
    after: str | None = None
    for _ in range(200):
        start, _ids = order.decode(after, plan)
        scans = [
            scan(rows, start[each.name], limit + 1, window)
            for each, rows in zip(plan.sources, sources, strict=True)
        ]
        part = order.merge(plan, scans, start, limit)
        listed += [(entry.key, entry.id) for _, entry in part.entries]
        assert len(part.entries) <= limit
        if not part.has_more:
            break
        after = order.encode(part.positions)
    else:
        pytest.fail("the list has no end")
    expected = [(key, push) for rows in sources for key, matches, push in rows if matches]
    assert sorted(push for _, push in listed) == sorted(push for _, push in expected)
    assert [key for key, _ in listed] == sorted((key for key, _ in expected), reverse=True)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.tuples(
            st.one_of(
                st.integers(-210_866_803_200_000_000, 9_224_318_015_000_000_000).map(
                    lambda micros: micros / 1_000_000
                ),
                st.sampled_from([math.inf, -math.inf]),
            ),
            st.integers(0, 10**9),
        ).map(lambda pair: Position(*pair)),
        min_size=1,
    )
)
def test_a_cursor_is_read_back(positions: dict[str, Position]) -> None:
    plan = Plan((source("a"), source("b"), source("c")), is_merged=True)
    read, _ = order.decode(order.encode(positions), plan)
    assert {name: read[name] for name in positions} == positions


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a.1",
        "a.1.1~",
        "a.nan.1",
        "z.1.1",
        "a.1.-1",
        "a.1.1.zz",
        "a.1.1; drop",
        "a.-999999999999999999.1",
        "a.9224318016000000000.1",
        f"a.{'9' * 400}.1",
    ],
)
def test_a_broken_cursor_is_refused(text: str) -> None:
    with pytest.raises(FilterFault):
        order.decode(text, Plan((source("a"),), is_merged=True))


@pytest.mark.parametrize("than", ["9" * 400, "9" * 19, "x", "1.5"])
def test_a_time_that_postgres_does_not_have_is_refused(than: str) -> None:
    with pytest.raises(FilterFault):
        order.seconds(than, "than")


@pytest.mark.parametrize("status", [None, *STATUSES])
def test_each_status_has_a_source_that_holds_it(status: str | None) -> None:
    for is_list in (True, False):
        plan = order.plan(Filter(status=status), is_list=is_list)
        assert plan.sources
        for each in plan.sources:
            assert set(each.statuses) <= set(each.holds)
            assert status is None or each.statuses == (status,)
        names = [each.name for each in plan.sources]
        assert len(set(names)) == len(names)


def test_what_was_cancelled_is_requeued_only_if_the_filter_says_so() -> None:
    def statuses(wanted: Filter) -> set[str]:
        return {status for each in order.plan(wanted, action="requeue").sources for status in each.statuses}

    assert statuses(Filter()) == {"dead", "expired", "failed"}
    assert statuses(Filter(code="INTERNAL")) == {"dead", "expired", "failed"}
    assert statuses(Filter(status="cancelled")) == {"cancelled"}
    assert statuses(Filter(status="sent")) == set()
