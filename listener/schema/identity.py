"""The identity of a database: its server, its oid on that server, and its address. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict

# A Supabase project has its own host. A shared pooler also leads to it; there the user name contains the project.
_SUPABASE_HOST = re.compile(r"(?:db\.)?([a-z0-9]+)\.supabase\.co")
_SUPABASE_POOLER = re.compile(r"[a-z0-9.-]+\.pooler\.supabase\.com")
_SUPABASE_REFERENCE = re.compile(r"reference=([a-zA-Z0-9]+)")


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a database, as far as a listener can see it."""

    system: str
    """The system identifier of the cluster; empty if this role may not read it."""
    database: int
    """The database's oid. A renamed database keeps it, a newly created one has another."""
    address: str


def address_of(dsn: str, default_host: str = "") -> str:
    """Reduces an address to a form that is the same for every way to the database, without user and password.

    On Supabase that is the project, whether the address is direct or that of a pooler. Elsewhere it is the host, or
    the list of hosts. The port is left out, because a pooler has its own port.

    Args:
        dsn: a valid address.
        default_host: the host to which libpq connects if the address names none.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    named = parts.get("host") or parts.get("hostaddr")
    if not named and "service" in parts:
        return f"service {parts['service']}"
    hosts = {_place(host, parts) for host in (named or default_host).split(",")}
    return ", ".join(sorted(hosts))


def _place(host: str, parts: dict[str, str]) -> str:
    host = host.strip()
    if host.startswith(("/", "@")):
        return f"socket {host.rstrip('/')}"
    host = host.lower().rstrip(".")
    if match := _SUPABASE_HOST.fullmatch(host):
        return f"supabase {match[1]}"
    if _SUPABASE_POOLER.fullmatch(host) and (project := _project(parts)):
        return f"supabase {project}"
    if not host:
        return "the default socket"
    if host == "localhost" or _is_loopback(host):
        return "localhost"
    return f"host {host}"


def _project(parts: dict[str, str]) -> str:
    """The Supabase project to which a shared pooler leads; empty if the address names none."""
    if match := _SUPABASE_REFERENCE.search(parts.get("options", "")):
        return match[1].lower()
    _, _, project = parts.get("user", "").rpartition(".")
    return project.lower() if project != parts.get("user") else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def differences(identity: Identity, served: list[Identity]) -> list[str]:
    """The differences, in words, between ``identity`` and the most similar identity in ``served``."""
    return min((_different(identity, other) for other in served), key=len, default=[])


def _different(one: Identity, other: Identity) -> list[str]:
    parts = {
        "the database server": one.system != other.system,
        "the database": one.database != other.database,
        "the address, the server's port or INSTALLATION": one.address != other.address,
    }
    return [words for words, differs in parts.items() if differs]
