"""Writes what became of rows, in batches, until the database has it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import replace
from uuid import UUID

import psycopg
import structlog
import tenacity

from listener.log import should_log
from listener.metrics import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.errors import ROW_FAULTS, Condition, condition, explain, fault_name, is_transient
from listener.postgres.queue import Queue
from listener.push import Decision, Settlement, Status
from listener.sending.held import HeldRows
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)

# A statement costs as much for one row as for fifty. Where results come one by one but often, they wait for each other.
_GATHER_S = 0.008

# For how long to find out which results can be written: one locked row of a table that a trigger writes to may keep all
# of them from it.
_TRYING_S = 1.0


class _FaultOfAll(Exception):
    """A table or a privilege is missing, so no result can be written. All results wait until it is back."""


class Settler:
    """Takes settlements one by one and writes them together.

    Args:
        held: forgets each row whose result is written.
        look: learns of free capacity, and of rows that are due again.
        batch: results in one statement, at most.
        gather_within: seconds after a statement within which the next results wait for each other.
        locked_wait: seconds between two tries to write results whose rows others have locked.
    """

    def __init__(
        self,
        queue: Queue,
        held: HeldRows,
        look: LookSignal,
        metrics: Metrics,
        *,
        batch: int,
        gather_within: float = 0.02,
        locked_wait: float = 0.5,
    ) -> None:
        self._queue = queue
        self._held = held
        self._look = look
        self._metrics = metrics
        self._batch = batch
        self._gather_within = gather_within
        self._locked_wait = locked_wait
        self._waiting: list[Settlement] = []
        self._some = asyncio.Event()
        self._locked: list[Settlement] = []
        self._locked_times = 0  # looks in a row that found locked rows
        self._may_be_free = False
        self._try_until = math.inf
        self.succeeds = True
        """False from the first failed settle until every waiting batch is written; nothing is claimed meanwhile."""
        self.condition = Condition.AWAY
        """What the last settle failed for."""

    @property
    def set_aside(self) -> int:
        """How many results wait for rows that others have locked."""
        return len(self._locked)

    def put(self, settlement: Settlement) -> None:
        """Hands over one result. Never blocks: the number of rows in flight bounds the number of results."""
        self._waiting.append(settlement)
        self._some.set()

    async def run(self) -> None:
        """Writes until cancelled. While one batch is written the next one gathers, so batches grow with the load."""
        written_at = -math.inf
        while True:
            await self._some.wait()
            if self._may_be_free:
                await self._look_at_locked()
            if len(self._waiting) < self._batch / 2 and time.monotonic() - written_at < self._gather_within:
                await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            if not self._waiting and not self._may_be_free:
                self._some.clear()
            if batch:
                self._try_until = time.monotonic() + _TRYING_S
                await self._write(batch)
            written_at = time.monotonic()
            if not self.succeeds and not self._waiting:
                self.succeeds = True
                self._look.capacity()

    async def _write(self, batch: list[Settlement], *, again: bool = False) -> None:
        """``again``: an earlier try may have been committed, and its answer lost."""
        try:
            still_held = await self._persist(batch, again=again)
        except psycopg.errors.LockNotAvailable:
            await self._write_free(batch)
        except ROW_FAULTS as error:
            if len(batch) > 1:
                await self._write_halves(batch)
            else:
                await self._write_off(batch[0], error)
        else:
            self._finish(batch, still_held)

    async def _write_halves(self, batch: list[Settlement]) -> None:
        middle = len(batch) // 2
        await self._write(batch[:middle], again=True)
        await self._write(batch[middle:], again=True)

    async def _write_free(self, batch: list[Settlement]) -> None:
        """Another transaction has locked some of the rows; the results of the other rows do not wait for it."""
        if time.monotonic() >= self._try_until:
            self._set_aside(batch)
            return
        locked, free = await self._split(batch)
        if locked and free:
            self._set_aside(locked)
            await self._write(free, again=True)
        elif not locked and len(batch) > 1:  # a trigger waits for some other lock
            await self._write_halves(batch)
        else:
            self._set_aside(batch)

    def _set_aside(self, locked: list[Settlement]) -> None:
        if not self._locked:
            asyncio.get_running_loop().call_later(self._locked_wait, self._wake_for_locked)
        self._locked += locked
        self._locked_times += 1
        if should_log(self._locked_times):
            log.warning("rows are locked by others: their results wait", rows=len(self._locked))
        self._look.capacity()

    def _wake_for_locked(self) -> None:
        self._may_be_free = True
        self._some.set()

    async def _look_at_locked(self) -> None:
        self._may_be_free = False
        # Results that were not tried the last time come first.
        batch, self._locked = self._locked[::-1], []
        locked, free = await self._split(batch)
        if locked:
            self._set_aside(locked)
        for start in range(0, len(free), self._batch):
            self._try_until = time.monotonic() + _TRYING_S
            await self._write(free[start : start + self._batch], again=True)
        if not self._locked:
            self._locked_times = 0

    async def _split(self, batch: list[Settlement]) -> tuple[list[Settlement], list[Settlement]]:
        """The results whose rows other transactions have locked, and the rest."""
        locked: set[UUID] = set()
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                locked = await self._queue.locked([settlement.push_id for settlement in batch])
        except (psycopg.Error, TimeoutError):
            pass  # the next write finds out why
        return [s for s in batch if s.push_id in locked], [s for s in batch if s.push_id not in locked]

    async def _write_off(self, settlement: Settlement, error: Exception) -> None:
        """Marks the row dead, without log lines, because its result cannot be written as it is."""
        log.error("result cannot be written", push_id=str(settlement.push_id), error=fault_name(error))
        reason = f"the result ({settlement.decision.status}) could not be written: {fault_name(error)}"
        plain = replace(
            settlement,
            decision=Decision(Status.DEAD, code="NOT_WRITTEN", reason=reason),
            logs=[],
            dead_tokens=[],
        )
        try:
            still_held = await self._persist([plain], again=True)
        except psycopg.errors.LockNotAvailable:
            self._set_aside([settlement])
            return
        except ROW_FAULTS as of_the_row:
            log.error("row cannot be settled", push_id=str(settlement.push_id), error=fault_name(of_the_row))
            self._queue.avoid(settlement.push_id)
            still_held = 0
        self._finish([plain], still_held)

    async def _persist(self, batch: list[Settlement], *, again: bool) -> int:
        try:
            return await self._try(batch, again)
        except (psycopg.Error, TimeoutError, _FaultOfAll) as error:
            if not _is_transient(error):
                raise
            self._note_failure(error, 1)
        # Not for the first try: tenacity creates garbage for each call that only the cyclic collector frees.
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=lambda state: self._note_failure(
                state.outcome.exception() if state.outcome else None, state.attempt_number + 1
            ),
        )
        async for attempt in attempts:
            with attempt:
                return await self._try(batch, again=True)
        raise AssertionError("unreachable")

    async def _try(self, batch: list[Settlement], again: bool) -> int:
        async with asyncio.timeout(STATEMENT_PATIENCE_S):
            try:
                return await self._queue.settle(batch, is_retry=again)
            except ROW_FAULTS as error:
                if is_transient(error):
                    raise
                try:
                    await self._queue.settle([])
                except psycopg.Error as of_all:
                    raise _FaultOfAll from of_all
                raise

    def _note_failure(self, error: BaseException | None, times: int) -> None:
        if isinstance(error, _FaultOfAll):
            error = error.__cause__
        self.succeeds, self.condition = False, condition(error)
        self._metrics.database_errors.labels("settle").inc()
        if should_log(times):
            log.warning(
                "cannot settle, will go on trying",
                error=fault_name(error),
                reason=explain(error),
                tries=times,
            )

    def _finish(self, batch: list[Settlement], still_held: int) -> None:
        decisions = [settlement.decision for settlement in batch]
        for status, rows in Counter(d.status for d in decisions).items():
            self._metrics.settled.labels(status).inc(rows)
        again = Counter(d.code or "" for d in decisions if d.uses_try and d.delay is not None)
        for code, rows in again.items():
            self._metrics.retries.labels(code).inc(rows)
        if still_held < len(batch):
            self._metrics.fenced.inc(len(batch) - still_held)
            log.warning(
                "another worker holds rows of this one: their results are not written",
                rows=len(batch) - still_held,
            )
        self._held.remove(batch)
        self._look.capacity()
        delays = [decision.delay for decision in decisions if decision.delay is not None]
        if delays:
            self._look.due_in(min(delays))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return False  # maybe not of all rows
    return is_transient(error) or isinstance(error, _FaultOfAll)
