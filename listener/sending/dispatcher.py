"""The loop of one worker: claim what is due, keep a bounded number in flight, sleep until there is more."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence

import psycopg
import structlog

from listener.clock import elapsed
from listener.limits.admission import Admission, Claim, Load, Wait
from listener.limits.shared_quota import SharedQuota
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.queue import Queue
from listener.push import Push, Settlement
from listener.sending.attempt import Attempts, untouched
from listener.sending.behind import LooksBehind
from listener.sending.expiry import Expiry
from listener.sending.held import HeldRows
from listener.sending.reach import Reach
from listener.sending.settler import Settler
from listener.sending.sleeper import Sleeper
from listener.sending.trail import Trail
from listener.waiting import is_set_within
from listener.wakeup.waker import Waker

log = structlog.get_logger(__name__)

_HEAD_START_S = 0.002
_LAST_PATIENCE_S = 2.0


class Dispatcher:
    """Turns due rows into settled ones, until it is told to stop.

    Args:
        waker: whether to claim at all, and when to look at the queue.
        admission: how much to claim.
        quota: learns what has been claimed, and what of it made no request.
        expiry: learns what has been claimed, and expires what stands before it.
        attempts: sends what has been claimed.
        settler: writes what became of it.
        held: what has been claimed and not settled.
        behind: looks for rows before those that claims take.
        sleeper: sleeps when every due row is claimed.
        reach: whether the database answers.
        trail: tells those who follow single pushes.
    """

    def __init__(
        self,
        queue: Queue,
        waker: Waker,
        admission: Admission,
        quota: SharedQuota,
        expiry: Expiry,
        attempts: Attempts,
        settler: Settler,
        held: HeldRows,
        behind: LooksBehind,
        sleeper: Sleeper,
        reach: Reach,
        trail: Trail,
    ) -> None:
        self._queue = queue
        self._waker = waker
        self._admission = admission
        self._quota = quota
        self._expiry = expiry
        self._attempts = attempts
        self._settler = settler
        self._held = held
        self._behind = behind
        self._sleeper = sleeper
        self._reach = reach
        self._trail = trail
        self._sending: set[asyncio.Task[Settlement]] = set()
        self._giving_back = False
        self._stop = asyncio.Event()
        self.looks = 0
        """How often the queue has been asked for rows."""

    def stop(self) -> None:
        """Claims no more; what is in flight goes on."""
        self._stop.set()
        self._waker.look.stop()

    def give_back(self) -> None:
        """Abandons the requests under way, also those of a claim that is under way; each row is settled at once."""
        self._giving_back = True
        for task in self._sending:
            task.cancel()

    async def run(self) -> bool:
        """Claims and sends until ``stop``; returns when every claimed row has been settled.

        False: the answer to a claim was lost, so rows may be claimed that nobody here knows of.
        """
        async with asyncio.TaskGroup() as group:
            settling = group.create_task(self._settler.run())
            try:
                await self._dispatch()
            finally:
                await self._behind.stop()
            self._settler.stop_keeping()
            await self._held.wait_empty()
            settling.cancel()
        await self._settler.finish()
        return not self._reach.is_recovering or await self._release_at_the_end()

    async def _dispatch(self) -> None:
        while not self._stop.is_set():
            self._reach.note_progress()
            if self._waker.look.take():
                self._admission.notified()
            match self._admit():
                case Wait(seconds):
                    await self._waker.look.wait_for_capacity(seconds)
                case Claim() as claim:
                    try:
                        await self._look_at_queue(claim)
                    except (psycopg.Error, TimeoutError) as error:
                        await is_set_within(self._stop, self._reach.failed(error))

    def _admit(self) -> Claim | Wait:
        if not self._waker.may_claim():
            return Wait(None)
        load = Load(len(self._held), len(self._sending), self._settler.set_aside, self._settler.succeeds)
        return self._admission.decide(time.monotonic(), load)

    async def _look_at_queue(self, claim: Claim) -> None:
        """Claims, and then waits for as long as there is nothing more to claim."""
        await self._expiry.run()
        self._behind.start_if_due()
        pushes = await self._claim(claim)
        if pushes:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                await self._queue.unwritable.claimed()
        poll_delay = self._waker.poll_delay(len(pushes)) if claim.budget.normal else None
        if not claim.budget.exhausts_queue(pushes):
            pass  # more rows are due: look again at once
        elif poll_delay is not None:
            await self._waker.look.wait(poll_delay)
        else:
            # The requests for the claimed rows get a head start on the next statement, and a notification that comes
            # meanwhile makes that statement unnecessary.
            is_notified = bool(pushes) and await self._waker.look.wait(_HEAD_START_S)
            if not is_notified:
                await self._sleeper.sleep()
        self._reach.succeeded()

    async def _claim(self, claim: Claim) -> Sequence[Push]:
        self.looks += 1
        self._waker.note_look()
        began, claimed_at = time.monotonic(), elapsed()
        self._held.claim_begins()
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            if self._reach.is_recovering:
                await self._release()
                self._queue.frontier.restart(began)
            begin = self._queue.frontier.begin_claim(
                time.monotonic(), claim.budget.total, claim.budget.normal
            )
            claimed = await self._queue.claim(claim.budget.total, claim.budget.normal, self._held.old, begin)
        pushes = self._held.add(claimed, claimed_at)
        self._reach.answered(time.monotonic() - began)
        self._settler.given_up(self._queue.take_unreadable())
        self._admission.claimed(claim.budget, len(pushes), began)
        self._quota.claimed(pushes, began)
        self._expiry.met(pushes)
        if self._trail.is_on:
            self._trail.claimed(pushes, began)
        self._start(pushes, claimed_at)
        if pushes:
            self._sleeper.found()
        return pushes

    def _start(self, pushes: Sequence[Push], claimed_at: float) -> None:
        loop = asyncio.get_running_loop()
        for push in pushes:
            task = loop.create_task(self._attempts.attempt(push, claimed_at))
            self._sending.add(task)
            if self._giving_back:
                task.cancel()
            task.add_done_callback(functools.partial(self._sent, push, claimed_at))

    def _sent(self, push: Push, claimed_at: float, task: asyncio.Task[Settlement]) -> None:
        self._sending.discard(task)
        if task.cancelled():  # before it had begun
            settlement = untouched(push)
        elif (error := task.exception()) is not None:
            settlement = self._attempts.failed(push, claimed_at, error)
        else:
            settlement = task.result()
        self._quota.sent(push, settlement.requests)
        self._settler.put(settlement)
        if len(self._sending) == self._admission.busiest_worth_a_claim:
            self._waker.look.capacity()

    async def _release(self) -> None:
        """Puts back rows of claims whose answers were lost."""
        if lost := await self._queue.release(self._held.ids):
            log.warning("claimed rows whose answer was lost were put back", rows=lost)

    async def _release_at_the_end(self) -> bool:
        try:
            async with asyncio.timeout(_LAST_PATIENCE_S):
                await self._release()
        except (psycopg.Error, TimeoutError):
            return False
        return True
