"""How connections to Postgres are made."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, ExitStack

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

Connection = AsyncConnection[tuple[object, ...]]
Pool = AsyncConnectionPool[Connection]

# A peer that is gone without a word is noticed by the kernel within some ten seconds, on an idle connection as well as
# on one that waits for an answer. Source: PostgreSQL, libpq connection parameters.
_ALIVE = (
    "keepalives=1 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000 "
    "connect_timeout=5"
)

STATEMENT_PATIENCE_S = 30.0
"""For a statement whose answer does not come: the network may be a black hole that even acknowledges."""

_CONFIGURE_PATIENCE_S = 5.0

_LOOKS = 24
_LOOK_PATIENCE_S = 15.0
# Random, lest the looks go in step with what others do, and the same backend be free each time.
_BETWEEN_LOOKS_S = 0.01

_BACKEND = "select pg_catalog.pg_backend_pid()"


class TransactionPooler(Exception):
    """The address leads to a pooler in transaction mode, through which what was to be done cannot work."""


def with_keepalive(dsn: str) -> str:
    """The address, with settings that notice a dead network; what the address itself says of them wins."""
    return make_conninfo(_ALIVE, **conninfo_to_dict(dsn))


def make_pool(dsn: str, *, prepares: bool) -> Pool:
    """Connections for claims, settles and counts. Autocommit: every statement is a transaction of its own.

    ``prepares``: whether prepared statements may be used; a pooler in transaction mode loses them, and settings too.
    """
    return AsyncConnectionPool(
        with_keepalive(dsn),
        min_size=1,
        max_size=4,
        open=False,
        # A request waits this long for a connection, and an attempt to connect is given up after as long: the
        # callers have retries of their own, and the pool's would back off for minutes.
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
    """Whatever the role or the database is set to: in any stricter isolation claims get in each other's way."""
    async with asyncio.timeout(_CONFIGURE_PATIENCE_S):
        await conn.execute("set default_transaction_isolation to 'read committed'")


async def is_transaction_pooler(dsn: str) -> bool:
    """Whether the address leads to a pooler in transaction mode, whichever it is.

    Two connections that are served by one backend, or one that is served by two, give it away. An idle pooler does so
    at once; in a busy one some looks at random moments leave hardly a chance that it does not.

    Raises psycopg.OperationalError, or TimeoutError when the second connection is not served within some seconds.
    """
    backends: set[tuple[str, object]] = set()
    async with asyncio.timeout(_LOOK_PATIENCE_S), AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                await AsyncConnection.connect(with_keepalive(dsn), autocommit=True, prepare_threshold=None)
            )
            for _ in range(2)
        ]
        for _ in range(_LOOKS):
            backends.add(("first", await (await first.execute(_BACKEND)).fetchone()))
            async with second.transaction():  # so that a pooler cannot give its backend away
                backends.add(("second", await (await second.execute(_BACKEND)).fetchone()))
                backends.add(("first", await (await first.execute(_BACKEND)).fetchone()))
            if _are_shared(backends):
                return True
            await asyncio.sleep(random.uniform(0.0, _BETWEEN_LOOKS_S))  # noqa: S311  # not secrecy
    return False


def refuse_transaction_pooler(dsn: str) -> None:
    """Raises TransactionPooler if the address leads to one, or psycopg.OperationalError. As above, but it blocks."""
    backends: set[tuple[str, object]] = set()
    with ExitStack() as stack:
        first, second = [
            stack.enter_context(
                psycopg.connect(dsn, autocommit=True, prepare_threshold=None, connect_timeout=15)
            )
            for _ in range(2)
        ]
        for _ in range(_LOOKS):
            backends.add(("first", first.execute(_BACKEND).fetchone()))
            with second.transaction():
                backends.add(("second", second.execute(_BACKEND).fetchone()))
                backends.add(("first", first.execute(_BACKEND).fetchone()))
            if _are_shared(backends):
                raise TransactionPooler
            time.sleep(random.uniform(0.0, _BETWEEN_LOOKS_S))  # noqa: S311  # not secrecy


def _are_shared(backends: set[tuple[str, object]]) -> bool:
    """Whether what was seen as (connection, backend) is anything but one backend for each connection."""
    return len(backends) > 2 or len({backend for _, backend in backends}) < 2
