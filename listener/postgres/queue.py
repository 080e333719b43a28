"""The queue in Postgres: claims, and what is due when. settlements.py writes the results.

The statements are in the folder sql; what they have in common is explained in statements.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg.rows import args_row, kwargs_row, scalar_row

from listener.postgres.batch_limit import MOST_CLAIMED, BatchLimit
from listener.postgres.claiming import CLAIM, CLAIM_THESE, LOCK_DUE, Claiming, ClaimReader
from listener.postgres.connect import STATEMENT_PATIENCE_S, Connection, Pool, fetch_value
from listener.postgres.errors import ROW_FAULTS, is_of_rows
from listener.postgres.foreign_triggers import FOREIGN_TRIGGERS, NOT_DEFERRED, ForeignTriggers
from listener.postgres.frontier import WHOLE, Begin, Frontier, RowBehind
from listener.postgres.locks import STRANGERS, LockHolder
from listener.postgres.parts import MANY_REFUSED, write_in_parts
from listener.postgres.put_back import put_back
from listener.postgres.settlements import Settlements
from listener.postgres.statements import load
from listener.postgres.unwritable import LOCKED_OUT, Pause, UnwritableRows
from listener.push import EXPIRED_REASON, Push

log = structlog.get_logger(__name__)

_UNCLAIMABLE = """
select push_id, code
  from push_listener.unclaimable(%(worker)s::integer, %(excluded)s::uuid[], 2000, 0.5::float8,
    pg_catalog.current_setting('search_path'))
"""
_UNREADABLE = load(__file__, "unreadable")
_RELEASE = load(__file__, "release")
_EXPIRE = load(__file__, "expire")
_EARLIEST = load(__file__, "earliest")
_BEHIND = load(__file__, "behind")
_WITH_BITMAP = """
select pg_catalog.set_config('enable_indexscan', 'off', true), pg_catalog.set_config('enable_seqscan', 'off', true)
"""
_SWEEP = load(__file__, "sweep", earliest=_EARLIEST, strangers=STRANGERS, foreign_triggers=FOREIGN_TRIGGERS)

# SQLSTATEs. A database with the encoding SQL_ASCII stores any bytes, and refuses to send those that are no UTF-8.
_NOT_TEXT = ("22021", "22P05")
# The row is locked, or another row has what an index or an exclusion constraint lets only one row have.
_PASSING = (LOCKED_OUT, "23505", "23P01")
_NOT_UTF8 = (
    "a text of this push, or a token in push_recipients, is not valid UTF-8: write it again in that encoding"
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a worker finds when it has not been notified for a while."""

    earliest: float | None
    """Seconds until the first row is due (negative: it is due); None: no row waits."""
    polling_locked: bool
    """Whether another session holds the polling lock or waits for it, so that inserts do not notify."""
    registered: bool
    """Whether this worker's row is still in ``push_listener.workers``."""
    has_foreign_triggers: bool
    """Whether the application has triggers that may change a row after this service has written it."""
    is_restricted: bool
    """Whether a restrictive policy of the application may hide pushes from this service."""
    guarded: bool
    """Whether this worker's liveness lock is held."""
    strangers: Sequence[LockHolder]
    """The strangers that hold locks of push-listener."""


class Queue:
    """The rows of ``push_notifications``, as one worker claims them and looks for them.

    Every method raises ``psycopg.Error``: ``OperationalError`` when the database cannot be reached or no connection
    becomes free in time. None retries by itself.

    Args:
        worker_id: becomes ``claimed_by`` in the rows of this worker.
        lease: seconds for which a claimed row belongs to it.
        incarnation: of the worker, as its row in ``push_listener.workers`` says; None: it has no row.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float, incarnation: UUID | None = None) -> None:
        self._pool = pool
        self._incarnation = incarnation
        self._triggers = ForeignTriggers()
        self._claiming = Claiming(worker_id, lease, self._triggers)
        self.worker_id = worker_id
        """The value of ``claimed_by`` in the rows of this worker."""
        self.unwritable = UnwritableRows(pool)
        """The rows that no worker can write."""
        self.settlements = Settlements(pool, self._claiming, self.unwritable)
        """Writes the results of the rows that this worker has claimed."""
        self.frontier = Frontier()
        """Where this worker begins to look."""
        self._batch_limit = BatchLimit(MOST_CLAIMED)
        self._is_restricted = False
        self._unreadable = 0

    async def claim(
        self,
        limit: int,
        normal_limit: int | None = None,
        excluded: Sequence[UUID] = (),
        begin: Begin = WHOLE,
    ) -> list[Push]:
        """Claims due rows under a lease: high priority first, then by due time.

        Rows that cannot be claimed are passed over, and noted for all workers. Then it returns fewer rows, or none.

        Args:
            limit: at most this number of rows.
            normal_limit: at most this number of rows of normal priority; None: ``limit``.
            excluded: rows that are not claimed.
            begin: rows that are due before that are not claimed, except its ``early`` ones.
        """
        normal_limit = limit if normal_limit is None else normal_limit
        ends = time.monotonic() + STATEMENT_PATIENCE_S / 4
        while True:
            now = time.monotonic()
            most = self._batch_limit.rows(now)
            limit = min(limit, most)
            try:
                if most == MOST_CLAIMED:
                    return await self._claim_at_once(limit, normal_limit, excluded, begin)
            except asyncio.CancelledError:  # it took too long
                self._batch_limit.timed_out(limit, now)
                raise
            except ROW_FAULTS as error:
                if not is_of_rows(error):
                    raise
            pushes, refused = await self._claim_in_parts(limit, normal_limit, excluded, begin)
            if pushes or not refused or time.monotonic() >= ends:
                return pushes

    async def _claim_at_once(
        self, limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin
    ) -> list[Push]:
        """Raises psycopg.Error or NotAsWritten, and claims nothing, if a row cannot be claimed."""
        values = {**_due_values(limit, normal_limit, excluded, begin), "is_strict": True}
        began, reader = time.monotonic(), ClaimReader(begin)
        async with self._pool.connection() as conn:
            if not self._triggers.may_change_rows:
                pushes = await self._claiming.claim(conn, CLAIM, values, reader)
            else:
                async with conn.transaction():
                    await conn.execute(NOT_DEFERRED)
                    pushes = await self._claiming.claim(conn, CLAIM, values, reader)
        self.frontier.claimed(begin, reader.seen(limit, normal_limit), began, time.monotonic())
        return pushes

    async def _claim_in_parts(
        self, limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin
    ) -> tuple[list[Push], int]:
        """Claims what can be claimed, and notes the rest; returns the pushes, and the number of rows that it noted.

        The frontier stays where it is, so that the next look sees the rows that this one has passed over.
        """
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(NOT_DEFERRED)

            async def claim(part: Sequence[UUID]) -> list[Push]:
                return await self._claiming.claim(
                    conn, CLAIM_THESE, {"ids": list(part), "is_strict": False}, ClaimReader()
                )

            await claim([])  # if this fails, no row is at fault
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(LOCK_DUE, _due_values(limit, normal_limit, excluded, begin))
            written = await write_in_parts(conn, await cursor.fetchall(), claim, may_stop=True)
            refused = written.refused
            if len(refused) >= MANY_REFUSED:
                refused = await self._find_unclaimable(conn, excluded) | refused
            await self._note_unclaimable(conn, refused)
        if written.too_many:
            self._batch_limit.timed_out(written.too_many, time.monotonic())
        return [push for part in written.results for push in part], len(refused)

    async def _find_unclaimable(self, conn: Connection, excluded: Sequence[UUID]) -> dict[UUID, str]:
        """More due rows whose update is refused: a search in the server finds a thousand in the time of fifty claims.

        It does not find rows that are slow, or that fail only when they are read.
        """
        try:
            async with conn.transaction():
                values = {"worker": self.worker_id, "excluded": list(excluded)}
                return dict(await (await conn.execute(_UNCLAIMABLE, values)).fetchall())
        except psycopg.errors.QueryCanceled:
            return {}

    async def _note_unclaimable(self, conn: Connection, codes: Mapping[UUID, str]) -> None:
        """Keeps rows from being claimed for a while, and gives up those whose texts cannot be read."""
        unreadable = [push_id for push_id, code in codes.items() if code in _NOT_TEXT]
        if unreadable:
            values = {"code": "INVALID_TEXT", "reason": _NOT_UTF8}

            async def give_up(part: Sequence[UUID]) -> int:
                return (await conn.execute(_UNREADABLE, {**values, "ids": list(part)})).rowcount

            written = await write_in_parts(conn, unreadable, give_up, may_stop=False)
            codes = {
                push_id: code for push_id, code in codes.items() if code not in _NOT_TEXT
            } | written.refused
            self._unreadable += sum(written.results)
            log.warning(
                "pushes dead", rows=sum(written.results), code="INVALID_TEXT", example=str(unreadable[0])
            )
        passing = {push_id: code for push_id, code in codes.items() if code in _PASSING}
        await self.unwritable.note(passing, Pause.SHORT, conn)
        refused = {push_id: code for push_id, code in codes.items() if code not in _PASSING}
        await self.unwritable.note(refused, Pause.LONG, conn)

    def take_unreadable(self) -> int:
        """How many pushes claims have given up since the last call, because their texts cannot be read."""
        count, self._unreadable = self._unreadable, 0
        return count

    async def release(self, held: Sequence[UUID]) -> int:
        """Puts back the rows that this worker has claimed without knowing: all but ``held``. Returns their number."""
        async with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_RELEASE, {"worker": self.worker_id, "held": list(held)})
            return await put_back(conn, await cursor.fetchall(), are_lost=False)

    async def expire(self, rows: int, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> int:
        """Expires pushes past ``expires_at`` among the first due rows of each lane; returns their number.

        Args:
            rows: at most this number of rows of each lane is read.
            excluded: rows that are left alone.
            begin: rows that are due earlier are left alone.
        """
        values = {"rows": rows, "excluded": list(excluded), "reason": EXPIRED_REASON, **_from(begin)}
        async with self._pool.connection() as conn:
            return int(await fetch_value(conn, _EXPIRE, values))

    async def earliest(self, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> float | None:
        """Seconds, by the database's clock, until the first row that is not ``excluded`` is due.

        Negative: it is due. None: no row waits; or if the question is not ``WHOLE``, none within its range.
        """
        began = time.monotonic()
        values = {"excluded": list(excluded), **_from(begin), "ahead": begin.ahead}
        async with self._pool.connection() as conn:
            value: float | None = await fetch_value(conn, _EARLIEST, values)
        self.frontier.answered(begin, value is not None and value <= 0.0, began, time.monotonic())
        return value

    async def look_behind(self, excluded: Sequence[UUID] = ()) -> bool:
        """Looks for due rows below the floors of the frontier; returns whether there are any.

        The frontier then has a claim take them.
        """
        began = time.monotonic()
        look = self.frontier.begin_look_behind(began)
        values = {
            "from": look.begin,
            "to_high": look.high,
            "to_normal": look.normal,
            "excluded": list(excluded),
            "most": self.frontier.most_behind,
        }
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_WITH_BITMAP)
            cursor = conn.cursor(row_factory=args_row(RowBehind))
            await cursor.execute(_BEHIND, values)
            found = await cursor.fetchall()
        self.frontier.looked_behind(look, found, began, time.monotonic())
        return bool(found)

    async def sweep(self, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> Sweep:
        """Asks what ``earliest`` asks, and also what may have gone wrong unnoticed: see ``Sweep``."""
        began = time.monotonic()
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=kwargs_row(_sweep))
            await cursor.execute(
                _SWEEP,
                {
                    "worker": self.worker_id,
                    "incarnation": self._incarnation,
                    "excluded": list(excluded),
                    **_from(begin),
                    "ahead": begin.ahead,
                },
            )
            sweep = await cursor.fetchone()
        assert sweep is not None
        is_due = sweep.earliest is not None and sweep.earliest <= 0.0
        self.frontier.answered(begin, is_due, began, time.monotonic())
        self._triggers.found(any_triggers=sweep.has_foreign_triggers)
        if sweep.is_restricted and not self._is_restricted:
            log.warning(
                "a restrictive policy on push_notifications also applies to the user of DATABASE_URL",
                reason="pushes that it hides are neither sent nor counted; name in the policy the roles that it is for",
            )
        self._is_restricted = sweep.is_restricted
        return sweep

    async def look_for_triggers(self) -> None:
        """Finds out whether triggers of the application may change what this service writes, as each sweep does."""
        async with self._pool.connection() as conn:
            self._triggers.found(any_triggers=bool(await fetch_value(conn, FOREIGN_TRIGGERS)))


def _from(begin: Begin) -> dict[str, object]:
    return {"from_high": begin.high, "from_normal": begin.normal}


def _due_values(limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin) -> dict[str, object]:
    return {
        "limit": limit,
        "normal_limit": normal_limit,
        "excluded": list(excluded),
        **_from(begin),
        "early": list(begin.early),
    }


def _sweep(*, strangers: str, **columns: Any) -> Sweep:
    return Sweep(strangers=[LockHolder(**each) for each in orjson.loads(strangers)], **columns)
