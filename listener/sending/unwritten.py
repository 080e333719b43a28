"""Handles results that the database refuses: writes as much of each as can be written, the status first.

A trigger, an index or a constraint of the application may refuse a row or its log rows. The order is:

1. the true status, without its log rows; these follow as soon as the table of logs takes them;
2. in place of ``pending``, which a unique index may refuse: ``failed``, which waits as well;
3. if no device has accepted the push: ``dead`` with the code NOT_WRITTEN. The reason names the result.
4. If a device has accepted the push, the worker notes the row as unwritable, so that no worker sends it again, and goes
   on trying to write the result. If another row has been given the same status meanwhile, the fault is in this row, and
   it becomes ``dead``.

A push may be due for another try at some devices while the log cannot hold which others have accepted it. Such a push
becomes ``sent`` at once, so that no device gets it twice.

A result that takes too long counts as refused. The cause may be a slow database, so step 3 does not make such a push
``dead``: the worker goes on trying to write the result.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import psycopg
import structlog

from listener.backoff import Backoff
from listener.log import should_log
from listener.metrics.own import Metrics
from listener.postgres.connect import STATEMENT_PATIENCE_S
from listener.postgres.errors import ROW_FAULTS
from listener.postgres.halving import Halving
from listener.postgres.settlements import UNFINISHED, Fate, Settlements
from listener.postgres.unwritable import IGNORED, UNLOGGED, Pause, code_of
from listener.push import Decision, LogLine, Settlement, Status
from listener.sending.result_writer import ResultWriter

log = structlog.get_logger(__name__)

_MOST_LOG_LINES = 20_000
_LOG_LINES_AT_ONCE = 500
_KEPT_AT_ONCE = 20

# For how long to try refused results before new ones get their turn.
_TRYING_S = 1.0
_TRYING_AT_THE_END_S = 10.0
_LOG_PATIENCE_S = 5.0

_SLOW = ("57014", TimeoutError.__name__)
"""Codes for a result that takes longer than statement_timeout, or than this service waits."""


@dataclass(slots=True)
class _Kept:
    """A result that cannot be written yet: of a push that was accepted, or because the database is slow."""

    settlement: Settlement
    code: str
    since: float = field(default_factory=time.monotonic)


class Unwritten:
    """Writes what can be written of refused results, and keeps the rest.

    Args:
        settlements: takes log lines, and notes rows that no worker must claim.
        writer: writes results, and counts them.
        first_wait: seconds, at most, before the first try to write what is kept.
        longest_wait: seconds, at most, between any two tries that take no time.
        share_of_time: the part of the time that the tries may take.
    """

    def __init__(
        self,
        settlements: Settlements,
        writer: ResultWriter,
        metrics: Metrics,
        *,
        first_wait: float = 1.0,
        longest_wait: float = 30.0,
        share_of_time: float = 0.1,
    ) -> None:
        self._settlements = settlements
        self._writer = writer
        self._metrics = metrics
        self._kept: deque[_Kept] = deque()
        self._log_lines: list[tuple[UUID, LogLine]] = []
        self._log_parts = Halving(_LOG_LINES_AT_ONCE)
        self._ended: set[UUID] = set()
        self._backoff = Backoff(first_wait, longest_wait)
        self._share_of_time = share_of_time
        self._try_at = 0.0
        self._log_failures = 0
        self._keeps = True

    @property
    def kept(self) -> int:
        """How many rows this worker holds although their requests have ended."""
        return len(self._kept)

    @property
    def waits(self) -> float | None:
        """Seconds until ``try_again`` is to be called; None: there is nothing to try."""
        if not (self._kept or self._log_lines or self._ended):
            return None
        return max(0.0, self._try_at - time.monotonic())

    async def write(self, settlement: Settlement, code: str) -> None:
        """Writes as much of the result as possible. ``code``: why the database has refused it.

        Raises psycopg.errors.LockNotAvailable when the row is locked.
        """
        for variant in variants(settlement, code):
            fate, why = await self._persist(variant)
            if fate not in UNFINISHED:
                await self._finished(settlement, variant, fate)
                return
            code = why
        accepted, is_slow = is_accepted(settlement), code in _SLOW
        # After a request the push may have been sent. A row that no device has accepted needs no note if the database
        # is only slow: the lease keeps other workers from it.
        if accepted or (settlement.logs and not is_slow):
            await self._note(settlement, code)
        if (accepted or is_slow) and self._keeps:
            self._kept.append(_Kept(settlement, code))
            self._wait()
        else:
            self._give_up(settlement, code)

    async def _persist(self, settlement: Settlement) -> tuple[Fate, str]:
        """Writes one result; returns its fate, and the code of the fault if the database refuses it."""
        try:
            fates = await self._writer.persist([settlement], again=True, is_refused=True)
        except psycopg.errors.LockNotAvailable:
            raise
        except (*ROW_FAULTS, TimeoutError) as error:
            return Fate.REFUSED, code_of(error)
        self._writer.record([settlement], fates)
        return fates[0], code_of_fate(fates[0])

    async def _finished(self, settlement: Settlement, written: Settlement, fate: Fate) -> None:
        """``written`` is in the row, or the row is not this worker's any more."""
        if settlement.logs and not written.logs:
            self._put_log_lines(settlement)
            if not self._log_failures:  # perhaps only the status was refused, and the log lines need not wait
                await self._write_log_lines(_TRYING_S)
        if fate is Fate.WRITTEN:
            self._ended.add(settlement.push_id)
            await self._forget()

    async def _forget(self) -> None:
        """Deletes the notes on rows that have been written after all: workers may claim those that wait for a retry."""
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                await self._settlements.unwritable.forget(list(self._ended))
            self._ended.clear()
        except (psycopg.Error, TimeoutError):
            self._metrics.database_errors.labels("settle").inc()
            self._wait()

    async def _note(self, settlement: Settlement, code: str) -> None:
        try:
            async with asyncio.timeout(STATEMENT_PATIENCE_S):
                pause = Pause.SLOW if code in _SLOW else Pause.ENDLESS
                await self._settlements.unwritable.note({settlement.push_id: code}, pause)
        except (psycopg.Error, TimeoutError):
            self._metrics.database_errors.labels("settle").inc()

    def _give_up(self, settlement: Settlement, code: str) -> None:
        log.error(
            "row cannot be settled; it stays as it is",
            push_id=str(settlement.push_id),
            result=settlement.decision.status,
            code=code,
            may_be_sent_again=code in _SLOW,
        )
        self._writer.release(settlement)

    def _wait(self) -> None:
        if self._try_at <= time.monotonic():
            self._try_at = time.monotonic() + self._backoff.failed()

    async def try_again(self) -> None:
        """Tries to write what is kept, but only for a moment, because new results wait meanwhile."""
        before, began = self.kept + len(self._log_lines), time.monotonic()
        if self._ended:
            await self._forget()
        await self._write_log_lines(_TRYING_S)
        for _ in range(min(_KEPT_AT_ONCE, len(self._kept))):
            if time.monotonic() - began > _TRYING_S:
                break
            kept = self._kept.popleft()
            try:
                if not await self._is_written(kept):
                    self._kept.append(kept)
            except psycopg.errors.LockNotAvailable:
                self._kept.append(kept)
        if self.kept + len(self._log_lines) < before:
            self._backoff.succeeded()
        now = time.monotonic()
        self._try_at = now + max(self._backoff.failed(), (now - began) / self._share_of_time)

    async def _is_written(self, kept: _Kept) -> bool:
        settlement = kept.settlement
        tries = [settlement, *variants(settlement, kept.code)]
        if self._writer.has_written(settlement.decision.status, kept.since):
            if is_accepted(settlement) and settlement.decision.delay is not None:
                tries.append(as_sent_in_part(settlement))
            tries.append(as_dead(settlement, kept.code))
        for variant in tries:
            fate, _ = await self._persist(variant)
            if fate not in UNFINISHED:
                await self._finished(settlement, variant, fate)
                return True
        return False

    def stop_keeping(self) -> None:
        """The worker ends and releases the rows that it keeps. They stay noted as unwritable; slow ones for a while."""
        self._keeps = False
        while self._kept:
            kept = self._kept.popleft()
            self._give_up(kept.settlement, kept.code)

    def _put_log_lines(self, settlement: Settlement) -> None:
        room = _MOST_LOG_LINES - len(self._log_lines)
        self._log_lines.extend((settlement.push_id, line) for line in settlement.logs[:room])
        if (lost := len(settlement.logs) - room) > 0:
            self._metrics.log_lines_lost.inc(lost)
        self._wait()

    async def _write_log_lines(self, seconds: float) -> None:
        """Writes log lines of rows whose status is written already, past those that cannot be written."""
        if not self._log_lines:
            return
        self._log_lines, error = await self._log_parts.write(self._log_lines, self._write_these, seconds)
        self._log_failures = self._log_failures + 1 if error else 0
        if error and should_log(self._log_failures):
            log.error(
                "rows of push_delivery_logs cannot be written; they wait",
                rows=len(self._log_lines),
                code=code_of(error),
            )

    async def _write_these(self, lines: Sequence[tuple[UUID, LogLine]]) -> None:
        async with asyncio.timeout(_LOG_PATIENCE_S):
            await self._settlements.log(lines)

    async def finish(self) -> None:
        """Tries for the last time to write log lines, and counts those that are lost."""
        if self._ended:
            await self._forget()
        await self._write_log_lines(_TRYING_AT_THE_END_S)
        if self._log_lines:
            log.error("rows of push_delivery_logs are lost", rows=len(self._log_lines))
            self._metrics.log_lines_lost.inc(len(self._log_lines))
            self._log_lines.clear()


def is_accepted(settlement: Settlement) -> bool:
    """Whether FCM has accepted the push for a device in this attempt."""
    return any(line.status == "sent" for line in settlement.logs)


def variants(settlement: Settlement, code: str) -> Iterator[Settlement]:
    """What to write in place of a result that the database has refused, the best first."""
    if code == UNLOGGED:
        yield as_sent_in_part(settlement)
        return
    decision = settlement.decision
    accepted = is_accepted(settlement)
    # The next attempt reads in the logs which devices have accepted the push.
    can_lack_logs = not (accepted and decision.delay is not None)
    if settlement.logs and can_lack_logs:
        yield replace(settlement, logs=[])
    if decision.status is Status.PENDING:
        failed = decision._replace(status=Status.FAILED)
        yield replace(settlement, decision=failed)
        if settlement.logs and can_lack_logs:
            yield replace(settlement, decision=failed, logs=[])
    if not accepted and code not in _SLOW:
        yield as_dead(settlement, code)


def as_dead(settlement: Settlement, code: str) -> Settlement:
    """The row is given up because its result cannot be written."""
    reason = f"the result ({settlement.decision.status}) could not be written: {_words(code)}"
    return replace(settlement, decision=Decision(Status.DEAD, code="NOT_WRITTEN", reason=reason), logs=[])


def as_sent_in_part(settlement: Settlement) -> Settlement:
    """Some devices have accepted the push. The others are given up, because nobody knows any more which they are."""
    decision = settlement.decision
    reason = (
        "not tried again at the other devices, because push_delivery_logs does not hold which devices accepted it: "
        f"{decision.reason}"
    )
    sent = Decision(Status.SENT, code="NOT_WRITTEN", reason=reason, message_id=decision.message_id)
    return replace(settlement, decision=sent, logs=[])


def code_of_fate(fate: Fate) -> str:
    """The code for a result that a trigger has ignored or changed."""
    return UNLOGGED if fate is Fate.UNLOGGED else IGNORED


def _words(code: str) -> str:
    if code == IGNORED:
        return "a trigger of the application ignores or changes it"
    return "it takes too long" if code in _SLOW else f"SQLSTATE {code}"
