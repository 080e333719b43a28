"""What is settled together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import psycopg
import pytest

from listener.metrics.own import Metrics
from listener.postgres.settlements import Fate, Settlements
from listener.push import Decision, LogLine, Settlement, Status
from listener.sending.held import HeldRows
from listener.sending.result_writer import ResultWriter
from listener.sending.settler import Settler
from listener.sending.trail import Trail
from listener.sending.unwritten import Unwritten
from listener.tracing import Tracing
from listener.wakeup.look_signal import LookSignal
from tests.support.pushes import push


class _Held:
    """A queue that takes a batch only when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Semaphore(0)

    def take_disabled(self) -> Counter[str]:
        return Counter()

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        await self.free.acquire()
        self.batches.append([one.push_id.int for one in batch])
        return [Fate.WRITTEN] * len(batch)


async def test_while_one_batch_is_written_the_next_gathers_up_to_the_limit() -> None:
    held, rows = _Held(), _rows(*range(1, 7))
    settler = _settler(held, rows, LookSignal(), batch=3)
    running = asyncio.create_task(settler.run())
    settler.put(_sent(1))
    await asyncio.sleep(0)  # the first is being written
    for n in range(2, 7):
        settler.put(_sent(n))
    for _ in range(3):
        held.free.release()
    async with asyncio.timeout(60):
        await rows.wait_empty()
    running.cancel()
    assert held.batches == [[1], [2, 3, 4], [5, 6]]


async def test_results_that_come_one_by_one_but_often_are_written_together() -> None:
    held, rows = _Held(), _rows(1)
    settler = _settler(held, rows, LookSignal(), batch=10, gather_within=60.0)
    running = asyncio.create_task(settler.run())
    for _ in range(2):
        held.free.release()
    async with asyncio.timeout(60):
        settler.put(_sent(1))
        await rows.wait_empty()  # no other result is near: at once
        rows.add([push(id=UUID(int=n)) for n in range(2, 5)], 0.0)
        for n in range(2, 5):
            settler.put(_sent(n))
            await asyncio.sleep(0)
        await rows.wait_empty()
    running.cancel()
    assert held.batches == [[1], [2, 3, 4]]


class _Locked(_Held):
    """A queue that cannot be reached the first time, and in which every row is locked from then on."""

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        raise psycopg.errors.LockNotAvailable if is_retry else psycopg.OperationalError

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        return set(ids)


async def test_a_locked_row_keeps_nobody_from_learning_that_the_database_is_back() -> None:
    look = LookSignal()
    settler = _settler(_Locked(), _rows(1), look, batch=10)
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(60):
        settler.put(_sent(1))
        while not settler.set_aside:
            await look.wait_for_capacity(None)
            look.take()
        while not settler.succeeds:
            await look.wait_for_capacity(None)
            look.take()
    running.cancel()


class _LockedFor(_Locked):
    """One in which they are locked for some looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        if self.looks:
            raise psycopg.errors.LockNotAvailable
        assert is_retry, "it may have been written before"
        return [Fate.WRITTEN] * len(batch)

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        self.looks -= 1
        return set(ids) if self.looks else set()


async def test_a_locked_row_is_tried_until_it_is_free() -> None:
    rows = _rows(1)
    settler = _settler(_LockedFor(5), rows, LookSignal(), batch=10, locked_wait=0.0)
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(60):
        settler.put(_sent(1))
        await rows.wait_empty()
    assert settler.set_aside == 0
    running.cancel()


class _Slow(_Held):
    """A queue that takes too long: for all results, or also for a statement without rows."""

    def __init__(self, times: int, *, without_rows: bool = False) -> None:
        super().__init__()
        self.times = times
        self.without_rows = without_rows
        self.written: list[Settlement] = []
        self.unwritable = SimpleNamespace(note=self._note, forget=self._note)

    async def _note(self, *_: object) -> None:
        pass

    async def log(self, lines: object) -> None:
        pass

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        if self.times and (batch or self.without_rows):
            self.times -= 1
            raise psycopg.errors.QueryCanceled
        self.written += batch
        return [Fate.WRITTEN] * len(batch)


@pytest.mark.parametrize(
    ("queue", "loses_log"),
    [(_Slow(1), False), (_Slow(2), True), (_Slow(9, without_rows=True), False)],
    ids=["once", "twice", "for any statement"],
)
async def test_a_result_counts_as_refused_only_if_it_alone_is_too_slow(queue: _Slow, loses_log: bool) -> None:
    rows = _rows(1)
    settler = _settler(queue, rows, LookSignal(), batch=10)
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(60):
        settler.put(Settlement(UUID(int=1), 1, Decision(Status.SENT), [LogLine("t", "sent", {"attempt": 1})]))
        await rows.wait_empty()
    running.cancel()
    assert [(one.decision.status, not one.logs) for one in queue.written] == [(Status.SENT, loses_log)]


def _settler(settlements: _Held, rows: HeldRows, look: LookSignal, *, batch: int, **timing: float) -> Settler:
    metrics, answering = Metrics(), cast(Settlements, settlements)
    writer = ResultWriter(answering, rows, look, metrics, Trail(Tracing(), 1), batch=batch)
    return Settler(answering, writer, Unwritten(answering, writer, metrics), look, **timing)


def _rows(*numbers: int) -> HeldRows:
    rows = HeldRows(Metrics(), lease=120.0)
    rows.add([push(id=UUID(int=n)) for n in numbers], 0.0)
    return rows


def _sent(n: int) -> Settlement:
    return Settlement(UUID(int=n), 1, Decision(Status.SENT))
