"""What the metrics of a service tell, and what they do not tell."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from listener.config import Settings
from listener.emulator import Emulator
from listener.metrics import labels
from listener.metrics.own import Metrics
from listener.postgres import overview
from listener.postgres.connect import STATEMENT_PATIENCE_S, Address, Connection, ServicePool
from listener.postgres.locks import LockHolder
from listener.sending import overview_watch
from listener.sending.overview_watch import figures
from listener.service import Service, credentials_for
from tests.support.access import WORKER, make_worker
from tests.support.postgres import Database
from tests.support.prometheus_rules import alerts
from tests.support.servers import forget_proxies
from tests.support.service import (
    Place,
    Rows,
    dispatcher_of,
    get,
    sample,
    serving,
    settings_for,
    shown,
    until,
    with_arguments,
)
from tests.support.tools import tool

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def reading_often(place: Place, **given: object) -> Settings:
    """Settings with which the queue is counted as often as the share of time for it allows."""
    return place.settings(**given).model_copy(update={"queue_depth_interval": 0.1})


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: Metrics) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def names(metrics: Metrics) -> set[str]:
    return {name for name, _ in samples(metrics)}


def shown_of_database(metrics: Metrics) -> set[str]:
    """Those of SHARED that are there. All that a registry has takes 4 ms, too long for a look again and again."""
    families = metrics.registry.restricted_registry(list(SHARED)).collect()
    return {each.name for family in families for each in family.samples} & SHARED


def value(metrics: Metrics, name: str, **given: str) -> float | None:
    return sample(metrics, name, given)


SHARED = {
    "push_queue_depth", "push_queue_due", "push_queue_scheduled", "push_queue_oldest_due_seconds",
    "push_workers_alive", "push_notify_queue_usage", "push_clock_offset_seconds", "push_stats_pushes",
    "push_oldest_snapshot_age_transactions", "push_stats_delivered_pushes", "push_receipts_total",
}  # fmt: skip
"""Those that are there whenever the database was read."""


# --- what could not be read is absent ------------------------------------------------------------------


async def test_without_a_database_nothing_is_told_of_it(emulator: Emulator) -> None:
    loaded = settings_for("postgresql://nobody@127.0.0.1:1/none", emulator)
    with pytest.MonkeyPatch.context() as patch:
        forget_proxies(patch)
        service = Service(loaded, *credentials_for(loaded))
        running = asyncio.create_task(service.run())
        await until(lambda: service.port)
        assert service.port is not None
        assert (await get(service.port, "/readyz"))[0] == 503
        assert names(service.metrics) & {*SHARED, "push_queue_read_timestamp_seconds"} == set()
        assert {"push_build_info", "push_sends_total", "push_listening"} <= names(service.metrics)
        service.stop()
        await running


@pytest.mark.parametrize("reason", ["paused", "not listening", "unreachable", "busy", "watched", "idle"])
async def test_how_often_it_is_read(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    class Worker:
        looks = 1
        pause_kind = "refused" if reason == "paused" else None
        is_up = reason != "unreachable"

        def may_claim(self) -> bool:
            return reason != "not listening"

        def saw_workers(self, workers: int) -> None:
            pass

    reads = 0

    async def read(pool: object) -> overview.Overview:
        nonlocal reads
        reads += 1
        waiting = [overview.Waiting("pending", "high", 1, 1, 0, 5.0)] if reason == "busy" else []
        return overview.Overview(overview.Depth.of(waiting), overview.Server(0.0, 1, 0, time.time()))

    monkeypatch.setattr(overview, "read", read)
    worker: Any = Worker()
    watched = asyncio.Event()
    if reason == "watched":
        watched.set()
    watch = overview_watch.OverviewWatch(
        worker, worker, worker, worker, worker, worker, worker, Metrics(), interval=0.001, watched=watched
    )
    running = asyncio.create_task(watch.run())
    if reason == "idle":
        for _ in range(100):  # it wakes each time, and does not read
            await asyncio.sleep(0.001)
        assert reads == 1
    else:
        await until(lambda: reads > 5)
    running.cancel()
    await asyncio.wait({running})


async def test_somebody_who_begins_to_watch_does_not_wait_for_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads, watched = 0, asyncio.Event()

    async def read(pool: object) -> overview.Overview:
        nonlocal reads
        reads += 1
        return found()

    monkeypatch.setattr(overview, "read", read)
    worker: Any = Idle()
    watch = overview_watch.OverviewWatch(
        worker,
        worker,
        worker,
        worker,
        worker,
        worker,
        worker,
        Metrics(),
        interval=3600.0,
        watched=watched,
        watched_interval=0.01,
    )
    running = asyncio.create_task(watch.run())
    await until(lambda: reads == 1)
    watched.set()
    await until(lambda: reads > 5)
    running.cancel()
    await asyncio.wait({running})


class Idle:
    """The parts of a worker that has nothing to do."""

    looks = 1
    pause_kind = None
    is_up = True

    def may_claim(self) -> bool:
        return True

    def saw_workers(self, workers: int) -> None:
        pass

    async def retry(self) -> None:
        raise psycopg.errors.QueryCanceled("another transaction has locked the rows that are noted")


def found(**given: Any) -> overview.Overview:
    return overview.Overview(overview.Depth.of([]), overview.Server(0.0, 1, 0, time.time()), **given)


async def waits_after(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, seconds: float, **given: Any
) -> float:
    """The time until the next read, after one that has taken ``seconds``, or has not answered for so long."""
    moment = 1000.0
    waited: list[float] = []

    async def read(pool: object) -> overview.Overview:
        nonlocal moment
        moment += seconds
        if seconds >= STATEMENT_PATIENCE_S:
            raise TimeoutError
        return found(**given)

    async def sleep(wait: float) -> None:
        waited.append(wait)
        raise asyncio.CancelledError

    monkeypatch.setattr(overview, "read", read)
    monkeypatch.setattr(
        overview_watch, "time", type("Clock", (), {"monotonic": staticmethod(lambda: moment)})
    )
    loop = type("Loop", (), {"sleep": staticmethod(sleep), "timeout": asyncio.timeout})
    monkeypatch.setattr(overview_watch, "asyncio", loop)
    worker: Any = Idle()
    watch = overview_watch.OverviewWatch(
        worker,
        worker,
        worker,
        worker,
        worker,
        worker,
        worker,
        metrics,
        interval=15.0,
        watched=asyncio.Event(),
    )
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    return waited[0]


async def test_a_read_that_takes_long_is_made_often_enough_for_the_alerts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QueueUnwatched pages, and every alert leaves an instance out, once a reading is 300 s old."""
    [unwatched, *_] = [rule for rule in alerts() if rule["alert"] == "QueueUnwatched"]
    [limit] = re.findall(r"push_queue_read_timestamp_seconds\) > (\d+)", unwatched["expr"])
    assert await waits_after(monkeypatch, Metrics(), 20.0) < float(limit)


async def test_a_read_that_is_never_answered_is_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/metrics.md: reading takes at most a fiftieth of the time. The server works until it is cancelled."""
    patience = STATEMENT_PATIENCE_S
    assert await waits_after(monkeypatch, Metrics(), patience) > patience


async def test_what_was_read_is_told_although_refused_rows_cannot_be_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown_figures: list[object] = []
    metrics = Metrics()
    monkeypatch.setattr(metrics.shared, "show", shown_figures.append)
    await waits_after(monkeypatch, metrics, 0.1, unwritable={("claim", "P0001"): 1})
    assert shown_figures


async def test_the_snapshots_of_others_are_absent_for_a_role_that_cannot_see_them(
    database: Database, rows: Rows
) -> None:
    """The recommended role is no member of pg_read_all_stats; push-listener doctor says that it cannot tell."""
    make_worker(database)
    async with await psycopg.AsyncConnection.connect(database.dsn) as holding:
        await holding.execute("set transaction isolation level repeatable read")
        await holding.execute("select from push_notifications")
        for _ in range(50):
            await rows.query("select pg_current_xact_id()")
        async with ServicePool(Address(database.dsn), prepares=True) as pool:
            truth = figures(await overview.read(pool), sees_workers=True).snapshot_age
        async with ServicePool(Address(database.dsn_as(WORKER)), prepares=True) as pool:
            told = figures(await overview.read(pool), sees_workers=True).snapshot_age
    assert truth is not None
    assert truth >= 50
    assert told is None or told >= 50


@pytest.mark.asyncio(loop_scope="module")
async def test_what_was_read_vanishes_when_it_cannot_be_read_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a worker is idle: while the database is away it is read at the short interval.

    Foreign locks are read by sweeps, and end with their sessions.
    """
    with_arguments(monkeypatch, ServicePool, patience=0.5)
    rows = place.rows
    async with serving(reading_often(place)) as service:
        await until(lambda: shown_of_database(service.metrics) == SHARED)
        failed = value(service.metrics, "push_database_errors_total", statement="read") or 0.0
        await rows.query("alter table push_listener.daily_counts rename to gone")
        await until(lambda: not shown_of_database(service.metrics))
        assert value(service.metrics, "push_queue_read_timestamp_seconds") is not None
        assert value(service.metrics, "push_database_errors_total", statement="read") == failed + 1.0
        await rows.query("alter table push_listener.gone rename to daily_counts")
        await until(lambda: shown_of_database(service.metrics) == SHARED)

        await until(lambda: dispatcher_of(service)._sleeper._sweep_at > 0.0)
        service._lock_watch.saw([LockHolder("purge", 0, 4711, "stranger", None, exclusive=True, locks=1)])
        assert "push_lock_strangers" in names(service.metrics)
        name = place.database.name
        async with await psycopg.AsyncConnection.connect(
            make_conninfo(place.database.dsn, dbname="postgres"), autocommit=True
        ) as elsewhere:
            may_connect = sql.SQL("alter database {} allow_connections {}")
            await elsewhere.execute(may_connect.format(sql.Identifier(name), sql.SQL("false")))
            try:
                await elsewhere.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = %s and application_name like 'push-listener%%'",
                    (name,),
                )
                await until(lambda: not shown_of_database(service.metrics))
                there = names(service.metrics)
            finally:
                await elsewhere.execute(may_connect.format(sql.Identifier(name), sql.SQL("true")))
        await until(lambda: shown_of_database(service.metrics) == SHARED)
    assert "push_lock_strangers" not in there
    assert not names(service.metrics) & SHARED  # nobody reads it any more


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_told_of_listening_where_nobody_listens(place: Place) -> None:
    async with serving(place.settings(wakeup="sweep", sweep_interval=1)) as service:
        await until(lambda: "push_queue_depth" in shown_of_database(service.metrics))
        there = names(service.metrics)
    assert there & {"push_listening", "push_busy_polling", "push_workers_alive"} == set()


# --- what is known is there from the start -------------------------------------------------------------


def test_every_counter_begins_with_all_that_is_known() -> None:
    metrics = Metrics()
    found = samples(metrics)
    for name, label, known in (
        ("push_dead_total", "code", labels.DEAD),
        ("push_retries_total", "code", labels.RETRIED),
        ("push_invalid_total", "code", labels.INVALID),
        ("push_tokens_disabled_total", "code", labels.DISABLED),
        ("push_settled_total", "status", labels.STATUSES),
        ("push_database_errors_total", "statement", labels.FAILING_STATEMENTS),
        ("push_paused", "reason", labels.PAUSES),
        ("push_platform_paused", "platform", labels.PLATFORMS),
    ):
        assert {found[name, frozenset({(label, each)})] for each in known} == {0.0}
    for target in labels.TARGETS:
        there = {("outcome", "accepted"), ("code", "OK"), ("platform", target)}
        assert found["push_sends_total", frozenset(there)] == 0.0
    for priority in labels.PRIORITIES:
        there = {("priority", priority), ("le", "5.0")}
        assert found["push_due_to_accepted_seconds_bucket", frozenset(there)] == 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_no_event_of_common_traffic_makes_a_series(place: Place) -> None:
    """A series that is born with its first event hides that event from rate() and increase()."""
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings(retry_min_delay=0.01)) as service:
        await until(lambda: "push_queue_depth" in shown_of_database(service.metrics))
        before = samples(service.metrics).keys()
        for fault in (
            "unavailable",
            "internal",
            "quota_exceeded,retry_after=0",
            "reset",
            "unavailable,latency_ms=10",
        ):
            emulator.add_fault(f"{fault},times=1")
        for token in ("t", "dead-t", "bad token", "mismatch-t"):
            await rows.add(device_token=token, title="t")
        await rows.add(topic="news", title="t", priority="high")
        await rows.add(device_token="t", title=None, body="b")
        await rows.add(title="t")
        await rows.over()
        await shown(service.metrics, "push_in_flight", 0)
        born = samples(service.metrics).keys() - before
    moments = {"push_last_notification_timestamp_seconds", "push_last_look_timestamp_seconds"}
    assert {name for name, _ in born} <= moments | {"push_token_expiry_timestamp_seconds"}


# --- how late pushes are accepted ----------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_how_late_a_push_is_accepted_includes_its_retries(place: Place) -> None:
    """An hour of 503 must not look perfect. And a push to many devices is accepted once."""
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    for n in range(5):
        await rows.device(f"phone-{n}", user)
    emulator.add_fault("unavailable,token=late,times=1")
    emulator.add_fault("unavailable,token=phone-3,times=1")
    async with serving(place.settings(retry_min_delay=1, retry_max_delay=1)) as service:
        await rows.add(device_token="late", title="t", priority="high")
        await rows.add(user_id=user, title="t")
        await rows.over()
        await shown(service.metrics, "push_due_to_accepted_seconds_count", 1, {"priority": "high"})
        await shown(service.metrics, "push_due_to_accepted_seconds_count", 1, {"priority": "normal"})
        accepted = {"outcome": "accepted", "code": "OK", "platform": "android"}
        await shown(service.metrics, "push_sends_total", 5, accepted)
        assert value(service.metrics, "push_due_to_accepted_seconds_count", priority="normal") == 1.0
        late = value(service.metrics, "push_due_to_accepted_seconds_sum", priority="high")
        first = value(service.metrics, "push_insert_to_send_seconds_count", priority="high")
    assert late is not None
    assert late >= 1.0
    assert first == 1.0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_to_many_devices_is_progress_with_each_answer(place: Place) -> None:
    """Its attempt may last as long as LEASE, which may be longer than WATCHDOG_TIMEOUT: the process is not stuck."""
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    for n in range(30):
        await rows.device(f"phone-{n}", user)
    emulator.add_fault("slow,latency_ms=30")
    async with serving(place.settings(max_in_flight=1, lease=3600)) as service:
        await rows.add(user_id=user, title="t")
        seen = []
        for few_or_many in (lambda: len(emulator.received) >= 5, lambda: len(emulator.received) >= 20):
            await until(few_or_many)
            seen.append(value(service.metrics, "push_last_progress_timestamp_seconds"))
        still_sends = value(service.metrics, "push_in_flight")
        await rows.over()
    assert still_sends == 1.0
    assert seen[0] != seen[1]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_queue_stalled_looks_at_shows_that_every_push_fails(place: Place) -> None:
    """docs/alerts.md: while FCM accepts nothing LateBurn is silent, and QueueStalled is the alert.

    FCM is there, as the question shows, and answers each push with 500: each waits for its next try, and none is due
    meanwhile.
    """
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("internal,token_prefix=phone-")
    loaded = reading_often(place, retry_min_delay=1000, retry_max_delay=1000)
    await rows.may_be_early()
    await rows.query(
        "insert into push_notifications (device_token, title, created_at, next_attempt_at) "
        "select 'phone-' || n, 't', now() - interval '600 s', now() - interval '600 s' from generate_series(1, 25) n"
    )
    async with serving(loaded) as service:
        await rows.until(
            lambda found: all(
                row["delivery_attempts"] and row["status"] != "processing" for row in found.values()
            )
        )
        await shown(service.metrics, "push_queue_due", 0, {"priority": "normal"})
        dispatcher_of(service).looks += 1  # it is time to read
        read = value(service.metrics, "push_queue_read_timestamp_seconds")
        await until(lambda: value(service.metrics, "push_queue_read_timestamp_seconds") != read)
        oldest = value(service.metrics, "push_queue_oldest_due_seconds", priority="normal") or 0.0
    assert oldest >= 600.0


# --- what get_push_delivery_stats returns --------------------------------------------------------------

ENDED = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["sent", "delivered", "dead", "expired", "cancelled", "pending"]),
        "days_ago": st.integers(0, 40),
        "seconds": st.integers(1, 5000),
    }
)


def test_the_metrics_are_equal_to_the_statistics_function(database: Database) -> None:
    with asyncio.Runner() as events:
        stack = AsyncExitStack()

        async def opened() -> tuple[Connection, ServicePool]:
            conn = await psycopg.AsyncConnection.connect(database.dsn, autocommit=True)
            pool = ServicePool(Address(database.dsn), prepares=True)
            return await stack.enter_async_context(conn), await stack.enter_async_context(pool)

        conn, pool = events.run(opened())

        @settings(max_examples=25)
        @given(st.lists(ENDED, max_size=12))
        def check(pushes: list[dict[str, Any]]) -> None:
            events.run(_compare(conn, pool, pushes))

        try:
            check()
        finally:
            events.run(stack.aclose())


async def _compare(conn: Connection, pool: ServicePool, pushes: list[dict[str, Any]]) -> None:
    await conn.execute(
        "truncate push_notifications, push_delivery_logs; delete from push_listener.daily_counts"
    )
    await conn.execute(
        "insert into push_notifications (device_token, title, status, created_at, sent_at, delivered_at, "
        "updated_at, next_attempt_at) select 't', 't', p.status, at - interval '1 s', "
        "case when p.status in ('sent', 'delivered') then at end, "
        "case when p.status = 'delivered' then at + make_interval(secs => p.seconds) end, at, "
        "case when p.status = 'pending' then at + interval '100 days' end "
        "from jsonb_to_recordset(%s) as p (status text, days_ago integer, seconds integer), "
        "lateral (select now() - make_interval(days => p.days_ago)) as t(at)",
        (Jsonb(pushes),),
    )
    found = figures(await overview.read(pool), sees_workers=True)
    for days, results in found.results.items():
        row = await (
            await conn.execute(
                "select total_pushes, sent_pushes, failed_pushes, delivered_pushes, delivery_rate, "
                "extract(epoch from avg_delivery_time)::float8 from get_push_delivery_stats(%s)",
                (days,),
            )
        ).fetchone()
        assert row is not None
        total, sent, failed, delivered, rate, mean = row
        assert sum(results.pushes.values()) == total
        assert results.pushes["sent"] == sent
        assert results.pushes["dead"] + results.pushes["expired"] == failed
        assert results.delivered == delivered
        assert float(rate) == pytest.approx(100 * delivered / sent if sent else 0.0, abs=0.005)
        assert mean == pytest.approx(results.delivery_seconds or 0.0)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_queries_of_the_document_give_the_columns_of_the_function(
    place: Place, tmp_path: Path
) -> None:
    """By Prometheus itself, over the metrics of two processes, whose shares make up the quota."""
    rows, emulator = place.rows, place.emulator
    promtool = tool("promtool")
    emulator.add_fault("invalid_argument,times=1")
    loaded = reading_often(place)
    share = "push_quota_share_requests_per_second"
    async with serving(loaded) as one, serving(loaded) as other:
        # The first process must not show the whole quota after a second one has started, also while nothing is sent.
        for service in (one, other):
            dispatcher_of(service).looks += 1  # it is time to read
            await shown(service.metrics, "push_workers_alive", 2)
        assert value(one.metrics, share) == value(other.metrics, share)

        ids = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(5)]
        await rows.query(
            "insert into push_notifications (device_token, title, next_attempt_at) "
            "values ('t', 't', now() + interval '1 h')"
        )
        await rows.over(*ids)
        (received,) = await rows.query("select id from push_notifications where status = 'sent' limit 1")
        await rows.query("select record_delivery_receipt(%(id)s, 'phone', 'delivered')", id=received["id"])
        for service in (one, other):
            dispatcher_of(service).looks += 1  # it is time to read
            await shown(service.metrics, "push_stats_delivered_pushes", 1, {"days": "7"})
        (expected,) = await rows.query(
            "select total_pushes, sent_pushes, failed_pushes, delivered_pushes, delivery_rate, "
            "extract(epoch from avg_delivery_time) as avg_delivery_time from get_push_delivery_stats(7)"
        )
        series = {
            f"{name}{{{','.join(f'{key}={label!r}' for key, label in [*sorted(rest), ('instance', instance)])}}}": found
            for instance, service in (("one", one), ("other", other))
            for (name, rest), found in samples(service.metrics).items()
            if name.startswith("push_stats_")
        }
    queries = dict(
        re.findall(r"^\| `(\w+)` \| `([^`]*push_stats_[^`]*)` \|$", DOCUMENT.read_text(), re.MULTILINE)
    )
    queries = {column: query.replace("\\|", "|") for column, query in queries.items()}
    assert queries.keys() == expected.keys()
    test = {
        "rule_files": [],
        "tests": [
            {
                "input_series": [
                    {"series": name.replace("'", '"'), "values": f"{found!r}"}
                    for name, found in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"abs(({query}) - {float(str(expected[column]))!r}) < bool 0.01",
                        "eval_time": "0s",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                    for column, query in queries.items()
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = await asyncio.to_thread(
        subprocess.run, [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- nothing that is counted falls ---------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_no_counter_falls_when_pushes_are_requeued_and_receipts_are_counted_as_they_come(
    place: Place,
) -> None:
    rows, emulator = place.rows, place.emulator
    async with serving(reading_often(place)) as service:
        emulator.add_fault("invalid_argument,times=12")
        await rows.add_many(12, "phone")
        found = await rows.over()
        for push_id in list(found)[:4]:
            await rows.query("select record_delivery_receipt(%(id)s, 'nobody', 'opened')", id=push_id)
        await until(lambda: (value(service.metrics, "push_stats_pushes", days="1", result="dead") or 0) == 12)
        before = samples(service.metrics)
        await rows.query("select requeue_pushes(p_error_code => 'INVALID_ARGUMENT')")
        await rows.over()
        await until(lambda: (value(service.metrics, "push_stats_pushes", days="1", result="sent") or 0) == 12)
        after = samples(service.metrics)

        opened = value(service.metrics, "push_receipts_total", status="opened")
        delivered = value(service.metrics, "push_receipts_total", status="delivered")
        assert opened is not None
        assert delivered is not None
        for push_id in list(found)[4:7]:
            await rows.query("select record_delivery_receipt(%(id)s, 'phone', 'opened')", id=push_id)
        dispatcher_of(service).looks += 1  # it is time to read
        await shown(service.metrics, "push_receipts_total", opened + 3, {"status": "opened"})
        await shown(service.metrics, "push_receipts_total", delivered + 3, {"status": "delivered"})
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert not [key for key in counters if after[key] < before[key]]
    most = {
        name: after[name, rest] - before[name, rest]
        for name, rest in counters
        if name == "push_receipts_total"
    }
    assert set(most.values()) == {0.0}


# --- the document --------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_the_document_lists_every_metric_with_its_type_and_labels(place: Place) -> None:
    rows = place.rows
    async with serving(reading_often(place)) as service:
        await rows.add(device_token="t", title="t")
        await rows.query(
            "insert into push_notifications (device_token, title, status, sent_at, delivered_at, next_attempt_at) "
            "values ('t', 't', 'delivered', now(), now(), null)"
        )
        await rows.over()
        await until(lambda: value(service.metrics, "push_stats_delivery_seconds", days="7") is not None)
        assert service.port is not None
        _, text = await get(service.port, "/metrics")
    live = {}
    for family in text_string_to_metric_families(text):
        if not family.samples:
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        live[name] = (
            family.type,
            frozenset(key for sample in family.samples for key in sample.labels) - {"le"},
        )
    written = {}
    for name, kind, keys in re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE
    ):
        written[name] = (kind, frozenset(re.findall(r"`(\w+)`", keys)))
    rare = {"push_unwritable_rows", "push_lock_strangers"}  # they are there only in trouble
    assert {name: about for name, about in written.items() if name not in rare} == live
    assert rare <= written.keys()
