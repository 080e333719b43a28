"""Peers: notices that another worker has died, and puts its rows back into the queue at once.

While no peer holds a row nothing is asked: there is nothing to take over. A peer can only claim what the bell has rung
for, which this worker hears as well; what falls due at a time that was known when the last row was let go; or, while
it is awake (see awake.py), what comes then, and then this worker looks at the queue now and then.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.queue import Queue
from listener.postgres.workers import Workers
from listener.waiting import wait

log = structlog.get_logger(__name__)

# Two looks must agree, so that a doorbell that is just being replaced is not taken for a death.
_BETWEEN_LOOKS_S = (0.6, 0.8)
_ATTENTIVE_S = 3.0


class PeerWatch:
    """Looks after the rows of peers while there is anything going on.

    Args:
        is_steady: whether this worker's own connection stands and has done so for a while. If not, a peer's silence may
            have the same reason, and is not held against it.
        on_due: called when there may be something to claim that no bell will ring for.
        on_death: called when a worker is found to have died, before ``on_due``.
        on_losses: called with the number of workers that have died lately, before the rows of the last are put back.
    """

    def __init__(
        self,
        rows: Queue,
        workers: Workers,
        metrics: Metrics,
        *,
        is_steady: Callable[[], bool],
        on_due: Callable[[], None],
        on_death: Callable[[], None],
        on_losses: Callable[[int], None],
    ) -> None:
        self._rows = rows
        self._workers = workers
        self._metrics = metrics
        self._is_steady = is_steady
        self._on_due = on_due
        self._on_death = on_death
        self._on_losses = on_losses
        self._stirred = asyncio.Event()
        self._attentive_until = 0.0
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def stir(self) -> None:
        """Something goes on: somebody may have claimed rows just now."""
        self._attentive_until = time.monotonic() + _ATTENTIVE_S
        self._stirred.set()

    async def run(self) -> None:
        """Watches until cancelled; begins at once, for those who died before this worker began."""
        suspects: set[int] = set()
        while True:
            nap: float | None = 0.0
            if self._is_steady():
                self._stirred.clear()
                try:
                    async with asyncio.timeout(STATEMENT_PATIENCE_S):
                        peers = await self._workers.peers()
                        suspects = await self._look(peers, suspects)
                        if not suspects:
                            nap = await self._quiet_for(bool(peers))
                except (psycopg.Error, PoolTimeout, TimeoutError):
                    self._metrics.database_errors.labels("peers").inc()
                    suspects = set()
            else:
                suspects = set()
            if nap != 0.0:
                await self._sleep(nap)
            await asyncio.sleep(self._rng.uniform(*_BETWEEN_LOOKS_S))

    async def _look(self, peers: Mapping[int, bool], suspects: set[int]) -> set[int]:
        """Puts back the rows of suspects who are silent still; returns who else is silent."""
        silent = {peer for peer, alive in peers.items() if not alive}
        if lost := silent & suspects:
            self._on_losses(await self._workers.lost_lately() + len(lost))
            dead, rescued = await self._workers.rescue(lost)
            if dead:
                self._metrics.rescued.inc(rescued)
                log.warning(
                    "workers have died; their rows are back in the queue", workers=sorted(dead), rows=rescued
                )
                self._on_death()
                self._on_due()
            silent -= set(dead)
        return silent

    async def _quiet_for(self, has_peers: bool) -> float | None:
        """Seconds for which no peer can hold a row unless the bell rings; 0: one may now. None: without end."""
        if has_peers and (time.monotonic() < self._attentive_until or await self._workers.peers_hold_rows()):
            return 0.0
        earliest = await self._rows.earliest()
        if earliest is not None and earliest <= 0.0:
            # The worker that knew of it may have died since, without holding anything.
            self._on_due()
            return 0.0
        return earliest

    async def _sleep(self, seconds: float | None) -> None:
        if not await wait(self._stirred, seconds):
            self.stir()
            self._on_due()
