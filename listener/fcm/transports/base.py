"""The wire: one POST, one answer, or a fault that says whether the request can have gone out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from listener.fcm.fault import SendFault

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer that are read; FCM's are below 2 KiB. The rest is thrown away with its connection."""

KEEPALIVE = 60.0
"""Seconds an idle connection is kept. Below what NATs and Google's front ends allow, so that we are
the side that closes: a request written onto a connection the server is closing is an ambiguous reset."""

DNS_TTL = 30
"""Seconds a resolved address is used for new connections."""

PORTS = {"http": 80, "https": 443}
"""Where no port is named."""

USER_AGENT = "push-listener"

ENCODING = {"Accept-Encoding": "identity"}
"""Sent with each request: answers are a few hundred bytes, compressing them costs more than it saves."""


class Response(NamedTuple):
    """An HTTP answer. ``headers`` is case-insensitive; ``body`` is cut at ``ANSWER_LIMIT``."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries requests to FCM, over as many connections as it takes.

    Proxies come from the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, in either case), read
    once for each URL. Trusted are the system's certificate authorities, or those that SSL_CERT_FILE and
    SSL_CERT_DIR name.
    """

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send one POST, at most once, and return the answer whatever its status.

        Args:
            url: where to.
            headers: not to be changed afterwards: they may be kept and looked at again.
            body: UTF-8.

        Raises:
            SendFault: there is no (whole) answer; ``ambiguous`` tells whether the request may have
                been carried out all the same.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Requests still in flight fail."""
        ...


_UNCLEAR_PROXY = (
    "the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names is no URL whose parts are clear: in its user name and "
    "password write @ as %40, / as %2F, ? as %3F and # as %23"
)


def check_timeouts(connect_timeout: float, timeout: float) -> None:
    """Raises ValueError where a timeout while connecting could not be told from a later one."""
    if connect_timeout >= timeout:
        raise ValueError("connect_timeout must be shorter than timeout")


def proxy_for(url: str) -> str | None:
    """The http(s) URL of the proxy that the environment names for a URL, with its credentials.

    Raises:
        SendFault: it is of a kind that cannot be used (SOCKS), or its parts are ambiguous.
    """
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"):
        return None
    proxies = getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named:
        return None
    proxy = named if "://" in named else f"http://{named}"
    if not proxy.startswith(("http://", "https://")):
        raise SendFault(
            "PROXY", "the proxy is neither http nor https, and no other kind can be used", ambiguous=False
        )
    if not _is_plain(proxy):
        raise SendFault("PROXY", _UNCLEAR_PROXY, ambiguous=False)
    return proxy


def _is_plain(proxy: str) -> bool:
    """Whether a URL is scheme, perhaps user and password, host and port: otherwise a part of a password with / ? or #
    in it would be taken for the host, which faults name."""
    try:
        parts = urlsplit(proxy)
        return (
            bool(parts.hostname) and parts.port != 0 and "@" not in parts.path + parts.query + parts.fragment
        )
    except ValueError:
        return False
