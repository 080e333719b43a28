"""A way in, to a database that the tests of a module share: each test runs over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.client import WAYS, Way, way
from tests.support.postgres import Database
from tests.support.servers import forget_proxies
from tests.support.service import Rows


@pytest.fixture
def shared_rows(
    rows_of_module: Rows, database_of_module: tuple[Database, Callable[[], None]]
) -> Iterator[Rows]:
    """Those of the shared database, for a test that is marked ``asyncio(loop_scope="module")``. There is none."""
    yield rows_of_module
    database_of_module[1]()


@pytest.fixture(scope="module", params=WAYS)
def _way(
    request: pytest.FixtureRequest, database_of_module: tuple[Database, Callable[[], None]]
) -> Iterator[Way]:
    with way(request.param, database_of_module[0]) as found:
        yield found


@pytest.fixture
def entry(
    _way: Way, database_of_module: tuple[Database, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Way]:
    """With no row in the database, and no fault."""
    forget_proxies(monkeypatch)
    yield _way
    _way.faults.forget()
    database_of_module[1]()
