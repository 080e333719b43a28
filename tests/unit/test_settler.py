"""What is settled together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import psycopg
import pytest

from listener.metrics import Metrics
from listener.postgres.queue import Queue
from listener.push import Decision, Settlement, Status
from listener.sending.settler import Settler


class _Held:
    """A queue that takes a batch only when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Semaphore(0)

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> int:
        await self.free.acquire()
        self.batches.append([one.push_id.int for one in batch])
        return len(batch)


async def test_while_one_batch_is_written_the_next_gathers_up_to_the_limit() -> None:
    held, settled = _Held(), asyncio.Event()
    left = set(range(1, 7))

    def on_settled(batch: Sequence[Settlement]) -> None:
        left.difference_update(one.push_id.int for one in batch)
        if not left:
            settled.set()

    settler = Settler(cast(Queue, held), batch=3, metrics=Metrics(), on_settled=on_settled)
    running = asyncio.create_task(settler.run())
    settler.put(_sent(1))
    await asyncio.sleep(0)  # the first is being written
    for n in range(2, 7):
        settler.put(_sent(n))
    for _ in range(3):
        held.free.release()
    async with asyncio.timeout(10):
        await settled.wait()
    running.cancel()
    assert held.batches == [[1], [2, 3, 4], [5, 6]]


async def test_results_that_come_one_by_one_but_often_are_written_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.sending.settler._BUSY_S", 60.0)
    held, settled = _Held(), asyncio.Queue[int]()
    settler = Settler(
        cast(Queue, held),
        batch=10,
        metrics=Metrics(),
        on_settled=lambda batch: settled.put_nowait(len(batch)),
    )
    running = asyncio.create_task(settler.run())
    for _ in range(2):
        held.free.release()
    async with asyncio.timeout(10):
        settler.put(_sent(1))
        assert await settled.get() == 1  # nobody else is near: at once
        for n in range(2, 5):
            settler.put(_sent(n))
            await asyncio.sleep(0)
        assert await settled.get() == 3
    running.cancel()


class _Locked(_Held):
    """A queue that cannot be reached the first time, and in which every row is locked from then on."""

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> int:
        raise psycopg.errors.LockNotAvailable if is_retry else psycopg.OperationalError

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        return set(ids)


async def test_what_is_locked_keeps_nobody_from_hearing_that_the_database_is_back() -> None:
    settled = asyncio.Queue[tuple[bool, int]]()
    settler = Settler(
        cast(Queue, _Locked()),
        batch=10,
        metrics=Metrics(),
        on_settled=lambda batch: settled.put_nowait((settler.succeeds, len(batch))),
    )
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(10):
        settler.put(_sent(1))
        assert await settled.get() == (False, 0)  # it is set aside
        assert await settled.get() == (True, 0)
    running.cancel()


class _LockedFor(_Locked):
    """One in which they are locked for some looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> int:
        if self.looks:
            raise psycopg.errors.LockNotAvailable
        assert is_retry, "it may have been written before"
        return len(batch)

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        self.looks -= 1
        return set(ids) if self.looks else set()


async def test_what_is_locked_is_looked_at_until_it_is_free_whenever_its_time_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("listener.sending.settler._LOCKED_S", 0.0)
    settled = asyncio.Queue[int]()
    settler = Settler(
        cast(Queue, _LockedFor(5)),
        batch=10,
        metrics=Metrics(),
        on_settled=lambda batch: settled.put_nowait(len(batch)),
    )
    running = asyncio.create_task(settler.run())
    async with asyncio.timeout(10):
        settler.put(_sent(1))
        while await settled.get() == 0:
            pass
    assert settler.set_aside == 0
    running.cancel()


def _sent(n: int) -> Settlement:
    return Settlement(UUID(int=n), 1, Decision(Status.SENT))
