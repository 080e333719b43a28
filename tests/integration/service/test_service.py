"""The whole way of a push: a row committed to Postgres, the service, FCM (the emulator), the row's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from listener.clock import elapsed
from listener.emulator import Emulator
from listener.emulator.received import Received
from listener.fcm.auth import AccessTokens
from listener.fcm.credentials import load_credentials
from listener.fcm.outcome import Outcome
from listener.fcm.sender import Sender, messages_url
from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.direct import DirectTransport
from listener.limits.circuit_breaker import CircuitBreaker
from listener.limits.health import FcmHealth, Pause, PauseTimes
from listener.postgres.frontier import WHOLE, Begin
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate, Settlements
from listener.postgres.workers import register
from listener.push import Push, Settlement
from listener.registration import NotMigrated
from listener.schema import migrate
from listener.sending import attempt
from listener.service import Service, credentials_for
from listener.wakeup.waker import SweepingWaker
from tests.support.postgres import Database
from tests.support.servers import forget_proxies
from tests.support.service import (
    PATIENCE,
    Place,
    Rows,
    Shared,
    dispatcher_of,
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


def of(push_id: UUID, emulator: Emulator) -> list[Received]:
    return [record for record in emulator.received if record.push_id == str(push_id)]


# --- one row ---------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
async def test_a_plain_insert_is_sent(
    database: Database, rows: Rows, emulator: Emulator, service: Service
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        found = conn.execute(
            "insert into push_notifications (device_token, title, body) values ('phone-1', 'Hello', 'you') "
            "returning id"
        ).fetchone()
    assert found is not None
    row = await rows.one_over(found[0])
    (record,) = emulator.received
    assert (row["status"], row["retry_count"], row["error_code"]) == ("sent", 0, None)
    assert row["fcm_message_id"] == record.name
    assert (record.kind, record.target, record.push_id) == ("token", "phone-1", str(row["id"]))
    message = record.message
    assert message is not None
    assert message["notification"] == {"title": "Hello", "body": "you"}
    assert message["android"]["notification"]["tag"] == str(row["id"])
    (log,) = await rows.logs(row["id"])
    assert (log["device_token"], log["status"]) == ("phone-1", "sent")
    assert (log["details"]["attempt"], log["details"]["message_id"]) == (1, record.name)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_waited_before_the_start_is_sent(place: Place) -> None:
    rows = place.rows
    push_id = await rows.add(device_token="t", title="t")
    async with serving(place.settings()):
        assert (await rows.one_over(push_id))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_topic_and_condition(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    for target in ({"topic": "news"}, {"condition": "'news' in topics && 'sport' in topics"}):
        with naming(str(target)):
            row = await rows.one_over(await rows.add(title="t", **target))
            (record,) = of(row["id"], emulator)
            assert (row["status"], {record.kind: record.target}) == ("sent", target)
            (log,) = await rows.logs(row["id"])
            assert log["device_token"] is None
            assert {name: log["details"][name] for name in target} == target


FID = "dIsVQ2QVRT-TWzQVxvNYhM"


@pytest.mark.asyncio(loop_scope="module")
async def test_an_installation_id_goes_out_as_one(shared: Shared) -> None:
    """Also where push_recipients has it in the column of the tokens; and its receipt is taken."""
    rows, emulator = shared.rows, shared.emulator
    user = uuid4()
    for device in (FID, "dead-phone"):
        await rows.query("select register_device(%(device)s, 'web', %(user)s)", device=device, user=user)
    to_it = await rows.one_over(await rows.add(fid=FID, title="t"))
    to_user = await rows.one_over(await rows.add(user_id=user, title="t"))
    assert (to_it["status"], to_user["status"]) == ("sent", "sent")
    assert {(each.kind, each.target) for each in of(to_it["id"], emulator)} == {("fid", FID)}
    assert {(each.kind, each.target) for each in of(to_user["id"], emulator)} == {
        ("fid", FID),
        ("token", "dead-phone"),
    }
    (log,) = await rows.logs(to_it["id"])
    assert (log["device_token"], log["status"]) == (FID, "sent")
    (receipt,) = await rows.query(
        "select record_delivery_receipt(%(id)s, %(fid)s, 'delivered') as recorded", id=to_it["id"], fid=FID
    )
    assert (receipt["recorded"], (await rows.get(to_it["id"]))["status"]) == (True, "delivered")


@pytest.mark.asyncio(loop_scope="module")
async def test_an_installation_that_is_gone_is_disabled(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    emulator.add_fault(f"unregistered,token={FID}")
    await rows.query("select register_device(%(fid)s, 'web', gen_random_uuid())", fid=FID)
    row = await rows.one_over(await rows.add(fid=FID, title="t"))
    assert (row["status"], row["error_code"]) == ("dead", "UNREGISTERED")
    assert [(each.kind, each.error_code) for each in of(row["id"], emulator)] == [("fid", "UNREGISTERED")]
    (device,) = await rows.query("select disabled_reason from push_devices")
    assert device["disabled_reason"] == "UNREGISTERED"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_scheduled_push_goes_out_when_its_time_has_come(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    (times,) = await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('t', 't', clock_timestamp() + interval '0.8 s') "
        "returning id, next_attempt_at as due, clock_timestamp() as added"
    )
    row = await rows.one_over(times["id"])
    (record,) = emulator.received
    # Postgres and the emulator share a clock; the sweep, which could have found it too, comes in an hour.
    assert times["due"] <= row["sent_at"]
    assert times["due"].timestamp() <= record.received_at


@pytest.mark.asyncio(loop_scope="module")
async def test_a_clock_that_is_a_day_wrong_changes_nothing(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours only: the database's clock is the one that counts, for schedules, leases, retries and expiry."""
    rows, emulator = shared.rows, shared.emulator
    # There is an access token from then on: Google refuses to give one to a clock that is wrong.
    await rows.one_over(await rows.add(device_token="first", title="t"))
    real = time.time
    for step in (-86_400.0, 86_400.0):
        with naming(f"{step} s"), monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda step=step: real() + step)
            emulator.add_fault("unavailable,token=retried,times=1")
            (later,) = await rows.query(
                "insert into push_notifications (device_token, title, next_attempt_at, expires_at) values "
                "('t', 't', clock_timestamp() + interval '1 s', clock_timestamp() + interval '1 min') "
                "returning id, next_attempt_at as due"
            )
            retried = await rows.add(device_token="retried", title="t")
            found = await rows.over(later["id"], retried)
            assert {row["status"] for row in found.values()} == {"sent"}
            assert found[retried]["retry_count"] == 1
            assert later["due"] <= found[later["id"]]["sent_at"]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_earlier_push_overtakes_a_scheduled_one(shared: Shared) -> None:
    rows = shared.rows
    (later,) = await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('later', 't', now() + interval '1 hour') returning id"
    )
    row = await rows.one_over(await rows.add(device_token="now", title="t"))
    assert row["status"] == "sent"
    assert (await rows.get(later["id"]))["status"] == "pending"


@pytest.mark.asyncio(loop_scope="module")
async def test_unavailable_twice_then_accepted(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    emulator.add_fault("unavailable,times=2")
    row = await rows.one_over(await rows.add(device_token="t", title="t"))
    assert (row["status"], row["retry_count"], row["delivery_attempts"]) == ("sent", 2, 3)
    assert [log["status"] for log in await rows.logs(row["id"])] == ["unknown", "unknown", "sent"]
    assert [log["details"]["attempt"] for log in await rows.logs(row["id"])] == [1, 2, 3]
    # The same ids each time, so that a copy replaces the first on the device.
    assert len({record.body for record in emulator.received}) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_that_alone_is_unavailable_for_good_is_dead_after_the_last_try(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("unavailable,token=t")
    async with serving(place.settings(max_tries=3)):
        row = await rows.one_over(await rows.add(device_token="t", title="t"))
    assert (row["status"], row["retry_count"], row["error_code"]) == ("dead", 3, "UNAVAILABLE")
    assert row["last_error"].startswith("given up after 3 tries: ")
    # Nothing had told whether it is the push that fails or FCM: before it was given up, FCM was asked.
    requests = emulator.received
    assert [(r.push_id, r.outcome) for r in requests if r.validate_only] == [(None, "validated")]
    assert len(requests) == 3 + 1


@pytest.mark.asyncio(loop_scope="module")
async def test_no_push_is_given_up_while_fcm_is_away(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    fault = emulator.add_fault("unavailable")
    async with serving(place.settings(max_tries=3)):
        ids = [await rows.add(device_token=f"t{n}", title="t") for n in range(2)]
        await emulator.wait_received(12, timeout=PATIENCE)
        emulator.remove_fault(fault)
        found = await rows.over()
    assert {found[push_id]["status"] for push_id in ids} == {"sent"}
    assert all(found[push_id]["retry_count"] <= 2 for push_id in ids)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_retry_after_past_the_expiry_expires_the_push(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("unavailable,retry_after=60")
    async with serving(place.settings()):
        (added,) = await rows.query(
            "insert into push_notifications (device_token, title, expires_at) "
            "values ('t', 't', now() + interval '30 s') returning id"
        )
        row = await rows.one_over(added["id"])
    assert (row["status"], row["error_code"], len(emulator.received)) == ("expired", "UNAVAILABLE", 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_devices_whose_turn_comes_after_the_expiry_get_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    user = uuid4()
    for n in range(4):
        await rows.device(f"phone-{n}", user)
    passed = 0.0
    monkeypatch.setattr(attempt, "elapsed", lambda: elapsed() + passed)
    async with serving(place.settings(max_in_flight=1)):
        with unanswered(emulator):
            (added,) = await rows.query(
                "insert into push_notifications (user_id, title, expires_at) "
                "values (%(user)s, 't', now() + interval '30 s') returning id",
                user=user,
            )
            await emulator.wait_received(1, timeout=PATIENCE)  # one request at a time
            passed = 40.0  # and before it is answered the push has expired
        row = await rows.one_over(added["id"])
        assert row["status"] == "sent"
        assert row["error_code"] == "EXPIRED"
        assert len(emulator.received) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_dead_token_ends_the_push_and_disables_the_device(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    await rows.device("dead-phone", uuid4())
    row = await rows.one_over(await rows.add(device_token="dead-phone", title="t"))
    assert (row["status"], row["error_code"], len(emulator.received)) == ("dead", "UNREGISTERED", 1)
    assert await rows.query("select disabled_reason from push_devices where disabled_at is not null") == [
        {"disabled_reason": "UNREGISTERED"}
    ]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_put_back_by_hand_goes_out_at_once(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    emulator.add_fault("invalid_argument,times=1")
    row = await rows.one_over(await rows.add(device_token="t", title="t"))
    assert row["status"] == "dead"
    await rows.query("update push_notifications set status = 'pending', next_attempt_at = now()")
    row = await rows.one_over(row["id"])
    assert (row["status"], row["error_code"], row["last_error"]) == ("sent", None, None)


# --- to a user -------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a_retry_goes_only_to_the_device_that_failed(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("tablet", user, "ios")
    emulator.add_fault("unavailable,token=tablet,times=1")
    row = await rows.one_over(await rows.add(user_id=user, title="t"))
    assert (row["status"], row["retry_count"]) == ("sent", 1)
    asked = [(record.target, record.accepted) for record in of(row["id"], emulator)]
    assert sorted(asked[:2]) == [("phone", True), ("tablet", False)]
    assert asked[2:] == [("tablet", True)]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fault_of_ours_at_one_device_costs_no_other_its_answer(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shared.rows
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("tablet", user, "ios")
    send, failures = Sender.send, iter([RuntimeError("of ours")])

    async def faulty(sender: Sender, outgoing: Outgoing) -> Outcome:
        if b"tablet" in outgoing.make_body() and (error := next(failures, None)):
            raise error
        return await send(sender, outgoing)

    monkeypatch.setattr(Sender, "send", faulty)
    row = await rows.one_over(await rows.add(user_id=user, title="t"))
    assert (row["status"], row["retry_count"]) == ("sent", 1)
    logs = await rows.logs(row["id"])
    assert sorted((log["device_token"], log["status"]) for log in logs) == [
        ("phone", "sent"),
        ("tablet", "failed"),
        ("tablet", "sent"),
    ]


@pytest.mark.asyncio(loop_scope="module")
async def test_one_dead_device_of_two_is_disabled_and_the_push_is_sent(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("dead-tablet", user, "ios")
    row = await rows.one_over(await rows.add(user_id=user, title="t"))
    assert (row["status"], row["error_code"], len(emulator.received)) == ("sent", "UNREGISTERED", 2)
    assert await rows.query("select token from push_recipients") == [{"token": "phone"}]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_user_without_devices(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    row = await rows.one_over(await rows.add(user_id=uuid4(), title="t"))
    assert (row["status"], row["error_code"]) == ("dead", "NO_RECIPIENTS")
    assert (emulator.received, await rows.logs(row["id"])) == ([], [])


# --- many rows -------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_many_at_once_are_each_sent_once_within_the_bound(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.latency = 0.5  # long enough to claim more while these wait, however slow the machine
    await rows.add_many(60)
    async with serving(place.settings(max_in_flight=30, claim_batch=12)):
        found = await rows.over()
    assert {row["status"] for row in found.values()} == {"sent"}
    assert {row["delivery_attempts"] for row in found.values()} == {1}
    stats = emulator.stats()
    assert (stats["accepted"], stats["duplicates"]) == (60, 0)
    assert 12 <= stats["max_in_flight"] <= 30


@pytest.mark.asyncio(loop_scope="module")
async def test_what_waits_to_be_written_keeps_nothing_from_being_sent_but_has_a_bound(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    settle, writes = Settlements.settle, asyncio.Event()

    async def settle_later(
        self: Settlements, batch: Sequence[Settlement], *, is_retry: bool = False
    ) -> list[Fate]:
        await writes.wait()
        return await settle(self, batch, is_retry=is_retry)

    monkeypatch.setattr(Settlements, "settle", settle_later)
    await rows.add_many(50)
    async with serving(place.settings(max_in_flight=16)) as service:
        await emulator.wait_accepted(30, timeout=PATIENCE)  # two of 16 are kept for high priority
        await until(lambda: service.worker is not None and not service.worker.dispatcher._sending)
        assert len(emulator.accepted) == 30
        writes.set()
        await emulator.wait_accepted(50, timeout=PATIENCE)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_urgent_has_a_place_beside_what_hangs(place: Place) -> None:
    """And so has what is not, until all places but the two for high priority hang."""
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("timeout,token=hanging")
    settings = place.settings(max_in_flight=16, fcm_request_timeout=50, lease=200, shutdown_grace=0.5)
    async with serving(settings):
        for _ in range(13):
            await rows.add(device_token="hanging", title="t")
        await emulator.wait_received(13, timeout=PATIENCE)
        for _ in range(3):
            assert (await rows.one_over(await rows.add(device_token="phone", title="t")))["status"] == "sent"
        await rows.add(device_token="hanging", title="t")
        await emulator.wait_received(13 + 3 + 1, timeout=PATIENCE)
        for waiting in (0, 100):
            with naming(f"{waiting} that wait"):
                await rows.query(
                    "insert into push_notifications (device_token, title) "
                    "select 'hanging', 't' from generate_series(1, %(n)s)",
                    n=waiting,
                )
                for _ in range(5):
                    urgent = await rows.add(device_token="phone", title="t", priority="high")
                    assert (await rows.one_over(urgent))["status"] == "sent"
    assert emulator.stats()["max_in_flight"] == 15


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_urgent_does_not_wait_for_the_devices_of_others(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    emulator.add_fault("timeout,token_prefix=hanging")
    user = uuid4()
    for n in range(40):
        await rows.device(f"hanging-{n}", user)
    settings = place.settings(max_in_flight=16, fcm_request_timeout=50, lease=200, shutdown_grace=0.5)
    async with serving(settings):
        await rows.add(user_id=user, title="t")
        await emulator.wait_received(14, timeout=PATIENCE)
        urgent = await rows.add(device_token="phone", title="t", priority="high")
        assert (await rows.one_over(urgent))["status"] == "sent"


async def test_two_services_share_the_work_and_send_nothing_twice(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    """Also where the database prescribes a stricter isolation, which does not reach claims."""
    statement = sql.SQL("alter database {} set default_transaction_isolation to serializable")
    await rows.connection.execute(statement.format(sql.Identifier(database.name)))
    emulator.latency = 0.02
    settings = settings_for(database.dsn, emulator, max_in_flight=50, claim_batch=20)
    async with serving(settings) as one, serving(settings) as other:
        with unanswered(emulator):
            await rows.add_many(150)
            await emulator.wait_received(60, timeout=PATIENCE)  # more than one of them may have under way
        found = await rows.over()
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
    assert (emulator.stats()["accepted"], emulator.stats()["duplicates"]) == (150, 0)
    assert len({row["claimed_by"] for row in found.values()}) == 2
    for service in (one, other):
        for failing in ("claim", "settle"):
            labels = {"statement": failing}
            assert not sample(service.metrics, "push_database_errors_total", labels)


# --- FCM refuses our configuration -----------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause is half a second, for a service that is started later."""
    with_arguments(monkeypatch, FcmHealth, times=PauseTimes(refused_first=0.5))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pause_uses_no_tries_is_told_and_ends_by_a_probe(impatient: None, place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings()) as service:
        assert service.port is not None
        assert await get(service.port, "/readyz") == (200, "ok\n")
        fault = emulator.add_fault("permission_denied")
        first = await rows.add(device_token="first", title="t")
        await rows.until(lambda found: found[first]["error_code"] is not None)
        status, text = await get(service.port, "/readyz")
        assert status == 503
        assert text == f"sending is paused: {Pause.REFUSED}\n"
        assert sample(service.metrics, "push_paused", {"reason": "refused"}) == 1.0

        others = [await rows.add(device_token=f"other-{n}", title="t") for n in range(20)]
        # Probes, refused as well. After a single refusal another push is the probe at once.
        await until(lambda: len(first_refusals(emulator)) >= 3)
        waiting = await rows.all()
        assert {(row["status"], row["retry_count"]) for row in waiting.values()} <= {
            ("pending", 0),
            ("processing", 0),
        }
        emulator.remove_fault(fault)
        found = await rows.over()
        assert {(row["status"], row["retry_count"]) for row in found.values()} == {("sent", 0)}
        assert set(found) == {first, *others}
        assert await get(service.port, "/readyz") == (200, "ok\n")
        assert sample(service.metrics, "push_paused", {"reason": "refused"}) == 0.0
    # One at a time until it is known that they are answered again.
    refused = [record for record in emulator.received if not record.accepted]
    assert len(refused) < 10
    _, second, third, *_ = first_refusals(emulator).values()
    assert third - second > 0.4


def first_refusals(emulator: Emulator) -> dict[str, float]:
    """When each token was first refused, in that order."""
    found: dict[str, float] = {}
    for record in emulator.received:
        if not record.accepted:
            found.setdefault(str(record.target), record.at)
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_that_google_refuses_pauses_and_one_that_is_mended_resumes(
    impatient: None, place: Place
) -> None:
    rows, emulator = place.rows, place.emulator
    fault = emulator.add_fault("oauth_invalid_grant")
    async with serving(place.settings()) as service:
        push_id = await rows.add(device_token="t", title="t")
        row = (await rows.until(lambda found: found[push_id]["error_code"] is not None))[push_id]
        assert (row["status"], row["retry_count"], emulator.received) == ("pending", 0, [])
        assert service.port is not None
        assert (await get(service.port, "/readyz"))[0] == 503
        emulator.remove_fault(fault)
        assert (await rows.one_over(push_id))["status"] == "sent"


# --- the dispatcher alone, where the moment matters ----------------------------------------------------------


class Dispatching:
    """A dispatcher on a real queue and a real sender."""

    def __init__(self, queue: Queue, sender: Sender, settings: Any) -> None:
        self.queue = queue
        self.waker = SweepingWaker()
        self.dispatcher, self.held = dispatcher_on(queue, sender, settings, self.waker)


async def dispatching(place: Place, queue_class: type[Queue]) -> AsyncIterator[Dispatching]:
    emulator = place.emulator
    settings = place.settings()
    credentials, project = load_credentials(emulator.service_account)
    assert project is not None
    tokens = AccessTokens(credentials)
    transport = DirectTransport(messages_url(emulator.endpoint, project), connect_timeout=5, timeout=10)
    sender = Sender(transport, tokens)
    async with pool_of(place.database.dsn) as pool:
        queue = queue_class(pool, worker_id=await register(pool, "test"), lease=60.0)
        try:
            yield Dispatching(queue, sender, settings)
        finally:
            await transport.close()
            await tokens.close()


class Held(Queue):
    """A queue whose second claim has taken its rows, but does not hand them over before ``let_go``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.taken = asyncio.Event()
        self.let_go = asyncio.Event()
        self.claims = 0

    async def claim(
        self,
        limit: int,
        normal_limit: int | None = None,
        excluded: Sequence[UUID] = (),
        begin: Begin = WHOLE,
    ) -> list[Push]:
        pushes = await super().claim(limit, normal_limit, excluded, begin)
        self.claims += bool(pushes)
        if pushes and self.claims == 2:
            self.taken.set()
            await self.let_go.wait()
        return pushes


@pytest_asyncio.fixture(loop_scope="module")
async def held(place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dispatching]:
    forget_proxies(monkeypatch)
    async for each in dispatching(place, Held):
        yield each


@pytest.mark.parametrize("give_back", [False, True])
@pytest.mark.asyncio(loop_scope="module")
async def test_rows_that_a_claim_brings_after_the_stop_are_not_left_behind(
    place: Place, held: Dispatching, give_back: bool
) -> None:
    rows, emulator = place.rows, place.emulator
    queue, dispatcher = held.queue, held.dispatcher
    assert isinstance(queue, Held)
    first = await rows.add(device_token="first", title="t")
    running = asyncio.create_task(dispatcher.run())
    await rows.one_over(first)
    second = await rows.add(device_token="second", title="t")
    held.waker.look.notify()
    await queue.taken.wait()
    dispatcher.stop()
    if give_back:
        dispatcher.give_back()
    queue.let_go.set()
    async with asyncio.timeout(PATIENCE):
        await running
    row = await rows.get(second)
    assert row["status"] == ("pending" if give_back else "sent")
    assert len(emulator.received) == (1 if give_back else 2)


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_in_flight_at_the_stop_and_rows_in_the_last_claim(
    place: Place, held: Dispatching
) -> None:
    """The first row ends between the stop and the answer of the last claim: that must not pass for the end."""
    rows, emulator = place.rows, place.emulator
    queue, dispatcher = held.queue, held.dispatcher
    assert isinstance(queue, Held)
    emulator.add_fault("slow,token=first,latency_ms=400")
    await rows.add(device_token="first", title="t")
    running = asyncio.create_task(dispatcher.run())
    await emulator.wait_received(1, timeout=PATIENCE)
    second = await rows.add(device_token="second", title="t")
    held.waker.look.notify()
    await queue.taken.wait()
    dispatcher.stop()
    await held.held.wait_empty()
    emulator.add_fault("slow,token=second,latency_ms=400")
    queue.let_go.set()
    async with asyncio.timeout(PATIENCE):
        await running
    assert (await rows.get(second))["status"] == "sent"


class Deaf(Queue):
    """A queue whose claims, while ``deaf``, take rows and say nothing of it: the connection broke in between."""

    deaf = False

    async def claim(
        self,
        limit: int,
        normal_limit: int | None = None,
        excluded: Sequence[UUID] = (),
        begin: Begin = WHOLE,
    ) -> list[Push]:
        pushes = await super().claim(limit, normal_limit, excluded, begin)
        if self.deaf and pushes:
            self.deaf = False
            raise psycopg.OperationalError("the connection is lost")
        return pushes


@pytest_asyncio.fixture(loop_scope="module")
async def deaf(place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dispatching]:
    forget_proxies(monkeypatch)
    async for each in dispatching(place, Deaf):
        yield each


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_of_a_claim_whose_answer_was_lost_do_not_wait_for_their_lease(
    place: Place, deaf: Dispatching
) -> None:
    rows, emulator = place.rows, place.emulator
    queue, dispatcher = deaf.queue, deaf.dispatcher
    assert isinstance(queue, Deaf)
    emulator.add_fault("slow,token=held,latency_ms=1000")
    held = await rows.add(device_token="held", title="t")
    running = asyncio.create_task(dispatcher.run())
    await emulator.wait_received(1, timeout=PATIENCE)
    queue.deaf = True
    lost = [await rows.add(device_token="lost", title="t", priority=each) for each in ("high", "normal")]
    deaf.waker.look.notify()
    found = await rows.over(held, *lost)
    dispatcher.stop()
    await running
    assert {row["status"] for row in found.values()} == {"sent"}
    # What the worker knew that it had stayed with it.
    assert (found[held]["delivery_attempts"], emulator.stats()["duplicates"]) == (1, 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_that_somebody_holds_is_not_asked_for_without_end(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, dispatcher = shared.rows, dispatcher_of(shared.service)
    insert = (
        "insert into push_notifications (device_token, title, next_attempt_at) "
        "values ('t', 't', now() + make_interval(secs => %(due)s)) returning id"
    )
    (held,) = await rows.query(insert, due=0.3)
    async with rows_of(shared.database.dsn) as others, others.connection.transaction():
        await others.query("select from push_notifications where id = %(id)s for update", id=held["id"])
        (later,) = await rows.query(insert, due=1.3)
        looks = dispatcher.looks
        assert (await rows.one_over(later["id"]))["status"] == "sent"
        # A second, in which thousands would fit.
        assert dispatcher.looks - looks < 30
    assert (await rows.one_over(held["id"]))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_that_an_application_has_locked_keeps_no_other_from_being_written(
    shared: Shared,
) -> None:
    rows, dispatcher = shared.rows, dispatcher_of(shared.service)
    async with rows_of(shared.database.dsn) as others, others.connection.transaction():
        with unanswered(shared.emulator):
            await rows.add_many(3, "held")
            await shared.emulator.wait_received(3, timeout=PATIENCE)
            held = list(await rows.all())
            await others.query("select from push_notifications where id = any(%(ids)s) for update", ids=held)
        await until(lambda: not dispatcher._sending)
        urgent = [await rows.add(device_token="u", title="t", priority="high") for _ in range(10)]
        await rows.add_many(100)
        usual = [push_id for push_id in await rows.all() if push_id not in held]
        assert {row["status"] for row in (await rows.over(*urgent, *usual)).values()} == {"sent"}
        assert {row["status"] for row in (await rows.all(held)).values()} == {"processing"}
    found = await rows.over(*held)
    assert {(row["status"], row["delivery_attempts"]) for row in found.values()} == {("sent", 1)}
    assert {len(await rows.logs(push_id)) for push_id in held} == {1}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_waits_for_something_keeps_no_other_row_from_being_written(
    shared: Shared,
) -> None:
    rows = shared.rows
    await rows.connection.execute(
        """
        create table budget (spent integer);
        insert into budget values (0);
        create function spend() returns trigger language plpgsql as $$
          begin update budget set spent = spent + 1; return new; end $$;
        create trigger spend before update on push_notifications
          for each row when (new.device_token = 'dear' and new.status = 'sent') execute function spend();
        """
    )
    async with rows_of(shared.database.dsn) as others, others.connection.transaction():
        await others.query("select from budget for update")
        dear = [await rows.add(device_token="dear", title="t") for _ in range(5)]
        await rows.add_many(100)
        others_ids = [push_id for push_id in await rows.all() if push_id not in dear]
        assert {row["status"] for row in (await rows.over(*others_ids)).values()} == {"sent"}
        assert {row["status"] for row in (await rows.all(dear)).values()} == {"processing"}
    assert {row["status"] for row in (await rows.over(*dear)).values()} == {"sent"}
    assert await rows.query("select spent from budget") == [{"spent": 5}]
    assert {len(await rows.logs(push_id)) for push_id in dear} == {1}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pause_ends_although_a_row_is_locked_and_its_probe_is_waited_for_and_not_watched(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    with_arguments(monkeypatch, FcmHealth, times=PauseTimes(refused_first=0.2))
    asked = 0
    limit = CircuitBreaker.limit

    def counted(gate: CircuitBreaker, now: float, in_flight: int) -> int | None:
        nonlocal asked
        asked += 1
        return limit(gate, now, in_flight)

    monkeypatch.setattr(CircuitBreaker, "limit", counted)
    emulator.add_fault("permission_denied,times=1")
    emulator.add_fault("slow,latency_ms=500")
    async with serving(place.settings()) as service:
        await rows.over(*[await rows.add(device_token="t", title="t") for _ in range(3)])
        assert asked < 60

        async with rows_of(place.database.dsn) as others, others.connection.transaction():
            with unanswered(emulator):
                held = await rows.add(device_token="held", title="t")
                await emulator.wait_received(5, timeout=PATIENCE)
                await others.query("select from push_notifications where id = %(id)s for update", id=held)
            await until(lambda: service.worker is not None and service.worker.settler.set_aside)
            emulator.clear_faults()
            emulator.add_fault("permission_denied,times=4")
            pushes = [await rows.add(device_token=f"t{n}", title="t") for n in range(3)]
            await until(lambda: service.pause is not None)
            assert {row["status"] for row in (await rows.over(*pushes)).values()} == {"sent"}
            assert (await rows.get(held))["status"] == "processing"
        assert (await rows.one_over(held))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_ready_means_that_the_queue_has_answered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    settings = place.settings()
    service, ready, connected = (
        Service(settings, *credentials_for(settings)),
        asyncio.Event(),
        asyncio.Event(),
    )
    monkeypatch.setattr(service.metrics.listening, "set", lambda up: connected.set() if up else None)
    async with rows_of(place.database.dsn) as others:
        async with others.connection.transaction():
            await others.query("lock table push_notifications in exclusive mode")  # claims wait
            running = asyncio.create_task(service.run(on_ready=ready.set))
            await connected.wait()
            assert service.port is not None
            assert await get(service.port, "/readyz") == (503, "the database cannot be reached\n")
            assert not ready.is_set()
        async with asyncio.timeout(PATIENCE):
            await ready.wait()
        assert await get(service.port, "/readyz") == (200, "ok\n")
        service.stop()
        await running


# --- what cannot work ------------------------------------------------------------------------------------


async def test_a_database_without_the_tables_is_told(blank_database: Database, emulator: Emulator) -> None:
    with pytest.raises(NotMigrated, match="run push-listener migrate"):
        async with serving(settings_for(blank_database.dsn, emulator)):
            pass


async def test_a_database_that_is_behind_is_told(database: Database, emulator: Emulator) -> None:
    migrate.rollback(database.dsn, migrate.load()[-1].version - 1)
    with pytest.raises(NotMigrated, match="run push-listener migrate"):
        async with serving(settings_for(database.dsn, emulator)):
            pass
