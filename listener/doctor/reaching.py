"""Whether an address leads to Postgres: the name, the network, TLS, the version.

No text quotes a part of the address: see ``listener.postgres.errors``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from listener.doctor.findings import Finding, Group
from listener.doctor.limits import Limits, within
from listener.doctor.looking import connect
from listener.postgres import errors

_GROUP = Group("database")

Resolve = Callable[[str], list[str]]
"""Returns the IP addresses of a host, in the order in which to try them. Raises OSError if it has none."""

SESSION_POOLER = (
    "use Supabase's pooler in session mode, which has IPv4: user postgres.<ref>, host "
    "aws-<n>-<region>.pooler.supabase.com, port 5432 (dashboard: Connect, Session pooler); or add the project's IPv4 "
    "add-on"
)

# This could be any address of the Internet. Nothing is sent there.
_SOMEWHERE = ("2001:4860:4860::8888", 53)


@dataclass(slots=True)
class Reached:
    """The server that an address leads to."""

    dsn: str
    """The address with the IP address and the port that answered, so that no name has to be resolved again."""
    version: int
    """The major version of Postgres."""
    is_encrypted: bool
    is_local: bool
    """Over a socket, or to this machine itself."""
    checks_certificate: bool


@dataclass(slots=True)
class Way:
    """How far the way to one address could be followed."""

    setting: str
    """DATABASE_URL or LISTEN_DATABASE_URL."""
    reached: Reached | None = None
    fault: str | None = None
    addresses: list[str] = field(default_factory=list)
    """The IP addresses of the host names that had to be resolved."""
    has_ipv6: bool = True
    """Whether this machine has a way out over IPv6."""


def resolve(host: str) -> list[str]:
    """Asks the system's resolver. It blocks until the resolver answers."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def has_ipv6() -> bool:
    """Whether this machine has a route to the Internet over IPv6. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(_SOMEWHERE)
    except OSError:
        return False
    return True


def follow(setting: str, dsn: str, limits: Limits, resolver: Resolve = resolve) -> Way:
    """Follows the way to one address."""
    way = Way(setting)
    try:
        expanded = _with_addresses(dsn, way, limits, resolver)
    except TimeoutError:
        way.fault = "the name of the host cannot be resolved: no name server answers in time"
        return way
    except OSError:
        way.fault = errors.explain(psycopg.OperationalError("could not translate host name"))
        return way
    try:
        way.reached = within(limits.connect, lambda: _connect(dsn, expanded, limits))
    except (psycopg.Error, TimeoutError) as error:
        way.has_ipv6 = has_ipv6()
        way.fault = errors.explain(error)
    return way


def _with_addresses(dsn: str, way: Way, limits: Limits, resolver: Resolve) -> str:
    """The address, with an IP address for each host name. Raises OSError or TimeoutError."""
    given = conninfo_to_dict(dsn)
    hosts = str(given.get("host") or "").split(",")
    if given.get("hostaddr") or given.get("service") or not all(_is_name(host) for host in hosts):
        return dsn
    ports = str(given.get("port") or "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    expanded: list[tuple[str, str, str]] = []
    for host, port in zip(hosts, ports, strict=True):
        way.addresses += (found := within(limits.resolve, partial(resolver, host)))
        expanded += [(host, address, port) for address in found]
    names, addresses, numbers = (",".join(column) for column in zip(*expanded, strict=True))
    kept = {"target_session_attrs": "any"} if len(hosts) == 1 and len(expanded) > 1 else {}
    return make_conninfo(dsn, **{**kept, **given, "host": names, "hostaddr": addresses, "port": numbers})


def _is_name(host: str) -> bool:
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _connect(dsn: str, expanded: str, limits: Limits) -> Reached:
    with connect(expanded, limits.connect) as conn:
        info, address = conn.info, conn.info.hostaddr
        pinned = dsn
        if address:
            pinned = make_conninfo(dsn, host=info.host, hostaddr=address, port=info.port)
        mode = str(conninfo_to_dict(info.dsn).get("sslmode") or "")
        return Reached(
            dsn=pinned,
            version=info.server_version // 10_000,
            is_encrypted=bool(conn.pgconn.ssl_in_use),
            is_local=not address or ipaddress.ip_address(address).is_loopback,
            checks_certificate=mode in ("verify-ca", "verify-full"),
        )


def judge(way: Way) -> Iterator[Finding]:
    """Judges the way to one address. Pure."""
    if way.reached is None:
        yield _judge_unreached(way)
        return
    found = way.reached
    if 15 <= found.version <= 18:
        yield _GROUP.ok(f"{way.setting} leads to PostgreSQL {found.version}")
    else:
        yield _GROUP.warning(
            f"{way.setting} leads to PostgreSQL {found.version}",
            "push-listener is tested on PostgreSQL 15 to 18",
        )
    if found.is_encrypted and found.checks_certificate:
        yield _GROUP.ok(f"{way.setting}: over TLS, and the server's certificate is checked")
    elif found.is_encrypted:
        yield _GROUP.ok(
            f"{way.setting}: over TLS, but the server's certificate is not checked (sslmode=verify-full and "
            "sslrootcert in the address do that)"
        )
    elif not found.is_local:
        yield _GROUP.warning(
            f"{way.setting}: not encrypted, so every machine on the way can read tokens, texts and the password",
            "add sslmode=require to the address; better sslmode=verify-full, with the server's root certificate in "
            "sslrootcert",
        )


def _judge_unreached(way: Way) -> Finding:
    if way.addresses and not way.has_ipv6 and _are_ipv6(way.addresses):
        return _GROUP.fault(
            f"{way.setting}: the host has IPv6 addresses only, and this machine has no way out over IPv6",
            SESSION_POOLER,
        )
    return _GROUP.fault(f"{way.setting}: {way.fault}")


def _are_ipv6(addresses: Sequence[str]) -> bool:
    return all(":" in address for address in addresses)
