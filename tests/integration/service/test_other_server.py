"""An address behind which the server, the database or the login changes: the service goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from listener.demo.embedded import EmbeddedPostgres
from listener.emulator import Emulator
from listener.postgres.connect import Address, ServicePool, is_transaction_pooler
from listener.postgres.errors import Condition, condition
from listener.service import Service, credentials_for
from tests.chaos.proxy import Link, tcp_link, to_unix
from tests.support.pgbouncer import pooler
from tests.support.postgres import FAST, Database, Server, Template, programs, standby_of
from tests.support.service import (
    PATIENCE,
    Place,
    Rows,
    connect,
    dispatcher_of,
    environment,
    get,
    naming,
    program,
    rows_of,
    run,
    sample,
    serving,
    settings_for,
    until,
    until_found,
    waker_of,
    with_arguments,
)

NEVER = 3600.0
"""Seconds. A test that has begun to wait for this long does not see the end of it, however slow the machine is."""


def socket_of(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"])) / ".s.PGSQL.5432"


@asynccontextmanager
async def movable(dsn: str) -> AsyncIterator[tuple[Link, str]]:
    """An address that a test can lead to another server, as a proxy or a DNS name can."""
    async with tcp_link(to_unix(socket_of(dsn))) as (link, port):
        yield link, make_conninfo(dsn, host="127.0.0.1", port=port)


# --- a server that is read-only -----------------------------------------------------------------------------


async def test_a_standby_is_told_from_the_server_that_can_be_written_to(
    database: Database, emulator: Emulator
) -> None:
    """And from the former primary once it is one itself."""
    with capture_logs() as said, database.server.database(Template.MIGRATED) as other:
        async with (
            movable(database.dsn) as (link, dsn),
            movable(database.dsn) as (listen_link, listen_dsn),
            serving(settings_for(dsn, emulator, listen_database_url=listen_dsn, sweep_interval=1)) as service,
        ):
            with standby_of(database.server) as standby:
                for way in (_led_to_it_for_a_while, _one_of_several_hosts, _listened_at):
                    with naming(way.__name__):
                        await way(other, emulator, standby)
                await _listens_at_the_former_primary(database, service, (link, listen_link), standby, said)
            service.stop()


async def _led_to_it_for_a_while(database: Database, emulator: Emulator, standby: EmbeddedPostgres) -> None:
    """The connections to the standby are open and answer; without being replaced they would last an hour."""
    async with (
        movable(database.dsn) as (link, dsn),
        serving(settings_for(dsn, emulator)) as service,
        rows_of(database.dsn) as rows,
    ):
        assert (await rows.one_over(await rows.add(device_token="before", title="t")))["status"] == "sent"
        link.lead_to(to_unix(socket_of(standby.uri)))
        link.reset()
        await until(lambda: service.obstacles() and link.connections)
        push = await rows.add(device_token="after", title="t")
        await until(lambda: "the database is read-only" in " ".join(service.obstacles()))
        link.lead_to(to_unix(socket_of(database.dsn)))  # and every connection to the standby stays
        assert (await rows.one_over(push))["status"] == "sent"
        await until(lambda: service.obstacles() == [])


async def _one_of_several_hosts(database: Database, emulator: Emulator, standby: EmbeddedPostgres) -> None:
    hosts = [str(socket_of(dsn).parent) for dsn in (standby.uri, database.dsn)]
    dsn = make_conninfo(database.dsn, host=",".join(hosts), port="5432,5432")
    async with rows_of(database.dsn) as rows, serving(settings_for(dsn, emulator)):
        assert (await rows.one_over(await rows.add(device_token="t", title="t")))["status"] == "sent"


async def _listened_at(database: Database, emulator: Emulator, standby: EmbeddedPostgres) -> None:
    """The address to listen at leads to it: that is named, and waited for."""
    async with movable(database.dsn) as (link, dsn):
        link.lead_to(to_unix(socket_of(standby.uri)))
        env = environment(database.dsn, emulator, listen_database_url=dsn)
        async with program("run", env=env, forked=True) as running:
            told = await running.said("database cannot be reached")
            assert "another server than DATABASE_URL" in told["reason"]
            assert told["setting"] == "LISTEN_DATABASE_URL"
            status, text = await get(await running.port(), "/readyz")
            assert (status, "the two addresses lead to two servers" in text) == (503, True)
            link.lead_to(to_unix(socket_of(database.dsn)))
            await running.said("ready")


async def _listens_at_the_former_primary(
    database: Database,
    service: Service,
    links: tuple[Link, Link],
    successor: EmbeddedPostgres,
    said: Sequence[Mapping[str, object]],
) -> None:
    """The former primary runs on, and nobody notifies there of what is inserted into its successor."""
    link, listen_link = links
    worker_id = dispatcher_of(service)._queue.worker_id
    with psycopg.connect(successor.uri, autocommit=True) as conn:
        conn.execute("select pg_promote()")
    await until(lambda: service.obstacles() == [])
    link.lead_to(to_unix(socket_of(successor.uri)))
    link.reset()
    await until(lambda: any("listens at another server" in str(each["event"]) for each in said))
    listen_link.lead_to(to_unix(socket_of(successor.uri)))  # without cutting a connection
    place = str(socket_of(successor.uri).parent)
    async with rows_of(make_conninfo(database.dsn, host=place)) as rows:
        await until_found(
            rows.query,
            "select pid from push_listener.lock_holders where lock = 'liveness' and key = %(id)s",
            id=worker_id,
        )
        push = await rows.add(device_token="t", title="t")
        assert (await rows.one_over(push))["status"] == "sent"


# --- a session that serves no more ---------------------------------------------------------------------------


async def test_the_role_may_be_dropped_and_made_anew(
    database: Database, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of the role that was dropped have no privilege any more, although its name has."""
    with_arguments(monkeypatch, Address, refused_least=0.3, refused_first=0.5, refused_longest=0.5)
    name = "test_made_anew"

    async def make() -> None:
        await rows.query(f"create role {name} login in role push_listener")

    async with rows_of(database.superuser_dsn) as rows:
        await make()
        async with serving(settings_for(database.dsn_as(name), emulator)) as service:
            await rows.one_over(await rows.add(device_token="before", title="t"))
            await rows.query(f"drop role {name}")
            push = await rows.add(device_token="meanwhile", title="t")
            await until(service.obstacles)
            await make()
            assert (await rows.one_over(push))["status"] == "sent"
            await until(lambda: service.obstacles() == [])
        await rows.query(f"drop role {name}")


# --- a login that is refused ------------------------------------------------------------------------------------


REFUSALS = {
    Condition.LOGIN: (["alter role {role} nologin"], ["alter role {role} login"]),
    Condition.NO_DATABASE: (
        [
            "alter database {database} connection limit 0",
            "alter database {database} rename to test_moved",
        ],
        [
            "alter database test_moved rename to {database}",
            "alter database {database} connection limit -1",
        ],
    ),
    Condition.NO_CONNECT: (
        ["revoke connect on database {database} from public"],
        ["grant connect on database {database} to public"],
    ),
}


async def test_a_login_that_is_refused_for_a_while_is_named_and_allowed_again(
    database: Database, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, Address, refused_least=0.3, refused_first=0.5, refused_longest=0.5)
    names = {"role": sql.Identifier("test_refused"), "database": sql.Identifier(database.name)}
    dsn = database.dsn_as("test_refused")

    async def change(*statements: str) -> None:
        for statement in statements:
            await admin.execute(sql.SQL(statement).format(**names))
            await admin.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'test_refused'"
            )

    async with await connect(database.server.uri) as admin:
        await change("create role {role} login in role push_listener")
        try:
            async with serving(settings_for(dsn, emulator)) as service:
                assert service.port is not None
                for kind, (refuse, allow) in REFUSALS.items():
                    with naming(str(kind)):
                        await change(*refuse)
                        await until(lambda kind=kind: str(kind) in service.obstacles())  # type: ignore[misc]
                        status, said = await get(service.port, "/readyz")
                        assert (status, str(kind) in said) == (503, True)
                        await change(*allow)
                        await until(lambda: service.obstacles() == [])
                        async with rows_of(database.dsn) as rows:
                            push = await rows.one_over(await rows.add(device_token="t", title="t"))
                            assert push["status"] == "sent"
        finally:
            await change("drop role {role}")


@pytest.mark.asyncio(loop_scope="module")
async def test_while_a_login_is_refused_hardly_any_is_tried(place: Place) -> None:
    """Supabase bans an address from which a wrong password comes again and again."""
    database = place.database
    tries = 0
    dial = to_unix(socket_of(database.dsn))

    async def counted(protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        nonlocal tries
        tries += 1
        return await dial(protocol)

    async with tcp_link(counted) as (_, port):
        address = Address(
            make_conninfo(database.dsn, host="127.0.0.1", port=port, user="test_nobody"),
            refused_least=NEVER,
            refused_first=NEVER,
            refused_longest=NEVER,
        )
        async with ServicePool(address, prepares=True, patience=0.5) as pool:
            await until(lambda: address.condition is Condition.LOGIN)  # its first try has been refused
            for _ in range(50):
                with pytest.raises(psycopg.OperationalError) as raised:
                    async with pool.connection():
                        pass
                assert condition(raised.value) is Condition.LOGIN
                with pytest.raises(psycopg.OperationalError):
                    await is_transaction_pooler(address)
        assert tries <= 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_password_that_was_wrong_from_the_start_is_tried_seldom(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, emulator = place.database, place.emulator
    with_arguments(monkeypatch, Address, refused_least=NEVER, refused_first=NEVER, refused_longest=NEVER)
    settings = settings_for(database.dsn_as("test_nobody"), emulator)
    with capture_logs() as said:
        service = Service(settings, *credentials_for(settings))
        running = asyncio.create_task(service.run())
        await until(lambda: str(Condition.LOGIN) in service.obstacles())
        await asyncio.sleep(1.0)  # nothing is to happen
        service.stop()
        await running
    assert [each["event"] for each in said].count("database cannot be reached") == 1


# --- a database that has forgotten a worker --------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_that_gets_the_id_of_one_that_lives_takes_another(place: Place) -> None:
    """As after a failover to a server that lagged behind, or a restored backup."""
    rows, emulator = place.rows, place.emulator
    emulator.latency = 8.0
    settings = place.settings(sweep_interval=2)
    with capture_logs() as said:
        async with serving(settings) as first:
            await rows.add_many(5)
            await emulator.wait_received(5, timeout=PATIENCE)
            await rows.query("truncate push_listener.workers restart identity")
            async with serving(settings) as second:
                await rows.add_many(5, "more")
                found = await rows.over()
                emulator.latency = 0.0
                for service in (first, second):
                    await until(lambda service=service: service.obstacles() == [])  # type: ignore[misc]
                assert (await rows.one_over(await rows.add(device_token="last", title="t")))[
                    "status"
                ] == "sent"
                ids = {dispatcher_of(service)._queue.worker_id for service in (first, second)}
    known = await rows.query("select id from push_listener.workers where guarded")
    assert ids <= {row["id"] for row in known}
    assert len(ids) == 2
    assert {(row["status"], row["delivery_attempts"], row["lost_claims"]) for row in found.values()} == {
        ("sent", 1, 0)
    }
    assert emulator.stats()["duplicates"] == 0
    events = [each["event"] for each in said]
    assert events.count("doorbell lost") == 0
    # The second did it; and so did the first, unless it found its row gone before the second had its id.
    assert 1 <= events.count("registering again") <= 2
    assert "workers have died; their rows are back in the queue" not in events


@pytest.mark.asyncio(loop_scope="module")
async def test_two_workers_that_sweep_never_share_an_id(place: Place) -> None:
    """No lock tells that the id is taken, and each would give back what the other has claimed."""
    rows = place.rows
    settings = place.settings(wakeup="sweep", sweep_interval=2)
    async with serving(settings) as first:
        await rows.query("truncate push_listener.workers restart identity")
        async with serving(settings) as second:
            assert dispatcher_of(first)._queue.worker_id != dispatcher_of(second)._queue.worker_id


# --- two addresses ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_an_address_to_listen_at_that_names_another_database_is_refused(place: Place) -> None:
    with place.database.server.database(Template.MIGRATED) as other:
        env = environment(place.database.dsn, place.emulator, listen_database_url=other.dsn)
        code, _, said = await run("run", env=env, forked=True)
    assert (code, "LISTEN_DATABASE_URL leads to another database than DATABASE_URL" in said) == (2, True)
    assert "Traceback" not in said


# --- few connections -------------------------------------------------------------------------------------------


async def test_with_two_connections_everything_is_sent(database: Database, emulator: Emulator) -> None:
    """The doorbell needs one of them: without it nothing may be claimed."""
    async with rows_of(database.superuser_dsn) as rows:
        await rows.query("create role test_few login connection limit 2 in role push_listener")
        try:
            async with serving(settings_for(database.dsn_as("test_few"), emulator)) as service:
                for number in range(3):
                    await rows.add_many(30, f"phone-{number}")
                    await rows.over()
                    await rows.query(  # and it gets one again, although the pool wants more
                        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                        "where application_name = 'push-listener doorbell' and datname = current_database()"
                    )
                await until(lambda: service.obstacles() == [])
        finally:
            await rows.query("drop role test_few")


# --- a privilege that is revoked ---------------------------------------------------------------------------------


async def test_a_doorbell_without_its_privilege_names_it_and_connects_when_it_is_granted(
    database: Database, emulator: Emulator
) -> None:
    async with rows_of(database.superuser_dsn) as rows:
        await rows.query("create role test_revoked login in role push_listener")
        try:
            with capture_logs() as said:
                async with serving(settings_for(database.dsn_as("test_revoked"), emulator)) as service:
                    await rows.query("revoke update on push_listener.workers from push_listener")
                    await rows.query(
                        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                        "where application_name = 'push-listener doorbell' and datname = current_database()"
                    )
                    await until(lambda: str(Condition.PRIVILEGE) in service.obstacles())
                    push = await rows.add(device_token="t", title="t")
                    await rows.query(
                        "grant update (stopped_at, guarded, lost) on push_listener.workers to push_listener"
                    )
                    assert (await rows.one_over(push))["status"] == "sent"
        finally:
            await rows.query("drop role test_revoked")
    told = next(each for each in said if each["event"] == "doorbell cannot connect")
    assert told["reason"].startswith("permission denied for table workers")


# --- a full NOTIFY queue -------------------------------------------------------------------------------------------


async def test_with_a_full_notify_queue_inserts_succeed_and_are_sent_and_the_session_is_named(
    emulator: Emulator,
) -> None:
    """Needs a setting of PostgreSQL 17: by default the queue has 8 GB."""
    version, sessions = 18, AsyncExitStack()
    bin_dir = programs(version)
    assert bin_dir is not None
    with Server(version, bin_dir, {**FAST, "max_notify_queue_pages": "64"}) as server:
        async with sessions:
            database = sessions.enter_context(server.database(Template.MIGRATED))
            listener = await sessions.enter_async_context(await psycopg.AsyncConnection.connect(database.dsn))
            pid = listener.info.backend_pid
            await listener.execute("listen some_channel")
            await listener.commit()
            await listener.execute("select 1")  # and now it is in a transaction, and reads no notification
            with capture_logs() as said:
                async with (
                    rows_of(database.dsn) as rows,
                    serving(
                        settings_for(database.dsn, emulator, listen_check_interval=1, queue_depth_interval=1)
                    ) as service,
                ):
                    await rows.one_over(await rows.add(device_token="before", title="t"))
                    await rows.query("alter table push_notifications disable trigger test_tell")
                    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                        await notify_without_end(rows)
                    await until(lambda: waker_of(service).polling._is_polling)
                    push = await rows.add(device_token="meanwhile", title="t")
                    async with asyncio.timeout(PATIENCE):
                        while (await rows.get(push))["status"] != "sent":  # noqa: ASYNC110  # nothing notifies
                            await asyncio.sleep(0.05)
                    usage = "push_notify_queue_usage"
                    await until(lambda: (sample(service.metrics, usage) or 0.0) > 0.9)
                    assert service.obstacles() == []
                    await listener.rollback()
                    await until(lambda: not waker_of(service).polling._is_polling)
                    await rows.query("alter table push_notifications enable trigger test_tell")
                    assert (await rows.one_over(await rows.add(device_token="after", title="t")))[
                        "status"
                    ] == "sent"
    full = next(each for each in said if "NOTIFY queue of the server is full" in each["event"])
    assert full["pid"] == pid


async def notify_without_end(rows: Rows) -> None:
    while True:
        await rows.query("select pg_notify('some_channel', repeat('x', 7000))")


# --- what the role prescribes for its sessions ------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
async def test_no_setting_of_the_role_keeps_a_push_from_being_sent(
    database: Database, emulator: Emulator, pooled: bool
) -> None:
    settings = {
        "idle_session_timeout": "500ms",
        "idle_in_transaction_session_timeout": "1s",
        "statement_timeout": "5s",
        "lock_timeout": "100ms",
        "search_path": "pg_temp",
        "default_transaction_isolation": "serializable",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "TimeZone": "Asia/Kolkata",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
    }
    async with AsyncExitStack() as stack:
        rows = await stack.enter_async_context(rows_of(database.superuser_dsn))
        await rows.query("create role test_strict login in role push_listener")
        try:
            for name, value in settings.items():
                await rows.connection.execute(
                    sql.SQL("alter role test_strict set {} = {}").format(
                        sql.Identifier(name), sql.Literal(value)
                    )
                )
            dsn = make_conninfo(database.dsn, user="test_strict")
            variables: dict[str, object] = {}
            if pooled:
                address = await stack.enter_async_context(pooler(database, "transaction", user="test_strict"))
                variables, dsn = {"listen_database_url": dsn}, address
            with capture_logs() as said:
                async with serving(settings_for(dsn, emulator, **variables)) as service:
                    for wave in range(2):
                        await rows.add_many(20, f"phone-{wave}")
                        found = await rows.over()
                        await asyncio.sleep(0.8)  # longer than a session may be idle
                    assert service.obstacles() == []
        finally:
            await rows.query("drop role test_strict")
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
    assert "doorbell lost" not in [each["event"] for each in said]
