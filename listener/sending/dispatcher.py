"""The loop: claim what is due, keep a bounded number in flight, sleep until there is more."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from listener.config import Settings
from listener.fcm.sender import Sender
from listener.limits.claim_budget import ClaimBudget, claim_budget, worth_a_claim_at
from listener.limits.health import FcmHealth, Pause
from listener.limits.shared_quota import SharedQuota
from listener.log import should_log
from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.queue import Queue, Settlement, Sweep, fault_name
from listener.push import Push
from listener.sending.attempt import Attempts, untouched
from listener.sending.settler import Settler
from listener.waiting import wait

log = structlog.get_logger(__name__)

_PATIENCE_S = 0.05
_HEAD_START_S = 0.002
_LAST_PATIENCE_S = 2.0
# uvloop counts in whole milliseconds, and its timers fire up to one too early.
_TIMERS_EARLY_S = 0.01

# How often to look for urgent pushes alone. The bell says when, but not while a worker is awake.
_HIGH_AFTER_S, _HIGH_AFTER_AT_MOST_S = 0.02, 0.08

_NO_ROOM = ClaimBudget(0, 0, 0)


class Dispatcher:
    """One worker: turns due rows into settled ones, until it is told to stop.

    While ``may_claim`` says no, nothing is claimed: this worker cannot be seen to live, and its peers would take
    what it claims. ``ring`` when it says yes again. ``on_look`` hears of every look at the queue. ``nap`` hears how
    many rows one brought that was for all that is due, and says after how many seconds to look again if that was all;
    None: when there is a reason. What ``quota`` does not let through stays in the queue. ``on_sweep`` is called with
    what each sweep finds: at least once in SWEEP_INTERVAL, unless there is no room for more pushes.
    """

    def __init__(
        self,
        queue: Queue,
        sender: Sender,
        settings: Settings,
        metrics: Metrics,
        health: FcmHealth,
        quota: SharedQuota,
        *,
        may_claim: Callable[[], bool] = lambda: True,
        on_look: Callable[[], None] = lambda: None,
        nap: Callable[[int], float | None] = lambda found: None,
        on_sweep: Callable[[Sweep], None] = lambda sweep: None,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._quota = quota
        self._may_claim = may_claim
        self._on_look = on_look
        self._nap = nap
        self._on_sweep = on_sweep
        self._attempts = Attempts(sender, settings, metrics, health, on_limit=quota.refused)
        self._settler = Settler(queue, batch=settings.settle_batch, metrics=metrics, on_settled=self._settled)
        self._rng = random.Random()  # noqa: S311  # jitter, not secrecy
        self._claim_at = worth_a_claim_at(settings.max_in_flight, settings.claim_batch)
        self._sending: set[asyncio.Task[Settlement]] = set()
        # When each row was claimed, by (id, attempt), the oldest first; until it is settled. It bounds our memory.
        self._held: dict[tuple[UUID, int], float] = {}
        self._giving_back = False  # what a claim still brings goes back as well
        self._passed_over = 0  # claims in a row that brought nothing although something was due
        self._told: Pause | None = None  # what was last said of a pause
        self._hungry = False  # waiting for room, so that a settled row is a reason to wake up
        # since when there has been too little room to be worth a claim
        self._little_since: float | None = None
        self._claimed_at = -math.inf
        self._high_after = _HIGH_AFTER_S
        self._sweep_at = -math.inf
        self._asleep_until = 0.0  # a row that is due earlier is a reason to wake up as well
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()
        self._looked_well = False
        self._failures = 0  # since the last look that succeeded
        self.looks = 0
        """How often the queue has been asked for rows."""

    @property
    def paused(self) -> Pause | None:
        """The kind of pause that sending is in, or None; what FCM has said is in the log only."""
        return self._health.pause_kind

    @property
    def database_ok(self) -> bool:
        """Whether the last look at the queue succeeded, and the last result could be written."""
        return self._looked_well and self._settler.succeeds

    async def wait_looked(self) -> None:
        """Returns once the queue has been asked for rows, and has answered."""
        await self._looked.wait()

    def ring(self) -> None:
        """There may be something to claim. May be called at any time, and for nothing."""
        self._high_after = _HIGH_AFTER_S
        self._wake.set()

    def stop(self) -> None:
        """Claim no more; what is in flight goes on."""
        self._stop.set()
        self._wake.set()

    def give_back(self) -> None:
        """Abandon the sends under way: each row is settled at once, for whoever claims it next."""
        self._giving_back = True
        for task in self._sending:
            task.cancel()

    async def run(self) -> bool:
        """Claims and sends until ``stop``; returns when every claimed row has been settled.

        False: but there may be rows of a claim whose answer was lost.
        """
        async with asyncio.TaskGroup() as group:
            settling = group.create_task(self._settler.run())
            await self._claim()
            while self._held:
                self._drained.clear()  # it may be from before the last claim
                await self._drained.wait()
            settling.cancel()
        return not self._failures or await self._release_last()

    async def _claim(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            room = self._room()
            if room.all == 0:
                self._hungry = True
                await wait(self._wake, self._until_room())
                continue
            self._hungry = False
            if room.normal:
                self._little_since = None
            claimed_at = self._claimed_at = time.monotonic()
            try:
                self.looks += 1
                self._on_look()
                async with asyncio.timeout(STATEMENT_PATIENCE_S):
                    if self._failures:
                        await self._release()
                    pushes = await self._queue.claim(room.all, room.normal, self._old())
                self._quota.claimed(pushes, claimed_at)
                for push in pushes:
                    self._start(push, claimed_at)
                self._metrics.claimed.inc(len(pushes))
                self._metrics.in_flight.set(len(self._held))
                if pushes:
                    self._passed_over = 0
                nap = self._nap(len(pushes)) if room.normal else None
                if pushes:
                    self._high_after = _HIGH_AFTER_S
                elif not room.normal:
                    self._high_after = min(2 * self._high_after, _HIGH_AFTER_AT_MOST_S)
                if room.is_left_by(pushes):
                    if nap is not None:
                        await wait(self._wake, nap)
                    # What has just been claimed is on its way before more is asked; a bell meanwhile saves the asking.
                    elif not (pushes and await wait(self._wake, _HEAD_START_S)):
                        await self._sleep()
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                self._failures += 1
                self._cannot_claim(error)
                longest = min(2.0, 0.25 * 2.0 ** min(self._failures, 10))
                await wait(self._stop, self._rng.uniform(0.0, longest))
                continue
            self._failures = 0
            self._has_looked()

    async def _release(self) -> None:
        if lost := await self._queue.release([push_id for push_id, _ in self._held]):
            log.warning("claimed rows whose answer was lost were put back", rows=lost)

    async def _release_last(self) -> bool:
        try:
            async with asyncio.timeout(_LAST_PATIENCE_S):
                await self._release()
        except (psycopg.Error, TimeoutError):
            return False
        return True

    async def _sleep(self) -> None:
        """Until the bell rings or a row is due, by the database's clock; now and then it asks without reason."""
        while True:
            self._has_looked()
            self._asleep_until = math.inf  # whatever is settled from here on may not be in the answer
            earliest = await self._earliest()
            if earliest is not None and earliest <= 0.0:
                # It fell due since the claim; or somebody else has it locked, and may have it for long.
                await wait(self._wake, _locked_nap(self._passed_over))
                self._passed_over += 1
                return
            self._passed_over = 0
            nap = max(0.0, self._sweep_at - time.monotonic())
            if earliest is not None:
                nap = min(nap, earliest)
            self._asleep_until = time.monotonic() + nap
            if await wait(self._wake, nap):
                return

    async def _earliest(self) -> float | None:
        """Seconds until the first row is due. When it is time for a sweep, the same statement asks for more."""
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            if time.monotonic() < self._sweep_at - _TIMERS_EARLY_S:
                return await self._queue.earliest(self._old())
            sweep = await self._queue.sweep(self._old())
        self._sweep_at = time.monotonic() + self._settings.longest_poll_delay * self._rng.uniform(0.9, 1.0)
        self._on_sweep(sweep)
        return sweep.earliest

    def _room(self) -> ClaimBudget:
        """How many rows to claim now."""
        if not self._is_sound():
            return _NO_ROOM
        now = time.monotonic()
        room = self._free(now)
        # A claim is a round trip however few rows it brings: wait until it is worth one, but not for long. What
        # is in flight may hang, and the place that is left must not be wasted for it.
        if room.normal == 0 or room.is_worth_a_claim:
            self._little_since = None
        elif self._little_since is None:
            self._little_since = now
        if room.is_worth_a_claim or (
            self._little_since is not None and now - self._little_since >= _PATIENCE_S
        ):
            return room
        # Nothing for the many yet; but what is urgent has a place kept for it, and is looked for.
        return ClaimBudget(room.all, 0, 0) if now - self._claimed_at >= self._high_after else _NO_ROOM

    def _is_sound(self) -> bool:
        """Whether what is claimed can be kept, and what is sent can be written down: what has been, comes first."""
        return self._may_claim() and self._settler.succeeds

    def _old(self) -> list[UUID]:
        """Rows held for so long that their lease may have ended, which are not to be claimed and sent anew here."""
        before = time.monotonic() - self._settings.lease / 2
        old = itertools.takewhile(lambda row: row[1] < before, self._held.items())
        return [push_id for (push_id, _), _ in old]

    @property
    def _in_hand(self) -> int:
        """Rows of which it is not known what becomes of them, or that are being written."""
        return len(self._held) - self._settler.set_aside

    def _free(self, now: float) -> ClaimBudget:
        """Places in flight that are free and that the quota lets be taken."""
        in_flight_at_most = self._settings.max_in_flight
        busy = self._in_hand
        most = self._health.limit(now, busy, in_flight_at_most)
        if most == in_flight_at_most:
            # What has been answered and waits to be written keeps nothing from being sent; but memory has an end.
            busy = max(len(self._sending), len(self._held) - in_flight_at_most)
        room = claim_budget(most, busy, self._settings.claim_batch)
        return room.within(*self._quota.room(now))

    def _until_room(self) -> float | None:
        """Seconds after which there may be room without anything being settled; None: there will be none."""
        if not self._is_sound():
            return None
        now = time.monotonic()
        waits = [
            self._health.changes_in(now, self._in_hand),
            None if self._little_since is None else _PATIENCE_S,
            self._high_after if self._free(now).all else None,
            self._quota.opens_in(now),
        ]
        # 0: that gate is open already, and it is another that is not.
        return min((wait for wait in waits if wait), default=None)

    def _start(self, push: Push, claimed_at: float) -> None:
        self._held[push.id, push.attempt] = claimed_at
        task = asyncio.create_task(self._attempts.attempt(push, claimed_at))
        self._sending.add(task)
        if self._giving_back:
            task.cancel()
        task.add_done_callback(functools.partial(self._sent, push, claimed_at))

    def _sent(self, push: Push, claimed_at: float, task: asyncio.Task[Settlement]) -> None:
        self._sending.discard(task)
        if self._hungry and len(self._sending) == self._claim_at:
            self._wake.set()
        if task.cancelled():  # before it had begun
            settlement = untouched(push)
        elif (error := task.exception()) is not None:
            settlement = self._attempts.failed(push, claimed_at, error)
        else:
            settlement = task.result()
        self._tell_pause()
        self._settler.put(settlement)

    def _tell_pause(self) -> None:
        """Tells, once, when sending is paused, is paused for another kind of reason, or goes on."""
        kind = self._health.pause_kind
        if kind == self._told:
            return
        if kind is None:
            log.info("sending resumed")
            self._wake.set()
        else:
            log.error("sending paused", reason=self._health.reason)
        self._told = kind
        self._metrics.paused.set(kind is not None)

    def _settled(self, batch: Sequence[Settlement]) -> None:
        for settlement in batch:
            self._held.pop((settlement.push_id, settlement.attempt), None)
        self._metrics.in_flight.set(len(self._held))
        soonest = min((s.decision.delay for s in batch if s.decision.delay is not None), default=None)
        if self._hungry or (soonest is not None and time.monotonic() + soonest < self._asleep_until):
            self._wake.set()
        if not self._held and self._stop.is_set():
            self._drained.set()

    def _has_looked(self) -> None:
        self._looked_well = True
        self._looked.set()

    def _cannot_claim(self, error: Exception) -> None:
        self._looked_well = False
        self._metrics.database_errors.labels("claim").inc()
        if should_log(self._failures):
            log.warning("cannot claim", error=fault_name(error), tries=self._failures)


def _locked_nap(times: int) -> float:
    """Seconds before asking again for what was due and could not be had, so many times in a row."""
    return 0.0 if times == 0 else min(0.5, 0.005 * 2.0 ** min(times, 10))
