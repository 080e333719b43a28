"""Puts the rooms together and runs them until a signal says otherwise."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import psycopg
import structlog
import tenacity
from google.auth.credentials import Credentials
from psycopg_pool import PoolTimeout

from listener.config import ConfigError, Settings
from listener.fcm.auth import AccessTokens, load_credentials
from listener.fcm.fault import AuthFault
from listener.fcm.sender import Sender
from listener.fcm.transports.aiohttp import AiohttpTransport
from listener.fcm.transports.base import Transport
from listener.fcm.transports.http1 import AsyncioTransport
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.retry_policy import RetryPolicy
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import after_losses
from listener.metrics import Metrics
from listener.postgres import errors, workers
from listener.postgres.connect import STATEMENT_PATIENCE_S, Pool, is_transaction_pooler, make_pool
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue, Sweep
from listener.postgres.workers import QuotaState, Workers
from listener.schema import migrate, retention, served
from listener.sending.dispatcher import Dispatcher
from listener.wakeup.busy_polling import BusyPolling
from listener.wakeup.doorbell import Doorbell, IdentityLost
from listener.wakeup.peers import PeerWatch
from listener.web.server import Web

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Of the shutdown grace: what is kept for writing down results after sends have been given up.
_KEPT_FOR_SETTLING = 0.2
_OVERDUE_AFTER_S = 3.0
_TELLING_PEERS_S = 1.0
_IDLE_DEPTH_INTERVAL = 300.0

# A worker that has to register anew again and again waits in between.
_LASTING_S = 10.0
_LONGEST_PAUSE_S = 30.0

_CANNOT_LISTEN = (
    "LISTEN cannot work through this address: it is a pooler in transaction mode (on Supabase: port 6543). "
    "Set LISTEN_DATABASE_URL to the direct connection (db.<ref>.supabase.co, port 5432) or to the pooler in session "
    "mode (port 5432); DATABASE_URL may stay as it is. Or set DOORBELL=sweep to look at the queue every few seconds "
    "instead: slower, and without the lock that lets others take over a dead worker's rows at once"
)

# Read-only, as while it fails over, is an InternalError.
_until_reached = tenacity.retry(
    retry=tenacity.retry_if_exception_type(
        (psycopg.OperationalError, psycopg.InternalError, PoolTimeout, TimeoutError)
    ),
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


class RollingBack(NotMigrated):
    """The tables are being taken away at this moment."""

    def __str__(self) -> str:
        return "push-listener migrate --down is at work on this database: nothing can start on it"


def credentials_for(settings: Settings) -> tuple[Credentials, str]:
    """Credentials and project id. Blocks. Raises ConfigError when there are none, or no project is named."""
    try:
        credentials, project = load_credentials(settings.fcm_service_account_json)
    except ValueError as error:
        raise ConfigError([f"FCM_SERVICE_ACCOUNT_JSON / GOOGLE_APPLICATION_CREDENTIALS: {error}"]) from None
    project = settings.fcm_project_id or project
    if project is None:
        raise ConfigError(["FCM_PROJECT_ID is not set, and the credentials do not name a project"])
    return credentials, project


class Service:
    """One process of push-listener.

    Args:
        settings: checked already.
        credentials: for FCM.
        project_id: the Firebase project to send for.
        on_overdue: called when the grace period has been over for some seconds and the run has not ended: a database
            that has gone silent can hold up for long whoever lets go of a connection.
        adoption: what becomes of the pushes that wait, if the database is a copy of one that was served before.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        project_id: str,
        on_overdue: Callable[[], None] = lambda: None,
        adoption: served.Adoption | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._project_id = project_id
        self._on_overdue = on_overdue
        self._adoption = adoption
        self.metrics = Metrics()
        self._schema_version = migrate.load()[-1].version
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._lost: IdentityLost | None = None  # why this worker has to register anew
        self._interrupted = asyncio.Event()  # stopped, or lost
        self._locks = LockWatch(self.metrics)
        self._dispatcher: Dispatcher | None = None
        self._doorbell: Doorbell | None = None
        self._watch: PeerWatch | None = None
        self._awake: BusyPolling | None = None
        self.port: int | None = None
        """Where the web server listens, once it does."""

    def stop(self) -> None:
        """Ends the run within the grace period; called again: at once, giving back what is in flight."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            patience = self._settings.shutdown_grace + _OVERDUE_AFTER_S
            asyncio.get_running_loop().call_later(patience, self._on_overdue)
        self._stop.set()
        self._interrupted.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Runs until SIGTERM or SIGINT, or until ``stop``. ``on_ready`` is called once rows are being taken.

        Raises NotMigrated, OSError when the port cannot be had, or ConfigError when LISTEN cannot work through
        the address, or when pushes wait in a database that is a copy.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with AsyncExitStack() as stack:
            self.port = await stack.enter_async_context(
                Web(self._settings, self.metrics.registry, self._not_ready).serve()
            )
            pooled = await self._unless_stopped(self._is_pooled())
            if pooled is None:
                return
            pool = make_pool(self._settings.database_url.get_secret_value(), prepares=not pooled)
            await pool.open()
            # At the end a database that is away must not take what is left of the grace period.
            stack.push_async_callback(pool.close, timeout=1.0)
            transport = _transport(self._settings)
            stack.push_async_callback(transport.close)
            tokens = AccessTokens(self._credentials)
            stack.push_async_callback(tokens.close)
            sender = Sender(
                transport,
                tokens,
                endpoint=str(self._settings.fcm_endpoint),
                project_id=self._project_id,
                observe=lambda seconds, _: self.metrics.exchange.observe(seconds),
            )
            warming = asyncio.create_task(_warm(tokens))
            try:
                await self._work_under_ids(pool, sender, on_ready)
            finally:
                warming.cancel()

    async def _work_under_ids(self, pool: Pool, sender: Sender, on_ready: Callable[[], None]) -> None:
        """Works until stopped: under one id, or one after the other if it cannot go on under the first."""
        quota = Quota(self._settings.fcm_quota, self._settings.fcm_ramp, time.monotonic())
        health: FcmHealth | None = None
        readied = False

        def ready() -> None:
            nonlocal readied
            if not readied:
                readied = True
                on_ready()

        for number in itertools.count():
            registered = await self._unless_stopped(self._register(pool, random_id=number > 0))
            if registered is None:
                return
            rows, others, lost, fleet = registered
            if health is None:
                if lost > 1:
                    log.warning("workers have died lately: starting gently", workers=lost)
                health = FcmHealth(
                    after_losses(lost, self._settings.max_in_flight, time.monotonic()),
                    policy=RetryPolicy(
                        self._settings.retry_floor, self._settings.retry_cap, self._settings.max_tries
                    ),
                    token_loss_guard=self._settings.token_loss_guard,
                )
            shared = SharedQuota(others, quota, self.metrics)
            shared.learn(fleet)
            self._assemble(rows, others, sender, health, shared)
            began = time.monotonic()
            await self._work(rows, others, shared, ready)
            if self._stop.is_set():
                log.info("stopped")
                return
            self._lost = None
            self._interrupted.clear()
            if time.monotonic() - began < _LASTING_S:  # whatever it is, it may go on
                pause = random.uniform(0.0, min(_LONGEST_PAUSE_S, 0.1 * 2.0 ** min(number, 10)))  # noqa: S311  # jitter
                await self._unless_stopped(asyncio.sleep(pause))

    def _assemble(
        self, rows: Queue, others: Workers, sender: Sender, health: FcmHealth, quota: SharedQuota
    ) -> None:
        if self._settings.doorbell == "sweep":
            self._dispatcher = Dispatcher(
                rows, sender, self._settings, self.metrics, health, quota, on_sweep=self._swept
            )
            return
        most = self._settings.max_in_flight
        watch = PeerWatch(
            rows,
            others,
            self.metrics,
            is_steady=lambda: doorbell.steady,
            on_due=lambda: dispatcher.ring(),
            on_death=lambda: awake.doubt(),
            on_losses=lambda lost: health.expect_losses(lost, most, time.monotonic()),
        )

        def ring() -> None:
            awake.heard()
            dispatcher.ring()
            watch.stir()

        doorbell = Doorbell(
            self._settings.listen_dsn,
            rows.worker_id,
            ring,
            self.metrics,
            heartbeat=self._settings.heartbeat,
            on_doubt=lambda: awake.doubt(),
            on_lost=self._lose,
        )
        awake = BusyPolling(
            others, doorbell, self.metrics, worker_id=rows.worker_id, on_due=lambda: dispatcher.ring()
        )
        dispatcher = Dispatcher(
            rows,
            sender,
            self._settings,
            self.metrics,
            health,
            quota,
            may_claim=lambda: doorbell.connected,
            on_look=watch.stir,
            nap=awake.nap,
            on_sweep=self._swept,
        )
        self._dispatcher, self._doorbell, self._watch, self._awake = dispatcher, doorbell, watch, awake

    def _swept(self, sweep: Sweep) -> None:
        """Acts on what a sweep has found."""
        self._locks.saw(sweep.strangers)
        if sweep.polling_locked and self._awake is not None:
            self._awake.doubt()
        if not sweep.registered:
            self._lose(IdentityLost("its row in push_listener.workers is gone", is_own=False))

    def _lose(self, lost: IdentityLost) -> None:
        """This worker cannot go on under its id: what it holds is settled, then it goes on under another."""
        if self._lost is None:
            self._lost = lost
            self._interrupted.set()

    async def _work(
        self, rows: Queue, others: Workers, quota: SharedQuota, on_ready: Callable[[], None]
    ) -> None:
        dispatcher, doorbell, watch, awake = self._dispatcher, self._doorbell, self._watch, self._awake
        assert dispatcher is not None
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._watch_depth(rows, dispatcher)),
                group.create_task(quota.run()),
            ]
            waking: list[asyncio.Task[None]] = []
            if doorbell is not None and watch is not None and awake is not None:
                waking = [group.create_task(awake.run())]
                background += [group.create_task(part.run()) for part in (doorbell, watch)] + waking
            if self._settings.retention is not None:
                keeping = retention.keep(self._settings.listen_dsn, self._settings.retention, self.metrics)
                background.append(group.create_task(keeping))
            working = group.create_task(dispatcher.run())
            await self._unless_stopped(dispatcher.wait_looked())
            if not self._interrupted.is_set():
                log.info("ready", worker=rows.worker_id, in_flight_at_most=self._settings.max_in_flight)
                on_ready()
            await self._interrupted.wait()
            lost = self._lost
            dispatcher.stop()
            if lost is None:
                log.info("stopping", grace_s=self._settings.shutdown_grace)
            else:
                log.warning("registering anew", worker=rows.worker_id, reason=lost.reason, **lost.facts)
                if lost.is_own:  # at once: its peers would take from it what it is still sending
                    await _sign_off(others)
            if awake is not None:
                awake.stop()
            await self._finish(working, dispatcher)
            if waking:  # peers are told on the connection that is closed next
                await asyncio.wait(waking, timeout=_TELLING_PEERS_S)
            for task in background:
                task.cancel()
        # Otherwise peers, or the next start, take over the rows that are left.
        if lost is None and not working.cancelled() and working.result():
            await _sign_off(others)

    async def _finish(self, working: asyncio.Task[bool], dispatcher: Dispatcher) -> None:
        """Lets sends end by themselves for most of the grace period, then gives them back and settles."""
        grace = self._settings.shutdown_grace
        hurry = asyncio.create_task(self._hurry.wait())
        soft = grace * (1 - _KEPT_FOR_SETTLING)
        await asyncio.wait({working, hurry}, timeout=soft, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if working.done():
            return
        log.warning("giving back what is in flight")
        dispatcher.give_back()
        await asyncio.wait({working}, timeout=grace - soft)
        if not working.done():
            log.error(
                "could not settle everything; another worker takes the rows over, at the latest when their lease ends",
                lease_s=self._settings.lease,
            )
            working.cancel()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, or None when the service is stopped, or loses its id, first."""
        task, interrupt = asyncio.create_task(work), asyncio.create_task(self._interrupted.wait())
        await asyncio.wait({task, interrupt}, return_when=asyncio.FIRST_COMPLETED)
        interrupt.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return None
        return task.result()

    def _not_ready(self) -> list[str]:
        """What keeps this process from its work, in fixed words: anybody may read them."""
        if self._dispatcher is None:
            return ["the database has not been reached yet"]
        faults = []
        if self._stop.is_set():
            faults.append("stopping")
        if not self._dispatcher.database_ok:
            faults.append("the database cannot be reached")
        if self._doorbell is not None and not self._doorbell.connected:
            faults.append("not listening for new rows")
        if self._dispatcher.paused:
            faults.append(f"sending is paused: {self._dispatcher.paused}")
        return faults

    async def _watch_depth(self, rows: Queue, dispatcher: Dispatcher) -> None:
        """Keeps the push_queue_* gauges fresh: often while there is work, should_log while there is none."""
        seen, read_at, busy = -1, 0.0, False
        while True:
            looks, now = dispatcher.looks, time.monotonic()
            if looks != seen or busy or now - read_at >= _IDLE_DEPTH_INTERVAL:
                try:
                    async with asyncio.timeout(STATEMENT_PATIENCE_S):
                        depth = await rows.depth()
                except (psycopg.Error, PoolTimeout, TimeoutError):
                    self.metrics.database_errors.labels("depth").inc()
                else:
                    self.metrics.show_depth(depth.counts, depth.due, depth.oldest_due)
                    seen, read_at = looks, now
                    busy = depth.due > 0 or depth.counts["processing"] > 0
            await asyncio.sleep(self._settings.depth_interval)

    async def _is_pooled(self) -> bool:
        """Whether DATABASE_URL is a pooler in transaction mode. Raises ConfigError if LISTEN would go through one."""
        dsn, listen_dsn = self._settings.database_url.get_secret_value(), self._settings.listen_dsn
        pooled = await _leads_to_pooler(dsn, setting="DATABASE_URL")
        if self._settings.doorbell == "listen" and (
            pooled if listen_dsn == dsn else await _leads_to_pooler(listen_dsn, setting="LISTEN_DATABASE_URL")
        ):
            raise ConfigError([_CANNOT_LISTEN])
        if pooled:
            log.info("DATABASE_URL is a pooler in transaction mode: no prepared statements")
        return pooled

    @_until_reached
    async def _register(self, pool: Pool, *, random_id: bool) -> tuple[Queue, Workers, int, QuotaState]:
        """This worker's queue, the other workers, how many of them have died lately, and what they share."""
        try:
            if await workers.schema_version(pool) < self._schema_version:
                raise NotMigrated
            for finding in await workers.drift(pool):
                log.error(
                    "privileges have changed: run push-listener migrate, which sets them again",
                    finding=finding,
                )
            await self._admit(pool)
            name = self._settings.worker_name or socket.gethostname()
            worker = await workers.register(pool, name, random_id=random_id)
            rows = Queue(pool, worker_id=worker, lease=self._settings.lease)
            others = Workers(pool, worker_id=worker, lease=self._settings.lease)
            return rows, others, await others.lost_lately(), await others.quota_state()
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

    async def _admit(self, pool: Pool) -> None:
        """Makes sure that this is the database that was served before. Raises ConfigError if it is a copy."""
        dsn, installation = self._settings.database_url.get_secret_value(), self._settings.installation
        async with pool.connection() as conn:
            try:
                admission = await served.admit(conn, dsn, installation, self._adoption)
            except served.IsCopy as copy:
                raise ConfigError([str(copy)]) from None
        if self._adoption is not None and (admission.known or admission.first):
            log.warning(
                "--adopt-copy has nothing to do: take it away, or it decides about the next copy unasked",
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


async def _sign_off(others: Workers) -> None:
    try:
        async with asyncio.timeout(2):
            await others.sign_off()
    except (psycopg.Error, PoolTimeout, TimeoutError):
        log.warning("could not sign off")


def _transport(settings: Settings) -> Transport:
    connect_timeout, timeout = settings.connect_timeout, settings.request_timeout
    match settings.transport:
        case "asyncio":
            return AsyncioTransport(connect_timeout=connect_timeout, timeout=timeout)
        case "aiohttp":
            return AiohttpTransport(connect_timeout=connect_timeout, timeout=timeout)
        case "pyreqwest":
            # Only where it is used: it takes 7 MB, and says how memory is to be had.
            from listener.fcm.transports.reqwest import ReqwestTransport

            return ReqwestTransport(connect_timeout=connect_timeout, timeout=timeout)


async def _warm(tokens: AccessTokens) -> None:
    """Fetches the first access token before the first push needs it, and tells early when there is none to be had."""
    try:
        await tokens.get()
    except AuthFault as fault:
        log.error("no access token for FCM", code=fault.code, reason=fault.reason)
