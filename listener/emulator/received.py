"""What the emulator received: a bounded record, and a way to wait for more."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(slots=True)
class Received:
    """One request to ``messages:send`` and its outcome."""

    number: int
    """The number of the request, from 1 in order of arrival. ``clear()`` does not reset it."""
    received_at: float
    """Unix time in seconds."""
    at: float
    """Seconds of ``time.monotonic``, to measure durations."""
    kind: str | None
    """``token``, ``fid``, ``topic`` or ``condition``; None if the request has no target."""
    target: str | None
    body: bytes
    """The request as it was sent; empty if it has no readable message."""
    push_id: str | None
    """The value of ``message.data.push_id``."""
    validate_only: bool
    status: int | None
    """HTTP status of the answer; None if there was none."""
    error_code: str | None
    """``errorCode`` of FcmError, else ``error.status``; None without an error."""
    name: str | None
    """The message's name, if it was accepted, even if the client got no answer."""
    accepted: bool
    """Whether FCM accepted the message and would deliver it. False for ``validate_only``."""
    fault: str | None
    """The fault on demand that applied to it."""
    duplicate_of: int
    """How many earlier messages with the same push id and target were accepted, of those that are remembered."""
    recipients: tuple[str, ...] = ()
    """If it was accepted for a topic or a condition: the registration tokens that were subscribed then."""

    @property
    def message(self) -> dict[str, Any] | None:
        """The message as it was sent, parsed on each access; None if it is not readable."""
        # The record keeps bytes, because a hundred thousand parsed messages would be millions of objects, and every
        # garbage collection would traverse them.
        return orjson.loads(self.body)["message"] if self.body else None

    @property
    def outcome(self) -> str:
        """``accepted``, ``validated`` (``validate_only``), ``refused`` (an error answer) or ``lost``
        (neither accepted nor answered)."""
        if self.accepted:
            return "accepted"
        if self.status is None:
            return "lost"
        return "validated" if self.status == 200 else "refused"

    def as_dict(self) -> dict[str, Any]:
        """For the control API."""
        return {
            "number": self.number,
            "received_at": self.received_at,
            "at": self.at,
            "kind": self.kind,
            "target": self.target,
            "message": self.message,
            "push_id": self.push_id,
            "validate_only": self.validate_only,
            "status": self.status,
            "error_code": self.error_code,
            "name": self.name,
            "accepted": self.accepted,
            "outcome": self.outcome,
            "fault": self.fault,
            "duplicate_of": self.duplicate_of,
            "recipients": self.recipients,
        }


Predicate = Callable[[Received], bool]


@dataclass(slots=True, eq=False)
class _Waiter:
    predicate: Predicate
    count: int
    done: asyncio.Future[None]
    found: list[Received] = field(default_factory=list)

    def offer(self, record: Received) -> None:
        if not self.done.done() and self.predicate(record):
            self.found.append(record)
            if len(self.found) >= self.count:
                self.done.set_result(None)


class Journal:
    """The records, newest last. When there are more than ``limit``, the oldest are dropped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.accepted = 0
        self._count = 0
        self._records: deque[Received] = deque()
        self._accepted: Counter[tuple[str, str | None, str | None]] = Counter()
        self._waiters: list[_Waiter] = []
        self.forgotten = 0
        self.duplicates = 0
        self.answers: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Received]:
        return iter(self._records)

    def add(self, record: Received) -> None:
        """Appends a record, sets its ``number`` and ``duplicate_of``, and wakes the callers that wait for it."""
        self._count += 1
        record.number = self._count
        self.accepted += record.accepted
        if record.accepted and record.push_id is not None:
            same = (record.push_id, record.kind, record.target)
            record.duplicate_of = self._accepted[same]
            self.duplicates += record.duplicate_of > 0
            self._accepted[same] += 1
        self._records.append(record)
        if len(self._records) > self.limit:
            self._forget(self._records.popleft())
        status = "no answer" if record.status is None else str(record.status)
        self.answers[f"{status} {record.error_code}" if record.error_code else status] += 1
        for waiter in self._waiters:
            waiter.offer(record)

    def _forget(self, record: Received) -> None:
        self.forgotten += 1
        if record.accepted and record.push_id is not None:
            same = (record.push_id, record.kind, record.target)
            self._accepted[same] -= 1
            if not self._accepted[same]:
                del self._accepted[same]

    def clear(self) -> None:
        """Forgets everything, including the counts. Callers in ``wait_for`` keep what they have found so far."""
        self._records.clear()
        self._accepted.clear()
        self.answers.clear()
        self.forgotten = self.duplicates = self.accepted = 0

    async def wait_for(self, predicate: Predicate, count: int, timeout: float) -> list[Received]:  # noqa: ASYNC109
        """The first ``count`` records that satisfy ``predicate``, including those already received.

        Raises TimeoutError after ``timeout`` seconds.
        """
        if count < 1:
            return []
        waiter = _Waiter(predicate, count, asyncio.get_running_loop().create_future())
        for record in self._records:
            waiter.offer(record)
        if waiter.done.done():
            return waiter.found
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter.done
        except TimeoutError:
            seen = ", ".join(f"{n} x {answer}" for answer, n in self.answers.items()) or "nothing"
            raise TimeoutError(
                f"{len(waiter.found)} of {count} records after {timeout:g} s; received: {seen}"
            ) from None
        finally:
            self._waiters.remove(waiter)
        return waiter.found
