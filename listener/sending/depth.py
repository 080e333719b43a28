"""Keeps the ``push_queue_*`` metrics fresh."""

from __future__ import annotations

import asyncio
import math
import time

import psycopg

from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.queue import Queue
from listener.sending.dispatcher import Dispatcher

_IDLE_INTERVAL_S = 300.0
_TIDY_INTERVAL_S = 600.0


class DepthWatch:
    """Counts the queue, often while there is work and seldom while there is none.

    Args:
        interval: seconds between two counts while there is work.
    """

    def __init__(self, queue: Queue, dispatcher: Dispatcher, metrics: Metrics, *, interval: float) -> None:
        self._queue = queue
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._interval = interval
        self._tidied_at = -math.inf

    async def run(self) -> None:
        """Works until cancelled."""
        seen, read_at, busy = -1, 0.0, False
        while True:
            looks, now = self._dispatcher.looks, time.monotonic()
            if looks != seen or busy or now - read_at >= _IDLE_INTERVAL_S:
                try:
                    async with asyncio.timeout(STATEMENT_PATIENCE_S):
                        depth = await self._queue.depth()
                        if depth.unwritable:
                            await self._queue.unwritable.retry()
                            await self._tidy()
                except (psycopg.Error, TimeoutError):
                    self._metrics.database_errors.labels("depth").inc()
                else:
                    self._metrics.show_depth(depth.counts, depth.due, depth.oldest_due, depth.unwritable)
                    self._metrics.notify_queue.set(depth.notify_queue)
                    seen, read_at = looks, now
                    busy = depth.due > 0 or depth.counts["processing"] > 0
            await asyncio.sleep(self._interval)

    async def _tidy(self) -> None:
        """Now and then deletes what is noted of rows that can be written."""
        if time.monotonic() - self._tidied_at >= _TIDY_INTERVAL_S:
            self._tidied_at = time.monotonic()
            await self._queue.unwritable.tidy()
