"""db/supabase is to plain Postgres what Supabase is to its own."""

from __future__ import annotations

import json
from uuid import UUID

import psycopg
import pytest

from listener.schema import migrate
from tests.support.postgres import Database

USER = UUID("6f1a2a5e-3a51-4f0c-9a4f-0d8f6c2b7a11")
OTHER = UUID("00000000-0000-4000-8000-000000000001")


def test_api_roles_have_the_attributes_that_supabase_gives_them(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn) as connection:
        rows = connection.execute(
            """
            select rolname, rolcanlogin, rolinherit, rolbypassrls, rolsuper or rolcreaterole or rolcreatedb
            from pg_roles where rolname in ('anon', 'authenticated', 'service_role', 'authenticator')
            """
        ).fetchall()
    assert sorted(rows) == [
        ("anon", False, True, False, False),
        ("authenticated", False, True, False, False),
        ("authenticator", True, False, False, False),
        ("service_role", False, True, True, False),
    ]


def test_postgres_is_the_projects_role_and_no_superuser(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn) as connection:
        row = connection.execute(
            """
            select current_user, rolsuper,
                   rolcreatedb, rolcreaterole, rolcanlogin, rolreplication, rolbypassrls,
                   pg_has_role('anon', 'member') and pg_has_role('authenticated', 'member')
                   and pg_has_role('service_role', 'member')
            from pg_roles where rolname = current_user
            """
        ).fetchone()
    assert row == ("postgres", False, True, True, True, True, True, True)


@pytest.mark.parametrize(("role", "limit"), [("anon", "3s"), ("authenticated", "8s")])
def test_api_roles_have_little_time_for_a_statement(blank_database: Database, role: str, limit: str) -> None:
    with psycopg.connect(blank_database.dsn) as connection:
        row = connection.execute("select rolconfig from pg_roles where rolname = %s", (role,)).fetchone()
    assert row == ([f"statement_timeout={limit}"],)


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_authenticator_may_become_each_api_role_and_has_nothing_of_it_before(
    blank_database: Database, role: str
) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        connection.execute("create table kept (); ")
        connection.execute(psycopg.sql.SQL("grant select on kept to {}").format(psycopg.sql.Identifier(role)))
    with psycopg.connect(blank_database.dsn_as("authenticator"), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select from kept")
        connection.execute(psycopg.sql.SQL("set role {}").format(psycopg.sql.Identifier(role)))
        connection.execute("select from kept")


def test_uid_is_the_subject_of_the_request(blank_database: Database) -> None:
    claims: dict[str, str] | None
    for claim, claims, expected in (
        (str(USER), None, USER),
        (None, {"sub": str(USER)}, USER),
        (str(USER), {"sub": str(OTHER)}, USER),
        ("", {"sub": str(USER)}, USER),
        (None, None, None),
        ("", None, None),
        (None, {"sub": ""}, None),
        (None, {"role": "anon"}, None),
    ):
        assert _as_request(blank_database, "auth.uid()", "sub", claim, claims) == expected, (claim, claims)


def test_uid_is_null_where_the_claims_were_set_and_reset(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        with connection.transaction():
            connection.execute("select set_config('request.jwt.claims', '{}', true)")
        # A setting of one's own is empty, and not unset, once it has been set in a transaction before.
        row = connection.execute(
            "select current_setting('request.jwt.claims', true), auth.uid(), auth.role(), auth.jwt()"
        ).fetchone()
    assert row == ("", None, None, None)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [("role", "role", "authenticated"), ("email", "email", "someone@example.com")],
)
def test_role_and_email_come_from_the_claims(
    blank_database: Database, function: str, name: str, value: str
) -> None:
    call = f"auth.{function}()"
    assert _as_request(blank_database, call, name, value, None) == value
    assert _as_request(blank_database, call, name, None, {name: value}) == value
    assert _as_request(blank_database, call, name, None, {name: ""}) is None


def test_jwt_is_all_the_claims(blank_database: Database) -> None:
    claims = {"sub": str(USER), "role": "authenticated"}
    assert _as_request(blank_database, "auth.jwt()", "sub", None, claims) == claims


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_every_api_role_may_ask_who_it_is(blank_database: Database, role: str) -> None:
    assert _as_request(blank_database, "auth.uid()", "sub", str(USER), None, role=role) == USER


def test_functions_of_auth_are_stable(blank_database: Database) -> None:
    """Else a policy calls them for each row even in a sub-select."""
    with psycopg.connect(blank_database.dsn) as connection:
        rows = connection.execute(
            "select proname, provolatile from pg_proc where pronamespace = 'auth'::regnamespace"
        ).fetchall()
    assert sorted(rows) == [("email", "s"), ("jwt", "s"), ("role", "s"), ("uid", "s")]


def test_nothing_may_be_created_in_auth(blank_database: Database) -> None:
    with (
        psycopg.connect(blank_database.dsn) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("create table auth.mine ()")


OBJECTS = "create table made (id bigserial); create function made() returns int language sql return 1"
API_ROLES = "unnest(array['anon', 'authenticated', 'service_role']) role"


def test_old_projects_grant_all_that_is_new(blank_database: Database) -> None:
    assert _privileges_of_new_objects(blank_database, "privileges_old.sql") == {(True, True, True, True)}


def test_new_projects_grant_nothing_but_what_postgres_does(blank_database: Database) -> None:
    _privileges_of_new_objects(blank_database, "privileges_old.sql")
    with psycopg.connect(blank_database.dsn) as connection:
        connection.execute("drop table made; drop function made()")
    # A function is executable by PUBLIC in any Postgres.
    assert _privileges_of_new_objects(blank_database, "privileges_new.sql") == {(False, False, False, True)}


def test_a_blank_database_is_a_new_project(blank_database: Database) -> None:
    assert _privileges_of_new_objects(blank_database, None) == {(False, False, False, True)}


def test_it_may_be_applied_again(blank_database: Database) -> None:
    directory = migrate.sql_directory("supabase")
    with psycopg.connect(blank_database.superuser_dsn, autocommit=True) as connection:
        for path in sorted(directory.glob("[0-9]*.sql")):
            connection.execute(path.read_bytes())


def _privileges_of_new_objects(database: Database, regime: str | None) -> set[tuple[object, ...]]:
    """(select, truncate, sequence, execute) of each API role on objects that the project's role makes."""
    if regime:
        with psycopg.connect(database.superuser_dsn) as connection:
            connection.execute((migrate.sql_directory("supabase") / regime).read_bytes())
    with psycopg.connect(database.dsn) as connection:
        connection.execute(OBJECTS)
        rows = connection.execute(
            f"""
            select has_table_privilege(role, 'made', 'select'), has_table_privilege(role, 'made', 'truncate'),
                   has_sequence_privilege(role, 'made_id_seq', 'usage'),
                   has_function_privilege(role, 'made()', 'execute')
            from {API_ROLES}
            """
        ).fetchall()
    assert len(rows) == 3
    return set(rows)


def _as_request(
    database: Database,
    expression: str,
    name: str,
    claim: str | None,
    claims: dict[str, str] | None,
    role: str = "authenticated",
) -> object:
    """``expression`` as PostgREST would evaluate it for a request with these claims."""
    with psycopg.connect(database.dsn_as("authenticator")) as connection:
        connection.execute(psycopg.sql.SQL("set local role {}").format(psycopg.sql.Identifier(role)))
        if claim is not None:
            connection.execute("select set_config(%s, %s, true)", (f"request.jwt.claim.{name}", claim))
        if claims is not None:
            connection.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps(claims),))
        row = connection.execute(f"select {expression}".encode()).fetchone()
    assert row is not None
    return row[0]
