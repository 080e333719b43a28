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
ON = "alter table public.{t} enable row level security;"
OWN = "create policy own on public.{t} for select %s using (user_id = (select auth.uid()));"
GIVEN = {
    "as most do": ON + OWN % "to authenticated" + "grant select on {t} to authenticated;",
    "column grants": ON + OWN % "" + "grant select ({some}) on {t} to authenticated;",
    "a policy without a grant": ON + OWN % "to authenticated",
    "restrictive alone": ON + "create policy r on {t} as restrictive using (true);"
    "grant select on {t} to authenticated;",
    "a grant to users, a policy to a group of one of them": ON + OWN % "to test_group"
    + "grant select on {t} to authenticated;",
    "security off, all granted": "grant select on {t} to anon, authenticated, test_group;",
    "a grant without a policy": ON + "grant select on {t} to authenticated, anon, test_rider;",
    "granted to everybody": "grant select on {t} to public;",
    "other roles": ON + "create policy p on {t} for select to test_analyst, test_group using ({anns});"
    "grant select on {t} to test_analyst, test_group with grant option;",
    "a grant to users, a policy to a role of theirs": ON + OWN % "to test_rider"
    + "grant select on {t} to authenticated;",
    "security off, nothing granted": "",
    "granted to everybody, with a policy": ON + OWN % "to test_analyst" + "grant select on {t} to public;",
    "all may read": ON + "create policy p on {t} using (true);grant select on {t} to anon;",
}  # fmt: skip
WORDS = {
    "push_notifications": {"some": "title, status", "anns": "title = 'a'"},
    "push_devices": {"some": "token", "anns": "token = 'phone of Ann'"},
    "telemetry_logs": {"some": "type, message", "anns": "message = 'of Ann'"},
}


def given_on(**given: str) -> str:
    """SQL for tables on which these are given; the log is secured, and granted to nobody."""
    return ON.format(t="push_delivery_logs") + "".join(
        GIVEN[name].format(t=table, **WORDS[table]) for table, name in given.items()
    )


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


# One of the ways on each table: a table's privileges have nothing to do with another's.
_NAMES = list(GIVEN)
TOGETHER = [
    (Regime.NEW, dict(zip(WORDS, (_NAMES[(n + 5 * place) % len(_NAMES)] for place in range(3)), strict=True)))
    for n in range(5)
]
# The old default privileges grant all tables to users, so what the others grant makes no difference there.
TOGETHER.append(
    (
        Regime.OLD,
        {
            "push_notifications": "security off, nothing granted",
            "push_devices": "restrictive alone",
            "telemetry_logs": "a policy without a grant",
        },
    )
)


@pytest.mark.parametrize(
    ("regime", "given_before"),
    TOGETHER,
    ids=lambda each: "; ".join(each.values()) if isinstance(each, dict) else each,
)
def test_each_role_reads_what_it_read_before(
    postgres: Server, regime: Regime, given_before: dict[str, str]
) -> None:
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, regime, QUEUE + ROWS + given_on(**given_before))
        compare(database)


def test_so_in_an_application_with_everything(postgres: Server) -> None:
    with postgres.database(Template.SUPABASE) as database:
        rows = (
            "insert into public.push_notifications (driver_id, title, body, status) "
            f"values ('{ANN}', 'a', 'b', 'sent');"
        )
        prepare(database, Regime.OLD, APPLICATION + rows)
        compare(database)


_TABLES = st.sampled_from(sorted(WORDS))
_GRANTEES = st.sampled_from(["anon", "authenticated", "public", "test_rider", "test_analyst", "test_group"])
GRANTS = st.builds(
    lambda table, some, grantee: (
        f"grant select {some.format(**WORDS[table])} on public.{table} to {grantee};"
    ),
    _TABLES,
    st.sampled_from(["", "({some})"]),
    _GRANTEES,
)
POLICIES = st.builds(
    lambda name, table, kind, command, grantee, condition: (
        f"create policy p{name.hex} on public.{table} as {kind} for {command} to {grantee} "
        f"using ({condition.format(**WORDS[table])});"
    ),
    st.uuids(),
    _TABLES,
    st.sampled_from(["permissive", "permissive", "restrictive"]),
    st.sampled_from(["select", "all", "update"]),
    _GRANTEES,
    st.sampled_from(["true", "user_id = (select auth.uid())", "{anns}"]),
)


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second: to shrink one, minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sets(_TABLES), st.lists(GRANTS, max_size=6), st.lists(POLICIES, max_size=6))
def test_whatever_was_granted_before(
    postgres: Server, secured: set[str], granted: list[str], policies: list[str]
) -> None:
    on = [ON.format(t=table) for table in sorted(secured)]
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE + ROWS + "".join([*on, *granted, *policies]))
        compare(database)


def test_users_may_be_let_read_the_new_columns(postgres: Server) -> None:
    """For an application that asks for select *; it is told before that this would be refused."""
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE + ROWS + given_on(push_notifications="as most do"))
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
