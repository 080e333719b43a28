"""The contract of a transport: one POST, one answer, or a fault that says whether the request may have gone out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer that are read; FCM's are below 2 KiB. The rest is dropped, and its connection closed."""

KEEPALIVE = 60.0
"""Seconds that an idle connection is kept. This is shorter than what NATs and Google's front ends allow, so that our
side closes first: a request written onto a connection that the server is closing is an ambiguous reset."""

DNS_TTL = 30
"""Seconds that a resolved address is used for new connections."""

USER_AGENT = "push-listener"

ENCODING = {"Accept-Encoding": "identity"}
"""Sent with each request: answers are a few hundred bytes, so compression would cost more than it saves."""


class Outgoing(NamedTuple):
    """What a request brings to FCM."""

    make_body: Callable[[], bytes]
    """Makes the body, in UTF-8. The transport calls it when it has a connection, so that a time to live in the body is
    exact. If it raises an exception, nothing has been sent, and the request ends with that exception."""
    expires: bool = False
    """Whether the body depends on the time at which it is made."""
    is_high: bool = False
    """Whether it gets the next free connection before requests of normal priority that wait."""


class Response(NamedTuple):
    """An HTTP answer. ``headers`` is case-insensitive; ``body`` is cut at ``ANSWER_LIMIT``."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries requests to one URL, over as many connections as it needs.

    The environment names the proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, in upper or lower case) and is read
    once. The transport trusts the system's certificate authorities, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
    """

    async def post(self, headers: Mapping[str, str], outgoing: Outgoing) -> Response:
        """Send one POST, at most once, and return the answer whatever its status.

        Args:
            headers: a mapping that the caller never changes: the transport may keep it and compare it by identity.
            outgoing: its function is called at most once.

        Raises:
            TooLate: that function has raised it.
            SendFault: there is no complete answer; ``ambiguous`` says whether FCM may have carried out the request.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Requests in flight fail."""
        ...


def check_timeouts(connect_timeout: float, timeout: float) -> None:
    """Raises ValueError if a timeout while connecting could not be told from a later one."""
    if connect_timeout >= timeout:
        raise ValueError("connect_timeout must be shorter than timeout")
