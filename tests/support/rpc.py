"""Functions called as PostgREST calls them: a role, the claims of a token, arguments by name from a JSON body."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from tests.support.postgres import Database
from tests.support.service import PATIENCE

Connection = psycopg.Connection[tuple[Any, ...]]

NO_TIMEOUT = "-c statement_timeout=0"
"""Options of a session: a request of ``authenticator`` has 8 s otherwise. A busy machine may need longer than that."""


@dataclass(frozen=True)
class Caller:
    """Who a request comes from, as its token has it."""

    role: str
    user: str | None = None


@contextmanager
def session(database: Database) -> Iterator[Connection]:
    """A connection of PostgREST's, for many requests."""
    with psycopg.connect(database.dsn_as("authenticator"), autocommit=True, options=NO_TIMEOUT) as connection:
        yield connection


@contextmanager
def request(where: Database | Connection, caller: Caller) -> Iterator[Connection]:
    """A transaction as PostgREST opens it for one request, on a connection of its own or on this one."""
    with ExitStack() as stack:
        if isinstance(where, Database):
            connection = stack.enter_context(
                psycopg.connect(where.dsn_as("authenticator"), options=NO_TIMEOUT)
            )
        else:
            connection = where
            stack.enter_context(connection.transaction())
        connection.execute(sql.SQL("set local role {}").format(sql.Identifier(caller.role)))
        claims = {"role": caller.role, "sub": caller.user}
        connection.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps(claims),))
        yield connection


def post(connection: Connection, function: str, body: str) -> list[tuple[Any, ...]]:
    """``POST /rpc/function`` with that body: its keys are the named arguments, converted by Postgres."""
    given = connection.execute(
        """
        select distinct a.name, format_type(p.proargtypes[a.place - 1], null)
          from pg_proc p, unnest(p.proargnames[:p.pronargs]) with ordinality a(name, place)
          where p.pronamespace = 'public'::regnamespace and p.proname = %s and a.name = any (%s)
        """,
        (function, re.findall(r'"(p_\w+)": ', body)),
    ).fetchall()
    if not given:
        return connection.execute(
            sql.SQL("select * from public.{}()").format(sql.Identifier(function))
        ).fetchall()
    names = [sql.Identifier(name) for name, _ in given]
    statement = sql.SQL("select f.* from json_to_record(%s) as body({}), public.{}({}) as f").format(
        sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(k)) for n, k in given),
        sql.Identifier(function),
        sql.SQL(", ").join(sql.SQL("{0} := body.{0}").format(name) for name in names),
    )
    return connection.execute(statement, (body,)).fetchall()


def rpc(database: Database, caller: Caller, function: str, **arguments: object) -> Any:
    """One request; the first column of the first row of its result."""
    with request(database, caller) as connection:
        return post(connection, function, json.dumps(arguments))[0][0]


def refusal(where: Database | Connection, caller: Caller, function: str, body: str) -> str:
    """The SQLSTATE with which a request is refused, or what it returned."""
    try:
        with request(where, caller) as connection:
            return f"not refused: {post(connection, function, body)}"
    except psycopg.Error as error:
        return error.sqlstate or type(error).__name__


class Second:
    """A request on a thread of its own, which has to wait for another one."""

    def __init__(self, database: Database, caller: Caller, function: str, **arguments: object) -> None:
        self.result: Any = None
        self.rows: list[tuple[Any, ...]] = []
        self._database = database
        self._pid = 0
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(caller, function, json.dumps(arguments)))

    def _run(self, caller: Caller, function: str, body: str) -> None:
        try:
            with request(self._database, caller) as connection:
                self._pid = connection.info.backend_pid
                self._begun.set()
                self.rows = post(connection, function, body)
                self.result = self.rows[0][0]
        except psycopg.Error as error:
            self.result = error.diag.sqlstate

    def wait_until_blocked(self) -> None:
        self._thread.start()
        assert self._begun.wait(PATIENCE)
        with psycopg.connect(self._database.superuser_dsn, autocommit=True) as connection:
            while self._thread.is_alive():
                row = connection.execute("select cardinality(pg_blocking_pids(%s))", (self._pid,)).fetchone()
                if row and row[0]:
                    return
        pytest.fail(f"did not wait, but returned {self.result}")

    def join(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.result


def use_every_function(connection: Connection) -> None:
    """As its owner: what Supabase calls a service."""
    user = str(uuid4())

    def value(call: str, *arguments: object) -> Any:
        row = connection.execute(f"select public.{call}".encode(), arguments).fetchone()
        assert row is not None
        return row[0]

    made = value("enqueue_push(p_user_id => %s, p_title => 'hello')", user)
    assert connection.execute("select id from public.fetch_pending_pushes()").fetchall() == [(made,)]
    assert value("mark_push_failed(%s, 'no')", made) == "failed"
    assert value("cancel_push(%s)", made) is True
    assert value("requeue_pushes(p_ids => array[%s::uuid])", made) == 1
    assert connection.execute("select id from public.fetch_pending_pushes()").fetchall() == [(made,)]
    assert value("mark_push_sent(%s)", made) == "sent"
    assert value("register_device('phone', 'web', %s)", user) == ""
    assert value("record_delivery_receipt(%s, 'phone', 'clicked')", made) is True
    assert value("get_push(%s)", made)["devices"][0]["status"] == "clicked"
    events = (
        f'{{"push_id": "{made}", "device_token": "phone", "status": "opened", "at": "2026-01-01T00:00:00Z"}}'
    )
    assert value("record_delivery_receipts(array[%s::jsonb])", events)[1] == "t"
    assert value("unregister_device('phone')") is True
    assert value("""enqueue_pushes(array['{"topic": "a", "title": "b"}'::jsonb])""")[2] == "t"
    for _ in range(2):
        batch = """flush_telemetry(array['{"type": "a", "message": "b"}'::jsonb], %s)"""
        assert value(batch, made)["accepted"] == 1
    assert value("""flush_telemetry(array['{"type": "a", "message": "b"}'::jsonb])""")["accepted"] == 1
