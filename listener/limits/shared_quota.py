"""The quota that all workers share. While this worker sends, it reads how many others live and what FCM told them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psycopg
import structlog

from listener.fcm.outcome import Limit
from listener.limits.quota import RECOVERY_S, Fraction, Quota
from listener.metrics.own import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.workers import QuotaState, Workers
from listener.push import Push
from listener.waiting import is_set_within

log = structlog.get_logger(__name__)

# A fraction above this is not worth a log line.
_HARDLY_REDUCED = 0.95


class SharedQuota:
    """What this worker may claim of the quota that all workers share.

    While this worker sends next to nothing it does not ask the database. Then the number of workers matters only for
    the metrics, and OverviewWatch passes it on now and then (see ``saw_workers``).

    Args:
        interval: seconds between two questions about the other workers.
    """

    def __init__(self, workers: Workers, quota: Quota, metrics: Metrics, *, interval: float = 1.0) -> None:
        self._workers = workers
        self._interval = interval
        self._quota = quota
        self._metrics = metrics
        self._used = asyncio.Event()
        self._reduced = asyncio.Event()
        self._unshared = False  # reduced here, and not yet written for the others
        self._logged = False  # that it is reduced
        self._closed_since: float | None = None
        metrics.quota_share.set_function(lambda: quota.share(time.monotonic()))

    def room(self, now: float) -> tuple[int, int]:
        """How many pushes may be claimed now, and how many of these may have normal priority."""
        both, normal = self._quota.room(now)
        if normal == 0:
            self._closed_since = self._closed_since or now
        elif self._closed_since is not None:
            self._metrics.quota_waited.inc(now - self._closed_since)
            self._closed_since = None
        return both, normal

    def opens_in(self, now: float) -> float:
        """Seconds until there may be more room."""
        return self._quota.opens_in(now)

    def claimed(self, pushes: Sequence[Push], now: float) -> None:
        """These pushes will be sent, with one request for each device, unless they have expired."""
        high = normal = live = 0
        for push in pushes:
            requests = len(push.recipients) or 1
            if push.expires_in is not None and is_late(push):
                continue
            live += 1
            if push.priority == "high":
                high += requests
            else:
                normal += requests
        self._quota.spend(high, normal, live)
        if self._quota.matters(now):
            self._used.set()

    def sent(self, push: Push, requests: int) -> None:
        """An attempt at a claimed push has ended after this number of requests; the quota gets back what is left."""
        if requests < (len(push.recipients) or 1) and (unused := max(0, _cost(push) - requests)):
            is_high = push.priority == "high"
            self._quota.give_back(unused if is_high else 0, 0 if is_high else unused, time.monotonic())

    def refused(self, limit: Limit, asked: float) -> None:
        """FCM answered 429 to a request made at ``asked``."""
        if self._quota.refused(limit, asked, time.monotonic()):
            self._metrics.quota_reduced.inc()
            self._unshared = True
            self._reduced.set()
            self._used.set()

    def learn(self, state: QuotaState) -> None:
        """Takes over what this worker has just read about the others."""
        now = time.monotonic()
        self._quota.learn(state.workers, Fraction(state.fraction, now - state.age), now)

    def saw_workers(self, workers: int) -> None:
        """This number of workers lives, this one included. Called also while this worker sends nothing."""
        self._quota.learn(workers, self._quota.fraction, time.monotonic())

    async def run(self) -> None:
        """Keeps up with the other workers until cancelled."""
        while True:
            await is_set_within(
                self._used, self._quota.fraction.whole_in(time.monotonic()) if self._logged else None
            )
            self._used.clear()
            self._reduced.clear()
            try:
                async with asyncio.timeout(STATEMENT_PATIENCE_S):
                    await self._exchange()
            except (psycopg.Error, TimeoutError):
                self._metrics.database_errors.labels("quota").inc()
            self._log_changes()
            await is_set_within(self._reduced, self._interval)

    async def _exchange(self) -> None:
        if self._unshared:
            self._unshared = False  # before the statement, during which it may be reduced again
            try:
                await self._workers.reduce_quota(self._quota.fraction.at(time.monotonic()), RECOVERY_S)
            except BaseException:
                self._unshared = True
                raise
        self.learn(await self._workers.quota_state())

    def _log_changes(self) -> None:
        """Logs, once, that the rate is reduced, and that it is whole again."""
        fraction = self._quota.fraction.at(time.monotonic())
        if fraction < _HARDLY_REDUCED and not self._logged:
            log.warning(
                "FCM answers 429, too many requests: sending more slowly",
                percent_of_quota=round(100 * fraction),
            )
            self._logged = True
        elif fraction == 1.0 and self._logged:
            log.info("sending at the whole rate again")
            self._logged = False


def _cost(push: Push) -> int:
    """Requests that a claimed push is going to make: one for each device; none if it has expired."""
    return 0 if is_late(push) else len(push.recipients) or 1


def is_late(push: Push) -> bool:
    """Whether the push had expired when it was claimed."""
    return push.expires_in is not None and push.expires_in <= 0
