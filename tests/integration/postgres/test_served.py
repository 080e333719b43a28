"""A copy of a database that was served: nothing that waits in it reaches a phone before somebody decides."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from listener.config import ConfigError
from listener.emulator import Emulator
from listener.schema import served
from listener.schema.served import Admission, IsCopy
from tests.support.cli import invoke
from tests.support.pgbouncer import pooler
from tests.support.postgres import Database, Template, standby_of
from tests.support.service import environment, program, run, serving, settings_for

WAITING = """
insert into push_notifications (device_token, title, status, next_attempt_at, claimed_by, priority) values
  ('a', 't', 'pending', now(), null, 'normal'), ('b', 't', 'processing', now() + interval '1 minute', 7, 'high'),
  ('c', 't', 'failed', now() + interval '1 hour', 7, 'normal'), ('d', 't', 'pending', 'infinity', null, 'normal'),
  ('e', 't', 'sent', null, null, 'normal')
"""
"""Four rows that wait, and one that has been sent."""


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def states(dsn: str) -> dict[object, tuple[object, ...]]:
    rows = execute(
        dsn, "select device_token, status, error_code, next_attempt_at::text from push_notifications"
    )
    return {row[0]: row[1:] for row in rows}


def known(dsn: str) -> list[tuple[object, ...]]:
    return execute(dsn, "select system_identifier, database_oid, address from push_listener.served")


async def admit(
    dsn: str, adoption: served.Adoption | None = None, installation: str | None = None
) -> Admission:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
        return await served.admit(conn, dsn, installation, adoption)


@pytest.fixture
async def original(database: Database) -> Database:
    """A database that has been served, and in which rows wait since."""
    assert (await admit(database.dsn)).first
    execute(database.dsn, WAITING)
    return database


@contextmanager
def copied(original: Database) -> Iterator[Database]:
    """A copy of it on the same server, under another name."""
    plain = f"copy_{uuid4().hex[:12]}"
    name = sql.Identifier(plain)
    with psycopg.connect(original.server.uri, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {} owner {}").format(
                name, sql.Identifier(original.name), sql.Identifier(original.user)
            )
        )
        try:
            yield Database(plain, original.server, original.user)
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture
def copy(original: Database) -> Iterator[Database]:
    with copied(original) as database:
        yield database


# --- what is refused -----------------------------------------------------------------------------------------


async def test_a_copy_in_which_rows_wait_is_refused_and_nothing_is_sent(
    copy: Database, original: Database, emulator: Emulator
) -> None:
    before = states(copy.dsn)
    code, out, said = await run("run", env=environment(copy.dsn, emulator), forked=True)
    assert (code, out) == (2, "")
    error = said[said.index("Error: ") :]
    assert error.startswith(
        "Error: the configuration cannot be used:\n  this database is a copy, or has another "
    )
    assert "what differs: the database)" in error
    assert "4 pushes" in error
    for word in ("run --adopt-copy expire", "run --adopt-copy send", "migrate --adopt-copy"):
        assert word in error
    assert copy.user not in error
    assert emulator.stats()["received"] == 0
    assert states(copy.dsn) == before == states(original.dsn)
    assert execute(copy.dsn, "select 1 from push_listener.workers") == []
    assert known(copy.dsn) == known(original.dsn)
    await admit(original.dsn)


async def test_a_role_that_can_do_nothing_but_its_work_is_refused_as_well(
    original: Database, copy: Database
) -> None:
    role = f"worker_{uuid4().hex[:8]}"
    execute(copy.superuser_dsn, f"create role {role} login in role push_listener")
    try:
        assert (await admit(original.dsn_as(role))).known
        with pytest.raises(IsCopy):
            await admit(copy.dsn_as(role))
        assert (await admit(copy.dsn_as(role), "expire")).expired == 4
        assert (await admit(copy.dsn_as(role))).known
    finally:
        execute(copy.superuser_dsn, f"drop role {role}")


async def test_a_physical_copy_of_the_server_is_refused(original: Database) -> None:
    with standby_of(original.server) as other:  # to refuse it takes no write
        with pytest.raises(IsCopy, match=r"what differs: the address, the server's port or INSTALLATION\)"):
            await admit(other.dsn(original.name, original.user))
        assert len(states(other.dsn(original.name))) == 5
    assert (await admit(original.dsn)).known


def restore(original: Database, copy: Database) -> None:
    pg_dump, psql = (original.server._programs / name for name in ("pg_dump", "psql"))
    if not (pg_dump.exists() and psql.exists()):
        pytest.skip("this server comes without pg_dump")
    dump = subprocess.run([pg_dump, "--no-owner", original.dsn], capture_output=True, check=True)
    subprocess.run(
        [psql, "--no-psqlrc", "--quiet", copy.dsn], input=dump.stdout, capture_output=True, check=True
    )


async def test_a_dump_that_is_restored_is_refused(original: Database) -> None:
    with original.server.database(Template.SUPABASE) as restored:
        restore(original, restored)
        assert len(states(restored.dsn)) == 5
        with pytest.raises(IsCopy, match="the database"):
            await admit(restored.dsn)


async def test_a_database_that_is_dropped_and_restored_under_its_name_is_refused(original: Database) -> None:
    with copied(original) as copy:
        names = sql.Identifier(copy.name), sql.Identifier(original.name)
        with psycopg.connect(original.server.uri, autocommit=True) as connection:
            away = sql.Identifier(f"away_{uuid4().hex[:8]}")
            rename = sql.SQL("alter database {} rename to {}")
            connection.execute(rename.format(names[1], away))
            connection.execute(rename.format(*names))
            try:
                with pytest.raises(IsCopy):
                    await admit(original.dsn)
            finally:
                connection.execute(rename.format(names[1], names[0]))
                connection.execute(rename.format(away, names[1]))
        assert (await admit(original.dsn)).known


# --- what is let in ------------------------------------------------------------------------------------------


async def test_left_to_expire_it_starts_and_sends_what_is_new(copy: Database, emulator: Emulator) -> None:
    env = environment(copy.dsn, emulator)
    async with program("run", "--adopt-copy", "expire", env=env, forked=True) as running:
        assert (await running.said("serving a copy"))["expired"] == 4
        await running.said("ready")
        running.terminate()
        assert await running.ended() == 0
    found = states(copy.dsn)
    assert {token for token, row in found.items() if row == ("expired", "COPIED", None)} == set("abcd")
    assert found["e"] == ("sent", None, None)
    assert emulator.stats()["received"] == 0
    # The option may stay: it touches nothing of what is new, and says that it should go.
    execute(copy.dsn, "insert into push_notifications (device_token, title) values ('new', 't')")
    async with program("run", "--adopt-copy", "expire", env=env, forked=True) as running:
        await running.said(
            "--adopt-copy has nothing to do: remove it, or it decides about the next copy unasked"
        )
        await running.said("ready")
        running.terminate()
        assert await running.ended() == 0
    assert [record.target for record in emulator.accepted] == ["new"]


async def test_sent_on_request(copy: Database, emulator: Emulator) -> None:
    async with program(
        "run", "--adopt-copy", "send", env=environment(copy.dsn, emulator), forked=True
    ) as running:
        await running.said("ready")
        running.terminate()
        assert await running.ended() == 0
    assert states(copy.dsn)["a"][0] == "sent"
    assert (await admit(copy.dsn)).known


async def test_where_nothing_waits_it_starts_and_is_known_from_then_on(copy: Database) -> None:
    execute(copy.dsn, "update push_notifications set status = 'cancelled', next_attempt_at = null")
    found = await admit(copy.dsn)
    assert (found.known, found.first, found.expired) == (False, False, 0)
    execute(copy.dsn, WAITING)
    assert (await admit(copy.dsn)).known


async def test_other_ways_to_the_same_database_need_no_decision(original: Database) -> None:
    """Through a pooler in transaction mode the host and the port are others; the server's own port is the same."""
    async with pooler(original, "transaction") as one, pooler(original, "transaction") as two:
        with pytest.raises(IsCopy, match="what differs: the address"):
            await admit(one)  # from a socket to a host: that may be another machine
        assert not (await admit(one, "send")).known
        assert (await admit(two)).known
        assert (await admit(make_conninfo(one, host="localhost"))).known
    assert (await admit(original.dsn)).known


async def test_the_name_of_an_installation_stands_for_the_address(original: Database) -> None:
    async with pooler(original, "session") as elsewhere:
        assert not (await admit(original.dsn, "send", "production")).known
        assert (await admit(elsewhere, None, "production")).known
        with pytest.raises(IsCopy):
            await admit(elsewhere, None, "staging")
        with pytest.raises(IsCopy):
            await admit(elsewhere)


async def test_a_renamed_database_is_the_same(original: Database) -> None:
    name, other = sql.Identifier(original.name), f"renamed_{uuid4().hex[:8]}"
    rename = sql.SQL("alter database {} rename to {}")
    with psycopg.connect(original.server.uri, autocommit=True) as connection:
        connection.execute(rename.format(name, sql.Identifier(other)))
        try:
            assert (await admit(original.server.dsn(other, original.user))).known
        finally:
            connection.execute(rename.format(sql.Identifier(other), name))


async def test_a_server_that_keeps_its_identifier_to_itself(original: Database) -> None:
    execute(original.superuser_dsn, "revoke execute on function pg_control_system() from public")
    with pytest.raises(IsCopy, match="the database server"):
        await admit(original.dsn)
    await admit(original.dsn, "send")
    assert (await admit(original.dsn)).known
    assert {row[0] == "" for row in known(original.dsn)} == {True, False}


# --- at the same time ----------------------------------------------------------------------------------------


async def test_first_starts_at_the_same_time(database: Database) -> None:
    execute(database.dsn, WAITING)
    found = await asyncio.gather(*(admit(database.dsn) for _ in range(8)))
    assert all(each.first or each.known for each in found)
    assert len(known(database.dsn)) == 1


async def test_starts_at_the_same_time_expire_each_row_once(
    copy: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_BATCH", 50)
    execute(
        copy.dsn,
        "insert into push_notifications (device_token, title) select 't', 't' from generate_series(1, 996)",
    )
    found = await asyncio.gather(*(admit(copy.dsn, "expire") for _ in range(4)))
    assert sum(each.expired for each in found) == 1000
    assert execute(copy.dsn, "select 1 from push_notifications where next_attempt_at is not null") == []


async def test_one_that_dies_while_it_expires_leaves_nothing_behind_for_the_other(copy: Database) -> None:
    """Rows that it had locked are waited for: the other would send them once the database is known."""
    with psycopg.connect(copy.dsn) as dying:
        dying.execute(
            "update push_notifications set status = 'expired', next_attempt_at = null where device_token = 'a'"
        )
        other = asyncio.create_task(admit(copy.dsn, "expire"))
        await until_blocked_by(copy, dying)
        dying.rollback()
        assert (await other).expired == 4
    assert states(copy.dsn)["a"] == ("expired", "COPIED", None)


async def until_blocked_by(database: Database, connection: psycopg.Connection[tuple[object, ...]]) -> None:
    async with asyncio.timeout(30):
        while not execute(  # noqa: ASYNC110
            database.superuser_dsn,
            "select 1 from pg_stat_activity where datname = current_database() "
            f"and {connection.info.backend_pid} = any (pg_blocking_pids(pid))",
        ):
            await asyncio.sleep(0.01)  # nothing tells that a session waits


# --- once, before the platform starts it ----------------------------------------------------------------------


async def test_decided_by_migrate(copy: Database, original: Database, emulator: Emulator) -> None:
    done = await invoke(copy.dsn, "migrate", "--adopt-copy", "expire")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "4 waiting pushes have expired")
    async with serving(settings_for(copy.dsn, emulator)):
        pass
    assert emulator.stats()["received"] == 0
    # After a restore in place the identity is the one that it was, and rows wait that have been sent since.
    done = await invoke(original.dsn, "migrate", "--adopt-copy", "expire")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "4 waiting pushes have expired")


async def test_migrate_does_not_decide_beside_a_worker(original: Database, emulator: Emulator) -> None:
    async with serving(settings_for(original.dsn, emulator)):
        done = await invoke(original.dsn, "migrate", "--adopt-copy", "expire")
        said = "push-listener is at work on this database: worker 1"
        assert (done.exit_code, said in done.stderr) == (1, True)
    assert states(original.dsn)["c"][0] == "failed"


async def test_in_process_the_refusal_is_a_fault_of_the_configuration(
    copy: Database, emulator: Emulator
) -> None:
    with pytest.raises(ConfigError, match="this database is a copy"):
        async with serving(settings_for(copy.dsn, emulator)):
            pass


async def test_a_trigger_that_keeps_rows_waiting_is_named_and_ends_it(database: Database) -> None:
    """The rows would be sent, or the command would never end."""
    execute(database.dsn, WAITING)
    before = states(database.dsn)
    for body in ("return old", "return null"):
        execute(
            database.dsn,
            f"create or replace function keep() returns trigger language plpgsql as $$ begin {body}; end $$; "
            "create or replace trigger keep before update on push_notifications "
            "for each row execute function keep()",
        )
        done = await invoke(database.dsn, "migrate", "--adopt-copy", "expire")
        assert done.exit_code == 1, body
        said = "a trigger on push_notifications keeps waiting pushes from becoming expired"
        assert said in done.stderr, body
        assert states(database.dsn) == before, body
