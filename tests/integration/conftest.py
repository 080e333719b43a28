"""What most of these tests begin with: rows of a database, FCM, and the service between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict

from listener.emulator import Emulator
from listener.postgres import workers
from listener.postgres.connect import Pool
from listener.service import Service
from tests.support.postgres import Database, Server
from tests.support.service import Rows, rows_of, serving, settings_for
from tests.support.shared import shared


@pytest.fixture(scope="session", autouse=True)
def _known_privileges() -> Iterator[None]:
    """The owner of the tables has the privileges that a migration has just set: to compare them takes Postgres 60 ms
    of CPU time at each start. A service with a login of its own compares them, and so does a process."""
    drift = workers.drift

    async def unless_owner(pool: Pool) -> list[str]:
        return [] if conninfo_to_dict(str(pool.conninfo)).get("user") == "postgres" else await drift(pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "drift", unless_owner)
        yield


@pytest.fixture
async def rows(database: Database) -> AsyncIterator[Rows]:
    async with rows_of(database.dsn) as opened:
        yield opened


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as started:
        yield started


@pytest.fixture
async def service(database: Database, emulator: Emulator) -> AsyncIterator[Service]:
    async with serving(settings_for(database.dsn, emulator)) as running:
        yield running


@pytest.fixture(scope="module")
def database_of_module(postgres: Server) -> Iterator[tuple[Database, Callable[[], None]]]:
    """A database for several tests, and what empties it; see tests/support/shared.py."""
    with shared(postgres) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rows_of_module(database_of_module: tuple[Database, Callable[[], None]]) -> AsyncIterator[Rows]:
    async with rows_of(database_of_module[0].dsn) as opened:
        yield opened
