"""A database for several tests; see tests/support/shared.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.postgres import Database, Server, Template
from tests.support.service import Rows, rows_of


@pytest.fixture
def alone() -> None:
    """For ``usefixtures``: a test that changes more than rows has a database of its own."""


@pytest.fixture
def shared_database(request: pytest.FixtureRequest, postgres: Server) -> Iterator[Database]:
    """The one that the tests of a module share, with no row in it, unless a test is ``alone``."""
    if "alone" in request.fixturenames:
        with postgres.database(Template.MIGRATED) as database:
            yield database
    else:
        database, empty = request.getfixturevalue("database_of_module")
        yield database
        empty()


@pytest_asyncio.fixture(loop_scope="module")
async def _own_rows(shared_database: Database) -> AsyncIterator[Rows]:
    async with rows_of(shared_database.dsn) as opened:
        yield opened


@pytest.fixture
def shared_rows(request: pytest.FixtureRequest, shared_database: Database) -> Rows:
    """Those of ``shared_database``, for a test that is marked ``asyncio(loop_scope="module")``."""
    rows: Rows = request.getfixturevalue("_own_rows" if "alone" in request.fixturenames else "rows_of_module")
    return rows
