"""How connections to Postgres are made."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

from psycopg import AsyncConnection
from psycopg.abc import Params, QueryNoTemplate
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.rows import scalar_row
from psycopg_pool import AsyncConnectionPool

Connection = AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

# The kernel notices within some ten seconds that the other side has vanished, on an idle connection as well as on one
# that waits for an answer. Source: PostgreSQL, libpq connection parameters.
_KEEPALIVE = (
    "keepalives=1 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000 "
    "connect_timeout=5"
)

STATEMENT_PATIENCE_S = 30.0
"""For a statement without an answer: a network may swallow every packet and still acknowledge it."""

_CONFIGURE_PATIENCE_S = 5.0

_PROBES = 24
_PROBE_PATIENCE_S = 15.0
# Random, so that the probes do not keep step with other clients and meet the same free backend each time.
_BETWEEN_PROBES_S = 0.01

_BACKEND = "select pg_catalog.pg_backend_pid()"


ENCODING = "utf8"
"""For ``client_encoding`` of each connection. By default it is the server's, and with SQL_ASCII psycopg returns bytes
in place of text. It is sent when a connection starts: a pooler in transaction mode keeps that and loses SET."""


def with_keepalive(dsn: str) -> str:
    """The address, with our encoding, and with settings that notice a dead network.

    A setting of the latter in the address itself takes precedence.
    """
    return make_conninfo(_KEEPALIVE, **{**conninfo_to_dict(dsn), "client_encoding": ENCODING})


def make_pool(dsn: str, *, prepares: bool) -> Pool:
    """The connections for all statements but LISTEN. Autocommit: every statement is a transaction of its own.

    Args:
        dsn: the address.
        prepares: whether prepared statements may be used. A transaction pooler loses them, and settings too.
    """
    return AsyncConnectionPool(
        with_keepalive(dsn),
        min_size=1,
        max_size=4,
        open=False,
        # Both bounds are short because the callers retry by themselves, and the pool would back off for minutes.
        timeout=5.0,
        reconnect_timeout=5.0,
        kwargs={
            "autocommit": True,
            "application_name": "push-listener",
            "prepare_threshold": 5 if prepares else None,
        },
        configure=_read_committed if prepares else None,
    )


async def _read_committed(conn: Connection) -> None:
    """Overrides a stricter default of the role or the database, under which concurrent claims would fail."""
    async with asyncio.timeout(_CONFIGURE_PATIENCE_S):
        await conn.execute("set default_transaction_isolation to 'read committed'")


async def fetch_value(
    conn: AsyncConnection[Any], statement: QueryNoTemplate, values: Params | None = None
) -> Any:
    """The first column of the first row; None if there is no row."""
    cursor = conn.cursor(row_factory=scalar_row)
    await cursor.execute(statement, values)
    return await cursor.fetchone()


async def is_transaction_pooler(dsn: str) -> bool:
    """Whether the address leads to a pooler in transaction mode, of any make.

    It does if one backend serves two connections, or two backends serve one connection. An idle pooler shows this at
    once. In a busy one, probes at random moments leave hardly a chance of missing it.

    Raises psycopg.OperationalError, also when the second connection is not served within some seconds.
    """
    backends: set[tuple[str, int]] = set()
    try:
        async with asyncio.timeout(_PROBE_PATIENCE_S), AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(
                    await AsyncConnection.connect(
                        with_keepalive(dsn), autocommit=True, prepare_threshold=None
                    )
                )
                for _ in range(2)
            ]
            for _ in range(_PROBES):
                backends.add(("first", await fetch_value(first, _BACKEND)))
                async with (
                    second.transaction()
                ):  # a pooler cannot give the backend to another client meanwhile
                    backends.add(("second", await fetch_value(second, _BACKEND)))
                    backends.add(("first", await fetch_value(first, _BACKEND)))
                if _are_shared(backends):
                    return True
                await asyncio.sleep(random.uniform(0.0, _BETWEEN_PROBES_S))  # noqa: S311  # not secrecy
    except TimeoutError:
        raise ConnectionTimeout("connection timeout expired") from None
    return False


def is_transaction_pooler_blocking(dsn: str) -> bool:
    """Does the same as ``is_transaction_pooler``, for callers that block; an event loop may run in their thread."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, is_transaction_pooler(dsn)).result()


def _are_shared(backends: set[tuple[str, int]]) -> bool:
    """Whether the (connection, backend) pairs are anything but one backend for each of the two connections."""
    return len(backends) > 2 or len({backend for _, backend in backends}) < 2
