"""A way in, to a database of its own: each test runs over both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import WAYS, Way, way
from tests.support.postgres import Database
from tests.support.servers import forget_proxies


@pytest.fixture(params=WAYS)
def entry(
    request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Way]:
    forget_proxies(monkeypatch)
    with way(request.param, database) as found:
        yield found
