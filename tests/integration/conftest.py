"""What most of these tests begin with: rows of a database, FCM, and the service between them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from listener.emulator import Emulator
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import Rows, rows_of, serving, settings_for


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
