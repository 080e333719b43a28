"""Makes all checks in order, each within its time limit, and says which checks could not be made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import psycopg

from listener.config import DatabaseSettings
from listener.doctor import (
    clock,
    connections,
    dead_rows,
    fcm,
    listening,
    machine,
    migrations,
    neighbours,
    notify_queue,
    reaching,
    rights,
    settings,
    snapshots,
    workers,
)
from listener.doctor.findings import Finding, Group
from listener.doctor.limits import Deadline, Limits, begin, within
from listener.doctor.looking import Connection, connect, looking, value
from listener.doctor.reaching import Resolve, Way
from listener.postgres import errors
from listener.postgres.connect import Address, is_transaction_pooler, keeps_locks
from listener.postgres.workers import STRANGERS_SCHEMA

T = TypeVar("T")

Check = Callable[[], Iterable[Finding]]
Look = Callable[[Connection], Iterable[Finding]]

_FCM = Group("FCM")
_LISTEN = Group("LISTEN")
_NEED_TABLES = (
    "triggers",
    "rights of the role",
    "privileges",
    "advisory locks",
    "recipients",
    "whether this is a copy",
    "other databases of this server",
    "dead rows",
    "workers",
)
_NEED_DATABASE = (
    "LISTEN",
    "migrations",
    *_NEED_TABLES[:-2],
    "who can cause, change or read a push",
    "connections",
    "clock",
    "snapshots",
    "NOTIFY queue",
    *_NEED_TABLES[-2:],
)
"""In the order of the checks."""


def examine(
    device: str | None = None, limits: Limits | None = None, resolver: Resolve = reaching.resolve
) -> Iterator[Finding]:
    """Yields what every check finds, group by group; the settings come from the environment.

    Args:
        device: a registration token or installation id for which FCM is to validate a message.
        limits: how long the checks may take.
        resolver: finds the addresses of a host. It may block for ever.
    """
    limits = limits or Limits()
    read = settings.read()
    yield from settings.judge(read, os.environ)
    if read.service is not None:
        yield from machine.examine(read.service, limits)
    else:
        yield Group("process").not_checked("the settings cannot be read")
    asking = None
    if read.service is not None and not read.is_key_wrong:
        of_service = read.service
        asking = begin(lambda: list(fcm.examine(of_service, device, limits, resolver)))
    if read.database is None:
        yield from _all_skipped(("database", *_NEED_DATABASE), "a setting of the database is wrong")
    else:
        yield from _Database(read.database, limits, resolver, purges=_purges(read)).examine()
    if asking is not None:
        try:
            yield from asking.result(timeout=limits.fcm)
        except TimeoutError:
            yield _FCM.fault(
                f"no result after {limits.fcm:.0f} s", "check the network and the proxy of this machine"
            )
    else:
        yield _FCM.not_checked("a setting that it needs is wrong")


def _purges(read: settings.Read) -> bool:
    return read.service is not None and read.service.retention is not None


def _all_skipped(groups: tuple[str, ...], why: str) -> Iterator[Finding]:
    for name in groups:
        yield Group(name).not_checked(why)


class _Gone(Exception):
    """The database does not answer any more, or no time is left; the text says which."""


class _Database:
    """The checks of one database.

    Args:
        database: the settings.
        limits: for each check.
        resolver: finds the addresses of the hosts.
        purges: whether RETENTION is set.
    """

    def __init__(
        self, database: DatabaseSettings, limits: Limits, resolver: Resolve, *, purges: bool
    ) -> None:
        self._settings = database
        self._limits = limits
        self._resolver = resolver
        self._purges = purges
        self._sweeps = database.wakeup == "sweep"
        self._deadline = Deadline(limits.whole)
        self._dsn = self._listen_dsn = ""
        self._conn: Connection | None = None
        self._made: set[str] = set()

    def examine(self) -> Iterator[Finding]:
        """Makes every check that can be made, and says which checks could not be made."""
        ways = self._follow()
        for way in ways:
            yield from reaching.judge(way)
        reached = [way.reached.dsn for way in ways if way.reached is not None]
        if len(reached) < len(ways):
            yield from _all_skipped(_NEED_DATABASE, "the database was not reached")
            return
        self._dsn, self._listen_dsn = reached[0], reached[-1]
        try:
            yield from self._look_at_all()
        except _Gone as gone:
            left = tuple(name for name in _NEED_DATABASE if name not in self._made)
            yield from _all_skipped(left, str(gone))
        finally:
            if self._conn is not None:
                begin(self._conn.close)  # closing may block, if the server accepts no data

    def _follow(self) -> list[Way]:
        """Follows both addresses at the same time."""
        addresses = {"DATABASE_URL": self._settings.database_url.get_secret_value()}
        if self._settings.listen_database_url is not None:
            addresses["LISTEN_DATABASE_URL"] = self._settings.listen_database_url.get_secret_value()
        under_way = [
            begin(partial(reaching.follow, name, dsn, self._limits, self._resolver))
            for name, dsn in addresses.items()
        ]
        return [each.result() for each in under_way]  # each ends within its own limits

    def _look_at_all(self) -> Iterator[Finding]:
        yield from self._listening()
        yield from self._look("migrations", migrations.examine)
        migrated = self._is_migrated()
        if migrated:
            yield from self._look("triggers", partial(migrations.examine_triggers, sweeps=self._sweeps))
            yield from self._look("rights of the role", partial(rights.examine, purges=self._purges))
            yield from self._look("privileges", neighbours.privileges)
            yield from self._look("advisory locks", neighbours.strangers)
            yield from self._look("recipients", neighbours.recipients)
            copy = partial(neighbours.copy, self._settings, self._dsn, self._limits.connect)
            yield from self._make("whether this is a copy", self._limits.check, copy)
            yield from self._look("other databases of this server", neighbours.other_databases)
        yield from self._look("who can cause, change or read a push", neighbours.exposures)
        living = self._count_workers() if migrated else 0
        of_workers = partial(connections.examine, workers=living, purges=self._purges)
        yield from self._look("connections", of_workers)
        yield from self._look("clock", lambda conn: [clock.judge(clock.measure(conn))])
        yield from self._look("snapshots", snapshots.examine)
        yield from self._look("NOTIFY queue", lambda conn: [notify_queue.examine(conn)])
        if migrated:
            yield from self._look("dead rows", dead_rows.examine)
            yield from self._look("workers", workers.examine)
        else:
            yield from _all_skipped(_NEED_TABLES, "the database is not migrated")

    def _listening(self) -> Iterator[Finding]:
        """Checks LISTEN in steps. A pooler in transaction mode, or two different databases, ends them early."""
        make = partial(self._make, "LISTEN")
        is_pooled = False

        def find_mode() -> list[Finding]:
            nonlocal is_pooled
            is_pooled = asyncio.run(is_transaction_pooler(Address(self._listen_dsn)))
            return [listening.judge_mode(is_pooled, sweeps=self._sweeps)]

        yield from make(self._limits.mode, find_mode)
        if is_pooled:
            yield _LISTEN.skipped("a notification to itself: not tried through such a pooler")
            return
        if self._settings.listen_database_url is not None:
            same = partial(listening.is_same, self._dsn, self._listen_dsn)
            found = list(make(self._limits.check, lambda: listening.judge_same(same())))
            yield from found
            if found:
                yield _LISTEN.skipped("a notification to itself: both addresses must lead to one database")
                return
        if self._sweeps:
            yield _LISTEN.skipped("a notification to itself: WAKEUP=sweep does without")
        else:
            trip = partial(listening.round_trip, self._dsn, self._listen_dsn, self._limits.check)
            yield from make(self._limits.check, lambda: [listening.judge_round_trip(trip())])
        kept = partial(keeps_locks, self._listen_dsn)
        yield from make(self._limits.check, lambda: listening.judge_kept_locks(kept()))

    def _is_migrated(self) -> bool:
        """Whether the tables exist, and a trusted role has made their schema. Raises _Gone."""

        def ask(conn: Connection) -> bool:
            return value(conn, STRANGERS_SCHEMA) is None and bool(value(conn, migrations.MIGRATED))

        try:
            return self._ask(ask)
        except (psycopg.Error, _TooSlow):
            return False

    def _count_workers(self) -> int:
        """How many workers live. Raises _Gone."""
        try:
            return self._ask(lambda conn: workers.alive(workers.read(conn)))
        except (psycopg.Error, _TooSlow):  # the check of the workers reports this error
            return 0

    # --- one check -----------------------------------------------------------------------------------------

    def _look(self, group: str, look: Look) -> Iterator[Finding]:
        """Makes a check that uses the shared connection. Raises _Gone."""
        return self._explained(group, lambda: self._ask(lambda conn: list(look(conn))))

    def _make(self, group: str, seconds: float, check: Check) -> Iterator[Finding]:
        """Makes a check that opens its own connections. Raises _Gone."""
        return self._explained(group, lambda: self._bounded(seconds, lambda: list(check())))

    def _explained(self, group: str, check: Callable[[], list[Finding]]) -> Iterator[Finding]:
        self._made.add(group)
        try:
            found = check()
        except _Gone as gone:
            yield Group(group).fault(f"not checked: {gone}")
            raise
        except _TooSlow:
            yield Group(group).warning("not checked: it takes too long, although the database answers")
        except psycopg.Error as error:
            yield _explain(Group(group), error)
        else:
            yield from found

    def _ask(self, ask: Callable[[Connection], T]) -> T:
        """Asks over the one connection that these checks share. Raises psycopg.Error, _Gone or _TooSlow."""

        usable = None if self._conn is None or self._conn.closed else self._conn
        self._conn = None  # a call that takes too long still uses its connection

        def look() -> T:
            nonlocal usable
            usable = usable or connect(self._dsn, self._limits.connect)
            with looking(usable, self._limits.check) as conn:
                return ask(conn)

        try:
            answer = self._bounded(self._limits.check, look)
        except psycopg.Error:
            self._conn = usable
            raise
        self._conn = usable
        return answer

    def _bounded(self, seconds: float, call: Callable[[], T]) -> T:
        """Raises _Gone if the database does not answer any more, or _TooSlow if only this call takes too long."""
        left = self._deadline.left(seconds)
        if left <= 0.0:
            raise _Gone(f"no time is left after {self._limits.whole:.0f} s")
        try:
            return within(left, call)
        except TimeoutError:
            self._check_presence()
            raise _TooSlow from None
        except psycopg.OperationalError as error:
            if errors.sqlstate_of(error) is None:  # the server has not answered
                self._check_presence()
            raise

    def _check_presence(self) -> None:
        try:
            within(self._limits.still_there, lambda: connect(self._dsn, self._limits.still_there).close())
        except (psycopg.Error, TimeoutError):
            raise _Gone("the database answers no more") from None


class _TooSlow(Exception):
    """A check took too long, although the database still answers."""


def _explain(group: Group, error: psycopg.Error) -> Finding:
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return group.warning("this role may not look at it", "run doctor as the owner of the tables")
        case (
            psycopg.errors.UndefinedTable()
            | psycopg.errors.UndefinedColumn()
            | psycopg.errors.UndefinedFunction()
        ):
            return group.not_checked("what it looks at is missing, see the migrations")
        case psycopg.errors.LockNotAvailable() | psycopg.errors.QueryCanceled():
            return group.warning(f"not checked: {errors.explain(error)}")
        case _:
            return group.fault(f"not checked: {errors.explain(error)}")
