"""Workers that die, freeze or go deaf: their rows go on in other hands, and nothing is settled by a ghost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.emulator import Emulator
from listener.metrics.own import Metrics
from listener.postgres import workers
from listener.postgres.connect import Address, Connection
from listener.postgres.locks import LIVENESS_CLASS
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.push import Decision, Settlement, Status
from listener.wakeup.doorbell import STEADY_AFTER_S, Doorbell, Topic
from listener.wakeup.peers import PeerWatch
from tests.chaos.proxy import tcp_link, to_unix
from tests.support.postgres import Database, Server
from tests.support.service import (
    PATIENCE,
    Place,
    Program,
    Row,
    Rows,
    connect,
    dispatcher_of,
    environment,
    pool_of,
    program,
    rows_of,
    serving,
    settings_for,
    unanswered,
    until,
    until_gone,
    waker_of,
    with_arguments,
)


@pytest.fixture(autouse=True)
def _settled(postgres: Server) -> None:
    """Just after a server's start nobody is taken for dead: it may be a restart, and the others not back yet."""
    postgres.start()  # an earlier test may have left it stopped
    with psycopg.connect(postgres.uri) as conn:
        conn.execute(
            "select pg_sleep_until(pg_postmaster_start_time() + make_interval(secs => %s))",
            (STEADY_AFTER_S,),
        )


@asynccontextmanager
async def worker(
    database: Database, emulator: Emulator, name: str, **variables: str
) -> AsyncIterator[Program]:
    """A process of its own, ready. The sweep, which could find rows as well, comes in an hour."""
    given = {"worker_name": name, "sweep_interval": "3600", **variables}
    async with program("run", env=environment(database.dsn, emulator, **given), forked=True) as started:
        await started.said("ready")
        yield started


async def kill(*victims: Program) -> float:
    """SIGKILL; returns when (Unix time)."""
    for victim in victims:
        victim.signal(signal.SIGKILL)
    when = time.time()
    for victim in victims:
        await victim.ended()
    return when


async def holders(rows: Rows) -> dict[str, int]:
    """How many rows each worker holds, by its name."""
    found = await rows.query(
        "select w.name, count(*) from push_notifications p join push_listener.workers w on w.id = p.claimed_by "
        "where p.status = 'processing' group by 1"
    )
    return {row["name"]: row["count"] for row in found}


async def lock_holder(rows: Rows, worker_id: int) -> int | None:
    """The backend that holds a worker's liveness lock."""
    found = await rows.query(
        "select pid from pg_locks where locktype = 'advisory' and classid = %(class)s and objid = %(id)s and granted "
        "and database = (select oid from pg_database where datname = current_database())",
        **{"class": LIVENESS_CLASS, "id": worker_id},
    )
    return found[0]["pid"] if found else None


def report(what: str, found: dict[UUID, Row], since: float) -> None:
    """Says how long it took. ``rows.over`` is less patient than a lease is long, and fails if only that helped."""
    latest = max(row["sent_at"].timestamp() for row in found.values()) - since
    print(f"{what}: all {len(found)} rows sent by others within {latest:.2f} s")


def assert_rescued_once(found: dict[UUID, Row]) -> None:
    assert {
        (row["status"], row["retry_count"], row["lost_claims"], row["delivery_attempts"])
        for row in found.values()
    } == {("sent", 0, 1, 2)}


# --- death -----------------------------------------------------------------------------------------------


async def test_the_rows_of_killed_workers_go_out_through_others_within_seconds(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    hang = emulator.add_fault("timeout")
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(worker(database, emulator, name, max_in_flight="20"))
            for name in ("first", "second")
        ]
        await rows.add_many(36)
        await emulator.wait_received(36, timeout=PATIENCE)
        assert await holders(rows) == {
            "first": 18,
            "second": 18,
        }  # of 20 places two are kept for high priority
        third = await stack.enter_async_context(worker(database, emulator, "third"))
        emulator.remove_fault(hang)
        since = await kill(first, second)
        found = await rows.over()
        await third.said_of("workers have died; their rows are back in the queue", "rows", 36)
        report("two killed", found, since)
        assert_rescued_once(found)
        assert emulator.stats()["duplicates"] == 0

        # A single process, as on one dyno: nobody else is there to notice.
        await rows.query("delete from push_notifications")
        emulator.clear()
        hang = emulator.add_fault("timeout")
        await rows.add_many(20)
        await emulator.wait_received(20, timeout=PATIENCE)
        await kill(third)
        emulator.remove_fault(hang)
        since = time.time()
        await stack.enter_async_context(worker(database, emulator, "next"))
        found = await rows.over()
    report("started anew (start included)", found, since)
    assert_rescued_once(found)
    assert emulator.stats()["duplicates"] == 0


# --- a row that a peer has put back for later, and the peer's end ---------------------------------------------


class Peer:
    """A worker of which the test is the hands and the life."""

    def __init__(self, rows: Queue, life: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self.rows = rows
        self.id = rows.worker_id
        self._life = life

    async def die(self) -> None:
        await self._life.execute("select pg_advisory_unlock_all()")

    async def take(self, rows: Rows) -> UUID:
        """A row that has never been anybody else's."""
        (found,) = await rows.query(
            "insert into push_notifications "
            "  (device_token, title, status, claimed_by, delivery_attempts, next_attempt_at) "
            "values ('t', 't', 'processing', %(id)s, 1, now() + interval '60 s') returning id",
            id=self.id,
        )
        return UUID(str(found["id"]))


@asynccontextmanager
async def peer(database: Database) -> AsyncIterator[Peer]:
    async with (
        pool_of(database.dsn) as pool,
        await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as life,
    ):
        worker_id = await workers.register(pool, "peer")
        await life.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, worker_id))
        await life.execute("update push_listener.workers set guarded = true where id = %s", (worker_id,))
        yield Peer(Queue(pool, worker_id=worker_id, lease=60.0), life)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_retry_that_another_worker_has_set_is_on_time_without_that_worker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may freeze or die, holding nothing, before the time has come; and no bell rings for a retry."""
    database, rows = place.database, place.rows
    with_arguments(monkeypatch, PeerWatch, attentive=0.1)
    async with peer(database) as other, serving(place.settings()):
        push_id = await other.take(rows)
        await rows.one_over(
            await rows.add(device_token="other", title="t")
        )  # looks: it will wait for a lease
        later = Decision(Status.FAILED, delay=1.5, uses_try=True, code="UNAVAILABLE", reason="in trouble")
        assert await other.rows.settlements.settle([Settlement(push_id, 1, later)]) == [Fate.WRITTEN]
        due = time.time() + 1.5
        row = await rows.one_over(push_id)
    print(f"sent {row['sent_at'].timestamp() - due:.2f} s after it was due")
    assert (row["status"], row["lost_claims"]) == ("sent", 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_rescuer_that_dies_over_it_leaves_everything_to_the_next(place: Place) -> None:
    database, rows = place.database, place.rows
    rescuer = await psycopg.AsyncConnection.connect(database.dsn)
    async with peer(database) as dead, serving(place.settings()) as service:
        push_id = await dead.take(rows)
        await dead.die()
        # Has put the row back, and is about to commit.
        await rescuer.execute(workers._RESCUE, {"class": LIVENESS_CLASS, "suspects": [dead.id]})
        await looks(waker_of(service).peers, 3)
        assert (await rows.get(push_id))["status"] == "processing"
        async with await connect(database.superuser_dsn) as conn:
            await conn.execute("select pg_terminate_backend(%s, 10000)", (rescuer.info.backend_pid,))
        await rescuer.close()
        row = await rows.one_over(push_id)
    assert_rescued_once({push_id: row})


async def looks(watch: PeerWatch, count: int) -> None:
    """Returns when a watch has looked at its peers so many times more."""
    peers, seen = watch._workers.peers, 0

    async def counted() -> dict[int, bool]:
        nonlocal seen
        seen += 1
        watch.note_activity()
        return await peers()

    watch._workers.peers = counted  # type: ignore[method-assign]
    watch.note_activity()
    await until(lambda: seen >= count)
    watch._workers.peers = peers  # type: ignore[method-assign]


# --- no death ----------------------------------------------------------------------------------------------


async def test_a_worker_that_is_frozen_or_deaf_is_not_dead(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """One that was frozen past its lease settles nothing any more. One whose listen connection is cut keeps its rows,
    its id and its lock.
    """
    busy = emulator.add_fault("unavailable")
    async with AsyncExitStack() as stack:
        frozen = await stack.enter_async_context(worker(database, emulator, "frozen"))
        with unanswered(emulator):
            await rows.add_many(20)
            await emulator.wait_received(20, timeout=PATIENCE)
            frozen.signal(signal.SIGSTOP)  # it reads the answers afterwards
        emulator.remove_fault(busy)
        deaf = await stack.enter_async_context(worker(database, emulator, "deaf"))
        # As if it had been for a minute or two: the lease is over by the database's clock.
        await rows.query("update push_notifications set next_attempt_at = now()")
        await rows.add(device_token="bell", title="t")
        found = await rows.over()
        frozen.signal(signal.SIGCONT)
        await frozen.said_of(
            "rows are not this worker's any more: their results are not written", "taken", 20
        )
        assert await rows.all() == {push_id: {**row, "next_in": None} for push_id, row in found.items()}
        # And it is back at work.
        await rows.one_over(await rows.add(device_token="last", title="t"))
        frozen.terminate()
        assert await frozen.ended() == 0
        old = {push_id: row for push_id, row in found.items() if row["device_token"] != "bell"}
        assert_rescued_once(old)
        assert emulator.stats()["duplicates"] == 0
        for push_id in old:
            assert [log["status"] for log in await rows.logs(push_id)].count("sent") == 1

        await rows.query("delete from push_notifications")
        emulator.clear()
        emulator.latency = 2.0
        await rows.add_many(20)
        await emulator.wait_accepted(20, timeout=PATIENCE)
        await stack.enter_async_context(worker(database, emulator, "other"))
        worker_id = (await deaf.said("ready"))["worker"]
        backend = (await deaf.said("doorbell connected"))["backend"]
        assert await lock_holder(rows, worker_id) == backend
        async with await connect(database.superuser_dsn) as conn:
            await conn.execute("select pg_terminate_backend(%s, 10000)", (backend,))
        await until(lambda: len(connections(deaf)) == 2)
        assert await lock_holder(rows, worker_id) == connections(deaf)[1] != backend
        found = await rows.over()
    assert {
        (row["status"], row["delivery_attempts"], row["lost_claims"], row["claimed_by"])
        for row in found.values()
    } == {("sent", 1, 0, worker_id)}
    assert emulator.stats()["duplicates"] == 0


def connections(running: Program) -> list[int]:
    return [record["backend"] for record in running.records if record["event"] == "doorbell connected"]


async def test_when_the_server_is_restarted_nobody_is_taken_for_dead(
    database: Database, emulator: Emulator
) -> None:
    """Every worker is silent then, and the first to be back must not bury the others."""
    settings = settings_for(database.dsn, emulator, max_in_flight=10)
    async with serving(settings), serving(settings) as slow:
        bell = waker_of(slow).doorbell
        assert bell is not None
        connect_at_once = bell._connect

        async def connect_late() -> Connection:
            await asyncio.sleep(2.2)  # as it may wait between two tries; two looks would be over by then
            return await connect_at_once()

        bell._connect = connect_late  # type: ignore[method-assign]
        with unanswered(emulator):
            async with rows_of(database.dsn) as rows:
                await rows.add_many(18)
                await emulator.wait_accepted(
                    18, timeout=PATIENCE
                )  # of ten places each keeps one for high priority
                await rows.survive_crash()
            await asyncio.to_thread(database.server.restart, "immediate")
            await until(lambda: not bell.connected)
            await until(lambda: bell.connected)
        async with rows_of(database.dsn) as rows:
            found = await rows.over()
    assert {(row["status"], row["delivery_attempts"], row["lost_claims"]) for row in found.values()} == {
        ("sent", 1, 0)
    }
    assert emulator.stats()["duplicates"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_former_connection_that_holds_the_lock_in_silence_is_evicted(place: Place) -> None:
    database, rows = place.database, place.rows
    dial = to_unix(Path(str(conninfo_to_dict(database.dsn)["host"])) / ".s.PGSQL.5432")
    async with tcp_link(dial) as (link, port), pool_of(database.dsn) as pool:
        worker_id = await workers.register(pool, "test")
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=port)
        rings: list[int] = []
        bell = Doorbell(Address(dsn), worker_id, Metrics(), heartbeat=0.5, proof_timeout=1.0)
        bell.subscribe(Topic.NOTIFIED, lambda: rings.append(1))
        running = asyncio.create_task(bell.run())
        try:
            await until(lambda: rings)
            former = await lock_holder(rows, worker_id)
            assert former is not None
            link.silence()
            rings.clear()
            await until(lambda: rings)
            assert bell.connected
            assert await lock_holder(rows, worker_id) not in (None, former)
            # A backend that ends is shown longer than its lock.
            await until_gone(rows.query, "select from pg_stat_activity where pid = %(pid)s", pid=former)
        finally:
            running.cancel()
            await asyncio.wait({running})


@pytest.mark.asyncio(loop_scope="module")
async def test_who_cannot_be_seen_to_live_claims_nothing_and_still_settles(place: Place) -> None:
    """A stranger that it cannot evict has the lock: peers would take what it claims under its id."""
    database, rows, emulator = place
    emulator.latency = 2.0
    async with (
        serving(place.settings()) as service,
        await psycopg.AsyncConnection.connect(database.superuser_dsn, autocommit=True) as thief,
    ):
        dispatcher = dispatcher_of(service)
        await rows.add_many(5)
        await emulator.wait_accepted(5, timeout=PATIENCE)
        worker_id = dispatcher._queue.worker_id
        stealing = asyncio.create_task(
            thief.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, worker_id))
        )
        await waits_for_the_lock(rows)
        async with await connect(database.superuser_dsn) as conn:
            backend = await lock_holder(rows, worker_id)
            await conn.execute("select pg_terminate_backend(%s, 10000)", (backend,))
        await stealing
        unheard = await rows.add(device_token="unheard", title="t")
        found = await rows.over()
        assert {row["delivery_attempts"] for row in found.values()} == {1}
        claimed_by = {row["id"]: row["claimed_by"] for row in found.values()}
        assert claimed_by.pop(unheard) != worker_id
        assert set(claimed_by.values()) == {worker_id}
        assert service.obstacles() == []


async def waits_for_the_lock(rows: Rows) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if await rows.query("select pid from pg_locks where locktype = 'advisory' and not granted"):
                return
            await asyncio.sleep(0.01)


# --- nothing to do -----------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_peers_that_have_nothing_to_do_ask_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = place.rows
    with_arguments(monkeypatch, PeerWatch, attentive=0.1)
    settings = place.settings()
    async with serving(settings), serving(settings):
        await rows.one_over(await rows.add(device_token="t", title="t"))
        await until_gone(sessions_that_asked_lately, rows)
        # It is sent at once all the same.
        await rows.one_over(await rows.add(device_token="t", title="t"))


async def sessions_that_asked_lately(rows: Rows) -> int:
    """The sessions of workers with a statement in the last three seconds: four looks at the peers, if they looked."""
    (found,) = await rows.query(
        "select count(*) as n from pg_stat_activity where datname = current_database() "
        "and application_name like 'push-listener%%' and clock_timestamp() - query_start < interval '3 s'"
    )
    return int(found["n"])
