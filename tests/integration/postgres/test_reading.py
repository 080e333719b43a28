"""Adoption lets nobody read more: each role reads afterwards, column by column and row by row, what it read before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

from listener.schema import migrate
from tests.support.access import APPLICATION, Regime, prepare
from tests.support.postgres import Database, Server, Template

ANN, BOB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
TABLES = ("push_notifications", "push_delivery_logs", "push_devices", "telemetry_logs")

# Role and user. The last three are an application's: one with a user's rights, one with none, one that has a user's
# rights and those of a group.
READERS = (
    ("anon", None), ("authenticated", ANN), ("authenticated", BOB), ("test_rider", ANN), ("test_analyst", None),
    ("test_member", None),
)  # fmt: skip

QUEUE = """
create table public.push_notifications (
  id uuid primary key default gen_random_uuid(), user_id uuid, driver_id uuid, title text, body text, data jsonb,
  status text not null default 'pending', created_at timestamptz default now());
create table public.push_delivery_logs (
  id uuid primary key default gen_random_uuid(), push_id uuid, device_token text, status text not null);
create table public.push_devices (token text primary key, user_id uuid not null, platform text);
create table public.telemetry_logs (id bigserial primary key, type text not null, message text not null, user_id uuid);
"""
ROWS = f"""
insert into public.push_notifications (user_id, driver_id, title, body, status)
  values ('{ANN}', '{ANN}', 'a', 'secret of Ann', 'sent'), ('{BOB}', '{BOB}', 'b', 'secret of Bob', 'sent');
insert into public.push_delivery_logs (push_id, status) select id, 'delivered' from public.push_notifications;
insert into public.push_devices (token, user_id) values ('phone of Ann', '{ANN}'), ('phone of Bob', '{BOB}');
insert into public.telemetry_logs (type, message, user_id) values ('t', 'of Ann', '{ANN}'), ('t', 'of Bob', '{BOB}');
"""
ON = "".join(f"alter table public.{table} enable row level security;" for table in TABLES)
OWN = "create policy own on public.push_notifications for select {} using (user_id = (select auth.uid()));"
GIVEN = {
    "security off, nothing granted": "",
    "security off, all granted": "grant select on all tables in schema public to anon, authenticated, test_group;",
    "column grants": ON + OWN.format("") + "grant select (title, status) on push_notifications to authenticated;",
    "a policy without a grant": ON + OWN.format("to authenticated"),
    "a grant without a policy": ON + "grant select on all tables in schema public to authenticated, anon, test_rider;",
    "granted to everybody": "grant select on push_notifications, push_devices to public;",
    "granted to everybody, with a policy": ON + OWN.format("to test_analyst")
    + "grant select on push_notifications to public;",
    "all may read": ON + "create policy p on push_notifications using (true);"
    "grant select on push_notifications to anon;",
    "as most do": ON + OWN.format("to authenticated") + "grant select on push_notifications to authenticated;",
    "restrictive alone": ON + "create policy r on push_notifications as restrictive using (true);"
    "grant select on push_notifications to authenticated;",
    "a grant to users, a policy to a role of theirs": ON + OWN.format("to test_rider")
    + "grant select on push_notifications to authenticated;",
    "a grant to users, a policy to a group of one of them": ON + OWN.format("to test_group")
    + "grant select on push_notifications to authenticated;",
    "other roles": ON
    + "create policy p on push_notifications for select to test_analyst, test_group using (title = 'a');"
    "grant select on push_notifications, push_delivery_logs to test_analyst, test_group with grant option;",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def roles(postgres: Server) -> Iterator[None]:
    with postgres.database(Template.SUPABASE) as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            for role, rights in (
                ("test_group", ""), ("test_rider", "in role authenticated"), ("test_analyst", ""),
                ("test_member", "in role test_group, authenticated"),
            ):  # fmt: skip
                superuser.execute(f"create role {role} nologin {rights} role authenticator".encode())
        yield
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("drop role test_member, test_analyst, test_rider, test_group")


def reading(database: Database) -> dict[tuple[Any, ...], list[tuple[object, ...]]]:
    """For each reader, table and column: the values that it reads; a refusal reads nothing."""
    found: dict[tuple[Any, ...], list[tuple[object, ...]]] = {}
    with psycopg.connect(database.superuser_dsn) as superuser:
        columns = superuser.execute(
            "select c.relname, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid "
            "where c.relnamespace = 'public'::regnamespace and c.relname = any (%s) and a.attnum > 0 "
            "and not a.attisdropped",
            (list(TABLES),),
        ).fetchall()
    with psycopg.connect(database.dsn_as("authenticator"), autocommit=True) as connection:
        for role, user in READERS:
            connection.execute("reset role")
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
            claims = f'{{"sub": "{user}"}}' if user else ""
            connection.execute("select set_config('request.jwt.claims', %s, false)", (claims,))
            for table, column in columns:
                query = sql.SQL("select {} from public.{} order by 1").format(
                    sql.Identifier(column), sql.Identifier(table)
                )
                try:
                    rows = connection.execute(query).fetchall()
                except psycopg.errors.InsufficientPrivilege:
                    rows = []
                found[role, user, table, column] = rows
    return found


def compare(database: Database) -> None:
    before = reading(database)
    with psycopg.connect(database.superuser_dsn) as superuser:
        # Of new columns users may read those of their own rows, where no policy of the application is in force.
        ours_alone = {
            name
            for (name,) in superuser.execute(
                "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relrowsecurity "
                "and not exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive "
                "and p.polcmd in ('r', '*') and (0 = any (p.polroles) "
                "or '{authenticated,test_rider}'::regrole[]::oid[] && p.polroles))"
            )
        }
    migrate.apply(database.dsn)
    for key, rows in reading(database).items():
        role, _, table, _ = key
        if key in before:
            assert rows == before[key], key
        elif rows:
            assert role in ("authenticated", "test_rider"), key
            assert table in ours_alone, key
            assert len(rows) == 1, key


# The old default privileges grant all tables to users, so what the others grant makes no difference there.
GIVEN_ALL = ("security off, nothing granted", "a policy without a grant", "restrictive alone")


@pytest.mark.parametrize(
    ("given_before", "regime"),
    [*((given_before, Regime.NEW) for given_before in GIVEN), *((each, Regime.OLD) for each in GIVEN_ALL)],
)
def test_each_role_reads_what_it_read_before(postgres: Server, given_before: str, regime: Regime) -> None:
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, regime, QUEUE + ROWS + GIVEN[given_before])
        compare(database)


def test_so_in_an_application_with_everything(postgres: Server) -> None:
    with postgres.database(Template.SUPABASE) as database:
        rows = (
            "insert into public.push_notifications (driver_id, title, body, status) "
            f"values ('{ANN}', 'a', 'b', 'sent');"
        )
        prepare(database, Regime.OLD, APPLICATION + rows)
        compare(database)


GRANTS = st.builds(
    "grant select{} on {} to {};".format,
    st.sampled_from(["", " (title)", " (body)"]),
    st.just("public.push_notifications"),
    st.sampled_from(["anon", "authenticated", "public", "test_rider", "test_analyst", "test_group"]),
)
POLICIES = st.builds(
    "create policy p{} on public.push_notifications as {} for {} to {} using ({});".format,
    st.uuids().map(lambda each: each.hex),
    st.sampled_from(["permissive", "permissive", "restrictive"]),
    st.sampled_from(["select", "all", "update"]),
    st.sampled_from(["anon", "authenticated", "public", "test_rider", "test_analyst", "test_group"]),
    st.sampled_from(["true", "user_id = (select auth.uid())", "title = 'a'"]),
)


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second: to shrink one, minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.booleans(), st.lists(GRANTS, max_size=3), st.lists(POLICIES, max_size=3))
def test_whatever_was_granted_before(
    postgres: Server, secured: bool, granted: list[str], policies: list[str]
) -> None:
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE + ROWS + (ON if secured else "") + "".join([*granted, *policies]))
        compare(database)


def test_users_may_be_let_read_the_new_columns(postgres: Server) -> None:
    """For an application that asks for select *; it is told before that this would be refused."""
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE + ROWS + GIVEN["as most do"])
        foreseen = migrate.foresee(database.dsn)
        assert any("--share-new-columns" in line and "push_notifications" in line for line in foreseen)
        every = "select * from public.push_notifications"
        migrate.apply(database.dsn)
        with psycopg.connect(database.dsn_as("authenticator"), autocommit=True) as user:
            user.execute("set role authenticated")
            user.execute("select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{ANN}"}}',))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(every)
            migrate.apply(database.dsn, share_new_columns=True)
            assert len(user.execute(every).fetchall()) == 1
            assert migrate.apply(database.dsn) == []
            assert migrate.drift(database.dsn) == []
            assert len(user.execute(every).fetchall()) == 1
