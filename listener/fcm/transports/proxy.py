"""Which proxy the environment names for a URL."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from listener.fcm.fault import SendFault

_UNCLEAR = (
    "the parts of the URL in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY are ambiguous: in its user name and password write "
    "@ as %40, / as %2F, ? as %3F and # as %23"
)


def is_proxied(url: str) -> bool:
    """Whether requests to a URL go through a proxy, even one that cannot be used."""
    return _named(url) is not None


def proxy_for(url: str) -> str | None:
    """The http(s) URL of the proxy for requests to a URL, with its credentials; None if they go straight there.

    Raises:
        SendFault: the proxy's scheme is neither http nor https (SOCKS), or the parts of its URL are ambiguous.
    """
    proxy = _named(url)
    if proxy is None:
        return None
    if not proxy.startswith(("http://", "https://")):
        raise SendFault(
            "PROXY", "the proxy is neither http nor https, and no other scheme is supported", ambiguous=False
        )
    if not _is_unambiguous(proxy):
        raise SendFault("PROXY", _UNCLEAR, ambiguous=False)
    return proxy


def _named(url: str) -> str | None:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname is None or proxy_bypass(f"{parts.hostname}:{port}"):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_unambiguous(proxy: str) -> bool:
    """Whether a URL is only a scheme, perhaps a user and a password, a host and a port.

    A / ? or # in a password ends the host too early: a part of the password would be taken for the host, and messages
    about faults name the host.
    """
    try:
        parts = urlsplit(proxy)
        return (
            bool(parts.hostname) and parts.port != 0 and "@" not in parts.path + parts.query + parts.fragment
        )
    except ValueError:
        return False
