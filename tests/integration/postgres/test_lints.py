"""The rules of Supabase's database linter, as queries of our own over the migrated database.

Rules and numbers: Supabase, Database Advisors (the lint set splinter).
"""

from __future__ import annotations

import psycopg

from tests.support.access import APPLICATION, Regime, project
from tests.support.postgres import Database, Server

# Each returns the object and what is wrong with it. Names are qualified: the search path is empty.
LINTS = {
    "0001 unindexed foreign key": """
        select k.conrelid::regclass::text, k.conname::text
          from pg_constraint k
          where k.contype = 'f' and k.connamespace = any ($schemas) and not exists (
            select from pg_index i
              where i.indrelid = k.conrelid and i.indisvalid and i.indpred is null
                and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
    """,
    "0003 auth function called for each row": r"""
        select format('%I.%I', schemaname, tablename), policyname::text
          from pg_policies
          where schemaname::regnamespace = any ($schemas)
            and regexp_replace(concat(qual, ' ', with_check), '\( *select +auth\.\w+\(\)', '', 'gi')
                ~ 'auth\.(uid|role|jwt|email)\(\)|current_setting\('
    """,
    "0006 several permissive policies": """
        select p.polrelid::regclass::text, format('%s %s', r.rolname, command)
          from pg_policy p
          join pg_class c on c.oid = p.polrelid and c.relnamespace = any ($schemas)
          join pg_roles r on (r.oid = any (p.polroles) or p.polroles = '{0}') and not r.rolbypassrls
            and not r.rolsuper and not starts_with(r.rolname, 'pg_')
          cross join unnest(array['r', 'a', 'w', 'd']) command
          where p.polpermissive and p.polcmd in (command::"char", '*')
          group by p.polrelid, r.rolname, command
          having count(*) > 1
    """,
    "0007 policies without row-level security": """
        select distinct c.oid::regclass::text, 'off'
          from pg_policy p
          join pg_class c on c.oid = p.polrelid and c.relnamespace = any ($schemas) and not c.relrowsecurity
    """,
    "0008 row-level security without policies": """
        select c.oid::regclass::text, 'no policy'
          from pg_class c
          where c.relkind = 'r' and c.relnamespace = any ($schemas) and c.relrowsecurity
            and not exists (select from pg_policy p where p.polrelid = c.oid)
    """,
    "0009 duplicate index": """
        select i.indrelid::regclass::text, string_agg(c.relname, ' ')
          from pg_index i
          join pg_class c on c.oid = i.indexrelid and c.relnamespace = any ($schemas)
          group by i.indrelid, i.indkey::text, i.indclass::text, i.indoption::text, i.indisunique,
                   pg_get_expr(i.indpred, i.indrelid), pg_get_expr(i.indexprs, i.indrelid)
          having count(*) > 1
    """,
    "0010 security definer view": """
        select c.oid::regclass::text, 'without security_invoker'
          from pg_class c
          where c.relkind = 'v' and c.relnamespace = any ($schemas)
            and not coalesce(c.reloptions, '{}') && '{security_invoker=true,security_invoker=on,security_invoker=1}'
            and (has_any_column_privilege('anon', c.oid, 'select')
                 or has_any_column_privilege('authenticated', c.oid, 'select'))
    """,
    "0011 function with a mutable search path": """
        select p.oid::regprocedure::text, 'search_path not set'
          from pg_proc p
          where p.pronamespace = any ($schemas)
            and not exists (select from unnest(p.proconfig) setting where starts_with(setting, 'search_path='))
    """,
    "0013 row-level security off": """
        select c.oid::regclass::text, 'off'
          from pg_class c
          where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace and not c.relrowsecurity
    """,
    # Of a reading policy `true` may be meant; what a listener's own role may write is a matter of its privileges.
    "0024 policy that is always true": """
        select p.polrelid::regclass::text, p.polname::text
          from pg_policy p
          join pg_class c on c.oid = p.polrelid and c.relnamespace = any ($schemas) and c.relrowsecurity
          where p.polpermissive and p.polcmd <> 'r'
            and exists (select from unnest(p.polroles) role
                          where role in (0, 'anon'::regrole, 'authenticated'::regrole))
            and ('true' in (pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
                 or p.polcmd = 'a' and p.polwithcheck is null
                 or p.polcmd <> 'a' and p.polqual is null
                 or concat(pg_get_expr(p.polqual, p.polrelid), ' ', pg_get_expr(p.polwithcheck, p.polrelid))
                    ~ '\\(?(\\S+) = \\1\\)?')
    """,
    "0028 definer function for anon": """
        select p.oid::regprocedure::text, 'anon may execute it'
          from pg_proc p
          where p.pronamespace = any ($schemas) and p.prosecdef and has_function_privilege('anon', p.oid, 'execute')
    """,
    "0029 definer function for authenticated": """
        select p.oid::regprocedure::text, 'authenticated may execute it'
          from pg_proc p
          where p.pronamespace = any ($schemas) and p.prosecdef
            and has_function_privilege('authenticated', p.oid, 'execute')
    """,
}

PLANTED = {
    "0001": "create table public.kept (push_id uuid references public.push_notifications)",
    "0003": "create policy p on public.telemetry_logs for select to authenticated using (user_id = auth.uid())",
    "0006": "create policy p on public.push_notifications for all to authenticated using (title = 'x')",
    "0007": "alter table public.push_notifications disable row level security",
    "0008": "create table public.kept (); alter table public.kept enable row level security",
    "0009": "create index twice on public.push_delivery_logs (push_id)",
    "0010": "create view public.seen as select title from public.push_notifications; "
    "grant select on public.seen to authenticated",
    "0011": "create function public.f() returns integer language sql return 1",
    "0013": "create table public.kept ()",
    "0024": "create policy p on public.telemetry_logs for insert to authenticated with check (true)",
    "0028": "create function public.f() returns integer security definer language sql return 1",
    "0029": "grant execute on function public.fetch_pending_pushes(integer) to authenticated",
}

SERVER_ONLY = {
    "push_listener.daily_counts",
    "push_listener.telemetry_batches",
    "push_listener.telemetry_use",
}
"""Row-level security is on and nobody has a policy (0008): only roles that bypass it, and functions, come here."""

FOR_DEVICES = {
    "public.get_push(uuid)",
    "public.record_delivery_receipt(uuid,text,text,jsonb,timestamp with time zone)",
    "public.record_delivery_receipts(jsonb[])",
    "public.register_device(text,text,uuid)",
    "public.unregister_device(text)",
    "public.flush_telemetry(jsonb[],uuid)",
}
"""Definer functions that a signed-in user has to call (0029); each does its work for that user only."""

Finding = tuple[str, str]


def lint(connection: psycopg.Connection[tuple[object, ...]], name: str) -> set[Finding]:
    connection.execute("set search_path = ''")
    schemas = "array(select oid from pg_namespace where nspname in ('public', 'push_listener'))"
    rows = connection.execute(LINTS[name].replace("$schemas", schemas).encode()).fetchall()
    return {(str(found), str(detail)) for found, detail in rows}


def excused(name: str, findings: set[Finding]) -> set[Finding]:
    """What a finding is no fault for, as documented above."""
    exceptions = {"0008": SERVER_ONLY, "0029": FOR_DEVICES}.get(name[:4], set())
    return {finding for finding in findings if finding[0] in exceptions}


def test_no_rule_is_broken(database: Database) -> None:
    faults = []
    with psycopg.connect(database.dsn) as connection:
        for name in LINTS:
            findings = lint(connection, name)
            faults += [f"{name}: {each}" for each in findings - excused(name, findings)]
    assert not faults, "\n".join(faults)


def test_each_rule_can_be_broken(database: Database) -> None:
    unbroken = []
    with psycopg.connect(database.dsn) as connection:
        for name in LINTS:
            before = lint(connection, name)
            connection.execute(PLANTED[name[:4]].encode())
            findings = lint(connection, name) - before
            if not findings or excused(name, findings):
                unbroken.append(name)
            connection.rollback()
    assert not unbroken


def test_the_exceptions_are_there(database: Database) -> None:
    """An exception that nothing needs any more would hide the next fault."""
    with psycopg.connect(database.dsn) as connection:
        for number in ("0008", "0029"):
            name = next(each for each in LINTS if each.startswith(number))
            assert {found for found, _ in lint(connection, name)} == {
                "0008": SERVER_ONLY,
                "0029": FOR_DEVICES,
            }[number]


def test_server_only_tables_are_granted_to_no_user(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        for table in (*SERVER_ONLY, "public.telemetry_logs"):
            row = connection.execute(
                "select bool_or(has_any_column_privilege(role, %(table)s, 'select, insert, update')"
                " or has_table_privilege(role, %(table)s, 'delete, truncate')) "
                "from unnest(array['anon', 'authenticated']) role",
                {"table": table},
            ).fetchone()
            assert row == (False,), table


def test_functions_for_devices_bind_themselves_to_the_user(database: Database) -> None:
    """Each asks for the user of the request, and compares with it what it is given; hostile calls: test_functions."""
    with psycopg.connect(database.dsn) as connection:
        bodies = connection.execute(
            "select p.oid::regprocedure::text, p.prosrc || coalesce(own.prosrc, '') from pg_proc p "
            # The functions for one receipt and for many leave it to what they call for each.
            "left join pg_proc own on own.oid = 'push_listener.record_receipt(uuid, text, text, jsonb, timestamptz)'"
            "::regprocedure and p.prosrc like '%push_listener.record_receipt(%' "
            "where p.prosecdef"
        ).fetchall()
        caller = connection.execute(
            "select prosrc from pg_proc where oid = 'push_listener.caller_id()'::regprocedure"
        ).fetchone()
    assert caller is not None
    assert "return auth.uid();" in caller[0]
    assert "push_listener.trusts(" in caller[0]
    for name, body in bodies:
        if f"public.{name}" in FOR_DEVICES:
            assert "push_listener.caller_id()" in body, name
            assert "v_user" in body.partition("begin")[2], name


def test_adoption_breaks_no_rule(postgres: Server) -> None:
    """In a project with an application of its own: about our objects nothing, but for one thing.

    A policy that the application made for everybody holds for the listener's role too, beside that role's own
    (0006). It costs nothing: the planner drops both, see test_privileges.
    """
    with project(postgres, Regime.OLD, APPLICATION) as database, psycopg.connect(database.dsn) as connection:
        found = {name[:4]: lint(connection, name) for name in LINTS}
    applications = {"public.drivers", "public.touch()"}
    ours = {
        number: {finding for finding in findings if finding[0] not in applications}
        for number, findings in found.items()
    }
    expected: dict[str, set[Finding]] = {number: set() for number in ours}
    expected["0006"] = {
        ("public.push_notifications", "push_listener r"),
        ("public.push_notifications", "push_listener w"),
    }
    expected["0008"] = {(table, "no policy") for table in SERVER_ONLY}
    expected["0029"] = {(name, "authenticated may execute it") for name in FOR_DEVICES}
    assert ours == expected
