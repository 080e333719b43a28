"""Recognizes a copy of a database that push-listener has served before: its pushes must not be sent twice.

A dump, a branch or a restored backup of production holds the same waiting rows and the same device tokens. So the table
``push_listener.served`` records the identities under which the database has been served. A listener that finds only
other identities there does not start while rows wait. See docs/restore.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import pq
from psycopg.rows import class_row

from listener.postgres.connect import Connection, fetch_value
from listener.postgres.overview import BY_INDEX
from listener.postgres.statements import load
from listener.postgres.text import storable
from listener.schema.identity import Identity, address_of, differences

Adoption = Literal["expire", "send"]
"""What happens to the pushes that wait in a copy."""

COPIED = "COPIED"
"""The error code of a push that expired because it was in a copy."""

_REASON = "it waited in a database that push-listener had served elsewhere, and was not sent from this copy"
_BATCH = 5000
_COUNTED = 10_000

_SYSTEM = "select system_identifier::text from pg_catalog.pg_control_system()"
_DATABASE = """
select oid::bigint, datname::text as name, pg_catalog.current_setting('port') as port
  from pg_catalog.pg_database
  where datname = pg_catalog.current_database()
"""
_SERVED = "select system_identifier as system, database_oid as database, address from push_listener.served"
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

# Processes that expire rows at the same time take turns, batch by batch. Otherwise they would lock the same rows in
# different orders. They lock the only row of push_listener.shared_quota, because only workers and the owner can lock
# it. Any login could hold an advisory lock.
_TURN = "select from push_listener.shared_quota for no key update"

_EXPIRE = load(__file__, "expire_waiting")


@dataclass(frozen=True, slots=True)
class Admission:
    """The result if the listener may serve the database."""

    identity: Identity
    known: bool
    """Whether the database has been served under this identity before."""
    first: bool
    """Whether the database has never been served before."""
    expired: int = 0
    """The number of pushes that expired."""


class IsCopy(Exception):
    """Rows wait in a database that has only been served under other identities. The message says what to do."""

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


class CannotExpire(Exception):
    """A trigger keeps waiting rows from expiring, so they would be sent."""

    def __str__(self) -> str:
        return (
            "a trigger on push_notifications keeps waiting pushes from becoming expired, so they would be sent. "
            "Nothing has been sent. Let the trigger pass what the owner and the role push_listener write, then run "
            "this again"
        )


async def identify(conn: Connection, dsn: str, installation: str | None) -> tuple[Identity, str]:
    """Returns the identity of the database to which a connection leads, and its name.

    Args:
        conn: a connection in autocommit.
        dsn: DATABASE_URL, even if ``conn`` was opened with another address.
        installation: if given, it replaces the address.
    """
    try:
        system: str = await fetch_value(conn, _SYSTEM)
    except psycopg.errors.InsufficientPrivilege:
        system = ""
    row = await (await conn.execute(_DATABASE)).fetchone()
    assert row is not None
    oid, name, port = row
    # The server's own port tells two servers on one host apart. It is the same through every pooler.
    address = f"{address_of(dsn, _default_host())}, server port {port}"
    place = f"installation {installation}" if installation else address
    return Identity(system, oid, storable(place)), name


def _default_host() -> str:
    """The value of PGHOST or PGHOSTADDR, or the default with which libpq was built."""
    found = {each.keyword: each.val for each in pq.Conninfo.get_defaults()}
    return (found.get(b"host") or found.get(b"hostaddr") or b"").decode()


async def admit(conn: Connection, dsn: str, installation: str | None, adoption: Adoption | None) -> Admission:
    """Decides whether a listener may serve the database, and records its identity.

    ``adoption`` has an effect only in a copy. In a known database it changes nothing.

    Raises IsCopy if rows wait in a copy and ``adoption`` is None, or psycopg.Error.
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
    """Returns the reason why ``admit`` would refuse, or None; changes nothing. Raises psycopg.Error."""
    identity, _ = await identify(conn, dsn, installation)
    served = await _served(conn)
    if not served or identity in served:
        return None
    waiting = await _waiting(conn)
    return IsCopy(identity, served, waiting) if waiting else None


async def adopt(conn: Connection, dsn: str, installation: str | None, adoption: Adoption) -> int:
    """Records the identity of a database, known or not, and lets waiting rows expire if ``adoption`` is "expire".

    Returns the number of pushes that expired. Raises psycopg.Error.
    """
    identity, name = await identify(conn, dsn, installation)
    expired = await expire(conn, identity, known_too=True) if adoption == "expire" else 0
    await _record(conn, identity, name)
    return expired


async def expire(conn: Connection, identity: Identity, *, known_too: bool) -> int:
    """Lets all waiting rows expire, in batches; returns their number.

    Raises CannotExpire if a trigger of the application keeps rows as they are, or psycopg.Error.

    Unless ``known_too``, it ends as soon as the database is known under this identity. Another process that started at
    the same time has then finished, and rows inserted since are new.
    """
    expired = 0
    while True:
        async with conn.transaction():
            await conn.execute(_TURN)
            await conn.execute(BY_INDEX)
            cursor = await conn.execute(
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
            found, done = await cursor.fetchone() or (0, 0)
            if done < found:
                raise CannotExpire  # this also rolls back the batch
        if not found:
            return expired
        expired += done


async def _served(conn: Connection) -> list[Identity]:
    cursor = conn.cursor(row_factory=class_row(Identity))
    await cursor.execute(_SERVED)
    return await cursor.fetchall()


async def _waiting(conn: Connection) -> int:
    """The number of waiting rows, counted only up to ``_COUNTED``."""
    async with conn.transaction():
        await conn.execute(BY_INDEX)
        return int(await fetch_value(conn, _WAITING, (_COUNTED,)))


async def _record(conn: Connection, identity: Identity, name: str) -> None:
    await conn.execute(_RECORD, (identity.system, identity.database, identity.address, name))
