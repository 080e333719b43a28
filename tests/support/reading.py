"""Reading on the database of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psycopg

from listener.postgres.connect import ENCODING, Connection


@asynccontextmanager
async def one_connection(
    dsn: str,
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Connection]]]:
    """Gives one connection for each use, for what asks many times: to connect takes longer than a question."""
    async with connector(dsn)() as conn:

        @asynccontextmanager
        async def connect() -> AsyncIterator[Connection]:
            yield conn

        yield connect


def connector(dsn: str) -> Callable[[], AbstractAsyncContextManager[Connection]]:
    """Gives a connection of its own for each use."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, client_encoding=ENCODING
        ) as conn:
            yield conn

    return connect
