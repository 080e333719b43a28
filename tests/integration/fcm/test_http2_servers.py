"""HTTP/2 with servers that others have written: each request arrives once and is answered, whatever they allow."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import uvloop

from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.direct import DirectTransport
from tests.support.http2_servers import Arrived, nginx, node
from tests.support.servers import BODY, Tls, forget_proxies, make_tls

REQUESTS = 400

Server = Callable[[Tls], AbstractAsyncContextManager[tuple[int, Arrived]]]

# What may be limited is limited together with something else, because each server is a process.
SERVERS: dict[str, Server] = {
    "nginx": lambda tls: nginx(tls, ""),
    "nginx, leaves": lambda tls: nginx(tls, "keepalive_requests 50;"),
    "nginx, few at once, leaves": lambda tls: nginx(
        tls, "http2_max_concurrent_streams 8; keepalive_requests 50;"
    ),
    "node": lambda tls: node(tls, {}),
    "node, few at once, no table": lambda tls: node(tls, {"maxConcurrentStreams": 8, "headerTableSize": 0}),
    "node, leaves, a large table": lambda tls: node(tls, {"headerTableSize": 65536}, 50),
    "node, small windows, a small table": lambda tls: node(
        tls, {"initialWindowSize": 100, "headerTableSize": 100}
    ),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"), protocol="h2")


@pytest.mark.parametrize("name", SERVERS)
def test_each_request_arrives_once_and_is_answered(
    name: str, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one burst from cold, with an access token of 2 KB that is replaced in the middle."""
    forget_proxies(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca_file))
    tokens = ["a" * 2000, "b" * 2000]
    heads = [{"Authorization": f"Bearer {token}"} for token in tokens]
    bodies = [f'{{"message":{number}}}'.encode() + b" " * 300 for number in range(REQUESTS)]

    def outgoing(body: bytes) -> Outgoing:
        return Outgoing(lambda: body)

    async def main() -> Arrived:
        async with SERVERS[name](tls) as (port, arrived):
            transport = DirectTransport(f"https://localhost:{port}/", connect_timeout=60, timeout=120)
            try:
                answers = await asyncio.gather(
                    *(
                        transport.post(heads[number * 2 // REQUESTS], outgoing(body))
                        for number, body in enumerate(bodies)
                    ),
                    return_exceptions=True,
                )
            finally:
                await transport.close()
        seen = Counter(
            each if isinstance(each, BaseException) else (each.status, each.body) for each in answers
        )
        assert seen == {(200, BODY): REQUESTS}
        return arrived

    arrived = uvloop.run(main())
    sent = [(tokens[number * 2 // REQUESTS], body) for number, body in enumerate(bodies)]
    assert Counter(arrived) == Counter(sent)
