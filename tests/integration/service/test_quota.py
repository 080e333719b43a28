"""The quota with real workers: shared, lowered for all and come back, and never in the way of high priority.

Rates are counted at FCM, by the times at which requests came. A busy machine makes them smaller, never larger, so no
rate has a bound from below.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from listener.emulator import Emulator
from listener.emulator.received import Received
from listener.fcm.outcome import Limit
from listener.limits import quota, shared_quota
from listener.limits.quota import Quota
from listener.limits.shared_quota import SharedQuota
from listener.metrics.own import Metrics
from listener.postgres import workers
from listener.postgres.connect import Pool
from listener.postgres.locks import LIVENESS_CLASS, POLLING_LOCK
from listener.postgres.workers import QuotaState, Workers, register
from listener.push import Push
from listener.service import Service
from tests.support.postgres import Database
from tests.support.pushes import push
from tests.support.service import (
    PATIENCE,
    Place,
    Program,
    Rows,
    environment,
    get,
    naming,
    pool_of,
    program,
    sample,
    serving,
    shown,
    until,
)

FCM = 600_000
QUOTA = 1500
WHOLE = 22.5
"""Requests a second of two workers that share it."""


@pytest.fixture
def rows(place: Place) -> Rows:
    return place.rows


@pytest_asyncio.fixture(loop_scope="module")
async def pool(place: Place) -> AsyncIterator[Pool]:
    async with pool_of(place.database.dsn) as opened:
        yield opened


def value(service: Service, name: str) -> float:
    return sample(service.metrics, name) or 0.0


# --- what the database knows of the fleet ------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_the_workers_that_hold_their_lock_are_counted(place: Place, pool: Pool) -> None:
    first, second, third = [
        Workers(pool, worker_id=await register(pool, "test"), lease=60.0) for _ in range(3)
    ]
    assert (await first.quota_state()).workers == 1
    with psycopg.connect(place.database.dsn, autocommit=True) as life:
        for each in (first, second):
            life.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, each.worker_id))
        assert [(await each.quota_state()).workers for each in (first, second, third)] == [2, 2, 3]
        # The polling lock of one of them makes nobody count twice.
        life.execute("select pg_advisory_lock(%s, %s)", POLLING_LOCK)
        assert [(await each.quota_state()).workers for each in (first, second, third)] == [2, 2, 3]
        life.execute("select pg_advisory_unlock(%s, %s)", (LIVENESS_CLASS, second.worker_id))
        assert (await first.quota_state()).workers == 1


@pytest.mark.usefixtures("long_second")
@pytest.mark.asyncio(loop_scope="module")
async def test_the_rate_is_lowered_once_a_second_and_never_raised(pool: Pool, rows: Rows) -> None:
    mine = Workers(pool, worker_id=await register(pool, "test"), lease=60.0)
    await long_ago(rows)
    assert (await mine.quota_state()).fraction == 1.0
    await mine.reduce_quota(0.5, 60.0)
    await mine.reduce_quota(0.1, 60.0)
    seen = await mine.quota_state()
    assert seen.fraction == 0.5
    assert 0.0 <= seen.age < PATIENCE
    # Half a minute later it has come back to three quarters.
    await rows.query(
        "update push_listener.shared_quota set fraction = 0.25, reduced_at = now() - interval '30 seconds'"
    )
    await mine.reduce_quota(0.9, 60.0)
    assert (await mine.quota_state()).fraction == pytest.approx(0.75, abs=0.1)


@pytest.mark.usefixtures("long_second")
@pytest.mark.asyncio(loop_scope="module")
async def test_those_who_lower_at_the_same_moment_lower_once(pool: Pool, rows: Rows) -> None:
    mine = Workers(pool, worker_id=await register(pool, "test"), lease=60.0)
    await long_ago(rows)
    await asyncio.gather(*(mine.reduce_quota(0.5 / n, 60.0) for n in range(1, 21)))
    written = await rows.query("select xmin::text, fraction from push_listener.shared_quota")
    await mine.reduce_quota(0.001, 60.0)
    assert await rows.query("select xmin::text, fraction from push_listener.shared_quota") == written


@pytest.mark.asyncio(loop_scope="module")
async def test_a_clock_that_was_put_right_keeps_nobody_slow(pool: Pool, rows: Rows) -> None:
    mine = Workers(pool, worker_id=await register(pool, "test"), lease=60.0)
    for moment in ("now() + interval '1 day'", "now() - interval '10 years'"):
        with naming(moment):
            await rows.connection.execute(
                sql.SQL("update push_listener.shared_quota set fraction = 0.01, reduced_at = {}").format(
                    sql.SQL(moment)
                )
            )
            seen, now = await mine.quota_state(), time.monotonic()
            bucket = Quota(FCM, 0.0, now)
            bucket.learn(seen.workers, quota.Fraction(seen.fraction, now - seen.age), now)
            assert bucket.fraction.at(time.monotonic()) == 1.0
            await mine.reduce_quota(0.5, 60.0)
            assert (await mine.quota_state()).fraction == 0.5


@pytest.mark.asyncio(loop_scope="module")
async def test_without_the_row_every_worker_goes_on_alone(pool: Pool, rows: Rows) -> None:
    mine = Workers(pool, worker_id=await register(pool, "test"), lease=60.0)
    await rows.query("delete from push_listener.shared_quota")
    await mine.reduce_quota(0.5, 60.0)
    assert await mine.quota_state() == QuotaState(1, 1.0, 0.0)
    await rows.query("insert into push_listener.shared_quota default values")


async def long_ago(rows: Rows) -> None:
    """Nothing was lowered lately: a database that was just made counts as lowered, to all of it, at that moment."""
    await rows.query("update push_listener.shared_quota set reduced_at = now() - interval '1 hour'")


@pytest.fixture
def long_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is lowered once in 20 s, so that a slow machine does more than one thing in that time."""
    assert workers._REDUCE_QUOTA.count("'1 second'") == 1
    monkeypatch.setattr(workers, "_REDUCE_QUOTA", workers._REDUCE_QUOTA.replace("'1 second'", "'20 seconds'"))


# --- what the workers tell one another ------------------------------------------------------------------------------


class Counting(Workers):
    """Counts how often the shared quota is asked for."""

    asked = 0

    async def quota_state(self) -> QuotaState:
        self.asked += 1
        return await super().quota_state()


@asynccontextmanager
async def sharing(
    pool: Pool, per_minute: int = FCM, interval: float = 0.02
) -> AsyncIterator[tuple[SharedQuota, Quota, Counting]]:
    queue = Counting(pool, worker_id=await register(pool, "test"), lease=60.0)
    bucket = Quota(per_minute, 0.0, time.monotonic())
    shared = SharedQuota(queue, bucket, Metrics(), interval=interval)
    running = asyncio.create_task(shared.run())
    try:
        yield shared, bucket, queue
    finally:
        running.cancel()
        await asyncio.wait({running})


PUSHES: list[Push] = [push() for _ in range(500)]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_one_is_told_all_know(pool: Pool, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    await long_ago(rows)
    async with sharing(pool) as (told, _, _), sharing(pool) as (hears, bucket, _):
        hears.claimed(PUSHES, time.monotonic())
        told.refused(Limit.PROJECT, time.monotonic())
        async with asyncio.timeout(PATIENCE):
            while bucket.fraction.at(time.monotonic()) == 1.0:
                await asyncio.sleep(0.01)
                hears.claimed(PUSHES, time.monotonic())
    assert bucket.fraction.value == pytest.approx(0.5, abs=0.01)


@pytest.mark.asyncio(loop_scope="module")
async def test_who_sends_next_to_nothing_asks_for_nothing(pool: Pool, rows: Rows) -> None:
    await long_ago(rows)
    async with sharing(pool, interval=3600.0) as (shared, _, queue):
        shared.claimed([], time.monotonic())
        shared.claimed(PUSHES[:50], time.monotonic())
        for _ in range(100):
            await asyncio.sleep(0)
        assert queue.asked == 0
        shared.claimed(PUSHES, time.monotonic())
        shared.claimed(PUSHES, time.monotonic())
        await until(lambda: queue.asked)
        for _ in range(100):
            await asyncio.sleep(0)
            shared.claimed(PUSHES, time.monotonic())
        assert queue.asked == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_database_that_is_away_keeps_nobody_from_lowering(
    pool: Pool, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.query("alter table push_listener.shared_quota rename to gone")
    async with sharing(pool) as (shared, bucket, queue):
        shared.refused(Limit.PROJECT, time.monotonic())
        assert bucket.fraction.value == 0.5
        failed = {"statement": "quota"}
        await shown(shared._metrics, "push_database_errors_total", 1.0, failed)
        await rows.query("alter table push_listener.gone rename to shared_quota")
        shared.claimed(PUSHES, time.monotonic())
        await until(lambda: queue.asked)
        await shown(shared._metrics, "push_database_errors_total", 1.0, failed)
    assert bucket.fraction.value == 0.5


# --- real requests ---------------------------------------------------------------------------------------------------


class Fcm:
    """The emulator, and how fast requests come to it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self._seen = 0

    async def pass_by(self, count: int) -> list[Received]:
        """The next so many requests from now on."""
        self._seen = len(self.emulator.received)
        return (await self.emulator.wait_received(self._seen + count, timeout=PATIENCE))[-count:]


@pytest.fixture
def fcm(place: Place) -> Fcm:
    return Fcm(place.emulator)


async def sent_by(rows: Rows, last: int) -> Counter[str]:
    """How many of the last so many pushes each worker has sent, by its name."""
    found = await rows.query(
        "select w.name from push_notifications p join push_listener.workers w on w.id = p.claimed_by "
        "where p.status = 'sent' order by p.sent_at desc limit %(last)s",
        last=last,
    )
    return Counter(row["name"] for row in found)


async def rate_of(worker: Program) -> float:
    """Requests a second that a process allows itself, as it says."""
    _, text = await get(await worker.port(), "/metrics")
    (line,) = [each for each in text.splitlines() if each.startswith("push_quota_share_requests_per_second ")]
    return float(line.split()[1])


@asynccontextmanager
async def process(
    database: Database, emulator: Emulator, name: str, **variables: str
) -> AsyncIterator[Program]:
    given = {"worker_name": name, "fcm_ramp": "0", "sweep_interval": "3600", **variables}
    async with program("run", env=environment(database.dsn, emulator, **given), forked=True) as started:
        await started.said("ready")
        yield started


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.timeout(180)
async def test_two_processes_share_one_quota_and_give_it_back(place: Place, fcm: Fcm) -> None:
    """About 22 a second come from both together, and up to 75 at once from each when the second begins."""
    database, rows, emulator = place
    async with AsyncExitStack() as stack:
        await rows.add_many(1500, "normal")
        first = await stack.enter_async_context(process(database, emulator, "first", fcm_quota=str(QUOTA)))
        await emulator.wait_received(138, timeout=PATIENCE)
        allowed = await rate_of(first)

        second = await stack.enter_async_context(process(database, emulator, "second", fcm_quota=str(QUOTA)))
        await rate_of(second)  # This process has read all earlier requests, so pass_by() does not count them.
        began = time.monotonic()
        (*_, last) = await fcm.pass_by(225)
        together = (225 - 150) / (last.at - began)
        async with asyncio.timeout(PATIENCE):  # each learns of the other a second after it began
            while [await rate_of(each) for each in (first, second)] != pytest.approx([allowed / 2] * 2):
                await fcm.pass_by(5)
        shares = await sent_by(rows, 225)

        second.terminate()
        await second.ended()
        async with asyncio.timeout(PATIENCE):
            while await rate_of(first) < 0.9 * allowed:
                await fcm.pass_by(5)
    print(f"requests a second: {together:.0f} together, {shares} of the last")
    assert together < 1.2 * WHOLE
    assert set(shares) == {"first", "second"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.timeout(180)
async def test_429_lowers_the_rate_of_two_workers_and_it_comes_back(
    place: Place, fcm: Fcm, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    whole = 9.0  # requests a second of two workers that share 600 a minute
    monkeypatch.setattr(quota, "RECOVERY_S", 12.0)
    monkeypatch.setattr(shared_quota, "RECOVERY_S", 12.0)
    settings = place.settings(fcm_quota=600, fcm_ramp=0, max_tries=100)
    async with serving(settings) as one, serving(settings) as other:
        await rows.add_many(600, "normal")
        await emulator.wait_received(65, timeout=PATIENCE)

        rule, began = emulator.add_fault("project_quota_exceeded,retry_after=1"), time.monotonic()
        await until(
            lambda: all(
                value(each, "push_quota_share_requests_per_second") < 0.2 * whole / 2 for each in (one, other)
            )
        )
        times = [value(each, "push_quota_reduced_total") for each in (one, other)]
        (written,) = await rows.query("select fraction from push_listener.shared_quota")
        ended = time.monotonic()
        emulator.remove_fault(rule)

        (*_, last) = await fcm.pass_by(20)
        await until(
            lambda: (
                sum(value(each, "push_quota_share_requests_per_second") for each in (one, other))
                > 0.9 * whole
            )
        )
        await fcm.pass_by(5)
    assert written["fraction"] < 0.5
    # For many answers, but not for each of them.
    assert all(1 <= each <= 1 + ended - began for each in times)
    assert 20 / (last.at - ended) < 0.8 * whole


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_that_starts_while_the_rate_is_lowered_starts_lowered(place: Place) -> None:
    rows = place.rows
    await rows.query("update push_listener.shared_quota set fraction = 0.1, reduced_at = now()")
    async with serving(place.settings(fcm_ramp=0)) as service:
        assert value(service, "push_quota_share_requests_per_second") < 0.8 * FCM / 60


@pytest.mark.asyncio(loop_scope="module")
async def test_429_for_one_topic_lowers_nothing(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("topic_quota_exceeded,topic=news")
    async with serving(place.settings()) as service:
        topic = await rows.add(topic="news", title="t")
        await rows.until(lambda found: found[topic]["error_code"] == "QUOTA_EXCEEDED")
        assert value(service, "push_quota_reduced_total") == 0.0
        emulator.add_fault("project_quota_exceeded,token=phone")
        token = await rows.add(device_token="phone", title="t")
        await rows.until(lambda found: found[token]["error_code"] == "RESOURCE_EXHAUSTED")
        assert value(service, "push_quota_reduced_total") == 1.0


@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_told_once_that_the_rate_is_lowered_and_once_that_it_is_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    said: list[str] = []
    monkeypatch.setattr(shared_quota.log, "warning", lambda event, **_: said.append(event), raising=False)
    monkeypatch.setattr(shared_quota.log, "info", lambda event, **_: said.append(event), raising=False)
    monkeypatch.setattr(quota, "RECOVERY_S", 1.5)
    emulator.add_fault("quota_exceeded,times=20,retry_after=0")
    async with serving(place.settings(max_tries=100)):
        await rows.add_many(20, "normal")
        await rows.over()
        await until(lambda: len(said) == 2)
    assert said == [
        "FCM answers 429, too many requests: sending more slowly",
        "sending at the whole rate again",
    ]


# --- high priority, and who waits --------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_high_priority_does_not_wait_for_what_others_have_used_up(place: Place) -> None:
    """600 a minute. A push to 600 devices uses up what comes in a minute, twice as long as the test would wait."""
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    await rows.query(
        "insert into push_devices (token, user_id, platform) "
        "select 'device-' || n, %(user)s, 'android' from generate_series(1, 600) n",
        user=user,
    )
    async with serving(place.settings(fcm_quota=600, fcm_ramp=0)):
        await rows.add(user_id=user, title="t")
        await emulator.wait_accepted(600, timeout=PATIENCE)
        normal = await rows.add(device_token="normal", title="t")
        high = [await rows.add(device_token=f"high-{n}", title="t", priority="high") for n in range(5)]
        came = await emulator.wait_accepted(605, timeout=PATIENCE)
        unclaimed = await rows.query("select id from push_notifications where claimed_by is null")
    assert {record.push_id for record in came[600:]} == {str(push_id) for push_id in high}
    assert [row["id"] for row in unclaimed] == [normal]


@pytest.mark.asyncio(loop_scope="module")
async def test_who_waits_for_the_quota_holds_nothing_and_does_not_spin(place: Place, fcm: Fcm) -> None:
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings(fcm_quota=60, fcm_ramp=0)) as service:
        await rows.add_many(30, "normal")
        await emulator.wait_accepted(6, timeout=PATIENCE)
        assert service.worker is not None
        looks = service.worker.dispatcher.looks
        await fcm.pass_by(1)
        await rows.until(lambda found: all(row["status"] in ("sent", "pending") for row in found.values()))
        looks = service.worker.dispatcher.looks - looks
        assert looks < 100  # for one push; without a pause there would be thousands
        assert value(service, "push_in_flight") <= 1
        await fcm.pass_by(1)
        assert value(service, "push_quota_waited_seconds_total") > 1.0
