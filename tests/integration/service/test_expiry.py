"""Pushes past ``expires_at``: they use no quota, are no probe, and stand before nobody."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from listener.clock import elapsed
from listener.emulator import Emulator
from listener.fcm.auth import AccessTokens
from listener.sending import attempt
from tests.support.postgres import Database
from tests.support.service import PATIENCE, Place, Rows, naming, sample, serving, settings_for, shown

_LATE = """
insert into push_notifications (device_token, title, priority, next_attempt_at, expires_at, delivery_attempts, status)
select 'late-' || n, 't', %(priority)s, now() - interval '1 h', now() - interval '1 s', %(attempts)s, %(status)s
  from generate_series(1, %(count)s) n
"""


async def late(
    rows: Rows, count: int, *, priority: str = "normal", attempts: int = 0, status: str = "pending"
) -> None:
    """Pushes that have expired, before everything else in the queue."""
    await rows.query(_LATE, count=count, priority=priority, attempts=attempts, status=status)


async def states(rows: Rows) -> list[tuple[str, str | None, int]]:
    found = await rows.query(
        "select status, error_code, count(*)::integer as n from push_notifications group by 1, 2 order by 1, 2"
    )
    return [(row["status"], row["error_code"], row["n"]) for row in found]


@pytest.mark.asyncio(loop_scope="module")
async def test_expired_pushes_use_no_quota_and_stand_before_nobody(place: Place) -> None:
    """600 a minute: 600 expired pushes would use up the quota of a minute, twice as long as the test would wait."""
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings(fcm_quota=600)) as service:
        for number, priority in enumerate(("normal", "high"), 1):
            with naming(priority):
                async with rows.connection.transaction():  # a claim finds them all
                    await late(rows, 600, priority=priority)
                    fresh = await rows.add(device_token="fresh", title="t", priority=priority)
                await rows.one_over(fresh, PATIENCE)
                await rows.until(lambda found: all(row["next_attempt_at"] is None for row in found.values()))
                assert await states(rows) == [("expired", "EXPIRED", 600 * number), ("sent", None, number)]
                assert len(emulator.received) == number
        # The quota is as if they had never been there.
        await rows.add_many(40, "more")
        await emulator.wait_accepted(42, timeout=PATIENCE)
        await shown(service.metrics, "push_settled_total", 1200, {"status": "expired"})
        assert sample(service.metrics, "push_quota_waited_seconds_total") == 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_after_an_outage_expired_pushes_are_no_probes(place: Place) -> None:
    """FCM is away, 600 pushes expire meanwhile, and a fresh one is the first probe."""
    rows, emulator = place.rows, place.emulator
    rule = emulator.add_fault("unavailable,retry_after=0")
    settings = place.settings(fcm_ramp=0, retry_min_delay=1, retry_max_delay=1)
    async with serving(settings) as service:
        await rows.add_many(30, "outage")
        await shown(service.metrics, "push_paused", 1.0, {"reason": "away"})
        await rows.query("update push_notifications set expires_at = now(), next_attempt_at = now()")
        await late(rows, 600, attempts=3, status="failed")
        fresh = await rows.add(device_token="fresh", title="t")
        emulator.remove_fault(rule)
        began = time.monotonic()
        await rows.one_over(fresh, PATIENCE)
        print(f"after {time.monotonic() - began:.2f} s")
        assert [record.push_id for record in emulator.accepted] == [str(fresh)]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_made_no_request_is_given_back_to_the_quota(place: Place) -> None:
    """600 a minute: pushes that can never be sent would use it up."""
    rows, emulator = place.rows, place.emulator
    await rows.query(
        "insert into push_notifications (device_token, title, data, next_attempt_at) "
        "select 'bad', 't', '[]', now() - interval '1 h' from generate_series(1, 400)"
    )
    fresh = await rows.add(device_token="fresh", title="t")
    async with serving(place.settings(fcm_quota=600, fcm_ramp=0)) as service:
        await rows.one_over(fresh, PATIENCE)
        waited = sample(service.metrics, "push_quota_waited_seconds_total")
    assert waited is not None
    assert waited < 20.0  # next to nothing; for 400 requests it would be 35 at least
    assert [record.push_id for record in emulator.received] == [str(fresh)]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_that_one_device_has_accepted_does_not_expire(place: Place) -> None:
    rows = place.rows
    user = uuid4()
    partly = await rows.add(user_id=user, title="t")
    await late(rows, 100)
    await rows.query(
        "update push_notifications set delivery_attempts = 1, status = 'failed', expires_at = now(), "
        "next_attempt_at = now() - interval '1 h' where id = %(id)s",
        id=partly,
    )
    await rows.query(
        "insert into push_delivery_logs (push_id, device_token, status) values (%(id)s, 'a', 'sent')",
        id=partly,
    )
    async with serving(place.settings()):
        row = await rows.one_over(partly)
        assert (row["status"], row["error_code"]) == ("sent", "EXPIRED")
        await rows.until(lambda found: all(row["next_attempt_at"] is None for row in found.values()))


@pytest.mark.parametrize(
    "trigger",
    [
        "if new.status = 'expired' and old.device_token = 'late-7' then raise 'no'; end if",
        "if new.status = 'expired' then perform pg_sleep(0.005); end if",
    ],
    ids=["refuses", "is slow"],
)
async def test_a_trigger_that_keeps_them_from_expiring_in_bulk_delays_nobody_else(
    database: Database, rows: Rows, emulator: Emulator, trigger: str
) -> None:
    await rows.connection.execute(
        "create function public.test_guard() returns trigger language plpgsql as "
        f"$$ begin {trigger}; return new; end $$; "
        "create trigger test_guard before update on public.push_notifications "
        "for each row execute function public.test_guard()".encode()
    )
    await rows.connection.execute(
        f"alter role postgres in database {database.name} set statement_timeout = '400ms'".encode()
    )
    await late(rows, 150)
    fresh = await rows.add(device_token="fresh", title="t")
    async with serving(settings_for(database.dsn, emulator, fcm_quota=600, settle_batch=20)):
        await rows.one_over(fresh)
        found = await rows.over()
    by_token = {row["device_token"]: row["status"] for row in found.values()}
    refused = {token for token, status in by_token.items() if status != "expired"}
    assert refused <= {"fresh", "late-7"}


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_begun_after_the_expiry_however_long_an_access_token_takes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One push expires meanwhile, and another one has less time to live when it is sent."""
    rows, emulator = place.rows, place.emulator
    get, waits, comes, passed = AccessTokens.get, asyncio.Semaphore(0), asyncio.Event(), 0.0

    async def slowly(tokens: AccessTokens) -> str:
        waits.release()
        await comes.wait()
        return await get(tokens)

    monkeypatch.setattr(AccessTokens, "get", slowly)
    monkeypatch.setattr(attempt, "elapsed", lambda: elapsed() + passed)
    async with serving(place.settings()) as service:
        await waits.acquire()  # the token that is got at the start
        await rows.query(
            "insert into push_notifications (device_token, title, expires_at) values "
            "('late', 't', now() + interval '30 s'), ('long', 't', now() + interval '1 h')"
        )
        await waits.acquire()
        await waits.acquire()
        passed = 40.0
        comes.set()
        found = {row["device_token"]: row for row in (await rows.over()).values()}
        begun = service.metrics.insert_to_send._sums["normal"]
    assert (found["late"]["status"], found["late"]["error_code"]) == ("expired", "EXPIRED")
    (record,) = emulator.received
    assert record.push_id == str(found["long"]["id"])
    assert record.message is not None
    assert 3500 < int(record.message["android"]["ttl"][:-1]) < 3599
    assert await rows.logs(found["late"]["id"]) == []
    assert begun >= 40.0
