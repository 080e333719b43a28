"""docs/privileges.md, cell by cell: what each role may do is tried, on every kind of database there is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from listener.emulator import Emulator
from listener.postgres import claiming, errors, foreign_triggers, locks, queue, settlements
from listener.schema import migrate, served
from listener.wakeup import busy_polling, doorbell
from tests.support.access import (
    APPLICATION,
    CALLS,
    OPERATOR,
    OTHER,
    OTHERS_PUSH,
    OWNER,
    PUSH,
    STRANGER,
    WORKER,
    Regime,
    grants,
    make_operator,
    make_worker,
    prepare,
    project,
)
from tests.support.adopted import SHAPES
from tests.support.postgres import Database, Server, Template, programs
from tests.support.rpc import use_every_function
from tests.support.service import rows_of, serving, settings_for

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "privileges.md"

Connection = psycopg.Connection[Any]


# --- the document ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One row of the table: a table, a part of one, a sequence, a function or the schema."""

    name: str
    part: str
    """``rows``, ``columns of the application``, or empty."""
    columns: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def is_table(self) -> bool:
        return bool(self.part or self.columns)

    def allowed(self, actor: int, *, adopted: bool) -> dict[str, bool]:
        """The operations in a cell for a table that was made or adopted, and whether they hold there only."""
        found = {}
        for part in self.cells[actor].split(";"):
            shape, colon, listed = part.partition(":")
            if colon and shape.strip() != ("adopted" if adopted else "fresh"):
                continue
            for word in re.findall(r"\w+", listed if colon else part):
                assert word in {"select", "insert", "update", "delete", "usage", "execute"}, part
                found[word] = bool(colon)
        return found


@dataclass(frozen=True)
class Actor:
    """A column of the table."""

    title: str
    role: str | None
    """Taken after logging in as ``login``; None: ``login`` is a member of the role of the title."""
    user: UUID | None = None
    login: str = "authenticator"


ACTORS = (
    Actor("anon", "anon"),
    Actor("own", "authenticated", OWNER),
    Actor("other's", "authenticated", STRANGER),
    Actor("service_role", "service_role"),
    Actor("push_listener", None, login=WORKER),
    Actor("push_listener_operator", None, login=OPERATOR),
)


@cache
def document() -> tuple[Line, ...]:
    """The table in docs/privileges.md."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["what", *(actor.title for actor in ACTORS)]
    lines = []
    for what, *cells in rows[2:]:
        if what.startswith("**"):
            continue
        (name, *columns), part = re.findall(r"`([^`]+)`", what), what.rpartition("`, ")[2]
        lines.append(Line(name, part if "`, " in what else "", tuple(columns), tuple(cells)))
    return tuple(lines)


# --- databases and their rows ----------------------------------------------------------------------------


@dataclass
class Installation:
    """A migrated database, with one row of OWNER and one of OTHER in each table, and a way in for each role."""

    database: Database
    adopted: bool
    connections: dict[str, Connection] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each table: its columns and their types."""
    before: dict[str, set[str]] = field(default_factory=dict)
    """Of each adopted table: the columns that it had."""

    def attempts(self, actor: Actor, statements: list[str]) -> list[int | None]:
        """How many rows each returned or changed; None when it was refused. Nothing of it stays."""
        script: list[sql.Composable] = [sql.SQL("begin; set local statement_timeout = 0"), sql.SQL(ATTEMPT)]
        if actor.role is not None:
            script.append(sql.SQL("set local role {}").format(sql.Identifier(actor.role)))
        if actor.user is not None:
            claims = f'{{"sub": "{actor.user}", "role": "{actor.role}"}}'
            script.append(sql.SQL("select set_config('request.jwt.claims', {}, true)").format(claims))
        script += [
            sql.SQL("select pg_temp.attempt({}::text[])").format(sql.Literal(statements)),
            sql.SQL("rollback"),
        ]
        # In one message, and tried by the server: there are thousands.
        answers = self.connections[actor.login].execute(sql.SQL("; ").join(script)).set_result(-2)
        ((counts,),) = answers.fetchall()
        assert len(counts) == len(statements)
        return list(counts)


ATTEMPT = """
create function pg_temp.attempt(statements text[]) returns integer[] language plpgsql as $$
declare
  counts integer[];
  n integer;
begin
  for i in 1 .. cardinality(statements) loop
    begin
      execute statements[i];
      get diagnostics n = row_count;
      -- What says nothing of rows has been done all the same.
      counts[i] := case when statements[i] like 'truncate %' then -1 else n end;
      raise 'undone' using errcode = 'TEST0';
    exception
      when sqlstate 'TEST0' then null;
      when insufficient_privilege then counts[i] := null;
    end;
  end loop;
  return counts;
end
$$
"""


@contextmanager
def installed(server: Server, regime: Regime, application: str) -> Iterator[Installation]:
    with project(server, regime, application) as database, ExitStack() as stack:
        make_worker(database)
        make_operator(database)
        found = Installation(database, adopted=bool(application))
        for login in {actor.login for actor in ACTORS}:
            found.connections[login] = stack.enter_context(
                psycopg.connect(database.dsn_as(login), autocommit=True)
            )
        fill(found)
        # So that there is a row in push_listener.lock_holders.
        found.connections["authenticator"].execute("select pg_advisory_lock(%s, 1)", (locks.LIVENESS_CLASS,))
        yield found


def fill(installation: Installation) -> None:
    with psycopg.connect(installation.database.dsn, autocommit=True, row_factory=dict_row) as owner:
        for row in owner.execute(
            "select a.attrelid::regclass::text as name, a.attname, a.attidentity, "
            "format_type(a.atttypid, null) as type "
            "from pg_attribute a join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'v') "
            "where c.relnamespace in ('public'::regnamespace, 'push_listener'::regnamespace) "
            "and a.attnum > 0 and not a.attisdropped"
        ):
            columns = installation.columns.setdefault(row["name"], {})
            columns[row["attname"]] = "identity" if row["attidentity"] else row["type"]
        for row in owner.execute(
            "select relation, name from push_listener.adoption_record where kind = 'column'"
        ):
            installation.before.setdefault(row["relation"], set()).add(row["name"])
        # In an adopted queue a user may delete a row that is finished; one that is being sent a worker may settle.
        for user, push, status in ((OWNER, PUSH, "sent"), (OTHER, OTHERS_PUSH, "processing")):
            values = {"u": user, "p": push, "t": f"token of {user}", "s": status}
            owner.execute(
                "insert into push_notifications (id, user_id, device_token, title, body, status, next_attempt_at) "
                "values (%(p)s, %(u)s, %(t)s, 'title', 'body', %(s)s, "
                "case %(s)s when 'processing' then now() + interval '1 day' end)",
                values,
            )
            if installation.adopted:
                owner.execute("update push_notifications set driver_id = user_id")
            owner.execute(
                "insert into push_delivery_logs (push_id, device_token, status) values (%(p)s, %(t)s, 'sent')",
                values,
            )
            owner.execute(
                "insert into push_devices (token, user_id, platform) values (%(t)s, %(u)s, 'web')", values
            )
            owner.execute(
                "insert into telemetry_logs (type, message, user_id) values ('crash', 'x', %(u)s)", values
            )
            owner.execute("insert into push_listener.workers (name) values ('x')")
            owner.execute(
                "insert into push_listener.unwritable_rows (push_id, statement, code, until) "
                "values (gen_random_uuid(), 'claim', 'P0001', now())"
            )
            owner.execute("insert into push_listener.served values ('1', 5, %(u)s, 'postgres')", values)
            owner.execute(
                "insert into push_listener.actions (who, what, affected, ids) values ('anna', 'reveal', 1, %s)",
                ([push],),
            )


READ_ONLY = {"push_listener.ended", "push_listener.lock_holders"}
"""Views that nobody can write to, whatever the privileges."""

REQUIRED = {
    "push_notifications": {"title": "'t'", "body": "'b'", "driver_id": f"'{OWNER}'"},
    "push_delivery_logs": {"push_id": f"'{PUSH}'", "status": "'delivered'"},
    "push_devices": {"token": "'new'", "user_id": f"'{OWNER}'"},
    "telemetry_logs": {"type": "'t'", "message": "'m'", "user_id": f"'{OWNER}'"},
    "push_listener.workers": {"name": "'n'"},
    "push_listener.unwritable_rows": {
        "push_id": "gen_random_uuid()",
        "statement": "'claim'",
        "code": "'P0001'",
        "until": "'infinity'",
    },
    "push_listener.actions": {"who": "'anna'", "what": "'send'", "affected": "1", "ids": "'{}'"},
    "push_listener.served": {
        "system_identifier": "'2'",
        "database_oid": "5",
        "address": "'host x'",
        "database_name": "'postgres'",
    },
}
"""What a row needs for the table, or for a policy of the application, to be taken; as far as the table has it."""

VALUES = {
    "push_notifications.status": "'pending'",
    "push_delivery_logs.status": "'delivered'",
    "push_delivery_logs.push_id": f"'{PUSH}'",
    "push_devices.platform": "'ios'",
    "push_listener.unwritable_rows.statement": "'settle'",
    "push_listener.actions.what": "'cancel'",
    "push_devices.token": "md5(random()::text)",
    "push_notifications.idempotency_key": "md5(random()::text)",
}
BY_TYPE = {
    "uuid": f"'{OWNER}'",
    "uuid[]": "'{}'",
    "integer[]": "'{}'",
    "text": "'text'",
    "jsonb": "'{}'",
    "timestamp with time zone": "now()",
    "smallint": "1",
    "integer": "1",
    "numeric": "1",
    "boolean": "true",
    "date": "now()",
    "double precision": "1",
    "bigint": "(1e9 * random())::bigint",
    "identity": "default",
}


def value(table: str, column: str, type_: str) -> str:
    if column == "id" and type_ == "uuid":
        return "gen_random_uuid()"
    return BY_TYPE["identity"] if type_ == "identity" else VALUES.get(f"{table}.{column}", BY_TYPE[type_])


def name_of(column: str) -> str:
    return '"timestamp"' if column == "timestamp" else column


def operations(
    installation: Installation, line: Line, actor: Actor
) -> dict[str, list[tuple[str, int | None]]]:
    """Every way to use what a line is about: operation, its statements, and how many rows each has to reach."""
    name = line.name
    if name == "push_listener":
        return {"usage": [("select 'push_listener.workers'::regclass", 1)]}
    if name.endswith("_seq"):
        return {
            "usage": [(f"select nextval('{name}')", 1)],
            "select": [(f"select last_value from {name}", 1)],
            "update": [(f"select setval('{name}', 1000)", 1)],
        }
    if not line.is_table:
        function, _, types = name.rstrip(")").partition("(")
        arguments = ", ".join(f"null::{each}" for each in types.split(",") if each)
        call = CALLS.get(function, f"select {function}({arguments})")
        if function == "push_listener.daily_totals":  # no day has any
            call = f"select count(*) from {function}({arguments})"
        return {"execute": [(call, 1)]}
    everybodys = 1 if actor.user else None if name.startswith("push_listener.") else 2
    if line.part == "rows":
        if name in READ_ONLY:
            return {}
        deleted: dict[str, list[tuple[str, int | None]]] = {"delete": [(f"delete from {name}", everybodys)]}
        return (
            deleted
            if name == "push_recipients"
            else {**deleted, "truncate": [(f"truncate {name} cascade", None)]}
        )
    columns = installation.columns[name]
    theirs = line.columns or sorted(columns.keys() - listed(name))
    required = {key: to for key, to in REQUIRED.get(name, {}).items() if key in columns}
    if actor.role == "anon":
        required.pop("user_id", None)
    wanted: dict[str, list[tuple[str, int | None]]] = {"select": [], "insert": [], "update": []}
    for column in theirs:
        new = value(name, column, columns[column])
        if actor.role == "anon" and column == "user_id":
            new = "null"
        row = {**required, column: required.get(column, new)}
        wanted["select"].append((f"select {name_of(column)} from {name}", everybodys))
        if name in READ_ONLY:
            continue
        wanted["insert"].append(
            (f"insert into {name} ({', '.join(map(name_of, row))}) values ({', '.join(row.values())})", 1)
        )
        if (name, column) == ("push_notifications", "id"):
            new = column  # the log refers to it
        wanted["update"].append((f"update {name} set {name_of(column)} = {new}", everybodys))
    return wanted


def listed(table: str) -> set[str]:
    return {column for line in document() if line.name == table for column in line.columns}


# --- cell by cell ----------------------------------------------------------------------------------------


# What is granted under the other default privileges is the same: test_default_privileges_make_no_difference.
@pytest.mark.parametrize(
    ("regime", "application"), [(Regime.NEW, ""), (Regime.OLD, APPLICATION)], ids=["fresh", "adopted"]
)
def test_every_cell_is_as_written(postgres: Server, regime: Regime, application: str) -> None:
    with installed(postgres, regime, application) as installation:
        found = list(faults(installation))
        assert not found, "\n".join(found)


def test_every_cell_is_as_written_on_the_oldest_postgres(oldest_server: Server) -> None:
    with installed(oldest_server, Regime.OLD, APPLICATION) as installation:
        found = list(faults(installation))
        assert not found, "\n".join(found)


def faults(installation: Installation) -> Iterator[str]:
    """What is allowed against the document, and what is denied."""
    for number, actor in enumerate(ACTORS):
        tried = [each for line in document() for each in cells(installation, line, actor, number)]
        counts = installation.attempts(actor, [statement for statement, *_ in tried])
        for (statement, expected, reaches), count in zip(tried, counts, strict=True):
            good = (count == reaches if reaches else bool(count)) if expected else not count
            if not good:
                yield f"{actor.title}, {'allowed' if expected else 'denied'}: {statement}: {count}"


def cells(
    installation: Installation, line: Line, actor: Actor, number: int
) -> Iterator[tuple[str, bool, int | None]]:
    """Each statement about what the line is about, whether it is allowed, and how many rows it has to reach."""
    if line.name == "telemetry_logs_id_seq" and installation.adopted:
        return  # this application numbers telemetry by UUID
    if line.name == "push_delivery_logs_id_seq" and not installation.adopted:
        return  # and push-listener the logs
    allowed = line.allowed(number, adopted=installation.adopted)
    possible = operations(installation, line, actor)
    assert allowed.keys() <= possible.keys()
    for operation, statements in possible.items():
        for place, (statement, reaches) in enumerate(statements):
            expected = operation in allowed
            if expected and line.columns and installation.adopted and allowed[operation]:
                # What an application may go on doing is bound to the columns that it had.
                expected = line.columns[place] in installation.before[line.name]
            yield statement, expected, reaches


def test_the_document_lists_all_there_is_and_nothing_else(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        relations = connection.execute(
            "select c.oid::regclass::text, array(select a.attname::text from pg_attribute a where a.attrelid = c.oid "
            "and a.attnum > 0 and not a.attisdropped and c.relkind <> 'S') from pg_class c "
            "where c.relkind not in ('i', 'c', 't') "
            "and c.relnamespace in ('public'::regnamespace, 'push_listener'::regnamespace)"
        ).fetchall()
        functions = connection.execute(
            "select oid::regprocedure::text from pg_proc "
            "where pronamespace in ('public'::regnamespace, 'push_listener'::regnamespace)"
        ).fetchall()
    there = {name: set(columns) for name, columns in relations}
    only_adopted = {"push_delivery_logs_id_seq"}
    assert {line.name for line in document()} == {
        *there, *only_adopted, *(name for (name,) in functions), "push_listener",
    }  # fmt: skip
    assert not only_adopted & there.keys()
    assert {name: listed(name) for name in there} == there
    with_rows = {line.name for line in document() if line.part == "rows"}
    assert with_rows == {name for name, columns in there.items() if columns}
    twice = [(line.name, column) for line in document() for column in line.columns]
    assert len(twice) == len(set(twice))


# --- one result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["", APPLICATION], ids=["fresh", "adopted"])
def test_default_privileges_make_no_difference(postgres: Server, application: str) -> None:
    found, others = [], []
    for regime in Regime:
        with project(postgres, regime, application) as database:
            found.append(grants(database))
            others.append(policies_and_triggers(database))
    assert others[0] == others[1]
    if application:  # what anon could read before, it reads
        read_before = {grant for grant in found[0] if grant[3:5] == ("anon", "SELECT")}
        assert {name for _, name, *_ in read_before} == {"push_notifications"}
        found[0] -= read_before
    assert found[0] == found[1]
    strangers = {grant for grant in found[0] if grant[3] != "OWNER"}
    assert {privilege for *_, privilege, _ in strangers} == {
        "SELECT", "INSERT", "UPDATE", "DELETE", "USAGE", "EXECUTE",
    }  # fmt: skip
    assert {grantable for *_, grantable in strangers} == {"false"}
    touched = {(kind, name) for kind, name, _, grantee, *_ in strangers if grantee in ("PUBLIC", "anon")}
    assert touched == ({("column", "telemetry_logs")} if application else set())


@pytest.fixture
def plain_database(postgres: Server, bare_database: Database) -> Iterator[Database]:
    """Owned by a role that may do nothing but own it. The roles are there, as other databases made them."""
    with postgres.database(Template.MIGRATED):
        pass
    with psycopg.connect(bare_database.superuser_dsn, autocommit=True) as connection:
        connection.execute("drop role if exists test_plain")
        connection.execute("create role test_plain login")
        connection.execute(f"alter database {bare_database.name} owner to test_plain".encode())
        connection.execute((migrate.sql_directory("supabase") / "02_auth.sql").read_bytes())
        connection.execute("grant usage on schema auth to test_plain")
    yield Database(bare_database.name, postgres, "test_plain")
    with psycopg.connect(bare_database.superuser_dsn, autocommit=True) as connection:
        connection.execute(f"alter database {bare_database.name} owner to current_user".encode())
        connection.execute("drop owned by test_plain cascade")
        connection.execute("drop role test_plain")


def test_a_plain_owner_gets_the_same_and_one_who_may_not_ask_for_the_user_all_but_users(
    plain_database: Database, database: Database
) -> None:
    with psycopg.connect(plain_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("revoke usage on schema auth from test_plain")
        migrate.apply(plain_database.dsn)
        policies = superuser.execute("select distinct roles::text from pg_policies").fetchall()
        assert sorted(policies) == [("{push_listener_operator}",), ("{push_listener}",), ("{service_role}",)]
        assert grants(plain_database) == grants(database)
        superuser.execute("grant usage on schema auth to test_plain")
    with psycopg.connect(plain_database.dsn, autocommit=True) as owner:
        owner.execute("select push_listener.apply_privileges()")
    assert state(plain_database) == state(database)


# The old default privileges are the wider ones; under the new ones, and where nothing was there, test_migrate.py looks
# at each step.
def test_the_way_back_restores_every_grant(postgres: Server) -> None:
    go_back(postgres, (SHAPES / "own_words.sql").read_text())


def test_the_way_back_restores_every_grant_on_the_oldest_postgres(oldest_server: Server) -> None:
    go_back(oldest_server, APPLICATION)


def go_back(server: Server, application: str) -> None:
    known = migrate.load()
    privileges = version_of("privileges")
    with server.database(Template.SUPABASE) as database:
        prepare(database, Regime.OLD, application)
        first = state(database)
        migrate.apply(database.dsn, known[: privileges - 1])
        unprivileged = state(database)
        migrate.apply(database.dsn, known[:privileges])
        without_operators = state(database)
        migrate.apply(database.dsn, known)
        last = state(database)
        assert unprivileged != without_operators != last
        migrate.rollback(database.dsn, privileges, known)
        assert state(database) == without_operators
        migrate.rollback(database.dsn, privileges - 1, known)
        assert state(database) == unprivileged
        migrate.apply(database.dsn, known)
        assert state(database) == last
        migrate.rollback(database.dsn, 0, known)
        assert state(database) == first


def version_of(name: str) -> int:
    """The number of a migration."""
    return next(migration.version for migration in migrate.load() if migration.name == name)


def state(database: Database) -> object:
    """Grants, policies, triggers and row-level security, as they are."""
    return grants(database), policies_and_triggers(database)


def policies_and_triggers(database: Database) -> object:
    """And row-level security."""
    with psycopg.connect(database.superuser_dsn) as connection:
        policies = connection.execute("select * from pg_policies order by tablename, policyname").fetchall()
        others = connection.execute(
            "select tgrelid::regclass::text || ' ' || tgname from pg_trigger where not tgisinternal union all "
            "select oid::regclass::text || ' ' || relrowsecurity from pg_class "
            "where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1"
        ).fetchall()
    return policies, others


def test_to_secure_again_changes_nothing(postgres: Server) -> None:
    with project(postgres, Regime.OLD, APPLICATION) as database:
        before = state(database)
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute("set client_min_messages = error")
            owner.execute("select push_listener.apply_privileges()")
            assert state(database) == before
            owner.execute("drop view push_recipients")
            owner.execute(
                "create view push_recipients with (security_invoker = true) as "
                "select user_id, token, platform from push_devices where disabled_at is null"
            )
            assert state(database) != before, "the old regime has granted the new view to everybody"
            owner.execute("select push_listener.apply_privileges()")
            assert state(database) == before


def another_server(like: Server) -> Server:
    """Roles belong to a whole server: this one has none yet."""
    bin_dir = programs(like.version)
    assert bin_dir is not None
    return Server(like.version, bin_dir)


# --- roles that are missing ------------------------------------------------------------------------------


async def test_without_any_role_of_supabase(postgres: Server, database: Database) -> None:
    """An owner that may not create roles is told what to do, and everything else is done."""
    expected = grants(database)
    told: list[str] = []
    with (
        another_server(postgres) as plain,
        plain.database(Template.BARE) as bare,
        psycopg.connect(bare.superuser_dsn, autocommit=True) as superuser,
    ):
        superuser.execute("create role plain login")
        superuser.execute(f"alter database {bare.name} owner to plain".encode())
        mine = Database(bare.name, plain, "plain")
        migrate.apply(mine.dsn, warn=told.append)
        async with (
            Emulator() as emulator,
            rows_of(mine.dsn) as rows,
            serving(settings_for(mine.dsn, emulator)),
        ):
            assert (await rows.one_over(await rows.add(device_token="t", title="t")))["status"] == "sent"
        superuser.execute("drop function test_tell cascade")
        with psycopg.connect(mine.dsn) as owner:
            use_every_function(owner)
            owner.rollback()
        superuser.execute("create role stranger")
        superuser.execute("set role stranger")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            superuser.execute("select public.enqueue_push(p_topic => 'a', p_title => 'b')")
        superuser.execute("reset role")
        for role in ("push_listener", "push_listener_operator"):
            assert any(f'"create role {role} nologin"' in line for line in told), told

        for path in sorted(migrate.sql_directory("supabase").glob("[0-9]*.sql")):
            superuser.execute(path.read_bytes())
        superuser.execute(f"alter database {bare.name} owner to plain".encode())
        superuser.execute("grant usage on schema auth to plain")
        for role in ("push_listener", "push_listener_operator"):
            superuser.execute(f"create role {role} nologin".encode())
        with psycopg.connect(mine.dsn, autocommit=True) as owner:
            owner.execute("select push_listener.apply_privileges()")
            assert grants(mine) == expected
            policies = owner.execute("select count(*) from pg_policies where 'authenticated' = any (roles)")
            assert policies.fetchone() == (3,)


# --- users of a queue that was there before --------------------------------------------------------------


@pytest.fixture
def adopted(postgres: Server) -> Iterator[Database]:
    with project(postgres, Regime.OLD, APPLICATION) as database:
        yield database


@pytest.fixture
def user(adopted: Database) -> Iterator[Connection]:
    """The signed-in user OWNER."""
    with psycopg.connect(
        adopted.dsn_as("authenticator"), autocommit=True, row_factory=dict_row
    ) as connection:
        connection.execute("set role authenticated")
        connection.execute("select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{OWNER}"}}',))
        yield connection


def test_a_row_of_a_user_begins_as_a_new_one(adopted: Database, user: Connection) -> None:
    forged = user.execute(
        "insert into push_notifications (driver_id, title, body, status, last_error, attempts) "
        "values (%s, 't', 'b', 'sent', 'forged', 7) returning status, last_error, attempts",
        (OWNER,),
    ).fetchone()
    assert forged == {"status": "pending", "last_error": None, "attempts": 7}
    with psycopg.connect(adopted.dsn) as owner:
        due = owner.execute("select next_attempt_at <= now(), retry_count from push_notifications").fetchone()
        assert due == (True, 0)
        # The application's own functions and its server are not users.
        kept = owner.execute(
            "insert into push_notifications (title, body, status) values ('t', 'b', 'sent') returning status"
        ).fetchone()
    assert kept == ("sent",)
    # A role of the application's own that has the rights of authenticated is one. It is gone at the end.
    with psycopg.connect(adopted.superuser_dsn) as administrator:
        administrator.execute("create role courier nologin in role authenticated")
        administrator.execute("set local role courier")
        administrator.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{OWNER}"}}',))
        forged_too = administrator.execute(
            "insert into push_notifications (driver_id, title, body, status) values (%s, 't', 'b', 'sent') "
            "returning status",
            (OWNER,),
        ).fetchone()
        administrator.rollback()
    assert forged_too == ("pending",)


def test_a_user_cannot_send_a_row_again(user: Connection) -> None:
    user.execute("insert into push_notifications (driver_id, title, body) values (%s, 't', 'b')", (OWNER,))
    for change in (
        "status = 'pending'", "next_attempt_at = now()", "title = 'other'", "user_id = null", "retry_count = 0",
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute(f"update push_notifications set {change}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        user.execute(
            "insert into push_notifications (id, driver_id, title, body) "
            "select id, driver_id, title, body from push_notifications "
            "on conflict (id) do update set status = 'pending'"
        )
    assert user.execute("update push_notifications set attempts = 5").rowcount == 1


def test_a_user_deletes_only_what_is_finished(adopted: Database, user: Connection) -> None:
    user.execute("insert into push_notifications (driver_id, title, body) values (%s, 't', 'b')", (OWNER,))
    assert user.execute("delete from push_notifications").rowcount == 0
    with psycopg.connect(adopted.dsn, autocommit=True) as owner:
        owner.execute("update push_notifications set status = 'sent', next_attempt_at = null")
    assert user.execute("delete from push_notifications").rowcount == 1


def test_a_user_keeps_no_more_than_it_had(postgres: Server) -> None:
    """No policy for a command, or no grant of a column: nothing to keep."""
    application = """
        create table public.push_notifications (
          id uuid primary key default gen_random_uuid(), user_id uuid, title text, body text, note text, cost numeric,
          status text not null default 'pending', created_at timestamptz not null default now());
        alter table public.push_notifications enable row level security;
        create policy add on public.push_notifications for insert to authenticated
          with check (user_id = (select auth.uid()));
        create policy change on public.push_notifications for update to service_role using (true);
        revoke all on public.push_notifications from authenticated;
        grant insert (user_id, title, note), update (note), delete on public.push_notifications to authenticated;
    """
    with project(postgres, Regime.OLD, application) as database:  # which grants more, unless that is revoked
        found = {
            (part, privilege)
            for _, name, part, grantee, privilege, _ in grants(database)
            if (name, grantee) == ("push_notifications", "authenticated")
        }
        with psycopg.connect(database.dsn) as owner:
            ours = owner.execute("select unnest(push_listener.columns('push_notifications'))").fetchall()
    had = {"id", "user_id", "title", "body", "status", "created_at"}
    assert found == {
        # No policy had let users read a row; ours lets them read what push-listener wrote into their own.
        *((column, "SELECT") for (column,) in ours if column not in had),
        *((column, "INSERT") for column in ("user_id", "title", "note")),
    }


@pytest.mark.oldest_postgres
def test_privileges_through_another_role_stop_the_migration(postgres: Server) -> None:
    application = """
        create table public.push_notifications (
          id uuid primary key default gen_random_uuid(), status text not null default 'pending');
        grant all on public.push_notifications to test_group;
    """
    with postgres.database(Template.SUPABASE) as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("drop role if exists test_group")
            superuser.execute("create role test_group")
            superuser.execute("grant test_group to authenticated")
        try:
            prepare(database, Regime.NEW, application)
            with pytest.raises(migrate.MigrationError, match="authenticated may change the state of rows"):
                migrate.apply(database.dsn)
        finally:
            with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
                superuser.execute("drop owned by test_group")
                superuser.execute("drop role test_group")


# --- the listener's own role -----------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_the_service_runs_with_the_listeners_role(postgres: Server) -> None:
    """End to end, with several devices, a dead token and a retry; and the application's policies unread."""
    with project(postgres, Regime.OLD, APPLICATION) as database:
        make_worker(database)
        async with (
            Emulator(faults=["unavailable,token=slow,times=2"]) as emulator,
            rows_of(database.dsn) as rows,
            serving(settings_for(database.dsn_as(WORKER), emulator, worker_name="of little power")),
        ):
            await rows.device("phone", OWNER)
            await rows.device("tablet", OWNER, "ios")
            await rows.device("dead-phone", OWNER)
            await rows.device("dead-tablet", OTHER)
            text = {"title": "t", "body": "b"}
            both = await rows.add(user_id=OWNER, **text)
            dead = await rows.add(user_id=OTHER, **text)
            late = await rows.add(device_token="slow", **text)
            over = await rows.over(both, dead, late)
            assert [over[each]["status"] for each in (both, dead, late)] == ["sent", "dead", "sent"]
            assert over[late]["retry_count"] == 2
            logged = {(log["device_token"], log["status"]) for log in await rows.logs(both)}
            assert logged == {("phone", "sent"), ("tablet", "sent"), ("dead-phone", "failed")}
            disabled = await rows.query("select token from push_devices where disabled_at is not null")
            assert {row["token"] for row in disabled} == {"dead-phone", "dead-tablet"}
        with psycopg.connect(database.dsn) as owner:
            worker = owner.execute(
                "select name, stopped_at is not null from push_listener.workers"
            ).fetchall()
        assert worker == [("of little power", True)]


async def test_tokens_kept_by_the_application(postgres: Server) -> None:
    """As docs/privileges.md has it for a view of the application's; and what is lacking is told before."""
    application = """
        create table public.profiles (id uuid primary key, fcm_token text);
        alter table public.profiles enable row level security;
        create view public.push_recipients with (security_invoker = true) as
          select id as user_id, fcm_token as token, null::text as platform
            from public.profiles where fcm_token is not null;
        create function public.push_disable_token(p_token text, p_reason text) returns void
          language sql security definer set search_path = pg_catalog, pg_temp
          as 'update public.profiles set fcm_token = null where fcm_token = p_token';
        insert into public.profiles values ('00000000-0000-4000-8000-00000000000a', 'dead-phone'),
          ('00000000-0000-4000-8000-00000000000b', 'phone');
    """
    told: list[str] = []
    with project(postgres, Regime.OLD, application) as database:
        make_worker(database)
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
            owner.execute("select push_listener.apply_privileges()")
            (told_to,) = (line for line in told if "profiles" in line)
            for statement in (
                told_to.split('"')[1],
                "create policy push_listener_reads on profiles for select to push_listener "
                "using (fcm_token is not null)",
                "select push_listener.apply_privileges()",
            ):
                owner.execute(statement.encode())
        assert len([line for line in told if "profiles" in line]) == 1
        async with (
            Emulator() as emulator,
            rows_of(database.dsn) as rows,
            serving(settings_for(database.dsn_as(WORKER), emulator)),
        ):
            dead, sent = await rows.add(user_id=OWNER, title="t"), await rows.add(user_id=OTHER, title="t")
            over = await rows.over(dead, sent)
            assert (over[dead]["status"], over[sent]["status"]) == ("dead", "sent")
            left = await rows.query("select id from profiles where fcm_token is not null")
            assert [row["id"] for row in left] == [OTHER]


STATEMENTS = {
    f"{module.__name__}.{name}": text
    for module in (busy_polling, claiming, doorbell, foreign_triggers, locks, queue, served, settlements)
    for name, text in vars(module).items()
    if name.isupper()
    and (name.startswith("_") or module in (claiming, foreign_triggers))
    and isinstance(text, str)
    and re.match(r"\s*(select|with|insert|update) ", text)
}


def test_the_listeners_role_suffices_for_every_statement(postgres: Server, database: Database) -> None:
    """Also for those that a good day never sees. To explain a statement asks for the privileges to run it."""
    if postgres.version < 16:
        pytest.skip("cannot explain a statement without its values")
    make_worker(database)
    faults = []
    with (
        psycopg.connect(database.dsn_as(WORKER), autocommit=True) as worker,
        psycopg.connect(database.dsn_as("authenticator"), autocommit=True) as nobody,
    ):
        for name, text in STATEMENTS.items():
            statement = f"explain (generic_plan) {numbered(text)}"
            try:
                worker.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege as error:
                faults.append(f"{name}: {error}")
            # A name alone is everybody's to know.
            if "push_" not in re.sub(r"'[^']*'::reg\w+|to_regclass\('[^']*'\)", "", statement):
                continue
            try:
                nobody.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                continue
            faults.append(f"{name} is for everybody")
    assert not faults, "\n".join(faults)


def numbered(statement: str) -> str:
    """With $1, $2 for the values."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return f"${numbers.setdefault(found[1] or str(found.start()), len(numbers) + 1)}"

    return re.sub(r"%(?:\((\w+)\))?[sbt]\b", number, statement)


def test_the_listeners_role_has_nothing_else(postgres: Server) -> None:
    """Whatever it can reach in a database of an application, by grants of whatever kind."""
    with project(postgres, Regime.OLD, APPLICATION) as database:
        make_worker(database)
        with psycopg.connect(database.dsn_as(WORKER), autocommit=True) as worker:
            relations = worker.execute(
                "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace "
                "where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') and "
                "case when c.relkind = 'S' then has_sequence_privilege(c.oid, 'usage, select, update') "
                "when c.relkind in ('r', 'v', 'm', 'f', 'p') then has_any_column_privilege("
                "c.oid, 'select, insert, update, references') "
                "or has_table_privilege(c.oid, 'delete, truncate, trigger') end"
            ).fetchall()
            definers = worker.execute(
                "select oid::regprocedure::text from pg_proc "
                "where prosecdef and has_function_privilege(oid, 'execute') and "
                "has_schema_privilege(pronamespace, 'usage')"
            ).fetchall()
            for forbidden in ("create table public.mine ()", "create schema mine", "set role service_role"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    worker.execute(forbidden.encode())
    assert {name for (name,) in relations} == {
        "push_notifications", "push_delivery_logs", "push_delivery_logs_id_seq", "push_devices", "push_recipients",
        "push_listener.migrations", "push_listener.workers", "push_listener.lock_holders", "push_listener.shared_quota",
        "push_listener.served", "push_listener.functions", "push_listener.unwritable_rows", "push_listener.actions",
    }  # fmt: skip
    assert set(definers) == {
        ("push_disable_token(text,text)",),
        ("push_listener.drift()",),
        ("push_listener.daily_totals(integer)",),
        ("push_listener.ended_by_code(integer)",),
    }


@pytest.mark.oldest_postgres
def test_row_level_security_costs_the_listener_no_plan(postgres: Server) -> None:
    """The claim of push_listener is planned as the owner's is: by the index of what is due, no policy asked."""
    with project(postgres, Regime.OLD, APPLICATION) as database:
        make_worker(database)
        plans = []
        with psycopg.connect(database.superuser_dsn, autocommit=True) as owner:
            owner.execute("set session_replication_role = replica")  # triggers would take a second
            owner.execute(
                "insert into push_notifications (user_id, title, body, status, next_attempt_at) "
                "select gen_random_uuid(), 't', 'b', case when n % 100 = 0 then 'pending' else 'sent' end, "
                "case when n % 100 = 0 then now() end from generate_series(1, 5000) n"
            )
            owner.execute("vacuum analyze push_notifications")
        for dsn in (database.dsn, database.dsn_as(WORKER)):
            with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
                values = {
                    "limit": 100,
                    "normal_limit": 100,
                    "lease": 60.0,
                    "worker": 1,
                    "excluded": [],
                    "from_high": -math.inf,
                    "from_normal": -math.inf,
                    "early": [],
                    "is_strict": True,
                }
                rows = connection.execute(f"explain (costs off) {claiming.CLAIM}", values).fetchall()
                plans.append([line for (line,) in rows])
    # Where there are policies, conditions that might tell others what they see come last.
    owners, listeners = ([sorted(re.split(r" AND |: \(|\)$", line)) for line in plan] for plan in plans)
    assert owners == listeners
    assert sum("push_notifications_due" in line for line in plans[1]) >= 2
    assert not any("Seq Scan on push_notifications" in line or "drivers" in line for line in plans[1])


def test_users_do_not_read_tables_from_end_to_end(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as owner:
        owner.execute("set session_replication_role = replica")  # triggers would take a second
        owner.execute(
            "insert into push_notifications (user_id, title, status, next_attempt_at) "
            "select gen_random_uuid(), 't', 'sent', null from generate_series(1, 5000)"
        )
        owner.execute(
            "insert into push_delivery_logs (push_id, status) select id, 'sent' from push_notifications"
        )
        owner.execute(
            "insert into push_devices (token, user_id) select id::text, user_id from push_notifications"
        )
        for table in ("push_notifications", "push_delivery_logs", "push_devices"):
            owner.execute(f"vacuum analyze {table}".encode())
    with psycopg.connect(database.dsn_as("authenticator"), autocommit=True) as user:
        user.execute("set role authenticated")
        user.execute("select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{OWNER}"}}',))
        for table, index in (
            ("push_notifications", "push_notifications_user"),
            ("push_delivery_logs", "push_delivery_logs_push"),
            ("push_devices", "push_devices_live"),
        ):
            plan = [line for (line,) in user.execute(f"explain select * from {table}".encode())]
            assert any(index in line for line in plan), plan
            assert not any(f"Seq Scan on {table}" in line for line in plan), plan


DENIED: dict[LiteralString, tuple[str, str]] = {
    "delete from public.push_notifications": (
        "table push_notifications",
        "needs select and update for run",
    ),
    "delete from public.telemetry_logs": ("table telemetry_logs", "needs delete for purge --telemetry"),
    "select public.cancel_push(null)": ("function cancel_push", "needs execute on it"),
    "select from push_listener.telemetry_use": ("table telemetry_use", "lacks a privilege"),
}


def test_a_missing_privilege_is_named_with_the_grant(database: Database) -> None:
    make_worker(database)
    found = []
    with psycopg.connect(database.dsn_as(WORKER), autocommit=True) as worker:
        for statement, (denied, needed) in DENIED.items():
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refusal:
                worker.execute(statement)
            said, name = errors.explain(refusal.value), errors.fault_name(refusal.value)
            if not (
                said.startswith(f"permission denied for {denied}: the user of the address {needed}")
                and '"grant push_listener to ..."' in said
                and name == f"SQLSTATE 42501 (permission denied for {denied})"
            ):
                found.append(f"{statement}: {said}; {name}")
    assert not found, "\n".join(found)
