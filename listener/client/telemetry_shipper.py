"""Sends what is in a buffer of telemetry, until it is stored or refused for good. Runs in one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from listener.client.errors import ClientError, NotAllowed, NotInstalled, Unavailable
from listener.client.seldom import Seldom
from listener.client.telemetry_buffer import Buffer
from listener.client.transport import Transport

MAX_BATCH = 1000
"""Records that ``flush_telemetry`` takes in one call."""
_LONGEST_RETRY_AFTER = 3600.0
_PAUSE_WHILE_CLOSING = 0.2

log = logging.getLogger(__name__)

OnReject = Callable[[Mapping[str, Any], str], object]
"""Is given each record that the database has refused for good, and why."""


@dataclass(frozen=True, kw_only=True)  # without slots: the defaults are read from the class
class Options:
    """How telemetry is sent. Times are seconds."""

    flush_at: int = 100
    """A batch is cut as soon as so many records wait; also the most in one batch."""
    flush_interval: float = 10.0
    max_buffer: int = 10_000
    """Records that may wait to get into a batch; one batch is under way besides."""
    timeout: float = 15.0
    """For one try."""
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """Between two tries: at first the one, doubled each time up to the other, and drawn evenly from 0 to that."""
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


class Shipper:
    """The loop that cuts batches and sends them, one after the other."""

    def __init__(self, buffer: Buffer, transport: Transport, options: Options) -> None:
        self._buffer = buffer
        self._transport = transport
        self._options = options
        self._seldom = Seldom(log)
        self._wanted = asyncio.Event()
        """Somebody asked for a flush, the buffer has enough for a batch, or the service is closing."""
        self._flushes: list[tuple[int, Callable[[], object]]] = []
        self._closing = False

    def wake(self) -> None:
        """There is enough for a batch."""
        self._wanted.set()

    def flush(self, done: Callable[[], object]) -> None:
        """Sends at once what is there; ``done`` is called when nothing of it waits any more. Ends a pause."""
        self._flushes.append((self._buffer.logged, done))
        self._wanted.set()

    def close(self) -> None:
        """Sends at once what is there; ``run`` returns when nothing is left."""
        self._closing = True
        self._wanted.set()

    async def run(self) -> None:
        """Sends until ``close`` was called and nothing is left."""
        while not (self._closing and len(self._buffer) == 0):
            await self._wait(self._options.flush_interval)
            # What comes in from now on waits until it is enough for a batch.
            target = self._buffer.logged
            while self._buffer.removed < target and (batch := self._buffer.cut(self._options.flush_at)):
                await self._deliver(batch)
            self._report()
        self._report()

    def _report(self) -> None:
        """Tells those that wait for a flush. No batch is under way."""
        waiting, self._flushes = self._flushes, []
        for target, done in waiting:
            if self._buffer.removed >= target:
                done()
            else:
                self._flushes.append((target, done))
        if self._flushes:
            self._wanted.set()

    async def _wait(self, seconds: float) -> None:
        """Returns when something is wanted, or after so many seconds."""
        if not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()
            self._wanted.clear()

    async def _pause(self, seconds: float) -> None:
        if self._closing:
            await asyncio.sleep(min(seconds, _PAUSE_WHILE_CLOSING))
            return
        # That there is enough for another batch is no reason to try sooner.
        before = len(self._flushes)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._closing and len(self._flushes) == before and (left := end - loop.time()) > 0:
            await self._wait(left)

    async def _deliver(self, records: list[str]) -> None:
        """Sends one batch until each of its records is stored or refused."""
        work = [records]
        while work:
            records = work.pop()
            refusal = await self._store(records, uuid4())
            if refusal is None:
                continue
            if len(records) == 1:
                self._reject(records[0], refusal)
            else:
                # Nothing of it was stored, so the halves may have ids of their own.
                middle = len(records) // 2
                work += [records[middle:], records[:middle]]

    async def _store(self, records: list[str], batch_id: UUID) -> str | None:
        """Stores one batch; returns why not if it was refused for good."""
        args = {"p_payloads": [json.loads(each) for each in records], "p_batch_id": str(batch_id)}
        limit = self._options.first_pause
        while True:
            try:
                async with asyncio.timeout(self._options.timeout):
                    answer = await self._transport.call("flush_telemetry", args)
                self._note(records, answer)
                return None
            except (NotAllowed, NotInstalled) as error:
                # No fault of the records: a key may be replaced, a migration may follow.
                pause, reason = self._options.longest_pause, str(error)
            except Unavailable as error:
                pause, reason = random.uniform(0, limit), str(error)  # noqa: S311  # jitter, not secrecy
                if error.retry_after is not None:
                    pause += min(error.retry_after, _LONGEST_RETRY_AFTER)
            except ClientError as error:
                return str(error)
            except TimeoutError:
                pause = random.uniform(0, limit)  # noqa: S311
                reason = f"no answer within {self._options.timeout:g} s"
            except Exception as error:
                # Of a transport of the application, say: telemetry must survive it. Its text may hold anything.
                pause, reason = random.uniform(0, limit), type(error).__name__  # noqa: S311
            waiting = len(records) + len(self._buffer)
            self._seldom.warn("telemetry: %s records wait, next try in %.0f s: %s", waiting, pause, reason)
            limit = min(2 * limit, self._options.longest_pause)
            await self._pause(pause)

    def _note(self, records: list[str], answer: Any) -> None:
        """Counts what the database says of a batch that it has taken."""
        rejected = answer["rejected"]
        self._buffer.settle(accepted=len(records) - len(rejected))
        for each in rejected:
            self._reject(records[each["index"]], each["reason"])

    def _reject(self, record: str, reason: str) -> None:
        self._buffer.settle(rejected=1)
        self._seldom.warn("telemetry: a record was refused for good: %s", reason)
        if self._options.on_reject is not None:
            try:
                self._options.on_reject(json.loads(record), reason)
            except Exception as error:
                self._seldom.warn("telemetry: on_reject raised %s", type(error).__name__)
