"""When a worker looks at the queue: on a notification and while it polls, or every few seconds."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from listener.metrics.own import Metrics
from listener.postgres.connect import Address, ServicePool
from listener.postgres.errors import Condition
from listener.postgres.queue import Queue, Sweep
from listener.postgres.workers import Workers
from listener.wakeup.busy_polling import BusyPolling
from listener.wakeup.doorbell import Doorbell, Topic
from listener.wakeup.identity import ROW_IS_GONE, IdentityLost
from listener.wakeup.look_signal import LookSignal
from listener.wakeup.peers import ExpectsLosses, PeerWatch

log = structlog.get_logger(__name__)

_TELL_PEERS_S = 1.0


class Waker(Protocol):
    """Wakes the dispatcher."""

    @property
    def look(self) -> LookSignal:
        """Set when the queue is to be looked at."""
        ...

    def may_claim(self) -> bool:
        """Whether peers can see that this worker lives. If not, they would take over the rows that it claims."""
        ...

    @property
    def condition(self) -> Condition | None:
        """What keeps the worker from listening, if its last try to connect failed."""
        ...

    def note_look(self) -> None:
        """The worker looks at the queue now."""
        ...

    def poll_delay(self, found: int) -> float | None:
        """Learns what a look at both priorities has found; returns the seconds until the next poll.

        None: sleep until a notification comes or a row is due.
        """
        ...

    def swept(self, sweep: Sweep) -> None:
        """Learns what a sweep has found."""
        ...

    def stop(self) -> None:
        """The worker stops looking at the queue, and lets its peers know."""
        ...

    async def finish(self) -> None:
        """Returns once the peers know, or after a second."""
        ...

    async def run(self) -> IdentityLost:
        """Works until cancelled, or until the worker cannot go on under its id."""
        ...


class ListeningWaker:
    """Listens, polls while much is inserted, and watches its peers.

    Args:
        address: leads to the server itself, or to a pooler in session mode.
        pool: leaves a connection to the doorbell if there are few.
        health: learns how many workers have died.
        heartbeat: seconds of silence after which the LISTEN connection has to prove itself.
        max_in_flight: pushes that this worker has in flight, at most.
    """

    def __init__(
        self,
        address: Address,
        pool: ServicePool,
        queue: Queue,
        workers: Workers,
        health: ExpectsLosses,
        metrics: Metrics,
        *,
        heartbeat: float,
        max_in_flight: int,
    ) -> None:
        self.look = LookSignal()
        self.doorbell = Doorbell(
            address,
            workers.worker_id,
            metrics,
            heartbeat=heartbeat,
            incarnation=workers.incarnation,
            pool=pool,
        )
        self.polling = BusyPolling(workers, self.doorbell, self.look, metrics)
        self.peers = PeerWatch(
            queue,
            workers,
            self.doorbell,
            self.polling,
            self.look,
            health,
            metrics,
            max_in_flight=max_in_flight,
        )
        self.doorbell.subscribe(Topic.NOTIFIED, self.polling.notified)
        self.doorbell.subscribe(Topic.NOTIFIED, self.look.notify)
        self.doorbell.subscribe(Topic.NOTIFIED, self.peers.note_activity)
        self.doorbell.subscribe(Topic.RECHECK, self.polling.request_recheck)
        self._row_lost = asyncio.Event()
        self._unseen = 0  # the number of the doorbell's connection that the last sweep did not see

    def may_claim(self) -> bool:
        """See :class:`Waker`."""
        return self.doorbell.connected

    @property
    def condition(self) -> Condition | None:
        """See :class:`Waker`."""
        return self.doorbell.condition

    def note_look(self) -> None:
        """See :class:`Waker`."""
        self.peers.note_activity()

    def poll_delay(self, found: int) -> float | None:
        """See :class:`Waker`."""
        return self.polling.poll_delay(found)

    def swept(self, sweep: Sweep) -> None:
        """See :class:`Waker`."""
        if sweep.polling_locked:
            self.polling.request_recheck()
        if not sweep.registered:
            self._row_lost.set()
        elif not sweep.guarded and self.doorbell.connected:
            self._not_seen()

    def _not_seen(self) -> None:
        """The doorbell holds the liveness lock, and a sweep of the pool did not see it.

        If the next sweep does not see it either, the doorbell and the pool lead to two servers. One sweep is not
        enough, because the lock may have been taken just after it.
        """
        if self._unseen == self.doorbell.connections:
            log.warning("the doorbell listens at another server than that of DATABASE_URL: connecting again")
            self.doorbell.replace()
        self._unseen = self.doorbell.connections

    def stop(self) -> None:
        """See :class:`Waker`."""
        self.polling.stop()

    async def finish(self) -> None:
        """See :class:`Waker`."""
        await self.polling.wait_stopped(_TELL_PEERS_S)

    async def run(self) -> IdentityLost:
        """See :class:`Waker`."""
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(part.run()) for part in (self.polling, self.peers)]
            listening = group.create_task(self.doorbell.run())
            row_lost = group.create_task(self._row_lost.wait())
            await asyncio.wait({listening, row_lost}, return_when=asyncio.FIRST_COMPLETED)
            lost = listening.result() if listening.done() else IdentityLost(ROW_IS_GONE, is_own=False)
            for task in (*background, listening, row_lost):
                task.cancel()
        return lost


class SweepingWaker:
    """Does not listen, as behind a transaction pooler: the dispatcher learns of inserts only from its own looks."""

    def __init__(self) -> None:
        self.look = LookSignal()
        self._row_lost = asyncio.Event()

    def may_claim(self) -> bool:
        """See :class:`Waker`."""
        return True

    @property
    def condition(self) -> Condition | None:
        """See :class:`Waker`."""
        return None

    def note_look(self) -> None:
        """See :class:`Waker`."""

    def poll_delay(self, found: int) -> float | None:
        """See :class:`Waker`."""
        return None

    def swept(self, sweep: Sweep) -> None:
        """See :class:`Waker`."""
        if not sweep.registered:
            self._row_lost.set()

    def stop(self) -> None:
        """See :class:`Waker`."""

    async def finish(self) -> None:
        """See :class:`Waker`."""

    async def run(self) -> IdentityLost:
        """See :class:`Waker`."""
        await self._row_lost.wait()
        return IdentityLost(ROW_IS_GONE, is_own=False)
