"""``push-listener doctor``, on installations in which one thing is wrong; what it proposes is done, and helps."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace

import orjson
import psycopg
import pytest
from psycopg import sql

from listener.doctor import connections, examination, fcm, reaching
from listener.doctor.findings import Finding, Level
from listener.doctor.limits import Limits
from listener.doctor.looking import record
from listener.emulator import Emulator
from listener.postgres.statements import load
from tests.support.access import WORKER, make_worker
from tests.support.cli import invoke
from tests.support.doctor import Diagnosis, examine, examine_within, only_these_variables
from tests.support.documents import text_of
from tests.support.pgbouncer import pooler
from tests.support.postgres import Database, Server, Template
from tests.support.servers import closed_port, tcp_server
from tests.support.service import environment, program, rows_of, serving, settings_for

GROUPS = [
    "settings",
    "process",
    "database",
    "LISTEN",
    "migrations",
    "triggers",
    "rights of the role",
    "privileges",
    "advisory locks",
    "recipients",
    "whether this is a copy",
    "other databases of this server",
    "who can cause, change or read a push",
    "connections",
    "clock",
    "snapshots",
    "NOTIFY queue",
    "dead rows",
    "workers",
    "FCM",
]


TEN_THOUSAND_TRANSACTIONS = (
    "do $$ begin for n in 1..10001 loop perform pg_current_xact_id(); commit; end loop; end $$"
)


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement.encode())


def groups(found: Diagnosis) -> list[str]:
    return list(dict.fromkeys(each.group for each in found.findings))


async def remedied(found: Diagnosis, group: str, dsn: str) -> None:
    """Does what is proposed for each fault or warning of a group, as it stands."""
    for finding in found.at(Level.FAULT, Level.WARNING, group=group):
        assert finding.remedy
        await asyncio.to_thread(execute, dsn, finding.remedy)


# --- a healthy one -------------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
async def test_a_healthy_installation(database: Database, emulator: Emulator) -> None:
    async with serving(settings_for(database.dsn, emulator)):
        found = await examine(database.dsn, emulator)
    assert found.at(Level.FAULT, Level.WARNING) == []
    assert found.exit_code == 0
    assert groups(found) == GROUPS
    assert "arrives after" in found.at(Level.OK, group="LISTEN")[1].text
    assert found.only(Level.SKIPPED).text.startswith(
        "a message to a topic does not show whether Apple accepts"
    )
    assert emulator.accepted == []


async def test_the_text(database: Database, emulator: Emulator) -> None:
    env = environment(database.dsn, emulator)
    execute(database.dsn, "grant execute on all functions in schema public to anon")
    done = await invoke(None, "doctor", **env)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert "settings" in lines
    assert "  ✓ push-listener run can use them" in lines
    assert "    try this: start push-listener run" in lines
    # Long lines are not wrapped.
    assert any(
        line.startswith("  ✗ ") and "enqueue_push(uuid,text," in line and "with time zone,text)" in line
        for line in lines
    )
    assert done.output.count("run push-listener migrate") == 1  # once for everything that it repairs


async def test_json_is_a_list_of_findings(database: Database, emulator: Emulator) -> None:
    async with program("doctor", "--json", env=environment(database.dsn, emulator), forked=True) as running:
        assert await running.ended() == 0
    rows = orjson.loads(running.out)
    assert {frozenset(row) for row in rows} == {frozenset({"group", "level", "text", "remedy", "is_setting"})}
    assert {row["level"] for row in rows} <= {"ok", "warning", "fault", "skipped"}
    assert running.err == ""


# --- settings --------------------------------------------------------------------------------------------------------


async def test_every_wrong_setting_is_told_and_the_database_is_checked_all_the_same(
    database: Database, emulator: Emulator
) -> None:
    found = await examine(
        database.dsn,
        emulator,
        fcm_service_account_json='{"type": "service_account", "private_key": "S3cr3t"}',
        port="none",
        lease="1",
        database_uri="x",
    )
    assert found.exit_code == 2
    told = {each.text.split()[0].rstrip(":") for each in found.at(Level.FAULT, group="settings")}
    assert told == {"FCM_SERVICE_ACCOUNT_JSON", "LEASE", "PORT"}
    assert [each.level for each in found.findings if each.group == "migrations"] == [Level.OK]
    assert found.only(Level.SKIPPED, "FCM").text == "not checked: a setting that it needs is wrong"
    assert "S3cr3t" not in str(found)


async def test_a_misspelt_variable(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, loglevel="debug")
    warning = found.only(Level.WARNING, "settings")
    assert (warning.text.split()[0], warning.remedy) == (
        "LOGLEVEL",
        "rename it to LOG_LEVEL, if that is meant",
    )
    assert found.exit_code == 0


async def test_without_an_address_fcm_is_checked_all_the_same(emulator: Emulator) -> None:
    found = await examine(None, emulator)
    assert found.exit_code == 2
    assert found.only(Level.FAULT, "settings").text == "DATABASE_URL is not set"
    assert groups(found) == GROUPS
    assert found.at(Level.OK, group="FCM")[-1].text.startswith("FCM accepts a message to a topic")


async def test_a_missing_key_is_a_wrong_setting(database: Database, emulator: Emulator) -> None:
    found = await examine(
        database.dsn,
        emulator,
        fcm_service_account_json=None,
        google_application_credentials="/nowhere/key.json",
    )
    assert found.exit_code == 2
    assert found.only(Level.FAULT).text == "GOOGLE_APPLICATION_CREDENTIALS names a file that does not exist"
    assert found.at(Level.OK, group="migrations")


async def test_no_key_at_all_is_told_with_what_to_do(database: Database, emulator: Emulator) -> None:
    for endpoint, remedy in (
        ("https://fcm.googleapis.com", "make a new key (Firebase console"),
        (emulator.endpoint, "set GOOGLE_APPLICATION_CREDENTIALS to the key that the emulator writes"),
    ):
        found = await examine(database.dsn, emulator, fcm_service_account_json=None, fcm_endpoint=endpoint)
        fault = found.only(Level.FAULT, "FCM")
        assert fault.remedy
        assert fault.remedy.startswith(remedy)


async def test_an_emulator_that_does_not_run_is_to_be_started(database: Database, emulator: Emulator) -> None:
    await emulator.stop()
    fault = (await examine(database.dsn, emulator)).only(Level.FAULT, "FCM")
    assert fault.remedy
    assert fault.remedy.startswith("start the emulator (push-listener emulator) at FCM_ENDPOINT")


@pytest.mark.parametrize(
    "variables", [{"host": "203.0.113.9"}, {"metrics_host": "203.0.113.9", "metrics_port": "0"}], ids=str
)
async def test_an_address_to_listen_on_that_this_machine_has_not(
    database: Database, emulator: Emulator, variables: dict[str, str]
) -> None:
    """``run`` does not start with it."""
    async with program("run", env=environment(database.dsn, emulator, **variables), forked=True) as running:
        assert await running.ended() == 2
    assert (await examine(database.dsn, emulator, **variables)).exit_code == 2


@pytest.mark.parametrize("arguments", [["--device", " "], ["--device"], ["--fix"]])
async def test_wrong_usage(arguments: list[str], emulator: Emulator) -> None:
    done = await invoke(None, "doctor", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")


async def test_metrics_that_nobody_may_read(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, host="0.0.0.0")
    assert found.only(Level.WARNING, "process").text.startswith("/metrics is closed")
    found = await examine(database.dsn, emulator, host="0.0.0.0", metrics_token="0123456789")
    assert found.at(Level.WARNING, group="process") == []
    found = await examine(database.dsn, emulator, host="0.0.0.0", metrics_port="0")
    assert [each.text.partition(":")[0] for each in found.at(Level.OK, group="process")][:2] == [
        "/metrics is closed on PORT",
        "/metrics is open on METRICS_PORT",
    ]


# --- a database that does not answer ---------------------------------------------------------------------------------

SHORT = Limits(resolve=0.3, connect=0.3, mode=0.5, check=0.5, still_there=0.3, fcm=5.0, whole=5.0)


def names_every_group(found: list[Finding]) -> bool:
    return list(dict.fromkeys(each.group for each in found)) == GROUPS


async def test_a_database_that_refuses_connections(emulator: Emulator) -> None:
    found = await examine(f"postgresql://u:s3cr3t-of-mine@127.0.0.1:{closed_port()}/nowhere", emulator)
    assert found.exit_code == 1
    fault = found.only(Level.FAULT)
    assert fault.text.startswith("DATABASE_URL: the host refuses the connection")
    for part in ("s3cr3t", "nowhere", "127.0.0.1"):
        assert part not in str(found)
    assert groups(found) == GROUPS
    skipped = found.only(Level.SKIPPED, "migrations")
    assert skipped.text == "not checked: the database was not reached"
    assert found.at(Level.OK, group="FCM")


async def test_a_database_that_never_answers(emulator: Emulator) -> None:
    """The server holds the connections open for as long as the test lasts: only the limits end the checks."""
    held: list[asyncio.StreamReader] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(reader)
        await asyncio.Event().wait()

    async with tcp_server(hold) as port:
        env = environment(f"postgresql://u@127.0.0.1:{port}/db", emulator)
        with only_these_variables(**env):
            found = await asyncio.to_thread(examine_within, SHORT)
        assert held
    (fault,) = [each for each in found if each.level is Level.FAULT]
    assert fault.text.startswith("DATABASE_URL: there is no answer in time")
    assert names_every_group(found)


@pytest.mark.parametrize(
    "limits", [SHORT, replace(SHORT, mode=60.0, check=60.0, whole=600.0)], ids=["ours", "libpq's"]
)
async def test_a_database_that_stops_answering_between_two_checks(
    database: Database, emulator: Emulator, limits: Limits
) -> None:
    """Either the limit of a check ends it, or that of libpq for a connection."""
    async with _way_for(database, connections=1) as dsn:
        with only_these_variables(**environment(dsn, emulator)):
            found = await asyncio.to_thread(examine_within, limits)
    (fault,) = [each for each in found if each.level is Level.FAULT]
    assert (fault.group, fault.text) == ("LISTEN", "not checked: the database answers no more")
    assert names_every_group(found)


@asynccontextmanager
async def _way_for(database: Database, connections: int) -> AsyncIterator[str]:
    """An address through which so many connections get answers. Later ones are held open."""
    directory = str(psycopg.conninfo.conninfo_to_dict(database.dsn)["host"])
    given = iter(range(connections))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(given, None) is None:
            await asyncio.Event().wait()
        up_reader, up_writer = await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.5432")
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    async with tcp_server(handle) as port:
        yield psycopg.conninfo.make_conninfo(database.dsn, host="127.0.0.1", port=port)


async def test_a_name_server_that_never_answers(emulator: Emulator) -> None:
    asked = threading.Event()
    never = threading.Event()

    def hang(host: str) -> list[str]:
        asked.set()
        never.wait()
        return []

    with only_these_variables(**environment("postgresql://u@db.example/db", emulator)):
        found = await asyncio.to_thread(examine_within, SHORT, hang)
    assert asked.is_set()
    faults = [each for each in found if each.level is Level.FAULT]
    assert [each.group for each in faults] == ["database", "FCM"]
    assert "no name server answers in time" in faults[0].text
    assert names_every_group(found)
    never.set()


async def test_a_host_with_ipv6_alone_on_a_machine_without(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "has_ipv6", lambda: False)

    def resolver(host: str) -> list[str]:
        return ["100::1"] if host.startswith("db.") else ["127.0.0.1"]

    with only_these_variables(
        **environment("postgresql://u@db.abcdefghijklmnopqrst.supabase.co/db", emulator)
    ):
        found = await asyncio.to_thread(examine_within, SHORT, resolver)
    (fault,) = [each for each in found if each.level is Level.FAULT]
    assert fault.text == (
        "DATABASE_URL: the host has IPv6 addresses only, and this machine has no way out over IPv6"
    )
    assert fault.remedy
    assert "pooler.supabase.com, port 5432" in fault.remedy


async def test_a_host_with_several_addresses_is_reached_at_the_one_that_answers(
    database: Database, emulator: Emulator
) -> None:
    async with _way_for(database, connections=1000) as dsn:
        named = psycopg.conninfo.make_conninfo(dsn, host="db.example")

        def resolver(host: str) -> list[str]:
            return ["127.0.0.9", "127.0.0.1"]  # nothing listens at the first one

        with only_these_variables(**environment(named, emulator)):
            found = await asyncio.to_thread(examine_within, Limits(), resolver)
    assert [each.text for each in found if each.group == "database"] == [
        "DATABASE_URL leads to PostgreSQL 18"
    ]
    assert "arrives after" in [each.text for each in found if each.group == "LISTEN"][1]


async def test_a_locked_table_does_not_stop_the_other_checks(database: Database, emulator: Emulator) -> None:
    limits = Limits(check=1.0)
    with psycopg.connect(database.dsn) as blocker:
        blocker.execute("lock table push_listener.workers in access exclusive mode")
        with only_these_variables(**environment(database.dsn, emulator)):
            found = await asyncio.to_thread(examine_within, limits)
    assert names_every_group(found)
    (warning,) = [each for each in found if each.group == "workers" and each.level is Level.WARNING]
    assert warning.text.startswith("not checked: ")
    assert [each.level for each in found if each.group == "NOTIFY queue"] == [Level.OK]


# --- LISTEN ----------------------------------------------------------------------------------------------------------


SETTINGS_OF_SESSION = "select current_setting('search_path'), current_setting('statement_timeout')"


async def test_behind_a_pooler_in_transaction_mode(database: Database, emulator: Emulator) -> None:
    async with pooler(database, "transaction") as dsn:
        found = await examine(dsn, emulator)
        fault = found.only(Level.FAULT)
        assert fault.group == "LISTEN"
        assert "pooler in transaction mode" in fault.text
        assert found.exit_code == 2  # as run
        assert fault.remedy
        assert "port 5432" in fault.remedy
        assert groups(found) == GROUPS  # everything else is checked all the same
        assert found.at(Level.OK, group="rights of the role")
        # The remedy helps.
        found = await examine(dsn, emulator, listen_database_url=database.dsn)
        assert found.at(Level.FAULT) == []
        assert "arrives after" in found.at(Level.OK, group="LISTEN")[1].text
        found = await examine(dsn, emulator, wakeup="sweep")
        assert found.at(Level.FAULT) == []
        assert found.only(Level.WARNING, "LISTEN").text.startswith("LISTEN cannot work")
    # No setting of a check is left behind in a session of the pooler.
    async with pooler(database, "transaction", 1) as dsn:
        # With one connection nothing can be told of the mode of the pooler; all else is asked over it.
        with only_these_variables(**environment(dsn, emulator)):
            found_alone = await asyncio.to_thread(examine_within, Limits(mode=0.5))
        assert names_every_group(found_alone)
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
            of_pooler = conn.execute(SETTINGS_OF_SESSION).fetchone()
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        assert of_pooler == conn.execute(SETTINGS_OF_SESSION).fetchone()


async def test_two_addresses_of_two_databases(two: tuple[Database, Database], emulator: Emulator) -> None:
    one, other = two
    found = await examine(one.dsn, emulator, listen_database_url=other.dsn)
    assert found.only(Level.FAULT, "LISTEN").text.startswith("LISTEN_DATABASE_URL leads to another database")


# --- what the migrations have made -----------------------------------------------------------------------------------


async def test_missing_migrations(blank_database: Database, emulator: Emulator) -> None:
    found = await examine(blank_database.dsn, emulator)
    fault = found.only(Level.FAULT)
    assert (fault.group, fault.remedy) == ("migrations", "run push-listener migrate")
    assert "are not applied" in fault.text
    assert found.only(Level.SKIPPED, "workers").text == "not checked: the database is not migrated"
    assert sorted(groups(found)) == sorted(GROUPS)


@pytest.mark.parametrize("how", ["disable", "enable replica"])
async def test_a_trigger_that_does_not_fire(database: Database, emulator: Emulator, how: str) -> None:
    execute(database.dsn, f"alter table push_notifications {how} trigger push_listener_ring_insert")
    found = await examine(database.dsn, emulator)
    fault = found.only(Level.FAULT)
    assert fault.group == "triggers"
    assert fault.remedy == "alter table public.push_notifications enable trigger push_listener_ring_insert"
    assert found.exit_code == 1
    swept = await examine(database.dsn, emulator, wakeup="sweep")
    assert swept.at(Level.FAULT) == []
    await remedied(found, "triggers", database.dsn)
    assert (await examine(database.dsn, emulator)).exit_code == 0


async def test_changed_privileges(database: Database, emulator: Emulator) -> None:
    execute(database.dsn, "grant execute on function cancel_push to anon")
    fault = (await examine(database.dsn, emulator)).only(Level.FAULT)
    assert fault.text == "anon may execute on public.cancel_push(uuid)"
    assert fault.remedy == "run push-listener migrate: it sets them again"
    # The listener's own login sees this too.
    make_worker(database)
    found = await examine(database.dsn_as(WORKER), emulator)
    assert "anon may execute on public.cancel_push(uuid)" in [each.text for each in found.findings]


# --- the role --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(database: Database) -> Iterator[str]:
    """A login with no privilege; yields its address."""
    execute(database.superuser_dsn, "create role test_plain_login login")
    yield database.dsn_as("test_plain_login")
    execute(database.superuser_dsn, "drop owned by test_plain_login; drop role test_plain_login")


async def test_a_role_without_rights(database: Database, emulator: Emulator, plain: str) -> None:
    found = await examine(plain, emulator)
    fault = found.only(Level.FAULT, "rights of the role")
    assert fault.remedy == "grant push_listener to test_plain_login"
    await remedied(found, "rights of the role", database.superuser_dsn)
    assert (await examine(plain, emulator)).at(Level.FAULT) == []


async def test_a_member_that_does_not_inherit(database: Database, emulator: Emulator, plain: str) -> None:
    """It is a member already, so that to grant the role again changes nothing."""
    execute(
        database.superuser_dsn,
        "alter role test_plain_login noinherit; grant push_listener to test_plain_login",
    )
    found = await examine(plain, emulator)
    await remedied(found, "rights of the role", database.superuser_dsn)
    assert (await examine(plain, emulator)).at(Level.FAULT) == []


async def test_a_role_with_grants_of_its_own_sees_no_row(
    database: Database, emulator: Emulator, plain: str
) -> None:
    for schema in ("public", "push_listener"):
        execute(
            database.superuser_dsn,
            f"grant usage on schema {schema} to test_plain_login; "
            f"grant all on all tables in schema {schema} to test_plain_login; "
            f"grant execute on all functions in schema {schema} to test_plain_login",
        )
    fault = (await examine(plain, emulator)).only(Level.FAULT, "rights of the role")
    assert "sees no row" in fault.text
    assert fault.remedy == "grant push_listener to test_plain_login"


@pytest.mark.parametrize(
    "grants",
    [
        (
            "select (token) on {}push_devices",
            "execute on function {}push_listener.is_alive(integer)",
            "delete on {}push_listener.unwritable_rows",
        ),
        ("usage on schema {}push_listener",),  # without which no more can be told of what is in it
    ],
    ids=["of objects", "of the schema"],
)
async def test_a_missing_grant(database: Database, emulator: Emulator, grants: tuple[str, ...]) -> None:
    make_worker(database)
    for grant in grants:
        execute(database.dsn, f"revoke {grant.format('')} from push_listener")
    found = await examine(database.dsn_as(WORKER), emulator)
    faults = found.at(Level.FAULT, group="rights of the role")
    assert {fault.remedy for fault in faults} == {
        f"grant {grant.format('public.' if 'push_devices' in grant else '')} to push_listener"
        for grant in grants
    }
    await remedied(found, "rights of the role", database.dsn)
    found = await examine(database.dsn_as(WORKER), emulator)
    assert found.at(Level.FAULT) == []


async def test_a_schema_public_that_is_closed_to_everybody(database: Database, emulator: Emulator) -> None:
    """Many close it. Then not even the names of the tables can be looked up, and ``run`` cannot work."""
    make_worker(database)
    execute(database.superuser_dsn, "revoke usage on schema public from public, push_listener")
    found = await examine(database.dsn_as(WORKER), emulator)
    assert found.exit_code == 1
    fault = found.only(Level.FAULT, "rights of the role")
    assert fault.remedy == "grant usage on schema public to push_listener"
    await remedied(found, "rights of the role", database.superuser_dsn)
    assert (await examine(database.dsn_as(WORKER), emulator)).at(Level.FAULT) == []


def test_the_rights_that_are_asked_for_are_those_that_migrate_grants(database: Database) -> None:
    statement = load(examination.__file__, "rights")
    needed = statement.partition(" as (\n")[2].partition("\n),\nrelations")[0]
    with psycopg.connect(database.dsn) as owner:
        asked = owner.execute(
            f"select kind, name, privilege, unnest(case columns when '{{}}' then '{{\"\"}}' else columns end) "
            f"from ({needed}) needed(kind, name, privilege, columns)".encode()
        ).fetchall()
        meant = owner.execute(
            "select kind, case kind when 'table' then n.nspname || '.' || c.relname "
            "              when 'function' then regexp_replace(object, '^(?!push_listener)(public\\.)?', 'public.') "
            "              else object end, privilege, part "
            "from push_listener.meant() m left join pg_class c on m.kind = 'table' and c.oid = to_regclass(m.object) "
            "left join pg_namespace n on n.oid = c.relnamespace "
            "where role = 'push_listener' and kind <> 'sequence'"
        ).fetchall()
    assert set(asked) - {("schema", "public", "usage", "")} == set(meant)


async def test_a_role_that_may_not_purge(database: Database, emulator: Emulator) -> None:
    make_worker(database)
    found = await examine(database.dsn_as(WORKER), emulator, retention="30d")
    assert found.only(Level.WARNING, "rights of the role").text.startswith("RETENTION has no effect")


# --- the server ------------------------------------------------------------------------------------------------------


async def test_a_limit_of_connections(database: Database, emulator: Emulator) -> None:
    make_worker(database)
    execute(database.superuser_dsn, f"alter role {WORKER} connection limit 3")
    try:
        found = await examine(database.dsn_as(WORKER), emulator)
    finally:
        execute(database.superuser_dsn, f"alter role {WORKER} connection limit -1")
    warning = found.only(Level.WARNING, "connections")
    assert warning.text.startswith("CONNECTION LIMIT of the role: 2 of 3 are free")


async def test_the_doorbell_is_one_of_the_connections_of_its_process(
    database: Database, emulator: Emulator
) -> None:
    async with serving(settings_for(database.dsn, emulator)):
        with psycopg.connect(database.dsn) as conn:  # one transaction, and so one view of the sessions
            facts = record(conn, connections.Facts, connections._FACTS)
            theirs = conn.execute(
                "select count(*) from pg_stat_activity where datname = current_database() "
                "and application_name in ('push-listener', 'push-listener doorbell')"
            ).fetchone()
    assert theirs == (facts.ours,)


@pytest.fixture
def old_snapshot(database: Database) -> Iterator[psycopg.Connection]:
    """A session with a snapshot, after which 10,000 transactions have been."""
    with closing(psycopg.connect(database.dsn)) as holding:
        holding.execute("set transaction isolation level repeatable read")
        holding.execute("select from push_notifications")
        execute(database.dsn, TEN_THOUSAND_TRANSACTIONS)
        yield holding


@pytest.mark.oldest_postgres
async def test_a_held_snapshot(
    database: Database, emulator: Emulator, old_snapshot: psycopg.Connection
) -> None:
    found = await examine(database.dsn, emulator)
    warning = found.only(Level.WARNING, "snapshots")
    assert f"session {old_snapshot.info.backend_pid} of role postgres, idle in transaction," in warning.text
    assert warning.remedy == f"select pg_terminate_backend({old_snapshot.info.backend_pid})"
    await remedied(found, "snapshots", database.dsn)
    assert (await examine(database.dsn, emulator)).at(Level.WARNING, group="snapshots") == []


async def test_a_transaction_that_has_written_and_does_not_end(
    database: Database, emulator: Emulator
) -> None:
    """Between its statements it holds no snapshot, but its own id keeps rows from being removed all the same."""
    with closing(psycopg.connect(database.dsn)) as holding:
        holding.execute("select pg_current_xact_id()")
        execute(database.dsn, TEN_THOUSAND_TRANSACTIONS)
        execute(database.dsn, "insert into push_notifications (topic, title) values ('news', 't')")
        execute(database.dsn, "delete from push_notifications")
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            told: list[str] = []
            conn.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
            conn.execute("vacuum (verbose) push_notifications")
        assert "1 are dead but not yet removable" in "".join(told)
        found = await examine(database.dsn, emulator)
        warning = found.only(Level.WARNING, "snapshots")
        assert warning.remedy == f"select pg_terminate_backend({holding.info.backend_pid})"


async def test_a_role_that_cannot_see_snapshots(
    database: Database, emulator: Emulator, old_snapshot: psycopg.Connection
) -> None:
    make_worker(database)
    found = await examine(database.dsn_as(WORKER), emulator)
    assert "grant pg_read_all_stats to" in found.only(Level.SKIPPED, "snapshots").text


async def test_a_prepared_transaction_and_a_slot(database: Database, emulator: Emulator) -> None:
    execute(
        database.dsn,
        "begin; select pg_current_xact_id(); prepare transaction 'it''s forgotten'",
    )
    execute(database.dsn, TEN_THOUSAND_TRANSACTIONS)
    found = await examine(database.dsn, emulator)
    warning = found.only(Level.WARNING, "snapshots")
    assert warning.remedy == "rollback prepared 'it''s forgotten'"
    await remedied(found, "snapshots", database.dsn)
    assert (await examine(database.dsn, emulator)).at(Level.WARNING, group="snapshots") == []


async def test_a_table_without_autovacuum(database: Database, emulator: Emulator) -> None:
    execute(database.dsn, "alter table push_notifications set (autovacuum_enabled = off)")
    found = await examine(database.dsn, emulator)
    fault = found.only(Level.FAULT)
    assert fault.remedy == "alter table public.push_notifications reset (autovacuum_enabled)"
    await remedied(found, "dead rows", database.dsn)
    assert (await examine(database.dsn, emulator)).exit_code == 0


async def test_many_dead_rows(database: Database, emulator: Emulator) -> None:
    execute(database.dsn, "alter table push_delivery_logs set (autovacuum_enabled = off)")
    execute(
        database.dsn,
        "insert into push_notifications (topic, title) values ('news', 't'); "
        "insert into push_delivery_logs (push_id, status) select id, 'sent' from push_notifications, "
        "generate_series(1, 30000); delete from push_delivery_logs",
    )
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("select pg_stat_force_next_flush()")
    found = await examine(database.dsn, emulator)
    warning = found.only(Level.WARNING, "dead rows")
    assert warning.remedy == "vacuum (analyze) public.push_delivery_logs"
    await remedied(found, "dead rows", database.dsn)
    assert (await examine(database.dsn, emulator)).at(Level.WARNING, Level.FAULT, group="dead rows") == []


# --- workers ---------------------------------------------------------------------------------------------------------


async def test_a_worker_that_has_died_with_rows(database: Database, emulator: Emulator) -> None:
    execute(
        database.dsn,
        "insert into push_listener.workers (name, guarded) values ('gone', true); "
        "insert into push_notifications (topic, title) values ('news', 't'); "
        "update push_notifications set status = 'processing', delivery_attempts = 1, "
        "next_attempt_at = now() + interval '1 minute', claimed_by = (select max(id) from push_listener.workers); "
        "update push_listener.shared_quota set fraction = 0.1, reduced_at = now()",
    )
    found = await examine(database.dsn, emulator)
    first, second, third = found.at(Level.WARNING, group="workers")
    assert "(gone) has died without signing off, and holds 1 rows" in first.text
    assert second.text.startswith("none is alive")
    assert "% of FCM_QUOTA" in third.text


async def test_two_workers_and_rows_that_cannot_be_written(database: Database, emulator: Emulator) -> None:
    settings = settings_for(database.dsn, emulator)
    async with rows_of(database.dsn) as rows, serving(settings), serving(settings):
        await rows.query(
            "create function no() returns trigger language plpgsql as "
            "$$ begin raise exception 'no' using errcode = 'P0042'; end $$"
        )
        await rows.query(
            "create trigger no before update on push_notifications for each row execute function no()"
        )
        await rows.add(device_token="t", title="t")
        async with asyncio.timeout(30):
            while not await rows.query("select 1 from push_listener.unwritable_rows"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # it tells nobody
        found = await examine(database.dsn, emulator)
    warning = found.only(Level.WARNING, "workers")
    assert warning.text == "1 rows are passed over: the database refuses to claim them (P0042)"
    assert "whether all 2 have the same FCM_QUOTA" in found.only(Level.SKIPPED, "workers").text


# --- FCM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said", "remedy"),
    [
        (
            "oauth_invalid_grant",
            "the key was revoked, or its service account disabled",
            "set GOOGLE_APPLICATION_CREDENTIALS to the key that the emulator",
        ),
        ("permission_denied", "the key may not send for this project", "set FCM_PROJECT_ID"),
        ("unavailable", "FCM did not accept a message: UNAVAILABLE", "try again in some minutes"),
        (
            "third_party_auth",
            "Apple or the web push service refuses FCM's credentials",
            "upload the APNs key",
        ),
    ],
)
async def test_what_fcm_refuses(
    database: Database, emulator: Emulator, fault: str, said: str, remedy: str
) -> None:
    emulator.add_fault(fault)
    found = await examine(database.dsn, emulator)
    finding = found.only(Level.FAULT)
    assert (finding.group, found.exit_code) == ("FCM", 1)
    assert finding.text.startswith(said)
    assert finding.remedy
    assert finding.remedy.startswith(remedy)
    if fault.startswith("oauth"):
        assert found.only(Level.SKIPPED, "FCM").text == "a message: there is no access token"


async def test_another_project(database: Database, emulator: Emulator) -> None:
    fault = (await examine(database.dsn, emulator, fcm_project_id="another-project")).only(Level.FAULT)
    assert fault.text.startswith("the key may not send for this project")


async def test_a_real_device(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, "--device", "phone-1")
    assert found.at(Level.FAULT, Level.SKIPPED) == []
    assert found.at(Level.OK, group="FCM")[-1].text.startswith("FCM accepts a message to that device")
    assert emulator.accepted == []  # validated only
    dead = await examine(database.dsn, emulator, "--device", "dead-S3cr3t")
    assert dead.only(Level.FAULT).text.startswith("--device: FCM no longer knows this registration token")
    bad = await examine(database.dsn, emulator, "--device", "no S3cr3t token")
    assert bad.only(Level.FAULT).text.startswith("--device: device_token is empty, longer")
    assert "S3cr3t" not in str(dead) + str(bad)


async def test_an_installation_id_is_a_device_too(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, "--device", "cLwDkXAPQ0aQqWZbZ3sPQZ")
    assert found.at(Level.FAULT) == []
    assert emulator.received[-1].kind == "fid"


async def test_fcm_that_cannot_be_reached(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, fcm_endpoint=f"http://127.0.0.1:{closed_port()}")
    fault = found.only(Level.FAULT)
    assert fault.text.startswith("FCM did not accept a message: CONNECT")
    assert fault.remedy
    assert fault.remedy.startswith("start the emulator")


# --- others in the database ------------------------------------------------------------------------------------------


async def test_a_function_that_lets_everybody_push(database: Database, emulator: Emulator) -> None:
    execute(
        database.dsn,
        "create function shout(p text) returns void language sql security definer as "
        "$$ insert into public.push_notifications (topic, title) values ('all', p) $$",
    )
    found = await examine(database.dsn, emulator)
    (line,) = [each.text for each in found.at(Level.WARNING) if "shout" in each.text]
    assert "everybody may cause a push" in line


async def test_a_stranger_that_holds_a_lock(database: Database, emulator: Emulator) -> None:
    execute(database.superuser_dsn, "create role test_stranger_on_lock login")
    try:
        with psycopg.connect(database.dsn_as("test_stranger_on_lock"), autocommit=True) as stranger:
            stranger.execute("select pg_advisory_lock(1886745449, 0)")
            fault = (await examine(database.dsn, emulator)).only(Level.FAULT)
            assert str(stranger.info.backend_pid) in fault.text
            assert "test_stranger_on_lock" in fault.text
        assert (await examine(database.dsn, emulator)).at(Level.FAULT) == []
    finally:
        execute(database.superuser_dsn, "drop role test_stranger_on_lock")


async def test_a_copy_with_waiting_rows(database: Database, emulator: Emulator) -> None:
    execute(database.dsn, "insert into push_listener.served values ('1', 5, 'elsewhere', 'postgres')")
    assert (await examine(database.dsn, emulator)).at(Level.FAULT) == []
    execute(database.dsn, "insert into push_notifications (topic, title) values ('news', 't')")
    fault = (await examine(database.dsn, emulator)).only(Level.FAULT)
    assert "is a copy" in fault.text
    assert "--adopt-copy" in fault.text


@pytest.fixture
def two(postgres: Server) -> Iterator[tuple[Database, Database]]:
    """Two databases of one server, and a login for the listener of the first one."""
    with ExitStack() as stack:
        databases = [stack.enter_context(postgres.database(Template.MIGRATED)) for _ in range(2)]
        superuser = stack.enter_context(psycopg.connect(databases[0].superuser_dsn, autocommit=True))
        superuser.execute("create role test_of_one login in role push_listener")
        yield databases[0], databases[1]
        superuser.execute("drop owned by test_of_one")
        superuser.execute("drop role test_of_one")


async def test_logins_that_can_connect_to_other_databases(
    two: tuple[Database, Database], emulator: Emulator
) -> None:
    one, other = two
    execute(other.dsn, "insert into push_notifications (topic, title) values ('news', 't')")
    with psycopg.connect(other.dsn_as("test_of_one"), autocommit=True) as worker:
        assert worker.execute("select title from push_notifications").fetchall() == [("t",)]
    group = "other databases of this server"
    line = (await examine(one.dsn, emulator)).only(Level.WARNING, group).text
    assert "test_of_one" in line
    assert other.name in line

    # The remedy helps.
    with psycopg.connect(other.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(
            sql.SQL("revoke connect on database {} from public").format(sql.Identifier(other.name))
        )
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(other.dsn_as("test_of_one"))
    lines = [each.text for each in (await examine(one.dsn, emulator)).at(Level.WARNING, group=group)]
    assert not any(other.name in line for line in lines)


async def test_waiting_pushes_that_would_reach_nobody(database: Database, emulator: Emulator) -> None:
    execute(
        database.dsn,
        "insert into push_notifications (user_id, device_token, title) values "
        "(gen_random_uuid(), null, 't'), (null, 't', 't')",
    )
    line = (await examine(database.dsn, emulator)).only(Level.WARNING, "recipients").text
    assert line.startswith("1 waiting pushes go to users without a device in push_recipients")


# --- what docs/doctor.md shows --------------------------------------------------------------------------------------


def shown(section: str) -> list[str]:
    """The lines of doctor under a heading of the document."""
    text = text_of("docs/doctor.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = text.partition("```")[2].partition("```")[0].splitlines()[1:]
    return [line for line in lines if line not in ("$ push-listener doctor", "$ echo $?", "0")]


def alike(lines: list[str]) -> list[str]:
    """Without the numbers that differ from run to run. How many migrations and triggers there are does not."""
    return [
        line if " applied" in line or " enabled" in line else re.sub(r"\d[\d,.]*", "N", line)
        for line in lines
    ]


async def prints(section: str, dsn: str, emulator: Emulator) -> None:
    """Each line of the document is printed, in the same order."""
    done = await invoke(None, "doctor", **environment(dsn, emulator))
    printed, wanted = alike(done.output.splitlines()), alike(shown(section))
    assert wanted
    assert [line for line in printed if line in wanted] == wanted, done.output


async def test_the_document_shows_a_healthy_installation(database: Database, emulator: Emulator) -> None:
    async with serving(settings_for(database.dsn, emulator, worker_name="web-1")):
        done = await invoke(None, "doctor", **environment(database.dsn, emulator))
    assert alike(done.output.splitlines()) == alike(shown("A healthy installation"))


async def test_the_document_shows_what_is_wrong_with_an_address(
    database: Database, blank_database: Database, emulator: Emulator
) -> None:
    async with pooler(database, "transaction") as dsn:
        await prints("A pooler in transaction mode", dsn, emulator)
    await prints("Not migrated", blank_database.dsn, emulator)
    await prints("A database that is away", f"postgresql://u@127.0.0.1:{closed_port()}/d", emulator)


async def test_the_document_shows_a_revoked_key(
    database: Database, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcm, "remedies_for", lambda _: fcm.OF_FCM)
    emulator.add_fault("oauth_invalid_grant")
    await prints("A key that was revoked", database.dsn, emulator)


async def test_the_document_shows_a_disabled_trigger_and_a_held_snapshot(
    database: Database, emulator: Emulator, old_snapshot: psycopg.Connection
) -> None:
    await prints("A held snapshot", database.dsn, emulator)
    old_snapshot.rollback()
    execute(database.dsn, "alter table push_notifications disable trigger push_listener_ring_insert")
    await prints("A disabled trigger", database.dsn, emulator)
