"""The parts of the page, and the context that its views get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn

import psycopg
from aiohttp import web
from aiohttp.typedefs import Handler

from listener.metrics.shared import Figures
from listener.operating.acting import Acting
from listener.operating.reading import Reading
from listener.operating.records import Pulse
from listener.operating.verdict import (
    ACCEPTED_WITHIN_S,
    DEAD_WITHIN_S,
    FAILED_WITHIN_S,
    USUAL_CODES,
    Facts,
    Verdict,
    verdict,
)
from listener.postgres.errors import explain
from listener.web.page.access import Access
from listener.web.page.assets import Assets
from listener.web.page.headers import with_errors
from listener.web.page.history import History, Series, Sums
from listener.web.page.live import Streams
from listener.web.page.rendering import Renderer
from listener.web.page.runs import Runs

# For this long after a pause has begun, FCM may still accept pushes that were under way.
_ECHO_S = 30.0


@dataclass(frozen=True, slots=True)
class State:
    """What this process knows without asking the database."""

    obstacles: list[str]
    """The obstacles in the answer of /readyz; empty: this process can work."""
    pause: str | None
    """The kind of pause, as in the metric push_paused: refused, away, token_loss, no_access_token; None: no pause."""
    paused_since: datetime | None
    figures: Figures | None
    """The last reading for the metrics; None: there is none, or it is too old."""
    figures_age: float | None
    """Seconds since that reading."""
    in_flight: int
    """How many pushes this process has claimed and not settled."""
    quota_used: float
    """The fraction of this process's share of FCM_QUOTA that it uses, from 0 to 1."""
    worker: int | None
    """The id of this process in push_listener.workers; None: it is not registered."""
    instance: str
    """The name of this process."""
    platforms: Sequence[str] = ()
    """Platforms to which this process sends nothing but probes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the first screen shows at one moment."""

    pulse: Pulse | None
    """None: the database could not be read."""
    state: State
    verdict: Verdict
    series: Series


@dataclass(frozen=True, slots=True)
class Context:
    """What the views work with. On every route, ``request[VISITOR]`` is the Visitor (access.py).

    Paths in the views are without the prefix: ``routes(context)`` contains web.get("/pushes", ...), and Page adds the
    prefix. Links in the HTML begin with ``prefix``. Page itself answers POST /login (fields token, next), POST /logout
    and GET /static/.... The views answer GET /login?next=PATH&wrong=1 (wrong=1: the token was wrong; wrong=wait: there
    were too many wrong tokens, wait a second), with a form that posts both fields to /login. A POST reaches a view only
    if the visitor may act. Any other request, except for /login, reaches a view only if the visitor may read.
    """

    reading: Reading
    acting: Acting
    runs: Runs
    history: History
    state: Callable[[], State]
    snapshot: Callable[[], Awaitable[Snapshot]]
    """Returns what the first screen shows now. It does not fail if the database cannot be read."""
    streams: Streams
    prefix: str
    """'', or a path such as /push."""
    asset: Callable[[str], str]
    """The URL of a file in static/, such as app.css or vendor/htmx.min.js. Raises KeyError if there is none."""
    renderer: Renderer


class Page:
    """The page: its parts, and its routes, with access checks and error pages around the views.

    Args:
        routes: makes the routes of the views. It is an argument, because the module of the views imports this one.
        render: returns the HTML of a snapshot, by the name of the event that carries it to the browsers.
        watched: an event that is set while somebody watches the page.
        sees_workers: whether Postgres sees workers, as it does unless WAKEUP is sweep.
    """

    def __init__(
        self,
        access: Access,
        reading: Reading,
        acting: Acting,
        history: History,
        state: Callable[[], State],
        routes: Callable[[Context], Sequence[web.RouteDef]],
        render: Callable[[Snapshot], Mapping[str, str]],
        *,
        watched: asyncio.Event,
        prefix: str,
        sees_workers: bool,
    ) -> None:
        self._access = access
        self._reading = reading
        self._history = history
        self._state = state
        self._render = render
        self._prefix = prefix
        self._sees_workers = sees_workers
        self._assets = Assets(prefix)
        self._renderer = Renderer(prefix, self._assets.url)
        self._runs = Runs()
        self._streams = Streams(self._sample, watched)
        context = Context(
            reading,
            acting,
            self._runs,
            history,
            state,
            self.snapshot,
            self._streams,
            prefix,
            self._assets.url,
            self._renderer,
        )
        self.routes = [*self._own_routes(), *map(self._guarded, routes(context))]
        """The routes for the web server."""

    @property
    def access(self) -> str:
        """Who may see the page: everybody on this machine (open), visitors with a token, or nobody (closed)."""
        return self._access.kind

    def leave(self) -> None:
        """Ends the streams, which would keep the web server open, and ends each bulk action after its current batch."""
        self._streams.close()
        self._runs.abort_all()

    async def close(self) -> None:
        """Ends all work in the background."""
        self.leave()
        await self._runs.close()

    async def snapshot(self) -> Snapshot:
        """What the first screen shows now. If the database cannot be read, the snapshot says so."""
        pulse, fault = None, None
        try:
            pulse = await self._reading.pulse()
        except psycopg.Error as error:
            fault = explain(error)
        state = self._state()
        if pulse is not None:
            pulse = completed(pulse, state.figures, sees_workers=self._sees_workers)
        self._history.note(None if pulse is None else Sums.of_pulse(pulse))
        now = datetime.now(UTC)
        return Snapshot(pulse, state, verdict(self._facts(pulse, fault, state, now)), self._history.series())

    def _facts(self, pulse: Pulse | None, fault: str | None, state: State, now: datetime) -> Facts:
        within = ACCEPTED_WITHIN_S
        if state.paused_since is not None:
            within = min(within, (now - state.paused_since).total_seconds() - _ECHO_S)
        _, dead = self._history.ended_within(DEAD_WITHIN_S)
        accepted, failed = self._history.ended_within(FAILED_WITHIN_S)
        return Facts(
            obstacles=state.obstacles,
            pause=state.pause,
            paused_since=state.paused_since,
            database=fault,
            oldest_due=None if pulse is None else pulse.oldest_due,
            is_due=pulse is None or pulse.is_due,
            retrying=0 if pulse is None else pulse.retrying,
            accepted=self._history.accepted_within(within) if within > 0.0 else None,
            workers=None if pulse is None else pulse.workers,
            platforms=state.platforms,
            unwritable=0 if state.figures is None else sum(state.figures.unwritable.values()),
            dead=dead,
            ended=(accepted, sum(number for code, number in failed.items() if code not in USUAL_CODES)),
        )

    async def _sample(self) -> Mapping[str, str]:
        return self._render(await self.snapshot())

    def _own_routes(self) -> list[web.RouteDef]:
        routes = [
            web.post(f"{self._prefix}/login", self._public(self._access.login)),
            web.post(f"{self._prefix}/logout", self._public(self._access.logout)),
            web.get(
                f"{self._prefix}/static/{{hash}}/{{name:.+}}",
                self._access.guarded(self._assets.serve, is_public=True),
            ),
        ]
        if self._prefix:
            routes.append(web.get(self._prefix, self._to_front))
        return routes

    def _guarded(self, route: web.RouteDef) -> web.RouteDef:
        """A route of the views with the prefix, for visitors who may use it."""
        if route.path == "/login":
            handler = self._public(self._access.shown_once(route.handler))
        else:
            handler = self._answered(self._access.guarded(route.handler))
        return web.RouteDef(route.method, f"{self._prefix}{route.path}", handler, route.kwargs)

    def _public(self, handler: Handler) -> Handler:
        return self._answered(self._access.guarded(handler, is_public=True))

    def _answered(self, handler: Handler) -> Handler:
        return with_errors(handler, self._renderer)

    async def _to_front(self, request: web.Request) -> NoReturn:
        raise web.HTTPPermanentRedirect(request.rel_url.with_path(f"{self._prefix}/", keep_query=True))


def completed(pulse: Pulse, figures: Figures | None, *, sees_workers: bool) -> Pulse:
    """The pulse, completed with facts that it cannot read itself.

    The pulse looks at a bounded number of waiting pushes. If more pushes wait, the last reading for the metrics, which
    looks at all of them, may know a push that has waited longer. The pulse knows pushes that have become due since.
    """
    if not pulse.is_whole and figures is not None:
        oldest = max(figures.oldest_due.values(), default=0.0)
        retrying = sum(pushes for (status, _), pushes in figures.depth.items() if status == "failed")
        pulse = replace(
            pulse, oldest_due=max(pulse.oldest_due, oldest), retrying=max(pulse.retrying, retrying)
        )
    return pulse if sees_workers else replace(pulse, workers=None)
