"""Privileges that change after the migration: seen by run and --status, mended by migrate, and of no use meanwhile."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
import structlog

from listener.emulator import Emulator
from listener.schema import migrate
from tests.support.access import APPLICATION, WORKER, Regime, grants, make_worker, project
from tests.support.postgres import Database, Server, Template, programs
from tests.support.service import environment, program, rows_of, serving, settings_for

USER = UUID("00000000-0000-4000-8000-00000000000a")

# What tutorials say, and what somebody does in a hurry.
TUTORIAL = """
grant usage on schema public to anon, authenticated;
grant all on all tables in schema public to anon, authenticated;
grant all on all functions in schema public to anon, authenticated;
grant all on all sequences in schema public to anon, authenticated;
"""
CHANGES = {
    "tutorial": TUTORIAL,
    "everybody": "grant execute on all functions in schema public to public; "
    "grant select on push_notifications to public",
    "grant option": "grant select on push_devices to service_role with grant option",
    "own schema": "grant usage on schema push_listener to anon; "
    "grant execute on all functions in schema push_listener to anon; "
    "grant select on all tables in schema push_listener to anon",
    "column": "grant update (status) on push_notifications to authenticated",
    "revoked": "revoke update (status) on push_notifications from push_listener; "
    "revoke all on push_devices from service_role",
    "schema public": "revoke usage on schema public from push_listener",
    "security off": "alter table push_delivery_logs disable row level security",
    "policy changed": "alter policy push_listener_own on push_notifications using (true)",
    "policy dropped": "drop policy push_listener_claims on push_notifications",
    "policy added": "create policy push_listener_mine on push_notifications for select to anon using (true)",
    "search path": "alter function register_device(text, text, uuid) reset search_path",
}

SERVICE_CALLS = {
    "enqueue_push": f"select enqueue_push(p_user_id => '{USER}', p_title => 't')",
    "cancel_push": "select cancel_push(gen_random_uuid())",
    "requeue_pushes": "select requeue_pushes(p_error_code => 'X')",
    "fetch_pending_pushes": "select * from fetch_pending_pushes(1)",
    "mark_push_sent": "select mark_push_sent(gen_random_uuid())",
    "mark_push_failed": "select mark_push_failed(gen_random_uuid(), 'no')",
    "get_push_delivery_stats": "select * from get_push_delivery_stats(7)",
}


def run_as(database: Database, role: str, statement: str, user: UUID | None = USER) -> Any:
    """One request as PostgREST makes it; nothing of it stays."""
    with psycopg.connect(database.dsn_as("authenticator")) as connection:
        connection.execute(f"set local role {role}".encode())
        if user is not None:
            connection.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{user}"}}',))
        rows = connection.execute(statement.encode())
        found = rows.fetchall() if rows.description else rows.rowcount
        connection.rollback()
    return found


def as_owner(database: Database, statement: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(statement.encode())


def test_migrate_mends_what_was_changed_and_says_so(database: Database) -> None:
    before = grants(database), policies(database)
    assert migrate.drift(database.dsn) == []
    faults = []
    # A few at a time, none of which changes what another has changed.
    for first in range(4):
        names = list(CHANGES)[first::4]
        found: list[str] = []
        for name in names:
            as_owner(database, CHANGES[name])
            already, found = found, migrate.drift(database.dsn)
            if not set(found) > set(already):
                faults.append(f"{name} is not found")
        told: list[str] = []
        assert migrate.apply(database.dsn, warn=told.append) == []
        if [line.partition("set again: ")[2] for line in told] != found:
            faults.append(f"{names}: {told} is told and not {found}")
        after = grants(database), policies(database)
        if after != before:
            faults.append(f"{names}: {after[0] ^ before[0]} is not mended, or a policy")
        if left := migrate.drift(database.dsn):
            faults.append(f"{names}: {left} is told again")
    assert not faults, "\n".join(faults)


def policies(database: Database) -> object:
    with psycopg.connect(database.superuser_dsn) as connection:
        return connection.execute(
            "select * from pg_policies where schemaname = 'public' order by tablename, policyname"
        ).fetchall()


def test_whatever_is_granted_users_do_not_get_through_the_functions(postgres: Server) -> None:
    with project(postgres, Regime.NEW, APPLICATION) as database:
        as_owner(database, TUTORIAL)
        as_owner(database, CHANGES["everybody"])
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            if superuser.execute("select from pg_roles where rolname = 'test_courier'").fetchone() is None:
                superuser.execute("create role test_courier nologin in role authenticated")
                superuser.execute("create role test_stranger nologin")
                superuser.execute("grant test_courier, test_stranger to authenticator")
            superuser.execute("grant usage on schema public to test_stranger")
        for role in ("anon", "authenticated", "test_courier", "test_stranger"):
            for call in SERVICE_CALLS.values():
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    run_as(database, role, call)
        for name, call in SERVICE_CALLS.items():
            if name.startswith("mark_push"):
                with pytest.raises(psycopg.Error, match="there is no push"):
                    run_as(database, "service_role", call)
            else:
                run_as(database, "service_role", call)


def test_anon_registers_no_device_whatever_is_granted(database: Database) -> None:
    as_owner(database, TUTORIAL)
    for call in (
        f"select register_device('token', 'ios', '{USER}')",
        "select unregister_device('token')",
        'select flush_telemetry(array[\'{"type": "a", "message": "b"}\']::jsonb[])',
        "select record_delivery_receipt(gen_random_uuid(), 'token', 'opened')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run_as(database, "anon", call, user=None)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run_as(database, "authenticated", "select register_device('token', 'ios', gen_random_uuid())")


def test_a_function_of_the_application_enqueues_for_a_user(database: Database) -> None:
    """The safe pattern: a function that runs with its owner's rights, and checks the user itself."""
    as_owner(
        database,
        """
        create function public.order_ready(p_title text) returns uuid language plpgsql security definer
          set search_path = pg_catalog, pg_temp
        as $$
        begin
          return public.enqueue_push(p_user_id => auth.uid(), p_title => p_title);
        end
        $$;
        create function public.nevermind(p_push_id uuid) returns boolean language sql security definer
          set search_path = pg_catalog, pg_temp
          return public.cancel_push(p_push_id);
        """,
    )
    ((made,),) = run_as(database, "authenticated", "select order_ready('Your table is ready')")
    assert isinstance(made, UUID)
    assert run_as(database, "authenticated", "select nevermind(order_ready('no'))") == [(True,)]


def test_a_login_of_another_service_is_a_service_by_name(database: Database) -> None:
    """By a grant of fetch_pending_pushes to it, and not to everybody; but no role that has authenticated's rights."""
    with psycopg.connect(database.superuser_dsn) as superuser:
        superuser.execute("create role backend login")
        superuser.execute("create role member login in role service_role")
        is_service = "select push_is_service(%s)"
        assert superuser.execute(is_service, ("backend",)).fetchone() == (False,)
        assert superuser.execute(is_service, ("member",)).fetchone() == (True,)
        superuser.execute("grant execute on all functions in schema public to public")
        assert superuser.execute(is_service, ("backend",)).fetchone() == (False,)
        superuser.execute("grant execute on function fetch_pending_pushes(integer) to backend")
        assert superuser.execute(is_service, ("backend",)).fetchone() == (True,)
        superuser.execute("grant authenticated to backend")
        assert superuser.execute(is_service, ("backend",)).fetchone() == (False,)
        superuser.execute("set local role member")
        made = superuser.execute("select enqueue_push(p_topic => 'news', p_title => 't')").fetchone()
        assert made is not None
        superuser.rollback()


async def test_run_says_that_privileges_have_changed(database: Database) -> None:
    make_worker(database)
    as_owner(database, "grant execute on function enqueue_push to anon")
    async with Emulator() as emulator:
        with structlog.testing.capture_logs() as logs:
            async with serving(settings_for(database.dsn_as(WORKER), emulator)):
                pass
        said = [entry["finding"] for entry in logs if "privileges have changed" in entry["event"]]
        assert len(said) == 1
        assert said[0].startswith("anon may execute on public.enqueue_push(")


async def test_the_schema_public_may_be_closed_to_everybody_later(database: Database) -> None:
    make_worker(database)
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("revoke usage on schema public from public")
    async with (
        Emulator() as emulator,
        serving(settings_for(database.dsn_as(WORKER), emulator)),
        rows_of(database.dsn) as rows,
    ):
        await rows.add(device_token="t", title="t")
        await rows.over()


async def test_run_tells_that_its_role_may_not_use_the_schema_public(database: Database) -> None:
    make_worker(database)
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("revoke usage on schema public from public, push_listener")
    async with (
        Emulator() as emulator,
        program("run", env=environment(database.dsn_as(WORKER), emulator), forked=True) as run,
    ):
        assert await run.ended() == 1
    assert "permission denied for schema public" in run.output
    assert "not been migrated" not in run.output


def test_a_restore_into_an_old_project_is_mended(postgres: Server) -> None:
    """A dump restores what is granted, and leaves what the project's default privileges grant beside it."""
    tools = programs(postgres.version)
    if tools is None or not (tools / "pg_dump").exists():
        pytest.skip("these binaries have no pg_dump")
    with project(postgres, Regime.NEW) as original, postgres.database(Template.SUPABASE) as copy:
        with psycopg.connect(copy.superuser_dsn, autocommit=True) as superuser:
            path = migrate.sql_directory("supabase") / "privileges_old.sql"
            superuser.execute(path.read_bytes())
        dump = subprocess.run(
            [tools / "pg_dump", "--schema=public", "--schema=push_listener", "--no-owner", original.dsn],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        restored = subprocess.run(
            [shutil.which("psql") or tools / "psql", "-q", "-d", copy.dsn],
            input=dump, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "push_listener" not in restored.stderr
        found = migrate.drift(copy.dsn)
        assert any(line.startswith("anon may execute on public.enqueue_push(") for line in found)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run_as(copy, "anon", SERVICE_CALLS["enqueue_push"])
        assert migrate.apply(copy.dsn) == []
        assert migrate.drift(copy.dsn) == []
        assert grants(copy) == grants(original)


@pytest.fixture
def plain(postgres: Server, bare_database: Database) -> Iterator[Database]:
    """A plain Postgres in which a role that is nobody's friend may create schemas."""
    with postgres.database(Template.MIGRATED):
        pass  # makes the roles
    with psycopg.connect(bare_database.superuser_dsn, autocommit=True) as superuser:
        for role in ("test_owner", "test_maker"):
            superuser.execute(f"drop role if exists {role}".encode())
            superuser.execute(f"create role {role} login".encode())
        superuser.execute(f"alter database {bare_database.name} owner to test_owner".encode())
        superuser.execute(f"grant create on database {bare_database.name} to test_maker".encode())
        superuser.execute("grant authenticated to test_maker")
    yield Database(bare_database.name, postgres, "test_owner")
    with psycopg.connect(bare_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(f"alter database {bare_database.name} owner to current_user".encode())
        for role in ("test_maker", "test_owner"):
            superuser.execute(f"drop owned by {role} cascade".encode())
            superuser.execute(f"drop role {role}".encode())


def test_a_made_up_auth_uid_is_not_called(plain: Database) -> None:
    """Our functions would call it with the owner's rights."""
    migrate.apply(plain.dsn)
    with psycopg.connect(plain.dsn_as("test_maker"), autocommit=True) as maker:
        maker.execute(
            """
            create schema auth;
            create function auth.uid() returns uuid language plpgsql as $$
            begin
              raise exception 'ran as %', current_user;
            end
            $$;
            grant usage on schema auth to public;
            """
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="signed-in user"):
            maker.execute("select public.register_device('token', 'ios')")
    migrate.apply(plain.dsn)  # nor does it, in a policy
    with psycopg.connect(plain.superuser_dsn) as superuser:
        found = superuser.execute(
            "select count(*) from pg_policies where policyname = 'push_listener_own'"
        ).fetchone()
        assert found == (0,)


PLANTED = {
    "view": "create view public.push_recipients as "
    "select null::uuid as user_id, 'x'::text as token, 'ios'::text as platform",
    "function": "create function public.push_disable_token(text, text) returns void language sql as 'select'",
}  # fmt: skip


def test_what_another_role_has_put_in_place_of_ours_is_not_adopted(blank_database: Database) -> None:
    """The listener would read the view, or call the function, with its own rights."""
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("drop role if exists test_planter")
        superuser.execute("create role test_planter")
        superuser.execute("grant create on schema public to test_planter")
        for what in PLANTED.values():
            superuser.execute(f"set role test_planter; {what}".encode())
    try:
        with pytest.raises(migrate.MigrationError, match="belongs to test_planter") as refused:
            migrate.apply(blank_database.dsn)
        told = [line for line in str(refused.value).splitlines() if "belongs to test_planter" in line]
        assert len(told) == len(PLANTED)
        with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
            for line in told:
                superuser.execute(line.partition("drop it, or ")[2].encode())
        migrate.apply(blank_database.dsn)
    finally:
        with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("drop owned by test_planter")
            superuser.execute("drop role test_planter")


def test_what_another_role_has_passed_on_is_taken_back(postgres: Server) -> None:
    with postgres.database(Template.MIGRATED) as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute('create role "Test Passer"')
        try:
            with psycopg.connect(database.dsn, autocommit=True) as owner:
                owner.execute(
                    'grant insert, select on push_notifications to "Test Passer" with grant option; '
                    'grant update (title) on push_notifications to "Test Passer" with grant option'
                )
            with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
                superuser.execute(
                    'set role "Test Passer"; grant insert, select, update (title) on push_notifications to anon'
                )
            assert len(migrate.drift(database.dsn)) == 3
            migrate.apply(database.dsn)
            assert migrate.drift(database.dsn) == []
            with psycopg.connect(database.dsn) as owner:
                kept = owner.execute(
                    "select has_table_privilege('Test Passer', 'push_notifications', 'insert')"
                ).fetchone()
                assert kept == (True,)
        finally:
            with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
                superuser.execute('drop owned by "Test Passer" cascade; drop role "Test Passer"')


def test_privileges_are_set_by_several_at_once(postgres: Server) -> None:
    with postgres.database(Template.MIGRATED) as database:
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute("grant all on all tables in schema public to anon, authenticated")

        def secure(_: int) -> None:
            with psycopg.connect(database.dsn, autocommit=True) as each:
                each.execute("select push_listener.apply_privileges()")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(secure, range(4)))
        assert migrate.drift(database.dsn) == []


# What a role that may create in the database, or in public, could make before anybody migrates. Each would run its
# code.
TRAP = """
create function {schema}.trap() returns integer language plpgsql as
  $$ begin raise exception 'the trap ran as %', current_user; end $$;
create function {schema}.spring() returns trigger language plpgsql as
  $$ begin perform {schema}.trap(); return new; end $$;
"""
SCHEMAS = {
    "view": "create view push_listener.migrations as "
    "select push_listener.trap() as version, ''::text as checksum, now() as applied_at",
    "table": "create table push_listener.migrations (version integer primary key, name text, checksum text, "
    "applied_at timestamptz default now()); create trigger t before insert on push_listener.migrations "
    "for each row execute function push_listener.spring()",
    "function": "create function push_listener.drift() returns table (finding text, statement text) language sql "
    "as 'select push_listener.trap()::text, null'",
}  # fmt: skip


@pytest.fixture
def planted(blank_database: Database) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session as a role that may create anything, and owns nothing yet."""
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("drop role if exists test_planter")
        superuser.execute("create role test_planter login")
        superuser.execute("grant create on schema public to test_planter")
        superuser.execute(f"grant create on database {blank_database.name} to test_planter".encode())
    with psycopg.connect(blank_database.dsn_as("test_planter"), autocommit=True) as planter:
        yield planter
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("drop owned by test_planter cascade")
        superuser.execute("drop role test_planter")


def test_a_schema_that_a_stranger_has_made_is_not_looked_into(
    blank_database: Database, planted: psycopg.Connection[tuple[object, ...]]
) -> None:
    for made in SCHEMAS.values():
        planted.execute("create schema push_listener")
        planted.execute(TRAP.format(schema="push_listener").encode() + made.encode())
        planted.execute(
            "grant all on schema push_listener to public; "
            "grant all on all tables in schema push_listener to public"
        )
        for dsn in (blank_database.dsn, blank_database.superuser_dsn):
            for command in (migrate.status, migrate.foresee, migrate.apply, migrate.drift, migrate.exposures):
                with pytest.raises(migrate.MigrationError, match="belongs to the role test_planter"):
                    command(dsn)
            # As the files for the Supabase CLI do it, and a process that is a moment too late.
            with psycopg.connect(dsn) as conn:
                with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
                    conn.execute(migrate.load()[0].up.encode())
                assert "schema push_listener belongs to test_planter" in (
                    refused.value.diag.message_detail or ""
                )
        planted.execute("drop schema push_listener cascade")


def test_a_table_of_a_role_with_fewer_rights_is_not_adopted(
    blank_database: Database, planted: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Its triggers would run with the rights of our functions, as the one who migrates."""
    keys = {"push_notifications": "id uuid primary key", "push_devices": "token text primary key"}
    tables = {table: keys.get(table, "") for table in (*keys, "push_delivery_logs", "telemetry_logs")}
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("grant test_planter to postgres")
    planted.execute(TRAP.format(schema="public").encode())

    def plant(table: str) -> None:
        planted.execute(
            f"create table public.{table} ({tables[table]}); create trigger t before insert on public.{table} "
            "for each row execute function public.spring()".encode()
        )

    for table in tables:
        plant(table)
        # A member of that role, and the superuser.
        for dsn in (blank_database.dsn, blank_database.superuser_dsn):
            with pytest.raises(migrate.MigrationError, match=f"table public.{table} belongs to test_planter"):
                migrate.apply(dsn)
        planted.execute(f"drop table public.{table}".encode())
    for table in tables:
        plant(table)
    migrate.apply(blank_database.dsn_as("test_planter"))  # what it does as itself it could do before
