"""What several tests share: to start a service takes 300 ms of CPU time, and a database with its FCM half of that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import psycopg
import pytest_asyncio

from listener.emulator import Emulator
from tests.support.postgres import Server, Template
from tests.support.service import Place, Rows, Shared, rows_of, serving, settings_for


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _place_of_module(postgres: Server) -> AsyncIterator[Callable[[], Awaitable[Place]]]:
    with postgres.database(Template.MIGRATED) as database:
        async with AsyncExitStack() as stack, Emulator() as emulator:

            async def opened() -> Place:
                return Place(database, await stack.enter_async_context(rows_of(database.dsn)), emulator)

            made = await opened()

            async def get() -> Place:
                nonlocal made
                try:
                    await made.rows.query("select")
                except psycopg.OperationalError:  # a test has restarted the server, or left it stopped
                    postgres.start()
                    made = await opened()
                return made

            yield get


@pytest_asyncio.fixture(loop_scope="module")
async def place(_place_of_module: Callable[[], Awaitable[Place]]) -> AsyncIterator[Place]:
    """That of the module, with no row, no device, no worker, no fault, and nothing received.

    For a test with services of its own. What it has made in the schema ``public`` is dropped; columns, constraints,
    settings and roles have to be as they were. The test is marked ``asyncio(loop_scope="module")``.
    """
    made = await _place_of_module()
    newest = await _newest(made.rows)
    yield made
    await _drop_since(made.rows, newest)
    await made.rows.query(
        "truncate push_notifications, push_delivery_logs, push_devices, push_listener.unwritable_rows, "
        "push_listener.workers, push_listener.daily_counts restart identity; "
        "update push_listener.shared_quota set fraction = 1.0, reduced_at = now() - interval '1 h' where fraction < 1.0"
    )
    _clear(made.emulator)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _service_of_module(postgres: Server) -> AsyncIterator[Shared]:
    with postgres.database(Template.MIGRATED) as database:
        async with (
            rows_of(database.dsn) as rows,
            Emulator() as emulator,
            serving(settings_for(database.dsn, emulator)) as service,
        ):
            yield Shared(database, rows, emulator, service)


@pytest_asyncio.fixture(loop_scope="module")
async def shared(_service_of_module: Shared) -> AsyncIterator[Shared]:
    """That of the module, with no row, no device, no fault, and nothing received; and its service, which goes on.

    For a test whose pushes are over at its end, and which leaves the rest as ``place`` asks, and FCM as well thought of
    as before. The test is marked ``asyncio(loop_scope="module")``.
    """
    rows, emulator = _service_of_module.rows, _service_of_module.emulator
    newest = await _newest(rows)
    yield _service_of_module
    await _drop_since(rows, newest)
    await rows.query(
        "truncate push_notifications, push_delivery_logs, push_devices, push_listener.unwritable_rows"
    )
    _clear(emulator)


async def _newest(rows: Rows) -> int:
    """The object that was made last."""
    (found,) = await rows.query(
        "select greatest((select max(oid) from pg_proc), (select max(oid) from pg_class))::bigint as newest"
    )
    return int(found["newest"])


async def _drop_since(rows: Rows, newest: int) -> None:
    """Drops newer functions, with their triggers, tables and indexes; and enables the triggers of the queue."""
    for each in await rows.query(
        "select format('alter table push_notifications enable trigger %%I', tgname) as statement from pg_trigger "
        "where tgrelid = 'push_notifications'::regclass and tgenabled = 'D' "
        "union all select format('drop function %%s cascade', oid::regprocedure) from pg_proc "
        "where pronamespace = 'public'::regnamespace and oid::bigint > %(newest)s "
        "union all select format('drop %%s %%s cascade', case relkind when 'r' then 'table' when 'S' then 'sequence' "
        "else 'index' end, oid::regclass) from pg_class where relkind in ('r', 'S', 'i') "
        "and relnamespace = 'public'::regnamespace and oid::bigint > %(newest)s "
        "and not exists (select from pg_depend d where d.objid = pg_class.oid and d.deptype = 'i')",
        newest=newest,
    ):
        await rows.connection.execute(str(each["statement"]).encode())


def _clear(emulator: Emulator) -> None:
    emulator.clear_faults()
    emulator.clear()
    emulator.latency = 0.0
