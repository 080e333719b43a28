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
from listener.limits.claim_budget import ClaimBudget
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
        quota: learns which pushes have been claimed, and how many requests each of them made.
        expiry: expires pushes in bulk when claims bring many expired ones.
        attempts: sends claimed rows.
        settler: writes the results.
        held: the rows that have been claimed and not settled.
        behind: looks for due rows before the point where claims begin.
        sleeper: sleeps when every due row is claimed.
        reach: whether the database answers.
        trail: records what happens to each push.
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
        self._waker.look.wake()

    def give_back(self) -> None:
        """Abandons the requests under way, also those of a claim that is under way; each row is settled at once."""
        self._giving_back = True
        for task in self._sending:
            task.cancel()

    async def run(self) -> bool:
        """Claims and sends until ``stop``; returns when every claimed row has been settled.

        False: the answer to a claim was lost, so this worker may hold rows that it does not know of.
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
        return await self._put_back_at_the_end() if self._reach.is_recovering else True

    async def _dispatch(self) -> None:
        while not self._stop.is_set():
            self._reach.note_progress()
            if self._waker.look.take():
                self._admission.notified()
            match self._admit():
                case Wait(seconds):
                    await self._waker.look.wait_for_capacity(seconds)
                case Claim(budget):
                    try:
                        await self._wait_for_more(budget, await self._look_at_queue(budget))
                    except (psycopg.Error, TimeoutError) as error:
                        pause = self._reach.look_failed(error)
                        await is_set_within(self._stop, pause)
                    else:
                        self._reach.look_succeeded()

    def _admit(self) -> Claim | Wait:
        if not self._waker.may_claim():
            return Wait(None)
        load = Load(len(self._held), len(self._sending), self._settler.set_aside, self._settler.succeeds)
        return self._admission.decide(time.monotonic(), load)

    async def _look_at_queue(self, budget: ClaimBudget) -> Sequence[Push]:
        """Claims, and does what may be due with a claim: expire pushes, look behind, retry refused rows."""
        await self._expiry.run()
        self._behind.start_if_due()
        pushes = await self._claim(budget)
        if pushes:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                await self._queue.unwritable.retry_if_due()
        return pushes

    async def _wait_for_more(self, budget: ClaimBudget, pushes: Sequence[Push]) -> None:
        """Returns when the queue is to be looked at again: at once if the claim may have left due rows behind."""
        poll_delay = self._waker.poll_delay(len(pushes)) if budget.normal else None
        if not budget.exhausts_queue(pushes):
            return
        if poll_delay is not None:
            await self._waker.look.wait(poll_delay)
            return
        # The requests for the claimed rows get a head start before the next statement. A notification that comes
        # meanwhile makes that statement unnecessary.
        is_notified = bool(pushes) and await self._waker.look.wait(_HEAD_START_S)
        if not is_notified:
            await self._sleeper.sleep()

    async def _claim(self, budget: ClaimBudget) -> Sequence[Push]:
        self.looks += 1
        self._waker.note_look()
        # A lease goes on while the machine is suspended, and so does elapsed(); monotonic() does not.
        began, claimed_at = time.monotonic(), elapsed()
        self._held.claim_begins()
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            if self._reach.is_recovering:
                await self._put_back_unknown()
                self._queue.frontier.want_whole_look_at_once(began)
            begin = self._queue.frontier.begin_claim(time.monotonic(), budget.total, budget.normal)
            claimed = await self._queue.claim(budget.total, budget.normal, self._held.near_lease_end, begin)
        pushes = self._held.add(claimed, claimed_at)
        self._reach.claim_answered(time.monotonic() - began)
        self._settler.count_unreadable(self._queue.take_unreadable())
        self._admission.claimed(budget, len(pushes), began)
        self._quota.claimed(pushes, began)
        self._expiry.claimed(pushes)
        if self._trail.is_on:
            self._trail.claimed(pushes, began)
        self._start(pushes, claimed_at)
        if pushes:
            self._sleeper.note_rows()
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
            settlement = self._attempts.after_exception(push, claimed_at, error)
        else:
            settlement = task.result()
        # First, before anything else can fail: otherwise this process would hold the row for as long as it runs.
        self._settler.put(settlement)
        if len(self._sending) == self._admission.busiest_worth_a_claim:
            self._waker.look.note_capacity()
        self._quota.sent(push, settlement.requests)

    async def _put_back_unknown(self) -> None:
        """Puts back rows of claims whose answers were lost."""
        if lost := await self._queue.release(self._held.ids):
            log.warning("claimed rows whose answer was lost were put back", rows=lost)

    async def _put_back_at_the_end(self) -> bool:
        """Returns whether the database has answered."""
        try:
            async with asyncio.timeout(_LAST_PATIENCE_S):
                await self._put_back_unknown()
        except (psycopg.Error, TimeoutError):
            return False
        return True
