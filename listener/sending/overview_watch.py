"""Keeps those metrics up to date that every process reads from the database."""

from __future__ import annotations

import asyncio
import datetime
import math
import time
from collections.abc import Iterable

import psycopg

from listener.limits.health import FcmHealth
from listener.limits.shared_quota import SharedQuota
from listener.metrics.own import Metrics
from listener.metrics.shared import STALE_AFTER_S, Figures, Results
from listener.postgres import overview
from listener.postgres.connect import STATEMENT_PATIENCE_S, Pool
from listener.postgres.overview import Day, Overview
from listener.postgres.unwritable import UnwritableRows
from listener.sending.dispatcher import Dispatcher
from listener.sending.reach import Reach
from listener.waiting import is_set_within
from listener.wakeup.waker import Waker

# Between two readings, the release of refused rows and the next read each take at most STATEMENT_PATIENCE_S. An idle
# worker notices up to one QUEUE_DEPTH_INTERVAL late that the next read is due. That setting is at most as long as this
# interval.
_IDLE_INTERVAL_S = (STALE_AFTER_S - 2 * STATEMENT_PATIENCE_S) / 2
# One more STATEMENT_PATIENCE_S is kept in reserve.
_LONGEST_PAUSE_S = STALE_AFTER_S - 3 * STATEMENT_PATIENCE_S

_TIDY_INTERVAL_S = 600.0

# With a million scheduled pushes a read takes a second of the server's time.
_SHARE_OF_TIME = 0.02

_WINDOWS = (1, 7, 30)
"""The metrics show what get_push_delivery_stats returns for these numbers of days."""


class OverviewWatch:
    """Reads often while there is work, while something keeps work from being found or sent, and after a failed read;
    seldom otherwise. It reads more often still while somebody watches the page.

    Args:
        quota: learns how many workers there are.
        interval: seconds between two reads while it reads often. Reads that take long are made less often, even if the
            server has not answered them.
        watched: set while somebody watches.
        watched_interval: seconds between two reads at that time.
        sees_workers: False: workers hold no liveness locks, so Postgres does not see them.
    """

    def __init__(
        self,
        pool: Pool,
        unwritable: UnwritableRows,
        dispatcher: Dispatcher,
        waker: Waker,
        reach: Reach,
        health: FcmHealth,
        quota: SharedQuota,
        metrics: Metrics,
        *,
        interval: float,
        watched: asyncio.Event,
        watched_interval: float = 2.0,
        sees_workers: bool = True,
    ) -> None:
        self._pool = pool
        self._unwritable = unwritable
        self._dispatcher = dispatcher
        self._waker = waker
        self._reach = reach
        self._health = health
        self._quota = quota
        self._metrics = metrics
        self._interval = interval
        self._watched = watched
        self._watched_interval = watched_interval
        self._sees_workers = sees_workers
        self._tidied_at = -math.inf
        self._is_busy = True

    async def run(self) -> None:
        """Works until cancelled. Then the metrics are absent, because the last reading may no longer be true."""
        seen, read_at, took = -1, -math.inf, 0.0
        try:
            while True:
                looks, began = self._dispatcher.looks, time.monotonic()
                if looks != seen or self._is_watchful or began - read_at >= _IDLE_INTERVAL_S:
                    took = await self._read()
                    seen, read_at = looks, began
                await self._pause(min(_LONGEST_PAUSE_S, took / _SHARE_OF_TIME))
        finally:
            self._metrics.shared.forget()

    async def _pause(self, least: float) -> None:
        """Sleeps for the interval, or for a shorter one once somebody watches, and never for less than ``least``."""
        first = max(least, min(self._interval, self._watched_interval))
        await asyncio.sleep(first)
        await is_set_within(self._watched, self._interval - first)

    @property
    def _is_watchful(self) -> bool:
        """Whether to read even if no claim was made: somebody watches, or the queue may change or stand still."""
        keeps_still = (
            self._health.pause_kind is not None or not self._waker.may_claim() or not self._reach.is_up
        )
        return self._is_busy or keeps_still or self._watched.is_set()

    async def _read(self) -> float:
        """Returns the seconds that the server worked for it; 0 if it could not be asked."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                found = await overview.read(self._pool)
        except (psycopg.Error, TimeoutError) as error:
            self._metrics.database_errors.labels("read").inc()
            self._metrics.shared.forget()
            self._is_busy = True
            is_slow = isinstance(error, (TimeoutError, psycopg.errors.QueryCanceled))
            return time.monotonic() - began if is_slow else 0.0
        took = time.monotonic() - began
        self._metrics.statement.observe(took, "read")
        self._quota.saw_workers(found.server.workers if self._sees_workers else found.server.workers + 1)
        self._metrics.shared.show(figures(found, sees_workers=self._sees_workers))
        self._is_busy = bool(sum(found.depth.due.values()) or found.depth.by_status["processing"])
        if found.unwritable:
            await self._release_refused()
        return took

    async def _release_refused(self) -> None:
        """Lets refused rows be claimed again if they may be writable now.

        The dispatcher does so only after a claim that has brought rows.
        """
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                await self._unwritable.retry()
                await self._tidy()
        except (psycopg.Error, TimeoutError):
            self._metrics.database_errors.labels("unwritable").inc()

    async def _tidy(self) -> None:
        """Now and then deletes the notes on rows that are no longer refused."""
        if time.monotonic() - self._tidied_at >= _TIDY_INTERVAL_S:
            self._tidied_at = time.monotonic()
            await self._unwritable.tidy()


def figures(found: Overview, *, sees_workers: bool) -> Figures:
    """What the metrics show of the overview. Pure."""
    return Figures(
        depth=found.depth.counts,
        due=found.depth.due,
        oldest_due=found.depth.oldest_due,
        scheduled=found.depth.scheduled,
        unwritable=found.unwritable,
        workers=found.server.workers if sees_workers else None,
        notify_queue=found.server.notify_queue,
        snapshot_age=found.server.snapshot_age,
        clock_offset=found.clock_offset,
        results={days: _results(found.days, days, found.depth.waiting) for days in _WINDOWS},
        receipts=_receipts(found.days),
        sent=sum(code.sent for code in found.ended),
        failed={code.error_code: count for code in found.ended if (count := code.dead + code.expired)},
    )


def _results(days: Iterable[Day], window: int, waiting: int) -> Results:
    """The sums of a window of days, as ``get_push_delivery_stats`` has them."""
    within = [day for day in days if day.days_ago < window]
    timed = sum(day.delivered_timed for day in within)
    seconds = sum(day.delivered_seconds for day in within)
    ended = {
        name: sum(getattr(day, name) for day in within) for name in ("sent", "dead", "expired", "cancelled")
    }
    delivered = sum(day.delivered for day in within)
    return Results({**ended, "waiting": waiting}, delivered, seconds / timed if timed else None)


def _receipts(days: Iterable[Day]) -> dict[datetime.date, tuple[int, int, int]]:
    return {day.day: (day.delivered, day.opened, day.clicked) for day in days}
