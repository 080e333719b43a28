"""Looks for rows below the floors of the frontier, while claims go on; see :mod:`listener.postgres.frontier`."""

from __future__ import annotations

import asyncio
import math
import time

import psycopg
import structlog

from listener.metrics.own import Metrics
from listener.postgres.errors import fault_name
from listener.postgres.queue import Queue
from listener.sending.held import HeldRows
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)

# With ten million dead entries in the index a look takes some ten seconds.
_PATIENCE_S = 120.0

# Timers may fire this much too early.
_TIMERS_EARLY_S = 0.01


class LooksBehind:
    """Makes the looks behind that the frontier of a queue wants, one at a time.

    Args:
        held: names the rows that this worker still sends although their lease may have ended.
        look: is notified when a look has found rows.
    """

    def __init__(self, queue: Queue, held: HeldRows, look: LookSignal, metrics: Metrics) -> None:
        self._queue = queue
        self._held = held
        self._look = look
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None

    def start_if_due(self) -> float:
        """Begins a look if one is due; returns in how many seconds to call this again."""
        due_in = self._queue.frontier.look_behind_in(time.monotonic())
        if due_in is None or self._task is not None:
            return math.inf
        if due_in > _TIMERS_EARLY_S:
            return due_in
        self._task = asyncio.create_task(self._run())
        return math.inf

    async def stop(self) -> None:
        """Ends a look that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = await self._queue.look_behind(self._held.near_lease_end)
        except (psycopg.Error, TimeoutError) as error:
            self._metrics.database_errors.labels("look").inc()
            log.warning("cannot look for earlier rows", error=fault_name(error))
            self._queue.frontier.want_whole_look_at_once(time.monotonic())
            found = False
        finally:
            self._task = None
        # The dispatcher may be about to sleep until after the next look.
        if found or self._queue.frontier.look_behind_in(time.monotonic()) is not None:
            self._look.notify()
