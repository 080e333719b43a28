"""The transport that the setting names. Each client is imported only where it is used."""

from __future__ import annotations

from typing import Literal

from listener.fcm.transports.base import Transport
from listener.fcm.transports.proxy import is_proxied

TransportName = Literal["http2", "http1", "aiohttp"]


def make_transport(name: TransportName, url: str, *, connect_timeout: float, timeout: float) -> Transport:
    """A transport to one URL, to be made inside the running event loop.

    If requests go through a proxy, it is always aiohttp, because the other transports cannot use proxies.

    Args:
        name: the value of the setting TRANSPORT.
        url: where to.
        connect_timeout: seconds for a connection.
        timeout: seconds for a whole request; more than ``connect_timeout``.
    """
    if name == "aiohttp" or is_proxied(url):
        from listener.fcm.transports.aiohttp import AiohttpTransport

        return AiohttpTransport(url, connect_timeout=connect_timeout, timeout=timeout)
    from listener.fcm.transports.direct import DirectTransport

    return DirectTransport(url, http2=name == "http2", connect_timeout=connect_timeout, timeout=timeout)


def requests_per_connection(name: TransportName, url: str) -> int:
    """How many requests a connection of ``make_transport`` carries at once, if the server is FCM."""
    if name != "http2" or not url.startswith("https://") or is_proxied(url):
        return 1
    from listener.fcm.transports.http2_connection import STREAMS

    return STREAMS
