"""Peers: notices that another worker has died, and puts its rows back into the queue at once.

While no peer holds a row, this worker asks nothing, because there is nothing to take over. It knows when a peer may
claim a row: a notification comes to both; or the row falls due at a time that was known when the last row was settled;
or this worker rechecks the queue, because the peer polls (see busy_polling.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import psycopg
import structlog

from listener.metrics.own import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.queue import Queue
from listener.postgres.workers import Workers
from listener.waiting import is_set_within
from listener.wakeup.busy_polling import BusyPolling
from listener.wakeup.doorbell import Doorbell
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)

# Two looks must agree, so that a worker that is just replacing its doorbell's connection is not taken for dead.
_BETWEEN_LOOKS_S = (0.6, 0.8)


class ExpectsLosses(Protocol):
    """Decides how carefully to send; see :class:`listener.limits.health.FcmHealth`."""

    def expect_losses(self, lost: int, most: int, now: float) -> None:
        """``lost`` workers have died lately, and the next may die of the same pushes."""
        ...


@dataclass(frozen=True, slots=True)
class _Pause:
    """A time in which no peer can hold a row unless there is activity."""

    seconds: float | None
    """None: without end."""
    is_due_then: bool = True
    """Whether a row falls due when the pause ends; False: nobody knows what is due then."""


_NO_PAUSE = _Pause(0.0)


class PeerWatch:
    """Takes over the rows of dead peers, while there is any activity.

    Args:
        doorbell: this worker's own connection. Unless it is steady, what cut it may also cause the silence of a peer.
        polling: rechecks the queue after a death.
        look: is notified when there may be something to claim for which no notification comes.
        health: learns how many workers have died, before the rows of the dead are put back.
        max_in_flight: pushes that this worker has in flight, at most.
        attentive: seconds of attention after the last activity.
    """

    def __init__(
        self,
        queue: Queue,
        workers: Workers,
        doorbell: Doorbell,
        polling: BusyPolling,
        look: LookSignal,
        health: ExpectsLosses,
        metrics: Metrics,
        *,
        max_in_flight: int,
        attentive: float = 3.0,
    ) -> None:
        self._queue = queue
        self._workers = workers
        self._doorbell = doorbell
        self._polling = polling
        self._look = look
        self._health = health
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._attentive = attentive
        # Workers that are known to be dead, while other transactions have locked some of their rows.
        self._known_dead: set[int] = set()
        self._activity = asyncio.Event()
        self._attentive_until = 0.0
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy

    def note_activity(self) -> None:
        """A worker may have claimed rows just now."""
        self._attentive_until = time.monotonic() + self._attentive
        self._activity.set()

    async def run(self) -> None:
        """Watches until cancelled; begins at once, for those who died before this worker began."""
        suspects: set[int] = set()
        while True:
            pause = _NO_PAUSE
            if self._doorbell.steady:
                self._activity.clear()
                try:
                    async with asyncio.timeout(STATEMENT_PATIENCE_S):
                        peers = await self._workers.peers()
                        suspects = await self._look_at(peers, suspects)
                        if not suspects:
                            pause = await self._quiet_for(bool(peers))
                except (psycopg.Error, TimeoutError):
                    self._metrics.database_errors.labels("peers").inc()
                    suspects = set()
            else:
                suspects = set()
            if pause.seconds != 0.0:
                await self._pause(pause)
            await asyncio.sleep(self._rng.uniform(*_BETWEEN_LOOKS_S))

    async def _look_at(self, peers: Mapping[int, bool], suspects: set[int]) -> set[int]:
        """Puts back the rows of suspects who are still silent; returns the other silent peers."""
        silent = {peer for peer, alive in peers.items() if not alive}
        if lost := silent & suspects:
            if not lost <= self._known_dead:
                dying = await self._workers.lost_lately() + len(lost)
                self._health.expect_losses(dying, self._max_in_flight, time.monotonic())
            self._known_dead = lost
            dead, rescued, rows = await self._workers.rescue(lost)
            if dead or rescued:
                self._metrics.rescued.inc(rescued)
                log.warning(
                    "workers have died; their rows are back in the queue", workers=sorted(lost), rows=rescued
                )
                self._polling.request_recheck()
                self._queue.frontier.want_whole_look_at_once(time.monotonic())
                self._queue.frontier.found_early(rows)
                self._look.notify()
            silent -= set(dead)
        return silent

    async def _quiet_for(self, has_peers: bool) -> _Pause:
        """For how long no peer can hold a row unless there is activity."""
        if has_peers and (time.monotonic() < self._attentive_until or await self._workers.peers_hold_rows()):
            return _NO_PAUSE
        frontier = self._queue.frontier
        begin = frontier.begin_question(time.monotonic())
        if not (begin.is_whole or frontier.is_expensive):
            return _NO_PAUSE  # a whole question was asked just now, and the next one may be asked soon
        earliest = await self._queue.earliest(begin=begin)
        if earliest is not None and earliest <= 0.0:
            # The worker that was notified of this row may have died before it claimed the row.
            self._look.notify()
            return _NO_PAUSE
        if earliest is None and not begin.is_whole:
            return _Pause(begin.ahead, is_due_then=False)
        return _Pause(earliest)

    async def _pause(self, pause: _Pause) -> None:
        is_active = await is_set_within(self._activity, pause.seconds)
        if not is_active and pause.is_due_then:
            self.note_activity()
            self._look.notify()
