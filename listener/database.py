"""How connections to Postgres are made."""

from __future__ import annotations

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


def with_keepalive(dsn: str) -> str:
    """The address, with settings that notice a dead network; what the address itself says of them wins."""
    return make_conninfo(_ALIVE, **conninfo_to_dict(dsn))


def make_pool(dsn: str, *, prepares: bool) -> Pool:
    """Connections for claims, settles and counts. Autocommit: every statement is a transaction of its own.

    ``prepares``: whether prepared statements may be used; a pooler in transaction mode loses them.
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
    )
