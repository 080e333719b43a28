"""Prepares a worker: reaches and checks the database, and gets an id for the worker."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import structlog
import tenacity

from listener.config import ConfigError, Settings
from listener.postgres import errors, workers
from listener.postgres.connect import Address, ServicePool, is_transaction_pooler, sees
from listener.postgres.errors import Condition
from listener.postgres.queue import Queue
from listener.postgres.workers import QuotaState, Workers
from listener.schema import migrate, served
from listener.schema.migrate import structure

log = structlog.get_logger(__name__)

_CANNOT_LISTEN = (
    "LISTEN cannot work through this address: it is a pooler in transaction mode (on Supabase: port 6543). "
    "Set LISTEN_DATABASE_URL to the direct connection (db.<ref>.supabase.co, port 5432) or to the pooler in session "
    "mode (port 5432); DATABASE_URL may stay as it is. Or set WAKEUP=sweep to look at the queue every few seconds "
    "instead: slower, and without the lock that lets others take over a dead worker's rows at once"
)

_ANOTHER_DATABASE = (
    "LISTEN_DATABASE_URL leads to another database than DATABASE_URL: no notification of an insert would ever come. "
    "Both must name the same database of the same server; only the way to it may differ"
)


class OtherServer(Exception):
    """Both addresses lead to the same database, but on two servers: one is a standby, or a failover is going on."""

    def __str__(self) -> str:
        return (
            "LISTEN_DATABASE_URL leads to another server than DATABASE_URL, with a copy of the same database: both "
            "must lead to the primary server"
        )


def _reason(error: BaseException | None) -> str:
    return str(error) if isinstance(error, OtherServer) else errors.explain(error)


def _may_pass(state: tenacity.RetryCallState) -> bool:
    """Whether the next try may succeed.

    A database that fails over is read-only for a while, and answers with an InternalError. A privilege that is missing
    at the start ends the process; one that a running process has lost may be granted again.
    """
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return bool(state.kwargs.get("again"))
    return isinstance(error, psycopg.OperationalError | psycopg.InternalError | TimeoutError | OtherServer)


_until_reached = tenacity.retry(
    retry=_may_pass,
    wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
    before_sleep=lambda state: log.warning(
        "database cannot be reached",
        reason=_reason(state.outcome.exception() if state.outcome else None),
        setting=state.kwargs.get("setting", "DATABASE_URL"),
        tries=state.attempt_number,
    ),
)


class NotMigrated(Exception):
    """The database does not have the tables this version needs."""

    def __str__(self) -> str:
        return "the database has not been migrated to this version: run push-listener migrate"


class Damaged(NotMigrated):
    """Somebody has dropped tables or columns that the migrations made."""

    def __init__(self, found: list[structure.Damage]) -> None:
        super().__init__()
        self._found = found

    def __str__(self) -> str:
        listed = "; ".join(structure.lines(self._found))
        remedy = structure.remedy(self._found)
        return f"what push-listener has made in the database is no longer there: {listed}. Remedy: {remedy}"


class RollingBack(NotMigrated):
    """``migrate --down`` is dropping the tables now."""

    def __str__(self) -> str:
        return "push-listener migrate --down is at work on this database: nothing can start on it"


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker that has its id."""

    queue: Queue
    workers: Workers
    pool: ServicePool
    listen_address: Address
    lost_lately: int
    """How many workers have died in the last hour."""
    quota: QuotaState
    """What the workers have agreed on about FCM's quota."""
    damaged: list[str]
    """The kinds of database objects of push-listener that somebody has dropped, disabled or replaced."""


class Registration:
    """Registers the workers of this process.

    Args:
        adoption: what becomes of waiting pushes, if the database is a copy of one that was served before.
    """

    def __init__(self, settings: Settings, adoption: served.Adoption | None) -> None:
        self._settings = settings
        self._adoption = adoption
        self.address = Address(settings.database_url.get_secret_value())
        """DATABASE_URL."""
        is_same = settings.listen_dsn == settings.database_url.get_secret_value()
        self.listen_address = self.address if is_same else Address(settings.listen_dsn)
        """LISTEN_DATABASE_URL, or else DATABASE_URL."""
        self._other_server = False
        self._migrations = migrate.load()

    @property
    def conditions(self) -> list[str]:
        """What keeps this process from connecting, in fixed words."""
        found = {address.condition: None for address in (self.address, self.listen_address)}
        other = ["the two addresses lead to two servers"] if self._other_server else []
        return [str(condition) for condition in found if condition not in (None, Condition.AWAY)] + other

    async def is_pooled(self) -> bool:
        """Whether DATABASE_URL is a pooler in transaction mode.

        Waits until the database can be reached. Raises ConfigError if LISTEN would go through such a pooler.
        """
        pooled = await _leads_to_pooler(self.address, setting="DATABASE_URL")
        if self._settings.wakeup == "listen" and (
            pooled
            if self.listen_address is self.address
            else await _leads_to_pooler(self.listen_address, setting="LISTEN_DATABASE_URL")
        ):
            raise ConfigError([_CANNOT_LISTEN])
        if pooled:
            log.info("DATABASE_URL is a pooler in transaction mode: no prepared statements")
        return pooled

    @_until_reached
    async def _compare(self, *, setting: str) -> None:
        """Makes sure that both addresses lead to one database. Raises ConfigError if they do not.

        If they lead to copies of one database on two servers, it waits: a failover may be going on.
        """
        await self.address.until_worth_a_try()
        await self.listen_address.until_worth_a_try()
        async with (
            await self.listen_address.connect("push-listener") as listening,
            await self.address.connect("push-listener", prepares=False) as other,
        ):
            self._other_server = not await sees(listening, other)
            if not self._other_server:
                return
            dsn = self._settings.database_url.get_secret_value()
            one, _ = await served.identify(listening, dsn, "")
            two, _ = await served.identify(other, dsn, "")
        if (one.system, one.database) != (two.system, two.database):
            raise ConfigError([_ANOTHER_DATABASE])
        raise OtherServer

    @_until_reached
    async def register(self, pool: ServicePool, *, again: bool) -> Registered:
        """Checks the database and registers a worker; ``again``: this process had one before, which lost its id.

        Raises NotMigrated; or ConfigError, when another role owns the schema, or pushes wait in a copy.
        """
        if self._settings.wakeup == "listen" and self.listen_address is not self.address:
            await self._compare(setting="LISTEN_DATABASE_URL")
        await self.address.until_worth_a_try()
        try:
            if await workers.schema_version(pool) < self._migrations[-1].version:
                raise NotMigrated
            damaged = await self._find_damage(pool)
            for finding in await workers.drift(pool):
                log.error(
                    "privileges have changed: run push-listener migrate, which sets them again",
                    finding=finding,
                )
            await self._admit(pool)
            name = self._settings.worker_name or socket.gethostname()
            # If the database has lost the row of a small id, only a liveness lock shows that a worker still uses it.
            random_id = again or self._settings.wakeup == "sweep"
            incarnation, lease = uuid4(), self._settings.lease
            worker_id = await workers.register(pool, name, random_id=random_id, incarnation=incarnation)
            queue = Queue(pool, worker_id=worker_id, lease=lease, incarnation=incarnation)
            known = Workers(pool, worker_id=worker_id, lease=lease, incarnation=incarnation)
            await queue.look_for_triggers()
            lost_lately, quota_state = await known.lost_lately(), await known.quota_state()
            return Registered(queue, known, pool, self.listen_address, lost_lately, quota_state, damaged)
        except workers.RollingBack:
            raise RollingBack from None
        except workers.StrangersSchema as stranger:
            raise ConfigError([str(stranger)]) from None
        except (
            psycopg.errors.UndefinedTable,
            psycopg.errors.UndefinedColumn,
            psycopg.errors.UndefinedFunction,
        ):
            raise NotMigrated from None

    async def _find_damage(self, pool: ServicePool) -> list[str]:
        """Logs what somebody has dropped or changed; returns its kinds. Raises Damaged when nothing can work."""
        found = structure.find(await workers.rows(pool, structure.FACTS), self._migrations)
        if any(damage.kind in structure.NEEDED for damage in found):
            raise Damaged(found)
        for line in structure.lines(found):
            log.error(
                "the database has been changed: run push-listener migrate, which repairs it", finding=line
            )
        return structure.kinds(found)

    async def _admit(self, pool: ServicePool) -> None:
        """Makes sure that this is the database that was served before. Raises ConfigError if it is a copy."""
        dsn, installation = self._settings.database_url.get_secret_value(), self._settings.installation
        async with pool.connection() as conn:
            try:
                admission = await served.admit(conn, dsn, installation, self._adoption)
            except (served.IsCopy, served.CannotExpire) as refused:
                raise ConfigError([str(refused)]) from None
        if self._adoption is not None and (admission.known or admission.first):
            log.warning(
                "--adopt-copy has nothing to do: remove it, or it decides about the next copy unasked",
                adopt_copy=self._adoption,
            )
        elif self._adoption is not None:
            log.warning("serving a copy", adopt_copy=self._adoption, expired=admission.expired)
        elif not (admission.known or admission.first):
            log.warning("the database is a copy or has another address now; nothing waits in it")
        self._adoption = None  # decided; this process may register again


@_until_reached
async def _leads_to_pooler(address: Address, *, setting: str) -> bool:
    """See ``is_transaction_pooler``; ``setting`` names the address in the log, which cannot show it."""
    await address.until_worth_a_try()
    return await is_transaction_pooler(address)
