"""Where a worker begins to look: whatever comes late is found within a second, and what comes in time at once."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from listener.postgres.frontier import WHOLE, Begin, Frontier, RangeBehind, RowBehind, Seen

MARGIN, AT_MOST, DEAR, SELDOM, LATE = 1.0, 0.8, 0.05, 20.0, 0.5
LONG = 5.0
LONGEST_LOOK = 0.02
POLL = 0.003
ENOUGH = 10_000


@dataclass(frozen=True)
class Row:
    """A row, by the database's clock."""

    due: float
    commits: float
    high: bool
    unlocked: float
    written: float = math.inf
    """When its transaction has begun to write; inf: with its commit."""
    id: UUID = field(default_factory=uuid4)


@dataclass
class Play:
    """A worker, and what it finds when; as Dispatcher, Sleeper and LooksBehind do it."""

    rows: list[Row]
    cost: float
    """Seconds that a look takes which begins later."""
    polls: bool
    """It claims again and again, and asks nothing."""
    limit: int = ENOUGH
    whole_cost: float = 0.0
    """Seconds that a look over the whole range takes; 0: twice ``cost``."""
    stall: tuple[int, float] = (-1, 0.0)
    """(n, seconds): the machine stands still for so long during the n-th look over the whole range."""
    frontier: Frontier = field(default_factory=Frontier)
    now: float = 0.0
    found: dict[int, float] = field(default_factory=dict)
    """When the claim began that took a row."""
    claims: list[tuple[float, Begin]] = field(default_factory=list)
    stalled: tuple[float, float] = (math.inf, -math.inf)
    """When that look began and ended."""
    spent_on_whole: float = 0.0
    whole_looks: int = 0
    looks: int = 0
    """How many looks were made beside the claims."""
    look_ends: float = math.inf
    look: tuple[float, RangeBehind, list[RowBehind]] | None = None

    def waiting(self, begin: Begin, until: float, locked: bool) -> list[int]:
        """What a look sees that begins now."""
        return sorted(
            (
                number
                for number, row in enumerate(self.rows)
                if number not in self.found
                and row.commits <= self.now
                and (locked or row.unlocked <= self.now)
                and ((begin.high if row.high else begin.normal) <= row.due <= until or row.id in begin.early)
            ),
            key=lambda number: (not self.rows[number].high, self.rows[number].due),
        )

    def whole_lasts(self) -> float:
        """Seconds of the next look over the whole range."""
        which, seconds = self.stall
        self.whole_looks += 1
        lasts = self.whole_cost or 2 * self.cost
        if which == self.whole_looks:
            lasts += seconds
            self.stalled = (self.now, self.now + lasts)
        return lasts

    def takes(self, begin: Begin) -> float:
        """A look; returns when it began."""
        began = self.now
        lasts = self.whole_lasts() if begin.is_whole else self.cost
        self.spent_on_whole += lasts if begin.is_whole else 0.0
        self.now += lasts
        return began

    def look_behind(self) -> float:
        """A look beside the claims ends or begins; returns in how many seconds to call this again."""
        if self.look is not None:
            if self.now < self.look_ends:
                return self.look_ends - self.now
            began, behind, early = self.look
            self.frontier.looked_behind(behind, early, began, self.look_ends)
            self.look = None
        due_in = self.frontier.look_behind_in(self.now)
        if due_in is None or due_in > 0.0:
            return math.inf if due_in is None else due_in
        behind = self.frontier.begin_look_behind(self.now)
        lanes: tuple[list[RowBehind], list[RowBehind]] = ([], [])
        for number in sorted(self.waiting(WHOLE, self.now, locked=True)):  # as they lie in the table
            row = self.rows[number]
            if behind.begin <= row.due < (behind.high if row.high else behind.normal):
                lanes[not row.high].append(RowBehind(row.id, int(not row.high), row.due))
        found = [row for lane in lanes for row in lane[: self.frontier.most_behind]]
        self.look, self.look_ends = (self.now, behind, found), self.now + self.whole_lasts()
        self.looks += 1
        return self.look_ends - self.now

    def claim(self) -> bool:
        """Whether nothing more is due."""
        self.look_behind()
        begin = self.frontier.begin_claim(self.now, self.limit, self.limit)
        self.claims.append((self.now, begin))
        found = self.waiting(begin, self.now, locked=False)[: self.limit]
        self.found |= dict.fromkeys(found, self.now)
        found = [
            number
            for number in found
            if self.rows[number].due >= (begin.high if self.rows[number].high else begin.normal)
        ]
        high = [self.rows[number].due for number in found if self.rows[number].high]
        normal = [self.rows[number].due for number in found if not self.rows[number].high]
        room = self.limit - len(high)
        now = self.now
        running = [str(row.id) for row in self.rows if row.written <= now < row.commits]
        seen = Seen(
            now,
            high[-1] if room == 0 else now,
            None if room == 0 else normal[-1] if len(normal) == room else now,
            running,
        )
        began = self.takes(begin)
        self.frontier.claimed(begin, seen, began, self.now)
        return len(found) < self.limit

    def sleep(self, until: float) -> None:
        began, looks = self.now, 0
        while True:
            next_look = self.look_behind()
            begin = self.frontier.begin_question(self.now)
            found = self.waiting(begin, self.now + begin.ahead, locked=True)
            earliest = min((self.rows[number].due - self.now for number in found), default=math.inf)
            asked = self.takes(begin)
            self.frontier.answered(begin, earliest <= 0.0, asked, self.now)
            if earliest <= 0.0:
                self.now = max(self.now, began + 0.01)
                return
            seconds = min(earliest, begin.ahead, next_look)
            # A notification that has come since the claim began keeps the worker from sleeping.
            woken = next((row.commits for row in self.rows if row.commits > self.claims[-1][0]), math.inf)
            assert looks < 4 or seconds > 0.0
            looks += 1
            if min(woken, until) <= self.now + seconds:
                self.now = max(self.now, min(woken, until))
                return
            self.now += seconds
            if self.look is not None and self.now >= self.look_ends and self.look[2]:
                return  # it has found rows, and notified

    def run(self, until: float) -> None:
        """Until then, or until every row is found."""
        self.rows.sort(key=lambda row: row.commits)
        while self.now < until and (not self.rows or len(self.found) < len(self.rows)):
            if self.claim():
                if self.polls:
                    self.now += POLL
                else:
                    self.sleep(until)


def _rows(latest: float = 2.0) -> st.SearchStrategy[list[Row]]:
    """Rows of all ages; the commit of each wakes the worker."""
    times = st.floats(0.0, latest)
    due_before = st.one_of(st.floats(0.0, 1.0), st.floats(0.0, 3600.0), st.just(0.0))
    return st.lists(
        st.builds(
            lambda commits, before, high, locked: Row(commits - before, commits, high, commits + locked),
            times,
            due_before,
            st.booleans(),
            st.one_of(st.just(0.0), st.floats(0.0, 1.5)),
        ),
        max_size=20,
    )


COSTS = st.floats(0.0001, LONGEST_LOOK)


@given(_rows(), COSTS, st.booleans())
def test_whatever_comes_late_is_found_within_a_second(rows: list[Row], cost: float, polls: bool) -> None:
    """Be it that a transaction was open for long, that a time had passed, or that the row was locked."""
    play = Play(rows, cost, polls)
    play.run(6.0)
    assert len(play.found) == len(rows)
    for number, row in enumerate(play.rows):
        # What was under way when the row came, and the looks that find it.
        assert play.found[number] <= row.unlocked + AT_MOST + 8 * cost + POLL + 0.02


@given(_rows(), COSTS, st.booleans())
def test_what_comes_in_time_is_found_by_the_next_claim(rows: list[Row], cost: float, polls: bool) -> None:
    play = Play(rows, cost, polls)
    play.run(6.0)
    began = [at for at, _ in play.claims]
    for number, row in enumerate(play.rows):
        if row.unlocked - row.due < MARGIN:
            assert play.found[number] == began[bisect.bisect_left(began, row.unlocked)]


@given(_rows(), COSTS, st.booleans(), st.integers(1, 3))
def test_a_backlog_is_claimed_to_its_end(rows: list[Row], cost: float, polls: bool, limit: int) -> None:
    play = Play(rows, cost, polls, limit)
    play.run(20.0)
    assert len(play.found) == len(rows)


WHOLE_COSTS = st.floats(0.11, 3.0)
DEAR_COSTS = st.floats(0.01, LONGEST_LOOK)
"""Of the other looks. Not lower, because a play of a minute would take long."""


def _written(longest: float) -> st.SearchStrategy[list[Row]]:
    """Rows that are due when they are written, or half a second before, of transactions that are open for up to so many
    seconds."""
    return st.lists(
        st.builds(
            lambda begins, before, open_for, high: Row(
                begins - before, begins + open_for, high, begins + open_for, begins
            ),
            st.floats(10.0, 14.0),  # when the worker knows how dear looks are, and what ran when it began
            st.floats(0.0, LATE),
            st.floats(0.0, longest),
            st.booleans(),
        ),
        max_size=8,
    )


@settings(max_examples=20)
@given(_written(LONG - 0.5), DEAR_COSTS, WHOLE_COSTS, st.booleans())
@example(  # one commits while a claim is under way
    rows=[
        Row(written, commits, high=False, unlocked=commits, written=written)
        for written, commits in ((10.0, 13.0), (11.125, 15.390625), (11.5703125, 15.421875))
    ],
    cost=0.01171875,
    whole_cost=1.0,
    polls=False,
)
def test_what_a_transaction_has_written_is_found_at_once_however_dear_looks_are(
    rows: list[Row], cost: float, whole_cost: float, polls: bool
) -> None:
    play = Play(rows, cost, polls, whole_cost=whole_cost)
    play.run(20.0)
    assert len(play.found) == len(rows)
    for number, row in enumerate(play.rows):
        # The claim that sees that the transaction has ended, a question, and the claim that takes its rows.
        assert play.found[number] <= row.commits + 5 * cost + POLL + 0.02


@settings(max_examples=20)
@given(_written(15.0), DEAR_COSTS, WHOLE_COSTS, st.booleans())
def test_what_a_long_transaction_has_written_is_found_after_a_look_beside_the_claims(
    rows: list[Row], cost: float, whole_cost: float, polls: bool
) -> None:
    play = Play(rows, cost, polls, whole_cost=whole_cost)
    play.run(40.0)
    assert len(play.found) == len(rows)
    for number, row in enumerate(play.rows):
        # A look that was under way then, the pause after it began, and the look itself.
        late = 2 * whole_cost + AT_MOST + 8 * cost + POLL + 0.03
        assert play.found[number] <= row.commits + late


@settings(max_examples=20)
@given(
    st.integers(20, 60),
    st.floats(LONG, 12.0),
    st.booleans(),
    DEAR_COSTS,
    WHOLE_COSTS,
    st.booleans(),
    st.integers(3, 10),
)
def test_of_many_rows_that_a_long_transaction_has_written_a_look_need_not_find_each(
    count: int, lasts: float, high: bool, cost: float, whole_cost: float, polls: bool, limit: int
) -> None:
    """A broadcast of a million pushes in one INSERT, beside a worker that is busy."""
    commits = 10.0 + lasts
    rows = [
        Row(10.0 + lasts * number / count, commits, high, commits, 10.0 + lasts * number / count)
        for number in range(count)
    ]
    play = Play(rows, cost, polls, limit, whole_cost=whole_cost, frontier=Frontier(most_behind=3))
    play.run(60.0)
    assert len(play.found) == len(rows)
    late = 2 * whole_cost + AT_MOST + (12 + count / limit) * (cost + POLL) + 0.03
    assert max(play.found.values()) <= commits + late


def test_a_claim_that_is_under_way_does_not_undo_that_the_next_one_goes_back() -> None:
    frontier, found = _known(), [RowBehind(uuid4(), 1, 400.0 + number) for number in range(1000)]
    begin = frontier.begin_claim(10.1, 100, 100)
    frontier.looked_behind(RangeBehind(-math.inf, 999.0, 999.0), found, 10.0, 10.11)
    frontier.claimed(begin, Seen(1000.1, 1000.1, 1000.1), 10.1, 10.12)
    assert frontier.begin_claim(10.13, 100, 100) == Begin(1000.1 - MARGIN, 400.0)


@settings(max_examples=20)
@given(_rows(), DEAR_COSTS, WHOLE_COSTS, st.booleans())
def test_whatever_comes_late_is_found_by_a_later_look_however_dear_looks_are(
    rows: list[Row], cost: float, whole_cost: float, polls: bool
) -> None:
    play = Play(rows, cost, polls, whole_cost=whole_cost)
    play.run(10.0 + 2 * SELDOM * whole_cost)
    assert len(play.found) == len(rows)


@settings(max_examples=100)
@example(  # a question takes a second, and then a row is due that began below the floor
    rows=[
        Row(due, commits, False, commits) for due, commits in ((0.0, 0.0), (0.03125, 0.03125), (-1.0, 1.0))
    ],
    cost=0.015625,
    which=4,
    seconds=1.0,
    polls=False,
)
@given(_rows(30.0).filter(bool), COSTS, st.integers(1, 8), st.floats(0.1, 10.0), st.booleans())
def test_a_machine_that_stands_still_during_one_look_makes_looks_no_rarer(
    rows: list[Row], cost: float, which: int, seconds: float, polls: bool
) -> None:
    """Looks are cheap, but one of them takes seconds, because the machine stands still meanwhile."""
    play = Play(rows, cost, polls, stall=(which, seconds))
    play.run(200.0)
    assert len(play.found) == len(rows)
    late = (
        2 * AT_MOST + 12 * cost + 2 * POLL + 0.05
    )  # a look beside the claims, and what is enough without a stall
    began, ended = play.stalled
    for number, row in enumerate(play.rows):
        waits_for_the_look = began - late <= row.unlocked <= ended
        assert play.found[number] <= (ended if waits_for_the_look else row.unlocked) + late


@settings(max_examples=20)
@given(st.floats(0.11, 1.0), st.booleans())
def test_dear_looks_are_made_beside_the_claims_and_seldom(whole_cost: float, polls: bool) -> None:
    lasts = 100 * whole_cost
    play = Play([], 0.01, polls, whole_cost=whole_cost)
    play.run(lasts)
    assert play.looks <= lasts / (SELDOM * whole_cost) + 3
    assert play.spent_on_whole <= 2 * whole_cost


@settings(max_examples=10)
@given(st.floats(0.0001, DEAR / 2))
def test_cheap_looks_do_not_take_the_time(cost: float) -> None:
    play = Play([], cost, polls=True)
    play.run(20.0)
    whole = sum(begin.is_whole for _, begin in play.claims)
    assert whole <= 20.0 / AT_MOST + 1
    assert play.spent_on_whole <= 20.0 * 2 * cost / AT_MOST + 4 * cost
    assert play.looks <= 1  # beside the first claims, whose cost is unknown


def test_a_claim_begins_where_the_last_one_ended() -> None:
    frontier = Frontier()
    assert frontier.begin_claim(10.0, 100, 100) == WHOLE
    frontier.claimed(WHOLE, Seen(1000.0, None, 500.0), 10.0, 10.01)
    assert frontier.begin_claim(10.1, 100, 100) == Begin(-math.inf, 500.0)
    frontier.claimed(Begin(-math.inf, 500.0), Seen(1000.1, 1000.1, 700.0), 10.1, 10.11)
    assert frontier.begin_claim(10.2, 100, 100) == Begin(1000.1 - MARGIN, 700.0)


def test_a_clock_of_the_database_that_is_set_back_costs_one_look() -> None:
    frontier = Frontier()
    frontier.claimed(frontier.begin_claim(10.0, 100, 100), Seen(5000.0, 5000.0, 5000.0), 10.0, 10.01)
    begin = frontier.begin_claim(10.1, 100, 100)
    frontier.claimed(begin, Seen(1000.0, 1000.0, 1000.0), 10.1, 10.11)
    assert frontier.begin_claim(10.2, 100, 100) == WHOLE
    frontier.claimed(WHOLE, Seen(1000.1, 1000.1, 1000.1), 10.2, 10.21)
    assert frontier.begin_claim(10.3, 100, 100) == Begin(1000.1 - MARGIN, 1000.1 - MARGIN)


def test_rows_that_were_found_are_claimed_once_each_and_no_more_than_fit() -> None:
    frontier, ids = _known(), [uuid4() for _ in range(5)]
    frontier.found_early(ids)
    assert frontier.begin_claim(10.1, 3, 100).early == ids[:3]
    assert not frontier.begin_claim(10.1, 100, 0).early
    assert frontier.begin_claim(10.1, 100, 100).early == ids[3:]
    assert not frontier.begin_claim(10.1, 100, 100).early


def _known() -> Frontier:
    """Of a worker that has claimed everything at 10 s, and has just begun to claim later."""
    frontier = Frontier()
    frontier.claimed(frontier.begin_claim(10.0, 100, 100), Seen(1000.0, 1000.0, 1000.0), 10.0, 10.01)
    assert not frontier.begin_claim(10.02, 100, 100).is_whole
    return frontier


def test_urgent_looks_do_not_stand_for_looks_at_the_rest() -> None:
    frontier = _known()
    assert frontier.begin_claim(11.0, 100, 0) == WHOLE
    frontier.claimed(WHOLE, Seen(1001.0, 1001.0, None), 11.0, 11.01)
    assert not frontier.begin_claim(11.1, 100, 0).is_whole
    assert frontier.begin_claim(11.1, 100, 100) == WHOLE


@pytest.mark.parametrize(
    "looks",
    [
        lambda frontier: frontier.claimed(WHOLE, Seen(1001.0, 1001.0, 1001.0), 10.56, 10.6),
        lambda frontier: frontier.answered(WHOLE, False, 10.56, 10.6),
    ],
    ids=["claim", "question"],
)
def test_a_look_that_was_under_way_when_a_worker_died_is_not_enough(
    looks: Callable[[Frontier], None],
) -> None:
    frontier = _known()
    frontier.want_whole_look_at_once(10.58)
    looks(frontier)
    assert frontier.begin_claim(10.7, 100, 100) == WHOLE
    frontier = _known()
    frontier.want_whole_look_at_once(10.4)
    looks(frontier)
    assert not frontier.begin_claim(10.7, 100, 100).is_whole


def test_after_a_question_that_finds_a_due_row_a_claim_looks_for_it() -> None:
    frontier = _known()
    frontier.answered(WHOLE, True, 10.1, 10.11)
    assert frontier.begin_claim(10.3, 100, 100) == WHOLE


def test_cheap_questions_are_always_over_the_whole_range() -> None:
    """So without an old snapshot, what a worker asks before it sleeps is all there is to ask."""
    frontier = _known()
    frontier.answered(frontier.begin_question(10.1), False, 10.1, 10.1005)
    assert frontier.begin_question(10.12) == WHOLE
    frontier.answered(WHOLE, False, 10.12, 10.16)
    begin = frontier.begin_question(10.3)
    assert not begin.is_whole
    assert begin.ahead == pytest.approx(10.12 + AT_MOST - 10.3)
    assert frontier.begin_question(10.92) == WHOLE
