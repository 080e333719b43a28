"""How many values are written with few statements although some are refused."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from listener.postgres.halving import Halving


class _Table:
    """Takes every value that is not bad, and no statement with more values than it has time for."""

    def __init__(self, bad: set[int], quick: int = 1000) -> None:
        self.bad, self.quick = bad, quick
        self.rows: list[int] = []
        self.statements = 0

    async def take(self, values: Sequence[int]) -> None:
        self.statements += 1
        if len(values) > self.quick:
            raise psycopg.errors.QueryCanceled
        if self.bad & set(values):
            raise psycopg.errors.RaiseException
        self.rows += values


@given(st.sets(st.integers(0, 299), max_size=15), st.integers(1, 300))
async def test_all_but_the_refused_are_written_once(bad: set[int], quick: int) -> None:
    table = _Table(bad, quick)
    rest, fault = await Halving(500).write(range(300), table.take, 60.0)
    assert sorted(table.rows) == [value for value in range(300) if value not in bad]
    assert rest == sorted(bad)
    assert (fault is None) == (not bad and quick == 300)


async def test_one_bad_value_costs_few_statements() -> None:
    table = _Table({123})
    await Halving(500).write(range(500), table.take, 60.0)
    assert table.statements < 30


async def test_a_table_that_takes_nothing_is_not_asked_for_every_value() -> None:
    table = _Table(set(range(500)))
    rest, _ = await Halving(500).write(range(500), table.take, 60.0)
    assert sorted(rest) == list(range(500))
    assert rest[-1] == 19, "what was tried comes last"
    assert table.statements < 40


async def test_a_size_that_takes_too_long_is_not_tried_again_at_once() -> None:
    table, parts = _Table(set(), quick=100), Halving(500)
    assert (await parts.write(range(300), table.take, 0.0))[0] == list(range(300)), "there is no time"
    await parts.write(range(300), table.take, 60.0)
    before = table.statements
    await parts.write(range(50), table.take, 60.0)
    assert table.statements == before + 1


async def test_a_lost_connection_blames_no_value() -> None:
    async def lose(values: Sequence[int]) -> None:
        raise psycopg.OperationalError

    rest, fault = await Halving(500).write(range(3), lose, 60.0)
    assert rest == [0, 1, 2]
    assert isinstance(fault, psycopg.OperationalError)
