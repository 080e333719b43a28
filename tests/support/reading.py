"""Reading on the database of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psycopg

from listener.postgres.connect import ENCODING, Connection


def connector(dsn: str) -> Callable[[], AbstractAsyncContextManager[Connection]]:
    """Gives a connection of its own for each use."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, client_encoding=ENCODING
        ) as conn:
            yield conn

    return connect
