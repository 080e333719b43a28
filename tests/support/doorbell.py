"""What tests of wake-ups need: a count of notifications, and a way to break connections."""

from __future__ import annotations

import asyncio

from tests.support.postgres import Database
from tests.support.service import PATIENCE, connect


class Rings:
    """Counts rings, and can be waited on."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._rung.set()

    async def more_than(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.count <= count:
                self._rung.clear()
                await self._rung.wait()


async def cut(database: Database, application: str) -> int:
    """Terminates the backends of connections of that name; returns how many, once they are gone."""
    async with await connect(database.superuser_dsn) as conn:
        cursor = await conn.execute(
            "select pg_terminate_backend(pid, 10000) as gone from pg_stat_activity "
            "where datname = current_database() and application_name = %s",
            (application,),
        )
        return len(await cursor.fetchall())
