"""The quota, shared with the other workers: who they are and what FCM has told them is read while this one sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from listener.fcm.outcome import Limit
from listener.limits.quota import RECOVERY_S, Fraction, Quota
from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.workers import QuotaState, Workers
from listener.push import Push
from listener.waiting import wait

log = structlog.get_logger(__name__)

_EVERY_S = 1.0

# Less than this is not worth a word.
_HARDLY_LOWERED = 0.95


class SharedQuota:
    """What this worker may claim of the fleet's quota.

    Nothing is asked of the database while this worker sends next to nothing: then it does not matter how many others
    do the same.
    """

    def __init__(self, workers: Workers, quota: Quota, metrics: Metrics) -> None:
        self._workers = workers
        self._quota = quota
        self._metrics = metrics
        self._used = asyncio.Event()
        self._lowered = asyncio.Event()
        self._untold = False  # lowered here, and not written down for the others
        self._told = False  # that it is lowered
        self._shut_since: float | None = None
        metrics.quota_rate.set_function(lambda: quota.rate(time.monotonic()))

    def room(self, now: float) -> tuple[int, int]:
        """How many pushes may be claimed now, and how many of these may have normal priority."""
        both, normal = self._quota.room(now)
        if normal == 0:
            self._shut_since = self._shut_since or now
        elif self._shut_since is not None:
            self._metrics.quota_waited.inc(now - self._shut_since)
            self._shut_since = None
        return both, normal

    def opens_in(self, now: float) -> float:
        """Seconds until there may be more room."""
        return self._quota.opens_in(now)

    def claimed(self, pushes: Sequence[Push], now: float) -> None:
        """These will be sent: one request for each device."""
        high = normal = 0
        for push in pushes:
            requests = len(push.recipients) or 1
            if push.priority == "high":
                high += requests
            else:
                normal += requests
        self._quota.spend(high, normal, len(pushes))
        if self._quota.matters(now):
            self._used.set()

    def refused(self, limit: Limit, asked: float) -> None:
        """FCM answered 429 to a request made at ``asked``."""
        if self._quota.refused(limit, asked, time.monotonic()):
            self._metrics.quota_lowered.inc()
            self._untold = True
            self._lowered.set()
            self._used.set()

    def learn(self, fleet: QuotaState) -> None:
        """What was read of the fleet just now."""
        now = time.monotonic()
        self._quota.learn(fleet.workers, Fraction(fleet.fraction, now - fleet.age), now)

    async def run(self) -> None:
        """Keeps up with the other workers until cancelled."""
        while True:
            await wait(self._used, self._quota.part.whole_in(time.monotonic()) if self._told else None)
            self._used.clear()
            self._lowered.clear()
            try:
                async with asyncio.timeout(STATEMENT_PATIENCE_S):
                    await self._exchange()
            except (psycopg.Error, PoolTimeout, TimeoutError):
                self._metrics.database_errors.labels("rate").inc()
            self._tell()
            await wait(self._lowered, _EVERY_S)

    async def _exchange(self) -> None:
        if self._untold:
            self._untold = False  # before the wait, in which it may be lowered again
            try:
                await self._workers.reduce_quota(self._quota.part.at(time.monotonic()), RECOVERY_S)
            except BaseException:
                self._untold = True
                raise
        self.learn(await self._workers.quota_state())

    def _tell(self) -> None:
        """Tells, once, when the rate is lowered and when it has come back."""
        part = self._quota.part.at(time.monotonic())
        if part < _HARDLY_LOWERED and not self._told:
            log.warning(
                "FCM answers 429, too many requests: sending more slowly", percent_of_quota=round(100 * part)
            )
            self._told = True
        elif part == 1.0 and self._told:
            log.info("sending at the whole rate again")
            self._told = False
