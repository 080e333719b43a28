"""Whether LISTEN and locks work through the addresses. doctor sends itself a notification to find out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator

from psycopg import sql

from listener.doctor.findings import Finding, Group
from listener.doctor.looking import connect
from listener.postgres.connect import Address, sees

_GROUP = Group("LISTEN")

_TRANSACTION_MODE = (
    "LISTEN cannot work: the address is a pooler in transaction mode, in which each transaction gets another "
    "session"
)
_PORT = (
    "set LISTEN_DATABASE_URL to a direct or session-mode address (on Supabase: the host of the pooler with port 5432 "
    "in place of 6543); DATABASE_URL may stay as it is"
)


def judge_mode(is_pooled: bool, *, sweeps: bool) -> Finding:
    """``sweeps``: whether WAKEUP is sweep, which does not use LISTEN."""
    if not is_pooled:
        return _GROUP.ok("LISTEN and locks over several statements can work: no pooler in transaction mode")
    if sweeps:
        return _GROUP.warning(
            f"{_TRANSACTION_MODE}; with WAKEUP=sweep a push waits up to 5 s, and nobody notices a dead worker",
            f"better {_PORT}; and remove WAKEUP",
        )
    return _GROUP.wrong_setting(_TRANSACTION_MODE, _PORT)


def is_same(dsn: str, listen_dsn: str) -> bool:
    """Whether both addresses lead to the same database of the same server. Raises psycopg.Error."""

    async def look() -> bool:
        async with (
            await Address(listen_dsn).connect("push-listener doctor") as one,
            await Address(dsn).connect("push-listener doctor", prepares=False) as other,
        ):
            return await sees(one, other)

    return asyncio.run(look())


def judge_same(same: bool) -> Iterator[Finding]:
    """If the addresses lead to different databases, no notification of an insert can ever arrive."""
    if not same:
        yield _GROUP.fault(
            "LISTEN_DATABASE_URL leads to another database or server than DATABASE_URL",
            "both must lead to the same database of the primary server",
        )


def round_trip(dsn: str, listen_dsn: str, seconds: float) -> float | None:
    """Listens through one address and notifies through the other; returns the milliseconds in between.

    Returns None if no notification arrives. Raises psycopg.Error.
    """
    channel = f"push_listener_doctor_{secrets.token_hex(8)}"
    with connect(listen_dsn, seconds) as listening, connect(dsn, seconds) as notifying:
        listening.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        began = time.perf_counter()
        notifying.execute("select pg_catalog.pg_notify(%s, '')", (channel,))
        for _ in listening.notifies(timeout=seconds / 2, stop_after=1):
            return 1000 * (time.perf_counter() - began)
    return None


def judge_round_trip(milliseconds: float | None) -> Finding:
    """Judges how long a notification takes."""
    if milliseconds is None:
        return _GROUP.fault(
            "a notification does not arrive: LISTEN raises no error, and the session that listens gets nothing",
            _PORT,
        )
    return _GROUP.ok(f"a notification arrives after {milliseconds:.1f} ms")


def judge_kept_locks(kept: bool) -> Iterator[Finding]:
    """Judges whether a pooler in session mode releases the locks that a client leaves behind."""
    if kept:
        yield _GROUP.fault(
            "the pooler keeps the locks of clients that have gone: the rows of a worker that dies wait until their "
            "lease ends, because its peers take it for alive",
            "in PgBouncer set server_reset_query to DISCARD ALL, which is its default, or listen at the server "
            "itself (LISTEN_DATABASE_URL)",
        )
