"""Strangers: any login may hold an advisory lock of push-listener. No push may wait for them, and they are named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from structlog.testing import capture_logs

from listener.emulator import Emulator
from listener.metrics.own import Metrics
from listener.postgres import locks, workers
from listener.postgres.connect import fetch_value
from listener.postgres.locks import CHANNEL, LIVENESS_CLASS, POLLING_LOCK, PURGE_LOCK, LockHolder
from listener.postgres.workers import Workers
from listener.schema import migrate, retention
from listener.service import Service
from listener.wakeup import doorbell
from listener.wakeup.busy_polling import BusyPolling
from tests.support.access import WORKER, make_worker
from tests.support.postgres import Database
from tests.support.service import (
    Rows,
    dispatcher_of,
    pool_of,
    serving,
    settings_for,
    until,
    until_found,
    until_gone,
    waker_of,
)

STRANGER = "test_lock_stranger"
"""Logs in, and may do nothing else."""

LONGEST_WAIT = 60.0
"""Seconds. It was 110 s; a sweep each second finds out within 1 s, on a machine that is busy somewhat later."""


@pytest.fixture
def stranger_dsn(database: Database) -> str:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        if conn.execute("select from pg_roles where rolname = %s", (STRANGER,)).fetchone() is None:
            conn.execute(sql.SQL("create role {} login").format(sql.Identifier(STRANGER)))
    return database.dsn_as(STRANGER)


@pytest.fixture
def worker_dsn(database: Database) -> str:
    """As a role that can do the work of the service, and nothing else."""
    make_worker(database)
    return database.dsn_as(WORKER)


@asynccontextmanager
async def session(dsn: str) -> AsyncIterator[AsyncConnection[tuple[Any, ...]]]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield conn


@asynccontextmanager
async def holding(dsn: str, *key: int, mode: str = "") -> AsyncIterator[AsyncConnection[tuple[Any, ...]]]:
    async with session(dsn) as conn:
        await conn.execute(f"select pg_advisory_lock{mode}(%s, %s)", key)
        yield conn


def shown_strangers(service: Service) -> set[tuple[str, str, float]]:
    """Lock, role and number, as the metric has them."""
    return {
        (sample.labels["lock"], sample.labels["role"], sample.value)
        for family in service.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "push_lock_strangers"
    }


def strangers(database: Database) -> list[LockHolder]:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        return locks.strangers(conn)


async def high_priority(rows: Rows, token: str) -> None:
    """Inserts one; returns once it is sent."""
    push = await rows.add(device_token=token, title="t", priority="high")
    assert (await rows.one_over(push, patience=LONGEST_WAIT))["status"] == "sent"


async def rechecked(service: Service) -> None:
    await until(lambda: not waker_of(service).polling.must_recheck)


# --- the lock that silences the bell --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the start", "while it idles"])
async def test_a_push_goes_out_while_a_stranger_silences_the_bell_and_the_stranger_is_named(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str, when: str
) -> None:
    async with session(stranger_dsn) as thief:
        pid = thief.info.backend_pid
        take = ("select pg_advisory_lock(%s, %s)", POLLING_LOCK)
        if when == "before the start":
            await thief.execute(*take)
        with capture_logs() as said:
            async with serving(settings_for(worker_dsn, emulator, sweep_interval=1)) as service:
                if when == "while it idles":
                    await rechecked(service)
                    await thief.execute(*take)
                for n in range(3):
                    await high_priority(rows, f"phone-{n}")
                await until(lambda: shown_strangers(service) == {("polling", STRANGER, 1.0)})
                assert [(each.lock, each.pid, each.role) for each in strangers(database)] == [
                    ("polling", pid, STRANGER)
                ]
                await thief.execute("select pg_advisory_unlock_all()")
                await until(lambda: not shown_strangers(service))
                assert strangers(database) == []
                await rechecked(service)
                await high_priority(rows, "last")
    told = [each for each in said if each["event"] == "a stranger holds a lock of push-listener"]
    assert told
    assert len(told) < 6  # ever more should_log
    assert {(each["lock"], each["pid"], each["role"]) for each in told} == {("polling", pid, STRANGER)}
    assert f"pg_terminate_backend({pid})" in told[0]["remedy"]
    assert [each["pid"] for each in said if each["event"] == "a stranger no longer holds a lock"] == [pid]


async def test_a_lock_that_is_let_go_between_two_sweeps_delays_a_push_until_the_second(
    rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    async with serving(settings_for(worker_dsn, emulator, sweep_interval=2)) as service:
        await rechecked(service)
        async with holding(stranger_dsn, *POLLING_LOCK):
            push = await rows.add(device_token="unrung", title="t", priority="high")
        assert (await rows.one_over(push, patience=LONGEST_WAIT))["status"] == "sent"


async def test_behind_one_that_waits_for_the_lock_nobody_rings_either(
    rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    """A session that holds it in shared mode keeps no insert from ringing; one that waits behind it does."""
    async with (
        serving(settings_for(worker_dsn, emulator, sweep_interval=1)) as service,
        holding(stranger_dsn, *POLLING_LOCK, mode="_shared") as first,
        session(stranger_dsn) as second,
    ):
        await rechecked(service)
        waiting = asyncio.create_task(second.execute("select pg_advisory_lock(%s, %s)", POLLING_LOCK))
        await until_waiting(rows, second)
        for n in range(3):
            await high_priority(rows, f"phone-{n}")
        await until(lambda: ("polling", STRANGER, 1.0) in shown_strangers(service))
        await first.close()
        await waiting


async def until_waiting(rows: Rows, session: AsyncConnection[tuple[Any, ...]]) -> None:
    waits: LiteralString = "select pid from pg_locks where pid = %(pid)s and not granted"
    await until_found(rows.query, waits, pid=session.info.backend_pid)


async def test_a_prepared_transaction_is_a_stranger_too(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    async with session(stranger_dsn) as thief:
        await thief.execute("begin")
        await thief.execute("select pg_advisory_xact_lock(%s, %s)", POLLING_LOCK)
        await thief.execute("select pg_advisory_xact_lock(%s, 1)", (LIVENESS_CLASS,))
        await thief.execute("prepare transaction 'it''s mine'")
    try:
        with capture_logs() as said:
            async with serving(settings_for(worker_dsn, emulator, sweep_interval=1)) as service:
                await high_priority(rows, "phone")
                expected = {("polling", STRANGER, 1.0), ("liveness", STRANGER, 1.0)}
                await until(lambda: shown_strangers(service) == expected)
        (told, *_) = [each for each in said if each.get("lock") == "polling"]
        assert (told["pid"], told["role"], told["prepared"]) == (None, STRANGER, "it's mine")
        assert "rollback prepared 'it''s mine'" in told["remedy"]
        assert {(each.lock, each.pid, each.prepared) for each in strangers(database)} == {
            ("polling", None, "it's mine"),
            ("liveness", None, "it's mine"),
        }
    finally:
        async with session(database.superuser_dsn) as conn:
            await conn.execute("rollback prepared 'it''s mine'")


async def test_the_same_lock_in_another_database_is_another_lock(
    database: Database, blank_database: Database, stranger_dsn: str
) -> None:
    async with holding(blank_database.dsn_as(STRANGER), *POLLING_LOCK):
        assert strangers(database) == []


async def test_a_polling_worker_is_no_stranger_nor_are_the_inserts_of_others(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str
) -> None:
    settings = settings_for(worker_dsn, emulator, sweep_interval=1)
    with capture_logs() as said:
        async with serving(settings) as first, serving(settings):
            bell = waker_of(first).doorbell
            await bell.fetchone("select pg_advisory_lock(%s, %s), 1", *POLLING_LOCK)
            assert strangers(database) == []
            await high_priority(rows, "phone")
            async with session(database.dsn) as owner:  # not a worker, but it may be one
                await owner.execute("select pg_advisory_lock(%s, 4711)", (LIVENESS_CLASS,))
                assert strangers(database) == []
            await bell.fetchone("select pg_advisory_unlock(%s, %s)", *POLLING_LOCK)
    assert not [each for each in said if "stranger" in each["event"]]


def test_one_that_holds_it_in_shared_mode_is_named_only_if_it_goes_on() -> None:
    """The trigger of each insert does the same for an instant."""
    found = LockHolder("polling", 0, 4711, STRANGER, None, exclusive=False, locks=1)
    watch = locks.LockWatch(metrics := Metrics())
    seen = []
    for present in ([found], [found], [], [found], [found], [found], []):
        watch.saw(present)
        labels = {"lock": "polling", "role": STRANGER}
        seen.append(metrics.registry.get_sample_value("push_lock_strangers", labels))
    assert seen == [None, None, None, None, None, 1.0, None]


def test_many_strangers_are_told_in_few_lines() -> None:
    watch = locks.LockWatch(Metrics())
    many = [LockHolder("liveness", n, n, STRANGER, None, exclusive=True, locks=1) for n in range(1, 101)]
    with capture_logs() as said:
        for _ in range(100):
            watch.saw(many)
    assert len(said) <= 8 * 11


# --- the lock that shows that a worker lives --------------------------------------------------------------------------


@asynccontextmanager
async def every_small_id_held(dsn: str) -> AsyncIterator[AsyncConnection[tuple[Any, ...]]]:
    async with session(dsn) as conn:
        await conn.execute("select pg_advisory_lock(%s, n) from generate_series(1, 300) n", (LIVENESS_CLASS,))
        yield conn


async def test_it_starts_although_every_small_id_is_held(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    async with every_small_id_held(stranger_dsn) as thief:
        pid = thief.info.backend_pid
        with capture_logs() as said:
            async with serving(settings_for(worker_dsn, emulator, sweep_interval=1)) as service:
                await high_priority(rows, "phone")
                await until(lambda: shown_strangers(service) == {("liveness", STRANGER, 1.0)})
        (found,) = strangers(database)
        assert (found.lock, found.key, found.locks, found.pid) == ("liveness", 1, 300, pid)
    (anew,) = [each for each in said if each["event"] == "registering again"]
    assert (anew["worker"], anew["pid"], anew["role"]) == (1, pid, STRANGER)
    (ready,) = [each for each in said if each["event"] == "ready"]
    assert ready["worker"] >= 1 << 30
    assert [each["stopped_at"] is not None for each in await known_workers(rows)] == [True, True]


async def known_workers(rows: Rows) -> list[dict[str, Any]]:
    return await rows.query("select * from push_listener.workers order by id")


async def test_it_goes_on_under_another_id_when_a_stranger_takes_its_lock_while_it_reconnects(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    """What it has under way is settled once, and none of it is taken from it by its peer."""
    emulator.latency = 3.0
    settings = settings_for(worker_dsn, emulator)
    async with serving(settings) as service, session(stranger_dsn) as thief:
        worker_id = dispatcher_of(service)._queue.worker_id
        async with serving(settings):
            pass  # it has run, and its row is that of a worker that has ended
        await rows.add_many(5)
        await emulator.wait_received(5)
        async with serving(settings_for(worker_dsn, emulator)):
            stealing = asyncio.create_task(
                thief.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, worker_id))
            )
            await until_waiting(rows, thief)
            async with session(database.superuser_dsn) as conn:
                await conn.execute(
                    "select pg_terminate_backend(pid, 10000) from pg_locks "
                    "where locktype = 'advisory' and classid = %s and objid = %s and granted",
                    (LIVENESS_CLASS, worker_id),
                )
            await stealing
            found = await rows.over()
            assert {
                (row["status"], row["delivery_attempts"], row["claimed_by"]) for row in found.values()
            } == {("sent", 1, worker_id)}
        emulator.latency = 0.0
        await until(lambda: dispatcher_of(service)._queue.worker_id != worker_id)
        await until(lambda: waker_of(service).doorbell.connected)
        new = dispatcher_of(service)
        push = await rows.add(device_token="last", title="t")
        assert (await rows.one_over(push))["claimed_by"] == new._queue.worker_id
        assert service.obstacles() == []
    assert emulator.stats()["duplicates"] == 0


async def test_it_registers_anew_when_its_row_has_vanished_and_when_it_is_anothers(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    async with serving(settings_for(database.dsn, emulator, sweep_interval=1)) as service:
        first = dispatcher_of(service)
        await rows.query("delete from push_listener.workers")
        await until(lambda: dispatcher_of(service) is not first)
        second = dispatcher_of(service)
        await high_priority(rows, "phone")
        # As if the tables had been made anew, and another worker had been given the same id.
        await rows.query("update push_listener.workers set incarnation = gen_random_uuid()")
        await rows.query(
            "select pg_terminate_backend(pid, 10000) from pg_locks where classid = %(class)s and objid = %(id)s",
            **{"class": LIVENESS_CLASS, "id": second._queue.worker_id},
        )
        await until(lambda: dispatcher_of(service) is not second)
        await high_priority(rows, "phone")
        (other, own) = sorted(await known_workers(rows), key=lambda row: row["id"] != second._queue.worker_id)
        assert other["stopped_at"] is None
        assert own["stopped_at"] is None


async def test_the_rows_of_a_dead_worker_are_rescued_although_a_stranger_holds_its_lock(
    database: Database, rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str
) -> None:
    async with pool_of(database.dsn) as pool:
        dead, alive = [await workers.register(pool, name) for name in ("dead", "alive")]
        await rows.query("update push_listener.workers set guarded = true")
        for worker_id in (dead, alive):
            await rows.query(
                "insert into push_notifications "
                "  (device_token, title, status, claimed_by, delivery_attempts, next_attempt_at) "
                "values ('t', 't', 'processing', %(id)s, 1, now() + interval '1 hour')",
                id=worker_id,
            )
        mine = Workers(pool, worker_id=await workers.register(pool, "mine"), lease=60.0)
        async with holding(stranger_dsn, LIVENESS_CLASS, dead), holding(worker_dsn, LIVENESS_CLASS, alive):
            assert await mine.peers() == {dead: False, alive: True}
            assert (await mine.rescue([dead, alive]))[:2] == ([dead], 1)
            # Another that has come to the same at the same time finds it done.
            assert (await mine.rescue([dead, alive]))[:2] == ([], 0)
        # The last of its life: a stranger that holds the lock beside it makes no difference.
        async with (
            holding(worker_dsn, LIVENESS_CLASS, alive, mode="_shared"),
            holding(stranger_dsn, LIVENESS_CLASS, alive, mode="_shared"),
        ):
            assert (await mine.rescue([alive]))[:2] == ([], 0)
        await until_gone(is_held, rows, alive)
        assert (await mine.rescue([alive]))[:2] == ([alive], 1)


async def is_held(rows: Rows, worker_id: int) -> bool:
    found = await rows.query(
        "select pid from push_listener.lock_holders where lock = 'liveness' and key = %(id)s", id=worker_id
    )
    return bool(found)


async def test_a_worker_that_comes_back_while_it_is_buried_waits_for_the_end_of_it(
    database: Database, rows: Rows, worker_dsn: str, stranger_dsn: str
) -> None:
    """Without the lock on its row it could have its liveness lock again, and claim, before its rows are taken."""
    async with pool_of(database.dsn) as pool:
        incarnation = uuid4()
        worker_id = await workers.register(pool, "dead", incarnation=incarnation)
        await rows.query("update push_listener.workers set guarded = true")
        async with (
            session(worker_dsn) as back,
            await AsyncConnection.connect(database.dsn) as rescuer,
            holding(stranger_dsn, LIVENESS_CLASS, worker_id) as thief,
        ):
            values = {"class": LIVENESS_CLASS, "suspects": [worker_id]}
            assert await (await rescuer.execute(workers._RESCUE, values)).fetchone() == ([worker_id], [])
            await thief.execute("select pg_advisory_unlock_all()")
            got = await (
                await back.execute("select pg_try_advisory_lock(%s, %s)", (LIVENESS_CLASS, worker_id))
            ).fetchone()
            assert got == (True,)
            returning = asyncio.create_task(
                back.execute(doorbell._GUARDED, {"worker": worker_id, "incarnation": incarnation})
            )
            await asyncio.wait({returning}, timeout=0.3)
            assert not returning.done()
            # A second rescue passes over a row that the first has locked.
            async with session(database.dsn) as other:
                assert await (await other.execute(workers._RESCUE, values)).fetchone() == ([], [])
            await rescuer.commit()
            await returning
            async with session(database.dsn) as other:
                assert await (await other.execute(workers._RESCUE, values)).fetchone() == ([], [])
        (row,) = await known_workers(rows)
        assert (row["stopped_at"], row["lost"]) == (None, False)


async def test_the_locks_of_strangers_do_not_divide_the_quota(
    database: Database, worker_dsn: str, stranger_dsn: str
) -> None:
    async with pool_of(worker_dsn) as pool:
        first, second = [
            Workers(pool, worker_id=await workers.register(pool, "w"), lease=60.0) for _ in range(2)
        ]
        for _ in range(298):
            await workers.register(pool, "dead")
        async with every_small_id_held(stranger_dsn):
            assert (await first.quota_state()).workers == 1
        async with holding(worker_dsn, LIVENESS_CLASS, second.worker_id):
            assert (await first.quota_state()).workers == 2
            # Of a worker that has never been there.
            async with holding(worker_dsn, LIVENESS_CLASS, 100_000):
                assert (await first.quota_state()).workers == 2


async def test_a_random_id_is_large_and_never_the_same(database: Database, worker_dsn: str) -> None:
    async with pool_of(worker_dsn) as pool:
        ids = {await workers.register(pool, "w", random_id=True) for _ in range(20)}
        assert len(ids) == 20
        assert all(1 << 30 <= each < 1 << 31 for each in ids)
        assert await workers.register(pool, "w") == 1


# --- floods of notifications ------------------------------------------------------------------------------------------


async def test_a_flood_of_notifications_is_answered_with_few_statements(
    rows: Rows, emulator: Emulator, worker_dsn: str, stranger_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rechecks = 0
    recheck = BusyPolling._recheck

    async def counted(self: BusyPolling) -> None:
        nonlocal rechecks
        rechecks += 1
        await recheck(self)

    async with serving(settings_for(worker_dsn, emulator)) as service, session(stranger_dsn) as flooder:
        polling = waker_of(service).polling
        await rechecked(service)
        monkeypatch.setattr(BusyPolling, "_recheck", counted)
        requested = polling._rechecks_requested
        for number in range(30):
            await flooder.execute(
                f"do $$ begin for n in 1..100 loop perform pg_notify('{CHANNEL}', 'x' || {number} || n); "
                f"perform pg_notify('{CHANNEL}_1', 'x' || n); commit; end loop; end $$"
            )
        await until(lambda: polling._rechecks_requested >= requested + 3000)
        await high_priority(rows, "phone")
        await rechecked(service)
        print(f"3000 requests, {rechecks} rechecks")
        assert rechecks < 1000


# --- siblings -----------------------------------------------------------------------------------------------------


async def test_migrate_names_who_keeps_it_waiting_early_and_at_the_end(
    database: Database, stranger_dsn: str
) -> None:
    noted: list[str] = []
    async with session(stranger_dsn) as thief:
        await thief.execute("select pg_advisory_lock(%s)", (migrate.LOCK_KEY,))
        (found,) = strangers(database)
        assert (found.lock, found.role) == ("migrate", STRANGER)
        with pytest.raises(migrate.MigrationError) as refused:
            await asyncio.to_thread(
                migrate.apply, database.dsn, patience=migrate.Patience(0.6, 0.3), warn=noted.append
            )
        pid = thief.info.backend_pid
    for said in (str(refused.value), *noted):
        assert f"process {pid} of role {STRANGER} holds it" in said
        assert f"pg_terminate_backend({pid})" in said
    assert len(noted) == 1
    assert await asyncio.to_thread(migrate.apply, database.dsn) == []


async def test_migrate_says_so_on_a_database_without_any_table(
    blank_database: Database, stranger_dsn: str
) -> None:
    async with session(blank_database.dsn_as(STRANGER)) as thief:
        await thief.execute("begin")
        await thief.execute("select pg_advisory_xact_lock(%s)", (migrate.LOCK_KEY,))
        await thief.execute("prepare transaction 'migrate'")
    try:
        with pytest.raises(migrate.MigrationError, match="a prepared transaction holds it"):
            await asyncio.to_thread(migrate.apply, blank_database.dsn, patience=migrate.Patience(0.2, 0.1))
    finally:
        async with session(blank_database.superuser_dsn) as conn:
            await conn.execute("rollback prepared 'migrate'")


async def test_a_stranger_keeps_nobody_from_purging_and_another_that_purges_does(
    database: Database, stranger_dsn: str
) -> None:
    async def may(dsn: str) -> bool:
        async with await retention.connect(dsn) as conn:
            return bool(await fetch_value(conn, retention._MAY_PURGE, {"key": PURGE_LOCK}))

    assert await may(database.dsn)
    async with session(stranger_dsn) as thief:
        await thief.execute("select pg_advisory_lock(%s)", (PURGE_LOCK,))
        assert await may(database.dsn)
        assert [each.lock for each in strangers(database)] == ["purge"]
    async with session(database.dsn) as other:
        await other.execute("select pg_advisory_lock(%s)", (PURGE_LOCK,))
        assert not await may(database.dsn)
