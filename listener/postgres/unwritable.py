"""Rows that the database does not let this service write, in a table that all workers read before they claim."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from enum import StrEnum
from uuid import UUID

import psycopg
import structlog

from listener.log import should_log
from listener.postgres.connect import Connection, Pool, fetch_value
from listener.postgres.errors import fault_name, sqlstate_of
from listener.postgres.statements import load

log = structlog.get_logger(__name__)

_NOTE = load(__file__, "note_unwritable")
_RETRY = load(__file__, "retry_unwritable")
_FORGET = "delete from push_listener.unwritable_rows where push_id = any(%(ids)s::uuid[])"
# An application may raise any code, and the number of a metric's labels must be bounded.
UNWRITABLE = """
select u.statement, u.code, pg_catalog.count(*)
  from push_listener.unwritable_rows u
  join public.push_notifications p on p.id = u.push_id and p.status::text in ('pending', 'processing', 'failed')
  where u.until > pg_catalog.now()
  group by u.statement, u.code order by pg_catalog.count(*) desc limit 20
"""
"""How many rows are passed over now, by statement and code; the most frequent ones."""

_TIDY = """
delete from push_listener.unwritable_rows u
  where u.until < pg_catalog.now() - interval '1 day'
    or not exists (
      select from public.push_notifications p
        where p.id = u.push_id and p.status::text in ('pending', 'processing', 'failed'))
"""

LOCKED_OUT = "55P03"
"""The SQLSTATE of a write that does not get the lock of a row, because another transaction holds it."""
IGNORED = "IGNORED"
"""A trigger of the application has ignored the write."""
CHANGED = "CHANGED"
"""A trigger of the application has changed what was written."""
UNLOGGED = "UNLOGGED"
"""A trigger of the application keeps the log from holding which devices accepted a push that is to be tried again."""


class Pause(StrEnum):
    """For how long a row is not claimed."""

    SHORT = "short"
    """From a second to ten: the row, or what its trigger writes, is locked, or another row has what it needs."""
    LONG = "long"
    """From ten seconds to a day: the row cannot be claimed as it is."""
    SLOW = "slow"
    """From ten seconds to a day: the push may have been sent, and to write its result takes too long. The cause may be
    a slow database, so the row is claimed again if its worker dies meanwhile."""
    ENDLESS = "endless"
    """The push may have been sent, and its result cannot be written."""


_BETWEEN_RETRIES_S = 1.0

# The first pause, and the longest, in seconds.
_SECONDS: dict[Pause, tuple[float | None, float]] = {
    Pause.SHORT: (1.0, 10.0),
    Pause.LONG: (10.0, 86400.0),
    Pause.SLOW: (10.0, 86400.0),
    Pause.ENDLESS: (None, 0.0),
}


class UnwritableRows:
    """The table ``push_listener.unwritable_rows``.

    Every method raises ``psycopg.Error``, like those of Queue.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._noted = 0
        self._may_have_refused = True
        self._retry_at = -math.inf

    async def note(self, codes: Mapping[UUID, str], pause: Pause, within: Connection | None = None) -> None:
        """Keeps all workers from claiming these rows for a while.

        Args:
            codes: why each could not be written.
            pause: for how long.
            within: a connection, in whose transaction this is done; None: it is a transaction of its own.
        """
        if not codes:
            return
        statement = "settle" if pause in (Pause.SLOW, Pause.ENDLESS) else "claim"
        first, longest = _SECONDS[pause]
        values = {
            "ids": list(codes),
            "codes": list(codes.values()),
            "statement": statement,
            "pause": first,
            "longest": longest,
            "with_probe": pause is Pause.LONG,
        }
        async with nullcontext(within) if within else self._pool.connection() as conn:
            await conn.execute(_NOTE, values)
        self._may_have_refused = True
        self._noted += 1
        if should_log(self._noted):
            log.error(
                "rows cannot be written, because a trigger, an index or a constraint refuses it: they are passed over",
                statement=statement,
                rows=len(codes),
                codes=sorted(set(codes.values())),
                example=str(next(iter(codes))),
            )

    async def retry_if_due(self) -> None:
        """Calls ``retry``, once a second at most, while refused rows may be noted. Call it when rows were claimed."""
        if self._may_have_refused and time.monotonic() >= self._retry_at:
            await self.retry()

    async def retry(self) -> None:
        """Lets refused rows be claimed again if a row that was refused with the same code has been claimed."""
        self._retry_at = time.monotonic() + _BETWEEN_RETRIES_S
        async with self._pool.connection() as conn:
            self._may_have_refused = bool(await fetch_value(conn, _RETRY))

    async def forget(self, ids: list[UUID]) -> None:
        """These rows have been written after all."""
        async with self._pool.connection() as conn:
            await conn.execute(_FORGET, {"ids": ids})

    async def tidy(self) -> None:
        """Deletes notes that are of no use any more."""
        async with self._pool.connection() as conn:
            await conn.execute(_TIDY)


def code_of(error: BaseException) -> str:
    """The code for an error that a row has caused."""
    return (sqlstate_of(error) if isinstance(error, psycopg.Error) else None) or fault_name(error)
