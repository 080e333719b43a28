"""A connection for what people do now and then. It is closed while nobody does anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus

from listener.postgres.connect import Address, Connection
from listener.postgres.errors import spoils_session


class OnDemand:
    """One connection in autocommit, for one caller at a time. It prepares nothing, so it may go through a pooler.

    Args:
        address: where to connect.
        application_name: for pg_stat_activity.
        patience: seconds for one use, the wait for other callers included.
        idle: seconds without any use after which the connection is closed.
    """

    def __init__(
        self, address: Address, application_name: str, *, patience: float = 10.0, idle: float = 60.0
    ) -> None:
        self._address = address
        self._application_name = application_name
        self._patience = patience
        self._idle = idle
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._closed: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """The connection, opened if need be. Raises psycopg.OperationalError, also when the patience is over."""
        try:
            async with asyncio.timeout(self._patience), self._turn, self._opened() as connection:
                yield connection
        except TimeoutError as error:
            raise ConnectionTimeout("timeout expired") from error

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Connection]:
        if self._closing is not None:
            self._closing.cancel()
        if self._connection is None or self._connection.closed:
            self._connection = await self._address.connect(self._application_name, prepares=False)
        try:
            yield self._connection
        except psycopg.Error as error:
            if spoils_session(error):
                await self._connection.close()
            raise
        finally:
            # A cancelled caller leaves a statement behind.
            if self._connection.info.transaction_status is not TransactionStatus.IDLE:
                await self._connection.close()
            self._closing = asyncio.get_running_loop().call_later(self._idle, self._close_soon)

    def _close_soon(self) -> None:
        self._closed = asyncio.create_task(self.close())

    async def close(self) -> None:
        """Closes the connection. The next use opens another one."""
        if self._closing is not None:
            self._closing.cancel()
        if self._connection is not None and not self._turn.locked():
            connection, self._connection = self._connection, None
            await connection.close()
