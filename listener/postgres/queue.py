"""The queue in Postgres: claims, settlements, and what is due when.

The statements are in the folder sql; what they have in common is explained in statements.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import args_row, class_row, kwargs_row, scalar_row

from listener.log import should_log
from listener.postgres.connect import Connection, Pool, fetch_value
from listener.postgres.errors import ROW_FAULTS, fault_name, is_transient
from listener.postgres.locks import STRANGERS, LockHolder
from listener.postgres.statements import load
from listener.postgres.text import storable
from listener.push import EXPIRED_REASON, Decision, Push, Settlement

log = structlog.get_logger(__name__)

_CLAIM = load(__file__, "claim")
_FIRST = load(__file__, "claim_first")
_SETTLE = load(__file__, "settle")
_RELEASE = load(__file__, "release")
_EXPIRE = load(__file__, "expire")
_EARLIEST = load(__file__, "earliest")
_SWEEP = load(__file__, "sweep", earliest=_EARLIEST, strangers=STRANGERS)
_UNREADABLE = load(__file__, "unreadable")
DEPTH = load(__file__, "depth")
"""To be executed after BY_INDEX; the columns are the fields of StatusDepth."""

# A row that SKIP LOCKED skips is locked by another transaction; a row that no longer exists is not.
_LOCKED = """
with free as materialized (
  select id from public.push_notifications where id = any(%(ids)s::uuid[])
    for no key update skip locked
)
select id from public.push_notifications where id = any(%(ids)s::uuid[]) and id not in (select id from free)
"""

_DISABLE = """
select public.push_disable_token(token, code)
  from unnest(%(tokens)s::text[], %(codes)s::text[]) as d(token, code)
"""

BY_INDEX: LiteralString = "set local enable_seqscan = off"
"""Makes the next statement of the transaction read the index of waiting rows. The statistics of the table may be from a
time when most rows waited, and then Postgres would read the whole table."""

_AVOIDED_S = 600.0

# A database with the encoding SQL_ASCII stores any bytes, and refuses to send those that are no UTF-8.
_NOT_TEXT = (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter)
_NOT_UTF8 = (
    "a text of this push, or a token in push_recipients, is not valid UTF-8: write it again in that encoding"
)


class StatusDepth(NamedTuple):
    """The waiting rows of one status."""

    status: str
    pushes: int
    due: int
    oldest_due: float | None
    """Seconds for which the row that has waited longest has been due; None when none is due."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in the queue."""

    counts: dict[str, int]
    """Rows by status; every status in which a row waits is there."""
    due: int
    """Rows that could be claimed now."""
    oldest_due: float
    """Seconds for which the row that has waited longest has been due; 0 when none is due."""

    @classmethod
    def of(cls, rows: Iterable[StatusDepth]) -> Depth:
        """The sum of all statuses."""
        counts = {"pending": 0, "processing": 0, "failed": 0}
        due, oldest_due = 0, 0.0
        for row in rows:
            counts[row.status] = row.pushes
            due += row.due
            oldest_due = max(oldest_due, row.oldest_due or 0.0)
        return cls(counts, due, oldest_due)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a worker finds when it has not been notified for a while."""

    earliest: float | None
    """Seconds until the first row is due (negative: it is due); None: no row waits."""
    polling_locked: bool
    """Whether another session holds the polling lock or waits for it, so that inserts do not notify."""
    registered: bool
    """Whether this worker's row is still in ``push_listener.workers``."""
    strangers: Sequence[LockHolder]
    """The strangers that hold locks of push-listener."""


class Queue:
    """The rows of ``push_notifications``, as one worker claims and settles them.

    Every method raises ``psycopg.Error``: ``OperationalError`` when the database cannot be reached or no connection
    becomes free in time. None retries by itself.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float) -> None:
        self._pool = pool
        self._worker = worker_id
        self._lease = lease
        self._avoided: dict[UUID, float] = {}  # until when, in monotonic seconds
        self._disable_failures = 0  # in a row

    @property
    def worker_id(self) -> int:
        """The value of ``claimed_by`` in the rows of this worker."""
        return self._worker

    async def claim(
        self, limit: int, normal_limit: int | None = None, excluded: Sequence[UUID] = ()
    ) -> list[Push]:
        """Claims due rows under a lease: high priority first, then by due time.

        If a row cannot be claimed, fewer rows are returned, or none. The method finds that row and avoids it from then
        on.

        Args:
            limit: at most this number of rows.
            normal_limit: at most this number of rows of normal priority; None: ``limit``.
            excluded: rows that are not claimed.
        """
        normal_limit = limit if normal_limit is None else normal_limit
        try:
            async with self._pool.connection() as conn:
                return await self._take(conn, limit, normal_limit, excluded)
        except ROW_FAULTS as error:
            if is_transient(error):
                raise
            if limit > 1:
                return await self.claim(limit // 2, (normal_limit + 1) // 2, excluded)
            return await self._take_first(excluded)

    def avoid(self, push_id: UUID) -> None:
        """Excludes a row from claims for ten minutes: it cannot be claimed or settled, and must not block others."""
        self._avoided[push_id] = time.monotonic() + _AVOIDED_S

    async def _take(
        self, conn: Connection, limit: int, normal_limit: int, excluded: Sequence[UUID]
    ) -> list[Push]:
        # By position: a mapping by name (class_row) doubles the CPU time that 500 rows take here.
        cursor = conn.cursor(binary=True, row_factory=args_row(_push))
        await cursor.execute(
            _CLAIM,
            {
                "limit": limit,
                "normal_limit": normal_limit,
                "lease": self._lease,
                "worker": self._worker,
                "excluded": self._all_excluded(excluded),
            },
        )
        return await cursor.fetchall()

    async def _take_first(self, excluded: Sequence[UUID]) -> list[Push]:
        push_id: UUID | None = None
        try:
            async with self._pool.connection() as conn, conn.transaction():
                push_id = await fetch_value(conn, _FIRST, {"excluded": self._all_excluded(excluded)})
                return await self._take(conn, 1, 1, excluded)
        except ROW_FAULTS as error:
            if push_id is None or is_transient(error):
                raise
            async with self._pool.connection() as conn:
                await self._take(conn, 0, 0, excluded)  # raises if the fault is not in the row
                if isinstance(error, _NOT_TEXT):
                    await conn.execute(
                        _UNREADABLE, {"id": push_id, "code": "INVALID_TEXT", "reason": _NOT_UTF8}
                    )
                    log.warning("push dead", push_id=str(push_id), code="INVALID_TEXT")
                    return []
            log.error("row cannot be claimed", push_id=str(push_id), error=fault_name(error))
            self.avoid(push_id)
            return []

    def _all_excluded(self, excluded: Sequence[UUID]) -> list[UUID]:
        if self._avoided:
            now = time.monotonic()
            self._avoided = {push_id: until for push_id, until in self._avoided.items() if until > now}
        return [*self._avoided, *excluded]

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> int:
        """Writes rows, log rows and dead tokens in one transaction; returns how many rows this worker still held.

        Raises psycopg.errors.LockNotAvailable when another transaction holds the lock of a row for more than a moment.

        Args:
            batch: if empty, the method fails only for a reason that is not in a row.
            is_retry: an earlier call may have been committed although it failed here.
        """
        statuses, delays, tries, codes, reasons, message_ids = (
            map(list, zip(*(s.decision for s in batch), strict=True))
            if batch
            else [[]] * len(Decision._fields)
        )
        logs = [(s, line) for s in batch for line in s.logs]
        dead = [pair for s in batch for pair in s.dead_tokens]
        values = {
            "worker": self._worker,
            "is_retry": is_retry,
            "ids": [s.push_id for s in batch],
            "attempts": [s.attempt for s in batch],
            "statuses": [str(status) for status in statuses],
            "delays": delays,
            "tries": tries,
            "codes": codes,
            "reasons": [storable(reason) for reason in reasons],
            "message_ids": [storable(each) for each in message_ids],
            "log_ids": [s.push_id for s, _ in logs],
            "log_tokens": [line.token for _, line in logs],
            "log_statuses": [line.status for _, line in logs],
            "log_details": [_storable_json(line.details) for _, line in logs],
        }
        async with self._pool.connection() as conn:
            if not dead:
                return int(await fetch_value(conn, _SETTLE, values))
            async with conn.transaction():
                settled = int(await fetch_value(conn, _SETTLE, values))
                await self._disable(conn, dead)
            return settled

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        """The rows among these that another transaction has locked."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_LOCKED, {"ids": list(ids)})
            return set(await cursor.fetchall())

    async def _disable(self, conn: Connection, dead: list[tuple[str, str]]) -> None:
        """Disables tokens. The results are written even if that fails: the function may be the application's own."""
        try:
            async with conn.transaction():  # a savepoint
                await conn.execute(_DISABLE, {"tokens": [t for t, _ in dead], "codes": [c for _, c in dead]})
        except psycopg.Error as error:
            if conn.info.transaction_status is not TransactionStatus.INTRANS:
                raise  # the connection is lost, and the results with it
            self._disable_failures += 1
            if should_log(self._disable_failures):
                log.error(
                    "dead tokens not disabled",
                    error=fault_name(error),
                    tokens=len(dead),
                    times=self._disable_failures,
                )
        else:
            self._disable_failures = 0

    async def release(self, held: Sequence[UUID]) -> int:
        """Puts back the rows that this worker has claimed without knowing: all but ``held``. Returns their number."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_RELEASE, {"worker": self._worker, "held": list(held)})
        return cursor.rowcount

    async def expire(self, rows: int, excluded: Sequence[UUID] = ()) -> int:
        """Expires pushes past ``expires_at`` among the first due rows of each lane; returns their number.

        Args:
            rows: at most this number of rows of each lane is read.
            excluded: rows that are left alone.
        """
        values = {"rows": rows, "excluded": self._all_excluded(excluded), "reason": EXPIRED_REASON}
        async with self._pool.connection() as conn:
            return int(await fetch_value(conn, _EXPIRE, values))

    async def earliest(self, excluded: Sequence[UUID] = ()) -> float | None:
        """Seconds, by the database's clock, until the first row that is not ``excluded`` is due.

        Negative: it is due. None: no row waits.
        """
        async with self._pool.connection() as conn:
            value: float | None = await fetch_value(
                conn, _EARLIEST, {"excluded": self._all_excluded(excluded)}
            )
        return value

    async def sweep(self, excluded: Sequence[UUID] = ()) -> Sweep:
        """Returns what ``earliest`` returns, and what may keep notifications from this worker."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=kwargs_row(_sweep))
            await cursor.execute(_SWEEP, {"worker": self._worker, "excluded": self._all_excluded(excluded)})
            sweep = await cursor.fetchone()
        assert sweep is not None
        return sweep

    async def depth(self) -> Depth:
        """Counts what waits. Reads the index of waiting rows and those rows, never the history."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=class_row(StatusDepth))
            await cursor.execute(f"{BY_INDEX}; {DEPTH}".encode(), prepare=False)
            cursor.nextset()
            return Depth.of(await cursor.fetchall())


def _push(*columns: Any) -> Push:
    """A row of _CLAIM, whose columns are the fields of Push in their order."""
    push = Push(*columns)
    found = orjson.loads(columns[8]) if columns[8] else []
    push.recipients = [(token, platform) for token, platform in found]
    return push


def _storable_json(details: dict[str, object]) -> str:
    texts = {key: storable(each) if isinstance(each, str) else each for key, each in details.items()}
    return orjson.dumps(texts).decode()


def _sweep(*, strangers: str, **columns: Any) -> Sweep:
    return Sweep(strangers=[LockHolder(**each) for each in orjson.loads(strangers)], **columns)
