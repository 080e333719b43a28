"""Whether a Postgres address says beyond doubt what its parts are. Pure.

libpq takes what is before the first @ for user name and password, as long as no / comes earlier. A password with a
delimiter in it is therefore cut in two, and the rest of it becomes a host name, a port or a database: every message
that names the host shows it. No message here quotes anything of the address.
"""

from __future__ import annotations

import ipaddress
import re

from psycopg.conninfo import conninfo_to_dict

_SCHEMES = ("postgresql://", "postgres://")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PORT = re.compile(r"[0-9]{1,5}")


def checked(address: str) -> str:
    """The address, a URL without the white space around it. Raises ValueError that names every fault."""
    url = address.strip()
    scheme = next((each for each in _SCHEMES if url.startswith(each)), None)
    if scheme is not None:
        address = url
        if faults := _ambiguities(url.removeprefix(scheme)):
            raise ValueError("; ".join(faults))
    try:
        parts = conninfo_to_dict(address)
    except Exception:
        # The parser's own message quotes the address, password and all.
        raise ValueError(
            "is not a Postgres address (postgresql://user:password@host:port/database), or has a parameter that "
            "libpq does not know"
        ) from None
    if not parts:
        raise ValueError("is empty")
    hosts, ports = (str(parts.get(name) or "").split(",") for name in ("host", "port"))
    if faults := _faults_of_places(hosts, ports):
        raise ValueError("; ".join(faults))
    return address


def _ambiguities(rest: str) -> list[str]:
    """What libpq, or a reader, may take for something else; ``rest``: of a URL, what follows the scheme.

    Without any of these there is at most one @, and neither / nor ? before it, so user name and password are exactly
    what stands before it.
    """
    faults = []
    before, _, _ = rest.rpartition("@")
    if "?" in before:  # either a password goes on there, or the parameters have begun
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
    """Of a list of hosts, one; empty: the default. libpq knows a socket by / or @ at its start."""
    if host.startswith(("/", "@")) or not host or _HOST_NAME.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
