"""The transport that the setting names. Each client is imported only where it is used."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from listener.fcm.transports.base import Transport
from listener.fcm.transports.proxy import is_proxied

TransportName = Literal["http1", "http2", "aiohttp"]


def check_installed(name: TransportName) -> TransportName:
    """Raises ValueError, saying what to install, if a transport needs a package that is not there."""
    if name == "http2" and find_spec("pyreqwest") is None:
        raise ValueError(
            "is http2, which needs a package that is not installed: pip install 'push-listener[http2]'"
        )
    return name


def make_transport(name: TransportName, url: str, *, connect_timeout: float, timeout: float) -> Transport:
    """A transport to one URL, to be made inside the running event loop.

    Where the way leads through a proxy, aiohttp takes the place of http1, which knows no proxies.

    Args:
        name: the value of the setting TRANSPORT.
        url: where to.
        connect_timeout: seconds for a connection.
        timeout: seconds for a whole request; more than ``connect_timeout``.
    """
    if name == "http2":
        # It takes 7 MB, and sets how the process gets its memory.
        from listener.fcm.transports.http2 import Http2Transport

        return Http2Transport(url, connect_timeout=connect_timeout, timeout=timeout)
    if name == "aiohttp" or is_proxied(url):
        from listener.fcm.transports.aiohttp import AiohttpTransport

        return AiohttpTransport(url, connect_timeout=connect_timeout, timeout=timeout)
    from listener.fcm.transports.http1 import Http1Transport

    return Http1Transport(url, connect_timeout=connect_timeout, timeout=timeout)
