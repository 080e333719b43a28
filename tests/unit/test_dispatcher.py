"""What the loop tells of the database, and what becomes of a row when a part of the loop fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import psycopg
import pytest

from listener import config
from listener.fcm.sender import Sender
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import SlowStart
from listener.metrics.own import Metrics
from listener.postgres.frontier import Frontier
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue, Sweep
from listener.postgres.settlements import Fate
from listener.postgres.workers import Workers
from listener.push import Push, Settlement, Status
from listener.tracing import Tracing
from listener.wakeup.waker import SweepingWaker
from listener.worker import Sending, assemble
from tests.support.pushes import push


async def test_the_database_is_reached_as_soon_as_a_claim_is_answered_whatever_comes_next() -> None:
    """Otherwise /readyz says in between that the database is away."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def claim(*_: object) -> list[object]:
        return []

    async def sweep(*_: object) -> None:
        asked.set()
        await answer.wait()
        raise psycopg.OperationalError

    sending = _sending(claim=claim, sweep=sweep)
    running = asyncio.create_task(sending.dispatcher.run())
    async with asyncio.timeout(60):
        await asked.wait()
        assert sending.reach.is_up
        answer.set()
        while sending.reach.is_up:  # noqa: ASYNC110  # one turn of the loop
            await asyncio.sleep(0)
        assert sending.reach.is_recovering
    running.cancel()
    await asyncio.wait({running})


class _BrokenQuota(SharedQuota):
    """Fails when it is told of a request that has ended."""

    def sent(self, push: Push, requests: int) -> None:
        raise TypeError


class _BrokenHealth(FcmHealth):
    """Fails whenever a settlement is made, so that each attempt fails, and what should follow it as well."""

    @property
    def in_doubt(self) -> bool:
        raise TypeError


@pytest.mark.parametrize("broken", ["quota", "settlement"])
async def test_a_row_is_settled_whatever_fails_after_its_request(broken: str) -> None:
    """Otherwise this process holds it for as long as it lives: it claims no row that it holds."""
    written: list[Settlement] = []

    async def claim(*_: object) -> list[Push]:
        return [push()] if not written else []

    async def sweep(*_: object) -> Sweep:
        return Sweep(None, False, True, False, False, True, [])

    async def settle(batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        written.extend(batch)
        sending.dispatcher.stop()
        return [Fate.WRITTEN] * len(batch)

    sending = _sending(
        quota=_BrokenQuota if broken == "quota" else SharedQuota,
        health=_BrokenHealth if broken == "settlement" else FcmHealth,
        claim=claim,
        sweep=sweep,
        earliest=_nothing,
        unwritable=SimpleNamespace(retry_if_due=_nothing),
        settlements=SimpleNamespace(settle=settle, take_disabled=Counter),
    )
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    async with asyncio.timeout(60):
        await sending.dispatcher.run()
    (settlement,) = written
    decision = settlement.decision
    assert (decision.status, decision.code, decision.uses_try) == (Status.FAILED, "INTERNAL_ERROR", True)
    assert decision.delay
    assert len(failures) == (broken == "quota")


async def _nothing(*_: object) -> None:
    pass


def _sending(
    *, quota: type[SharedQuota] = SharedQuota, health: type[FcmHealth] = FcmHealth, **of_queue: object
) -> Sending:
    """A dispatcher that cannot send, over a queue with these attributes."""
    settings, metrics = config.load(database_url="postgresql://nobody@localhost/none"), Metrics()
    queue = {"take_unreadable": lambda: 0, "worker_id": 1, "frontier": Frontier(), "settlements": None}
    return assemble(
        settings,
        cast(Queue, SimpleNamespace(**queue | of_queue)),
        SweepingWaker(),
        cast(Sender, None),
        health(SlowStart(1000, 1.0, 0.0)),
        quota(cast(Workers, None), Quota(600_000, 0.0, time.monotonic()), metrics),
        LockWatch(metrics),
        metrics,
        Tracing(),
    )
