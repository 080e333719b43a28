"""Which indexes a search looks through, how their entries become one list, and where a list goes on."""

from __future__ import annotations

import math
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.operating import order
from listener.operating.filters import STATUSES, Filter, FilterFault
from listener.operating.order import Entry, Plan, Position, Source

_ID = UUID(int=1).hex
_ALL = ("pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled")


def source(name: str) -> Source:
    return Source(name, "over", "updated_at", _ALL, _ALL)


Row = tuple[float, bool, int, UUID]
"""Key, whether it matches, block, id."""


def scan(rows: list[Row], start: Position, limit: int, window: int) -> list[Entry]:
    """What the statements do with one key, and then with those behind it, in Python."""
    here = sorted(
        (row for row in rows if row[0] == start.key and (row[2], row[3]) > (start.block, start.id)),
        key=lambda row: (row[2], row[3]),
    )
    rest = sorted((row for row in rows if row[0] < start.key), key=lambda row: (-row[0], row[2], row[3]))
    looked = [*here, *rest][:window]
    cut: Position | None = None
    if len(looked) == window:
        key, _, block, _ = looked[-1]
        cut = Position.before(key, block)
    found = []
    for key, matches, block, push in looked:
        if cut is not None and (key, block) == (cut.key, cut.block + 1):
            found.append(Entry(push, cut, False, True))
            break
        if matches:
            found.append(Entry(push, Position(key, block, push), True, False))
    return found[:limit]


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([5.0, 4.0, 3.0, -math.inf, math.inf]), st.booleans(), st.integers(0, 20)
            ),
            max_size=12,
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 5),
    st.data(),
)
def test_every_match_is_listed_once_and_in_order_whatever_becomes_of_the_others(
    drawn: list[list[tuple[float, bool, int]]], limit: int, data: st.DataObject
) -> None:
    number = iter(range(1000))
    sources = [
        [(key, matches, block, UUID(int=next(number))) for key, matches, block in rows] for rows in drawn
    ]
    expected = [(key, push) for rows in sources for key, matches, _, push in rows if matches]
    most = max((n for rows in sources for n in Counter((row[0], row[2]) for row in rows).values()), default=0)
    window = most + data.draw(st.integers(1, 6))  # a block fits into it
    plan = Plan(tuple(source("abc"[place]) for place in range(len(sources))), is_merged=True)
    listed: list[tuple[float, UUID]] = []
    after: str | None = None
    for _ in range(200):
        start = order.decode(after, plan)
        scans = [
            scan(rows, start[each.name], limit + 1, window)
            for each, rows in zip(plan.sources, sources, strict=True)
        ]
        part = order.merge(plan, scans, start, limit)
        listed += [(entry.place.key, entry.id) for _, entry in part.entries]
        assert len(part.entries) <= limit
        if not part.has_more:
            break
        after = order.encode(part.positions)
        gone = data.draw(
            st.sets(
                st.sampled_from(
                    [row[3] for rows in sources for row in rows if not row[1]] or [UUID(int=9999)]
                )
            )
        )
        sources = [[row for row in rows if row[3] not in gone] for rows in sources]
        if data.draw(st.booleans()):  # as if an action had changed what was listed
            taken = {push for _, push in listed}
            sources = [[row for row in rows if row[3] not in taken] for rows in sources]
    else:
        pytest.fail("the list has no end")
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
            st.integers(-2, 2**32),
            st.uuids(),
        ).map(lambda parts: Position(*parts)),
        min_size=1,
    )
)
def test_a_cursor_is_read_back(positions: dict[str, Position]) -> None:
    plan = Plan((source("a"), source("b"), source("c")), is_merged=True)
    read = order.decode(order.encode(positions), plan)
    assert {name: read[name] for name in positions} == positions


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a.1",
        "a.1.1",
        f"a.1.1.{_ID}~",
        f"a.nan.1.{_ID}",
        f"z.1.1.{_ID}",
        f"a.1.12345678901.{_ID}",
        "a.1.1.zz",
        f"a.1.1.{_ID}; drop",
        f"a.-999999999999999999.1.{_ID}",
        f"a.9224318016000000000.1.{_ID}",
        f"a.{'9' * 400}.1.{_ID}",
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


@given(st.integers(-2, 2**32))
def test_a_place_in_the_table_is_one_that_postgres_reads(block: int) -> None:
    beyond, own = (int(tid.strip("()").split(",")[0]) for tid in Position(0.0, block, UUID(int=0)).tids)
    assert 0 <= own <= beyond <= 2**32 - 1
