"""Whether the database is the one that push-listener has served before, or a copy whose pushes must not go out.

A dump, a branch or a restored backup of production holds the same waiting rows and the same device tokens. So each
database notes under which identities it has been served (``push_listener.served``), and a listener that reaches it
under another one does not start while rows wait. See docs/restore.md.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, LiteralString

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from listener.postgres.connect import Connection
from listener.postgres.queue import BY_INDEX

Adoption = Literal["expire", "send"]
"""What becomes of the pushes that wait in a copy."""

COPIED = "COPIED"
"""The error code of a push that was left to expire in a copy."""

_REASON = "it waited in a database that push-listener had served elsewhere, and was not sent from this copy"
_BATCH = 5000
_COUNTED = 10_000

# Both ways to a Supabase project name it: by its own host, or by the user with which a shared pooler is asked for it.
_SUPABASE_HOST = re.compile(r"(?:db\.)?([a-z0-9]+)\.supabase\.co")
_SUPABASE_POOLER = re.compile(r"[a-z0-9.-]+\.pooler\.supabase\.com")
_SUPABASE_REFERENCE = re.compile(r"reference=([a-zA-Z0-9]+)")

_SYSTEM = "select system_identifier::text from pg_catalog.pg_control_system()"
_DATABASE = """
select oid::bigint, datname, pg_catalog.current_setting('port')
  from pg_catalog.pg_database
  where datname = pg_catalog.current_database()
"""
_SERVED = "select system_identifier, database_oid, address from push_listener.served"
_RECORD = """
insert into push_listener.served (system_identifier, database_oid, address, database_name)
  values (%s, %s, %s, %s)
  on conflict do nothing
"""
_WAITING = """
select pg_catalog.count(*)
  from (
    select from public.push_notifications
      where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      limit %s
  ) waiting
"""

# Processes that expire rows at the same time take turns, batch by batch: otherwise they lock the same rows in different
# orders. They lock the one row of push_listener.shared_quota, because only workers and the owner may lock it; any login
# may hold an advisory lock.
_TURN = "select from push_listener.shared_quota for no key update"

# Locked rows are waited for, not skipped: the caller serves the database once this finds nothing.
_EXPIRE = """
with waiting as materialized (
  select id
    from public.push_notifications
    where next_attempt_at is not null and status::text in ('pending', 'processing', 'failed')
      and (%(known_too)s or not exists (
        select from push_listener.served
          where (system_identifier, database_oid, address) = (%(system)s, %(database)s, %(address)s)))
    order by (case priority::text when 'high' then 0 else 1 end), next_attempt_at
    limit %(batch)s
    for update
)
update public.push_notifications p
  set status = 'expired', next_attempt_at = null, error_code = %(code)s, last_error = %(reason)s,
      updated_at = pg_catalog.now()
  from waiting
  where p.id = waiting.id
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one database from every other, as far as a listener can see."""

    system: str
    """The system identifier of the cluster; empty if this role may not read it."""
    database: int
    """The database's oid. A database that is renamed keeps it, one that is created anew has another."""
    address: str


@dataclass(frozen=True, slots=True)
class Admission:
    """The listener may serve the database."""

    identity: Identity
    known: bool
    """It has been served under this identity before."""
    first: bool
    """It has never been served at all."""
    expired: int = 0


class IsCopy(Exception):
    """Rows wait in a database that has been served under other identities only. The text says what to do."""

    def __init__(self, identity: Identity, served: list[Identity], waiting: int) -> None:
        least = "at least " if waiting >= _COUNTED else ""
        super().__init__(
            "this database is a copy, or has another address now: push-listener has served it under another identity "
            f"(what differs: {', '.join(differences(identity, served))}), and {least}{waiting:,} pushes wait in it. "
            "None is sent. If it is a copy, let them expire: push-listener run --adopt-copy expire. If it is the same "
            "database, under another address or after an upgrade of Postgres, or if they are to be sent: push-listener "
            "run --adopt-copy send. "
            "Where the platform starts run by itself, call push-listener migrate --adopt-copy expire (or send) once. "
            "See docs/restore.md"
        )


def address_of(dsn: str, default_host: str = "") -> str:
    """Where a database is, in a form that is the same for every way to it, without user and password.

    On Supabase that is the project, whether it is reached directly or through a pooler. Elsewhere it is the host, or
    every host of a list, without the port, which a pooler has of its own.

    Args:
        dsn: valid.
        default_host: where libpq connects to when the address names no host.
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
    """The Supabase project that a shared pooler is asked for."""
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
    """In words, what tells an identity from the one of ``served`` that is most like it."""
    return min(([*_different(identity, other)] for other in served), key=len, default=[])


def _different(one: Identity, other: Identity) -> list[str]:
    parts = {
        "the database server": one.system != other.system,
        "the database": one.database != other.database,
        "the address, the server's port or INSTALLATION": one.address != other.address,
    }
    return [words for words, differs in parts.items() if differs]


async def identify(conn: Connection, dsn: str, installation: str | None) -> tuple[Identity, str]:
    """The identity of the database that a connection leads to, and its name.

    Args:
        conn: in autocommit.
        dsn: the address of which DATABASE_URL tells, even if ``conn`` got there by another one.
        installation: takes the place of the address.
    """
    try:
        system = str((await _row(conn, _SYSTEM))[0])
    except psycopg.errors.InsufficientPrivilege:
        system = ""
    oid, name, port = await _row(conn, _DATABASE)
    # The port is the server's own: it tells two servers of one host apart, and no pooler changes it.
    address = f"{address_of(dsn, _default_host())}, server port {port}"
    place = f"installation {installation}" if installation else address
    return Identity(system, int(str(oid)), place), str(name)


def _default_host() -> str:
    """What PGHOST or PGHOSTADDR say, or what libpq was built with."""
    found = {each.keyword: each.val for each in pq.Conninfo.get_defaults()}
    return (found.get(b"host") or found.get(b"hostaddr") or b"").decode()


async def admit(conn: Connection, dsn: str, installation: str | None, adoption: Adoption | None) -> Admission:
    """Lets a listener serve the database, and notes its identity.

    ``adoption`` decides about a copy only: in a database that is known nothing is changed by it.

    Raises IsCopy when rows wait in a copy and ``adoption`` is None, or psycopg.Error.
    """
    identity, name = await identify(conn, dsn, installation)
    served = await _served(conn)
    if identity in served:
        return Admission(identity, known=True, first=False)
    expired = 0
    if served and adoption is None:
        waiting = await _waiting(conn)
        if waiting:
            raise IsCopy(identity, served, waiting)
    elif served and adoption == "expire":
        expired = await expire(conn, identity, known_too=False)
    await _record(conn, identity, name)
    return Admission(identity, known=False, first=not served, expired=expired)


async def refusal(conn: Connection, dsn: str, installation: str | None) -> IsCopy | None:
    """Why a listener would not serve the database, if it would not; changes nothing. Raises psycopg.Error."""
    identity, _ = await identify(conn, dsn, installation)
    served = await _served(conn)
    if not served or identity in served:
        return None
    waiting = await _waiting(conn)
    return IsCopy(identity, served, waiting) if waiting else None


async def adopt(conn: Connection, dsn: str, installation: str | None, adoption: Adoption) -> int:
    """Notes the identity of a database, known or not, and lets what waits expire if ``adoption`` says so.

    Returns how many pushes have expired. Raises psycopg.Error.
    """
    identity, name = await identify(conn, dsn, installation)
    expired = await expire(conn, identity, known_too=True) if adoption == "expire" else 0
    await _record(conn, identity, name)
    return expired


async def expire(conn: Connection, identity: Identity, *, known_too: bool) -> int:
    """Lets everything that waits expire, in batches; returns how many rows that were.

    Unless ``known_too``, it ends when the database gets known under this identity: another process that has begun at
    the same time is done then, and rows that wait from then on are new.
    """
    expired = 0
    while True:
        async with conn.transaction():
            await conn.execute(_TURN)
            await conn.execute(BY_INDEX)
            done = await conn.execute(
                _EXPIRE,
                {
                    "known_too": known_too,
                    "system": identity.system,
                    "database": identity.database,
                    "address": identity.address,
                    "batch": _BATCH,
                    "code": COPIED,
                    "reason": _REASON,
                },
            )
        if done.rowcount < 1:
            return expired
        expired += done.rowcount


async def _served(conn: Connection) -> list[Identity]:
    return [Identity(str(s), int(str(d)), str(a)) for s, d, a in await _rows(conn, _SERVED)]


async def _waiting(conn: Connection) -> int:
    """How many rows wait, of which not more are counted than it takes to tell that there are many."""
    async with conn.transaction():
        await conn.execute(BY_INDEX)
        return int(str((await _row(conn, _WAITING, _COUNTED))[0]))


async def _record(conn: Connection, identity: Identity, name: str) -> None:
    await conn.execute(_RECORD, (identity.system, identity.database, identity.address, name))


async def _row(conn: Connection, statement: LiteralString, *values: object) -> tuple[object, ...]:
    (row,) = await _rows(conn, statement, *values)
    return row


async def _rows(conn: Connection, statement: LiteralString, *values: object) -> list[tuple[object, ...]]:
    return await (await conn.execute(statement, values)).fetchall()
