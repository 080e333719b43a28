"""What other users of the database can do to pushes, and whether pushes reach anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import LiteralString

import psycopg

from listener.config import DatabaseSettings
from listener.doctor.findings import Finding, Group
from listener.doctor.looking import APPLICATION_NAME, Connection, value, values
from listener.postgres import locks
from listener.postgres.connect import ENCODING, with_defaults
from listener.schema import exposure, migrate, served

_PRIVILEGES = Group("privileges")
_LOCKS = Group("advisory locks")
_RECIPIENTS = Group("recipients")
_COPY = Group("whether this is a copy")
_EXPOSURES = Group("who can cause, change or read a push")
_ELSEWHERE_GROUP = Group("other databases of this server")

# Roles belong to the whole server, and by default every role may connect to every database of the server.
_ELSEWHERE: LiteralString = """
select d.datname::text
  from pg_catalog.pg_database d
  where d.datname <> pg_catalog.current_database() and d.datallowconn and not d.datistemplate
    and exists (select from pg_catalog.pg_roles r
                  where r.rolname <> 'push_listener' and r.rolcanlogin and not r.rolsuper
                    and pg_catalog.pg_has_role(r.oid, 'push_listener', 'usage')
                    and r.oid <> (select c.relowner from pg_catalog.pg_class c
                                    where c.oid = pg_catalog.to_regclass('public.push_notifications')::oid)
                    and pg_catalog.has_database_privilege(r.oid, d.oid, 'connect'))
  order by d.datname
"""
_LOGINS: LiteralString = """
select r.rolname::text
  from pg_catalog.pg_roles r
  where r.rolcanlogin and not r.rolsuper and r.rolname <> 'push_listener'
    and pg_catalog.pg_has_role(r.oid, 'push_listener', 'usage')
    and r.oid <> (select c.relowner from pg_catalog.pg_class c
                    where c.oid = pg_catalog.to_regclass('public.push_notifications')::oid)
  order by r.rolname
"""

# Pushes that would end dead because their user has no device.
_UNREACHABLE: LiteralString = """
select pg_catalog.count(*) from (
    select from public.push_notifications p
      where p.next_attempt_at is not null and p.status::text in ('pending', 'processing', 'failed')
        and p.device_token is null and p.fid is null and p.topic is null and p.condition is null
        and not exists (select from public.push_recipients r where r.user_id = p.user_id and r.token is not null)
      limit 10001
  ) unreachable
"""


def privileges(conn: Connection) -> Iterator[Finding]:
    """Whether the privileges are as ``migrate`` sets them. Raises psycopg.Error."""
    found = values(conn, migrate.DRIFT)
    for finding in found:
        yield _PRIVILEGES.fault(finding, "run push-listener migrate: it sets them again")
    if not found:
        yield _PRIVILEGES.ok("they are as push-listener sets them")


def strangers(conn: Connection) -> Iterator[Finding]:
    """Sessions that hold a lock of push-listener, but do not belong to it. Raises psycopg.Error."""
    found = locks.strangers(conn)
    for holder in found:
        yield _LOCKS.fault(str(holder), holder.remedy)
    if not found:
        yield _LOCKS.ok("no stranger holds a lock of push-listener")


def recipients(conn: Connection) -> Iterator[Finding]:
    """Waiting pushes that would reach nobody. Raises psycopg.Error."""
    count = int(value(conn, _UNREACHABLE))
    if count:
        some = "more than 10,000" if count > 10_000 else f"{count:,}"
        yield _RECIPIENTS.warning(
            f"{some} waiting pushes go to users without a device in push_recipients, and will end as dead "
            "(NO_RECIPIENTS)",
            "if the application keeps its tokens elsewhere, let push_recipients list them: see docs/adoption.md",
        )
    else:
        yield _RECIPIENTS.ok("every waiting push names a device, a topic, or a user with a device")


def copy(settings: DatabaseSettings, dsn: str, seconds: float) -> Iterator[Finding]:
    """Whether ``run`` would refuse to start because pushes wait in a copy. Raises psycopg.Error.

    ``dsn`` is used to connect. The settings have the address by which push-listener recognizes the database.
    """

    async def look() -> served.IsCopy | None:
        async with await psycopg.AsyncConnection.connect(
            with_defaults(dsn),
            autocommit=True,
            connect_timeout=max(2, round(seconds)),
            application_name=APPLICATION_NAME,
            prepare_threshold=None,
            client_encoding=ENCODING,
        ) as conn:
            return await served.refusal(conn, settings.database_url.get_secret_value(), settings.installation)

    fault = asyncio.run(look())
    if fault is not None:
        yield _COPY.wrong_setting(str(fault))
    else:
        yield _COPY.ok("push-listener run may start: it is no copy, or nothing waits in it")


def exposures(conn: Connection) -> Iterator[Finding]:
    """Everybody who can cause, change or read a push. Raises psycopg.Error."""
    ways = exposure.find(conn)
    meant = sorted({role for way in ways if way.expected for role in way.roles})
    yield _EXPOSURES.ok(f"as it is meant: {', '.join(['superusers', 'the owner', *meant])}")
    for way in ways:
        if not way.expected:
            yield _EXPOSURES.warning(str(way), way.remedy)


def other_databases(conn: Connection) -> Iterator[Finding]:
    """Databases in which the same logins could serve pushes. Raises psycopg.Error."""
    if value(conn, "select pg_catalog.to_regrole('push_listener')") is None:
        return
    logins, databases = values(conn, _LOGINS), values(conn, _ELSEWHERE)
    if not databases:
        yield _ELSEWHERE_GROUP.ok("no login of the role push_listener may connect to another database")
        return
    some = ", ".join(databases[:5]) + (f" and {len(databases) - 5} more" if len(databases) > 5 else "")
    yield _ELSEWHERE_GROUP.warning(
        f"{', '.join(logins)} may also connect to {some}: the role push_listener is one for the whole server, so where "
        "push-listener is installed there as well, these logins read and settle its pushes too",
        "revoke connect on database ... from public, and grant connect to the roles that need it",
    )
