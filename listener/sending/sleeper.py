"""Sleeps between two looks at the queue, until a notification comes or a row is due."""

from __future__ import annotations

import asyncio
import math
import random
import time

from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.frontier import WHOLE, Begin
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue
from listener.sending.behind import LooksBehind
from listener.sending.held import HeldRows
from listener.sending.reach import Reach
from listener.wakeup.waker import Waker

# uvloop counts in whole milliseconds, and its timers fire up to one millisecond too early.
_TIMERS_EARLY_S = 0.01

_LOCKED_FIRST_S, _LOCKED_AT_MOST_S = 0.01, 0.5


class Sleeper:
    """Asks when the next row is due, and sleeps until then.

    Now and then it sweeps: it asks the same without a reason, and also what may have gone wrong (see ``Sweep``).

    Args:
        waker: wakes the sleeper, and learns what a sweep has found.
        held: the rows that this worker holds; it does not wake up for them.
        behind: looks for rows that questions do not see.
        lock_watch: learns which foreign sessions hold locks of push-listener.
        sweep_interval: seconds between two sweeps, at most.
    """

    def __init__(
        self,
        queue: Queue,
        waker: Waker,
        held: HeldRows,
        behind: LooksBehind,
        reach: Reach,
        lock_watch: LockWatch,
        *,
        sweep_interval: float,
    ) -> None:
        self._queue = queue
        self._waker = waker
        self._look = waker.look
        self._held = held
        self._behind = behind
        self._reach = reach
        self._lock_watch = lock_watch
        self._sweep_interval = sweep_interval
        self._sweep_at = -math.inf
        self._passed_over = 0  # looks in a row that brought nothing although a row was due
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def note_rows(self) -> None:
        """A claim has brought rows."""
        self._passed_over = 0

    async def sleep(self) -> None:
        """Returns when the queue is to be looked at. Raises psycopg.Error or TimeoutError."""
        began = time.monotonic()
        while True:
            self._look.prepare_to_sleep()
            next_look_behind = self._behind.start_if_due()
            begin = self._queue.frontier.begin_question(time.monotonic())
            earliest = await self.ask_or_sweep(begin)
            self._reach.look_succeeded()
            if earliest is not None and earliest <= 0.0:
                # The row fell due after the claim, or another transaction has locked it, perhaps for long.
                slept = time.monotonic() - began
                await self._look.wait(max(0.0, _wait_for_locked(self._passed_over) - slept))
                self._passed_over += 1
                return
            if begin.is_whole:  # only a whole question would have found a locked row
                self._passed_over = 0
            until_due = math.inf if earliest is None else earliest
            until_sweep = max(0.0, self._sweep_at - time.monotonic())
            if await self._look.sleep(min(until_due, until_sweep, begin.ahead, next_look_behind)):
                return

    async def ask_or_sweep(self, begin: Begin = WHOLE) -> float | None:
        """Seconds until the first row is due; None: no row waits. If a sweep is due, it asks this too."""
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            if time.monotonic() < self._sweep_at - _TIMERS_EARLY_S:
                return await self._queue.earliest(self._held.near_lease_end, begin)
            return await self._sweep(begin)

    async def _sweep(self, begin: Begin) -> float | None:
        frontier = self._queue.frontier
        if frontier.is_expensive:  # then a look behind searches the whole range
            frontier.want_whole_look(time.monotonic())
        else:
            begin = WHOLE
        sweep = await self._queue.sweep(self._held.near_lease_end, begin)
        self._sweep_at = time.monotonic() + self._sweep_interval * self._rng.uniform(0.9, 1.0)
        self._lock_watch.saw(sweep.strangers)
        self._waker.swept(sweep)
        return sweep.earliest


def _wait_for_locked(looks: int) -> float:
    """Seconds until the next look, after ``looks`` looks in a row that found a due row locked."""
    return 0.0 if looks == 0 else min(_LOCKED_AT_MOST_S, _LOCKED_FIRST_S * 2.0 ** min(looks - 1, 10))
