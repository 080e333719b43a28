"""One process of push-listener: everything that its workers share."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from google.auth.credentials import Credentials

from listener.config import ConfigError, Settings
from listener.fcm.auth import AccessTokens
from listener.fcm.credentials import KeyFile, load_credentials
from listener.fcm.fault import AuthFault
from listener.fcm.sender import Sender, messages_url
from listener.fcm.transports.choose import make_transport
from listener.limits.health import FcmHealth, Pause
from listener.limits.quota import Quota
from listener.limits.retry_policy import RetryPolicy
from listener.limits.slow_start import after_losses
from listener.metrics.labels import platform_of
from listener.metrics.own import Metrics
from listener.operating.acting import Acting
from listener.operating.reading import Reading
from listener.postgres.connect import STATEMENT_PATIENCE_S, Address, ServicePool
from listener.postgres.locks import LockWatch
from listener.postgres.on_demand import OnDemand
from listener.registration import Registered, Registration
from listener.schema import served
from listener.tracing import Tracing
from listener.watchdog import Watchdog
from listener.web.page import views
from listener.web.page.access import Access
from listener.web.page.app import Page, State
from listener.web.page.history import History
from listener.web.server import Web
from listener.worker import Worker

log = structlog.get_logger(__name__)

T = TypeVar("T")

# After the grace period the worker may sign off for one second, and the pool may close for another.
_OVERDUE_AFTER_S = 3.0

# A worker that has to register again and again waits in between.
_LASTING_S = 10.0
_LONGEST_PAUSE_S = 30.0


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
    """Runs one worker at a time, and serves its metrics.

    Args:
        settings: checked already.
        credentials: for FCM.
        project_id: the Firebase project to send for.
        on_overdue: called if the run has not ended some seconds after the grace period: a database that does not answer
            can delay the closing of a connection.
        adoption: what becomes of waiting pushes, if the database is a copy of one that was served before.
        tracing: gets the spans of each push; the service closes it.
        on_stuck: called in a thread when the event loop or the worker has made no progress for WATCHDOG_TIMEOUT.
        token_check: seconds between two checks whether there is an access token. AccessTokens decides when to ask for
            one.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        project_id: str,
        on_overdue: Callable[[], None] = lambda: None,
        adoption: served.Adoption | None = None,
        tracing: Tracing | None = None,
        on_stuck: Callable[[str], None] = lambda what: None,
        token_check: float = 5.0,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._key_file = KeyFile.of_environment() if settings.fcm_service_account_json is None else None
        self._tokens: AccessTokens | None = None
        self._project_id = project_id
        self._on_overdue = on_overdue
        self._on_stuck = on_stuck
        self._token_check = token_check
        self._registration = Registration(settings, adoption)
        self.metrics = Metrics(listens=settings.wakeup == "listen")
        self.metrics.quota.set(settings.fcm_quota / 60.0)
        self._lock_watch = LockWatch(self.metrics)
        self._tracing = tracing or Tracing()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._health: FcmHealth | None = None
        self._quota = Quota(settings.fcm_quota, settings.fcm_ramp, time.monotonic())
        self._watched = asyncio.Event()
        self._reading = OnDemand(Address(settings.database_url.get_secret_value()), "push-listener page")
        self._pulse = OnDemand(Address(settings.database_url.get_secret_value()), "push-listener pulse")
        self._acting = OnDemand(
            Address((settings.operator_database_url or settings.database_url).get_secret_value()),
            "push-listener operator",
            patience=STATEMENT_PATIENCE_S,
        )
        self._page = self._make_page()
        self._on_ready: Callable[[], None] | None = None
        self.worker: Worker | None = None
        """The worker that runs now, or ran last."""
        self.port: int | None = None
        """The port of the web server; None until it listens."""
        self.metrics_port: int | None = None
        """The port that serves only the metrics; None until it is open."""

    @property
    def pause(self) -> Pause | None:
        """The kind of pause that sending is in, or None."""
        return None if self._health is None else self._health.pause_kind

    def stop(self) -> None:
        """Ends the run within the grace period. A second call ends it at once and gives back what is in flight."""
        self._page.leave()
        if self._stop.is_set():
            self._hurry.set()
        else:
            patience = self._settings.shutdown_grace + _OVERDUE_AFTER_S
            asyncio.get_running_loop().call_later(patience, self._on_overdue)
        self._stop.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Runs until SIGTERM or SIGINT, or until ``stop``. ``on_ready`` is called after the first answer to a claim.

        Raises NotMigrated, PortTaken when a port cannot be had, or ConfigError when LISTEN cannot work through
        the address, or when pushes wait in a database that is a copy.
        """
        self._on_ready = on_ready
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with AsyncExitStack() as stack:
            watchdog = Watchdog(self.metrics, timeout=self._settings.stuck_after, on_stuck=self._on_stuck)
            watching = asyncio.create_task(watchdog.run())
            stack.callback(watching.cancel)
            for close in (self._reading.close, self._pulse.close, self._acting.close, self._page.close):
                stack.push_async_callback(close)
            web = Web(self._settings, self.metrics.registry, self.obstacles, self._page)
            self.port = await stack.enter_async_context(web.serve())
            stack.push_async_callback(self._tracing.close)
            self.metrics_port = web.metrics_port
            pooled = await self._unless_stopped(self._registration.is_pooled())
            if pooled is None:
                return
            pool = ServicePool(self._registration.address, prepares=not pooled)
            await pool.open()
            # A database that does not answer must not use up the rest of the grace period.
            stack.push_async_callback(pool.close, timeout=1.0)
            transport = make_transport(
                self._settings.transport,
                messages_url(str(self._settings.fcm_endpoint), self._project_id),
                connect_timeout=self._settings.fcm_connect_timeout,
                timeout=self._settings.fcm_request_timeout,
            )
            stack.push_async_callback(transport.close)
            tokens = self._tokens = AccessTokens(self._credentials, self._key_file, metrics=self.metrics)
            stack.push_async_callback(tokens.close)
            sender = Sender(transport, tokens, self.metrics.exchange.observe)
            warming = asyncio.create_task(self._keep_warm(tokens))
            try:
                await self._run_workers(pool, sender)
            finally:
                warming.cancel()

    async def _run_workers(self, pool: ServicePool, sender: Sender) -> None:
        """Runs a worker until the service is stopped. When a worker cannot go on under its id, the next one follows."""
        for number in itertools.count():
            registered = await self._unless_stopped(self._registration.register(pool, again=number > 0))
            if registered is None:
                return
            if self._health is None:
                self._health = _health(self._settings, registered)
            self.worker = Worker(
                self._settings,
                registered,
                sender,
                self._health,
                self._quota,
                self._lock_watch,
                self.metrics,
                self._tracing,
                self._watched,
            )
            began = time.monotonic()
            ended = await self.worker.run(self._stop, self._hurry, self._announce)
            self.metrics.forget_worker()
            if ended:
                log.info("stopped")
                return
            if time.monotonic() - began < _LASTING_S:  # the cause may last
                pause = random.uniform(0.0, min(_LONGEST_PAUSE_S, 0.1 * 2.0 ** min(number, 10)))  # noqa: S311  # jitter
                await self._unless_stopped(asyncio.sleep(pause))

    async def _keep_warm(self, tokens: AccessTokens) -> None:
        """Fetches the first access token before the first push needs it, and goes on trying while there is none.

        So, although nothing is sent, /readyz is right, a replaced key file is noticed, and a pause for want of a token
        ends soon.
        """
        told = False
        while True:
            try:
                await tokens.get()
            except AuthFault as fault:
                if not told:
                    log.error("no access token for FCM", code=fault.code, reason=fault.reason)
                told = True
            else:
                told = False
                if (
                    self._health is not None
                    and self._health.note_token(time.monotonic())
                    and self.worker is not None
                ):
                    self.worker.waker.look.note_capacity()
            await asyncio.sleep(self._token_check)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, or None if the service is stopped first."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return None
        return task.result()

    def _announce(self) -> None:
        """Calls ``on_ready``, for the first worker only."""
        if self._on_ready is not None:
            self._on_ready()
            self._on_ready = None

    def _make_page(self) -> Page:
        latency = self.metrics.insert_to_send
        history = History(latency.bounds, latency.counts, time.time)
        self.metrics.shared.subscribe(history.note_figures)
        return Page(
            Access.of(self._settings),
            Reading(self._reading.connection, connect_pulse=self._pulse.connection),
            Acting(self._acting.connection),
            history,
            self.state,
            views.routes,
            partial(views.render_home, prefix=self._settings.path_prefix),
            watched=self._watched,
            prefix=self._settings.path_prefix,
            sees_workers=self._settings.wakeup == "listen",
        )

    def state(self) -> State:
        """What this process knows of itself, for the page."""
        health, shared, worker = self._health, self.metrics.shared, self.worker
        now = time.monotonic()
        paused_at = None if health is None else health.paused_at
        pause = self.pause
        return State(
            obstacles=self.obstacles(),
            pause=None if pause is None else pause.name.lower(),
            paused_since=None
            if paused_at is None
            else datetime.now(UTC) - timedelta(seconds=now - paused_at),
            figures=shared.figures,
            figures_age=shared.age,
            in_flight=0 if worker is None else worker.in_flight,
            quota_used=self._quota.used(now),
            worker=None if worker is None else worker.id,
            instance=self._settings.worker_name or socket.gethostname(),
            platforms=[] if health is None else sorted(map(platform_of, health.held_platforms)),
        )

    def obstacles(self) -> list[str]:
        """What keeps this process from its work, in fixed words: anybody may read them."""
        if self.worker is None:
            found = ["the database has not been reached yet", *self._registration.conditions]
        else:
            found = self.worker.obstacles
        if self._stop.is_set():
            found.insert(0, "stopping")
        if self.pause is not None:
            found.append(f"sending is paused: {self.pause}")
        elif self._tokens is not None and self._tokens.fault is not None:
            # Nothing has been sent that would have caused a pause.
            found.append(f"no access token for FCM: {_kind_of(self._tokens.fault)}; the log says more")
        return found


def _kind_of(fault: AuthFault) -> str:
    """In fixed words: /readyz shows them to anybody."""
    match fault.code:
        case "OAUTH_CONNECT" | "OAUTH_TIMEOUT":
            return "the token endpoint cannot be reached"
        case "OAUTH_UNAVAILABLE" | "OAUTH_PROTOCOL":
            return "the token endpoint does not work"
        case "OAUTH_CREDENTIALS":
            return "the credentials cannot be used"
        case _:
            return "the credentials are refused"


def _health(settings: Settings, registered: Registered) -> FcmHealth:
    if registered.lost_lately > 1:
        log.warning("workers have died lately: starting slowly", workers=registered.lost_lately)
    return FcmHealth(
        after_losses(registered.lost_lately, settings.max_in_flight, time.monotonic()),
        policy=RetryPolicy.of(settings),
        token_loss_guard=settings.token_loss_breaker,
    )
