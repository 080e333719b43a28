"""The statement that claims rows, and how the rows that it returns become pushes.

One of three files selects the rows: due.sql (due rows), these.sql (rows that the same transaction has locked) or
forgotten.sql (rows whose claim Postgres has forgotten; see settlements.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString
from uuid import UUID

import orjson
from psycopg import AsyncRawCursor
from psycopg.rows import args_row, scalar_row

from listener.postgres.connect import Connection, note_size
from listener.postgres.foreign_triggers import ForeignTriggers
from listener.postgres.frontier import WHOLE, Begin, Seen
from listener.postgres.parts import NotAsWritten
from listener.postgres.statements import load, numbered
from listener.postgres.unwritable import CHANGED, IGNORED
from listener.push import Push

_DUE = load(__file__, "due")
CLAIM = load(__file__, "claim", due=_DUE)
CLAIM_THESE = load(__file__, "claim", due=load(__file__, "these"))
CLAIM_FORGOTTEN = load(__file__, "claim", due=load(__file__, "forgotten"))
LOCK_DUE: LiteralString = f"with {_DUE} select id from due order by lane, due_at"  # noqa: S608  # no values
"""Locks the rows that ``CLAIM`` would claim, and returns their ids."""
_STILL_CLAIMED = load(__file__, "still_claimed")

# Postgres counts in whole microseconds, and a float is exact enough for half of one.
_HALF_A_MICROSECOND = 5e-7


class Claiming:
    """Claims rows for one worker.

    Args:
        worker_id: becomes ``claimed_by``.
        lease: seconds for which a claimed row belongs to the worker.
        triggers: whether to look at the rows once more after the claim.
    """

    def __init__(self, worker_id: int, lease: float, triggers: ForeignTriggers) -> None:
        self.worker_id = worker_id
        self.lease = lease
        self.triggers = triggers

    async def claim(
        self, conn: Connection, statement: LiteralString, values: Mapping[str, object], reader: ClaimReader
    ) -> list[Push]:
        """Claims rows. Raises NotAsWritten, within the transaction, if a trigger has ignored or changed a claim.

        Args:
            conn: in a transaction, if a trigger may change a row.
            statement: ``CLAIM``, ``CLAIM_THESE`` or ``CLAIM_FORGOTTEN``.
            values: for the placeholders of the file that selects the rows, and ``is_strict``.
            reader: reads the rows; a new one for each claim.
        """
        # By position: a mapping by name (class_row) doubles the CPU time that 500 rows take here.
        cursor = AsyncRawCursor(conn, row_factory=args_row(reader))
        claim = numbered(statement)
        everything = {"lease": self.lease, "worker": self.worker_id, **values}
        await cursor.execute(claim.text, claim.values(everything), binary=True)
        claimed = await cursor.fetchall()
        note_size(conn, reader.table_size)
        pushes = [each for each in claimed if isinstance(each, Push)]
        codes = (
            {}
            if len(pushes) == len(claimed)
            else {each: IGNORED for each in claimed if isinstance(each, UUID)}
        )
        if self.triggers.may_change_rows and pushes:
            held = await self._still_claimed(conn, pushes)
            codes |= {push.id: CHANGED for push in pushes if push.id not in held}
        if codes:
            raise NotAsWritten(codes)
        return pushes

    async def _still_claimed(self, conn: Connection, pushes: Sequence[Push]) -> set[UUID]:
        values = {
            "worker": self.worker_id,
            "ids": [push.id for push in pushes],
            "attempts": [push.attempt for push in pushes],
        }
        cursor = conn.cursor(row_factory=scalar_row)
        await cursor.execute(_STILL_CLAIMED, values)
        return set(await cursor.fetchall())


class ClaimReader:
    """Makes pushes of the rows of one claim, and remembers how far the claim has come.

    Args:
        begin: where the claim begins.
    """

    def __init__(self, begin: Begin = WHOLE) -> None:
        self._begin = (begin.high - _HALF_A_MICROSECOND, begin.normal - _HALF_A_MICROSECOND)
        self._early = [0, 0]
        self._now = -math.inf
        self._running: Sequence[str] = ()
        self._counts = [0, 0]
        self._last = [-math.inf, -math.inf]
        self.table_size = 0
        """The size of ``push_notifications``, in bytes."""

    def __call__(
        self,
        is_written: bool,
        now: float,
        size: int,
        snapshot: str | None,
        lane: int,
        due_at: float,
        *columns: Any,
    ) -> Push | UUID | None:
        """A push; the id of a row that does not hold what the claim has written; None where no row was due.

        The columns that follow are the fields of Push in their order, and the first is the id.
        """
        self._now = now
        self.table_size = size
        if snapshot is not None:  # xmin:xmax:running,...
            running = snapshot.rpartition(":")[2]
            self._running = running.split(",") if running else ()
        push_id: UUID | None = columns[0]
        if push_id is None:
            return None
        if due_at < self._begin[lane]:
            self._early[lane] += 1
        else:
            self._counts[lane] += 1
            self._last[lane] = due_at
        if not is_written:
            return push_id
        push = Push(*columns)
        push.recipients = (
            [(token, platform) for token, platform in orjson.loads(columns[9])] if columns[9] else []
        )
        return push

    def seen(self, limit: int, normal_limit: int) -> Seen:
        """How far a claim with these limits has come."""
        limit -= sum(self._early)
        room = min(normal_limit - self._early[1], limit - self._counts[0])
        return Seen(self._now, self._through(0, limit), self._through(1, room), self._running)

    def _through(self, lane: int, limit: int) -> float | None:
        if limit <= 0:
            return None
        return self._last[lane] if self._counts[lane] >= limit else self._now
