"""How many connections, and so open files, MAX_IN_FLIGHT stands for."""

from __future__ import annotations

import pytest

from listener.fcm.transports.choose import TransportName, requests_per_connection

FCM = "https://fcm.googleapis.com/"


@pytest.mark.parametrize(
    ("transport", "url", "proxy", "expected"),
    [
        ("http2", FCM, "", 100),
        ("http2", FCM, "http://proxy:3128", 1),
        ("http2", "http://127.0.0.1:9199/", "", 1),
        ("http1", FCM, "", 1),
        ("aiohttp", FCM, "", 1),
    ],
)
def test_only_http2_shares_connections(
    transport: TransportName, url: str, proxy: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("https_proxy", proxy)
    assert requests_per_connection(transport, url) == expected
