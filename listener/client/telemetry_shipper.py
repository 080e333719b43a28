"""Sends the records of a telemetry buffer until each is stored or refused for good. It runs in one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID, uuid4

from listener.client.errors import (
    SQLSTATE,
    ClientError,
    NotAllowed,
    NotFound,
    NotInstalled,
    Unavailable,
    reported_by,
)
from listener.client.loops import is_cancelled
from listener.client.seldom import Seldom
from listener.client.telemetry_buffer import Buffer
from listener.client.transport import Transport

MAX_BATCH = 1000
"""The most records that ``flush_telemetry`` takes in one call."""
_LONGEST_RETRY_AFTER = 3600.0
_PAUSE_WHILE_CLOSING = 0.2
_MOST_DOUBTS = 10
"""After a try without an answer: how many refusals of a gateway are tried again before the batch is given up."""

log = logging.getLogger(__name__)

OnReject = Callable[[Mapping[str, Any], str], object]
"""It is called with each record that was refused for good, and the reason."""


@dataclass(frozen=True, kw_only=True)  # without slots: the defaults are read from the class
class Options:
    """How telemetry is sent. Times are in seconds."""

    flush_at: int = 100
    """A batch is cut as soon as this many records wait. A batch also has no more records than this."""
    flush_interval: float = 10.0
    max_buffer: int = 10_000
    """The most records that may wait to get into a batch. The batch that is being sent is not counted."""
    timeout: float = 15.0
    """The limit of one try."""
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """A pause between two tries is random, from 0 to a limit. The limit is ``first_pause`` after the first try, and
    doubles with each try up to ``longest_pause``."""
    on_reject: OnReject | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.flush_at <= MAX_BATCH:
            raise ValueError(f"flush_at must be from 1 to {MAX_BATCH}")
        if self.max_buffer < 1:
            raise ValueError("max_buffer must be at least 1")
        if min(self.flush_interval, self.timeout, self.first_pause) <= 0:
            raise ValueError("flush_interval, timeout and first_pause must be greater than 0")
        if self.longest_pause < self.first_pause:
            raise ValueError("longest_pause must not be less than first_pause")


@dataclass(slots=True)
class Batch:
    """Records that are stored together, under the same id in every try."""

    records: list[str]
    id: UUID = field(default_factory=uuid4)
    may_be_stored: bool = False
    """A try has ended without an answer, so the database may have the batch."""


class Shipper:
    """The loop that cuts batches and sends them, one after the other."""

    def __init__(self, buffer: Buffer, transport: Transport, options: Options) -> None:
        self._buffer = buffer
        self._transport = transport
        self._options = options
        self._seldom = Seldom(log)
        self._wanted = asyncio.Event()
        """Set when somebody asks for a flush, the buffer has enough for a batch, or the service is closing."""
        self._flushes: list[tuple[int, Callable[[], object]]] = []
        self._closing = False
        self._work: list[Batch] = []
        """Batches that are neither stored nor refused. The last one is sent first."""

    def successor(self) -> Self:
        """A shipper for another event loop, which takes over the unfinished batches. This one must not run any more."""
        heir = type(self)(self._buffer, self._transport, self._options)
        heir._seldom, heir._closing = self._seldom, self._closing
        heir._work, self._work = self._work, []
        for batch in heir._work[-1:]:
            batch.may_be_stored = True
        return heir

    def wake(self) -> None:
        """Tells the shipper that enough records wait for a batch."""
        self._wanted.set()

    def flush(self, done: Callable[[], object]) -> None:
        """Sends the waiting records at once, even during a pause. Calls ``done`` when none of them waits any more."""
        self._flushes.append((self._buffer.entered, done))
        self._wanted.set()

    def close(self) -> None:
        """Sends the waiting records at once. ``run`` returns when none is left."""
        self._closing = True
        self._wanted.set()

    async def run(self) -> None:
        """Sends until ``close`` was called and nothing is left."""
        if self._work:  # batches that another loop has left
            await self._deliver()
            self._report()
        while not (self._closing and len(self._buffer) == 0):
            await self._wait(self._options.flush_interval)
            # Records that come in from now on wait until there are enough for a batch.
            target = self._buffer.entered
            while self._buffer.removed < target and (records := self._buffer.cut(self._options.flush_at)):
                self._work.append(Batch(records))
                await self._deliver()
            self._report()
        self._report()

    def _report(self) -> None:
        """Calls ``done`` of each flush that is complete. Called while no batch is being sent."""
        waiting, self._flushes = self._flushes, []
        for target, done in waiting:
            if self._buffer.removed >= target:
                done()
            else:
                self._flushes.append((target, done))
        if self._flushes:
            self._wanted.set()

    async def _wait(self, seconds: float) -> None:
        """Returns when ``_wanted`` is set, or after ``seconds``."""
        if not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()
            self._wanted.clear()

    async def _pause(self, seconds: float) -> None:
        if self._closing:
            await asyncio.sleep(min(seconds, _PAUSE_WHILE_CLOSING))
            return
        # Only a flush or close ends the pause. Enough records for another batch are no reason to try sooner.
        before = len(self._flushes)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._closing and len(self._flushes) == before and (left := end - loop.time()) > 0:
            await self._wait(left)

    async def _deliver(self) -> None:
        """Sends the batches in ``_work`` until each of their records is stored or refused."""
        while self._work:
            batch = self._work[-1]
            refusal = await self._store(batch)
            self._work.pop()
            if refusal is None:
                continue
            if len(batch.records) == 1 or batch.may_be_stored:
                for each in batch.records:
                    self._reject(each, refusal)
            else:
                # No record of the batch was stored, so the halves may have new ids.
                middle = len(batch.records) // 2
                self._work += [Batch(batch.records[middle:]), Batch(batch.records[:middle])]

    async def _store(self, batch: Batch) -> str | None:
        """Sends one batch until it is stored, and returns None; or returns the reason if it is refused for good."""
        args = {"p_payloads": [json.loads(each) for each in batch.records], "p_batch_id": str(batch.id)}
        limit, doubts = self._options.first_pause, 0
        while True:
            problem = await self._try(batch, args)
            if problem is None:
                return None
            reason = str(problem)
            pause = random.uniform(0, limit)  # noqa: S311  # jitter, not secrecy
            if isinstance(problem, Unavailable):
                if problem.retry_after is not None:
                    pause += min(problem.retry_after, _LONGEST_RETRY_AFTER)
                batch.may_be_stored |= problem.may_have_happened
            elif isinstance(problem, NotAllowed | NotInstalled | NotFound):
                # The records are not at fault: somebody may replace the key or migrate the database, or PostgREST may
                # not know the function yet.
                pause = self._options.longest_pause
            elif SQLSTATE.fullmatch(problem.code or ""):
                # The database refuses these bytes in every try, so no earlier try has stored them either.
                batch.may_be_stored = False
                return reason
            elif not batch.may_be_stored or doubts == _MOST_DOUBTS:
                return reason
            else:  # a gateway refused; an earlier try without an answer may have stored the batch
                pause, doubts = self._options.longest_pause, doubts + 1
            waiting = sum(len(each.records) for each in self._work) + len(self._buffer)
            self._seldom.warn("telemetry: %s records wait, next try in %.0f s: %s", waiting, pause, reason)
            limit = min(2 * limit, self._options.longest_pause)
            await self._pause(pause)

    async def _try(self, batch: Batch, args: Mapping[str, Any]) -> ClientError | None:
        """Sends a batch once, and counts the records as the database answers. Returns the error, or None."""
        try:
            async with asyncio.timeout(self._options.timeout):
                answer = await self._transport.call("flush_telemetry", args)
            self._note(batch.records, answer)
            return None
        except ClientError as error:
            return error
        except TimeoutError:
            return Unavailable(f"no answer within {self._options.timeout:g} s", may_have_happened=True)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            # An application's own transport may raise any error. Telemetry must survive it, and must not log its text,
            # which may hold anything.
            name = type(error).__name__
            return reported_by(error) or Unavailable(name, may_have_happened=True)

    def _note(self, records: list[str], answer: Any) -> None:
        """Counts the stored and the refused records of a batch. Raises some exception if the answer cannot be read."""
        rejected = [(records[each["index"]], str(each["reason"])) for each in answer["rejected"]]
        self._buffer.settle(accepted=len(records) - len(rejected))
        for record, reason in rejected:
            self._reject(record, reason)

    def _reject(self, record: str, reason: str) -> None:
        self._buffer.settle(rejected=1)
        self._seldom.warn("telemetry: a record was refused for good: %s", reason)
        if self._options.on_reject is not None:
            try:
                self._options.on_reject(json.loads(record), reason)
            except Exception as error:
                self._seldom.warn("telemetry: on_reject raised %s", type(error).__name__)
