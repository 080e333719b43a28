"""FCM away, or one platform refused; the database away: nothing is used up, nothing is lost, nothing runs hot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from listener.emulator import Emulator
from listener.fcm.outcome import Disposition, Outcome
from listener.fcm.sender import Sender
from listener.limits.health import FcmHealth, Pause, PauseTimes
from listener.limits.slow_start import SlowStart
from listener.postgres.connect import ServicePool
from listener.postgres.queue import Queue
from listener.postgres.settlements import Settlements
from listener.postgres.workers import register
from listener.push import Settlement, Target, TargetKind
from listener.sending.fcm_question import FcmQuestion
from listener.service import Service
from listener.wakeup.waker import SweepingWaker
from tests.support.postgres import Database
from tests.support.pushes import push
from tests.support.service import (
    PATIENCE,
    Place,
    Rows,
    Shared,
    connect,
    dispatcher_on,
    get,
    naming,
    pool_of,
    rows_of,
    sample,
    serving,
    settings_for,
    unanswered,
    until,
    with_arguments,
)


@pytest.fixture
async def rows(database: Database) -> AsyncIterator[Rows]:
    async with rows_of(database.superuser_dsn) as opened:
        yield opened


def count_of(service: Service, name: str, **labels: str) -> float:
    return sample(service.metrics, name, labels) or 0.0


# --- FCM away --------------------------------------------------------------------------------------------


@asynccontextmanager
async def down(emulator: Emulator) -> AsyncIterator[None]:
    await emulator.stop()
    try:
        yield
    finally:
        await emulator.start()


@asynccontextmanager
async def failing(emulator: Emulator, fault: str) -> AsyncIterator[None]:
    rule = emulator.add_fault(fault)
    emulator.expire_access_tokens()
    try:
        yield
    finally:
        emulator.remove_fault(rule)


@pytest.mark.asyncio(loop_scope="module")
async def test_no_push_is_used_up_by_an_outage_and_the_work_goes_on_by_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, FcmHealth, times=PauseTimes(away_first=0.3, away_longest=0.6))
    settings = place.settings(
        fcm_request_timeout=1.0,
        fcm_connect_timeout=0.9,  # a connection that is slow would use a try
        max_tries=2,
        max_in_flight=30,
    )
    async with serving(settings) as service:
        await place.rows.one_over(
            await place.rows.add(device_token="before", title="t")
        )  # there is an access token
        for trouble in ("down", "unavailable", "timeout", "oauth_server_error"):
            with naming(trouble):
                await _outage(place, service, trouble)


async def _outage(place: Place, service: Service, trouble: str) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.query("delete from push_notifications")
    before = count_of(service, "push_claimed_total")
    async with down(emulator) if trouble == "down" else failing(emulator, trouble):
        await rows.add_many(70)
        await until(lambda: service.pause is not None)
        assert service.port is not None
        status, text = await get(service.port, "/readyz")
        kind = Pause.NO_ACCESS_TOKEN if trouble == "oauth_server_error" else Pause.AWAY
        assert (status, text) == (503, f"sending is paused: {kind}\n")
        # Several probes, none of them answered.
        claimed = count_of(service, "push_claimed_total")
        await until(lambda: count_of(service, "push_claimed_total") >= claimed + 2)
        assert count_of(service, "push_claimed_total") - before <= 65
    ended = time.monotonic()
    found = await rows.over()
    print(f"{trouble}: all sent {time.monotonic() - ended:.1f} s after its end")
    assert len(found) == 70
    assert {row["status"] for row in found.values()} == {"sent"}
    # Those that failed before it was known why: one try each, of less than twenty pushes.
    assert {row["retry_count"] for row in found.values()} <= {0, 1}
    assert sum(row["retry_count"] for row in found.values()) < 20
    await until(lambda: service.pause is None)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_last_try_of_many_pushes_is_decided_by_one_question(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they to ask one after the other, the last of them would outlive their leases."""
    rows, emulator = place.rows, place.emulator
    with_arguments(monkeypatch, FcmQuestion, ask_again=60.0)
    rule = emulator.add_fault("timeout")
    settings = place.settings(fcm_request_timeout=0.5, fcm_connect_timeout=0.2, max_tries=1)
    async with serving(settings):
        await rows.add_many(15)
        await rows.until(lambda found: all(row["error_code"] == "TIMEOUT" for row in found.values()))
        assert sum(record.validate_only for record in emulator.received) == 1
        emulator.remove_fault(rule)
        found = await rows.over()
    assert {(row["status"], row["retry_count"]) for row in found.values()} == {("sent", 0)}


@pytest.mark.asyncio(loop_scope="module")
async def test_pushes_that_always_fail_do_not_keep_others_waiting(place: Place) -> None:
    """FCM answers 503 to these and nothing else: it looks away, while nobody sends anything better."""
    rows, emulator = place.rows, place.emulator
    rule = emulator.add_fault("unavailable,token_prefix=bad")
    settings = place.settings(retry_min_delay=1, retry_max_delay=10)
    async with serving(settings) as service:
        await rows.add_many(30, "bad")
        await rows.until(lambda found: all(row["error_code"] == "UNAVAILABLE" for row in found.values()))
        began = time.monotonic()
        await rows.query(  # all of them are due again, and were so first
            "update push_notifications set next_attempt_at = now() - interval '1 hour' where status <> 'processing'"
        )
        await rows.add_many(20, "good")
        await rows.until(
            lambda found: all(
                row["status"] == "sent" for row in found.values() if row["device_token"].startswith("good")
            )
        )
        print(f"sent behind thirty that fail: {time.monotonic() - began:.1f} s")
        bad = [row for row in (await rows.all()).values() if row["device_token"].startswith("bad")]
        assert {row["status"] for row in bad} <= {"pending", "failed", "processing"}
        assert service.worker is not None
        assert service.pause is None
        emulator.remove_fault(rule)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_given_back_while_fcm_is_asked_is_written_down(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("unavailable,token=phone")
    emulator.add_fault("timeout,topic=push-listener")
    async with serving(place.settings(max_tries=1)) as service:
        push_id = await rows.add(device_token="phone", title="t")
        await emulator.wait_received(2, timeout=PATIENCE)
        service.stop()
        service.stop()
    row = await rows.get(push_id)
    assert (row["status"], row["retry_count"], row["error_code"]) == ("pending", 0, "UNAVAILABLE")
    assert [log["status"] for log in await rows.logs(push_id)] == ["unknown"]


# --- one platform refused ----------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_ios_waits_without_a_try_while_android_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    with_arguments(monkeypatch, FcmHealth, times=PauseTimes(platform_first=0.5, platform_probe=0.5))
    user = uuid4()
    await rows.device("android-phone", user)
    await rows.device("ios-phone", user, "ios")
    others = [uuid4() for _ in range(3)]
    for n, other in enumerate(others):
        await rows.device(f"ios-tablet-{n}", other, "ios")
    rule = emulator.add_fault("third_party_auth,token_prefix=ios")
    async with serving(place.settings(max_tries=1)) as service:
        both = await rows.add(user_id=user, title="t")
        ios = [await rows.add(user_id=other, title="t") for other in others]
        # Three users' pushes are refused, and after that the platform is held back without FCM being asked.
        await rows.until(lambda found: any(row["error_code"] == "PLATFORM_PAUSED" for row in found.values()))
        android = await rows.one_over(await rows.add(device_token="android-tablet", title="t"))
        assert android["status"] == "sent"
        waiting = await rows.all([both, *ios])
        assert {(row["status"], row["retry_count"]) for row in waiting.values()} <= {
            ("pending", 0),
            ("processing", 0),
        }
        assert service.worker is not None
        assert service.pause is None
        emulator.remove_fault(rule)
        found = await rows.over(both, *ios)
    assert {(row["status"], row["retry_count"]) for row in found.values()} == {("sent", 0)}
    # Each device once, however often its push was looked at.
    accepted = sorted(str(record.target) for record in emulator.accepted)
    assert accepted == [
        "android-phone",
        "android-tablet",
        "ios-phone",
        *(f"ios-tablet-{n}" for n in range(3)),
    ]


# --- the database away ---------------------------------------------------------------------------------------


@asynccontextmanager
async def set_for_all(database: Database, setting: str, value: str) -> AsyncIterator[None]:
    """For every connection of the project's role, from the next one on; those there are, are cut."""
    where = sql.SQL("alter role postgres in database {} ").format(sql.Identifier(database.name))
    async with await connect(database.superuser_dsn) as conn:
        name = sql.Identifier(setting)
        await conn.execute(where + sql.SQL("set {} = {}").format(name, sql.Literal(value)))
        try:
            await cut_all(conn)
            yield
        finally:
            await conn.execute(where + sql.SQL("reset {}").format(name))
            (reset,) = await (await conn.execute("select clock_timestamp() as at")).fetchall()
            # Sessions that began after the reset have the right settings, and stay.
            await cut_all(conn, reset["at"])


@asynccontextmanager
async def no_connections(database: Database) -> AsyncIterator[None]:
    async with await connect(database.superuser_dsn) as conn:
        limit = sql.SQL("alter database {} connection limit {}")
        await conn.execute(limit.format(sql.Identifier(database.name), sql.Literal(0)))
        try:
            await cut_all(conn)
            yield
        finally:
            await conn.execute(limit.format(sql.Identifier(database.name), sql.Literal(-1)))


async def cut_all(conn: Any, before: datetime | None = None) -> None:
    """Ends the sessions of the project's role; ``before``: those that have begun earlier."""
    await conn.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
        "where datname = current_database() and usename = 'postgres' "
        "and backend_start < coalesce(%s::timestamptz, 'infinity')",
        (before,),
    )


TROUBLES: dict[str, Callable[[Database], Any]] = {
    "no connection to be had": no_connections,
    "read-only": lambda database: set_for_all(database, "default_transaction_read_only", "on"),
    "statement timeout": lambda database: set_for_all(database, "statement_timeout", "1ms"),
}


async def test_what_has_been_sent_is_written_down_when_the_database_is_back(
    database: Database, rows: Rows, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, ServicePool, patience=0.5)
    async with serving(settings_for(database.dsn, emulator, max_in_flight=20)) as service:
        for trouble, begin in TROUBLES.items():
            with naming(trouble):
                emulator.clear()
                settles = count_of(service, "push_database_errors_total", statement="settle")
                before = errors_of(service)
                async with AsyncExitStack() as stack:
                    with unanswered(emulator):
                        await rows.add_many(45)
                        await emulator.wait_accepted(18, timeout=PATIENCE)  # two are kept for high priority
                        await stack.enter_async_context(begin(database))
                    await until(
                        lambda settles=settles: (  # type: ignore[misc]
                            count_of(service, "push_database_errors_total", statement="settle") >= settles + 3
                        )
                    )
                    assert service.port is not None
                    status, text = await get(service.port, "/readyz")
                    assert status == 503
                    # What is held in memory is bounded: no more is taken while nothing can be written down.
                    assert len(emulator.accepted) <= 40
                    assert errors_of(service) - before < 100  # without a pause there would be thousands
                ended = time.monotonic()
                found = await rows.over()
                print(
                    f"{trouble}: {text.splitlines()}; all sent {time.monotonic() - ended:.1f} s after its end"
                )
                await until(lambda: service.obstacles() == [])
                assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
                assert (emulator.stats()["accepted"], emulator.stats()["duplicates"]) == (45, 0)


def errors_of(service: Service) -> float:
    return sum(
        count_of(service, "push_database_errors_total", statement=each)
        for each in ("claim", "settle", "peers", "read")
    )


@asynccontextmanager
async def settling_fails() -> AsyncIterator[None]:
    """What becomes of rows cannot be written down; all else works."""

    async def settle(self: Settlements, batch: Sequence[Settlement], *, is_retry: bool = False) -> int:
        raise psycopg.OperationalError("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settlements, "settle", settle)
        yield


@pytest.mark.asyncio(loop_scope="module")
async def test_what_has_been_sent_is_written_down_before_more_is_claimed_even_after_its_lease(
    shared: Shared,
) -> None:
    rows, emulator, service = shared.rows, shared.emulator, shared.service
    claimed = count_of(service, "push_claimed_total")
    errors = count_of(service, "push_database_errors_total", statement="settle")
    async with settling_fails():
        # No result may wait to be written before the last row is claimed: a look that had begun before the rows were
        # committed may find some of them not due yet.
        with unanswered(emulator):
            await rows.add_many(20)
            await emulator.wait_accepted(20, timeout=PATIENCE)
        # A claim may be under way while the first result fails.
        await until(lambda: count_of(service, "push_database_errors_total", statement="settle") >= errors + 3)
        await rows.query("update push_notifications set next_attempt_at = now()")  # the lease ends
        await rows.add_many(1, "another")  # rings
        failed = count_of(service, "push_database_errors_total", statement="settle")
        await until(lambda: count_of(service, "push_database_errors_total", statement="settle") >= failed + 3)
        assert count_of(service, "push_claimed_total") == claimed + 20
    found = await rows.over()
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
    assert (emulator.stats()["accepted"], emulator.stats()["duplicates"]) == (21, 0)


# --- a worker that may not claim -----------------------------------------------------------------------------


async def test_a_probe_that_is_due_is_not_waited_for_hotly_while_nothing_may_be_claimed(
    database: Database, emulator: Emulator
) -> None:
    seen = FcmHealth(SlowStart(1000, 1.0, 0.0))
    refused = Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False)
    long_ago = time.monotonic() - 1000.0
    seen.judge(push(), Target(TargetKind.TOKEN, "t"), refused, long_ago, long_ago)

    class Blocked(SweepingWaker):
        asked = 0

        def may_claim(self) -> bool:
            self.asked += 1
            return False

    async with pool_of(database.dsn) as pool:
        queue = Queue(pool, worker_id=await register(pool, "test"), lease=60.0)
        settings = settings_for(database.dsn, emulator)
        waker = Blocked()
        dispatcher, _ = dispatcher_on(queue, cast(Sender, None), settings, waker, seen)
        running = asyncio.create_task(dispatcher.run())
        for _ in range(1000):
            await asyncio.sleep(0)
        dispatcher.stop()
        await running
    assert waker.asked < 10
