"""One contract for both ways in: Direct, and Rest before a stand-in for PostgREST."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from listener.client import (
    AndroidConfig,
    AndroidNotification,
    APNSConfig,
    APNSPayload,
    Aps,
    BatchResponse,
    ClientError,
    DeliveryReceipts,
    FCMOptions,
    InvalidArgument,
    NotAllowed,
    NotFound,
    Notification,
    NotInstalled,
    Push,
    PushClient,
    Receipt,
    Transport,
    Unavailable,
    WebpushConfig,
    WrongState,
)
from tests.support.client import Way
from tests.support.service import Rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANN = UUID("a0000000-0000-4000-8000-00000000000a")
BOB = UUID("b0000000-0000-4000-8000-00000000000b")


@pytest.fixture
def rows(shared_rows: Rows) -> Rows:
    return shared_rows


def push(**given: Any) -> Push:
    return Push(**{"token": "phone", "notification": Notification("Title", "Body"), **given})


async def sent(rows: Rows, **columns: Any) -> UUID:
    """A push of Ann's that FCM has accepted."""
    push_id = await rows.add(
        user_id=ANN, device_token="phone", title="t", status="sent", next_attempt_at=None, **columns
    )
    await rows.query(
        "update push_notifications set sent_at = now() - interval '1 hour', created_at = now() - interval '2 hours' "
        "where id = %(id)s",
        id=push_id,
    )
    await rows.query(
        "insert into push_delivery_logs (push_id, device_token, status) values (%(id)s, 'phone', 'sent')",
        id=push_id,
    )
    return push_id


# --- enqueue -------------------------------------------------------------------------------------------


async def test_a_push_arrives_as_it_was_described(entry: Way, rows: Rows) -> None:
    send_at = datetime.now(UTC) + timedelta(hours=1)
    async with PushClient(entry.service()) as client:
        push_id = await client.enqueue(
            Push(
                notification=Notification("Grüße", "Ein 'Text' \\ 🚀", "https://example.com/i.png"),
                data={"order": "17", "nested": {"n": [1, 2.5, None, True]}},
                android=AndroidConfig(notification=AndroidNotification(color="#00ff00")),
                apns=APNSConfig(payload=APNSPayload(Aps(badge=3, mutable_content=True), kind="order")),
                webpush=WebpushConfig(headers={"TTL": "10"}),
                fcm_options=FCMOptions("label"),
                token="phone",
                user_id=ANN,
                priority="high",
                channel="orders",
                collapse_key="order-17",
                idempotency_key="order-17-ready",
                send_at=send_at,
                expires_at=send_at + timedelta(minutes=5),
            )
        )
    row = await rows.get(push_id)
    assert {name: row[name] for name in row if name in _DESCRIBED} == {
        **_DESCRIBED,
        "next_attempt_at": send_at,
        "expires_at": send_at + timedelta(minutes=5),
    }


_DESCRIBED: dict[str, Any] = {
    "status": "pending",
    "user_id": ANN,
    "device_token": "phone",
    "title": "Grüße",
    "body": "Ein 'Text' \\ 🚀",
    "image": "https://example.com/i.png",
    "data": {"order": "17", "nested": {"n": [1, 2.5, None, True]}},
    "options": {
        "android": {"notification": {"color": "#00ff00"}},
        "apns": {"payload": {"aps": {"badge": 3, "mutable-content": 1}, "kind": "order"}},
        "webpush": {"headers": {"TTL": "10"}},
        "fcm_options": {"analytics_label": "label"},
    },
    "priority": "high",
    "channel": "orders",
    "collapse_key": "order-17",
    "idempotency_key": "order-17-ready",
    "next_attempt_at": None,
    "expires_at": None,
}


@pytest.mark.parametrize(
    ("target", "column"),
    [
        ({"token": "t"}, "device_token"),
        ({"fid": "cJug2GoHzEfcshCE_OLL24"}, "fid"),
        ({"topic": "news"}, "topic"),
        ({"condition": "'a' in topics"}, "condition"),
        ({"user_id": ANN}, "user_id"),
    ],
)
async def test_every_target(entry: Way, rows: Rows, target: dict[str, Any], column: str) -> None:
    async with PushClient(entry.service()) as client:
        push_id = await client.enqueue(Push(data={"a": "b"}, **target))
    assert (await rows.get(push_id))[column] == next(iter(target.values()))


async def test_a_key_is_enqueued_once(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.service()) as client:
        first = await client.enqueue(push(idempotency_key="k"))
        second = await client.enqueue(push(token="another", idempotency_key="k"))
        answer = await client.enqueue_each([push(idempotency_key="k"), push(idempotency_key="l")])
    assert second == first
    assert [(each.push_id == first, each.is_new) for each in answer.responses] == [
        (True, False),
        (False, True),
    ]
    assert len(await rows.all()) == 2


async def test_what_the_database_refuses_says_why(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.service()) as client:
        with pytest.raises(InvalidArgument, match="p_title is missing") as refused:
            await client.enqueue(Push(token="phone", notification=Notification(body="b")))
        assert refused.value.code == "22023"
    assert await rows.all() == {}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"a": "\x00"}, "U\\+0000"),
        ({"\x00": "a"}, "U\\+0000"),
        ({"a": ["\ud800"]}, "surrogate"),
        ({"a": float("nan")}, "NaN"),
        ({"a": object()}, "not JSON serializable"),
    ],
)
async def test_what_cannot_be_stored_is_refused_before_it_is_sent(
    entry: Way, rows: Rows, data: dict[str, Any], why: str
) -> None:
    async with PushClient(entry.service()) as client:
        with pytest.raises(InvalidArgument, match=why):
            await client.enqueue(push(data=data))
        answer = await client.enqueue_each([push(), push(data=data), push()])
    assert [each.success for each in answer.responses] == [True, False, True]
    assert isinstance(answer.responses[1].exception, InvalidArgument)
    assert len(await rows.all()) == 2


async def test_a_backslash_before_u0000_is_text(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.service()) as client:
        push_id = await client.enqueue(push(data={"path": "c:\\u0000"}))
    assert (await rows.get(push_id))["data"] == {"path": "c:\\u0000"}


# --- enqueue_each --------------------------------------------------------------------------------------


async def test_each_push_is_accepted_or_refused_by_itself(entry: Way, rows: Rows) -> None:
    pushes = [push(token=f"phone-{number}") for number in range(1100)]
    pushes[7] = Push(token="phone-7", notification=Notification(body="no title"))
    pushes[1050] = Push(topic="no blanks here", data={"a": "b"})
    async with PushClient(entry.service()) as client:
        answer = await client.enqueue_each(iter(pushes))
    assert (answer.success_count, answer.failure_count) == (1098, 2)
    failed = {place: each for place, each in enumerate(answer.responses) if not each.success}
    assert set(failed) == {7, 1050}
    assert "title is missing" in str(failed[7].exception)
    assert failed[1050].target == ("topic", "no blanks here")
    found = await rows.all()
    assert {found[each.push_id]["device_token"] for each in answer.responses if each.push_id} == {
        f"phone-{number}" for number in range(1100) if number not in (7, 1050)
    }
    assert [found[each.push_id]["device_token"] for each in answer.responses[:3] if each.push_id] == [
        "phone-0",
        "phone-1",
        "phone-2",
    ]
    with pytest.raises(ExceptionGroup, match="2 of 1100 pushes are not in the queue"):
        answer.raise_for_failures()


async def test_nothing_is_a_batch_too(entry: Way) -> None:
    async with PushClient(entry.service()) as client:
        answer = await client.enqueue_each([])
    assert (answer.responses, answer.failure_count) == ([], 0)
    answer.raise_for_failures()


async def test_a_batch_that_fails_as_a_whole_is_not_tried_further(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.anon()) as client:
        answer = await client.enqueue_each(push() for _ in range(1001))
    assert answer.failure_count == 1001
    assert isinstance(answer.responses[0].exception, NotAllowed)
    assert isinstance(answer.responses[1000].exception, Unavailable)
    assert "not tried" in str(answer.responses[1000].exception)
    assert await rows.all() == {}


# --- what became of it ---------------------------------------------------------------------------------


async def test_cancel(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.service()) as client:
        push_id = await client.enqueue(push())
        assert await client.cancel(push_id) is True
        assert await client.cancel(str(push_id)) is False
        assert await client.cancel(uuid4()) is False
    assert (await rows.get(push_id))["status"] == "cancelled"


async def test_requeue(entry: Way, rows: Rows) -> None:
    ids = [
        await rows.add(device_token="t", title="t", status="dead", user_id=user) for user in (ANN, ANN, BOB)
    ]
    await rows.query("update push_notifications set error_code = 'INTERNAL', next_attempt_at = null")
    now = datetime.now(UTC)
    async with PushClient(entry.service()) as client:
        assert await client.requeue([uuid4()]) == 0
        assert await client.requeue(status="expired") == 0
        assert await client.requeue(error_code="INTERNAL", until=now - timedelta(days=1)) == 0
        assert await client.requeue(ids[:1]) == 1
        assert await client.requeue(user_id=BOB, status="dead", since=now - timedelta(days=1)) == 1
        assert await client.requeue(error_code="INTERNAL", limit=5) == 1
        with pytest.raises(InvalidArgument, match="say which pushes"):
            await client.requeue()
        with pytest.raises(InvalidArgument, match="since has no time zone"):
            await client.requeue(since=datetime(2026, 1, 1))
    assert {row["status"] for row in (await rows.all()).values()} == {"pending"}


async def test_get(entry: Way, rows: Rows) -> None:
    push_id = await sent(rows)
    async with PushClient(entry.service()) as client:
        found = await client.get(push_id)
        waiting = await client.get(await client.enqueue(push()))
    assert (found.push_id, found.status, found.is_over, found.is_accepted) == (push_id, "sent", True, True)
    assert [(each.status, each.platform) for each in found.devices] == [("sent", None)]
    assert found.sent_at is not None
    assert found.next_attempt_at is None
    assert (waiting.status, waiting.is_over, waiting.devices) == ("pending", False, ())
    assert waiting.next_attempt_at is not None
    assert "phone" not in repr(found)


async def test_get_for_users(entry: Way, rows: Rows) -> None:
    push_id = await sent(rows)
    async with PushClient(entry.user(ANN)) as client:
        assert (await client.get(push_id)).status == "sent"
    async with PushClient(entry.user(BOB)) as client:
        for other in (push_id, uuid4()):
            with pytest.raises(NotFound, match="there is no push"):
                await client.get(other)


async def test_get_of_none(entry: Way) -> None:
    async with PushClient(entry.service()) as client:
        with pytest.raises(NotFound, match="there is no push"):
            await client.get(uuid4())
        with pytest.raises(InvalidArgument, match="push_id is no UUID"):
            await client.get("17")


async def test_wait_returns_when_it_is_over(entry: Way, rows: Rows) -> None:
    async with PushClient(entry.service()) as client:
        push_id = await client.enqueue(push())
        assert (await client.wait(push_id, 0.0)).is_over is False
        waiting = asyncio.create_task(client.wait(push_id, 30.0))
        await rows.query(
            "update push_notifications set status = 'dead', error_code = 'X', next_attempt_at = null"
        )
        found = await waiting
    assert (found.status, found.error_code, found.is_over) == ("dead", "X", True)


# --- receipts ------------------------------------------------------------------------------------------


async def test_receipts_with_the_time_of_the_event(entry: Way, rows: Rows) -> None:
    push_id = await sent(rows)
    at = datetime.now(UTC) - timedelta(minutes=30)
    async with entry_receipts(entry.user(ANN)) as receipts:
        assert await receipts.record(push_id, "phone", "delivered", details={"os": "17"}, at=at) is True
        assert await receipts.record(push_id, "phone", "delivered") is False
    row = await rows.get(push_id)
    assert (row["status"], row["delivered_at"]) == ("delivered", at)


async def test_many_receipts_each_by_itself(entry: Way, rows: Rows) -> None:
    push_id = await sent(rows)
    good = Receipt(push_id=push_id, device_token="phone", status="delivered")
    many = [
        good,
        Receipt(push_id=push_id, device_token="phone", status="seen"),
        Receipt(push_id="no id", device_token="phone", status="opened"),
        Receipt(push_id=push_id, device_token="phone", status="opened", at=datetime.now(UTC)),
        good,
    ]
    async with entry_receipts(entry.user(ANN)) as receipts:
        found = await receipts.record_each(many)
        assert [each.recorded for each in found] == [True, False, False, True, False]
        assert [each.exception is not None for each in found] == [False, True, True, False, False]
        # More than one call takes.
        assert len(await receipts.record_each([good] * 501)) == 501


async def test_receipts_of_others_are_refused(entry: Way, rows: Rows) -> None:
    push_id = await sent(rows)
    async with entry_receipts(entry.user(BOB)) as receipts:
        with pytest.raises(NotAllowed, match="no push of yours"):
            await receipts.record(push_id, "phone", "delivered")


async def test_a_receipt_of_what_was_never_sent(entry: Way, rows: Rows) -> None:
    push_id = await rows.add(device_token="phone", title="t")
    async with entry_receipts(entry.service()) as receipts:
        with pytest.raises(WrongState, match="has not been sent"):
            await receipts.record(push_id, "phone", "delivered")
        with pytest.raises(NotFound):
            await receipts.record(uuid4(), "phone", "delivered")


class entry_receipts:
    """Receipts over a transport that is closed at the end."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def __aenter__(self) -> DeliveryReceipts:
        return DeliveryReceipts(self._transport)

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()


# --- errors --------------------------------------------------------------------------------------------


async def test_who_may_not_is_told_so(entry: Way, rows: Rows) -> None:
    for transport in (entry.anon(), entry.user(ANN)):
        async with PushClient(transport) as client:
            with pytest.raises(NotAllowed) as refused:
                await client.enqueue(push())
            assert refused.value.code == "42501"
            assert refused.value.hint
    assert await rows.all() == {}


async def test_a_function_that_is_not_there(entry: Way) -> None:
    transport = entry.service()
    for function, args in [("no_such_function", {}), ("enqueue_push", {"p_no_such": 1})]:
        with pytest.raises(NotInstalled, match="migrate"):
            await transport.call(function, args)
    await transport.close()


async def test_a_function_that_returns_nothing(entry: Way, rows: Rows) -> None:
    transport = entry.user(ANN)
    assert await transport.call("register_device", {"p_token": "phone", "p_platform": "ios"}) is None
    await transport.close()
    assert len(await rows.query("select token from push_devices")) == 1


async def test_nothing_there(entry: Way) -> None:
    async with PushClient(entry.nowhere()) as client:
        with pytest.raises(Unavailable) as failed:
            await client.enqueue(push())
        assert failed.value.may_have_happened is False
        answer = await client.enqueue_each([push(), push()])
        assert answer.failure_count == 2
        with pytest.raises(Unavailable):
            await client.wait(uuid4(), 0.0)


async def test_no_error_repeats_a_token_or_a_payload(entry: Way) -> None:
    secret = "APA91-secret secret"
    async with PushClient(entry.service()) as client:
        errors: list[ClientError] = []
        for bad in (
            push(token=secret),
            push(data={"from": secret}),
            Push(token="t", notification=Notification(body=secret)),
            push(data={"a": secret * 1000}),
            push(fid=secret, token=None),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await client.enqueue(bad)
            errors.append(refused.value)
            answer = await client.enqueue_each([bad])
            assert answer.responses[0].exception is not None
            errors.append(answer.responses[0].exception)
    assert not [each for each in errors if "secret" in repr(each) + str(each)]


async def test_one_transport_serves_several_loops(entry: Way, rows: Rows) -> None:
    transport = entry.service()

    async def in_another_loop() -> UUID:
        try:
            return await PushClient(transport).enqueue(push())
        finally:
            await transport.close()

    first = await PushClient(transport).enqueue(push())
    second = await asyncio.to_thread(lambda: asyncio.run(in_another_loop()))
    third = await PushClient(transport).enqueue(push())
    await transport.close()
    assert set(await rows.all()) == {first, second, third}


RULE = "alter table push_notifications add constraint polite check (title <> 'forbidden')"


async def test_a_traceback_shows_neither_token_nor_payload(entry: Way, rows: Rows) -> None:
    """``logging.exception`` and Sentry write ``__cause__`` too: psycopg's DETAIL is the failing row."""
    token = "a-token-that-nobody-may-read"
    secret = Push(token=token, notification=Notification("forbidden", "a private text"))
    await rows.query(RULE)
    try:
        async with PushClient(entry.service()) as client:
            with pytest.raises(ClientError) as caught:
                await client.enqueue(secret)
    finally:
        await rows.query("alter table push_notifications drop constraint polite")
    text = "".join(traceback.format_exception(caught.value))
    assert token not in text
    assert "a private text" not in text
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_each_form_of_a_user_id_is_taken_by_both_calls(entry: Way) -> None:
    any_form = Push(user_id="a000000000004000800000000000000a", notification=Notification("t"))
    async with PushClient(entry.service()) as client:
        await client.enqueue(any_form)
        (await client.enqueue_each([any_form])).raise_for_failures()


async def test_a_number_as_a_key_is_treated_alike_by_every_call(entry: Way) -> None:
    """An order's id as idempotency_key: Direct.enqueue says "run migrate", Rest takes it, enqueue_each refuses it."""
    said: list[str] = []
    async with PushClient(entry.service()) as client:
        calls: list[Callable[[Push], Awaitable[object]]] = [
            client.enqueue,
            lambda each: client.enqueue_each([each]),
        ]
        for number, call in enumerate(calls):
            numbered = Push(topic="a", data={"a": "b"}, idempotency_key=number)  # type: ignore[arg-type]
            try:
                answer = await call(numbered)
                ok = not isinstance(answer, BatchResponse) or answer.failure_count == 0
                said.append("taken" if ok else "InvalidArgument")
            except ClientError as error:
                said.append(type(error).__name__)
    assert said in (["taken"] * 2, ["InvalidArgument"] * 2)
