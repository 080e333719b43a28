"""Peers: notices that another worker has died, and puts its rows back into the queue at once.

While no peer holds a row nothing is asked: there is nothing to take over, and rows cannot be claimed without the bell
having rung or their time having come, which wakes every worker alike.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from listener.metrics import Metrics
from listener.queue import Queue

log = structlog.get_logger(__name__)

# Two looks must agree, so that a doorbell that is just being replaced is not taken for a death.
_BETWEEN_LOOKS_S = (0.6, 0.8)
_ATTENTIVE_S = 3.0


class PeerWatch:
    """Looks after the rows of peers while there is anything going on."""

    def __init__(self, rows: Queue, metrics: Metrics, on_rescue: Callable[[], None]) -> None:
        self._rows = rows
        self._metrics = metrics
        self._on_rescue = on_rescue
        self._stirred = asyncio.Event()
        self._attentive_until = 0.0
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def stir(self) -> None:
        """Something goes on: somebody may have claimed rows just now."""
        self._attentive_until = time.monotonic() + _ATTENTIVE_S
        self._stirred.set()

    async def run(self) -> None:
        """Watches until cancelled; looks at once, for those who died before this worker began."""
        suspects: set[int] = set()
        while True:
            self._stirred.clear()
            dead: set[int] = set()
            try:
                peers = await self._rows.peers()
                silent = {peer for peer, alive in peers if not alive}
                dead = silent & suspects
                if dead:
                    await self._rescue(dead)
                attentive = time.monotonic() < self._attentive_until
                watching = bool(peers) and (attentive or await self._rows.peers_hold_rows())
            except (psycopg.Error, PoolTimeout):
                self._metrics.database_errors.labels("peers").inc()
                suspects = set()
                await asyncio.sleep(1.0)
                continue
            suspects = silent - dead
            if not suspects and not watching:
                await self._stirred.wait()
            await asyncio.sleep(self._rng.uniform(*_BETWEEN_LOOKS_S))

    async def _rescue(self, dead: set[int]) -> None:
        rescued = await self._rows.rescue(dead)
        self._metrics.rescued.inc(rescued)
        log.warning("workers have died; their rows are back in the queue", workers=sorted(dead), rows=rescued)
        self._on_rescue()
