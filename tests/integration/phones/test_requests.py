"""Each request of docs/flutter.md and docs/javascript.md, sent as it stands in docs/phones/requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from tests.support import http_files, rest
from tests.support.phone_pages import CODE
from tests.support.postgres import Database
from tests.support.rest import RestServer
from tests.support.servers import forget_proxies
from tests.support.service import Rows

ANN, BOB = (UUID(f"{each * 8}-0000-4000-8000-00000000000{each}") for each in "ab")
DEVICE = "dTnB3Zx8QhGkPq1WvYcR0s"

Answer = tuple[int, Any]


class Phone:
    """Sends the requests, as different users."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self.at = datetime.now(UTC) - timedelta(minutes=5)
        """When it happened. A time that is taken when the tests are collected may lie before the push."""
        self._values = {
            "SUPABASE_URL": url,
            "SUPABASE_PUBLISHABLE_KEY": rest.PUBLISHABLE_KEY,
            "DEVICE": DEVICE,
            "PUSH_ID": str(uuid4()),
            "AT": self.at.isoformat(),
            "BATCH_ID": str(uuid4()),
        }

    async def send(self, name: str, user: UUID | None, **values: str) -> Answer:
        """Status and JSON; without a user as ``anon``, with the key in the place of the token."""
        token = rest.token("authenticated", str(user)) if user else rest.token("anon")
        file = CODE / f"requests/{name}.http"
        request = http_files.read(file, {**self._values, "ACCESS_TOKEN": token, **values})
        async with self._http.request(
            request.method, request.url, data=request.body, headers=request.headers
        ) as answer:
            return answer.status, None if answer.status == 204 else await answer.json()


@pytest.fixture
def server(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    forget_proxies(monkeypatch)
    with rest.serving(database) as running:
        yield running


@pytest.fixture
async def phone(server: RestServer) -> AsyncIterator[Phone]:
    async with aiohttp.ClientSession() as http:
        yield Phone(http, server.url)


async def sent(rows: Rows) -> UUID:
    """A push to Ann that has been sent to her devices ten minutes ago."""
    await rows.query("update push_devices set created_at = now() - interval '1 hour'")
    push_id = await rows.add(user_id=ANN, title="t")
    await rows.query("select fetch_pending_pushes(10)")
    await rows.query("select mark_push_sent(%(id)s)", id=push_id)
    await rows.query("update push_notifications set sent_at = now() - interval '10 minutes'")
    return push_id


async def devices(rows: Rows) -> list[tuple[str, str, UUID]]:
    found = await rows.query("select token, platform, user_id from push_devices")
    return [(row["token"], row["platform"], row["user_id"]) for row in found]


async def test_every_request_is_one_of_these(phone: Phone) -> None:
    """And none of them may be sent by somebody who is not signed in."""
    names = sorted(path.stem for path in CODE.glob("requests/*.http"))
    assert names == [
        "flush_telemetry",
        "record_delivery_receipt",
        "record_delivery_receipts",
        "register_device",
        "unregister_device",
    ]
    for name in names:
        status, answer = await phone.send(name, None)
        assert (name, status, answer["code"]) == (name, 401, "42501")


async def test_a_device_is_registered_moved_and_unregistered(phone: Phone, rows: Rows) -> None:
    for _ in range(2):  # at each start
        assert await phone.send("register_device", ANN) == (204, None)
    assert await devices(rows) == [(DEVICE, "web", ANN)]
    assert await phone.send("unregister_device", BOB) == (200, False)
    assert await devices(rows) == [(DEVICE, "web", ANN)]
    assert await phone.send("register_device", BOB) == (204, None)  # the next person on this device
    assert await devices(rows) == [(DEVICE, "web", BOB)]
    assert await phone.send("unregister_device", BOB) == (200, True)
    assert await devices(rows) == []


async def test_receipts_are_recorded_with_the_time_on_the_phone(phone: Phone, rows: Rows) -> None:
    await phone.send("register_device", ANN)
    push_id = await sent(rows)
    refused = await phone.send("record_delivery_receipt", BOB, PUSH_ID=str(push_id))
    assert (refused[0], refused[1]["code"]) == (403, "42501")
    for is_new in (True, False):  # a phone that got no answer
        answer = await phone.send("record_delivery_receipt", ANN, PUSH_ID=str(push_id))
        assert answer == (200, is_new)
    row = await rows.get(push_id)
    assert (row["status"], row["delivered_at"]) == ("delivered", phone.at)


async def test_a_queue_of_receipts_is_sent_in_one_call(phone: Phone, rows: Rows) -> None:
    await phone.send("register_device", ANN)
    push_id = await sent(rows)
    status, answer = await phone.send("record_delivery_receipts", BOB, PUSH_ID=str(push_id))
    assert (status, [(each["recorded"], bool(each["error"])) for each in answer]) == (
        200,
        [(False, True)] * 2,
    )
    status, answer = await phone.send("record_delivery_receipts", ANN, PUSH_ID=str(push_id))
    assert (status, [(each["recorded"], each["error"]) for each in answer]) == (200, [(True, None)] * 2)
    assert sorted(row["status"] for row in await rows.logs(push_id)) == ["delivered", "opened", "sent"]
    assert (await rows.get(push_id))["delivered_at"] == phone.at


async def test_a_batch_of_telemetry_that_is_sent_twice_is_stored_once(phone: Phone, rows: Rows) -> None:
    first = await phone.send("flush_telemetry", ANN)
    assert (first[0], first[1]["accepted"], first[1]["rejected"]) == (200, 2, [])
    assert await phone.send("flush_telemetry", ANN) == first
    stored = await rows.query(
        "select type, message, meta, timestamp, user_id from telemetry_logs order by type"
    )
    assert [
        (row["type"], row["message"], row["meta"], row["timestamp"], row["user_id"]) for row in stored
    ] == [
        ("checkout", "paid", {"ms": 412}, phone.at, ANN),
        ("push", "allowed", None, phone.at, ANN),
    ]
