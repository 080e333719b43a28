"""Writes one batch of results, goes on trying while the database is in trouble, and counts what was written."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import psycopg
import structlog

from listener.backoff import Backoff
from listener.log import should_log
from listener.metrics.own import Metrics
from listener.postgres.batch_limit import BatchLimit
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.errors import ROW_FAULTS, Condition, condition, explain, fault_name, is_transient
from listener.postgres.settlements import UNFINISHED, Fate, Settlements
from listener.push import Settlement, Status
from listener.sending.held import HeldRows
from listener.sending.trail import Trail
from listener.wakeup.look_signal import LookSignal

log = structlog.get_logger(__name__)

TOO_SLOW = (psycopg.errors.QueryCanceled, TimeoutError)
"""A statement took longer than statement_timeout, or than this service waits."""

# A result alone in its statement takes milliseconds.
_REFUSED_PATIENCE_S = 5.0


class _FaultOfAll(Exception):
    """A table or a privilege is missing, so no result can be written. All results wait until it is back."""


class ResultWriter:
    """Persists settlements.

    Args:
        held: forgets each row whose result is written.
        look: learns of free capacity, and of rows that are due again.
        trail: records what happens to each push.
        batch: results in one statement, at most.
    """

    def __init__(
        self,
        settlements: Settlements,
        held: HeldRows,
        look: LookSignal,
        metrics: Metrics,
        trail: Trail,
        *,
        batch: int,
    ) -> None:
        self._settlements = settlements
        self._held = held
        self._look = look
        self._metrics = metrics
        self._trail = trail
        self._batch_limit = BatchLimit(batch)
        self._written_at: dict[Status, float] = {}
        self.condition = Condition.AWAY
        """Why the last failed settle failed."""
        self.succeeds = True
        """False from the first failed settle until ``caught_up``; nothing is claimed meanwhile."""

    @property
    def batch(self) -> int:
        """The most results that one statement may have now."""
        return self._batch_limit.rows(time.monotonic())

    def caught_up(self) -> None:
        """Every waiting batch is written."""
        if not self.succeeds:
            self.succeeds = True
            self._look.note_capacity()

    def note_progress(self) -> None:
        """The settler takes results, or has seen what keeps them waiting."""
        self._metrics.progress.set_to_current_time()

    def has_written(self, status: Status, since: float) -> bool:
        """Whether a row has been given this status after ``since`` (monotonic seconds)."""
        return self._written_at.get(status, since) > since

    async def persist(
        self, batch: Sequence[Settlement], *, again: bool, is_refused: bool = False
    ) -> list[Fate]:
        """Writes the batch; returns what has become of each row.

        Tries until the database answers. Raises one of ROW_FAULTS, or LockNotAvailable, when a row cannot be written;
        and one of TOO_SLOW when the statement takes too long although the database takes a statement without rows. A
        batch of one row must be too slow twice in succession.

        Args:
            batch: results of different rows.
            again: an earlier try may have been committed, and its answer lost.
            is_refused: the database has refused this single result before. So the patience is short, and one slow try
                is enough.
        """
        patience = _REFUSED_PATIENCE_S if is_refused else STATEMENT_PATIENCE_S
        was_slow = is_refused
        backoff: Backoff | None = None  # made only after a failure, because hardly any batch has one
        while True:
            try:
                return await self._try(batch, again, patience)
            except (psycopg.Error, TimeoutError, _FaultOfAll) as error:
                is_slow = isinstance(error, TOO_SLOW)
                if is_slow and len(batch) > 1:
                    self._batch_limit.timed_out(len(batch), time.monotonic())
                blames_rows = is_slow and (was_slow or len(batch) > 1)
                if blames_rows or not _is_transient(error):
                    raise
                was_slow = is_slow or is_refused
                if backoff is None:  # the second try follows at once
                    backoff, pause = Backoff(0.1, 2.0), 0.0
                else:
                    pause = backoff.failed()
                self._note_failure(error, backoff.failures + 1)
            await asyncio.sleep(pause)
            again = True

    async def _try(self, batch: Sequence[Settlement], again: bool, patience: float) -> list[Fate]:
        try:
            began = time.monotonic()
            async with asyncio.timeout(patience):
                fates = await self._settlements.settle(batch, is_retry=again)
            self._metrics.statement.observe(time.monotonic() - began, "settle")
            return fates
        except TOO_SLOW:
            if len(batch) == 1:
                await self._check_without_rows()
            raise
        except ROW_FAULTS as error:
            if not is_transient(error):
                await self._check_without_rows()
            raise

    async def _check_without_rows(self) -> None:
        """Raises _FaultOfAll if even a statement without rows fails."""
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                await self._settlements.settle([])
        except (psycopg.Error, TimeoutError) as of_all:
            raise _FaultOfAll from of_all

    def _note_failure(self, error: BaseException, times: int) -> None:
        cause = error.__cause__ if isinstance(error, _FaultOfAll) else error
        self.note_progress()
        self.succeeds, self.condition = False, condition(cause)
        self._metrics.database_errors.labels("settle").inc()
        if should_log(times):
            log.warning(
                "cannot settle, will go on trying",
                error=fault_name(cause),
                reason=explain(cause),
                tries=times,
            )

    def record(self, batch: Sequence[Settlement], fates: Sequence[Fate]) -> None:
        """Counts the rows, and releases those that this worker has finished: all but the refused ones."""
        finished = [pair for pair in zip(batch, fates, strict=True) if pair[1] not in UNFINISHED]
        written = [settlement.decision for settlement, fate in finished if fate is Fate.WRITTEN]
        now = time.monotonic()
        for status, rows in Counter([decision.status for decision in written]).items():
            self._metrics.settled.labels(status).inc(rows)
            self._written_at[status] = now
        for code, rows in Counter(d.code or "" for d in written if d.status is Status.DEAD).items():
            self._metrics.dead.labels(code).inc(rows)
        for code, tokens in self._settlements.take_disabled().items():
            self._metrics.tokens_disabled.labels(code).inc(tokens)
        again = Counter(d.code or "" for d in written if d.uses_try and d.delay is not None)
        for code, rows in again.items():
            self._metrics.retries.labels(code).inc(rows)
        if len(written) < len(finished):
            fenced = Counter(fate for _, fate in finished if fate is not Fate.WRITTEN)
            for fate, rows in fenced.items():
                self._metrics.fenced.labels(fate).inc(rows)
            log.warning(
                "rows are not this worker's any more: their results are not written",
                **{fate.value: rows for fate, rows in fenced.items()},
            )
        if self._trail.is_on:
            for settlement, became in finished:
                self._trail.settled(settlement, became.value)
        self._held.remove([settlement for settlement, _ in finished])
        self._look.note_capacity()
        delays = [decision.delay for decision in written if decision.delay is not None]
        if delays:
            self._look.note_due_in(min(delays))

    def count_dead(self, code: str, rows: int) -> None:
        """Counts pushes that became ``dead`` without a settlement."""
        self._metrics.settled.labels(Status.DEAD).inc(rows)
        self._metrics.dead.labels(code).inc(rows)

    def release(self, settlement: Settlement) -> None:
        """Releases a row whose result cannot be written."""
        if self._trail.is_on:
            self._trail.settled(settlement, "not written")
        self._held.remove([settlement])
        self._look.note_capacity()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return False  # perhaps only some rows are locked
    return is_transient(error) or isinstance(error, _FaultOfAll)
