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
from tests.support.doctor import PATIENT, Diagnosis, examine, examine_within, only_these_variables, patience
from tests.support.documents import text_of
from tests.support.pgbouncer import pooler
from tests.support.postgres import Database, Server, Template
from tests.support.servers import closed_port, tcp_server
from tests.support.service import (
    PATIENCE,
    environment,
    naming,
    program,
    rows_of,
    serving,
    settings_for,
    until_found,
)

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


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


def groups(found: Diagnosis) -> list[str]:
    return list(dict.fromkeys(each.group for each in found.findings))


async def remedied(found: Diagnosis, group: str, dsn: str) -> None:
    """Does what is proposed for each fault or warning of a group, as it stands."""
    for finding in found.at(Level.FAULT, Level.WARNING, group=group):
        assert finding.remedy
        await asyncio.to_thread(execute, dsn, finding.remedy)


# --- a healthy one -------------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
async def test_the_document_shows_a_healthy_installation(database: Database, emulator: Emulator) -> None:
    async with serving(settings_for(database.dsn, emulator, worker_name="web-1")):
        done = await invoke(None, "doctor", **environment(database.dsn, emulator))
    assert alike(done.output.splitlines()) == alike(shown("A healthy installation"))
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if not line.startswith(" ")] == GROUPS
    assert emulator.accepted == []


async def test_the_text_and_json(database: Database, emulator: Emulator) -> None:
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
    async with program("doctor", "--json", env=env, forked=True) as running:
        assert await running.ended() == 1
    rows = orjson.loads(running.out)
    assert {frozenset(row) for row in rows} == {frozenset({"group", "level", "text", "remedy", "is_setting"})}
    assert {row["level"] for row in rows} == {"ok", "warning", "fault", "skipped"}
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


async def test_without_an_address_fcm_is_checked_all_the_same(emulator: Emulator) -> None:
    found = await examine(None, emulator)
    assert found.exit_code == 2
    assert found.only(Level.FAULT, "settings").text == "DATABASE_URL is not set"
    assert groups(found) == GROUPS
    assert found.at(Level.OK, group="FCM")[-1].text.startswith("FCM accepts a message to a topic")


async def test_without_a_key(emulator: Emulator) -> None:
    missing = {"fcm_service_account_json": None, "google_application_credentials": "/nowhere/key.json"}
    found = await examine(None, emulator, **missing)
    assert {each.text for each in found.at(Level.FAULT)} == {
        "DATABASE_URL is not set",
        "GOOGLE_APPLICATION_CREDENTIALS names a file that does not exist",
    }
    for endpoint, remedy in (
        ("https://fcm.googleapis.com", "make a new key (Firebase console"),
        (emulator.endpoint, "set GOOGLE_APPLICATION_CREDENTIALS to the key that the emulator writes"),
    ):
        found = await examine(None, emulator, fcm_service_account_json=None, fcm_endpoint=endpoint)
        fault = found.only(Level.FAULT, "FCM")
        assert fault.remedy
        assert fault.remedy.startswith(remedy)


async def test_an_address_to_listen_on_that_this_machine_has_not(emulator: Emulator) -> None:
    """``run`` does not start with it."""
    nowhere = f"postgresql://u@127.0.0.1:{closed_port()}/nowhere"
    for variables in ({"host": "203.0.113.9"}, {"metrics_host": "203.0.113.9", "metrics_port": "0"}):
        with naming(str(variables)):
            async with program(
                "run", env=environment(nowhere, emulator, **variables), forked=True
            ) as running:
                assert await running.ended() == 2
            found = await examine(nowhere, emulator, **variables)
            assert found.exit_code == 2
            assert "cannot listen there" in found.only(Level.FAULT, "process").text


async def test_who_may_read_metrics(emulator: Emulator) -> None:
    found = await examine(None, emulator, host="0.0.0.0", loglevel="debug")
    assert found.only(Level.WARNING, "process").text.startswith("/metrics is closed")
    misspelt = found.only(Level.WARNING, "settings")
    assert (misspelt.text.split()[0], misspelt.remedy) == (
        "LOGLEVEL",
        "rename it to LOG_LEVEL, if that is meant",
    )
    found = await examine(None, emulator, host="0.0.0.0", metrics_token="0123456789")
    assert found.at(Level.WARNING, group="process") == []
    found = await examine(None, emulator, host="0.0.0.0", metrics_port="0")
    assert [each.text.partition(":")[0] for each in found.at(Level.OK, group="process")][:2] == [
        "/metrics is closed on PORT",
        "/metrics is open on METRICS_PORT",
    ]


async def test_wrong_usage() -> None:
    for arguments in (["--device", " "], ["--device"], ["--fix"]):
        done = await invoke(None, "doctor", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments


# --- a database that does not answer ---------------------------------------------------------------------------------


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
            found = await asyncio.to_thread(examine_within, replace(PATIENT, connect=0.3))
        assert held
    (fault,) = [each for each in found if each.level is Level.FAULT]
    assert fault.text.startswith("DATABASE_URL: there is no answer in time")
    assert names_every_group(found)


@pytest.mark.parametrize(
    "limits",
    [replace(PATIENT, mode=0.5, still_there=0.3), replace(PATIENT, still_there=0.3)],
    ids=["ours", "libpq's"],
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
        found = await asyncio.to_thread(examine_within, replace(PATIENT, resolve=0.3), hang)
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
        found = await asyncio.to_thread(examine_within, replace(PATIENT, connect=0.3), resolver)
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
            found = await asyncio.to_thread(examine_within, PATIENT, resolver)
    assert [each.text for each in found if each.group == "database"] == [
        "DATABASE_URL leads to PostgreSQL 18"
    ]
    assert "arrives after" in [each.text for each in found if each.group == "LISTEN"][1]


async def test_a_locked_table_does_not_stop_the_other_checks(database: Database, emulator: Emulator) -> None:
    limits = replace(PATIENT, check=1.0)
    unconcerned = ("migrations", "clock", "snapshots", "NOTIFY queue")
    with psycopg.connect(database.dsn) as blocker:
        blocker.execute("lock table push_listener.workers in access exclusive mode")
        async with asyncio.timeout(PATIENCE):
            levels: set[Level] = set()
            # If the machine stands still, another check may take too long, but not each time.
            while levels != {Level.OK}:
                with only_these_variables(**environment(database.dsn, emulator)):
                    found = await asyncio.to_thread(examine_within, limits)
                levels = {each.level for each in found if each.group in unconcerned}
    assert names_every_group(found)
    (warning,) = [each for each in found if each.group == "workers" and each.level is Level.WARNING]
    assert warning.text.startswith("not checked: ")


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
        # With one connection nothing can be told of the mode of the pooler; all else is asked over it. If "migrations"
        # takes too long, on a busy machine, all groups that need them are skipped at once, before the others.
        with only_these_variables(**environment(dsn, emulator)):
            found_alone = await asyncio.to_thread(examine_within, Limits(mode=0.5))
        assert sorted({each.group for each in found_alone}) == sorted(GROUPS)
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
            of_pooler = conn.execute(SETTINGS_OF_SESSION).fetchone()
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        assert of_pooler == conn.execute(SETTINGS_OF_SESSION).fetchone()


# --- what the migrations have made -----------------------------------------------------------------------------------


async def test_missing_migrations(blank_database: Database, emulator: Emulator) -> None:
    found = await examine(blank_database.dsn, emulator)
    fault = found.only(Level.FAULT)
    assert (fault.group, fault.remedy) == ("migrations", "run push-listener migrate")
    assert "are not applied" in fault.text
    assert found.only(Level.SKIPPED, "workers").text == "not checked: the database is not migrated"
    assert sorted(groups(found)) == sorted(GROUPS)


async def test_all_that_can_be_wrong_at_once_is_told_and_what_is_proposed_helps(
    database: Database, emulator: Emulator
) -> None:
    dsn = database.dsn
    execute(database.superuser_dsn, "create role test_stranger_on_lock login")
    # It comes first: autovacuum, which may come at any moment, cannot remove the rows that are deleted after it began.
    execute(dsn, "begin; select pg_current_xact_id(); prepare transaction 'it''s forgotten'")
    execute(
        dsn,
        """
        alter table push_notifications disable trigger push_listener_ring_insert;
        alter table push_notifications enable replica trigger push_listener_ring_update;
        alter table push_notifications set (autovacuum_enabled = off);
        grant execute on function cancel_push to anon;
        create function shout(p text) returns void language sql security definer as
          $$ insert into public.push_notifications (topic, title) values ('all', p) $$;
        insert into push_listener.served values ('1', 5, 'elsewhere', 'postgres');
        insert into push_listener.workers (name, guarded) values ('gone', true);
        update push_listener.shared_quota set fraction = 0.1, reduced_at = now();
        insert into push_notifications (topic, title) values ('news', 't');
        update push_notifications set status = 'processing', delivery_attempts = 1,
          next_attempt_at = now() + interval '1 minute',
          claimed_by = (select max(id) from push_listener.workers);
        insert into push_notifications (user_id, device_token, title)
          values (gen_random_uuid(), null, 't'), (null, 't', 't');
        insert into push_delivery_logs (push_id, status)
          select id, 'sent' from push_notifications, generate_series(1, 3500);
        delete from push_delivery_logs;
        """,
    )
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select pg_stat_force_next_flush()")
    execute(dsn, TEN_THOUSAND_TRANSACTIONS)
    with psycopg.connect(database.dsn_as("test_stranger_on_lock"), autocommit=True) as stranger:
        stranger.execute("select pg_advisory_lock(1886745449, 0)")
        found = await examine(dsn, emulator)
        swept = await examine(dsn, emulator, wakeup="sweep")
        lock = found.only(Level.FAULT, "advisory locks")
        assert str(stranger.info.backend_pid) in lock.text
        assert "test_stranger_on_lock" in lock.text
    execute(database.superuser_dsn, "drop role test_stranger_on_lock")
    assert found.exit_code == 2  # as run, for the copy
    assert groups(found) == GROUPS

    assert {each.remedy for each in found.at(Level.FAULT, group="triggers")} == {
        "alter table public.push_notifications enable trigger push_listener_ring_insert",
        "alter table public.push_notifications enable trigger push_listener_ring_update",
    }
    assert swept.at(Level.FAULT, group="triggers") == []
    privilege = found.only(Level.FAULT, "privileges")
    assert privilege.text == "anon may execute on public.cancel_push(uuid)"
    assert privilege.remedy == "run push-listener migrate: it sets them again"
    assert found.only(Level.WARNING, "recipients").text.startswith(
        "1 waiting pushes go to users without a device in push_recipients"
    )
    copy = found.only(Level.FAULT, "whether this is a copy").text
    assert "is a copy" in copy
    assert "--adopt-copy" in copy
    (shout,) = [each.text for each in found.at(Level.WARNING) if "shout" in each.text]
    assert "everybody may cause a push" in shout
    assert found.only(Level.WARNING, "snapshots").remedy == "rollback prepared 'it''s forgotten'"
    without = found.only(Level.FAULT, "dead rows")
    assert without.remedy == "alter table public.push_notifications reset (autovacuum_enabled)"
    behind = found.only(Level.WARNING, "dead rows")
    assert behind.remedy == "vacuum (analyze) public.push_delivery_logs"
    died, alive, quota = found.at(Level.WARNING, group="workers")
    assert "(gone) has died without signing off, and holds 1 rows" in died.text
    assert alive.text.startswith("none is alive")
    assert "% of FCM_QUOTA" in quota.text

    for group in ("triggers", "snapshots", "dead rows"):
        await remedied(found, group, dsn)
    execute(dsn, "revoke execute on function cancel_push from anon; delete from push_notifications")
    found = await examine(dsn, emulator)
    assert found.at(Level.FAULT) == []  # a copy in which nothing waits is none
    assert found.exit_code == 0
    assert found.at(Level.WARNING, group="snapshots") + found.at(Level.WARNING, group="dead rows") == []


# --- the role --------------------------------------------------------------------------------------------------------


async def test_the_rights_of_a_login_are_put_right_one_after_the_other(
    database: Database, emulator: Emulator
) -> None:
    """Each remedy is done as it stands, and the next thing is made wrong, which is all that is told then."""
    superuser, group = database.superuser_dsn, "rights of the role"
    execute(superuser, "create role test_plain_login login")
    plain = database.dsn_as("test_plain_login")
    try:
        fault = (await examine(plain, emulator)).only(Level.FAULT, group)
        assert fault.remedy == "grant push_listener to test_plain_login"

        for schema in ("public", "push_listener"):
            execute(
                superuser,
                f"grant usage on schema {schema} to test_plain_login; "
                f"grant all on all tables in schema {schema} to test_plain_login; "
                f"grant execute on all functions in schema {schema} to test_plain_login",
            )
        found = await examine(plain, emulator)
        fault = found.only(Level.FAULT, group)
        assert "sees no row" in fault.text
        assert fault.remedy == "grant push_listener to test_plain_login"
        execute(superuser, "drop owned by test_plain_login")
        await remedied(found, group, superuser)
        assert (await examine(plain, emulator)).at(Level.FAULT) == []

        # It is a member already, so that to grant the role again changes nothing.
        execute(
            superuser,
            "drop role test_plain_login; create role test_plain_login login noinherit in role push_listener",
        )
        await remedied(await examine(plain, emulator), group, superuser)
        assert (await examine(plain, emulator)).at(Level.FAULT) == []
    finally:
        execute(superuser, "drop owned by test_plain_login; drop role test_plain_login")


async def test_what_the_login_of_the_listener_lacks(
    database: Database, emulator: Emulator, old_snapshot: psycopg.Connection
) -> None:
    """Each remedy is done as it stands, and the next thing is made wrong, which is all that is told then."""
    make_worker(database)
    execute(database.dsn, "grant execute on function cancel_push to anon")
    execute(database.superuser_dsn, f"alter role {WORKER} connection limit 5")
    try:
        found = await examine(database.dsn_as(WORKER), emulator, retention="30d")
    finally:
        execute(database.superuser_dsn, f"alter role {WORKER} connection limit -1")
    assert "grant pg_read_all_stats to" in found.only(Level.SKIPPED, "snapshots").text
    assert found.only(Level.WARNING, "rights of the role").text.startswith("RETENTION has no effect")
    # A session that doctor has just closed may still be there.
    told = found.only(Level.WARNING, "connections").text
    assert re.match("CONNECTION LIMIT of the role: [2-4] of 5 are free, which is little", told)
    assert found.only(Level.FAULT).text == "anon may execute on public.cancel_push(uuid)"
    execute(database.dsn, "revoke execute on function cancel_push from anon")

    grants = (
        "select (token) on public.push_devices",
        "execute on function push_listener.is_alive(integer)",
        "delete on push_listener.unwritable_rows",
    )
    without = "usage on schema push_listener"  # without which no more can be told of what is in it
    closed = "usage on schema public"  # many close it: the names of the tables cannot be looked up any more
    for revoked, owner in (
        (grants, database.dsn),
        ((without,), database.dsn),
        ((closed,), database.superuser_dsn),
    ):
        with naming(str(revoked)):
            for grant in revoked:
                who = "public, push_listener" if grant is closed else "push_listener"
                execute(owner, f"revoke {grant} from {who}")
            found = await examine(database.dsn_as(WORKER), emulator)
            assert found.exit_code == 1
            assert {fault.remedy for fault in found.at(Level.FAULT, group="rights of the role")} == {
                f"grant {grant} to push_listener" for grant in revoked
            }
            await remedied(found, "rights of the role", owner)
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


# --- the server ------------------------------------------------------------------------------------------------------


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
async def test_a_held_snapshot_as_the_document_shows_it(
    database: Database, emulator: Emulator, old_snapshot: psycopg.Connection
) -> None:
    execute(database.dsn, "alter table push_notifications disable trigger push_listener_ring_insert")
    await prints("A held snapshot", database.dsn, emulator)
    await prints("A disabled trigger", database.dsn, emulator)
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


# --- workers ---------------------------------------------------------------------------------------------------------


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
        await until_found(rows.query, "select 1 from push_listener.unwritable_rows")
        found = await examine(database.dsn, emulator)
    warning = found.only(Level.WARNING, "workers")
    assert warning.text == "1 rows are passed over: the database refuses to claim them (P0042)"
    assert "whether all 2 have the same FCM_QUOTA" in found.only(Level.SKIPPED, "workers").text


# --- FCM -------------------------------------------------------------------------------------------------------------


REFUSED = {
    "oauth_invalid_grant": (
        "the key was revoked, or its service account disabled",
        "set GOOGLE_APPLICATION_CREDENTIALS to the key that the emulator",
    ),
    "permission_denied": ("the key may not send for this project", "set FCM_PROJECT_ID"),
    "unavailable": ("FCM did not accept a message: UNAVAILABLE", "try again in some minutes"),
    "third_party_auth": ("Apple or the web push service refuses FCM's credentials", "upload the APNs key"),
}


async def test_what_fcm_refuses(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    async def told(said: str, remedy: str, **variables: str) -> Diagnosis:
        found = await examine(None, emulator, **variables)
        fault = found.only(Level.FAULT, "FCM")
        assert fault.text.startswith(said)
        assert fault.remedy
        assert fault.remedy.startswith(remedy)
        return found

    for fault, (said, remedy) in REFUSED.items():
        with naming(fault):
            emulator.clear_faults()
            emulator.add_fault(fault)
            found = await told(said, remedy)
            if fault.startswith("oauth"):
                assert found.only(Level.SKIPPED, "FCM").text == "a message: there is no access token"
                with monkeypatch.context() as patch:
                    patch.setattr(fcm, "remedies_for", lambda _: fcm.OF_FCM)
                    await prints("A key that was revoked", "", emulator)
    emulator.clear_faults()
    await told("the key may not send for this project", "", fcm_project_id="another-project")
    nowhere = f"http://127.0.0.1:{closed_port()}"
    await told("FCM did not accept a message: CONNECT", "start the emulator", fcm_endpoint=nowhere)
    await emulator.stop()
    await told("", "start the emulator (push-listener emulator) at FCM_ENDPOINT")


async def test_a_real_device(database: Database, emulator: Emulator) -> None:
    found = await examine(database.dsn, emulator, "--device", "phone-1")
    assert found.at(Level.FAULT, Level.SKIPPED) == []
    assert found.at(Level.OK, group="FCM")[-1].text.startswith("FCM accepts a message to that device")
    assert emulator.accepted == []  # validated only
    dead = await examine(database.dsn, emulator, "--device", "dead-S3cr3t")
    assert dead.only(Level.FAULT).text.startswith("--device: FCM no longer knows this registration token")
    assert dead.exit_code == 1
    bad = await examine(None, emulator, "--device", "no S3cr3t token")
    assert bad.only(Level.FAULT, "FCM").text.startswith("--device: device_token is empty, longer")
    assert "S3cr3t" not in str(dead) + str(bad)
    found = await examine(None, emulator, "--device", "cLwDkXAPQ0aQqWZbZ3sPQZ")  # an installation id
    assert found.at(Level.FAULT, group="FCM") == []
    assert emulator.received[-1].kind == "fid"


# --- others in the database ------------------------------------------------------------------------------------------


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
    found = await examine(one.dsn, emulator, listen_database_url=other.dsn)
    assert found.only(Level.FAULT, "LISTEN").text.startswith("LISTEN_DATABASE_URL leads to another database")
    line = found.only(Level.WARNING, group).text
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


async def test_the_document_shows_what_is_wrong_with_an_address(
    database: Database, blank_database: Database, emulator: Emulator
) -> None:
    async with pooler(database, "transaction") as dsn:
        await prints("A pooler in transaction mode", dsn, emulator)
    await prints("Not migrated", blank_database.dsn, emulator)
    await prints("A database that is away", f"postgresql://u@127.0.0.1:{closed_port()}/d", emulator)
