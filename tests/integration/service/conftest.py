"""One service for several tests: to start one takes 300 ms of CPU time, and most pushes leave it as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from listener.emulator import Emulator
from tests.support.postgres import Server, Template
from tests.support.service import Shared, rows_of, serving, settings_for


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _of_module(postgres: Server) -> AsyncIterator[Shared]:
    with postgres.database(Template.MIGRATED) as database:
        async with (
            rows_of(database.dsn) as rows,
            Emulator() as emulator,
            serving(settings_for(database.dsn, emulator)) as service,
        ):
            yield Shared(rows, emulator, service)


@pytest_asyncio.fixture(loop_scope="module")
async def shared(_of_module: Shared) -> AsyncIterator[Shared]:
    """That of the module, with no row, no device, no fault, and nothing received.

    For a test whose pushes are over at its end, and which changes neither the schema nor how FCM is thought of. The
    test is marked ``asyncio(loop_scope="module")``.
    """
    yield _of_module
    _of_module.emulator.clear_faults()
    _of_module.emulator.clear()
    await _of_module.rows.query("truncate push_notifications, push_delivery_logs, push_devices")
