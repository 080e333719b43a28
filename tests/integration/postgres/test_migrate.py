"""The runner of migrations, and the files for the Supabase CLI, which have to make the same database."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from listener.schema import export, migrate
from listener.schema.migrate import Migration, MigrationError, Standing, session
from tests.support.adopted import adopted, load
from tests.support.catalog import describe
from tests.support.cli import invoke
from tests.support.pgtap import prove
from tests.support.postgres import Database, Template
from tests.support.tools import tool

PROJECT = Path(__file__).resolve().parents[3]


def everything(database: Database) -> list[str]:
    return describe(database.dsn, "public", "push_listener")


def ledger(database: Database) -> list[tuple[object, ...]]:
    with psycopg.connect(database.dsn) as connection:
        return (
            connection.execute(
                "select version, name, checksum from push_listener.migrations order by 1"
            ).fetchall()
            + connection.execute(
                "select name, revision, checksum from push_listener.functions order by 1"
            ).fetchall()
        )


def before(database: Database) -> list[tuple[object, ...]]:
    with psycopg.connect(database.dsn) as connection:
        return connection.execute("select * from push_listener.adoption_record order by 1, 2, 3").fetchall()


def steps(*ups: str) -> list[Migration]:
    return [
        Migration(n, f"step_{n}", up, f"drop table if exists public.made_{n}") for n, up in enumerate(ups, 1)
    ]


# --- the runner ------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
def test_it_is_applied_once(blank_database: Database) -> None:
    reported: list[int] = []
    done = migrate.apply(blank_database.dsn, report=lambda m: reported.append(m.version))
    assert [m.version for m in done] == reported == [m.version for m in migrate.load()]
    there = everything(blank_database)
    assert migrate.apply(blank_database.dsn) == []
    assert everything(blank_database) == there


def test_each_step_back_and_forth_leads_to_the_same(blank_database: Database) -> None:
    known, states = migrate.load(), [everything(blank_database)]
    for migration in known:
        migrate.apply(blank_database.dsn, known[: migration.version])
        states.append(everything(blank_database))
    for version in range(len(states) - 2, -1, -1):
        migrate.rollback(blank_database.dsn, version, known)
        assert everything(blank_database) == states[version], f"after the way back to {version}"


def test_a_failing_step_leaves_nothing_of_itself(bare_database: Database) -> None:
    known = steps(
        "create table public.made_1 ()",
        "create table public.made_2 (); select 1 / 0",
        "create table public.made_3 ()",
    )
    with pytest.raises(MigrationError, match="0002_step_2: division by zero"):
        migrate.apply(bare_database.dsn, known)
    assert [state.applied_at is not None for state in migrate.status(bare_database.dsn, known)] == [
        True,
        False,
        False,
    ]
    with psycopg.connect(bare_database.dsn) as connection:
        made = connection.execute("select relname from pg_class where relname like 'made%'").fetchall()
    assert made == [("made_1",)]


def test_a_first_step_that_fails_leaves_no_ledger(bare_database: Database) -> None:
    empty = everything(bare_database)
    with pytest.raises(MigrationError, match="0001_step_1"):
        migrate.apply(bare_database.dsn, steps("select 1 / 0"))
    assert everything(bare_database) == empty


def test_a_file_that_was_edited_after_it_was_applied_is_refused(bare_database: Database) -> None:
    known = steps("create table public.made_1 ()", "create table public.made_2 ()")
    migrate.apply(bare_database.dsn, known[:1])
    edited = [replace(known[0], source=known[0].source + ";"), known[1]]
    assert [state.changed for state in migrate.status(bare_database.dsn, edited)] == [True, False]
    with pytest.raises(MigrationError, match="0001_step_1: the file is not the one that was applied"):
        migrate.apply(bare_database.dsn, edited)


def test_a_database_of_a_newer_version_is_refused(bare_database: Database) -> None:
    known = steps("select 1", "select 2")
    migrate.apply(bare_database.dsn, known)
    with pytest.raises(
        MigrationError, match=r"holds migration 0002, which this version .* does not know"
    ) as raised:
        migrate.apply(bare_database.dsn, known[:1])
    (version,) = re.findall(r"migrate --down (\d+)$", str(raised.value))
    migrate.rollback(bare_database.dsn, int(version), known)
    assert migrate.apply(bare_database.dsn, known[:1]) == []


def test_a_way_back_to_a_version_that_is_not_there_is_refused(bare_database: Database) -> None:
    known = steps("select 1")
    migrate.apply(bare_database.dsn, known)
    with pytest.raises(MigrationError, match=r"^there is no migration 0002: the newest is 0001$"):
        migrate.rollback(bare_database.dsn, 2, known)
    assert migrate.rollback(bare_database.dsn, 1, known) == []


def test_two_at_once_do_it_once(blank_database: Database) -> None:
    done: list[list[Migration]] = []
    known = migrate.load()[:3]
    threads = [
        threading.Thread(target=lambda: done.append(migrate.apply(blank_database.dsn, known)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each) for each in done) == [0, len(known)]


def test_what_an_interrupted_index_left_behind_is_replaced(blank_database: Database) -> None:
    dsn = blank_database.dsn
    migrate.apply(dsn, migrate.load()[:11])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "insert into push_notifications (device_token, idempotency_key) values ('t', 'k'), ('t', 'k')"
        )
        with pytest.raises(MigrationError, match="0012_indexes: could not create unique index") as refusal:
            migrate.apply(dsn)
        assert "(idempotency_key)=" not in str(refusal.value)  # the server's detail quotes the row
        valid = (
            "select indisvalid from pg_index where indexrelid = 'push_notifications_idempotency'::regclass"
        )
        assert connection.execute(valid).fetchone() == (False,)
        connection.execute("update push_notifications set idempotency_key = null")
        migrate.apply(dsn, migrate.load()[:12])
        assert connection.execute(valid).fetchone() == (True,)


def test_an_autovacuum_that_holds_the_table_is_waited_for_long_enough(bare_database: Database) -> None:
    """It makes way only for one who has waited for deadlock_timeout: some tries have to be that patient."""
    with psycopg.connect(bare_database.dsn) as connection:
        row = connection.execute(
            "select 1000 * extract(epoch from current_setting('deadlock_timeout')::interval)"
        ).fetchone()
    assert row is not None
    assert max(session.LOCK_TIMEOUTS_MS) > row[0]
    assert session.LOCK_TIMEOUTS_MS[0] < row[0]


def test_a_table_that_is_never_free_is_named_as_the_reason(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        load(blank_database, "reference")
        with connection.transaction():
            connection.execute("select from push_notifications")
            with pytest.raises(MigrationError, match="0003_queue: a table is in use by a transaction that"):
                migrate.apply(blank_database.dsn, patience=migrate.Patience(lock_timeouts=(10, 10)))
        migrate.apply(blank_database.dsn, migrate.load()[:3])


def test_statements_are_told_apart() -> None:
    script = """-- migrate: concurrently
-- A comment; with a semicolon.

create index one on t (a);  -- and one behind
do $$ begin; -- not; here
end $$;
select 'a;b', $x$ ; $$ ; $x$;
"""
    assert migrate.statements(script) == [
        "create index one on t (a)",
        "do $$ begin; -- not; here\nend $$",
        "select 'a;b', $x$ ; $$ ; $x$",
    ]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (
            ["0001_a.sql", "0001_a.down.sql", "0003_b.sql", "0003_b.down.sql"],
            "without gaps; found \\[1, 3\\]",
        ),
        (["0001_a.sql"], "0001_a.sql has no way back"),
        (["1_a.sql"], "1_a.sql is not named like"),
    ],
)
def test_migrations_that_are_not_in_order_are_refused(tmp_path: Path, names: list[str], fault: str) -> None:
    for name in names:
        (tmp_path / name).write_text("select 1")
    with pytest.raises(MigrationError, match=fault):
        migrate.load(tmp_path)


# --- functions -------------------------------------------------------------------------------------------


def functions_with(folder: Path, name: str, *edits: tuple[str, str]) -> list[Migration]:
    """All migrations, with changes in the text of one function."""
    shutil.copytree(PROJECT / "db", folder, dirs_exist_ok=True)
    schema, _, function = name.partition(".")
    path = folder / "functions" / schema / f"{function}.sql"
    for old, new in edits:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return migrate.load(folder / "migrations")


NEXT_REVISION = ("-- revision 1\n", "-- revision 2\n")
OTHER_TEXT = ("must not be null", "must be given")


def with_old_text(lines: list[str]) -> list[str]:
    old, new = OTHER_TEXT
    return [line.replace(new, old) for line in lines]


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> list[Migration]:
    """All migrations of a version in which cancel_push has another text."""
    return functions_with(tmp_path_factory.mktemp("newer"), "public.cancel_push", NEXT_REVISION, OTHER_TEXT)


def standing(database: Database, known: list[Migration] | None = None) -> dict[str, Standing]:
    """The functions that are not as in their files."""
    states = migrate.function_status(database.dsn, known)
    return {each.function.name: each.standing for each in states if each.standing is not Standing.CURRENT}


def refusal_of_cancel_push(database: Database) -> str:
    with psycopg.connect(database.dsn) as connection, pytest.raises(psycopg.Error) as refusal:
        connection.execute("select cancel_push(null)")
    return str(refusal.value.diag.message_primary)


def test_a_changed_function_is_replaced_and_nothing_else_changes(
    database: Database, newer: list[Migration]
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("grant execute on function cancel_push(uuid) to authenticator")
    there = everything(database)
    assert standing(database) == {}
    assert standing(database, newer) == {"public.cancel_push": Standing.CHANGED}
    replaced: list[str] = []
    assert migrate.apply(database.dsn, newer, replaced=lambda function: replaced.append(function.name)) == []
    assert replaced == ["public.cancel_push"]
    assert standing(database, newer) == {}
    assert refusal_of_cancel_push(database) == "p_push_id must be given"
    assert with_old_text(everything(database)) == there  # owner, grants, settings and comment among them
    assert migrate.apply(database.dsn, newer, replaced=lambda function: replaced.append(function.name)) == []
    assert replaced == ["public.cancel_push"]


def test_a_change_without_a_higher_revision_is_applied_too(database: Database, tmp_path: Path) -> None:
    edited = functions_with(tmp_path, "public.cancel_push", OTHER_TEXT)
    migrate.apply(database.dsn, edited)
    assert refusal_of_cancel_push(database) == "p_push_id must be given"


def test_an_older_version_leaves_a_newer_function_as_it_is(
    database: Database, newer: list[Migration]
) -> None:
    migrate.apply(database.dsn, newer)
    assert standing(database) == {"public.cancel_push": Standing.NEWER}
    told: list[str] = []
    assert migrate.apply(database.dsn, warn=told.append) == []
    assert told == [
        "the function public.cancel_push in the database has revision 2, and this version of push-listener has "
        "revision 1: it is left as it is"
    ]
    assert refusal_of_cancel_push(database) == "p_push_id must be given"


def test_after_the_way_back_an_older_version_applies_its_own(
    database: Database, newer: list[Migration]
) -> None:
    there = everything(database)
    migrate.apply(database.dsn, newer)
    migrate.rollback(database.dsn, newer[-2].version, newer)
    migrate.apply(database.dsn)
    assert standing(database) == {}
    assert everything(database) == there
    assert all(
        each.applied_revision == each.function.revision for each in migrate.function_status(database.dsn)
    )


def test_a_new_database_gets_the_present_functions_at_once(
    database: Database, blank_database: Database, newer: list[Migration]
) -> None:
    migrate.apply(blank_database.dsn, newer)
    migrate.apply(database.dsn, newer)
    assert everything(blank_database) == everything(database)
    assert ledger(blank_database) == ledger(database)


def test_functions_that_fail_leave_nothing_of_themselves(database: Database, tmp_path: Path) -> None:
    functions_with(tmp_path, "public.fetch_pending_pushes", ("must be from 1 to 1000", "is out of range"))
    path = tmp_path / "functions" / "public" / "mark_push_sent.sql"
    path.write_text(path.read_text().replace("returns text", "returns uuid"))
    known, there = migrate.load(tmp_path / "migrations"), everything(database)
    with pytest.raises(MigrationError, match="functions: cannot change return type of existing function"):
        migrate.apply(database.dsn, known)
    assert everything(database) == there
    assert set(standing(database, known)) == {"public.mark_push_sent", "public.fetch_pending_pushes"}


def test_a_function_of_another_is_not_taken_for_ours(blank_database: Database) -> None:
    """To replace it would leave it to its owner, who could then put anything in it."""
    known = migrate.load()
    step = next(migration for migration in known if "public.cancel_push" in migration.creates)
    migrate.apply(blank_database.dsn, known[: step.version - 1])
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as connection:
        connection.execute(
            "create function public.cancel_push(p_push_id uuid) returns boolean language sql return true"
        )
    with pytest.raises(MigrationError, match=r"0015_enqueue_api: .*already exists"):
        migrate.apply(blank_database.superuser_dsn)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (("-- revision 1\n", ""), "cancel_push.sql must begin with a line like -- revision 1"),
        (("or replace ", ""), "cancel_push.sql must begin with a line like -- revision 1"),
        (
            ("public.cancel_push(p_push_id", "public.cancel(p_push_id"),
            "and create or replace function public.c",
        ),
    ],
)
def test_a_function_in_another_form_is_refused(tmp_path: Path, edit: tuple[str, str], fault: str) -> None:
    with pytest.raises(MigrationError, match=fault):
        functions_with(tmp_path, "public.cancel_push", edit)


def test_each_function_has_a_migration_and_each_include_a_function(tmp_path: Path) -> None:
    functions_with(tmp_path, "public.cancel_push")
    path = tmp_path / "functions" / "public" / "cancel_push.sql"
    path.rename(path.with_name("cancel.sql"))
    with pytest.raises(MigrationError, match=r"functions/public/cancel_push\.sql is missing"):
        migrate.load(tmp_path / "migrations")
    path.write_text(path.with_name("cancel.sql").read_text())
    with pytest.raises(MigrationError, match=r"no migration includes functions/public/cancel\.sql"):
        migrate.load(tmp_path / "migrations")


def test_the_way_back_of_a_migration_drops_what_it_creates() -> None:
    for migration in migrate.load():
        for name in migration.creates:
            assert f"drop function if exists {name}(" in migration.down, f"{migration} creates {name}"


def test_no_function_is_overloaded() -> None:
    for migration in migrate.load():
        made = re.findall(r"^create function (\w+\.\w+)\(", migration.up, re.MULTILINE)
        assert sorted(set(made)) == sorted(made)
        assert migration.creates <= set(made)


# --- who runs it -----------------------------------------------------------------------------------------


@pytest.fixture
def plain_owner(bare_database: Database) -> Iterator[Database]:
    """A database whose owner may do nothing else: no superuser, no CREATEROLE, and no roles of Supabase's."""
    name = f"owner_{uuid4().hex[:8]}"
    role, place = sql.Identifier(name), sql.Identifier(bare_database.name)
    with psycopg.connect(bare_database.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login").format(role))
        connection.execute(sql.SQL("alter database {} owner to {}").format(place, role))
        yield Database(bare_database.name, bare_database.server, name)
        connection.execute(sql.SQL("alter database {} owner to current_user").format(place))
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


@pytest.mark.oldest_postgres
def test_a_plain_owner_can_do_it(plain_owner: Database) -> None:
    with psycopg.connect(plain_owner.dsn, autocommit=True) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key default gen_random_uuid(), title text, "
            "status varchar(6) default 'sent' check (status in ('queued', 'sent')))"
        )
    shape = everything(plain_owner)
    migrate.apply(plain_owner.dsn)
    with psycopg.connect(plain_owner.dsn) as connection:
        connection.execute("select enqueue_push(p_device_token => 't', p_title => 'hello')")
        owners = connection.execute(
            "select distinct relowner::regrole::text from pg_class c join pg_namespace n on n.oid = relnamespace "
            "where nspname in ('public', 'push_listener')"
        ).fetchall()
        assert owners == [(plain_owner.user,)]
    undone = migrate.rollback(plain_owner.dsn, 0, discard_data=True)
    assert [m.version for m in undone] == [m.version for m in reversed(migrate.load())]
    assert everything(plain_owner) == shape


def test_an_owner_who_does_not_see_all_rows_is_told(plain_owner: Database) -> None:
    with psycopg.connect(plain_owner.dsn, autocommit=True) as connection:
        connection.execute(
            "create table push_notifications (id uuid primary key, status text);"
            "alter table push_notifications enable row level security, force row level security"
        )
    with pytest.raises(MigrationError, match="forces row-level security on its owner, and owner_"):
        migrate.apply(plain_owner.dsn)


def test_who_may_not_create_is_told(plain_owner: Database) -> None:
    other = f"{plain_owner.user}_guest"
    with psycopg.connect(plain_owner.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(other)))
        try:
            with pytest.raises(MigrationError, match="permission denied for database"):
                migrate.apply(plain_owner.dsn_as(other))
            connection.execute(
                sql.SQL("grant create on database {} to {}").format(
                    sql.Identifier(plain_owner.name), sql.Identifier(other)
                )
            )
            with pytest.raises(MigrationError, match=f"{other} may not create anything in the schema public"):
                migrate.apply(plain_owner.dsn_as(other))
        finally:
            connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(other)))


# --- the command -----------------------------------------------------------------------------------------


def command(database: Database | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = ["migrate", *map(str, arguments)]
    done = asyncio.run(invoke(None if database is None else database.dsn, *words))
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def test_the_command_says_what_becomes_of_rows_that_wait(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        load(blank_database, "reference")
        for arguments in (["--status"], ["--dry-run", "--expire-older-than", "1d"]):
            looked = command(blank_database, *arguments)
            assert looked.returncode == 0
            assert (
                "note: push_notifications has rows that wait: 2 of them will be sent, and 3" in looked.stderr
            )
        assert (
            "3 of them will be sent"
            in command(blank_database, "--status", "--expire-older-than", "52w").stderr
        )
        done = command(blank_database, "--send-old")
        assert done.returncode == 0
        assert "note: push_notifications has rows that wait: 5 of them will be sent, and 0" in done.stderr
        assert done.stdout.splitlines()[0] == "applied 0001_preflight"
        expired = connection.execute("select from push_notifications where status = 'expired'").fetchall()
        assert expired == []
    again = command(blank_database)
    assert (again.returncode, again.stdout) == (0, "nothing to do: the database is up to date\n")
    assert command(blank_database, "--status").stderr == ""


def test_the_command_fails_where_the_database_cannot_be_adopted(blank_database: Database) -> None:
    load(blank_database, "refused_relations")
    reason = "\n- push_notifications is a view, and has to be an ordinary table: rename it\n"
    for option in ([], ["--dry-run"], ["--status"]):
        refused = command(blank_database, *option)
        assert (refused.returncode, reason in refused.stderr) == (1, True), option


def test_the_command_writes_the_files_without_a_database(tmp_path: Path) -> None:
    written = command(None, "--emit", tmp_path)
    assert written.returncode == 0
    count = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert written.stdout.splitlines()[-1] == f"{count} files written"
    assert command(None, "--emit", tmp_path).stdout == "nothing to do: every file is there\n"
    assert command(None, "--emit", tmp_path, "--status").returncode == 2
    assert command(None, "--emit", tmp_path / "nowhere").returncode == 2


# --- the files for the Supabase CLI ----------------------------------------------------------------------


def psql(database: Database, *files: Path) -> None:
    """As plainly as can be: each statement is a transaction of its own, and each file has a session of its own."""
    commands = [option for file in files for option in (f"--file={file}", r"--command=\connect")]
    done = subprocess.run(
        [tool("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *commands, database.dsn],
        capture_output=True,
        text=True,
        env={**os.environ, "PGOPTIONS": ""},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def pipelined(database: Database, *files: Path) -> None:
    """As the CLI does: each file in one transaction."""
    with psycopg.connect(database.dsn) as connection:
        for file in files:
            with connection.transaction():
                connection.execute(file.read_bytes())


@pytest.fixture
def emitted(tmp_path: Path) -> list[Path]:
    export.emit(tmp_path)
    return sorted((tmp_path / "migrations").iterdir())


@pytest.mark.parametrize(
    ("shapes", "way"),
    [
        ((), pipelined),
        (("own_words",), psql),
    ],
    ids=lambda given: given.__name__ if callable(given) else " ".join(given),
)
def test_the_files_make_the_same_database(
    blank_database: Database,
    emitted: list[Path],
    way: Callable[..., None],
    shapes: tuple[str, ...],
) -> None:
    server = blank_database.server
    with (
        adopted(server, *shapes) if shapes else server.database(Template.MIGRATED) as wanted,
        psycopg.connect(wanted.dsn, autocommit=True) as one,
        psycopg.connect(blank_database.dsn, autocommit=True) as two,
    ):
        load(blank_database, *shapes)
        way(blank_database, *emitted)
        assert everything(blank_database) == everything(wanted)
        assert ledger(blank_database) == ledger(wanted)
        assert before(blank_database) == before(wanted)
        if shapes:
            rows = (
                "select id, status, next_attempt_at is null, error_code from push_notifications order by id"
            )
            assert two.execute(rows).fetchall() == one.execute(rows).fetchall()
        there = everything(blank_database)
        assert migrate.apply(blank_database.dsn) == []
        assert everything(blank_database) == there
    if not shapes:
        # Those of db/tests; a few show that they run where the files were applied.
        tests = {
            path.name.removeprefix("push_listener_"): path
            for path in (emitted[0].parents[1] / "tests" / "database").iterdir()
        }
        for path in (PROJECT / "db" / "tests").glob("*.test.sql"):
            assert path.read_text() in tests[path.name].read_text()
        prove(blank_database, [tests["push_delivery_logs.test.sql"], tests["functions.test.sql"]])


def test_the_files_find_nothing_to_do_after_migrate(database: Database, emitted: list[Path]) -> None:
    there, known = everything(database), ledger(database)
    psql(database, *emitted)
    assert everything(database) == there
    assert ledger(database) == known


def test_migrate_goes_on_where_the_files_have_come_to(blank_database: Database, emitted: list[Path]) -> None:
    psql(blank_database, *emitted[:5])
    assert [m.version for m in migrate.apply(blank_database.dsn)] == [m.version for m in migrate.load()[5:]]


def test_a_file_that_fails_leaves_nothing_of_itself(blank_database: Database, emitted: list[Path]) -> None:
    load(blank_database, "refused_types")
    there = everything(blank_database)
    with pytest.raises(RuntimeError, match=r"push_notifications\.id is bigint, and has to be uuid"):
        psql(blank_database, *emitted)
    assert everything(blank_database) == there


def test_the_files_are_named_after_those_that_are_there_and_keep_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "20290228235959_their_own.sql").write_text("select 1;")
    (folder / "init.sql").write_text("select 1;")
    written = export.emit(tmp_path)
    names = sorted(path.name for path in written if path.parent == folder)
    assert names[0] == "20290301000000_push_listener_preflight.sql"
    assert names == [
        f"202903010000{n:02}_push_listener_{migration.name}.sql" for n, migration in enumerate(migrate.load())
    ]
    tests = {path.name for path in (tmp_path / "tests" / "database").iterdir()}
    assert tests == {f"push_listener_{path.name}" for path in (PROJECT / "db" / "tests").glob("*.test.sql")}
    assert len(written) == len(names) + len(tests)

    # Later, with a migration of the application's and a new one of ours: that alone is written, behind both.
    (folder / "20300101000000_their_next.sql").write_text("select 1;")
    (folder / names[-1]).unlink()
    assert export.emit(tmp_path) == [folder / f"20300101000001_push_listener_{migrate.load()[-1].name}.sql"]
    assert export.emit(tmp_path) == []


def test_names_do_not_depend_on_when_and_where(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    names = [sorted(path.relative_to(root) for path in export.emit(root)) for root in (one, two)]
    assert names[0] == names[1]


def test_a_file_with_other_content_is_not_overwritten(tmp_path: Path) -> None:
    written = export.emit(tmp_path)
    edited, missing = written[1], written[2]
    edited.write_text("-- mine\n")
    test = next(path for path in written if path.name.endswith(".test.sql"))
    test.write_text("-- mine too\n")
    missing.unlink()
    with pytest.raises(MigrationError) as refusal:
        export.emit(tmp_path)
    assert f"\n  {edited}" in str(refusal.value)
    assert f"\n  {test}" in str(refusal.value)
    assert edited.read_text() == "-- mine\n"
    assert not missing.exists()


@pytest.mark.parametrize("there", ["README.md", "supabase/config.toml", "migrations/0001_initial.py"])
def test_files_are_not_written_into_a_folder_of_something_else(tmp_path: Path, there: str) -> None:
    """``--emit .`` in the checkout of an application, say."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("")
    with pytest.raises(MigrationError) as refusal:
        export.emit(tmp_path)
    assert str(refusal.value).startswith(f"nothing has been written: {tmp_path} is not the folder supabase")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / there]
    assert (f"Did you mean {tmp_path / 'supabase'}?" in str(refusal.value)) == there.startswith("supabase")


def test_files_are_not_written_below_the_folder_of_migrations(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "20290228235959_their_own.sql").write_text("select 1;")
    with pytest.raises(MigrationError, match=f"Did you mean {tmp_path}"):
        export.emit(folder)


@pytest.mark.parametrize("there", ["config.toml", "migrations/20290228235959_their_own.sql"])
def test_files_are_written_into_the_folder_of_a_project(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("")
    assert export.emit(tmp_path)


def test_a_function_that_has_changed_is_emitted_once_more(
    database: Database, tmp_path: Path, newer: list[Migration]
) -> None:
    export.emit(tmp_path)
    (replacing,) = export.emit(tmp_path, newer)
    assert re.fullmatch(r"202601010000\d\d_push_listener_functions_[0-9a-f]{8}\.sql", replacing.name)
    assert export.emit(tmp_path, newer) == []
    there = everything(database)
    psql(database, replacing)
    assert standing(database, newer) == {}
    assert refusal_of_cancel_push(database) == "p_push_id must be given"
    assert with_old_text(everything(database)) == there

    assert export.emit(tmp_path) == []  # an older version neither takes it back nor complains
    functions = replacing.read_text()
    replacing.write_text(functions.replace("must be given", "must be something"))
    with pytest.raises(MigrationError, match=re.escape(str(replacing))):
        export.emit(tmp_path, newer)


def test_a_new_project_has_no_file_for_functions(tmp_path: Path, newer: list[Migration]) -> None:
    assert not any("functions_" in path.name for path in export.emit(tmp_path, newer))
    assert export.emit(tmp_path, newer) == []


def test_an_emitted_function_does_not_replace_a_newer_one(
    database: Database, tmp_path: Path, newer: list[Migration]
) -> None:
    export.emit(tmp_path)
    (replacing,) = export.emit(tmp_path, newer)
    newest = functions_with(
        tmp_path / "newest",
        "public.cancel_push",
        ("-- revision 1\n", "-- revision 3\n"),
        ("must not be null", "is missing"),
    )
    migrate.apply(database.dsn, newest)
    psql(database, replacing)
    assert refusal_of_cancel_push(database) == "p_push_id is missing"


def test_a_function_that_was_edited_in_an_emitted_file_is_noticed(tmp_path: Path) -> None:
    written = export.emit(tmp_path)
    edited = next(path for path in written if path.name.endswith("_enqueue_api.sql"))
    edited.write_text(edited.read_text().replace("p_push_id must not be null", "no"))
    with pytest.raises(MigrationError, match=re.escape(str(edited))):
        export.emit(tmp_path)


def test_the_package_holds_the_sql(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name) for name in archive.namelist() if name.endswith(".sql")}
    listed = [
        path.relative_to(PROJECT) for room in ("db", "listener") for path in (PROJECT / room).rglob("*.sql")
    ]
    assert packed == {path if path.parts[0] == "listener" else "listener" / path for path in listed}
