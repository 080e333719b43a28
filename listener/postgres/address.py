"""Refuses a Postgres address whose parts are ambiguous. Pure.

libpq takes the text before the first @ as user name and password, unless a / comes before it. So a delimiter in a
password cuts it in two, and the rest of it becomes a host name, a port or a database. Every message that names the host
would then show a part of the password. No message of this module quotes a part of the address.
"""

from __future__ import annotations

import ipaddress
import re

from psycopg.conninfo import conninfo_to_dict

_SCHEMES = ("postgresql://", "postgres://")
_WITH_DRIVER = re.compile(r"(postgres|postgresql)\+[a-z0-9_]{1,20}://")  # as SQLAlchemy writes it
_OF_OTHERS = {
    "jdbc:": "is an address for JDBC: write postgresql://user:password@host:port/database",
    "prisma": "is the address of a proxy of Prisma: set it to that of the database itself",
    "https://": "is the address of an API: set it to the connection string (on Supabase: Connect)",
    "http://": "is the address of an API: set it to the connection string (on Supabase: Connect)",
}
_PLACEHOLDER = re.compile(r"[\[<{](your[-_ ]?)?(db[-_ ]?)?password[\]>}]", re.IGNORECASE)

_MEANT_FOR_OTHERS = frozenset(
    {
        # Prisma
        "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size",
        # node-postgres and Vercel
        "uselibpqcompat", "supa", "idle_timeout",
        # asyncpg and SQLAlchemy
        "prepared_statement_cache_size", "pool_size", "max_overflow", "pool_recycle", "pool_pre_ping",
        # JDBC, Rails
        "pool", "preparethreshold", "preparedstatementcachequeries", "prepared_statements", "statement_limit",
    }
)  # fmt: skip
"""Parameters that tell other clients how to pool and to prepare statements. They say nothing about the database."""
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PORT = re.compile(r"[0-9]{1,5}")


def checked(address: str) -> str:
    """Returns the address as libpq takes it. Raises ValueError, which names every fault.

    A URL loses the white space around it, the driver in its scheme (postgresql+psycopg://), and parameters that only
    other clients understand.
    """
    url = _WITH_DRIVER.sub(r"\1://", address.strip(), count=1)
    for beginning, fault in _OF_OTHERS.items():
        if url.startswith(beginning):
            raise ValueError(fault)
    scheme = next((each for each in _SCHEMES if url.startswith(each)), None)
    if scheme is not None:
        address = url
        if faults := _ambiguities(url.removeprefix(scheme)):
            raise ValueError("; ".join(faults))
        address = _without_foreign_parameters(url)
    try:
        parts = conninfo_to_dict(address)
    except Exception:
        # The parser's own message quotes the address with its password.
        raise ValueError(
            "is not a Postgres address (postgresql://user:password@host:port/database), or has a parameter that "
            "libpq does not know: remove what stands behind the ?"
        ) from None
    if not parts:
        raise ValueError("is empty")
    hosts, ports = (str(parts.get(name) or "").split(",") for name in ("host", "port"))
    if faults := _faults_of_places(hosts, ports):
        raise ValueError("; ".join(faults))
    return address


def _without_foreign_parameters(url: str) -> str:
    """A URL without the parameters that only other clients understand. Raises ValueError for one that must be changed.

    The names of unknown parameters are not shown: the text after the ? may belong to a password.
    """
    before, mark, query = url.partition("?")
    kept = []
    for parameter in query.split("&") if mark else []:
        name, _, _ = parameter.partition("=")
        if name.lower() in _MEANT_FOR_OTHERS or parameter in ("", "schema=public"):
            continue
        if name == "schema":
            raise ValueError(
                "has a parameter schema, as Prisma writes it: remove it, because push-listener's tables are in public"
            )
        if parameter == "sslmode=no-verify":
            raise ValueError("has sslmode=no-verify, which libpq does not know: write sslmode=require")
        kept.append(parameter)
    return before + ("?" + "&".join(kept) if kept else "")


def _ambiguities(rest: str) -> list[str]:
    """The faults that may make libpq, or a person, misread a URL; ``rest`` is the part after the scheme.

    A URL without these faults has at most one @, and neither / nor ? before it. So user name and password are exactly
    the text before the @.
    """
    faults = []
    if _PLACEHOLDER.search(rest):
        faults.append("still has a placeholder where the password belongs")
    before, _, _ = rest.rpartition("@")
    if "?" in before:  # the ? is either part of a password, or begins the parameters
        faults.append(
            "has a ? before an @: write ? as %3F, / as %2F and @ as %40 in a user name or password, and @ as %40 in "
            "a parameter"
        )
    else:
        if "@" in before:
            faults.append("has an @ in its user name or password: write it as %40")
        if "/" in before:
            faults.append("has a / in its user name or password: write it as %2F")
    if _BROKEN_ESCAPE.search(rest):
        faults.append("has a % that no two hexadecimal digits follow: write it as %25")
    if not all(char.isprintable() and char != " " for char in rest):
        faults.append(
            "has a space or an invisible character: write a space as %20, others likewise, or remove it"
        )
    return faults


def _faults_of_places(hosts: list[str], ports: list[str]) -> list[str]:
    faults = []
    if not all(_can_be_host(host) for host in hosts):
        faults.append(
            "has a host that is neither a name nor an IP address nor the directory of a socket: if that is a part of "
            "the password, write @ as %40, / as %2F and : as %3A in it"
        )
    if not all(not port or (_PORT.fullmatch(port) and 1 <= int(port) <= 65535) for port in ports):
        faults.append("has a port that is no number from 1 to 65535")
    if len(ports) not in (1, len(hosts)):
        faults.append("has more or fewer ports than hosts")
    return faults


def _can_be_host(host: str) -> bool:
    """Takes one host of the list. An empty host is the default; libpq recognises a socket by a / or @ at its start."""
    if host.startswith(("/", "@")) or not host or _HOST_NAME.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
