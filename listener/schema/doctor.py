"""Examines an installation: says what is wrong with it and what to do about it. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString

import psycopg
from psycopg.rows import scalar_row

from listener.config import DatabaseSettings
from listener.postgres import errors, locks
from listener.postgres.connect import ENCODING, Address, is_transaction_pooler_blocking, keeps_locks, sees
from listener.schema import exposure, migrate, served
from listener.schema.migrate import Standing, structure

_CONNECT_TIMEOUT_S = 10

# Roles belong to the whole server, and by default every role may connect to each of its databases.
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

# Pushes that would end as dead for want of a device.
_UNREACHABLE: LiteralString = """
select pg_catalog.count(*) from (
    select from public.push_notifications p
      where p.next_attempt_at is not null and p.status::text in ('pending', 'processing', 'failed')
        and p.device_token is null and p.topic is null and p.condition is null
        and not exists (select from public.push_recipients r where r.user_id = p.user_id and r.token is not null)
      limit 10001
  ) unreachable
"""

_FUNCTIONS = {
    Standing.CHANGED: "run push-listener migrate: it replaces them",
    Standing.NEWER: "a newer push-listener has replaced them: use that version here too",
}
"""What to do about functions in the database that are not those of this version."""


class Level(StrEnum):
    """How serious a finding is."""

    GOOD = "good"
    LOOK = "look"
    """It may be intended; a person should check."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    group: str
    level: Level
    text: str
    remedy: str | None = None


def examine(settings: DatabaseSettings) -> Iterator[Finding]:
    """Yields everything that the database shows, group by group. Ends when a connection fails."""
    reached = yield from _reach(settings)
    if not reached:
        return
    dsn = settings.listen_dsn
    migrated = yield from _migrations(dsn)
    with psycopg.connect(
        dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, client_encoding=ENCODING
    ) as conn:
        conn.execute("set search_path = pg_catalog, pg_temp")
        if migrated:
            yield from _privileges(conn)
            yield from _strangers(conn)
            yield from _recipients(conn)
            yield from _copy(settings)
            yield from _other_databases(conn)
        yield from _exposures(conn)


def _reach(settings: DatabaseSettings) -> Generator[Finding, None, bool]:
    group = "connections"
    addresses = {"DATABASE_URL": settings.database_url.get_secret_value()}
    if settings.listen_database_url is not None:
        addresses["LISTEN_DATABASE_URL"] = settings.listen_database_url.get_secret_value()
    good = True
    for name, dsn in addresses.items():
        try:
            with psycopg.connect(dsn, connect_timeout=_CONNECT_TIMEOUT_S, client_encoding=ENCODING) as conn:
                version = conn.info.server_version // 10_000
        except psycopg.OperationalError as error:
            good = False
            yield Finding(group, Level.WRONG, f"{name}: {errors.explain(error)}")
            continue
        supported = 15 <= version <= 18
        yield Finding(
            group,
            Level.GOOD if supported else Level.LOOK,
            f"{name} leads to PostgreSQL {version}",
            None if supported else "push-listener is tested on PostgreSQL 15 to 18",
        )
    if good and len(addresses) > 1 and not _same_database(*addresses.values()):
        yield Finding(
            group,
            Level.WRONG,
            "LISTEN_DATABASE_URL leads to another database or server than DATABASE_URL",
            "both must lead to the same database of the primary server",
        )
        return False
    if good:
        if is_transaction_pooler_blocking(settings.listen_dsn):
            good = settings.wakeup == "sweep"
            yield Finding(
                group,
                Level.LOOK if good else Level.WRONG,
                "LISTEN cannot work: the address is a pooler in transaction mode",
                "set LISTEN_DATABASE_URL to a direct or session-mode address (on Supabase: port 5432); doctor needs "
                "one to look at the rest, and has looked at nothing else",
            )
            return False
        yield Finding(group, Level.GOOD, "LISTEN and locks over several statements can work")
        if keeps_locks(settings.listen_dsn):
            yield Finding(
                group,
                Level.WRONG,
                "the pooler keeps the locks of clients that have gone: the rows of a worker that dies wait until their "
                "lease ends, because its peers take it for alive",
                "in PgBouncer set server_reset_query to DISCARD ALL, which is its default, or listen at the server "
                "itself (LISTEN_DATABASE_URL)",
            )
    return good


def _same_database(dsn: str, listen_dsn: str) -> bool:
    async def look() -> bool:
        async with (
            await Address(listen_dsn).connect("push-listener") as one,
            await Address(dsn).connect("push-listener", prepares=False) as other,
        ):
            return await sees(one, other)

    return asyncio.run(look())


def _migrations(dsn: str) -> Generator[Finding, None, bool]:
    group = "migrations"
    try:
        states = migrate.status(dsn)
    except migrate.MigrationError as error:
        yield Finding(group, Level.WRONG, str(error))
        return False
    functions = migrate.function_status(dsn)
    missing = sum(state.applied_at is None for state in states)
    changed = [state.migration.name for state in states if state.changed]
    if missing:
        yield Finding(
            group, Level.WRONG, f"{missing} of {len(states)} are not applied", "run push-listener migrate"
        )
    if changed:
        yield Finding(group, Level.WRONG, f"applied from other files: {', '.join(changed)}")
    for standing, remedy in _FUNCTIONS.items():
        if names := [each.function.name for each in functions if each.standing is standing]:
            yield Finding(group, Level.LOOK, f"functions that are {standing}: {', '.join(names)}", remedy)
    damaged = migrate.damages(dsn)
    for line in structure.lines(damaged):
        yield Finding(group, Level.WRONG, line, structure.remedy(damaged))
    if not missing and not changed and not damaged:
        yield Finding(group, Level.GOOD, f"all {len(states)} are applied, and what they made is there")
    return not missing and not any(damage.kind in structure.NEEDED for damage in damaged)


def _privileges(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    group = "privileges"
    try:
        found = _values(conn, migrate.DRIFT)
    except psycopg.errors.InsufficientPrivilege:
        yield Finding(
            group, Level.LOOK, "this role may not compare them", "run doctor as the owner of the tables"
        )
        return
    for finding in found:
        yield Finding(group, Level.WRONG, finding, "run push-listener migrate: it sets them again")
    if not found:
        yield Finding(group, Level.GOOD, "they are as push-listener sets them")


def _strangers(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    group = "advisory locks"
    try:
        found = locks.strangers(conn)
    except psycopg.errors.InsufficientPrivilege:
        yield Finding(
            group, Level.LOOK, "this role may not look at them", "run doctor as the owner of the tables"
        )
        return
    for holder in found:
        yield Finding(group, Level.WRONG, str(holder), holder.remedy)
    if not found:
        yield Finding(group, Level.GOOD, "no stranger holds a lock of push-listener")


def _recipients(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    group = "recipients"
    try:
        (count,) = _values(conn, _UNREACHABLE)
    except psycopg.errors.InsufficientPrivilege:
        yield Finding(
            group, Level.LOOK, "this role may not look at them", "run doctor as the owner of the tables"
        )
        return
    if count:
        some = "more than 10,000" if count > 10_000 else f"{count:,}"
        yield Finding(
            group,
            Level.LOOK,
            f"{some} waiting pushes go to users without a device in push_recipients, and will end as dead "
            "(NO_RECIPIENTS)",
            "if the application keeps its tokens elsewhere, let push_recipients list them: see docs/adoption.md",
        )
    else:
        yield Finding(
            group, Level.GOOD, "every waiting push names a device, a topic, or a user with a device"
        )


def _copy(settings: DatabaseSettings) -> Iterator[Finding]:
    group = "whether this is a copy"
    dsn = settings.database_url.get_secret_value()

    async def look() -> served.IsCopy | None:
        async with await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            prepare_threshold=None,
            client_encoding=ENCODING,
        ) as conn:
            return await served.refusal(conn, dsn, settings.installation)

    fault = asyncio.run(look())
    if fault is not None:
        yield Finding(group, Level.WRONG, str(fault))
    else:
        yield Finding(group, Level.GOOD, "push-listener run may start: it is no copy, or nothing waits in it")


def _exposures(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    group = "who can cause, change or read a push"
    ways = exposure.find(conn)
    meant = sorted({role for way in ways if way.expected for role in way.roles})
    yield Finding(group, Level.GOOD, f"as it is meant: {', '.join(['superusers', 'the owner', *meant])}")
    for way in ways:
        if not way.expected:
            yield Finding(group, Level.LOOK, str(way), way.remedy)


def _other_databases(conn: psycopg.Connection[Any]) -> Iterator[Finding]:
    group = "other databases of this server"
    if _values(conn, "select pg_catalog.to_regrole('push_listener')") == [None]:
        return
    logins, databases = _values(conn, _LOGINS), _values(conn, _ELSEWHERE)
    if not databases:
        yield Finding(group, Level.GOOD, "no login of the role push_listener may connect to another database")
        return
    some = ", ".join(databases[:5]) + (f" and {len(databases) - 5} more" if len(databases) > 5 else "")
    yield Finding(
        group,
        Level.LOOK,
        f"{', '.join(logins)} may also connect to {some}: the role push_listener is one for the whole server, so where "
        "push-listener is installed there as well, these logins read and settle its pushes too",
        "revoke connect on database ... from public, and grant connect to the roles that need it",
    )


def _values(conn: psycopg.Connection[Any], statement: LiteralString) -> list[Any]:
    """The first column."""
    return conn.cursor(row_factory=scalar_row).execute(statement).fetchall()
