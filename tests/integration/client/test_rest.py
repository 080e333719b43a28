"""What is particular to the way over REST: keys, tokens, statuses, and the edge before PostgREST."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest

from listener.client import (
    ClientError,
    InvalidArgument,
    NotAllowed,
    NotFound,
    Push,
    PushClient,
    Rest,
    TelemetryService,
    TooMany,
    Unavailable,
)
from tests.support import rest
from tests.support.postgres import Database, Server
from tests.support.rest import RestServer
from tests.support.servers import answer, forget_proxies, read_request, tcp_server
from tests.support.shared import shared

ANN = UUID("a0000000-0000-4000-8000-00000000000a")


@pytest.fixture(scope="module")
def _of_module(postgres: Server) -> Iterator[tuple[RestServer, Database, Callable[[], None]]]:
    with shared(postgres) as (database, empty), rest.serving(database) as running:
        yield running, database, empty


@pytest.fixture
def server(
    _of_module: tuple[RestServer, Database, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RestServer]:
    """Before a database that the tests share: with no row, no fault and no request."""
    forget_proxies(monkeypatch)
    running, _, empty = _of_module
    yield running
    running.faults.clear()
    running.requests.clear()
    running.away, running.retry_after = False, None
    empty()


@pytest.fixture
def database(_of_module: tuple[RestServer, Database, Callable[[], None]]) -> Database:
    return _of_module[1]


@pytest.mark.parametrize(
    ("key", "authorization"),
    [
        (rest.SECRET_KEY, None),
        (rest.SERVICE_KEY, f"Bearer {rest.SERVICE_KEY}"),
    ],
    ids=["secret", "service_role"],
)
async def test_only_a_jwt_is_sent_as_authorization(
    server: RestServer, key: str, authorization: str | None
) -> None:
    async with PushClient(Rest(server.url, key)) as client:
        await client.enqueue(Push(token="phone", data={"a": "b"}))
    (request,) = server.requests
    assert request.headers["apikey"] == key
    assert request.headers.get("Authorization") == authorization
    assert request.status == 200


async def test_the_token_of_the_user_is_asked_for_each_time(server: RestServer) -> None:
    users = iter([ANN, uuid4()])

    async def token() -> str:
        return rest.token("authenticated", str(next(users)))

    async with PushClient(Rest(server.url, rest.ANON_KEY, user_token=token)) as client:
        for _ in range(2):
            with pytest.raises(NotFound):
                await client.get(uuid4())
    assert len({request.headers["Authorization"] for request in server.requests}) == 2


@pytest.mark.parametrize(
    ("key", "seconds", "why"),
    [
        ("sb_secret_wrong", 60.0, "Invalid API key"),
        (rest.PUBLISHABLE_KEY, -60.0, "JWT expired"),
    ],
)
async def test_a_wrong_key_and_an_expired_token(
    server: RestServer, key: str, seconds: float, why: str
) -> None:
    async def token() -> str:
        return rest.token("authenticated", str(ANN), seconds=seconds)

    async with PushClient(Rest(server.url, key, user_token=token)) as client:
        with pytest.raises(NotAllowed, match=why) as refused:
            await client.get(uuid4())
    assert key not in str(refused.value)


async def test_an_answer_that_is_lost_may_have_happened(server: RestServer) -> None:
    push = Push(token="phone", data={"a": "b"}, idempotency_key="k")
    async with PushClient(Rest(server.url, rest.SECRET_KEY)) as client:
        server.faults.append("cut")
        with pytest.raises(Unavailable) as lost:
            await client.enqueue(push)
        assert lost.value.may_have_happened is True
        answer_ = await client.enqueue_each([push])
    assert answer_.responses[0].is_new is False


@pytest.mark.parametrize(
    ("status", "error", "may_have_happened"),
    [(408, Unavailable, True), (429, TooMany, False), (500, Unavailable, False), (502, Unavailable, True),
     (503, Unavailable, False), (504, Unavailable, True)],
)  # fmt: skip
async def test_what_a_gateway_says_while_it_cannot(
    server: RestServer, status: int, error: type[Unavailable], may_have_happened: bool
) -> None:
    server.faults.append(status)
    server.retry_after = "17"
    async with PushClient(Rest(server.url, rest.SECRET_KEY)) as client:
        with pytest.raises(error, match=f"answered {status}") as failed:
            await client.get(uuid4())
    assert type(failed.value) is error
    assert (failed.value.may_have_happened, failed.value.retry_after) == (may_have_happened, 17.0)


async def test_a_user_who_sends_too_much_is_told_when_to_come_again(
    server: RestServer, database: Database
) -> None:
    async def token() -> str:
        return rest.token("authenticated", str(ANN))

    transport = Rest(server.url, rest.PUBLISHABLE_KEY, user_token=token)
    batch = {"p_payloads": [{"type": "t", "message": "m"}] * 1000}

    async def send_too_much() -> None:
        for _ in range(60):
            await transport.call("flush_telemetry", batch)
            with psycopg.connect(database.superuser_dsn) as connection:  # 47 more of them
                connection.execute(
                    "update push_listener.telemetry_use set records_until = records_until + interval '1 h' * 0.94 "
                    "where records_until < now() + interval '5 min'"
                )

    with pytest.raises(TooMany, match="too much telemetry") as slow:
        await send_too_much()
    await transport.close()
    assert slow.value.retry_after is not None
    assert slow.value.retry_after >= 1


async def test_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    answers = iter(
        [
            answer(301, b"", "Location: https://example.com/"),
            answer(200, b"<html>welcome</html>"),
            answer(404, b"<html>nothing</html>"),
            answer(418, b'{"message": "teapot", "code": 5}'),
            answer(403, b"<html>forbidden</html>"),
        ]
    )

    async def serve(reader: object, writer: object) -> None:
        while True:
            await read_request(reader)  # type: ignore[arg-type]
            writer.write(next(answers))  # type: ignore[attr-defined]

    expected: list[tuple[type[ClientError], str]] = [
        (Unavailable, "redirect: check the URL"),
        (Unavailable, "not JSON"),
        (NotFound, "is there a PostgREST at this URL"),
        (InvalidArgument, "teapot"),
        (NotAllowed, "check the key"),
    ]
    async with tcp_server(serve) as port:
        transport = Rest(f"http://127.0.0.1:{port}", "k")
        for kind, why in expected:
            with pytest.raises(kind, match=why):
                await transport.call("get_push", {})
        await transport.close()


async def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)

    async def serve(reader: object, writer: object) -> None:
        await read_request(reader)  # type: ignore[arg-type]
        await reader.read()  # type: ignore[attr-defined]

    async with tcp_server(serve) as port:
        transport = Rest(f"http://127.0.0.1:{port}", "k", timeout=0.05)
        with pytest.raises(Unavailable, match="no answer in time") as late:
            await transport.call("get_push", {})
        await transport.close()
    assert late.value.may_have_happened


async def test_a_session_of_the_application_stays_open(server: RestServer) -> None:
    async with aiohttp.ClientSession() as session:
        transport = Rest(server.url, rest.SECRET_KEY, session=session)
        async with PushClient(transport) as client:
            await client.enqueue(Push(token="phone", data={"a": "b"}))
        assert not session.closed
        with pytest.raises(ValueError, match="AsyncTelemetryService"):
            TelemetryService(transport)


@pytest.mark.parametrize("url", ["{}/", "{}/rest/v1", "{}/rest/v1/"])
async def test_the_url_may_be_written_in_several_ways(server: RestServer, url: str) -> None:
    async with PushClient(Rest(url.format(server.url), rest.SECRET_KEY)) as client:
        await client.enqueue(Push(token="phone", data={"a": "b"}))


@pytest.mark.parametrize(
    ("url", "key", "why"),
    [("project.supabase.co", "k", "https://"), ("https://", "k", "https://"), ("https://x", "", "key is empty"),
     ("https://x", "a\nb", "characters that no key has")],
)  # fmt: skip
def test_wrong_addresses_and_keys(url: str, key: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rest(url, key)
