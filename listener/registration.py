"""What happens before a worker begins: the database is reached and checked, and the worker gets its id."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psycopg
import structlog
import tenacity

from listener.config import ConfigError, Settings
from listener.postgres import errors, workers
from listener.postgres.connect import Pool, is_transaction_pooler
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

# A database that fails over is read-only for a while, and answers with an InternalError.
_until_reached = tenacity.retry(
    retry=tenacity.retry_if_exception_type((psycopg.OperationalError, psycopg.InternalError, TimeoutError)),
    wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
    before_sleep=lambda state: log.warning(
        "database cannot be reached",
        reason=errors.explain(state.outcome.exception() if state.outcome else None),
        setting=state.kwargs.get("setting", "DATABASE_URL"),
        tries=state.attempt_number,
    ),
)


class NotMigrated(Exception):
    """The database does not have the tables this version needs."""

    def __str__(self) -> str:
        return "the database has not been migrated to this version: run push-listener migrate"


class Damaged(NotMigrated):
    """Somebody has dropped tables or columns that the migrations have made."""

    def __init__(self, found: list[structure.Damage]) -> None:
        super().__init__()
        self._found = found

    def __str__(self) -> str:
        listed = "; ".join(structure.lines(self._found))
        remedy = structure.remedy(self._found)
        return f"what push-listener has made in the database is no longer there: {listed}. Remedy: {remedy}"


class RollingBack(NotMigrated):
    """``migrate --down`` drops the tables at this moment."""

    def __str__(self) -> str:
        return "push-listener migrate --down is at work on this database: nothing can start on it"


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker that has its id."""

    queue: Queue
    workers: Workers
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
        self._migrations = migrate.load()

    async def is_pooled(self) -> bool:
        """Whether DATABASE_URL is a pooler in transaction mode.

        Waits until the database can be reached. Raises ConfigError if LISTEN would go through such a pooler.
        """
        dsn, listen_dsn = self._settings.database_url.get_secret_value(), self._settings.listen_dsn
        pooled = await _leads_to_pooler(dsn, setting="DATABASE_URL")
        if self._settings.wakeup == "listen" and (
            pooled if listen_dsn == dsn else await _leads_to_pooler(listen_dsn, setting="LISTEN_DATABASE_URL")
        ):
            raise ConfigError([_CANNOT_LISTEN])
        if pooled:
            log.info("DATABASE_URL is a pooler in transaction mode: no prepared statements")
        return pooled

    @_until_reached
    async def register(self, pool: Pool, *, again: bool) -> Registered:
        """Checks the database and registers a worker; ``again``: after the first one has lost its id.

        Raises NotMigrated; or ConfigError, when another role owns the schema, or pushes wait in a copy.
        """
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
            worker_id = await workers.register(pool, name, random_id=again)
            queue = Queue(pool, worker_id=worker_id, lease=self._settings.lease)
            known = Workers(pool, worker_id=worker_id, lease=self._settings.lease)
            return Registered(queue, known, await known.lost_lately(), await known.quota_state(), damaged)
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

    async def _find_damage(self, pool: Pool) -> list[str]:
        """Logs what somebody has dropped or changed; returns its kinds. Raises Damaged when nothing can work."""
        found = structure.find(await workers.rows(pool, structure.FACTS), self._migrations)
        if any(damage.kind in structure.NEEDED for damage in found):
            raise Damaged(found)
        for line in structure.lines(found):
            log.error(
                "the database has been changed: run push-listener migrate, which mends it", finding=line
            )
        return structure.kinds(found)

    async def _admit(self, pool: Pool) -> None:
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
async def _leads_to_pooler(dsn: str, *, setting: str) -> bool:
    """See ``is_transaction_pooler``; ``setting`` names the address in the log, which cannot show it."""
    return await is_transaction_pooler(dsn)
