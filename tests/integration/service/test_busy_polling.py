"""Busy polling: inserts do not notify meanwhile, and no row is left behind when the poller stops or dies.

The sweep, which would find everything, comes in an hour.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
import pytest_asyncio
from psycopg import AsyncConnection

from listener.emulator import Emulator
from listener.metrics.own import Metrics
from listener.postgres.connect import Address
from listener.postgres.locks import CHANNEL, POLLING_LOCK
from listener.service import Service
from listener.wakeup import busy_polling
from listener.wakeup.doorbell import Doorbell, Topic
from listener.wakeup.peers import PeerWatch
from listener.wakeup.polling_policy import PollingPolicy, Want
from listener.wakeup.waker import SweepingWaker
from tests.support.doorbell import Rings, cut
from tests.support.postgres import Database, Server
from tests.support.service import (
    PATIENCE,
    Place,
    Shared,
    connect,
    dispatcher_of,
    environment,
    naming,
    python,
    sample,
    serving,
    settings_for,
    shown,
    until,
    until_found,
    until_gone,
    waker_of,
)

Writer = AsyncConnection[tuple[object, ...]]

HOLDER = """
select pid from pg_locks
  where locktype = 'advisory' and classid = %s and objid = %s and mode = 'ExclusiveLock' and granted
    and database = (select oid from pg_database where datname = current_database())
"""


class ScriptedPolicy:
    """In place of a polling policy: starts, and goes on, when the test says so."""

    def __init__(self) -> None:
        self.rest()

    def rest(self) -> None:
        self.starts = False
        self.goes_on = False
        self.tries = 0
        self.longest_unobserved = 0.0

    def notified(self, now: float) -> None:
        pass

    def want(self, now: float) -> Want:
        return Want.POLL if self.starts else Want.SLEEP

    def tried(self, now: float) -> None:
        self.tries += 1

    def started(self, now: float) -> None:
        pass

    def looked(self, now: float, rows: int) -> bool:
        return not self.goes_on

    def stopped(self, now: float) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    """Services begin and end to poll when a test says so.

    Watching its peers, a listener finds rows that are due as well, while it does that: it does not watch them.
    """

    async def run(self: PeerWatch) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy_polling, "PollingPolicy", ScriptedPolicy)
        patch.setattr(PeerWatch, "run", run)
        yield


def policy_of(service: Service) -> ScriptedPolicy:
    policy = waker_of(service).polling._policy
    assert isinstance(policy, ScriptedPolicy)
    return policy


@pytest_asyncio.fixture(loop_scope="module")
async def shared(shared: Shared) -> AsyncIterator[Shared]:
    """Its policy is as it was, and no recheck is left."""
    await settled(shared.service)
    yield shared
    policy_of(shared.service).rest()
    await shown(shared.service.metrics, "push_busy_polling", 0)
    await settled(shared.service)


@asynccontextmanager
async def writer(database: Database) -> AsyncIterator[Writer]:
    """For transactions that are open for as long as the test wants."""
    async with await AsyncConnection.connect(database.dsn) as conn:
        yield conn


async def insert(conn: Writer, *tokens: str) -> None:
    for token in tokens:
        await conn.execute("insert into push_notifications (device_token, title) values (%s, 't')", (token,))


async def start_polling(service: Service) -> None:
    policy = policy_of(service)
    policy.starts = policy.goes_on = True
    waker_of(service).polling.notified()
    await shown(service.metrics, "push_busy_polling", 1)
    policy.starts = False


async def stop_polling(service: Service) -> None:
    policy_of(service).goes_on = False
    await shown(service.metrics, "push_busy_polling", 0)


async def settled(service: Service) -> None:
    """Returns once every recheck is done."""
    polling = waker_of(service).polling
    await until(lambda: not polling.must_recheck)


async def sent(emulator: Emulator, *tokens: str) -> None:
    """Returns once these, and no others, have been sent, each once."""
    await emulator.wait_accepted(len(tokens), timeout=PATIENCE)
    assert sorted(str(each.target) for each in emulator.accepted) == sorted(tokens)


@asynccontextmanager
async def hearing(database: Database) -> AsyncIterator[Callable[[], Awaitable[list[str]]]]:
    """A client that listens; what it is given returns what has come on the channel of the bell until now."""
    async with await connect(database.dsn) as ear, await connect(database.dsn) as mouth:
        await ear.execute(f"listen {CHANNEL}")
        await ear.execute("listen fence")

        async def heard() -> list[str]:
            # Notifications come in the order of commits.
            await mouth.execute("notify fence")
            said = []
            async for notify in ear.notifies(timeout=PATIENCE):
                if notify.channel == "fence":
                    break
                said.append(notify.payload)
            return said

        yield heard


# --- no bell ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_no_insert_notifies_while_a_worker_polls_and_each_does_before_and_after(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with (
        writer(database) as conn,
        hearing(database) as heard,
    ):
        await conn.set_autocommit(True)
        await insert(conn, "before")
        assert await heard() == [""]
        await start_polling(service)
        assert await heard() == ["1"]  # it says so, with its number
        await insert(conn, *(f"silent-{n}" for n in range(20)))
        await sent(emulator, "before", *(f"silent-{n}" for n in range(20)))
        assert await heard() == []
        await stop_polling(service)
        await settled(service)
        await insert(conn, "after")
        assert await heard() == [""]
        await emulator.wait_accepted(22, timeout=PATIENCE)


@pytest.mark.asyncio(loop_scope="module")
async def test_it_lets_go_when_it_is_stopped_and_says_so(place: Place) -> None:
    database, emulator = place.database, place.emulator
    async with hearing(database) as heard, writer(database) as conn:
        emulator.latency = 0.5  # so that it does not end at once
        async with serving(place.settings()) as service:
            await start_polling(service)
            assert await holder(database) is not None
            await insert(conn, "last")
            await conn.commit()
            await emulator.wait_received(1, timeout=PATIENCE)
            service.stop()
            await shown(service.metrics, "push_busy_polling", 0)
            assert await holder(database) is None
            assert await heard() == ["1", ""]


@pytest.mark.asyncio(loop_scope="module")
async def test_only_one_worker_polls_and_another_can_after_it(place: Place) -> None:
    database = place.database
    settings = place.settings()
    async with serving(settings) as first, serving(settings) as second:
        await start_polling(first)
        policy_of(second).starts = policy_of(second).goes_on = True
        waker_of(second).polling.notified()
        async with await AsyncConnection.connect(database.dsn, autocommit=True) as conn:
            row = await (
                await conn.execute(busy_polling._START, (*POLLING_LOCK, 0, 0, CHANNEL, "4711"))
            ).fetchone()
        assert row == (False, 0)
        assert sample(second.metrics, "push_busy_polling") == 0
        await stop_polling(first)
        # It may have tried before it learned that the first one polls, and tries again when it is notified.
        async with await connect(database.dsn) as bell:
            await bell.execute("select pg_notify(%s, '')", (CHANNEL,))
        await shown(second.metrics, "push_busy_polling", 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_without_a_doorbell_never_polls(place: Place) -> None:
    async with serving(place.settings(wakeup="sweep")) as service:
        assert isinstance(service.worker and service.worker.waker, SweepingWaker)


@pytest.mark.asyncio(loop_scope="module")
async def test_one_that_cannot_claim_lets_go_after_a_while_and_until_then_another_looks(place: Place) -> None:
    database, emulator = place.database, place.emulator
    async with (
        Emulator(latency=3600.0) as hanging,
        serving(settings_for(database.dsn, hanging, max_in_flight="1", shutdown_grace="0.5")) as full,
        writer(database) as conn,
    ):
        await conn.set_autocommit(True)
        await insert(conn, "never")
        await hanging.wait_received(1, timeout=PATIENCE)
        async with serving(place.settings()) as free, hearing(database) as heard:
            await settled(free)
            await start_polling(full)
            await shown(full.metrics, "push_busy_polling", 0)
            await insert(conn, "loud")
            assert await heard() == ["1", ""]
            await sent(emulator, "loud")

            policy_of(full).longest_unobserved = 3600.0
            await start_polling(full)
            await insert(conn, "silent")
            await sent(emulator, "loud", "silent")
            assert await heard() == ["1"]
            assert sample(full.metrics, "push_busy_polling") == 1


# --- how it comes to be ------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_many_inserts_wake_it_and_then_it_sleeps_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, emulator = place.database, place.emulator
    monkeypatch.setattr(busy_polling, "PollingPolicy", PollingPolicy)
    async with serving(place.settings()) as service, await connect(database.dsn) as conn:
        count = 0
        async with asyncio.timeout(PATIENCE):
            while not sample(service.metrics, "push_busy_polling_started_total"):
                # Each a transaction of its own.
                await conn.execute(
                    """do $$ begin for n in 1..200 loop
                      insert into push_notifications (device_token, title) values ('phone', 't'); commit;
                    end loop; end $$"""
                )
                count += 200
        await emulator.wait_accepted(count, timeout=PATIENCE)
        await shown(service.metrics, "push_busy_polling", 0)
        await settled(service)
        await conn.execute("insert into push_notifications (device_token, title) values ('last', 't')")
        await emulator.wait_accepted(count + 1, timeout=PATIENCE)
        assert len(emulator.accepted) == count + 1


async def test_transactions_that_queue_to_ring_are_seen(database: Database, postgres: Server) -> None:
    """The first commits for ever, waiting for a standby that is not there, and the others wait for it."""

    async def ring() -> None:
        async with await connect(database.dsn) as conn:
            await conn.execute("insert into push_notifications (device_token, title) values ('t', 't')")

    async def standby(name: str) -> None:
        async with await connect(database.superuser_dsn) as conn:
            await conn.execute("set synchronous_commit = local")
            await conn.execute(f"alter system set synchronous_standby_names = '{name}'")
            await conn.execute("select pg_reload_conf()")
        await asyncio.to_thread(settings_are, postgres, "synchronous_standby_names", name)

    async def taken(crowd: int) -> bool:
        async with await AsyncConnection.connect(database.dsn) as conn:
            values = (*POLLING_LOCK, crowd, crowd, CHANNEL, "1")
            row = await (await conn.execute(busy_polling._START, values)).fetchone()
            await conn.rollback()
            assert row is not None
            return bool(row[0])

    assert await taken(0)
    assert not await taken(1)
    await standby("nobody")
    ringing = [asyncio.create_task(ring()) for _ in range(4)]
    try:
        await until_found(taken, 3)
        assert not await taken(4)
    finally:
        await standby("")
        await asyncio.gather(*ringing)


def settings_are(server: Server, name: str, value: str) -> None:
    """Returns once new connections have the setting."""
    while True:
        with psycopg.connect(server.uri, autocommit=True) as conn:
            row = conn.execute("select current_setting(%s)", (name,)).fetchone()
            if row == (value,):
                return


# --- transactions that end when it does not poll any more ---------------------------------------------------------


async def plainly(conn: Writer, token: str) -> None:
    await insert(conn, token)


async def in_a_savepoint(conn: Writer, token: str) -> None:
    await conn.execute("savepoint s")
    await insert(conn, token)
    await conn.execute("release savepoint s")


async def after_a_savepoint(conn: Writer, token: str) -> None:
    await conn.execute("savepoint s")
    await insert(conn, "never")
    await conn.execute("rollback to savepoint s")
    await insert(conn, token)


async def before_a_savepoint(conn: Writer, token: str) -> None:
    await insert(conn, token)
    await conn.execute("savepoint s")
    await insert(conn, "never")
    await conn.execute("rollback to savepoint s")


async def by_an_update(conn: Writer, token: str) -> None:
    await conn.execute(
        "update push_notifications set status = 'pending', next_attempt_at = now(), device_token = %s "
        "where status = 'cancelled'",
        (token,),
    )


async def by_a_copy(conn: Writer, token: str) -> None:
    async with conn.cursor().copy("copy push_notifications (device_token, title) from stdin") as copy:
        await copy.write_row((token, "t"))


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_committed_after_it_has_let_go_is_sent(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    writes = (plainly, in_a_savepoint, after_a_savepoint, before_a_savepoint, by_an_update, by_a_copy)
    expected: list[str] = []
    async with (
        writer(database) as conn,
        hearing(database) as heard,
    ):
        await conn.execute(
            "insert into push_notifications (device_token, title, status) values ('o', 't', 'cancelled')"
        )
        await conn.commit()
        assert await heard() == [""]
        for write in writes:
            with naming(write.__name__):
                await settled(service)
                await start_polling(service)
                assert await heard() == ["1"]
                await write(conn, write.__name__)
                await stop_polling(service)
                await shown(service.metrics, "push_unnotified_transactions", 1)
                await conn.commit()
                expected.append(write.__name__)
                await sent(emulator, *expected)
                await settled(service)
                assert await heard() == []
                await shown(service.metrics, "push_unnotified_transactions", 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_several_are_sent_each_when_it_is_committed(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with (
        AsyncExitStack() as stack,
    ):
        conns = [await stack.enter_async_context(writer(database)) for _ in range(4)]
        await start_polling(service)
        for n, conn in enumerate(conns):
            await insert(conn, f"phone-{n}")
        await stop_polling(service)
        await shown(service.metrics, "push_unnotified_transactions", 4)
        await conns[2].rollback()
        await shown(service.metrics, "push_unnotified_transactions", 3)
        expected: list[str] = []
        for n in (3, 0, 1):
            await conns[n].commit()
            expected.append(f"phone-{n}")
            await sent(emulator, *expected)
        await settled(service)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_that_is_rolled_back_to_a_savepoint_and_written_again_later_rings_then(
    shared: Shared,
) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with (
        writer(database) as conn,
        hearing(database) as heard,
    ):
        await start_polling(service)
        await conn.execute("savepoint s")
        await insert(conn, "never")
        await conn.execute("rollback to savepoint s")
        await stop_polling(service)
        await settled(service)  # nobody holds anything in it any more
        assert await heard() == ["1"]
        await insert(conn, "again")
        await conn.commit()
        await sent(emulator, "again")
        assert await heard() == [""]


@pytest.mark.asyncio(loop_scope="module")
async def test_transactions_that_have_nothing_to_do_with_it_are_not_waited_for(shared: Shared) -> None:
    database, service = shared.database, shared.service
    async with writer(database) as conn:
        await conn.execute("create table other (n integer)")
        await conn.commit()
        await conn.execute("insert into other values (1)")
        await conn.execute("select * from push_notifications for update")
        await start_polling(service)
        await stop_polling(service)
        await settled(service)


@pytest.mark.asyncio(loop_scope="module")
async def test_it_can_poll_again_while_it_waits_for_a_transaction(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with (
        writer(database) as conn,
        writer(database) as other,
    ):
        await start_polling(service)
        await insert(conn, "first")
        await stop_polling(service)
        await shown(service.metrics, "push_unnotified_transactions", 1)
        await start_polling(service)
        await insert(other, "second")
        await stop_polling(service)
        await shown(service.metrics, "push_unnotified_transactions", 2)
        await conn.commit()
        await sent(emulator, "first")
        await other.commit()
        await sent(emulator, "first", "second")
        await settled(service)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prepared_transaction_is_waited_for_wherever_it_was_prepared(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    # A transaction that has notified cannot be prepared.
    await shared.rows.query("alter table push_notifications disable trigger test_tell")
    async with (
        await connect(database.dsn) as conn,
    ):
        await start_polling(service)
        await conn.execute("begin")
        await conn.execute("insert into push_notifications (device_token, title) values ('early', 't')")
        await conn.execute("prepare transaction 'early'")
        await conn.execute("begin")
        await conn.execute("insert into push_notifications (device_token, title) values ('late', 't')")
        await stop_polling(service)
        await shown(service.metrics, "push_unnotified_transactions", 2)
        await conn.execute("prepare transaction 'late'")
        await conn.execute("begin")  # another in the same session is not waited for
        await conn.execute("delete from push_notifications where false")
        await conn.execute("rollback")
        await conn.execute("commit prepared 'late'")
        await sent(emulator, "late")
        await conn.execute("commit prepared 'early'")
        await sent(emulator, "late", "early")
        await settled(service)


async def test_a_transaction_that_has_rung_cannot_be_prepared(database: Database) -> None:
    """As Postgres has it: one that has notified cannot. docs/sql.md says so."""
    async with await connect(database.dsn) as conn:
        await conn.execute("begin")
        await conn.execute("insert into push_notifications (device_token, title) values ('t', 't')")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await conn.execute("prepare transaction 'x'")


# --- the poller freezes, dies, or loses its connection -------------------------------------------------------


async def holder(database: Database) -> int | None:
    """The backend that holds the lock."""
    async with await connect(database.dsn) as conn:
        row = await (await conn.execute(HOLDER, POLLING_LOCK)).fetchone()
        return row["pid"] if row else None


@asynccontextmanager
async def stranger_with_polling_lock(database: Database) -> AsyncIterator[Writer]:
    """Holds the lock as a listener would, and does nothing."""
    async with await AsyncConnection.connect(database.dsn, autocommit=True) as conn:
        row = await (
            await conn.execute(busy_polling._START, (*POLLING_LOCK, 0, 0, CHANNEL, "4711"))
        ).fetchone()
        assert row is not None
        assert row[0]
        yield conn


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("first", ["listener", "holder"])
async def test_the_queue_is_looked_at_while_another_poller_does_nothing(place: Place, first: str) -> None:
    database, emulator = place.database, place.emulator
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(writer(database))
        heard = await stack.enter_async_context(hearing(database))
        if first == "holder":
            await stack.enter_async_context(stranger_with_polling_lock(database))
        service = await stack.enter_async_context(serving(place.settings()))
        if first == "listener":
            await settled(service)
            await stack.enter_async_context(stranger_with_polling_lock(database))
        for n in range(3):
            await insert(conn, f"phone-{n}")
            await conn.commit()
            await emulator.wait_accepted(n + 1, timeout=PATIENCE)
        assert await heard() == ["4711"]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_was_written_while_another_polled_is_sent_when_that_is_gone(shared: Shared) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with writer(database) as conn:
        await settled(service)
        async with stranger_with_polling_lock(database):
            await insert(conn, "late")
        await shown(service.metrics, "push_unnotified_transactions", 1)
        await conn.commit()
        await sent(emulator, "late")


@pytest.mark.asyncio(loop_scope="module")
async def test_what_was_written_before_the_start_is_sent(place: Place) -> None:
    database, emulator = place.database, place.emulator
    async with writer(database) as conn:
        async with stranger_with_polling_lock(database):
            await insert(conn, "late")
        async with serving(place.settings()) as service:
            await shown(service.metrics, "push_unnotified_transactions", 1)
            await conn.commit()
            await sent(emulator, "late")


CUTS = ["before take", "after take", "before let go", "after let go"]


@pytest.mark.asyncio(loop_scope="module")
async def test_its_connection_is_cut_at_each_step(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    ask = Doorbell.fetchone
    point, reached, expected = "", asyncio.Event(), list[str]()

    async def asked(self: Doorbell, statement: LiteralString, *values: object) -> tuple[object, ...]:
        what = {busy_polling._START: "take", busy_polling._STOP: "let go"}.get(statement)  # None: it stops
        for when in ("before", "after"):
            if point == f"{when} {what}" and not reached.is_set():
                reached.set()
                await cut(database, "push-listener doorbell")
            if when == "before":
                row = await ask(self, statement, *values)
        return row

    async with writer(database) as conn:
        for step in CUTS:
            with naming(step):
                await settled(service)
                point, reached = step, asyncio.Event()
                late, later = [f"{word}-{step.replace(' ', '-')}" for word in ("late", "later")]
                with monkeypatch.context() as patch:
                    patch.setattr(Doorbell, "fetchone", asked)
                    policy_of(service).starts = policy_of(service).goes_on = True
                    waker_of(service).polling.notified()
                    if point.endswith("let go"):
                        await shown(service.metrics, "push_busy_polling", 1)
                        policy_of(service).starts = False
                        await insert(conn, late)
                        expected.append(late)
                        policy_of(service).goes_on = False
                    async with asyncio.timeout(PATIENCE):
                        await reached.wait()
                    policy_of(service).starts = policy_of(service).goes_on = False
                    await until(lambda: waker_of(service).doorbell.connected)
                    await insert(conn, later)
                    expected.append(later)
                    await conn.commit()
                    await sent(emulator, *expected)
                    await settled(service)
                    assert await holder(database) is None


@pytest.mark.asyncio(loop_scope="module")
async def test_a_statement_that_fails_after_taking_the_lock_takes_it_along(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, emulator, service = shared.database, shared.emulator, shared.service
    async with writer(database) as conn:
        await settled(service)
        monkeypatch.setattr(
            busy_polling,
            "_START",
            "select pg_advisory_lock(%s, %s), %s::text, %s::text, %s::text, %s::text, 1 / (random() * 0)",
        )
        policy_of(service).starts = True
        waker_of(service).polling.notified()
        await until(lambda: policy_of(service).tries)
        policy_of(service).starts = False
        await until_gone(holder, database)
        await settled(service)
        await insert(conn, "rings")
        await conn.commit()
        await sent(emulator, "rings")


# A listener that gets up when it hears the bell, polls until there is a file, and stops at one point, for the test to
# kill it there.
STOPPING = """
import asyncio, os, signal
from listener.cli import main
from listener.wakeup import busy_polling
from listener.wakeup.doorbell import Doorbell
from listener.wakeup.polling_policy import Want
from listener.postgres.queue import Queue
from listener.postgres.workers import Workers

point, end = os.environ["STOP_AT"], os.environ["POLL_UNTIL"]
got_up = waits = False
claiming = asyncio.Lock()

class Once:
    rings = 0  # one as it begins to listen
    tried_once = False
    longest_unobserved = 0.0
    def notified(self, now): self.rings += 1
    def want(self, now): return Want.POLL if self.rings > 1 and not self.tried_once else Want.SLEEP
    def tried(self, now): self.tried_once = True
    def started(self, now): pass
    def looked(self, now, rows): return os.path.exists(end)
    def stopped(self, now): pass

async def claim(*args, original=Queue.claim):
    async with claiming:
        return await original(*args)

async def reach(here):
    if got_up and here == point:
        async with claiming:  # a claim that has reached Postgres would take rows that are written later
            print("reached", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)

def stopping(name, call):
    async def called(*args):
        await reach("before " + name)
        answer = await call(*args)
        await reach("after " + name)
        return answer
    return called

take, let_go = stopping("take", Doorbell.fetchone), stopping("let go", Doorbell.fetchone)

async def ask(self, statement, *values):
    global got_up
    got_up = True
    return await (take if statement == busy_polling._START else let_go)(self, statement, *values)

def wait_after(seconds, original=busy_polling._wait_after):
    global waits
    waits = True
    return original(seconds)

async def is_set_within(event, seconds, original=busy_polling.is_set_within):
    global waits
    if waits:
        waits = False
        await reach("wait")
    return await original(event, seconds)

Queue.claim = claim
Doorbell.fetchone = ask
Workers.is_polling_locked = stopping("polling locked", Workers.is_polling_locked)
Workers.open_writers = stopping("writers", Workers.open_writers)
busy_polling.PollingPolicy = Once
busy_polling._wait_after = wait_after
busy_polling.is_set_within = is_set_within
main.main(["run"])
"""

# Between "after let go" and "before polling locked" nothing is said to the database, nor before "writers" and "wait".
POINTS = ["before take", "after take", "before let go", "after let go", "after polling locked", "wait"]

# Who starts later, and who only sees that the lock is taken or free, cannot tell all of them from one another.
FATES = {
    "killed": POINTS,
    "killed, and another is started": ["after take", "after let go"],
    "frozen": ["after take", "after let go"],
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fate", FATES)
async def test_it_is_killed_or_frozen_at_each_step(place: Place, tmp_path: Path, fate: str) -> None:
    database, emulator = place.database, place.emulator
    settings = place.settings()
    expected: list[str] = []
    async with AsyncExitStack() as stack, await connect(database.dsn) as bell:
        conns = [await stack.enter_async_context(writer(database)) for _ in range(2)]
        is_late = fate == "killed, and another is started"
        peer = None if is_late else await stack.enter_async_context(serving(settings))
        for point in FATES[fate]:
            end, step = tmp_path / point, point.replace(" ", "-")
            variables = {"stop_at": point, "poll_until": str(end), "sweep_interval": "3600"}
            async with AsyncExitStack() as late:
                late.enter_context(naming(point))
                if peer is not None:
                    await settled(peer)
                # The dead of earlier steps would give this listener a reason to look at the queue.
                await bell.execute(
                    "update push_listener.workers set stopped_at = now() where stopped_at is null and id <> %s",
                    (0 if peer is None else dispatcher_of(peer)._queue.worker_id,),
                )
                listener = await late.enter_async_context(
                    python("-c", STOPPING, env=environment(database.dsn, emulator, **variables), forked=True)
                )
                await listener.said("ready")
                await bell.execute("select pg_notify(%s, '')", (CHANNEL,))
                if point not in ("before take", "after take"):
                    await until_found(holder, database)
                    await insert(conns[0], f"first-{step}")  # nobody rings for it
                    expected.append(f"first-{step}")
                    end.touch()
                await listener.printed("reached")
                await insert(conns[1], f"second-{step}")  # nor for this, if the lock is still taken
                expected.append(f"second-{step}")
                if fate != "frozen":
                    listener.signal(signal.SIGKILL)
                    await listener.ended()
                if is_late:
                    await settled_but_for_writers(await late.enter_async_context(serving(settings)))
                for conn in conns:
                    await conn.commit()
                await sent(emulator, *expected)


async def settled_but_for_writers(service: Service) -> None:
    await until(lambda: sample(service.metrics, "push_unnotified_transactions"))


# --- the connection that listens also answers ------------------------------------------------------------------------


async def test_no_ring_is_lost_while_statements_are_asked(database: Database) -> None:
    rings, count = Rings(), 0
    bell = Doorbell(Address(database.dsn), 1, Metrics(), heartbeat=60.0)
    bell.subscribe(Topic.NOTIFIED, rings)
    running = asyncio.create_task(bell.run())
    asking = True
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while asking:
            assert await bell.fetchone("select %s::integer", asked) == (asked,)
            asked += 1
            await asyncio.sleep(0.0005 * (asked % 3))

    try:
        await rings.more_than(0)
        async with await connect(database.dsn) as conn:
            questions = asyncio.create_task(ask())
            while count < 300 or asked < 100:
                await conn.execute("select pg_notify(%s, '')", (CHANNEL,))
                count += 1
            await rings.more_than(count)
            asking = False
            await questions
        print(f"{asked} statements between {count} rings")
        assert rings.count == count + 1
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_statement_that_fails_replaces_the_connection(database: Database) -> None:
    rings = Rings()
    bell = Doorbell(Address(database.dsn), 1, Metrics(), heartbeat=60.0)
    bell.subscribe(Topic.NOTIFIED, rings)
    running = asyncio.create_task(bell.run())
    try:
        with pytest.raises(psycopg.OperationalError):
            await bell.fetchone("select 1")
        await rings.more_than(0)
        backend = await bell.fetchone("select pg_backend_pid()")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await bell.fetchone("select 1 / 0")
        await rings.more_than(1)
        assert await bell.fetchone("select pg_backend_pid()") != backend
    finally:
        running.cancel()
        await asyncio.wait({running})
