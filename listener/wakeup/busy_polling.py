"""Being awake: while one listener looks at the queue all the time, inserts need not ring.

Transactions that notify commit one after another, so a bell for each insert makes many inserts slow. A listener that
hears the bell very often takes the lock POLLING_LOCK. While it is taken the triggers do not ring, and the listener
looks at the queue every few milliseconds. When little comes any more it lets the lock go, and sleeps.

No wake-up is lost by that, because a listener that knows, or cannot exclude, that somebody was awake is in doubt, and
before it sleeps it settles that:

1. While the lock is taken, by a worker or by anybody else, it looks at the queue four times a second, and more often
   as long as that brings something: the holder may be frozen, or unable to claim.
2. Then it asks which transactions are open that have written to the queue, and looks at the queue. An insert that
   found the lock taken was there before it was let go: it is in the queue now, or in one of those transactions.
3. While one of those is open it asks again, and looks at the queue whenever one has ended.

Step 2 asks with a statement of its own, begun when the lock was known to be free: what Postgres tells of locks is not
of one instant. Who takes the lock tells the others in the same transaction, and so puts them in doubt; so does every
LISTEN, which may have come too late to hear it, and the death of another, which may have been on the point of telling.
Whoever was awake may die at any moment: each of the others, and the next to start, does all of this by itself.

Any login may take the lock and tell nobody. Therefore a worker that is asleep asks with each sweep (see dispatcher.py)
whether the lock is taken, and is in doubt if it is. If the lock was taken and let go between two sweeps, the second
sweep finds the rows for which nobody rang.

tests/model/awake.pml is a model of it, in which every step is needed.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.locks import CHANNEL, POLLING_LOCK
from listener.postgres.workers import Workers
from listener.waiting import wait
from listener.wakeup.doorbell import Doorbell
from listener.wakeup.polling_policy import PollingPolicy, Want

T = TypeVar("T")

# The more a look brings, the longer the next one waits: a claim of fifty costs little more than a claim of one.
_BETWEEN_LOOKS_S = 0.001
_MORE_FOR_A_ROW_S = 0.0001
_MOST_BETWEEN_LOOKS_S = 0.003
_WATCH_S = 0.25
_WATCH_CLOSELY_S = 0.03
_NOT_LOOKING_S = 1.0

# Any login may send the notification that puts a worker in doubt, as often as it likes.
_BETWEEN_SETTLEMENTS_S = 0.05

_CROWD = 3

# A row waits for at most so much of its transaction's length longer than it must.
_PART_OF_WAIT = 0.25
_LEAST_WAIT_S = 0.002
_MOST_WAIT_S = 30.0

# It never waits, for who rings has the lock for an instant only. With a crowd, only when so many wait to commit a
# notification: they queue for a lock on "database 0".
_TAKE = """
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
_LET_GO = "select pg_catalog.pg_advisory_unlock(%s, %s)"
_LET_GO_AND_RING = "select pg_catalog.pg_advisory_unlock(%s, %s), pg_catalog.pg_notify(%s, '')"


class BusyPolling:
    """Decides when this worker is awake, and sees to it that nothing is missed afterwards.

    Args:
        worker_id: told to the others.
        on_due: called when the queue is to be looked at.
    """

    def __init__(
        self,
        workers: Workers,
        doorbell: Doorbell,
        metrics: Metrics,
        *,
        worker_id: int,
        on_due: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._doorbell = doorbell
        self._metrics = metrics
        self._worker = worker_id
        self._on_due = on_due
        self._pace = PollingPolicy()
        self._is_awake = False
        self._looked_at = -math.inf
        self._found = 0
        self._rest = asyncio.Event()  # set: no reason any more to be awake
        self._news = asyncio.Event()  # set: something may have to be done
        # Each doubt has a number; the sleeper may sleep when all are settled.
        self._doubts = 0
        self._settled = 0
        self._settle_at = -math.inf
        self._stopping = False
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def heard(self) -> None:
        """The bell rang."""
        now = time.monotonic()
        self._pace.rang(now)
        if not self._is_awake and self._pace.want(now) is not Want.SLEEP:
            self._news.set()

    def doubt(self) -> None:
        """Somebody else is or was awake, or may have been; also if it was this worker, on a connection that is gone."""
        self._doubts += 1
        self._rest.set()
        self._news.set()

    def nap(self, found: int) -> float | None:
        """Hears of a look for all that is due; returns the seconds until the next if that was all. None: sleep."""
        self._looked_at, self._found = time.monotonic(), found
        if not self._is_awake:
            return None
        if self._pace.looked(self._looked_at, found):
            self._rest.set()
        return min(_BETWEEN_LOOKS_S + found * _MORE_FOR_A_ROW_S, _MOST_BETWEEN_LOOKS_S)

    def stop(self) -> None:
        """This worker looks at the queue no more: the others are to know at once."""
        self._stopping = True
        self._rest.set()
        self._news.set()

    async def run(self) -> None:
        """Does its work until cancelled, or until what is to be done after ``stop`` is done."""
        while not self._stopping:
            try:
                await self._news.wait()
                self._news.clear()
                await self._be_awake()
                await self._settle()
            except (psycopg.Error, PoolTimeout, TimeoutError):
                self._metrics.database_errors.labels("awake").inc()
                self._doubts += 1
                self._news.set()
                await asyncio.sleep(self._rng.uniform(0.1, 0.5))

    async def _be_awake(self) -> None:
        """Takes the lock, if it is wanted and can be had, and keeps it for as long as much comes."""
        want = self._pace.want(time.monotonic())
        if want is Want.SLEEP or self._stopping:
            return
        self._pace.tried(time.monotonic())
        self._rest.clear()
        crowd = 0 if want is Want.AWAKE else _CROWD
        # Had without our hearing of it, the lock goes with the connection, and that is a doubt like any other.
        taken, _ = await self._doorbell.ask(_TAKE, *POLLING_LOCK, crowd, crowd, CHANNEL, str(self._worker))
        if not taken:
            return
        self._doubts += 1
        self._pace.took(time.monotonic())
        self._is_awake = True
        self._metrics.awake.set(1)
        self._metrics.awakenings.inc()
        self._on_due()
        try:
            # Who cannot claim, as while FCM hangs, does not know what comes: now and then it lets the bell tell. Kept
            # for good, the lock would keep the others from hearing of anything.
            blind_until = time.monotonic() + self._pace.blind
            while not await wait(self._rest, _NOT_LOOKING_S) and (
                self._looks or time.monotonic() < blind_until
            ):
                pass
            if self._stopping:
                await self._doorbell.ask(_LET_GO_AND_RING, *POLLING_LOCK, CHANNEL)
            else:
                await self._doorbell.ask(_LET_GO, *POLLING_LOCK)
        finally:
            self._is_awake = False
            self._metrics.awake.set(0)
            self._pace.let_go(time.monotonic())

    async def _settle(self) -> None:
        """Settles all doubts, unless there is a reason to begin anew, or to be awake."""
        if self._settled == self._doubts or self._stopping:
            return
        await asyncio.sleep(self._settle_at - time.monotonic())
        self._settle_at = time.monotonic() + _BETWEEN_SETTLEMENTS_S
        doubts = self._doubts
        while not self._stopping and await self._answer(self._workers.is_polling_locked()):
            self._on_due()
            found, self._found = self._found, 0
            await asyncio.sleep(_WATCH_CLOSELY_S if found else _WATCH_S)
            doubts = self._doubts
        hidden = await self._answer(self._workers.open_writers())
        began = time.monotonic()
        self._on_due()
        try:
            while hidden:
                self._metrics.unrung.set(len(hidden))
                if await wait(self._news, _wait_after(time.monotonic() - began)):
                    return
                left = hidden & await self._answer(self._workers.open_writers())
                if left != hidden:
                    self._on_due()
                hidden = left
        finally:
            self._metrics.unrung.set(0)
        self._settled = doubts

    async def _answer(self, asked: Coroutine[object, object, T]) -> T:
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            return await asked

    @property
    def _looks(self) -> bool:
        """Whether the queue has been looked at lately, for all that is due."""
        return time.monotonic() - self._looked_at < _NOT_LOOKING_S


def _wait_after(seconds: float) -> float:
    """How long to wait before asking again who has not ended yet, having waited for so long."""
    return min(max(_PART_OF_WAIT * seconds, _LEAST_WAIT_S), _MOST_WAIT_S)
