"""Puts claimed rows that their worker is not going to settle back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from listener.postgres.connect import Connection
from listener.postgres.parts import write_in_parts
from listener.postgres.statements import load

_PUT_BACK = load(__file__, "put_back")


async def put_back(conn: Connection, ids: Sequence[UUID], *, are_lost: bool) -> int:
    """Makes the rows due and ``pending``; returns how many could be written.

    If an index or a trigger of the application refuses a row, the row keeps the status ``processing`` and only becomes
    due. If even that is refused, the row waits for the end of its lease. The other rows are put back all the same.

    Args:
        conn: in a transaction that has locked the rows.
        ids: the rows.
        are_lost: True: their worker has died; False: this worker did not know that it had claimed them.

    Raises psycopg.OperationalError when the connection is lost.
    """
    count = 0
    for only_end_leases in (False, True):

        async def write(part: Sequence[UUID], only_end_leases: bool = only_end_leases) -> int:
            values = {"ids": list(part), "are_lost": are_lost, "only_end_leases": only_end_leases}
            return (await conn.execute(_PUT_BACK, values)).rowcount

        if ids:
            written = await write_in_parts(conn, ids, write, may_stop=False)
            count += sum(written.results)
            ids = list(written.refused)
    return count
