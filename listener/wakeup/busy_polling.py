"""Busy polling: while one worker polls the queue, inserts need not notify.

Postgres commits transactions that notify one after another, so a notification for each insert makes many inserts slow.
A worker that is notified very often takes the polling lock. While the lock is taken the triggers do not notify, and the
worker polls the queue every few milliseconds. When few rows come it releases the lock, and sleeps.

No insert is missed, because a worker that knows of another poller, or cannot exclude one, rechecks the queue. The
recheck runs concurrently with the dispatcher, and wakes it each time that the queue is to be looked at:

1. While any session holds the lock, the worker looks at the queue four times a second, and more often as long as that
   finds rows: the holder may be frozen, or unable to claim.
2. Then the worker asks which open transactions have written to the queue, and looks at the queue. An insert that found
   the lock taken began before the lock was released: its row is in the queue now, or in one of those transactions.
3. While one of those is open the worker asks again, and looks at the queue whenever one has ended.

Step 2 is a statement of its own, begun when the lock was known to be free, because Postgres does not show all locks as
of one instant. A worker that takes the lock notifies the others in the same transaction, and so makes them recheck. A
LISTEN may come too late for that notification, and a worker may die just before it sends it. So each LISTEN and each
death of a worker make workers recheck, too. The poller may die at any moment: every other worker, and the next one that
starts, does all of this by itself.

Any login may take the lock and notify nobody. Therefore each sweep (see sending/sleeper.py) asks whether the lock is
taken, and the worker rechecks if it is. If the lock was taken and released between two sweeps, the second sweep finds
the rows for which nobody notified.

While the NOTIFY queue of the server is full, every transaction that notifies fails. So a worker takes the lock without
a notification, and polls: the inserts succeed again. Its peers try the same, or find the lock taken when they sweep.

tests/model has a model of this, and shows that every step is needed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import TypeVar

import psycopg

from listener.backoff import Backoff
from listener.metrics.own import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.locks import CHANNEL, POLLING_LOCK
from listener.postgres.workers import Workers
from listener.waiting import is_set_within
from listener.wakeup.doorbell import Doorbell
from listener.wakeup.look_signal import LookSignal
from listener.wakeup.polling_policy import PollingPolicy, Want

T = TypeVar("T")

# A claim of fifty rows costs little more than a claim of one, so the delay grows with what a poll finds.
_POLL_DELAY_S = 0.001
_POLL_DELAY_PER_ROW_S = 0.0001
_LONGEST_POLL_DELAY_S = 0.003
_POLL_DELAY_WHILE_FULL_S = 0.1

_WATCH_S = 0.25
_WATCH_CLOSELY_S = 0.03
_UNOBSERVED_AFTER_S = 1.0

# Any login may send the notification that makes a worker recheck, as often as it likes.
_BETWEEN_RECHECKS_S = 0.05

_CROWD = 3

# While a transaction is open, the worker asks again after a quarter of the time that it has waited. So a row is sent
# late by at most a quarter of the length of its transaction.
_PART_OF_WAIT = 0.25
_SHORTEST_WAIT_S = 0.002
_LONGEST_WAIT_S = 30.0

# Takes the polling lock, or returns at once: an insert that notifies holds the lock only for an instant. With a crowd
# above 0 it takes the lock only if that number of transactions waits to commit a notification. Such transactions queue
# for a lock on "database 0".
_START = """
with asked as materialized (
  select pg_catalog.pg_try_advisory_lock(%s, %s) as got
    where %s = 0 or %s <= (
      select pg_catalog.count(*) from pg_catalog.pg_locks
        where locktype = 'object' and database = 0::oid and classid = 'pg_catalog.pg_database'::regclass::oid
          and objid = 0::oid and not granted)
)
select coalesce(pg_catalog.bool_or(got), false),
    pg_catalog.count(case when got then pg_catalog.pg_notify(%s, %s) end)
  from asked
"""
_START_SILENTLY = "select pg_catalog.pg_try_advisory_lock(%s, %s)"
_STOP = "select pg_catalog.pg_advisory_unlock(%s, %s)"
_STOP_AND_NOTIFY = "select pg_catalog.pg_advisory_unlock(%s, %s), pg_catalog.pg_notify(%s, '')"


class BusyPolling:
    """Decides when this worker polls, and makes sure that nothing is missed afterwards.

    Args:
        doorbell: holds the lock on its connection, so that the lock ends with the worker.
        look: is notified when the queue is to be looked at.
        policy: when to poll.
    """

    def __init__(
        self,
        workers: Workers,
        doorbell: Doorbell,
        look: LookSignal,
        metrics: Metrics,
        policy: PollingPolicy | None = None,
    ) -> None:
        self._workers = workers
        self._doorbell = doorbell
        self._look = look
        self._metrics = metrics
        self._policy = policy or PollingPolicy()
        self._is_polling = False
        self._looked_at = -math.inf
        self._found = 0
        self._stop_polling = asyncio.Event()  # set when this worker has no reason to poll any more
        self._news = asyncio.Event()  # set when this worker may have to poll, to recheck or to stop
        # A recheck is due while fewer are done than were requested: a request may come while one runs.
        self._rechecks_requested = 0
        self._rechecks_done = 0
        self._recheck_at = -math.inf
        self._backoff = Backoff(0.5, 0.5)
        self._stopping = False
        self._stopped = asyncio.Event()

    @property
    def must_recheck(self) -> bool:
        """Whether a requested recheck is not done yet."""
        return self._rechecks_done < self._rechecks_requested

    def notified(self) -> None:
        """A notification has come."""
        now = time.monotonic()
        self._policy.notified(now)
        if not self._is_polling and self._policy.want(now) is not Want.SLEEP:
            self._news.set()

    def request_recheck(self) -> None:
        """Some worker held, or may have held, the polling lock, so inserts may not have notified.

        That worker may be this one, on a connection that is gone. If this worker polls now it stops, to recheck.
        """
        self._rechecks_requested += 1
        self._stop_polling.set()
        self._news.set()

    def poll_delay(self, found: int) -> float | None:
        """Learns what a claim open to both priorities has found. Call it after each one, also while no worker polls.

        Returns the seconds until the next poll, or None to sleep until notified.
        """
        self._looked_at, self._found = time.monotonic(), found
        if not self._is_polling:
            return None
        if self._doorbell.queue_is_full and not found:
            return _POLL_DELAY_WHILE_FULL_S
        if self._policy.looked(self._looked_at, found):
            self._stop_polling.set()
        return min(_POLL_DELAY_S + found * _POLL_DELAY_PER_ROW_S, _LONGEST_POLL_DELAY_S)

    def stop(self) -> None:
        """Ends this worker's polling and rechecks. If it polled, ``run`` notifies the others."""
        self._stopping = True
        self._stop_polling.set()
        self._news.set()

    async def wait_stopped(self, seconds: float) -> None:
        """Returns when what ``stop`` asks for is done, or after ``seconds``."""
        await is_set_within(self._stopped, seconds)

    async def run(self) -> None:
        """Works until cancelled, or until what ``stop`` asks for is done."""
        try:
            while not self._stopping:
                try:
                    await self._news.wait()
                    self._news.clear()
                    await self._poll()
                    await self._recheck()
                except (psycopg.Error, TimeoutError):
                    self._metrics.database_errors.labels("polling").inc()
                    self._rechecks_requested += 1  # the lock may have been taken or released unnoticed
                    self._news.set()
                    await asyncio.sleep(self._backoff.failed())
                else:
                    self._backoff.succeeded()
        finally:
            self._stopped.set()

    async def _poll(self) -> None:
        """Takes the lock, if this worker wants it and can have it, and holds it while many rows come."""
        want = Want.POLL if self._doorbell.queue_is_full else self._policy.want(time.monotonic())
        if want is Want.SLEEP or self._stopping:
            return
        self._policy.tried(time.monotonic())
        self._stop_polling.clear()
        if not await self._take_lock(0 if want is Want.POLL else _CROWD):
            return
        self._rechecks_requested += 1  # for when this worker has stopped; request_recheck would stop it now
        self._policy.started(time.monotonic())
        self._is_polling = True
        self._metrics.busy_polling.set(1)
        self._metrics.busy_polling_started.inc()
        self._look.notify()
        try:
            await self._hold()
            if self._stopping and not self._doorbell.queue_is_full:
                await self._doorbell.fetchone(_STOP_AND_NOTIFY, *POLLING_LOCK, CHANNEL)
            else:
                await self._doorbell.fetchone(_STOP, *POLLING_LOCK)
        finally:
            self._is_polling = False
            self._metrics.busy_polling.set(0)
            self._policy.stopped(time.monotonic())

    async def _take_lock(self, crowd: int) -> bool:
        # If the lock is taken and the answer is lost, the lock ends with the connection; the next one rechecks.
        if self._doorbell.queue_is_full:
            taken, *_ = await self._doorbell.fetchone(_START_SILENTLY, *POLLING_LOCK)
        else:
            taken, *_ = await self._doorbell.fetchone(
                _START, *POLLING_LOCK, crowd, crowd, CHANNEL, str(self._workers.worker_id)
            )
        return bool(taken)

    async def _hold(self) -> None:
        """Returns when the lock is to be released.

        A worker that cannot claim, for example while FCM hangs, does not see new rows. It releases the lock after a
        while, so that the other workers are notified.
        """
        while self._doorbell.queue_is_full and self._doorbell.connected and not self._stopping:
            self._stop_polling.clear()
            await is_set_within(self._stop_polling, _UNOBSERVED_AFTER_S)
        unobserved_until = time.monotonic() + self._policy.longest_unobserved
        while not await is_set_within(self._stop_polling, _UNOBSERVED_AFTER_S):
            if not self._observes_queue and time.monotonic() >= unobserved_until:
                return

    async def _recheck(self) -> None:
        """Does every requested recheck, unless there is a reason to begin again, or to poll.

        Then the requests stay, and ``run`` comes back here.
        """
        if not self.must_recheck or self._stopping:
            return
        await asyncio.sleep(self._recheck_at - time.monotonic())
        self._recheck_at = time.monotonic() + _BETWEEN_RECHECKS_S
        requested = await self._look_while_locked()
        if await self._look_until_writers_end():
            self._rechecks_done = requested

    async def _look_while_locked(self) -> int:
        """Step 1; returns the number of rechecks that were requested before the lock was last seen taken."""
        requested = self._rechecks_requested
        while not self._stopping and await self._answer(self._workers.is_polling_locked()):
            self._look.notify()
            found, self._found = self._found, 0
            await asyncio.sleep(_WATCH_CLOSELY_S if found else _WATCH_S)
            requested = self._rechecks_requested
        return requested

    async def _look_until_writers_end(self) -> bool:
        """Steps 2 and 3; returns False if it ends early, because this worker may have to begin again, or to poll."""
        open_writers = await self._answer(self._workers.open_writers())
        began = time.monotonic()
        self._look.notify()
        try:
            while open_writers:
                self._metrics.unnotified.set(len(open_writers))
                if await is_set_within(self._news, _wait_after(time.monotonic() - began)):
                    return False
                left = open_writers & await self._answer(self._workers.open_writers())
                if left != open_writers:
                    self._look.notify()
                open_writers = left
        finally:
            self._metrics.unnotified.set(0)
        return True

    async def _answer(self, question: Coroutine[object, object, T]) -> T:
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            return await question

    @property
    def _observes_queue(self) -> bool:
        """Whether this worker has looked at the queue lately, for both priorities."""
        return time.monotonic() - self._looked_at < _UNOBSERVED_AFTER_S


def _wait_after(seconds: float) -> float:
    """Seconds until the worker asks again which transactions are open, when it has waited for ``seconds`` so far."""
    return min(max(_PART_OF_WAIT * seconds, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
