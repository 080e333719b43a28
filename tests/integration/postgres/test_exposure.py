"""Every way to cause, change or read a push is told, with what closes it; and what closes it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from listener.schema import exposure, migrate
from listener.schema.exposure import Way
from tests.support.access import Regime, prepare, project
from tests.support.postgres import Database, Server, Template

QUEUE = """
create table public.push_notifications (
  id uuid primary key default gen_random_uuid(), driver_id uuid, user_id uuid, title text not null, body text not null,
  data jsonb, status text not null default 'pending', created_at timestamptz default now());
alter table public.push_notifications enable row level security;
"""
DEFINER = "security definer set search_path = public"

# Role, effect and object of the way that has to be told, and what the application did.
WAYS = {
    "definer function that enqueues": (
        "anon", "cause", "public.tell(uuid,text)",
        f"create function tell(p_user uuid, p_title text) returns void language sql {DEFINER} as "
        "$$ insert into push_notifications (user_id, title, body) values (p_user, p_title, '') $$",
    ),
    "definer function that makes a sent push due again": (
        "anon", "change", "public.again(uuid)",
        f"create function again(p_id uuid) returns void language plpgsql {DEFINER} as "
        "$$ begin update only public . push_notifications set status = 'pending' where id = p_id; end $$",
    ),
    "definer function that reads": (
        "authenticated", "read", "public.latest()",
        f"create function latest() returns setof push_notifications language sql {DEFINER} as "
        "$$ select * from push_notifications $$",
    ),
    "definer procedure": (
        "anon", "change", "public.tidy()",
        f"create procedure tidy() language sql {DEFINER} as $$ delete from \"push_notifications\" $$",
    ),
    "standard SQL body": (
        "anon", "cause", "public.std(uuid)",
        "create function std(p uuid) returns void language sql security definer "
        "begin atomic insert into push_notifications (user_id, title, body) values (p, 't', 'b'); end",
    ),
    "dynamic SQL": (
        "anon", "cause", "public.dynamic(text)",
        f"create function dynamic(p text) returns void language plpgsql {DEFINER} as "
        "$$ begin execute format('insert into %I (title, body) values (%L, 1)', 'push_notifications', p); end $$",
    ),
    "definer function that calls one that enqueues": (
        "anon", "cause", "public.outer_one()",
        "create function inner_one() returns void language sql as "
        "$$ insert into push_notifications (title, body) values ('t', 'b') $$; "
        f"create function outer_one() returns void language plpgsql {DEFINER} as $$ begin perform inner_one(); end $$",
    ),
    "definer function that calls one whose name has to be quoted": (
        "anon", "change", "public.outer_two()",
        'create function "Tidy(all"() returns void language sql as $$ delete from push_notifications $$; '
        f"create function outer_two() returns void language sql {DEFINER} as "
        """$$ select "Tidy(all"() $$""",
    ),
    "definer function that reads a view": (
        "anon", "read", "public.latest_titles()",
        "create view titles with (security_invoker = true) as select title from push_notifications; "
        f"create function latest_titles() returns setof text language sql {DEFINER} as $$ select title from titles $$",
    ),
    "in another schema": (
        "anon", "cause", "app.tell()",
        "create schema app; grant usage on schema app to anon; "
        f"create function app.tell() returns void language sql {DEFINER} as "
        "$$ insert into push_notifications (title, body) values ('t', 'b') $$",
    ),
    "through push-listener's own function": (
        "anon", "cause", "public.mine(text)",
        f"create function mine(p text) returns uuid language plpgsql {DEFINER} as "
        "$$ begin return enqueue_push(p_topic => 'all', p_title => p); end $$",
    ),
    "quoted names": (
        "anon", "cause", "public.dumped(uuid)",
        f"create function dumped(p uuid) returns void language sql {DEFINER} as "
        "$$ insert into \"public\".\"push_notifications\" (user_id, title, body) values (p, 't', 'b') $$",
    ),
    "a comment between": (
        "anon", "change", "public.commented()",
        f"create function commented() returns void language sql {DEFINER} as "
        "$$ update -- all of them\n /* of */ public . push_notifications set status = 'pending' $$",
    ),
    "merge": (
        "anon", "cause", "public.merged()",
        f"create function merged() returns void language sql {DEFINER} as "
        "$$ merge into push_notifications p using (select 1) s on false "
        "when not matched then insert (title, body) values ('t', 'b') $$",
    ),
    "definer function that writes to a view": (
        "anon", "cause", "public.viewed()",
        "create view \"Out (box)\" with (security_invoker = true) as select * from push_notifications; "
        f"create function viewed() returns void language sql {DEFINER} as "
        "$$ insert into \"Out (box)\" (title, body) values ('t', 'b') $$",
    ),
    "definer function that calls one with an odd name": (
        "anon", "cause", "public.calls_odd()",
        "create function \"send.Push (now)\"() returns void language sql as "
        "$$ insert into push_notifications (title, body) values ('t', 'b') $$; "
        f"create function calls_odd() returns void language plpgsql {DEFINER} as "
        "$$ begin perform public.\"send.Push (now)\"(); end $$",
    ),
    "trigger of another table": (
        "authenticated", "cause", "public.messages",
        f"create function on_message() returns trigger language plpgsql {DEFINER} as "
        "$$ begin insert into push_notifications (user_id, title, body) values (new.to_user, 't', 'b'); "
        "return new; end $$; "
        "create table messages (to_user uuid); grant insert on messages to authenticated; "
        "create trigger told after insert on messages for each row execute function on_message()",
    ),
    "row-level security off": (
        "authenticated", "read", "public.push_notifications",
        "alter table push_notifications disable row level security; "
        "grant select on push_notifications to authenticated",
    ),
    "policy for any user": (
        "authenticated", "cause", "public.push_notifications",
        "create policy add on push_notifications for insert to authenticated "
        "with check (driver_id = (select auth.uid())); grant insert on push_notifications to authenticated",
    ),
    "policy that reads all": (
        "anon", "read", "public.push_notifications",
        "create policy p on push_notifications for select using (true); "
        "grant select (title) on push_notifications to anon",
    ),
    "view": (
        "anon", "read", "public.shown",
        "create view shown as select title from push_notifications; grant select on shown to anon",
    ),
    "view of a view, to write": (
        "anon", "cause", "public.second",
        "create view first as select * from push_notifications; create view second as select * from first; "
        "grant insert on second to anon",
    ),
    "materialized view": (
        "anon", "read", "public.kept",
        "create materialized view kept as select title from push_notifications; grant select on kept to anon",
    ),
    "truncate": (
        "authenticated", "change", "public.push_notifications",
        "grant truncate on push_notifications to authenticated",
    ),
    "trigger": ("test_lone", "change", "public.push_notifications", "grant trigger on push_notifications to test_lone"),
    "a role that bypasses": (
        "test_bypass", "read", "public.push_notifications", "grant select on push_notifications to test_bypass",
    ),
    "member of the owner": ("test_lone", "change", "postgres", "grant postgres to test_lone"),
    "tokens of the application": (
        "anon", "read", "public.profiles",
        "create table profiles (id uuid, fcm_token text); grant select on profiles to anon; "
        "create view push_recipients with (security_invoker = true) as "
        "select id as user_id, fcm_token as token, null::text as platform from profiles",
    ),
}  # fmt: skip

# None of these lets anybody in.
HARMLESS = {
    "invoker function": "create function f() returns void language sql as "
    "$$ insert into push_notifications (title, body) values ('t', 'b') $$",
    "definer function for nobody": f"create function f() returns void language sql {DEFINER} as "
    "$$ insert into push_notifications (title, body) values ('t', 'b') $$; revoke execute on function f() from public",
    "definer function about something else": f"create function f() returns void language sql {DEFINER} as "
    "$$ select 1 /* my_push_notifications_of */ $$",
    "view with the rights of who asks": "create view v with (security_invoker = true) as "
    "select * from push_notifications; grant select on v to anon",
    "view of a view with the rights of who asks": "create view v with (security_invoker = true) as "
    "select * from push_notifications; create view w as select * from v; grant select on w to anon",
    "grant without a policy": "grant select, insert on push_notifications to anon, authenticated",
    "policy without a grant": "create policy p on push_notifications using (true)",
    "a word that is the name of a function": "create function send() returns void language sql as "
    "$$ insert into push_notifications (title, body) values ('t', 'b') $$; "
    f"create function f() returns integer language sql {DEFINER} as $$ select 1 /* send it (all) */ $$",
    "trigger switched off": f"create function f() returns trigger language plpgsql {DEFINER} as "
    "$$ begin insert into push_notifications (title, body) values ('t', 'b'); return new; end $$; "
    "create table messages (); grant insert on messages to authenticated; "
    "create trigger t after insert on messages for each row execute function f(); "
    "alter table messages disable trigger t; revoke execute on function f() from public",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def roles(postgres: Server) -> Iterator[None]:
    with postgres.database(Template.SUPABASE) as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("create role test_lone login")
            superuser.execute("create role test_bypass nologin bypassrls")
        yield
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("drop role test_lone, test_bypass")


def unexpected(database: Database) -> list[Way]:
    with psycopg.connect(database.dsn) as connection:
        return [way for way in exposure.find(connection) if not way.expected]


def first_statement(remedy: str) -> str | None:
    """What of a remedy can be run as it stands."""
    if not re.match(r"(revoke|alter) ", remedy):
        return None
    return re.split(r"; |, or |, unless ", remedy)[0]


# Most of these change what the table itself grants, so that each is told from the others of its group alone. All other
# ways go together in one database.
ON_THE_TABLE = (
    ("row-level security off",),
    ("policy for any user", "truncate", "a role that bypasses", "member of the owner"),
    ("policy that reads all", "trigger"),
)
TOGETHER = (tuple(name for name in WAYS if not any(name in group for group in ON_THE_TABLE)), *ON_THE_TABLE)
TITLES = ["of functions and views", *(group[0] for group in ON_THE_TABLE)]


@pytest.mark.parametrize("names", TOGETHER, ids=TITLES)
def test_each_way_is_told_and_closed_by_what_is_said_before_adoption(
    postgres: Server, names: tuple[str, ...]
) -> None:
    # One of them needs a database that has push-listener's own function.
    names = tuple(name for name in names if name != "through push-listener's own function")
    with way_in(postgres, names) as database:
        faults = not_told_or_not_closed(database, names)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("names", TOGETHER, ids=TITLES)
def test_each_way_is_told_and_closed_by_what_is_said_after_adoption(
    postgres: Server, names: tuple[str, ...]
) -> None:
    with way_in(postgres, names) as database:
        migrate.apply(database.dsn)
        # A grant of TRUNCATE migrate has revoked.
        assert not any(way.privilege == "truncate" for way in unexpected(database))
        faults = not_told_or_not_closed(database, tuple(name for name in names if name != "truncate"))
    assert not faults, "\n".join(faults)


@contextmanager
def way_in(server: Server, names: tuple[str, ...]) -> Iterator[Database]:
    """A database in which an application has done these."""
    with server.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE)
        try:
            for name in names:
                dsn = database.superuser_dsn if name == "member of the owner" else database.dsn
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute(WAYS[name][3].encode())
            yield database
        finally:
            with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
                superuser.execute("revoke postgres from test_lone")


def not_told_or_not_closed(database: Database, names: tuple[str, ...]) -> list[str]:
    """Does what is said about each way, and tells which were not found or are still open."""
    told = unexpected(database)
    faults, closed = [], {}
    for name in names:
        role, effect, object_, _ = WAYS[name]
        found = [way for way in told if (way.object, way.effect) == (object_, effect) and role in way.roles]
        if len(found) != 1 or not (role in str(found[0]) or found[0].everybody):
            faults.append(f"{name}: {[str(way) for way in found or told]}")
            continue
        statement = first_statement(found[0].remedy)
        if statement is None:
            if name not in ("trigger of another table", "policy that reads all"):
                faults.append(f"{name}: {found[0].remedy}")
            continue
        closed[name] = found[0]
        with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
            superuser.execute("set search_path = pg_catalog")
            superuser.execute(statement.encode())
    left = unexpected(database)
    for name, way in closed.items():
        role = WAYS[name][0]
        still = [
            each
            for each in left
            if (each.object, each.effect, each.privilege) == (way.object, way.effect, way.privilege)
            and role in each.roles
            and (each.policy is None or each.names_any_user)
        ]
        faults += [f"{name} is not closed by {way.remedy}: {each}" for each in still]
    return faults


def test_names_are_no_regular_expressions(postgres: Server) -> None:
    """Anybody who may create a function chooses its name, and could keep the owner from looking."""
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE)
        for name in ("*", "a(", "(a*)*b", "\\m", ""):
            with psycopg.connect(database.dsn, autocommit=True) as owner:
                owner.execute(
                    sql.SQL("create function public.{}() returns void language sql as {}").format(
                        sql.Identifier(f"x{name}"), sql.Literal("select 1 /* push_notifications */")
                    )
                )
            assert unexpected(database) == [], name


FIRED = {
    "push_devices": ["public.register_device"],
    "telemetry_logs": ["public.flush_telemetry"],
    "push_delivery_logs": ["public.record_delivery_receipt", "public.record_delivery_receipts"],
}


@pytest.mark.parametrize("rights", ["", DEFINER], ids=["of who writes", "of its owner"])
def test_a_trigger_that_our_functions_fire_for_users_is_told(database: Database, rights: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        for table in FIRED:
            owner.execute(
                f"create function on_{table}() returns trigger language plpgsql {rights} as "
                "$$ begin insert into public.push_notifications (topic, title) values ('all', 't'); "
                "return new; end $$; "
                f"create trigger on_{table} after insert on {table} for each row execute function on_{table}(); "
                f"revoke execute on function on_{table}() from public".encode()
            )
    ways = unexpected(database)
    found = sorted((way.by, way.object.partition("(")[0]) for way in ways)
    assert found == sorted(
        (f'trigger "on_{table}"', function) for table, functions in FIRED.items() for function in functions
    )
    assert {(way.effect, *way.roles) for way in ways} == {("cause", "authenticated")}


@pytest.mark.parametrize("role", ["authenticated", "test_stepping"])
def test_a_user_who_is_a_service_and_a_role_that_may_become_one_are_told(postgres: Server, role: str) -> None:
    with (
        postgres.database(Template.MIGRATED) as database,
        psycopg.connect(database.superuser_dsn, autocommit=True) as superuser,
    ):
        superuser.execute("create role test_stepping noinherit")
        try:
            superuser.execute(f"grant service_role to {role}".encode())
            (way,) = unexpected(database)
            assert (way.effect, way.roles, way.object) == ("cause", [role], "service_role")
            superuser.execute((first_statement(way.remedy) or "").encode())
            assert unexpected(database) == []
        finally:
            superuser.execute(f"revoke service_role from {role}; drop role test_stepping".encode())


def test_what_lets_nobody_in_is_not_told(postgres: Server) -> None:
    faults = []
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE)
        for name, script in HARMLESS.items():
            with psycopg.connect(database.dsn) as connection:
                connection.execute(script.encode())
                faults += [f"{name}: {way}" for way in exposure.find(connection) if not way.expected]
                connection.rollback()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("regime", list(Regime))
def test_in_a_project_of_its_own_there_is_no_other_way(
    postgres: Server, blank_database: Database, regime: Regime
) -> None:
    prepare(blank_database, regime, "")
    assert unexpected(blank_database) == []
    with project(postgres, regime) as database, psycopg.connect(database.dsn) as connection:
        ways = exposure.find(connection)
    assert [str(way) for way in ways if not way.expected] == []
    meant = {(role, way.effect) for way in ways for role in way.roles}
    assert {("service_role", "cause"), ("push_listener", "change"), ("authenticated", "read")} <= meant
    assert not [role for role, _ in meant if role == "anon"]


# Functions as an earlier version of an application had them: their names and arguments are push-listener's.
REFUSED = """
create function public.fetch_pending_pushes(p_limit integer default 50) returns setof public.push_notifications
  language sql security definer as $$ select * from public.push_notifications where status = 'pending' limit p_limit $$;
create function public.mark_push_sent(p_push_id uuid) returns void language sql security definer
  as $$ update public.push_notifications set status = 'sent' where id = p_push_id $$;
create procedure public.cancel_push(p_push_id uuid) language sql security definer
  as $$ update public.push_notifications set status = 'pending' where id = p_push_id $$;
"""


@pytest.mark.parametrize(("regime", "way_out"), [(Regime.OLD, "rename"), (Regime.NEW, "drop")])
def test_the_advice_about_a_name_that_is_taken_leaves_nothing_open(
    postgres: Server, regime: Regime, way_out: str
) -> None:
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, regime, QUEUE + REFUSED)
        with pytest.raises(migrate.MigrationError) as refused:
            migrate.apply(database.dsn)
        advice = [line for line in str(refused.value).splitlines() if "push-listener's own" in line]
        assert len(advice) == 3
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            for number, line in enumerate(advice):
                if way_out == "drop":
                    statements = re.findall(r"drop (?:function|procedure) [^;]*\)", line)
                else:
                    statements = re.findall(
                        r"revoke execute on (?:function|procedure) .* from [a-z_, ]+(?=, and)", line
                    )
                    statements += [
                        each.replace("...", f"app_{number}")
                        for each in re.findall(r"alter (?:function|procedure) .* rename to \.\.\.", line)
                    ]
                assert len(statements) == (1 if way_out == "drop" else 2), line
                for statement in statements:
                    owner.execute(statement.encode())
        migrate.apply(database.dsn)
        assert [str(way) for way in unexpected(database)] == []
        if way_out == "rename":
            with psycopg.connect(database.superuser_dsn) as superuser:
                open_to = superuser.execute(
                    "select oid::regprocedure::text from pg_proc where proname like 'app%' and "
                    "(has_function_privilege('anon', oid, 'execute') "
                    "or has_function_privilege('authenticated', oid, 'execute'))"
                ).fetchall()
            assert open_to == []


def test_a_users_insert_policy_can_be_bound_to_the_user(postgres: Server) -> None:
    """As a policy of the application has it, one user pushes to another; with what is said, no more."""
    ann, bob = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
    script = WAYS["policy for any user"][3]
    with postgres.database(Template.SUPABASE) as database:
        prepare(database, Regime.NEW, QUEUE + script)
        migrate.apply(database.dsn)
        add = (
            "insert into public.push_notifications (driver_id, user_id, title, body) "
            f"values ('{ann}', '{{}}', 't', 'b')"
        )
        with psycopg.connect(database.dsn_as("authenticator"), autocommit=True) as user:
            user.execute("set role authenticated")
            user.execute("select set_config('request.jwt.claims', %s, false)", (f'{{"sub": "{ann}"}}',))
            user.execute(add.format(bob).encode())
            (way,) = [way for way in unexpected(database) if way.names_any_user]
            with psycopg.connect(database.dsn, autocommit=True) as owner:
                owner.execute((first_statement(way.remedy) or "").encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(add.format(bob).encode())
            user.execute(add.format(ann).encode())


def test_a_user_who_may_become_an_operator_is_told(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("grant push_listener_operator to authenticated")
        try:
            (way,) = (way for way in unexpected(database) if way.object == "push_listener_operator")
            assert (way.effect, way.privilege) == ("cause", "set role")
            assert "authenticated" in way.roles
            superuser.execute((first_statement(way.remedy) or "").encode())
            assert not any(way.object == "push_listener_operator" for way in unexpected(database))
        finally:
            superuser.execute("revoke push_listener_operator from authenticated")
