"""Statistics: whatever is done to rows, the counts are what counting the rows would say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from listener.postgres import workers
from listener.postgres.queue import Queue
from listener.push import Decision, LogLine, Push, Settlement, Status
from listener.schema import migrate
from tests.support.postgres import Database

Connection = psycopg.Connection[dict[str, Any]]
Counts = dict[tuple[date, str], Counter[str]]
"""By day and error code."""

FINISHED = ("sent", "delivered", "dead", "expired", "cancelled")
NUMBERS = (
    "sent",
    "delivered",
    "dead",
    "expired",
    "cancelled",
    "opened",
    "clicked",
    "retries",
    "accepted_timed",
    "accepted_seconds",
    "delivered_timed",
    "delivered_seconds",
)


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    with psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as opened:
        yield opened


def counts(conn: Connection) -> Counts:
    """What the counters say, without what is zero."""
    return _summed(conn.execute("select * from push_listener.daily_counts").fetchall())


def today(conn: Connection, error_code: str = "") -> Counter[str]:
    return counts(conn).get((today_of(conn), error_code), Counter())


def today_of(conn: Connection) -> date:
    found = conn.execute("select (now() at time zone 'UTC')::date as day").fetchone()
    assert found is not None
    day: date = found["day"]
    return day


def _summed(rows: list[dict[str, Any]]) -> Counts:
    sums: Counts = {}
    for row in rows:
        of_day = sums.setdefault((row["day"], row["error_code"]), Counter())
        for number in NUMBERS:
            of_day[number] += row[number]
    without_zeros = {key: Counter({k: v for k, v in c.items() if v}) for key, c in sums.items()}
    return {key: found for key, found in without_zeros.items() if found}


def expected(rows: list[dict[str, Any]]) -> Counts:
    """What counting these rows says: the definition once more, in another language."""
    found = []
    for row in rows:
        status = "dead" if row["status"] == "failed" and row["next_attempt_at"] is None else row["status"]
        if status not in FINISHED:
            continue
        accepted = status in ("sent", "delivered")
        one: dict[str, Any] = dict.fromkeys(NUMBERS, 0)
        one["sent" if accepted else status] = 1
        one["delivered"] = int(status == "delivered" or (accepted and row["delivered_at"] is not None))
        one["retries"] = row["retry_count"]
        for name, at in (("accepted", row["sent_at"]), ("delivered", row["delivered_at"])):
            if accepted and at is not None:
                one[f"{name}_timed"] = 1
                one[f"{name}_seconds"] = Decimal(str(max((at - row["created_at"]).total_seconds(), 0)))
        ended = (row["sent_at"] if accepted else None) or row["updated_at"]
        code = row["error_code"] if status in ("dead", "expired") else None
        word = code is None or (code.isascii() and code.isidentifier() and code.isupper() and len(code) <= 64)
        found.append(
            {"day": ended.astimezone(UTC).date(), "error_code": code or "" if word else "OTHER", **one}
        )
    return _summed(found)


# --- whatever is done -----------------------------------------------------------------------------------

moments = st.datetimes(
    min_value=datetime(2020, 2, 28), max_value=datetime(2020, 3, 2), timezones=st.just(UTC)
)
rows = st.fixed_dictionaries(
    {
        "status": st.sampled_from([*FINISHED, "pending", "processing", "failed"]),
        "next_attempt_at": st.none() | moments,
        "delivery_attempts": st.integers(0, 1),  # a failed push waits for its next try only after one
        "error_code": st.sampled_from([None, "UNREGISTERED", "QUOTA_EXCEEDED", "no such phone", "A" * 65]),
        "retry_count": st.integers(0, 5),
        "created_at": moments,
        "updated_at": moments,
        "sent_at": st.none() | moments,
        "delivered_at": st.none() | moments,
    }
)
which = st.sets(st.integers(0, 4), min_size=1)
steps = st.lists(
    st.tuples(st.just("update"), which, rows)
    | st.tuples(st.just("touch"), which, st.none())
    | st.tuples(st.just("insert"), st.none(), rows)
    | st.tuples(st.just("delete"), which, st.none()),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.lists(rows, min_size=5, max_size=5),
    steps=steps,
    isolation=st.sampled_from(psycopg.IsolationLevel),
)
def test_counts_are_the_sums_over_the_rows_as_they_are_or_were_when_deleted(
    conn: Connection,
    start: list[dict[str, Any]],
    steps: list[tuple[str, set[int] | None, dict[str, Any] | None]],
    isolation: psycopg.IsolationLevel,
) -> None:
    with emptied(conn, isolation):
        ids = [_insert(conn, row) for row in start]
        deleted: list[dict[str, Any]] = []
        for step, chosen, values in steps:
            of = [ids[i] for i in chosen or ()]
            match step:
                case "insert":
                    assert values is not None
                    _insert(conn, values)
                case "update":
                    assert values is not None
                    changes = sql.SQL(", ").join(
                        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name))
                        for name in values
                    )
                    conn.execute(
                        sql.SQL("update push_notifications set {} where id = any(%(ids)s)").format(changes),
                        {**values, "ids": of},
                    )
                case "touch":
                    conn.execute("update push_notifications set title = 'x' where id = any(%s)", (of,))
                case _:
                    deleted += conn.execute(
                        "delete from push_notifications where id = any(%s) returning *", (of,)
                    ).fetchall()
            there = conn.execute("select * from push_notifications").fetchall()
            assert counts(conn) == expected(there + deleted)


@contextmanager
def emptied(conn: Connection, isolation: psycopg.IsolationLevel) -> Iterator[None]:
    """A transaction that leaves nothing behind."""
    conn.isolation_level = isolation
    try:
        with conn.transaction(force_rollback=True):
            yield
    finally:
        conn.isolation_level = None


def _insert(conn: Connection, values: dict[str, Any]) -> UUID:
    statement = sql.SQL(
        "insert into push_notifications (device_token, {}) values ('a', {}) returning id"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
    )
    row = conn.execute(statement, values).fetchone()
    assert row is not None
    return UUID(str(row["id"]))


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_endless_times_spoil_no_sum(conn: Connection, moment: str) -> None:
    push = _insert(conn, {"title": "x"})
    conn.execute(
        "update push_notifications set status = 'delivered', created_at = %(m)s, sent_at = %(m)s, delivered_at = %(m)s"
        " where id = %(id)s",
        {"m": moment, "id": push},
    )
    _insert(conn, {"status": "sent", "sent_at": datetime.now(UTC), "created_at": datetime.now(UTC)})
    row = conn.execute("select sum(sent) as sent, sum(accepted_timed) as timed, sum(accepted_seconds) as seconds "
                       "from push_listener.daily_counts").fetchone()  # fmt: skip
    assert row == {"sent": 2, "timed": 1, "seconds": 0}


# --- a life ---------------------------------------------------------------------------------------------


async def _worker(database: Database, pool: AsyncConnectionPool[Any]) -> Queue:
    return Queue(pool, worker_id=await workers.register(pool, "test"), lease=60.0)


def _settled(push: Push, status: Status, code: str | None = None, delay: float | None = None) -> Settlement:
    uses_try = status is Status.FAILED
    decision = Decision(status, delay, uses_try, code, code and "in trouble", "projects/p/messages/1")
    log = LogLine(push.device_token, "sent" if status is Status.SENT else "failed", {"attempt": push.attempt})
    return Settlement(push.id, push.attempt, decision, [log])


@pytest.fixture
async def pool(database: Database) -> Any:
    async with AsyncConnectionPool(
        database.dsn, min_size=1, max_size=4, open=False, kwargs={"autocommit": True}
    ) as opened:
        yield opened


async def test_a_push_is_counted_when_it_ends_and_once(
    conn: Connection, database: Database, pool: AsyncConnectionPool[Any]
) -> None:
    worker = await _worker(database, pool)
    for token in ("a", "b", "c"):
        conn.execute("insert into push_notifications (device_token, title) values (%s, 'x')", (token,))
    first = {push.device_token: push for push in await worker.claim(10)}
    assert counts(conn) == {}
    await worker.settlements.settle(
        [
            _settled(first["a"], Status.SENT),
            _settled(first["b"], Status.FAILED, "UNAVAILABLE", delay=0.0),
            _settled(first["c"], Status.DEAD, "UNREGISTERED"),
        ]
    )
    (again,) = await worker.claim(10)
    done = _settled(again, Status.SENT)
    await worker.settlements.settle([done])
    await worker.settlements.settle([done], is_retry=True)  # the answer to the first was lost, say

    assert {k: today(conn)[k] for k in ("sent", "retries", "accepted_timed")} == {
        "sent": 2,
        "retries": 1,
        "accepted_timed": 2,
    }
    assert today(conn, "UNREGISTERED") == {"dead": 1}


async def test_a_result_that_comes_too_late_is_not_counted(
    conn: Connection, database: Database, pool: AsyncConnectionPool[Any]
) -> None:
    slow, quick = await _worker(database, pool), await _worker(database, pool)
    conn.execute("insert into push_notifications (device_token, title) values ('a', 'x')")
    (lost,) = await slow.claim(1)
    conn.execute("update push_notifications set next_attempt_at = now()")
    (taken,) = await quick.claim(1)
    await slow.settlements.settle([_settled(lost, Status.DEAD, "UNREGISTERED")])
    assert counts(conn) == {}
    await quick.settlements.settle([_settled(taken, Status.SENT)])
    assert (today(conn)["sent"], today(conn, "UNREGISTERED")["dead"]) == (1, 0)


def test_what_functions_do_is_counted(conn: Connection) -> None:
    sent, dead, cancelled = (
        _insert(conn, {"title": "x", "retry_count": 4}),
        _insert(conn, {"title": "x", "retry_count": 4}),
        _insert(conn, {"title": "x", "next_attempt_at": datetime(2200, 1, 1, tzinfo=UTC)}),
    )
    conn.execute("select fetch_pending_pushes(10)")
    conn.execute("select mark_push_sent(%s)", (sent,))
    conn.execute("select mark_push_failed(%s, 'no')", (dead,))
    conn.execute("select cancel_push(%s)", (cancelled,))
    for status in ("delivered", "delivered", "opened", "clicked", "opened"):
        conn.execute("select record_delivery_receipt(%s, 'a', %s)", (sent, status))

    found = today(conn)
    assert {
        k: found[k] for k in ("sent", "delivered", "cancelled", "opened", "clicked", "delivered_timed")
    } == {
        "sent": 1,
        "delivered": 1,
        "cancelled": 1,
        "opened": 1,
        "clicked": 1,
        "delivered_timed": 1,
    }
    assert today(conn, "WORKER_FAILED") == {"dead": 1, "retries": 5}

    conn.execute("select requeue_pushes(p_ids => array[%s])", (dead,))
    assert today(conn, "WORKER_FAILED") == {}


def test_a_worker_that_knows_nothing_of_this_is_counted(conn: Connection) -> None:
    push = _insert(conn, {"title": "x"})
    for _ in range(2):
        conn.execute("update push_notifications set status = 'sent' where id = %s", (push,))
    assert today(conn)["sent"] == 1


# --- side by side ---------------------------------------------------------------------------------------


def test_nobody_waits_for_a_count(conn: Connection, database: Database) -> None:
    pushes = [_insert(conn, {"title": "x"}) for _ in range(4)]
    end = "update push_notifications set status = 'sent' where id = %s"
    conn.execute(end, (pushes[0],))  # so that there is a row to fight for
    with psycopg.connect(database.dsn) as one, psycopg.connect(database.dsn) as other:
        for each in (one, other):
            each.execute("set lock_timeout = '10ms'")
        one.execute(end, (pushes[1],))
        other.execute(end, (pushes[2],))
        # Each holds a count now. With one count for all, the first of these two would wait for the other's end.
        one.execute(end, (pushes[3],))
        other.commit()
        one.commit()
    assert today(conn)["sent"] == 4


def test_counts_that_become_one_wait_for_nobody(conn: Connection, database: Database) -> None:
    push = _insert(conn, {"title": "x"})
    conn.execute("update push_notifications set status = 'dead'")
    with psycopg.connect(database.dsn) as other:
        held = other.execute("select shard from push_listener.daily_counts for update").fetchall()
        conn.execute("set lock_timeout = '10ms'; select setseed(0.5)")
        shards: set[int] = set()
        for flip in ("pending", "dead") * 5_000:
            conn.execute("update push_notifications set status = %s where id = %s", (flip, push))
            rows = conn.execute("select shard, dead from push_listener.daily_counts").fetchall()
            shards |= {row["shard"] for row in rows}
            if len(shards) > 2:
                break
        assert len(shards) > 2
        assert {row["shard"] for row in rows} == {held[0][0], max(shards)}
    conn.execute("update push_notifications set status = 'dead'")
    assert counts(conn) == {next(iter(counts(conn))): {"dead": 1}}


def test_a_transaction_with_an_old_snapshot_is_not_refused(conn: Connection, database: Database) -> None:
    pushes = [_insert(conn, {"title": "x"}) for _ in range(3)]
    end = "update push_notifications set status = 'sent' where id = %s"
    conn.execute(end, (pushes[0],))
    with psycopg.connect(database.dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        old.execute("select count(*) from push_notifications")
        conn.execute(end, (pushes[1],))
        old.execute(end, (pushes[2],))
        old.commit()
    assert today(conn)["sent"] == 3


def test_counts_stay_few_and_exact_under_an_old_snapshot(conn: Connection, database: Database) -> None:
    """Old versions of a count cannot go while somebody may need them: it must not be them that are read each time."""
    push = _insert(conn, {"title": "x"})
    shards: set[int] = set()
    with psycopg.connect(database.dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select 1 from push_notifications")
        conn.execute("select setseed(0.5)")
        for done in range(1, 10_000):
            flip: LiteralString = "dead" if done % 2 else "pending"
            conn.execute("update push_notifications set status = %s where id = %s", (flip, push))
            if done % 100 == 99:
                rows = conn.execute("select shard, dead from push_listener.daily_counts").fetchall()
                assert [row["dead"] for row in rows] == [1]
                shards |= {row["shard"] for row in rows}
                if len(shards) > 2:
                    return
    pytest.fail(f"the count is still in {shards}")


@pytest.mark.usefixtures("alone")
def test_counting_touches_no_index(conn: Connection) -> None:
    push = _insert(conn, {"title": "x"})
    for done in range(400):
        status: LiteralString = "pending" if done % 2 else "dead"
        conn.execute("update push_notifications set status = %s where id = %s", (status, push))
    conn.execute("select pg_stat_force_next_flush()")
    row = conn.execute(
        "select n_tup_upd, n_tup_hot_upd, pg_relation_size(relid) as bytes from pg_stat_user_tables "
        "where relid = 'push_listener.daily_counts'::regclass"
    ).fetchone()
    assert row is not None
    assert row["n_tup_upd"] > 300
    assert row["n_tup_hot_upd"] >= 0.95 * row["n_tup_upd"]
    assert row["bytes"] <= 3 * 8192


# --- what was there before ------------------------------------------------------------------------------


def test_what_had_ended_before_is_counted_once(blank_database: Database) -> None:
    migrations = migrate.load()
    version = {migration.name: migration.version for migration in migrations}
    dsn = blank_database.dsn
    migrate.apply(dsn, migrations[: version["statistics"] - 1])
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        now = datetime.now(UTC)
        for status in (*FINISHED, "failed", "pending"):
            for days in (0, 40):
                at = now - timedelta(days=days)
                times = {
                    "created_at": at,
                    "updated_at": at + timedelta(minutes=2),
                    "sent_at": at + timedelta(minutes=1),
                }
                _insert(conn, {"status": status, "next_attempt_at": None, "retry_count": 1, **times})
        conn.execute(
            "insert into push_delivery_logs (push_id, status) select id, 'opened' from push_notifications limit 3"
        )
        migrate.apply(dsn, migrations[: version["statistics"]])
        conn.execute(
            "update push_notifications set status = 'delivered' "
            "where status = 'sent' and created_at < now() - interval '1 day'"
        )
        conn.execute(
            "update push_notifications set status = 'dead', error_code = 'LATE' where status = 'pending'"
        )

        migrate.apply(dsn)
        rows = expected(conn.execute("select * from push_notifications").fetchall())
        rows.setdefault((today_of(conn), ""), Counter())["opened"] = 3
        assert counts(conn) == rows

        # Going back a step and forth again, with a purge between them, neither takes off nor adds.
        conn.execute("delete from push_notifications")
        migrate.rollback(dsn, version["history"] - 1)
        migrate.apply(dsn)
        assert counts(conn) == rows


# --- get_push_delivery_stats ----------------------------------------------------------------------------


def test_the_last_days_by_the_day_on_which_pushes_ended(conn: Connection) -> None:
    now = conn.execute("select now()").fetchone()
    assert now is not None
    midnight = now["now"].astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for ended, status, delivered_after in [
        (midnight, "sent", None),
        (midnight, "delivered", 2.0),
        (midnight - timedelta(seconds=1), "delivered", 5.0),
        (midnight - timedelta(days=6), "dead", None),
        (midnight - timedelta(days=6, seconds=1), "dead", None),
        (midnight, "expired", None),
        (midnight, "cancelled", None),
    ]:
        created = ended - timedelta(hours=1)
        accepted = status in ("sent", "delivered")
        _insert(
            conn,
            {
                "status": status,
                "next_attempt_at": None,
                "created_at": created,
                "updated_at": ended,
                "sent_at": ended if accepted else None,
                "delivered_at": created + timedelta(seconds=delivered_after) if delivered_after else None,
            },
        )
    _insert(conn, {"title": "waits"})

    names = [
        "total_pushes",
        "sent_pushes",
        "failed_pushes",
        "delivered_pushes",
        "delivery_rate",
        "avg_delivery_time",
    ]
    for days, numbers in [
        (1, [5, 2, 1, 1, Decimal("50.00"), timedelta(seconds=2)]),
        (2, [6, 3, 1, 2, Decimal("66.67"), timedelta(seconds=3.5)]),
        (7, [7, 3, 2, 2, Decimal("66.67"), timedelta(seconds=3.5)]),
        (8, [8, 3, 3, 2, Decimal("66.67"), timedelta(seconds=3.5)]),
    ]:
        row = conn.execute("select * from get_push_delivery_stats(%s)", (days,)).fetchone()
        assert row is not None
        assert list(row) == names
        assert list(row.values()) == numbers
    assert conn.execute("select * from get_push_delivery_stats()").fetchone() == dict(
        zip(names, [7, 3, 2, 2, Decimal("66.67"), timedelta(seconds=3.5)], strict=True)
    )


def test_of_nothing_there_are_zeros(conn: Connection) -> None:
    row = conn.execute("select * from get_push_delivery_stats(3650)").fetchone()
    assert row is not None
    assert list(row.values()) == [0, 0, 0, 0, 0, timedelta(0)]


@pytest.mark.parametrize("days", [0, -1, 3651, 2**31 - 1, None])
def test_days_out_of_range_are_refused(conn: Connection, days: int | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="from 1 to 3650"):
        conn.execute("select * from get_push_delivery_stats(%s)", (days,))


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_statistics_are_for_the_service(conn: Connection, role: LiteralString) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("set local role service_role")
        assert conn.execute("select * from get_push_delivery_stats(7)").fetchone()
    conn.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("select * from get_push_delivery_stats(7)")
