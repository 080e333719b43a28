"""Writes rows of which the application may refuse some: all in one statement, and if that fails, in smaller parts.

The parts belong to one transaction, which has locked the rows, and each has a savepoint. Where each statement may be a
transaction of its own, see halving.py; for how many rows to begin with, see batch_limit.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

import psycopg

from listener.postgres.connect import STATEMENT_PATIENCE_S, Connection
from listener.postgres.errors import ROW_FAULTS, is_of_rows
from listener.postgres.unwritable import code_of

T = TypeVar("T")

# Parts of the caller's patience: for a statement with several rows, for one with a single row, and for all.
_SEVERAL, _SINGLE, _ALL = 1 / 30, 1 / 10, 1 / 2
# After this time rows that were written are not kept waiting for the others.
_ENOUGH_S = 0.5
# After this many rows that were refused alone, a search in the server is faster.
MANY_REFUSED = 50

# A shorter timeout of the role, in any unit, remains.
_LIMIT_TIME = """
select pg_catalog.set_config('statement_timeout', pg_catalog.ceil(1000.0::float8 * case
    when t.role > 0.0::float8 and t.role < %(seconds)s::float8 then t.role else %(seconds)s::float8 end)::text, true)
  from (select extract(epoch from %(role)s::interval)::float8 as role) t
"""
_TIMEOUT = "select pg_catalog.current_setting('statement_timeout')"


class NotAsWritten(ValueError):
    """Triggers of the application have ignored or changed what was written to some rows; ``codes`` tells which."""

    def __init__(self, codes: Mapping[UUID, str]) -> None:
        super().__init__("a trigger has ignored or changed a row")
        self.codes = codes


@dataclass(slots=True)
class Written(Generic[T]):
    """The outcome of ``write_in_parts``."""

    results: list[T] = field(default_factory=list)
    """What ``write`` returned for each part that could be written."""
    refused: dict[UUID, str] = field(default_factory=dict)
    """The rows that could not be written even alone, with the reasons."""
    too_many: int | None = None
    """The smallest number of rows that could not be written at once, although none of them was refused."""


async def write_in_parts(
    conn: Connection,
    ids: Sequence[UUID],
    write: Callable[[Sequence[UUID]], Awaitable[T]],
    *,
    may_stop: bool,
) -> Written[T]:
    """Writes as many of the rows as possible. It ends within half of STATEMENT_PATIENCE_S; rows may be left over then.

    Args:
        conn: in a transaction that has locked the rows.
        ids: the rows.
        write: writes some of them. It may raise NotAsWritten.
        may_stop: whether to stop early when some rows are written, or many refused.

    Raises psycopg.Error when the fault is in no row.
    """
    written: Written[T] = Written()
    # Parts that failed and of which no row is refused so far: the position behind the part, and its size.
    failed: list[tuple[int, int]] = []
    began = time.monotonic()
    role = (await (await conn.execute(_TIMEOUT)).fetchone() or ("0",))[0]
    timeout, position, size, alone = 0.0, 0, len(ids), 0
    while position < len(ids):
        took = time.monotonic() - began
        if took > _ALL * STATEMENT_PATIENCE_S or (may_stop and written.results and took > _ENOUGH_S):
            break
        if may_stop and alone >= MANY_REFUSED:
            break
        part = ids[position : position + size]
        wanted = STATEMENT_PATIENCE_S * (_SINGLE if len(part) == 1 else _SEVERAL)
        if wanted != timeout:
            timeout = wanted
            await conn.execute(_LIMIT_TIME, {"seconds": timeout, "role": role})
        try:
            async with conn.transaction():  # a savepoint
                written.results.append(await write(part))
            position += len(part)
            size = min([2 * size, *(failed_size // 2 for _, failed_size in failed)])
        except NotAsWritten as error:
            written.refused.update(error.codes)
            ids = [push_id for push_id in ids if push_id not in error.codes]
            failed = [each for each in failed if each[0] <= position]
        except ROW_FAULTS as error:
            if conn.broken or conn.closed or not is_of_rows(error):
                raise
            if len(part) > 1:
                failed.append((position + len(part), len(part)))
                size = max(1, len(part) // (4 if isinstance(error, psycopg.errors.QueryCanceled) else 2))
            else:
                written.refused[part[0]] = code_of(error)
                failed = [each for each in failed if each[0] <= position]
                position, alone = position + 1, alone + 1
    if written.results:
        written.too_many = min((failed_size for _, failed_size in failed), default=None)
    return written
