"""Sender: URL and headers, what follows a refused access token, and the durations it reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from listener.emulator import Emulator
from listener.fcm.auth import AccessTokens
from listener.fcm.credentials import load_credentials
from listener.fcm.outcome import Disposition
from listener.fcm.sender import Sender, messages_url
from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.direct import DirectTransport
from tests.support.servers import answer, forget_proxies, read_request, tcp_server

BODY = b'{"message": {"token": "fGk3vQ2xTd6:APA91bHun4MxP5egoKMwt2KZFBaFUH", "data": {"push_id": "1"}}}'

Durations = list[float]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@asynccontextmanager
async def sending(
    emulator: Emulator, endpoint: str | None = None, project_id: str | None = None
) -> AsyncIterator[tuple[Sender, Durations]]:
    durations: Durations = []
    credentials, _ = load_credentials(emulator.service_account)
    tokens = AccessTokens(credentials)
    url = messages_url(endpoint or emulator.endpoint, project_id or emulator.project_id)
    transport = DirectTransport(url, connect_timeout=30, timeout=60)
    try:
        yield Sender(transport, tokens, durations.append), durations
    finally:
        await transport.close()
        await tokens.close()


async def test_each_exchange_is_measured() -> None:
    async with Emulator(latency=0.02) as emulator, sending(emulator) as (sender, durations):
        await sender.send(Outgoing(lambda: BODY))
        emulator.add_fault("unregistered,times=1")
        await sender.send(Outgoing(lambda: BODY))
        emulator.add_fault("reset,times=1")
        await sender.send(Outgoing(lambda: BODY))
        emulator.expire_access_tokens()
        await sender.send(Outgoing(lambda: BODY))
        assert len(durations) == 5  # The last push took two: its access token was refused.
        assert all(seconds >= 0.015 for seconds in durations)


async def test_without_an_access_token_nothing_is_sent_or_measured() -> None:
    async with Emulator(faults=["oauth_server_error"]) as emulator, sending(emulator) as (sender, durations):
        await sender.send(Outgoing(lambda: BODY))
        assert (emulator.received, durations) == ([], [])


async def test_many_refused_at_once_refresh_once_and_go_through() -> None:
    async with Emulator(latency=0.02) as emulator, sending(emulator) as (sender, _):
        await sender.send(Outgoing(lambda: BODY))
        emulator.expire_access_tokens()
        outcomes = await asyncio.gather(*(sender.send(Outgoing(lambda: BODY)) for _ in range(100)))
        assert {outcome.disposition for outcome in outcomes} == {Disposition.ACCEPTED}
        assert emulator.stats()["access_tokens_issued"] == 2


async def test_second_exchange_has_the_last_word() -> None:
    faults = ["token_expired,times=1", "unregistered"]
    async with Emulator(faults=faults) as emulator, sending(emulator) as (sender, _):
        outcome = await sender.send(Outgoing(lambda: BODY))
    assert (outcome.disposition, outcome.code) == (Disposition.DROP_TARGET, "UNREGISTERED")


@pytest.mark.parametrize(
    ("fault", "disposition"),
    [("oauth_server_error", Disposition.RETRY), ("oauth_invalid_grant", Disposition.PAUSE)],
)
async def test_refused_access_token_that_cannot_be_replaced(fault: str, disposition: Disposition) -> None:
    async with Emulator() as emulator, sending(emulator) as (sender, _):
        await sender.send(Outgoing(lambda: BODY))
        emulator.expire_access_tokens()
        emulator.add_fault(fault)
        outcome = await sender.send(Outgoing(lambda: BODY))
        assert (outcome.disposition, outcome.uses_try, outcome.ambiguous) == (disposition, False, False)
        assert len(emulator.accepted) == 1


async def test_cancellation_is_passed_on() -> None:
    async with Emulator(faults=["timeout"]) as emulator, sending(emulator) as (sender, durations):
        task = asyncio.create_task(sender.send(Outgoing(lambda: BODY)))
        await emulator.wait_received()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert durations == []


@pytest.mark.parametrize("slash", ["", "/"])
async def test_request(slash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[bytes, bytes]] = []

    async def handle(reader: Any, writer: Any) -> None:
        requests.append(await read_request(reader))
        writer.write(answer())

    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "payer")
    async with (
        Emulator() as emulator,
        tcp_server(handle) as port,
        sending(emulator, f"http://127.0.0.1:{port}{slash}", "example.com:p") as (sender, _),
    ):
        outcome = await sender.send(Outgoing(lambda: BODY))
    assert outcome.message_id == "projects/p/messages/1"
    ((head, sent),) = requests
    line, *headers = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
    assert line == "POST /v1/projects/example.com:p/messages:send HTTP/1.1"
    assert fields["authorization"].startswith("Bearer ya29.emulator-")
    assert fields["content-type"] == "application/json"
    assert fields["x-goog-api-format-version"] == "2"
    assert fields["x-goog-user-project"] == "payer"
    assert sent == BODY
