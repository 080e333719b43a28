"""``migrate --down`` beside workers: what they hold would be sent twice, so it waits until none is there."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import LiteralString

import psycopg
import pytest

from listener.emulator import Emulator
from listener.postgres import locks, workers
from listener.postgres.connect import Address, ServicePool
from listener.registration import NotMigrated
from listener.schema import migrate
from listener.schema.migrate import MigrationError
from tests.support.catalog import describe
from tests.support.cli import invoke
from tests.support.postgres import Database
from tests.support.service import Rows, environment, program, serving, settings_for


def applied(database: Database) -> int:
    return sum(state.applied_at is not None for state in migrate.status(database.dsn))


async def down(database: Database, to: int = 0, *, discard_data: bool = False) -> int:
    undone = await asyncio.to_thread(migrate.rollback, database.dsn, to, discard_data=discard_data)
    return len(undone)


async def down_once_sessions_are_gone(database: Database) -> None:
    """A process that was killed is missed by the server a moment later."""
    async with asyncio.timeout(30):
        while True:
            try:
                assert await down(database, len(migrate.load()) - 1) == 1
            except MigrationError:
                await asyncio.sleep(0.05)  # nothing tells when its sessions have gone
            else:
                return


@pytest.mark.parametrize("wakeup", ["listen", "sweep"])
async def test_it_is_refused_while_a_worker_lives(
    database: Database, emulator: Emulator, wakeup: str
) -> None:
    async with serving(settings_for(database.dsn, emulator, wakeup=wakeup, worker_name="web.1")):
        for to in (len(migrate.load()) - 1, 0):
            with pytest.raises(MigrationError) as refusal:
                await down(database, to, discard_data=True)
            assert "push-listener is at work on this database: " in str(refusal.value)
            assert "Stop it" in str(refusal.value)
            if wakeup == "listen":
                assert "worker 1, web.1 (pid " in str(refusal.value)
        assert applied(database) == len(migrate.load())
    database.wait_left()
    assert await down(database, len(migrate.load()) - 1) == 1


@pytest.mark.parametrize("wakeup", ["listen", "sweep"])
async def test_a_worker_that_was_killed_is_not_in_the_way(
    database: Database, emulator: Emulator, wakeup: str
) -> None:
    async with program("run", env=environment(database.dsn, emulator, wakeup=wakeup), forked=True) as running:
        await running.said("ready")
        running.signal(signal.SIGKILL)
        await running.ended()
        await down_once_sessions_are_gone(database)


async def test_what_sweeping_and_foreign_workers_hold_is_waited_for(database: Database, rows: Rows) -> None:
    """They have no lock, and the first no session either: only the lease tells of them."""
    await rows.query("drop trigger test_tell on push_notifications")
    for doing, undoing in (
        ("select fetch_pending_pushes(10)", "select mark_push_sent(id) from push_notifications"),
        (
            "with w as (insert into push_listener.workers (name) values ('sweeps') returning id) "
            "update push_notifications set status = 'processing', next_attempt_at = now() + interval '1 minute', "
            "claimed_by = (select id from w)",
            "update push_listener.workers set stopped_at = now()",
        ),
    ):
        await rows.query("delete from push_notifications")
        await rows.add(device_token="t", title="t")
        await rows.connection.execute(doing.encode())
        lease = await rows.connection.execute(
            "select max(next_attempt_at)::text as at from push_notifications"
        )
        row = await lease.fetchone()
        assert row is not None
        with pytest.raises(MigrationError) as refusal:
            await down(database, discard_data=True)
        assert str(refusal.value).startswith("1 pushes are in the hands of a worker")
        assert str(refusal.value).endswith(f"at {row['at']}")
        assert applied(database) == len(migrate.load())
        await rows.connection.execute(undoing.encode())
    assert await down(database, discard_data=True) == len(migrate.load())


# Each with what takes it away.
OBSTACLES: dict[str, tuple[LiteralString, LiteralString]] = {
    "a view on a column of ours": (
        "create view public.mine as select token from public.push_devices",
        "drop view public.mine",
    ),
    "a table that refers to one of ours": (
        "create table public.mine (token text references public.push_devices (token))",
        "drop table public.mine",
    ),
    "a function that takes a row of ours": (
        "create function public.mine(public.telemetry_logs) returns void language sql as ''",
        "drop function public.mine(public.telemetry_logs)",
    ),
    "rows in a table of ours": (
        "insert into public.telemetry_logs (type, message) values ('t', 'm')",
        "delete from public.telemetry_logs",
    ),
}


async def test_a_refused_way_back_has_changed_nothing(database: Database, rows: Rows) -> None:
    """Whatever stops it, in whichever step: triggers, functions and statistics are still there."""
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.query(
        "insert into push_notifications (device_token, title, status, next_attempt_at) values ('t', 't', 'sent', null)"
    )
    faults = []
    for obstacle, (made, taken_away) in OBSTACLES.items():
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(made)
            before = describe(database.dsn, "public", "push_listener")
            with pytest.raises(MigrationError):
                await down(database, discard_data="insert" not in made)
            if describe(database.dsn, "public", "push_listener") != before:
                faults.append(f"{obstacle}: something has changed")
            if applied(database) != len(migrate.load()):
                faults.append(f"{obstacle}: a step is undone")
            connection.execute(taken_away)
        counted = await rows.query("select sum(sent)::integer as sent from push_listener.daily_counts")
        if counted != [{"sent": 1}]:
            faults.append(f"{obstacle}: {counted}")
    assert not faults, "\n".join(faults)


async def test_what_is_added_during_the_way_back_waits_for_it(database: Database, rows: Rows) -> None:
    """Between the look and the step: a row of telemetry that is being inserted then is a loss as well."""
    await rows.query("drop trigger test_tell on push_notifications")
    with psycopg.connect(database.dsn) as writer:
        writer.execute("insert into telemetry_logs (type, message) values ('t', 'm')")
        going = asyncio.create_task(down(database))
        async with asyncio.timeout(30):
            while True:
                waits = "select pid from pg_locks where relation = 'telemetry_logs'::regclass and not granted"
                if await rows.query(waits):
                    break
                await asyncio.sleep(0.01)  # nothing tells when it waits
        writer.commit()
    with pytest.raises(MigrationError, match="telemetry_logs was created by push-listener and holds rows"):
        await going
    assert applied(database) == len(migrate.load())


async def test_no_worker_begins_while_it_is_at_work(database: Database, emulator: Emulator) -> None:
    async with AsyncExitStack() as stack:
        pool = ServicePool(Address(database.dsn), prepares=True)
        stack.push_async_callback(pool.close)
        loop = asyncio.get_running_loop()
        begun: list[BaseException | None] = []

        def begin(_: migrate.Migration) -> None:
            if not begun:
                begun.append(
                    asyncio.run_coroutine_threadsafe(workers.register(pool, "late"), loop).exception(30)
                )

        await pool.open()
        with psycopg.connect(database.dsn, autocommit=True) as other:
            other.execute("select pg_advisory_lock(%s)", (locks.ROLLBACK_LOCK,))
            with pytest.raises(NotMigrated, match="migrate --down is at work"):
                async with serving(settings_for(database.dsn, emulator)):
                    pass
        # The pool's own session is that of a worker that has not begun yet: no worker has, so it is not counted.
        await asyncio.to_thread(migrate.rollback, database.dsn, 16, report=begin)
        assert [type(each) for each in begun] == [workers.RollingBack]


async def test_every_loss_is_told_before_the_first_step(database: Database, rows: Rows) -> None:
    await rows.query("drop trigger test_tell on push_notifications")
    await rows.query("insert into telemetry_logs (type, message) values ('t', 'm')")
    await rows.query(
        "insert into push_notifications (device_token, title, status, next_attempt_at) values "
        "('t', 't', 'sent', null), ('t', 't', 'dead', null)"
    )
    await rows.query(
        "insert into push_delivery_logs (push_id, status) select id, 'opened' from push_notifications"
    )
    await rows.query("delete from push_delivery_logs")
    await rows.query("delete from push_notifications")
    with pytest.raises(MigrationError) as refusal:
        await down(database)
    assert str(refusal.value).splitlines() == [
        "the way back would lose what cannot be had again, and nothing has been changed:",
        "- telemetry_logs was created by push-listener and holds rows",
        "- the statistics count 2 pushes and 2 receipts that have been deleted, by a purge perhaps",
        "Complete or save it, then roll back with --discard-data, which deletes it.",
    ]
    assert applied(database) == len(migrate.load())
    assert await down(database, 16) == len(migrate.load()) - 16  # nothing is lost so far
    assert await down(database, discard_data=True) == 16


async def test_the_command_says_who_is_in_the_way(database: Database, emulator: Emulator) -> None:
    async with serving(settings_for(database.dsn, emulator, worker_name="web.1")):
        refused = await invoke(database.dsn, "migrate", "--down", "0")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(
        "Error: push-listener is at work on this database: worker 1, web.1 (pid "
    )
