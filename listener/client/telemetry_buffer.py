"""Telemetry records that wait, and counts of what became of all records."""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

MAX_RECORD_BYTES = 16_384
"""The most bytes of one record as JSON that ``flush_telemetry`` takes."""
MAX_BATCH_BYTES = 512 * 1024
"""The most bytes of a batch as JSON text. ``flush_telemetry`` takes 2 MiB of jsonb, which may be four times as big."""


@dataclass(frozen=True, slots=True)
class TelemetryCounts:
    """What became of the records of this process. The sum is the number of calls of ``batch_log``."""

    accepted: int = 0
    """Stored."""
    rejected: int = 0
    """Refused for good, by ``batch_log`` or by the database."""
    dropped: int = 0
    """Lost, because the buffer was full or the service was closed already."""
    pending: int = 0
    """None of these yet. After ``close`` they are lost, unless a last try was stored and only its answer is missing."""


class Buffer:
    """Records that are not in a batch yet.

    Any thread may call any method. So may a signal handler or a finalizer that interrupts a method: the lock is
    reentrant and held for microseconds, and no statement below leaves half of a change behind.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lock = threading.RLock()
        self._records: deque[str] = deque()
        self._logged = 0
        self.entered = 0
        """How many records have come in. When ``removed`` reaches this number, none of them waits here any more."""
        self.removed = 0
        """How many records have left the buffer, the oldest first, for a batch or because the buffer was full."""
        self._accepted = self._rejected = self._dropped = 0

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: str) -> None:
        """Adds a record, and drops the oldest if there is no room."""
        with self._lock:
            self._records.append(record)
            self._logged += 1
            self.entered += 1
            while len(self._records) > self._bound:
                self._records.popleft()
                self.removed += 1
                self._dropped += 1

    def refuse(self, *, closed: bool) -> None:
        """Counts a record that was not added: as dropped if the service is closed, else as rejected."""
        with self._lock:
            self._logged += 1
            if closed:
                self._dropped += 1
            else:
                self._rejected += 1

    def cut(self, limit: int) -> list[str]:
        """Removes and returns a batch: the oldest records, at most ``limit``, and no more bytes than one call takes."""
        batch: list[str] = []
        size = 0
        with self._lock:
            while self._records and len(batch) < limit:
                size += len(self._records[0])
                if batch and size > MAX_BATCH_BYTES:
                    break
                batch.append(self._records.popleft())
                self.removed += 1
        return batch

    def settle(self, *, accepted: int = 0, rejected: int = 0) -> None:
        """Counts records of a batch that were stored or refused."""
        with self._lock:
            self._accepted += accepted
            self._rejected += rejected

    def counts(self) -> TelemetryCounts:
        """What became of all records so far."""
        with self._lock:
            done = self._accepted + self._rejected + self._dropped
            return TelemetryCounts(self._accepted, self._rejected, self._dropped, self._logged - done)


def encode(
    kind: object,
    message: object,
    metadata: Mapping[str, Any] | None,
    timestamp: datetime | None,
    user_id: object,
) -> str | None:
    """A record as JSON in ASCII, with its time; None if the database would refuse it.

    Values and keys in the metadata that JSON does not have, such as NaN, are written as text. U+0000 and halves of
    surrogate pairs, which Postgres cannot store, are replaced.

    Raises:
        Exception: a method of the metadata raised it, or the metadata contains itself or is not a mapping.
    """
    time = timestamp or datetime.now(UTC)
    record: dict[str, Any] = {
        "type": str(kind),
        "message": str(message),
        "timestamp": (time if time.tzinfo else time.astimezone(UTC)).isoformat(),
    }
    if not 1 <= len(record["type"]) <= 100:
        return None
    if metadata:
        record["meta"] = dict(metadata)
    if user_id is not None:
        record["user_id"] = _uuid_or_text(user_id)
    try:
        text = json.dumps(record, default=str, allow_nan=False)
    except (TypeError, ValueError):  # a key or a number that JSON does not have
        text = json.dumps(_plain(record), default=str, allow_nan=False)
    if "\\u0000" in text or "\\ud" in text:
        text = json.dumps(_storable(json.loads(text)))
    return text if _fits(text) else None


def _fits(text: str) -> bool:
    """Whether the record is small enough for the database, which counts bytes of UTF-8.

    The text is ASCII, at most three times as long as that: an escape of six characters stands for at least two bytes.
    """
    if len(text) <= MAX_RECORD_BYTES:
        return True
    if len(text) > 3 * MAX_RECORD_BYTES:
        return False
    return len(json.dumps(json.loads(text), ensure_ascii=False).encode()) <= MAX_RECORD_BYTES


def _uuid_or_text(user_id: object) -> str:
    """A user id in the form that the database takes. A value that is not a UUID stays, and the database refuses it."""
    try:
        return str(UUID(str(user_id)))
    except ValueError:
        return str(user_id)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {_plain_key(key): _plain(each) for key, each in value.items()}
    return value


def _plain_key(key: Any) -> Any:
    # Python's json writes these keys as JavaScript does: true, null, 1.
    return key if isinstance(key, str | bool | int | None) else str(key)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(each) for key, each in value.items()}
    return value
