"""What the loop tells of the database."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import cast

import psycopg

from listener import config
from listener.fcm.sender import Sender
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import SlowStart
from listener.metrics.own import Metrics
from listener.postgres.frontier import Frontier
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue
from listener.postgres.workers import Workers
from listener.tracing import Tracing
from listener.wakeup.waker import SweepingWaker
from listener.worker import assemble


async def test_the_database_is_reached_as_soon_as_a_claim_is_answered_whatever_comes_next() -> None:
    """Otherwise /readyz says in between that the database is away."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def claim(*_: object) -> list[object]:
        return []

    async def sweep(*_: object) -> None:
        asked.set()
        await answer.wait()
        raise psycopg.OperationalError

    settings, metrics = config.load(database_url="postgresql://nobody@localhost/none"), Metrics()
    sending = assemble(
        settings,
        cast(
            Queue,
            SimpleNamespace(
                claim=claim,
                sweep=sweep,
                take_unreadable=lambda: 0,
                worker_id=1,
                frontier=Frontier(),
                settlements=None,
            ),
        ),
        SweepingWaker(),
        cast(Sender, None),
        FcmHealth(SlowStart(1000, 1.0, 0.0)),
        SharedQuota(cast(Workers, None), Quota(600_000, 0.0, time.monotonic()), metrics),
        LockWatch(metrics),
        metrics,
        Tracing(),
    )
    running = asyncio.create_task(sending.dispatcher.run())
    async with asyncio.timeout(10):
        await asked.wait()
        assert sending.reach.is_up
        answer.set()
        while sending.reach.is_up:  # noqa: ASYNC110  # one turn of the loop
            await asyncio.sleep(0)
        assert sending.reach.is_recovering
    running.cancel()
    await asyncio.wait({running})
