"""Puts claimed rows back into the queue whose worker does not settle them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from listener.postgres.connect import Connection
from listener.postgres.errors import ROW_FAULTS
from listener.postgres.statements import load

_PUT_BACK = load(__file__, "put_back")


async def put_back(
    conn: Connection, ids: Sequence[UUID], *, are_lost: bool, only_end_leases: bool = False
) -> int:
    """Makes the rows due and ``pending``; returns how many could be written.

    If an index or a trigger of the application refuses a row, the row keeps the status ``processing`` and only becomes
    due. If even that is refused, the row waits for the end of its lease. The other rows are put back all the same.

    Args:
        conn: in a transaction that has locked the rows.
        ids: the rows.
        are_lost: their worker has died; False: this worker did not know that it had claimed them.
        only_end_leases: whether the rows keep their status.

    Raises psycopg.OperationalError when the connection is lost.
    """
    if not ids:
        return 0
    values = {"ids": list(ids), "are_lost": are_lost, "only_end_leases": only_end_leases}
    try:
        async with conn.transaction():  # a savepoint
            return (await conn.execute(_PUT_BACK, values)).rowcount
    except ROW_FAULTS:
        if conn.broken or conn.closed:
            raise
    if len(ids) > 1:
        middle = len(ids) // 2
        halves = (ids[:middle], ids[middle:])
        return sum([await put_back(conn, half, are_lost=are_lost) for half in halves])
    return 0 if only_end_leases else await put_back(conn, ids, are_lost=are_lost, only_end_leases=True)
