"""What the page consists of, and what its views are handed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from listener.metrics.shared import Figures
from listener.operating.records import Pulse
from listener.operating.verdict import Verdict
from listener.web.page.history import History, Series
from listener.web.page.live import Streams
from listener.web.page.runs import Runs

if TYPE_CHECKING:
    from listener.operating.acting import Acting
    from listener.operating.reading import Reading


@dataclass(frozen=True, slots=True)
class State:
    """What this process knows without asking the database."""

    obstacles: list[str]
    """As /readyz tells them; empty: it can work."""
    pause: str | None
    """The kind of pause that sending is in, in the words of push_paused: refused, away, token_loss, no_access_token."""
    paused_since: datetime | None
    figures: Figures | None
    """What was last read for the metrics; None: nothing, or nothing that is still true."""
    figures_age: float | None
    """Seconds since then."""
    in_flight: int
    """Pushes that this process has claimed and not settled."""
    quota_used: float
    """The part of this process's share of FCM_QUOTA that it uses, from 0 to 1."""
    worker: int | None
    """Its id in push_listener.workers; None: it is not registered."""
    instance: str
    """The name of this process."""


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
    """What the views work with. ``request["visitor"]`` is the Visitor (access.py), on every route.

    Paths in the views are without the prefix: ``routes(context)`` says web.get("/pushes", ...), and Page puts the
    prefix before it. Links in the HTML begin with ``prefix``. Page itself answers POST /login (fields token, next),
    POST /logout and GET /static/.... The views answer GET /login?next=PATH&wrong=1 (wrong=1: the token was wrong;
    wrong=wait: too many wrong ones, wait a second), with a form that posts both fields to /login. Nobody without the
    right to act reaches a view by POST, and nobody without the right to read any view but /login.
    """

    reading: Reading
    acting: Acting
    runs: Runs
    history: History
    state: Callable[[], State]
    snapshot: Callable[[], Awaitable[Snapshot]]
    """What the first screen shows now; never fails for the database."""
    streams: Streams
    prefix: str
    """'' or such as /push."""
    asset: Callable[[str], str]
    """The URL of a file in static/, such as app.css or vendor/htmx.min.js. Raises KeyError if there is none."""
