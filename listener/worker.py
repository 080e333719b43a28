"""One worker: its parts, and its life under one id."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import structlog

from listener.config import Settings
from listener.fcm.sender import Sender
from listener.limits.admission import Admission
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.metrics.own import Metrics
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue
from listener.registration import Registered
from listener.schema import retention
from listener.sending.attempt import Attempts
from listener.sending.behind import LooksBehind
from listener.sending.dispatcher import Dispatcher
from listener.sending.expiry import Expiry
from listener.sending.fcm_question import FcmQuestion
from listener.sending.held import HeldRows
from listener.sending.idle_probe import IdleProbe
from listener.sending.overview_watch import OverviewWatch
from listener.sending.pause_report import PauseReport
from listener.sending.reach import Reach
from listener.sending.result_writer import ResultWriter
from listener.sending.settler import Settler
from listener.sending.sleeper import Sleeper
from listener.sending.trail import Trail
from listener.sending.unwritten import Unwritten
from listener.tracing import Tracing
from listener.wakeup.identity import IdentityLost
from listener.wakeup.waker import ListeningWaker, SweepingWaker, Waker

log = structlog.get_logger(__name__)

# The part of the shutdown grace that is kept for writing results after the requests have been abandoned.
_KEPT_FOR_SETTLING = 0.2
_SIGN_OFF_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sending:
    """A dispatcher, and the parts of it that other code reads."""

    dispatcher: Dispatcher
    settler: Settler
    held: HeldRows
    reach: Reach
    question: FcmQuestion


def assemble(
    settings: Settings,
    queue: Queue,
    waker: Waker,
    sender: Sender,
    health: FcmHealth,
    quota: SharedQuota,
    lock_watch: LockWatch,
    metrics: Metrics,
    tracing: Tracing,
) -> Sending:
    """Makes a dispatcher with its parts; nothing runs yet."""
    look, trail = waker.look, Trail(tracing, queue.worker_id)
    held, reach = HeldRows(metrics, lease=settings.lease), Reach(metrics)
    settlements = queue.settlements
    writer = ResultWriter(settlements, held, look, metrics, trail, batch=settings.settle_batch)
    settler = Settler(settlements, writer, Unwritten(settlements, writer, metrics), look)
    metrics.settle_backlog.set_function(functools.partial(_backlog, settler))
    metrics.whole_look.set_function(functools.partial(_whole_look, queue))
    metrics.in_flight_limit.set(settings.max_in_flight)
    question = FcmQuestion(sender, health, metrics)
    pauses = PauseReport(health, look, metrics)
    attempts = Attempts(sender, settings, metrics, health, quota, pauses, trail, question)
    behind = LooksBehind(queue, held, look, metrics)
    dispatcher = Dispatcher(
        queue,
        waker,
        Admission(health, quota, max_in_flight=settings.max_in_flight, batch=settings.claim_batch),
        quota,
        Expiry(queue, held, metrics),
        attempts,
        settler,
        held,
        behind,
        Sleeper(queue, waker, held, behind, reach, lock_watch, sweep_interval=settings.longest_poll_delay),
        reach,
        trail,
    )
    return Sending(dispatcher, settler, held, reach, question)


def _backlog(settler: Settler) -> float:
    return settler.backlog


def _whole_look(queue: Queue) -> float:
    return queue.frontier.cost


class Worker:
    """Claims, sends and settles under the id with which it is registered.

    Args:
        registered: the worker's id, and how it reaches the database.
        sender: sends to FCM.
        health: what FCM's answers have said so far.
        quota: how much of FCM's quota has been used so far.
        lock_watch: learns which foreign sessions hold locks of push-listener.
        tracing: gets the spans of each push.
        watched: set while somebody watches the page.
    """

    def __init__(
        self,
        settings: Settings,
        registered: Registered,
        sender: Sender,
        health: FcmHealth,
        quota: Quota,
        lock_watch: LockWatch,
        metrics: Metrics,
        tracing: Tracing,
        watched: asyncio.Event,
    ) -> None:
        queue, workers = registered.queue, registered.workers
        self._settings = settings
        self._workers = workers
        self._damaged = registered.damaged
        self._metrics = metrics
        self._quota = SharedQuota(workers, quota, metrics)
        self._quota.learn(registered.quota)
        self.waker = _waker(settings, registered, health, metrics)
        sending = assemble(
            settings, queue, self.waker, sender, health, self._quota, lock_watch, metrics, tracing
        )
        self.dispatcher, self.settler, self.reach = sending.dispatcher, sending.settler, sending.reach
        self._overview = OverviewWatch(
            registered.pool,
            queue.unwritable,
            self.dispatcher,
            self.waker,
            self.reach,
            health,
            self._quota,
            metrics,
            interval=settings.queue_depth_interval,
            watched=watched,
            sees_workers=settings.wakeup == "listen",
        )
        self._held = sending.held
        self._probe = IdleProbe(sending.question, health, interval=settings.idle_probe_interval)

    @property
    def obstacles(self) -> list[str]:
        """What keeps this worker from its work, in fixed words: anybody may read them."""
        found = []
        if not self.reach.is_up:
            found.append(str(self.reach.condition))
        elif not self.settler.succeeds:
            found.append(str(self.settler.condition))
        if not self.waker.may_claim():
            found.append("not listening for new rows")
            if self.waker.condition is not None and self.waker.condition not in found:
                found.append(str(self.waker.condition))
        if self._probe.is_refused:
            found.append("FCM refuses a test message; the log has its words")
        found += [f"{kind} of push-listener are missing or changed in the database" for kind in self._damaged]
        return found

    @property
    def id(self) -> int:
        """In push_listener.workers."""
        return self._workers.worker_id

    @property
    def in_flight(self) -> int:
        """Pushes that it has claimed and not settled."""
        return len(self._held)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event, on_ready: Callable[[], None]) -> bool:
        """Works until ``stop``, and then for the grace period at most; ``hurry`` shortens that.

        Returns True if it was stopped, and False if it cannot go on under its id. ``on_ready`` is called when the first
        claim has been answered.
        """
        async with asyncio.TaskGroup() as group:
            waking = group.create_task(self.waker.run())
            background = [group.create_task(part.run()) for part in (self._overview, self._quota)]
            if self._settings.idle_probe_interval:
                background.append(group.create_task(self._probe.run()))
            if self._settings.retention is not None:
                keeping = retention.keep(
                    self._settings.listen_dsn,
                    self._settings.retention,
                    self._metrics,
                    is_session=self._settings.wakeup == "listen",
                )
                background.append(group.create_task(keeping))
            working = group.create_task(self.dispatcher.run())
            stopping = group.create_task(stop.wait())
            starting = group.create_task(self.reach.wait_answered())
            await _first(starting, waking, stopping)
            if not (waking.done() or stopping.done()):
                log.info(
                    "ready",
                    worker=self._workers.worker_id,
                    in_flight_at_most=self._settings.max_in_flight,
                )
                on_ready()
            await _first(waking, stopping)
            self.dispatcher.stop()
            lost = None if stopping.done() else waking.result()
            if lost is None:
                log.info("stopping", grace_s=self._settings.shutdown_grace)
            else:
                await self._leave_id(lost)
            self.waker.stop()
            await self._finish(working, hurry)
            await self.waker.finish()
            for task in (*background, waking, stopping, starting):
                task.cancel()
        # Without a sign-off, peers or the next start take over the rows that are left.
        if lost is None and not working.cancelled() and working.result():
            await self._sign_off()
        return lost is None

    async def _leave_id(self, lost: IdentityLost) -> None:
        log.warning("registering again", worker=self._workers.worker_id, reason=lost.reason, **lost.facts)
        if lost.is_own:  # at once, or peers would take over the rows that it is still sending
            await self._sign_off()

    async def _finish(self, working: asyncio.Task[bool], hurry: asyncio.Event) -> None:
        """Lets requests end by themselves for most of the grace period, then gives their rows back and settles."""
        grace = self._settings.shutdown_grace
        hurrying = asyncio.create_task(hurry.wait())
        await _first(working, hurrying, within=grace * (1 - _KEPT_FOR_SETTLING))
        hurrying.cancel()
        if working.done():
            return
        log.warning("giving back what is in flight")
        self.dispatcher.give_back()
        await _first(working, within=grace * _KEPT_FOR_SETTLING)
        if not working.done():
            log.error(
                "could not settle everything; another worker takes the rows over, at the latest when their lease ends",
                lease_s=self._settings.lease,
            )
            working.cancel()

    async def _sign_off(self) -> None:
        try:
            async with asyncio.timeout(_SIGN_OFF_PATIENCE_S):
                await self._workers.sign_off()
        except (psycopg.Error, TimeoutError):
            log.warning("could not sign off")


def _waker(settings: Settings, registered: Registered, health: FcmHealth, metrics: Metrics) -> Waker:
    if settings.wakeup == "sweep":
        return SweepingWaker()
    return ListeningWaker(
        registered.listen_address,
        registered.pool,
        registered.queue,
        registered.workers,
        health,
        metrics,
        heartbeat=settings.listen_check_interval,
        max_in_flight=settings.max_in_flight,
    )


async def _first(*tasks: asyncio.Task[object], within: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_COMPLETED)
