"""What runs often reads what waits, and never the history, whatever Postgres knows of the tables' sizes.

Each statement runs on a table with many finished rows and few waiting ones, and the rows read are counted: by
Postgres, in whatever functions the statement may call, and node by node in the plan of the statement itself. Each
is then run without the index it lives by, and has to be caught.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from listener.postgres import claiming, connect, overview, queue, settlements, workers
from listener.postgres.locks import LIVENESS_CLASS
from listener.postgres.statements import numbered
from listener.schema import migrate, retention, served
from tests.support.attacks import other_types
from tests.support.postgres import Database, Server, Template

Connection = psycopg.Connection[tuple[Any, ...]]

HISTORY = 30_000
WAITING = 200
BATCH = 50
ENOUGH = 3_000
"""Rows of the queue and of its log that a statement may read: a tenth of the history, and far more than it needs."""

MANY = HISTORY // 3
"""Rows of which a statement reads only some, where it matters that it does not read all of them."""

TABLES = ["push_notifications", "push_delivery_logs"]

_FINISHED = """
insert into push_notifications (id, device_token, title, data, status, next_attempt_at, created_at, updated_at, sent_at)
select md5('push' || n)::uuid, 'token-' || n, 'Your ride is here', jsonb_build_object('ride', n),
       (array['sent', 'delivered', 'sent', 'dead', 'sent', 'expired', 'sent', 'cancelled'])[1 + n %% 8], null,
       now() - age, now() - age, now() - age
  from generate_series(1, %(history)s) n, make_interval(secs => 200.0 * n) age
"""
_LOGS = """
insert into push_delivery_logs (push_id, device_token, status, created_at)
select md5('push' || n)::uuid, 'token-' || n, 'sent', now() - make_interval(secs => 200.0 * n)
  from generate_series(1, %(history)s) n
"""
_ALL = {"from_high": -math.inf, "from_normal": -math.inf, "ahead": math.inf, "early": []}
"""The whole range of due times."""

_BEHIND = {"from_high": time.time() - 3600.0, "from_normal": time.time() - 3600.0, "ahead": 1.0, "early": []}
"""From a due time on, before which nothing waits."""

_WAITING = """
insert into push_notifications (device_token, title, priority)
select 'token-' || n, 'Your ride is here', case when n %% 10 = 0 then 'high' else 'normal' end
  from generate_series(1, %(waiting)s) n
"""


def _fill(database: Database) -> None:
    """The history is written without triggers and foreign keys, in half the time."""
    sizes = {"history": HISTORY, "waiting": WAITING}
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        for table in TABLES:
            conn.execute(
                sql.SQL("alter table {} set (autovacuum_enabled = off)").format(sql.Identifier(table))
            )
        conn.execute("set session_replication_role = replica")
        conn.execute(_FINISHED, sizes)
        conn.execute(_LOGS, sizes)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(_WAITING, sizes)


@contextmanager
def _forgotten(database: Database) -> Iterator[None]:
    """What Postgres learns of the tables in the block, it forgets at its end, as if it had never analyzed them."""
    of_tables = (
        "from pg_class c left join pg_index i on i.indexrelid = c.oid "
        "where coalesce(i.indrelid, c.oid) = any(%s::regclass[])"
    )
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        known = conn.execute(
            f"select c.oid, relpages, reltuples, relallvisible {of_tables}", (TABLES,)
        ).fetchall()
        yield
        for oid, pages, rows, visible in known:
            conn.execute(
                "update pg_class set relpages = %s, reltuples = %s, relallvisible = %s where oid = %s",
                (pages, rows, visible, oid),
            )
        conn.execute("delete from pg_statistic where starelid = any(%s::regclass[])", (TABLES,))


def _adopt(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(other_types(0).encode())
    migrate.apply(database.dsn)
    _fill(database)


def _analyze(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze push_notifications, push_delivery_logs, push_listener.daily_counts")


@dataclass(frozen=True)
class Case:
    """A statement, what it works on, and the index without which it must be caught."""

    name: str
    statement: Any
    needs: LiteralString
    values: Any = None

    def __str__(self) -> str:
        return self.name


def _by_index(conn: Connection) -> None:
    """As the statement is run: see listener.postgres.overview.BY_INDEX."""
    conn.execute(overview.BY_INDEX)


def _claimed(conn: Connection, batch: int = BATCH) -> dict[str, object]:
    """Rows in the hands of worker 1, and the values of a settlement of them, one log row each."""
    rows = conn.execute(
        "update push_notifications set status = 'processing', claimed_by = 1, delivery_attempts = 1, "
        "next_attempt_at = now() + interval '1 min' where id in "
        "(select id from push_notifications where status = 'pending' limit %s) returning id",
        (batch,),
    ).fetchall()
    ids = [row[0] for row in rows]
    return {
        "worker": 1,
        "is_retry": True,
        "ids": ids,
        "attempts": [1] * batch,
        "statuses": ["sent"] * batch,
        "delays": [None] * batch,
        "tries": [False] * batch,
        "codes": [None] * batch,
        "reasons": [None] * batch,
        "message_ids": ["projects/p/messages/1"] * batch,
        "log_ids": ids,
        "log_tokens": ["a"] * batch,
        "log_statuses": ["sent"] * batch,
        "log_details": ["{}"] * batch,
        "held": [],
    }


def _again(conn: Connection) -> dict[str, object]:
    """The values of a settlement of rows that are to be tried again."""
    failed = {"statuses": ["failed"] * BATCH, "delays": [5.0] * BATCH, "tries": [True] * BATCH}
    return {**_claimed(conn), **failed, "tokens": ["a"] * BATCH, "lease": 60.0}


def _one_claimed(conn: Connection) -> dict[str, object]:
    ids = _claimed(conn)["ids"]
    assert isinstance(ids, list)
    conn.execute("update push_notifications set claimed_by = null where id = any(%s)", (ids,))
    return {"id": ids[0]}


def _waiting(conn: Connection) -> dict[str, object]:
    """Rows to be claimed by their ids."""
    rows = conn.execute(
        "select id from push_notifications where status = 'pending' and next_attempt_at <= now() limit %s",
        (BATCH,),
    ).fetchall()
    return {"ids": [row[0] for row in rows], "lease": 60.0, "worker": 1, "is_strict": False}


def _early(conn: Connection) -> dict[str, object]:
    """Rows that a look has found, before where the claim begins."""
    return {
        **_CLAIM,
        **_BEHIND,
        "from_high": time.time(),
        "from_normal": time.time(),
        "early": _waiting(conn)["ids"],
    }


def _expired(conn: Connection) -> dict[str, object]:
    """Half of what waits has expired, after an attempt at the devices of a user."""
    conn.execute(
        "update push_notifications set device_token = null, user_id = %s, expires_at = now(), delivery_attempts = 1 "
        "where id in (select id from push_notifications where status = 'pending' limit %s)",
        (uuid4(), WAITING // 2),
    )
    return {"rows": WAITING, "excluded": [uuid4()], "reason": "late", **_ALL}


_WAITING_EXPIRE = {
    "known_too": True,
    "system": "1",
    "database": 1,
    "address": "localhost",
    "batch": BATCH,
    "code": "COPIED_DATABASE",
    "reason": "copied",
}


def _dead_worker(conn: Connection) -> dict[str, object]:
    """A worker that holds rows and no lock."""
    _claimed(conn)
    conn.execute("delete from push_listener.workers")
    conn.execute(
        "insert into push_listener.workers (id, name, guarded) overriding system value values (1, 'dead', true)"
    )
    return {"class": LIVENESS_CLASS, "suspects": [1]}


def _users_own(conn: Connection) -> dict[str, object]:
    """A push that is being sent to the devices of a user, who asks."""
    values = _one_claimed(conn)
    user = uuid4()
    conn.execute(
        "update push_notifications set device_token = null, user_id = %s, updated_at = now() where id = %s",
        (user, values["id"]),
    )
    conn.execute("insert into push_devices (token, user_id, platform) values ('a', %s, 'web')", (user,))
    conn.execute("set local role authenticated")
    conn.execute("select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{user}"}}',))
    return values


def _old(conn: Connection) -> dict[str, object]:
    """All but 400 finished rows are younger than that."""
    row = conn.execute(
        "select extract(epoch from now() - make_interval(secs => %s))::float8", (200 * (HISTORY - 400),)
    ).fetchone()
    assert row is not None
    return {"before": row[0], "start": -math.inf, "beyond": False, "limit": BATCH}


def _given_up(conn: Connection) -> dict[str, object]:
    """Dead pushes that a person has chosen."""
    rows = conn.execute(
        "select id from push_notifications where status = 'dead' order by updated_at limit %s", (BATCH,)
    ).fetchall()
    return {"ids": [row[0] for row in rows]}


def _gone(conn: Connection) -> dict[str, object]:
    """Everything is old, and the pushes of the first log rows are gone."""
    conn.execute("alter table push_delivery_logs drop constraint if exists push_delivery_logs_push_id_fkey")
    ids = conn.execute(
        "select push_id from push_delivery_logs order by push_id limit %s", (BATCH // 2,)
    ).fetchall()
    conn.execute("delete from push_notifications where id = any(%s)", ([row[0] for row in ids],))
    first, last = retention._edge(0), retention._edge(retention.SLICES)
    return {"before": math.inf, "after": first, "until": last, "limit": BATCH}


_DUE: LiteralString = "drop index push_notifications_due"
_KEY: LiteralString = "alter table push_notifications drop constraint push_notifications_pkey cascade"
_LOG: LiteralString = "drop index push_delivery_logs_push"
_OVER: LiteralString = "drop index push_notifications_over"
_GIVEN_UP: LiteralString = "drop index push_notifications_given_up"

_CLAIM = {
    **_ALL,
    "limit": BATCH,
    "normal_limit": BATCH,
    "lease": 60.0,
    "worker": 1,
    "excluded": [uuid4()],
    "is_strict": True,
}

CASES = [
    Case("claim", claiming.CLAIM, _DUE, _CLAIM),
    Case("claim, behind what is claimed", claiming.CLAIM, _DUE, {**_CLAIM, **_BEHIND}),
    Case("claim, its update", claiming.CLAIM, _KEY, _CLAIM),
    Case("claim, earlier rows", claiming.CLAIM, _KEY, _early),
    Case("lock due", claiming.LOCK_DUE, _DUE, _CLAIM),
    Case("claim these", claiming.CLAIM_THESE, _KEY, _waiting),
    Case("claim these, its update", claiming.CLAIM_THESE, _KEY, _waiting),
    Case("still claimed", claiming._STILL_CLAIMED, _KEY, _claimed),
    Case("settle", settlements._SETTLE, _KEY, _claimed),
    Case("settle, what is to be tried again", settlements._SETTLE, _KEY, _again),
    Case("fates", settlements._FATES, _KEY, _again),
    Case("waiting again", settlements._WAITING_AGAIN, _KEY, _again),
    Case("unlogged", settlements._UNLOGGED, _LOG, _again),
    Case("take back", settlements._TAKE_BACK, _KEY, _again),
    Case("release", queue._RELEASE, _DUE, _claimed),
    Case("rescue", workers._RESCUE, _DUE, _dead_worker),
    Case("rescue, by their ids", workers._RESCUE, _KEY, _dead_worker),
    Case("expire_waiting", served._EXPIRE, _DUE, _WAITING_EXPIRE),
    Case("expire_waiting, its update", served._EXPIRE, _KEY, _WAITING_EXPIRE),
    Case("expire", queue._EXPIRE, _DUE, _expired),
    Case("expire, its update", queue._EXPIRE, _KEY, _expired),
    Case("expire, what was accepted", queue._EXPIRE, _LOG, _expired),
    Case("earliest", queue._EARLIEST, _DUE, {"excluded": [], **_ALL}),
    Case("earliest, behind what is claimed", queue._EARLIEST, _DUE, {"excluded": [], **_BEHIND}),
    Case(
        "earlier rows",
        queue._BEHIND,
        _DUE,
        {
            "from": -math.inf,
            "to_high": time.time() - 3600.0,
            "to_normal": time.time() - 3600.0,
            "excluded": [],
            "most": 1000,
        },
    ),
    Case("sweep", queue._SWEEP, _DUE, {"excluded": [], "worker": 1, "incarnation": uuid4(), **_ALL}),
    Case("depth", overview.DEPTH, _DUE, _by_index),
    Case("overview", overview.OVERVIEW, _DUE, _by_index),
    Case("get_push_delivery_stats", "select * from get_push_delivery_stats(3650)", _DUE),
    Case("fetch_pending_pushes", "select * from fetch_pending_pushes(50)", _DUE),
    Case("mark_push_sent", "select mark_push_sent(%(id)s)", _KEY, _one_claimed),
    Case("mark_push_failed", "select mark_push_failed(%(id)s, 'no')", _KEY, _one_claimed),
    Case("receipt", "select record_delivery_receipt(%(id)s, 'a', 'delivered')", _LOG, _one_claimed),
    Case("get_push", "select get_push(%(id)s)", _LOG, _one_claimed),
    Case(
        "receipts",
        "select record_delivery_receipts(array[jsonb_build_object("
        "'push_id', %(id)s::uuid, 'device_token', 'a'::text, 'status', 'delivered'::text)])",
        _LOG,
        _one_claimed,
    ),
    Case("receipt of a user", "select record_delivery_receipt(%(id)s, 'a', 'delivered')", _LOG, _users_own),
    Case("receipt, its push", "select record_delivery_receipt(%(id)s, 'a', 'delivered')", _KEY, _users_own),
    Case(
        "requeue",
        "select requeue_pushes(p_error_code => 'NONE', p_since => now() - interval '1 day')",
        _GIVEN_UP,
    ),
    Case(
        "operator_requeue",
        "select push_listener.operator_requeue(%(ids)s, now(), 'anna', null, null, null)",
        _KEY,
        _given_up,
    ),
    Case(
        "operator_cancel",
        "select push_listener.operator_cancel(%(ids)s, now(), 'anna', null, null, null)",
        _KEY,
        _waiting,
    ),
    Case(
        "operator_reveal",
        "select push_listener.operator_reveal((%(ids)s::uuid[])[1], 'anna')",
        _LOG,
        _given_up,
    ),
    Case("purge", sql.SQL(retention._PUSHES).format(old=sql.SQL(retention._OVER)), _OVER, _old),
    Case("purge, its delete", sql.SQL(retention._PUSHES).format(old=sql.SQL(retention._OVER)), _KEY, _old),
    Case("purge, its logs", sql.SQL(retention._PUSHES).format(old=sql.SQL(retention._OVER)), _LOG, _old),
    Case(
        "purge of the dead", sql.SQL(retention._PUSHES).format(old=sql.SQL(retention._DEAD)), _GIVEN_UP, _old
    ),
    Case("orphans", retention._ORPHANS, _LOG, _gone),
    Case("orphans, the pushes", retention._ORPHANS, _KEY, _gone),
]


KEPT = [case for case in CASES if case.values and not callable(case.values)]


def test_the_history_is_not_read(database: Database) -> None:
    """Neither if Postgres analyzed the tables when they were empty, nor if it never did, nor if it has just done it.

    Then each statement is caught without its index.
    """
    with _forgotten(database):
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            conn.execute(_WAITING, {"waiting": WAITING})
            conn.execute("analyze push_notifications, push_delivery_logs, push_listener.daily_counts")
        _fill(database)
        faults = _excesses(database, "analyzed when it was empty")
    faults += _excesses(database, "never analyzed")
    _analyze(database)
    faults += _excesses(database, "analyzed")
    with psycopg.connect(database.dsn) as conn:
        for case in CASES:
            conn.execute(case.needs)
            if not _excess(conn, case):
                faults.append(f"{case.name} is not caught without its index")
            conn.rollback()
    with psycopg.connect(database.dsn) as conn:
        faults += _looks_into_the_log(conn)
        conn.rollback()
    assert not faults, "\n".join(faults)


def test_nor_if_it_was_adopted_with_columns_of_other_types(blank_database: Database) -> None:
    _adopt(blank_database)
    _analyze(blank_database)
    faults = _excesses(blank_database, "")
    assert not faults, "\n".join(faults)


def test_the_history_is_not_read_on_the_oldest_postgres(oldest_server: Server) -> None:
    with oldest_server.database(Template.MIGRATED) as database:
        _fill(database)
        faults = _excesses(database, "never analyzed")
        _analyze(database)
        faults += _excesses(database, "analyzed")
    assert not faults, "\n".join(faults)


def _excesses(database: Database, when: str) -> list[str]:
    """What the cases read in excess, also those whose plan is kept."""
    faults = []
    for settings, cases in (
        ("set local plan_cache_mode = auto", CASES),
        (connect.PLANNING, CASES),  # as the service plans
        ("set local plan_cache_mode = force_custom_plan", KEPT),
    ):
        with psycopg.connect(database.dsn) as conn:
            for case in cases:
                conn.execute(sql.SQL(settings))
                faults += [f"{case.name} {when} {settings}: {line}" for line in _excess(conn, case)]
                conn.rollback()
    return faults


def _looks_into_the_log(conn: Connection) -> list[str]:
    """A claim looks into the log only for users that it has tried before."""
    searches = (
        "select coalesce(sum(idx_scan), 0) from pg_stat_xact_user_tables where relname = 'push_delivery_logs'"
    )
    user = uuid4()
    conn.execute("update push_notifications set user_id = %s where device_token = 'token-7'", (user,))
    conn.execute(claiming.CLAIM, _CLAIM)
    new = conn.execute(searches).fetchone()
    conn.execute(
        "update push_notifications set device_token = null, user_id = %s, delivery_attempts = 1, "
        "next_attempt_at = now() where device_token = 'token-10' and status = 'processing'",
        (user,),
    )
    conn.execute(claiming.CLAIM, _CLAIM)
    tried = conn.execute(searches).fetchone()
    return (["the log is searched for a new push"] if new != (0,) else []) + (
        ["the log is not searched for a push that was tried"] if tried == (0,) else []
    )


PLANNED: tuple[LiteralString, ...] = (
    connect.PLANNING,
    "set local plan_cache_mode = force_custom_plan",
)


@pytest.mark.oldest_postgres
def test_rows_and_results_are_not_compared_each_with_each(database: Database) -> None:
    """On a small table that was never analyzed, as in a new installation."""
    with psycopg.connect(database.dsn) as conn:
        conn.execute("alter table push_notifications set (autovacuum_enabled = off)")
        conn.execute(_WAITING, {"waiting": MANY})
        conn.execute(
            "update push_notifications set status = 'sent', next_attempt_at = null "
            "where id in (select id from push_notifications limit %s)",
            (MANY // 2,),
        )
        conn.commit()
    faults = []
    for settings in PLANNED:
        with psycopg.connect(database.dsn) as conn:
            conn.execute(sql.SQL(settings))
            claim = _executed(conn, claiming.CLAIM, {**_CLAIM, "limit": 500, "normal_limit": 500})
            settle = _executed(conn, settlements._SETTLE, _claimed(conn, 500))
            conn.rollback()
        for name, plan in (("claim", claim), ("settle", settle)):
            compared = max(
                node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] for node in _nodes(plan)
            )
            if compared > ENOUGH:  # 500 times 500 otherwise
                faults.append(f"{name}, {settings}: {compared} rows are compared")
    assert not faults, "\n".join(faults)


_WITHOUT_INDEX: LiteralString = (
    "select token, user_id::text::uuid as user_id, platform from push_devices where disabled_at is null"
)
_VIEWS: tuple[LiteralString, ...] = (
    "select token, user_id, platform from push_devices where disabled_at is null",
    "select fcm_token as token, id as user_id, 'ios'::text as platform from profiles "
    "union select web_token, id, 'web'::text from profiles",
    "select distinct on (d.user_id, d.token) d.token, d.user_id, d.platform from push_devices d "
    "where d.disabled_at is null order by d.user_id, d.token, d.updated_at",
    "select t.token, p.id as user_id, 'ios'::text as platform from profiles p "
    "cross join lateral unnest(array[p.fcm_token, p.web_token]) as t(token)",
    _WITHOUT_INDEX,
)


@pytest.mark.oldest_postgres
def test_the_recipients_of_a_claim_are_read_in_one_set(database: Database) -> None:
    """Also through a view of the application."""
    users = 500
    with psycopg.connect(database.superuser_dsn) as conn:
        conn.execute("create table profiles (id uuid primary key, fcm_token text, web_token text)")
        for statement in (
            "insert into profiles select md5(n::text)::uuid, 'f' || n, 'w' || n from generate_series(1, %s) n",
            "insert into push_devices (token, user_id, platform) "
            "select 't' || n, md5(n::text)::uuid, 'android' from generate_series(1, %s) n",
        ):
            conn.execute(statement, (MANY,))
        conn.execute(
            "insert into push_notifications (user_id, title) "
            "select md5(n::text)::uuid, 'x' from generate_series(1, %s) n",
            (users,),
        )
    faults = []
    for view in _VIEWS:
        for settings in PLANNED:
            with psycopg.connect(database.superuser_dsn) as conn:
                conn.execute("drop view push_recipients")
                conn.execute(sql.SQL("create view push_recipients as ") + sql.SQL(view))
                enough = MANY if view == _WITHOUT_INDEX else ENOUGH
                found = _read_severally(conn, settings, users, enough)
                faults += [f"{view}, {settings}: {fault}" for fault in found]
                conn.rollback()
    assert not faults, "\n".join(faults)


def _read_severally(conn: Connection, settings: LiteralString, users: int, enough: int) -> Iterator[str]:
    """What a claim for so many users reads several times, or in excess."""
    conn.execute(sql.SQL(settings))
    before = _read(conn)
    found = list(_nodes(_executed(conn, claiming.CLAIM, {**_CLAIM, "limit": users, "normal_limit": users})))
    after = _read(conn)
    nodes = [node for node in found if node.get("Relation Name") in ("push_devices", "profiles")]
    if sum(node["Actual Rows"] * node["Actual Loops"] for node in nodes) < users:
        yield "not all are found"
    if any(node["Actual Loops"] > 1 for node in nodes):
        yield "one is read after the other"
    if max(node.get("Rows Removed by Join Filter", 0) for node in found) > ENOUGH:
        yield "each is compared with each"
    for table in ("push_devices", "profiles"):
        read = after[table][1] - before[table][1]
        if read > enough:
            yield f"of {table} {read} rows are read"


def test_new_rows_lie_side_by_side(database: Database) -> None:
    """Their ids begin with the time."""
    with psycopg.connect(database.dsn) as conn:
        for _ in range(3):
            conn.execute("insert into push_notifications (title) select 'x' from generate_series(1, 100)")
        rows = conn.execute(
            "select id, extract(epoch from clock_timestamp())::float8 from push_notifications"
        ).fetchall()
    assert len({push.hex[13:] for push, _ in rows}) == len(rows)
    for push, now in rows:
        assert push.version == 7
        assert -1 < now - (push.int >> 80) / 1000 < 60


def test_ids_of_log_rows_begin_with_the_time(database: Database) -> None:
    with psycopg.connect(database.dsn) as conn:
        row = conn.execute("insert into push_notifications (title) values ('x') returning id").fetchone()
        assert row is not None
        rows = conn.execute(
            "insert into push_delivery_logs (push_id, status) select %s, 'unknown' from generate_series(1, 300) "
            "returning id, extract(epoch from clock_timestamp())::float8",
            row,
        ).fetchall()
    assert len({log.hex[13:] for log, _ in rows}) == len(rows)
    for log, now in rows:
        assert log.version == 7
        assert -1 < now - (log.int >> 80) / 1000 < 60


def _excess(conn: Connection, case: Case) -> list[str]:
    """What of the queue and its log is read in excess."""
    values = case.values(conn) if callable(case.values) else case.values
    before = _read(conn)
    plan = _executed(conn, case.statement, values)
    found = [line for node in _nodes(plan) for line in _too_much(node)]
    for table, (scans, rows) in _read(conn).items():
        if rows - before[table][1] > ENOUGH:
            found.append(
                f"{rows - before[table][1]} rows of {table} are read, {scans} scans of it are sequential"
            )
    return found


def _executed(conn: Connection, statement: Any, values: Mapping[str, object] | None) -> dict[str, Any]:
    """The plan with which a statement was executed.

    EXPLAIN of a statement with parameters makes a plan for their values, whatever plan_cache_mode says, so the
    statement is prepared.
    """
    text = statement.as_string(conn) if isinstance(statement, sql.Composable) else statement
    call: sql.Composable = sql.SQL("execute tested")
    if values:
        in_numbers = numbered(re.sub(r"(%\(\w+\))b", r"\1s", text))
        call += sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, in_numbers.values(values))))
    conn.execute(b"prepare tested as " + (in_numbers.text if values else text.encode()))
    row = conn.execute(sql.SQL("explain (analyze, buffers, format json) ") + call).fetchone()
    conn.execute("deallocate tested")
    assert row is not None
    return dict(row[0][0]["Plan"])


def _read(conn: Connection) -> dict[str, tuple[int, int]]:
    """Sequential scans of each table, and its rows read, by this transaction so far."""
    rows = conn.execute(
        "select relname, seq_scan, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
        "from pg_stat_xact_user_tables where schemaname = 'public'"
    )
    return {relname: (scans, read) for relname, scans, read in rows}


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)


def _too_much(node: dict[str, Any]) -> Iterator[str]:
    name = f"{node['Node Type']} on {node.get('Relation Name') or node.get('Index Name')}"
    if node["Node Type"] == "Seq Scan" and node["Relation Name"] in (
        "push_notifications",
        "push_delivery_logs",
    ):
        yield name
    dropped = sum(rows for key, rows in node.items() if key.startswith("Rows Removed"))
    rows = (node["Actual Rows"] + dropped) * node["Actual Loops"]
    if rows > ENOUGH:
        yield f"{name}: {rows} rows"


@pytest.mark.oldest_postgres
def test_many_rows_that_are_passed_over_are_looked_up_and_not_searched(database: Database) -> None:
    """A trigger of the application refuses a whole campaign, say.

    Once the ids do not fit into work_mem Postgres compares each waiting row with each of them: with 300,000 of both, a
    read does not end in its 30 s, so every metric of the database is absent, and with them the one that tells why.
    """
    with psycopg.connect(database.superuser_dsn, autocommit=True) as conn:
        conn.execute("set work_mem = '64kB'")  # so that fewer do not fit
        conn.execute(
            "insert into push_listener.unwritable_rows (push_id, statement, code, until) "
            "select gen_random_uuid(), 'claim', 'P0001', now() + interval '1 day' from generate_series(1, 5000)"
        )
        conn.execute("analyze push_listener.unwritable_rows")
        search = "select from push_notifications where id not in (select push_id from push_listener.unwritable_rows)"
        assert "Materialize" in str(conn.execute(f"explain {search}").fetchall())
        with conn.transaction():
            conn.execute(overview.BY_INDEX)
            plan = "\n".join(line for (line,) in conn.execute(f"explain {overview.DEPTH}".encode()))
        assert "Materialize" not in plan
        values = {
            "limit": BATCH, "normal_limit": BATCH, "lease": 60.0, "worker": 1, "excluded": [], "is_strict": True,
            "rows": BATCH, "reason": "", **_ALL,
        }  # fmt: skip
        for statement in (claiming.CLAIM, queue._EARLIEST, queue._EXPIRE):
            found = psycopg.ClientCursor(conn).execute(f"explain {statement}".encode(), values)
            lines = [line.strip() for (line,) in found]
            assert not [line for line in lines if "Materialize" in line]
            assert any("using unwritable_rows_pkey" in line for line in lines)
