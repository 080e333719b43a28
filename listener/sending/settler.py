"""Takes results one by one and writes them in batches, past rows that other transactions have locked."""

from __future__ import annotations

import asyncio
import math
import time
from uuid import UUID

import psycopg
import structlog

from listener.log import should_log
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.errors import ROW_FAULTS, Condition
from listener.postgres.settlements import UNFINISHED, Settlements
from listener.postgres.unwritable import code_of
from listener.push import Settlement
from listener.sending.result_writer import TOO_SLOW, ResultWriter
from listener.sending.unwritten import Unwritten, code_of_fate
from listener.waiting import is_set_within
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)

# A statement costs as much for one row as for fifty. So results that come one by one but often wait for each other.
_GATHER_S = 0.008

# For how long the settler searches for results that can be written. One locked row of a table that a trigger writes to
# may keep all results from being written.
_TRYING_S = 1.0


class Settler:
    """Takes settlements one by one and writes them together.

    Args:
        settlements: tells which rows are locked.
        writer: writes batches.
        unwritten: handles results that the database refuses.
        look: learns that results of locked rows are set aside.
        gather_within: seconds after a statement within which the next results wait for each other.
        locked_wait: seconds between two tries to write results whose rows others have locked.
    """

    def __init__(
        self,
        settlements: Settlements,
        writer: ResultWriter,
        unwritten: Unwritten,
        look: LookSignal,
        *,
        gather_within: float = 0.02,
        locked_wait: float = 0.5,
    ) -> None:
        self._settlements = settlements
        self._writer = writer
        self._unwritten = unwritten
        self._look = look
        self._gather_within = gather_within
        self._locked_wait = locked_wait
        self._waiting: list[Settlement] = []
        self._some = asyncio.Event()
        self._locked: list[Settlement] = []
        self._locked_times = 0  # looks in a row that found locked rows
        self._may_be_free = False
        self._try_until = math.inf

    @property
    def set_aside(self) -> int:
        """How many results wait because others have locked their rows, or because the database refuses them."""
        return len(self._locked) + self._unwritten.kept

    @property
    def succeeds(self) -> bool:
        """Whether results can be written. While they cannot, nothing is claimed."""
        return self._writer.succeeds

    @property
    def condition(self) -> Condition:
        """Why the last failed settle failed."""
        return self._writer.condition

    @property
    def backlog(self) -> int:
        """How many results wait to be written, those set aside included."""
        return len(self._waiting) + self.set_aside

    def put(self, settlement: Settlement) -> None:
        """Hands over one result. Never blocks: the number of rows in flight bounds the number of results."""
        if not self._waiting:
            self._some.set()
        self._waiting.append(settlement)

    async def run(self) -> None:
        """Writes until cancelled. While one batch is written the next one gathers, so batches grow with the load."""
        written_at = -math.inf
        while True:
            await is_set_within(self._some, self._unwritten.waits)
            self._writer.note_progress()
            if self._unwritten.waits == 0.0:
                await self._unwritten.try_again()
            if self._may_be_free:
                await self._look_at_locked()
            most = self._writer.batch
            if len(self._waiting) < most / 2 and time.monotonic() - written_at < self._gather_within:
                await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            if not self._waiting and not self._may_be_free:
                self._some.clear()
            if batch:
                self._try_until = time.monotonic() + _TRYING_S
                await self._write(batch)
            written_at = time.monotonic()
            if not self._waiting:
                self._writer.caught_up()

    def count_unreadable(self, rows: int) -> None:
        """A claim has given up this number of pushes, because their texts cannot be read."""
        if rows:
            self._writer.count_dead("INVALID_TEXT", rows)

    def stop_keeping(self) -> None:
        """The worker ends: results that the database refuses are not kept any longer."""
        self._unwritten.stop_keeping()

    async def finish(self) -> None:
        """Writes what is left after the last result."""
        await self._unwritten.finish()

    async def _write(self, batch: list[Settlement], *, again: bool = False) -> None:
        """``again``: an earlier try may have been committed, and its answer lost."""
        try:
            fates = await self._writer.persist(batch, again=again)
        except psycopg.errors.LockNotAvailable:
            await self._write_free(batch)
        except (*TOO_SLOW, *ROW_FAULTS) as error:
            if len(batch) > 1:
                await self._write_halves(batch)
            else:
                await self._write_otherwise(batch[0], code_of(error))
        else:
            self._writer.record(batch, fates)
            for settlement, fate in zip(batch, fates, strict=True):
                if fate in UNFINISHED:
                    await self._write_otherwise(settlement, code_of_fate(fate))

    async def _write_otherwise(self, settlement: Settlement, code: str) -> None:
        try:
            await self._unwritten.write(settlement, code)
        except psycopg.errors.LockNotAvailable:
            self._set_aside([settlement])

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
        self._look.note_capacity()

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
        most = self._writer.batch
        for start in range(0, len(free), most):
            self._try_until = time.monotonic() + _TRYING_S
            await self._write(free[start : start + most], again=True)
        if not self._locked:
            self._locked_times = 0

    async def _split(self, batch: list[Settlement]) -> tuple[list[Settlement], list[Settlement]]:
        """The results whose rows other transactions have locked, and the rest."""
        locked: set[UUID] = set()
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                locked = await self._settlements.locked([settlement.push_id for settlement in batch])
        except (psycopg.Error, TimeoutError):
            pass  # the next write finds out why
        return [s for s in batch if s.push_id in locked], [s for s in batch if s.push_id not in locked]
