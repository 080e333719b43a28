"""A way in, to a database that the tests of a module share: each test runs over both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from tests.support.client import WAYS, Way, way
from tests.support.postgres import Database, Server
from tests.support.servers import forget_proxies
from tests.support.service import Rows, rows_of
from tests.support.shared import shared


@pytest.fixture(scope="module")
def _of_module(postgres: Server) -> Iterator[tuple[Database, Callable[[], None]]]:
    with shared(postgres) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _rows_of_module(_of_module: tuple[Database, Callable[[], None]]) -> AsyncIterator[Rows]:
    async with rows_of(_of_module[0].dsn) as opened:
        yield opened


@pytest.fixture
def shared_rows(_rows_of_module: Rows, _of_module: tuple[Database, Callable[[], None]]) -> Iterator[Rows]:
    """Those of the shared database, for a test that is marked ``asyncio(loop_scope="module")``. There is none."""
    yield _rows_of_module
    _of_module[1]()


@pytest.fixture(scope="module", params=WAYS)
def _way(request: pytest.FixtureRequest, _of_module: tuple[Database, Callable[[], None]]) -> Iterator[Way]:
    with way(request.param, _of_module[0]) as found:
        yield found


@pytest.fixture
def entry(
    _way: Way, _of_module: tuple[Database, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Way]:
    """With no row in the database, and no fault."""
    forget_proxies(monkeypatch)
    yield _way
    _way.faults.forget()
    _of_module[1]()
