"""The operator's page without a database: sample data, and a server that answers with the real views."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp_sse import sse_response

from listener.metrics.shared import Figures
from listener.operating.acting import NotAllowed
from listener.operating.changing import STATUSES, Action
from listener.operating.filters import Filter
from listener.operating.records import (
    ActionLine,
    Attempt,
    CodeGroup,
    Count,
    Page,
    Preview,
    Progress,
    Pulse,
    PushLine,
    Receipt,
    Revealed,
    Story,
    WorkerLine,
)
from listener.operating.verdict import Verdict
from listener.web.page.access import VISITOR, Visitor
from listener.web.page.app import Context, Snapshot, State
from listener.web.page.headers import CONTENT_SECURITY_POLICY
from listener.web.page.history import Series
from listener.web.page.rendering import Renderer
from listener.web.page.views import render_home, routes

STATIC = Path(__file__).parents[2] / "listener/web/page/static"

ACTOR = Visitor("anna", may_read=True, may_act=True)
READER = Visitor("", may_read=True, may_act=False)
NOBODY = Visitor("", may_read=False, may_act=False)

NASTY = "<img src=x onerror=alert(1)> [red]\x1b[2J\u202egnp"

OK = Verdict("ok", "Sending. The oldest due push has waited 0.2 s.", "")
LATE = Verdict(
    "attention",
    "Sending late: the oldest due push has waited 48 s.",
    "More is due than this fleet sends. Look at the quota used: a second process helps if it is below 90 %.",
)
PAUSED = Verdict(
    "trouble",
    "Nothing is sent since 12:03: FCM refuses our credentials.",
    "Look at the service account in the Google Cloud console: it needs the role Firebase Cloud Messaging API Admin. "
    "The listener tries again by itself, at least every five minutes.",
)
AWAY = Verdict(
    "trouble",
    "The database does not answer, so nothing is sent and nothing is lost.",
    "Pushes wait in their table. The listener connects again by itself.",
)


def push_id(number: int) -> UUID:
    """The id of the sample push of this number."""
    return UUID(bytes=hashlib.sha256(f"push {number}".encode()).digest()[:16], version=4)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=123_000)


_STATUSES = ["sent"] * 5 + ["delivered", "sent", "failed", "sent", "dead"]
_STATUSES += ["sent", "processing", "pending", "expired"]
_CODES = {"failed": "UNAVAILABLE", "dead": "UNREGISTERED", "expired": "EXPIRED"}
_REASONS = {
    "failed": "The service is currently unavailable.",
    "dead": "UNREGISTERED: Requested entity was not found.",
}
_TITLES = [
    "Your order has shipped",
    "Anna sent you a message",
    "Reminder: stand-up in ten minutes",
    "Your verification code",
    None,
    "Payment received: € 24.00",
    "A title that goes on for much longer than a phone would ever show of it, to see where the list breaks it",
    "مرحبا، لديك رسالة جديدة",
    NASTY,
]
_USER = "6f1e0c9a-7a64-4f0e-9d52-0b1d6f6a1c11"
_TARGETS = [
    ("token", "token 3f9a1c2e"),
    ("user", _USER),
    ("token", "token b81d44e0"),
    ("topic", "news-de"),
    ("condition", "'sports' in topics && 'de' in topics"),
    ("user", "0b9ac0de-1111-4a2b-8c3d-5e6f7a8b9c0d"),
]


def line(number: int, at: datetime | None = None, *, status: str | None = None) -> PushLine:
    """A sample push."""
    changed = at or now() - timedelta(seconds=number * 1.7)
    found = status or _STATUSES[number % len(_STATUSES)]
    kind, target = _TARGETS[number % len(_TARGETS)]
    return PushLine(
        id=push_id(number),
        status=found,
        priority="high" if number % 3 else "normal",
        kind=kind,
        target=target,
        title=_TITLES[number % len(_TITLES)],
        error_code=_CODES.get(found),
        last_error=_REASONS.get(found),
        retry_count={"failed": 2, "dead": 5}.get(found, 0),
        created_at=changed - timedelta(seconds=0.3 + number % 4),
        updated_at=changed,
        due_at=changed + timedelta(seconds=37) if found in ("failed", "pending") else None,
    )


def story(number: int = 7, *, status: str = "dead") -> Story:
    """A push to three devices: one has shown it, one gave no clear answer at first, one is gone."""
    shown = replace(line(number, now() - timedelta(minutes=12), status=status), kind="user", target=_USER)
    born = shown.created_at

    def at(seconds: float) -> datetime:
        return born + timedelta(seconds=seconds)

    reset = "The connection was reset after the request went out."
    busy = "The service is currently unavailable."
    gone = "Requested entity was not found."
    return Story(
        line=shown,
        user=UUID(_USER),
        collapse_key="order-4711",
        idempotency_key="order-4711/shipped",
        expires_at=at(86_400),
        sent_at=at(0.31),
        delivered_at=at(2.9),
        last_retry_at=at(64),
        fcm_message_id="projects/demo/messages/0:1764445383123456%31bd1c9631bd1c96",
        claimed_by=None,
        delivery_attempts=3,
        lost_claims=1,
        unwritable=None,
        attempts=[
            Attempt(
                at(0.31), 1, "3f9a1c2e", "android", "sent", None, None, "projects/demo/messages/0:17644453"
            ),
            Attempt(at(0.33), 1, "b81d44e0", "ios", "unknown", "TIMEOUT", reset, None),
            Attempt(at(0.35), 1, "77aa10bc", "web", "failed", "UNAVAILABLE", busy, None),
            Attempt(at(18.2), 2, "b81d44e0", "ios", "sent", None, None, "projects/demo/messages/0:17644471"),
            Attempt(at(64.9), 3, "77aa10bc", "web", "failed", "UNREGISTERED", gone, None),
        ],
        receipts=[Receipt(at(2.9), "3f9a1c2e", "delivered"), Receipt(at(41), "3f9a1c2e", "opened")],
        is_cut=False,
    )


def series(at: float | None = None, *, load: float = 42.0, is_paused: bool = False) -> Series:
    """15 minutes, a point every two seconds, with a gap. Paused: nothing for the last five minutes."""
    end = now().timestamp() if at is None else at
    points = range(450)
    times = [end - 2 * (449 - point) for point in points]
    rates = [load * (1 + 0.35 * math.sin(time / 70) + 0.12 * math.sin(time * 1.7)) for time in times]
    stops = [is_paused and point > 300 for point in points]
    rates = [0.0 if stop else rate for rate, stop in zip(rates, stops, strict=True)]
    return Series(
        at=times,
        accepted=[None if 120 < point < 135 else rate for point, rate in zip(points, rates, strict=True)],
        failed={
            "UNREGISTERED": [rate * 0.011 for rate in rates],
            "UNAVAILABLE": [load * 0.03 if 200 < point < 225 else 0.0 for point in points],
            "INVALID_ARGUMENT": [0.2 if point % 61 == 0 else 0.0 for point in points],
        },
        oldest_due=[(p - 300) * 2.0 if stops[p] else 0.15 + 0.1 * math.sin(p / 9) for p in points],
        p50=[None if stops[p] else 0.041 + 0.006 * math.sin(p / 17) for p in points],
        p99=[None if stops[p] else 0.16 + 0.05 * math.sin(p / 23) for p in points],
    )


def figures() -> Figures:
    """What was read for the metrics."""
    return Figures(
        depth={
            ("pending", "high"): 3,
            ("pending", "normal"): 140,
            ("processing", "high"): 12,
            ("failed", "high"): 27,
        },
        due={"high": 3, "normal": 0},
        oldest_due={"high": 0.2, "normal": 0.0},
        scheduled=164,
        unwritable={},
        workers=2,
        notify_queue=0.0,
        snapshot_age=None,
        clock_offset=0.0,
    )


def snapshot(verdict: Verdict = OK, *, latest: Sequence[PushLine] | None = None, **state: Any) -> Snapshot:
    """The first screen; ``state`` replaces fields of the State."""
    lines = [line(number) for number in range(20)] if latest is None else latest
    pulse = Pulse(now(), sent=120_000, failed={"UNREGISTERED": 31}, oldest_due=0.2, workers=2, latest=lines)
    plain = State(
        obstacles=[],
        pause=None,
        paused_since=None,
        figures=figures(),
        figures_age=1.0,
        in_flight=12,
        quota_used=0.07,
        worker=4,
        instance="web.1",
    )
    return Snapshot(
        pulse=None if verdict == AWAY else pulse,
        state=replace(plain, **state),
        verdict=verdict,
        series=series(is_paused=verdict == PAUSED, load=380 if verdict == LATE else 42),
    )


@dataclass
class FakeReading:
    """Answers with sample data. ``is_away``: as if the database did not answer."""

    is_away: bool = False
    is_empty: bool = False
    run_age: timedelta = timedelta()
    """Since the last batch of the sample run."""
    asked: list[tuple[object, ...]] = field(default_factory=list)
    """What was asked, with the arguments."""

    def _note(self, *what: object) -> None:
        self.asked.append(what)
        if self.is_away:
            raise psycopg.OperationalError("the server closed the connection")

    async def pushes(self, applied: Filter, *, after: str | None = None, limit: int = 50) -> Page:
        self._note("pushes", applied, after)
        if self.is_empty:
            return Page([], None, first="1")
        start = int(after) if after else 0
        lines = [line(number, status=applied.status) for number in range(start, start + limit)]
        return Page(lines, str(start + limit), first="1")

    async def count(self, applied: Filter, most: int = 1000) -> Count:
        self._note("count", applied)
        return Count(0, True) if self.is_empty else Count(most, False)

    async def newer(
        self, applied: Filter, than: str, *, without: Sequence[UUID] = (), most: int = 100
    ) -> Count:
        self._note("newer", applied, than, tuple(without))
        return Count(12, True)

    async def lines(self, ids: Sequence[UUID]) -> list[PushLine]:
        self._note("lines", tuple(ids))
        known = {push_id(number): number for number in range(200)}
        return [line(known[found]) for found in ids if found in known]

    async def story(self, wanted: UUID) -> Story | None:
        self._note("story", wanted)
        return next((story(number) for number in range(200) if push_id(number) == wanted), None)

    async def codes(self) -> list[CodeGroup]:
        self._note("codes")
        if self.is_empty:
            return []
        return [
            CodeGroup("dead", "UNREGISTERED", Count(1000, False), now() - timedelta(seconds=40)),
            CodeGroup("dead", "UNAVAILABLE", Count(214, True), now() - timedelta(minutes=9)),
            CodeGroup("expired", "EXPIRED", Count(31, True), now() - timedelta(hours=30)),
            CodeGroup("dead", "INVALID_ARGUMENT", Count(2, True), now() - timedelta(days=3)),
        ]

    async def workers(self) -> list[WorkerLine]:
        self._note("workers")
        if self.is_empty:
            return []
        start = now() - timedelta(hours=5)
        day = timedelta(days=1)
        none = Count(0, True)
        return [
            WorkerLine(4, "web.1", start, None, True, False, Count(12, True)),
            WorkerLine(3, "web.2", start, None, False, True, Count(3, True)),
            WorkerLine(2, "one-off.9", start - day, None, False, False, none, is_guarded=False),
            WorkerLine(1, "web.1", start - 2 * day, start, False, False, none),
        ]

    async def actions(self, before: int | None = None, limit: int = 50) -> list[ActionLine]:
        self._note("actions", before)
        if self.is_empty or before:
            return []
        some = [push_id(number) for number in range(5)]
        many = [push_id(number) for number in range(500)]
        run = push_id(999)
        applied = {"status": "dead", "code": "UNAVAILABLE", "since": "2026-11-28T00:00:00+00:00"}
        return [
            ActionLine(
                9, now() - timedelta(minutes=2), "anna", "requeue", applied, "FCM is back", 214, some, run
            ),
            ActionLine(
                8, now() - timedelta(minutes=2), "anna", "requeue", applied, "FCM is back", 500, some, run
            ),
            ActionLine(7, now() - timedelta(minutes=31), "anna", "reveal", None, None, 1, some[:1], None),
            ActionLine(6, now() - timedelta(hours=3), "cli:root", "cancel", None, NASTY, 5, some, None),
            ActionLine(5, now() - timedelta(days=3), "jonas", "send", None, None, 1, some[1:2], None),
            ActionLine(4, now() - timedelta(days=4), "jonas", "cancel", {}, "a mistake", 500, many, run),
            ActionLine(3, now() - timedelta(days=4), "cli:root", "cancel", None, None, 500, many, None),
        ]

    async def run_progress(self, run: UUID) -> tuple[int, datetime | None]:
        self._note("run_progress", run)
        return (714, now() - self.run_age) if run == push_id(999) else (0, None)

    async def now(self) -> datetime:
        self._note("now")
        return now()

    async def preview(self, applied: Filter, what: Action, ids: Sequence[UUID] | None = None) -> Preview:
        self._note("preview", applied, what, ids)
        if ids is not None:
            found = [line for line in await self.lines(ids) if line.status in STATUSES[what]]
            return Preview(Count(len(found), True), found[:5], Count(1, True), now())
        if self.is_empty:
            return Preview(Count(0, True), [], Count(0, True), now())
        examples = [line(number, now() - timedelta(minutes=number), status="dead") for number in range(5)]
        return Preview(Count(214, True), examples, Count(9, True), now())

    async def ids(
        self, applied: Filter, what: str, until: datetime | None, after: str | None, limit: int = 500
    ) -> tuple[list[UUID], str | None]:
        self._note("ids", applied, what, until, after)
        return [push_id(0), push_id(1)], None


@dataclass
class FakeActing:
    """Notes what it is told to do. ``is_allowed``: whether the login may act."""

    is_allowed: bool = True
    done: list[tuple[Any, ...]] = field(default_factory=list)

    def _note(self, *what: object) -> None:
        if not self.is_allowed:
            raise NotAllowed
        self.done.append(what)

    async def change(self, what: Action, ids: Sequence[UUID], **more: object) -> list[UUID]:
        self._note(what, list(ids), more)
        return list(ids)

    async def reveal(self, wanted: UUID, *, who: str) -> Revealed | None:
        self._note("reveal", wanted, who)
        data = {"order": "4711", "deep_link": "/orders/4711"}
        return Revealed(None, NASTY, "It arrives on Monday.", data, None, None, ["fake-token-of-a-device"])

    async def send(self, **what: object) -> UUID:
        self._note("send", what)
        return push_id(3)


@dataclass
class FakeRun:
    progress: Progress
    is_aborted: bool = False


@dataclass
class FakeRuns:
    """Keeps the runs, and performs none."""

    known: dict[UUID, FakeRun] = field(default_factory=dict)
    started: list[Any] = field(default_factory=list)

    def start(self, run: object, asked: Hashable) -> UUID:
        self.started.append(run)
        self.known[push_id(999)] = FakeRun(Progress(0, 0, False))
        return push_id(999)

    def get(self, run: UUID) -> FakeRun | None:
        return self.known.get(run)

    def fault(self, run: UUID) -> str | None:
        return None

    def abort(self, run: UUID) -> bool:
        if run in self.known:
            self.known[run].is_aborted = True
        return run in self.known


@dataclass
class FakeStreams:
    """Sends what ``sample`` returns to each watcher, at once and then every ``interval`` seconds."""

    sample: Callable[[], Snapshot]
    prefix: str
    interval: float = 1.0

    async def watch(self, request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as stream:
            while stream.is_connected():
                for event, data in render_home(self.sample(), self.prefix).items():
                    with suppress(ConnectionResetError):
                        await stream.send(data, event=event or None)
                await asyncio.sleep(self.interval)
        return stream


@dataclass
class FakePage:
    """The page, with everything behind it replaced."""

    verdict: Verdict = OK
    visitor: Visitor = ACTOR
    prefix: str = ""
    reading: FakeReading = field(default_factory=FakeReading)
    acting: FakeActing = field(default_factory=FakeActing)
    runs: FakeRuns = field(default_factory=FakeRuns)
    latest: list[PushLine] | None = None
    state: dict[str, object] = field(default_factory=dict)
    """Replaces fields of the State."""

    def sample(self) -> Snapshot:
        """The first screen now."""
        return snapshot(self.verdict, latest=[] if self.reading.is_empty else self.latest, **self.state)

    @property
    def history(self) -> FakePage:
        return self

    def series(self) -> Series:
        return series()

    def asset(self, name: str) -> str:
        if not (STATIC / name).is_file():
            raise KeyError(name)
        return f"{self.prefix}/static/{name}"

    def context(self) -> Context:
        """What the views are handed."""

        async def sampled() -> Snapshot:
            return self.sample()

        return Context(
            reading=cast(Any, self.reading),
            acting=cast(Any, self.acting),
            runs=cast(Any, self.runs),
            history=cast(Any, self),
            state=lambda: self.sample().state,
            snapshot=sampled,
            streams=cast(Any, FakeStreams(self.sample, self.prefix)),
            prefix=self.prefix,
            asset=self.asset,
            renderer=Renderer(self.prefix, self.asset),
        )

    def app(self) -> web.Application:
        """An application with the views; the visitor is always ``visitor``."""

        @web.middleware
        async def visiting(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            request[VISITOR] = self.visitor
            return await handler(request)

        async def headers(request: web.Request, response: web.StreamResponse) -> None:
            response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY

        app = web.Application(middlewares=[visiting])
        app.on_response_prepare.append(headers)
        for route in routes(self.context()):
            app.router.add_route(route.method, self.prefix + route.path, route.handler)
        app.router.add_static(f"{self.prefix}/static", STATIC)
        return app

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serves while the block runs; yields the URL of the page, without a slash at the end."""
        server = TestServer(self.app())
        await server.start_server(shutdown_timeout=0.1)
        try:
            yield f"http://127.0.0.1:{server.port}{self.prefix}"
        finally:
            await server.close()


PAGES: Mapping[str, str] = {
    "home": "/",
    "pushes": "/pushes",
    "filtered": "/pushes?status=dead&code=UNREGISTERED",
    "story": f"/pushes/{push_id(7)}",
    "preview": "/preview?what=requeue&status=dead&code=UNAVAILABLE",
    "preview-ids": f"/preview?what=requeue&id={push_id(9)}&id={push_id(7)}&id={push_id(0)}",
    "workers": "/workers",
    "actions": "/actions",
    "send": "/send",
    "run": f"/runs/{push_id(999)}",
    "login": "/login?next=/&wrong=1",
    "missing": f"/pushes/{push_id(777)}",
}
"""A path of each page, by name."""
