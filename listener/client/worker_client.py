"""A worker of the application that shares the queue with listeners, or replaces them."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

from listener.client.errors import ClientError, NotFound, Unavailable, WrongState
from listener.client.loops import is_cancelled
from listener.client.push_progress import read_time
from listener.client.seldom import Seldom
from listener.client.transport import Transport, uuid_text

LEASE = 60.0
"""The lease of ``fetch_pending_pushes`` in seconds: after that the push is due again."""

_BEGIN_WITHIN = 40.0
_END_WITHIN = 55.0
"""Seconds since the fetch: no push is begun after ``_BEGIN_WITHIN``, and none is worked on after ``_END_WITHIN``."""
_CONCURRENCY = 10
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPush:
    """A push on which this worker has a lease of 60 s."""

    id: UUID
    user_id: UUID | None
    device_token: str | None = field(repr=False)
    """A token or an installation id. None: the push goes to every device of ``user_id`` (view ``push_recipients``)."""
    title: str | None = field(repr=False)
    body: str | None = field(repr=False)
    data: Any = field(repr=False)
    status: str
    retry_count: int
    """Tries that have failed."""
    delivery_attempts: int
    """Tries, this one included."""
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class ProcessingCounts:
    """What ``trigger_processing`` has done."""

    sent: int = 0
    failed: int = 0
    """``send`` raised an error: the push is tried again later, or is dead after its fifth try."""
    left: int = 0
    """No result was written, because time ran out or another worker has the push. It is due again after its lease."""

    @property
    def fetched(self) -> int:
        return self.sent + self.failed + self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What ``get_push_delivery_stats`` says about the last days."""

    total_pushes: int
    sent_pushes: int
    failed_pushes: int
    delivered_pushes: int
    delivery_rate: float
    """Percent of the sent pushes."""
    avg_delivery_time: timedelta
    """From the insert to the first receipt."""


class SendFailed(Exception):
    """``send`` raises it to say why it failed. Its text becomes ``last_error``, which the user of the push may read.

    For any other error only the name of its class is written, because its text may hold a token.
    """


Send = Callable[[PendingPush], Awaitable[object]]


class PushWorkerClient:
    """Fetches pushes, and reports what became of them. It needs the service key, or a login as the owner.

    Every method raises ClientError, as ``listener.client.errors`` describes.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._polling: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._seldom = Seldom(log)

    async def fetch_pending(self, limit: int = 100) -> list[PendingPush]:
        """Takes up to ``limit`` due pushes (1 to 1000), high priority first. No other worker gets them for 60 s."""
        rows = await self._transport.call("fetch_pending_pushes", {"p_limit": limit})
        return [_pending(row) for row in rows]

    async def mark_sent(self, push_id: UUID | str) -> str:
        """Reports that FCM has accepted the push. Returns the new status. Repeating the call changes nothing."""
        return str(await self._transport.call("mark_push_sent", {"p_push_id": uuid_text("push_id", push_id)}))

    async def mark_failed(self, push_id: UUID | str, error: str | None = None) -> str:
        """Reports that FCM has not accepted the push. Returns the new status. Repeating the call changes nothing.

        Args:
            error: the reason, for ``last_error``. The user of the push may read it: no token, no payload.
        """
        args: dict[str, Any] = {"p_push_id": uuid_text("push_id", push_id)}
        if error is not None:
            args["p_error"] = error.replace("\x00", "").encode(errors="replace").decode()
        return str(await self._transport.call("mark_push_failed", args))

    async def trigger_processing(self, send: Send, limit: int = 100) -> ProcessingCounts:
        """Fetches due pushes, calls ``send`` for each, ten at a time, and reports each as sent or with its error.

        A push is not begun when less than 20 s of its lease are left. ``send`` is cancelled 5 s before the lease ends.
        """
        fetched_at = time.monotonic()  # before the call: the lease begins during it
        pushes = await self.fetch_pending(limit)
        places = asyncio.Semaphore(_CONCURRENCY)

        async def one(push: PendingPush) -> str:
            async with places:
                if time.monotonic() - fetched_at > _BEGIN_WITHIN:
                    return "left"
                return await self._process(push, send, fetched_at + _END_WITHIN)

        done = await asyncio.gather(*map(one, pushes))
        return ProcessingCounts(done.count("sent"), done.count("failed"), done.count("left"))

    async def start_polling(self, send: Send, interval: float = 1.0, *, limit: int = 100) -> None:
        """Begins to call ``trigger_processing`` in a task, every ``interval`` s, and at once after a full batch.

        While the database cannot be reached, it tries again with growing pauses of up to 30 s.

        Raises:
            RuntimeError: it polls already.
        """
        if self._polling is not None and not self._polling.done():
            raise RuntimeError("this client polls already: stop_polling() first")
        self._stopping = asyncio.Event()
        self._polling = asyncio.create_task(self._poll(send, interval, limit), name="push-worker-polling")

    async def stop_polling(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109  # it ends, and raises nothing
        """Fetches no more, and returns when the pushes in work are done. After ``timeout`` s it cancels them.

        A cancelled push is due again when its lease ends. Raises the error that ended the polling, if there was one.
        """
        polling, self._polling = self._polling, None
        if polling is None:
            return
        self._stopping.set()
        done, _ = await asyncio.wait({polling}, timeout=timeout)
        if not done:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
            return
        polling.result()

    async def get_push_stats(self, days: int = 7) -> Stats:
        """Counts of the last ``days`` days in UTC, today included."""
        (row,) = await self._transport.call("get_push_delivery_stats", {"p_days": days})
        return Stats(
            total_pushes=row["total_pushes"],
            sent_pushes=row["sent_pushes"],
            failed_pushes=row["failed_pushes"],
            delivered_pushes=row["delivered_pushes"],
            delivery_rate=float(row["delivery_rate"]),
            avg_delivery_time=_interval(row["avg_delivery_time"]),
        )

    async def cleanup(self, older_than: timedelta) -> int:
        """Deletes pushes that ended longer ago than ``older_than``, with their log rows; returns how many.

        This is for an application without a listener. A listener can do it by itself (``docs/retention.md``).

        Raises:
            TypeError: the transport is not ``Direct``.
            ValueError: the time is negative.
        """
        if older_than < timedelta(0):
            raise ValueError("older_than must not be negative")
        delete_ended = getattr(self._transport, "delete_ended", None)
        if delete_ended is None:
            raise TypeError(f"cleanup needs Direct: {type(self._transport).__name__} can only call functions")
        return int(await delete_ended(older_than))

    async def close(self) -> None:
        """Stops polling, and closes the connections of the transport in this event loop."""
        await self.stop_polling()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _poll(self, send: Send, interval: float, limit: int) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                counts = await self.trigger_processing(send, limit)
            except Unavailable as error:
                self._seldom.warn("polling for pushes: %s", error)
                await self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            except ClientError as error:
                log.error("polling for pushes has ended: %s", error)
                raise
            pause = _FIRST_PAUSE
            # If no push of the batch could be settled, fetching again at once would be a busy loop.
            if counts.fetched < limit or counts.left == counts.fetched:
                await self._rest(interval)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _process(self, push: PendingPush, send: Send, deadline: float) -> str:
        """Sends one push and reports the result, until ``deadline``. Returns the name of the count to increase."""
        problem: str | None = None
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await send(push)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            problem = str(error) if isinstance(error, SendFailed) else f"send raised {type(error).__name__}"
            self._seldom.warn("push %s: send raised %s", push.id, type(error).__name__)
        return await self._settle(push.id, problem, deadline)

    async def _settle(self, push_id: UUID, problem: str | None, deadline: float) -> str:
        pause = _FIRST_PAUSE
        while True:
            try:
                if problem is None:
                    await self.mark_sent(push_id)
                    return "sent"
                await self.mark_failed(push_id, problem)
                return "failed"
            except Unavailable as error:
                if time.monotonic() + pause > deadline:
                    self._seldom.warn("push %s: its result could not be written: %s", push_id, error)
                    return "left"
                await asyncio.sleep(pause)
                pause *= 2
            except (NotFound, WrongState):  # cancelled, deleted, or taken by another worker after the lease
                return "left"
            except ClientError as error:
                self._seldom.warn("push %s: its result was refused: %s", push_id, error)
                return "left"


def _pending(row: Mapping[str, Any]) -> PendingPush:
    return PendingPush(
        id=UUID(row["id"]),
        user_id=None if row["user_id"] is None else UUID(row["user_id"]),
        device_token=row["device_token"],
        title=row["title"],
        body=row["body"],
        data=row["data"],
        status=row["status"],
        retry_count=row["retry_count"],
        delivery_attempts=row["delivery_attempts"],
        created_at=read_time(row["created_at"]),
    )


# Postgres writes an interval of hours, minutes and seconds in one of these styles, depending on IntervalStyle.
_CLOCK = re.compile(r"(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d(?:\.\d+)?)")  # postgres, sql_standard: 50:00:43.5
_WORDS = re.compile(
    r"@ (?:(?P<h>\d+) hours? ?)?(?:(?P<m>\d+) mins? ?)?(?:(?P<s>[\d.]+) secs?)?"
)  # postgres_verbose
_ISO = re.compile(r"PT(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>[\d.]+)S)?")  # iso_8601


def _interval(text: str) -> timedelta:
    found = _CLOCK.fullmatch(text) or _WORDS.fullmatch(text) or _ISO.fullmatch(text)
    if found is None:
        return timedelta(0)  # "0" (sql_standard) and "@ 0"
    return timedelta(hours=int(found["h"] or 0), minutes=int(found["m"] or 0), seconds=float(found["s"] or 0))
