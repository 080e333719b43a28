"""The views of the page. Each view reads records, and a template shows them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from aiohttp import web

from listener.operating import filters
from listener.operating.acting import NotAllowed, Run
from listener.operating.changing import ACTIONS, STATUSES, WHY_NOT, Action, may_change
from listener.operating.filters import Filter, FilterFault
from listener.operating.meanings import MEANINGS, Meaning, meaning_of
from listener.operating.order import WAITING
from listener.operating.records import CodeGroup, Count, Page, Preview, Revealed
from listener.web.page import shapes
from listener.web.page.access import VISITOR
from listener.web.page.forms import read_form
from listener.web.page.rendering import TEMPLATES

if TYPE_CHECKING:
    from listener.web.page.app import Context, Snapshot

_DONE: Mapping[str, str] = {"requeue": "requeued", "cancel": "cancelled"}
_PAGE = 50
_NEWER_MOST = 100
_SILENCE = timedelta(minutes=1)
"""A batch takes only seconds. If a run of another process records no batch for this long, it has ended or stopped."""
_POLL_S, _POLL_ELSEWHERE_S = 1, 5
"""Seconds after which the browser asks again for the progress of a run: of this process, and of another one."""
_TAIL = 12
"""The number of newest points of the charts in one event: those that were added since the last event, and a reserve."""
_FIELDS = ("status", "user", "code", "since", "until", "kind")
_CHOICES: Mapping[str, Any] = {
    "codes": sorted(MEANINGS),
    "statuses": filters.STATUSES,
    "kinds": filters.KINDS,
}
_DELETED = "Finished pushes are deleted when they are older than RETENTION."
_UUID = "[0-9a-fA-F-]{36}"
_PART_OF_UUID = re.compile("\u2026[0-9a-fA-F-]+|[0-9a-fA-F]{8}|(?=.*-)[0-9a-fA-F-]{2,35}")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def render_home(snapshot: Snapshot, prefix: str = "") -> dict[str, str]:
    """One sample of the first screen: the data of each server-sent event, by the name of the event.

    The event without a name is HTML with the parts to replace. "series" is JSON with the newest points of the charts.
    "beat" is different in every sample.
    """
    parts = TEMPLATES.get_template("_live.html").render(
        snapshot=snapshot, figures=shapes.figures(snapshot), prefix=prefix
    )
    # An event that has not changed is not sent again. "beat" always changes, which shows that the listener lives.
    return {
        "": parts,
        "beat": f"{time.time():.0f}",
        "series": json.dumps(shapes.chart_data(snapshot.series, _TAIL), separators=(",", ":")),
    }


def routes(context: Context) -> list[web.RouteDef]:
    """All routes except static files, POST /login and POST /logout. Paths are without the prefix."""
    views = _Views(context)
    push = f"/pushes/{{id:{_UUID}}}"
    run = f"/runs/{{id:{_UUID}}}"
    return [
        web.get("/", views.home),
        web.get("/events", context.streams.watch),
        web.get("/series", views.series),
        web.get("/needs", views.needs),
        web.get("/find", views.find),
        web.get("/pushes", views.pushes),
        web.get("/pushes/newer", views.newer),
        web.get(push, views.story),
        web.get(f"{push}/now", views.story_now),
        web.post(f"{push}/reveal", views.reveal),
        web.get("/preview", views.preview),
        web.post("/act", views.act),
        web.get(run, views.run),
        web.get(f"{run}/progress", views.run_progress),
        web.post(f"{run}/abort", views.abort),
        web.get("/workers", views.workers),
        web.get("/workers/table", views.workers_table),
        web.get("/actions", views.actions),
        web.get("/send", views.send_form),
        web.post("/send", views.send),
        web.get("/login", views.login),
    ]


def _if_allowed(view: Callable[[_Views, web.Request], Awaitable[web.StreamResponse]]):  # type: ignore[no-untyped-def]
    """Wraps a view: it answers with a page that says so if the login of the database may not act."""

    @wraps(view)
    async def answer(self: _Views, request: web.Request) -> web.StreamResponse:
        try:
            return await view(self, request)
        except NotAllowed as error:
            return self._fault(request, 403, "The database does not allow it", str(error))

    return answer


class _Views:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._reading = context.reading
        self._address = partial(shapes.address, context.prefix)
        self._page = context.renderer.page
        self._fault = context.renderer.fault

    # --- the first screen -------------------------------------------------------------------------------------------

    async def home(self, request: web.Request) -> web.StreamResponse:
        snapshot = await self._context.snapshot()
        return self._page(
            request,
            "home.html",
            here="/",
            snapshot=snapshot,
            figures=shapes.figures(snapshot),
            series=shapes.chart_data(snapshot.series),
            minutes=shapes.minutes(snapshot.series),
            needs=await self._needs() if snapshot.pulse else None,
        )

    async def series(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(shapes.chart_data(self._context.history.series()))

    async def needs(self, request: web.Request) -> web.StreamResponse:
        return self._page(request, "_needs.html", needs=await self._needs())

    async def _needs(self) -> list[tuple[CodeGroup, Meaning, str | None]] | None:
        """The groups of failed pushes, each with its meaning and the address of its list, if a filter can select it."""
        try:
            groups = await self._reading.codes()
        except psycopg.Error:
            return None
        prefix = self._context.prefix
        return [(group, meaning_of(group.code), shapes.group_address(prefix, group)) for group in groups]

    # --- the list ---------------------------------------------------------------------------------------------------

    async def pushes(self, request: web.Request) -> web.StreamResponse:
        given = {name: text for name in _FIELDS if (text := request.query.get(name, "").strip())}
        try:
            applied = Filter.parse(given)
        except FilterFault as fault:
            return self._page(
                request,
                "pushes.html",
                status=400,
                here="/pushes",
                values=given,
                since=given.get("since", ""),
                until=given.get("until", ""),
                faults=fault.faults,
                chips=[],
                meaning=None,
                poll=None,
                **_CHOICES,
            )
        after = request.query.get("after") or None
        page = await self._reading.pushes(applied, after=after, limit=_PAGE)
        values = applied.as_values()
        return self._page(
            request,
            "pushes.html",
            here="/pushes",
            values=values,
            since=shapes.for_input(applied.since),
            until=shapes.for_input(applied.until),
            faults=[],
            chips=shapes.chips(self._context.prefix, applied),
            meaning=meaning_of(applied.code) if applied.code else None,
            poll=self._poll(values, page, after),
            page=page,
            after=after,
            count=await self._count(applied),
            order=shapes.order(applied),
            changes=_changes(applied.status) if request[VISITOR].may_act else [],
            **_CHOICES,
        )

    def _poll(self, values: Mapping[str, str], page: Page, after: str | None) -> str:
        """The address at which the browser asks what has changed since this page of the list was loaded."""
        than = None if after else page.first
        ids = ",".join(str(line.id) for line in page.lines)
        return self._address("/pushes/newer", values, than=than, ids=ids)

    async def _count(self, applied: Filter) -> Count | None:
        """How many pushes match; None: counting took too long. The list is shown in either case."""
        try:
            return await self._reading.count(applied)
        except psycopg.errors.QueryCanceled:
            return None

    async def newer(self, request: web.Request) -> web.StreamResponse:
        """What has changed since the list was loaded. No row moves; only cells change."""
        applied = Filter.parse(request.query)
        ids = _uuids(request.query.get("ids", "").split(","), _PAGE)
        newer = Count(0, True)
        if than := request.query.get("than"):  # only the first page of a list has it
            newer = await self._reading.newer(applied, than, without=ids, most=_NEWER_MOST)
        return self._page(
            request,
            "_newer.html",
            newer=newer,
            href=self._address("/pushes", applied.as_values()),
            lines=await self._reading.lines(ids) if ids else [],
        )

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Redirects to the push, the user or the error code that a person has pasted."""
        sought = request.query.get("q", "").strip()
        if ids := _uuids([sought], 1):
            if await self._reading.lines(ids):
                raise web.HTTPSeeOther(self._address(f"/pushes/{ids[0]}"))
            if (await self._reading.count(Filter(user=ids[0]), most=1)).number:
                raise web.HTTPSeeOther(self._address("/pushes", user=str(ids[0])))
            return self._fault(request, 404, "No push and no user has this id", _DELETED)
        code = sought.upper()
        if code not in MEANINGS and _PART_OF_UUID.fullmatch(sought):
            return self._fault(
                request,
                400,
                "That is a part of an id",
                "Only a whole id can be found, such as 6f1e0c9a-7a64-4f0e-9d52-0b1d6f6a1c11. "
                "The page of a push shows it, and so do the log and the table.",
            )
        try:
            values = Filter.parse({"code": code}).as_values()
        except FilterFault:
            text = "Write the id of a push, the id of a user, or an error code such as UNREGISTERED."
            return self._fault(request, 400, "That is neither an id nor an error code", text)
        raise web.HTTPSeeOther(self._address("/pushes", values))

    # --- one push ---------------------------------------------------------------------------------------------------

    async def story(self, request: web.Request) -> web.StreamResponse:
        return await self._story(request, "story.html", None)

    async def story_now(self, request: web.Request) -> web.StreamResponse:
        """The parts of a story that may have changed, for an open page. The page keeps its payload as it is."""
        return await self._story(request, "_story_now.html", None)

    async def _story(
        self, request: web.Request, template: str, revealed: Revealed | None
    ) -> web.StreamResponse:
        story = await self._reading.story(_id(request))
        if story is None:
            return self._gone(request)
        line, now = story.line, datetime.now(UTC)
        return self._page(
            request,
            template,
            here="/pushes",
            story=story,
            waits=line.status in WAITING,
            moments=shapes.moments(story),
            ending=shapes.ending(story, now),
            copies=shapes.copies(story),
            due=shapes.waits_until(line),
            meaning=meaning_of(line.error_code) if line.error_code else None,
            changes=[what for what in ACTIONS if may_change(what, line.status, story.expires_at, now)],
            revealed=revealed and shapes.payload(revealed),
        )

    @_if_allowed
    async def reveal(self, request: web.Request) -> web.StreamResponse:
        revealed = await self._context.acting.reveal(_id(request), who=request[VISITOR].name)
        if revealed is None:
            return self._gone(request)
        if "HX-Request" in request.headers:
            return self._page(request, "_payload.html", revealed=shapes.payload(revealed))
        return await self._story(request, "story.html", revealed)

    def _gone(self, request: web.Request) -> web.StreamResponse:
        return self._fault(request, 404, "There is no such push", _DELETED)

    # --- actions ----------------------------------------------------------------------------------------------------

    async def preview(self, request: web.Request) -> web.StreamResponse:
        what = _what(request.query.get("what", ""))
        asked = request.query.getall("id", [])
        return await (self._preview_ids(request, what, asked) if asked else self._preview_all(request, what))

    async def _preview_ids(self, request: web.Request, what: Action, asked: list[str]) -> web.StreamResponse:
        ids = _uuids(asked, _PAGE)
        preview = await self._reading.preview(Filter(), what, ids)
        found = await self._reading.lines(ids)
        is_one = len(ids) == 1
        return self._preview(
            request,
            what,
            preview,
            subject="this push" if is_one else f"{len(ids)} ticked pushes",
            back=self._address(f"/pushes/{ids[0]}" if is_one and found else "/pushes"),
            ids=[line.id for line in found if line.status in STATUSES[what]],
            left_out=len(ids) - preview.pushes.number,
        )

    async def _preview_all(self, request: web.Request, what: Action) -> web.StreamResponse:
        applied = Filter.parse(request.query)
        values = applied.as_values()
        return self._preview(
            request,
            what,
            await self._reading.preview(applied, what),
            subject=shapes.described(applied),
            back=self._address("/pushes", values),
            values=values,
        )

    def _preview(
        self,
        request: web.Request,
        what: Action,
        preview: Preview,
        *,
        subject: str,
        back: str,
        values: Mapping[str, str] | None = None,
        ids: Sequence[UUID] = (),
        left_out: int = 0,
    ) -> web.StreamResponse:
        return self._page(
            request,
            "preview.html",
            here="/pushes",
            what=what,
            done=_DONE[what],
            why_not=WHY_NOT[what],
            preview=preview,
            subject=subject,
            back=back,
            values=values or {},
            ids=ids,
            left_out=left_out,
        )

    @_if_allowed
    async def act(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request)
        what = _what(form.text("what"))
        until = _at(form.text("frozen"))
        who, reason = request[VISITOR].name, form.text("reason")[:1000]
        asked = form.fields.get("id", ())
        if asked:
            ids = _uuids(asked, _PAGE)
            changed = await self._context.acting.change(what, ids, who=who, reason=reason, until=until)
            if len(ids) == 1 and changed:
                raise web.HTTPSeeOther(self._address(f"/pushes/{ids[0]}"))
            raise web.HTTPSeeOther(self._address("/actions", what=what, changed=len(changed), of=len(ids)))
        applied = Filter.parse({name: form.text(name) for name in form.fields})

        async def ids_after(after: str | None) -> tuple[list[UUID], str | None]:
            return await self._reading.ids(applied, what, until, after)

        run = Run(
            self._context.acting, ids_after, what=what, who=who, reason=reason, filter=applied, until=until
        )
        started = self._context.runs.start(run, (who, what, applied, until))
        raise web.HTTPSeeOther(self._address(f"/runs/{started}"))

    async def run(self, request: web.Request) -> web.StreamResponse:
        return await self._run(request, "run.html")

    async def run_progress(self, request: web.Request) -> web.StreamResponse:
        return await self._run(request, "_run.html")

    async def _run(self, request: web.Request, template: str) -> web.StreamResponse:
        run_id = _id(request)
        run, fault = self._context.runs.get(run_id), self._context.runs.fault(run_id)
        changed, last = await self._reading.run_progress(run_id)
        since = None
        if run is None:
            state, since = await self._elsewhere(last, request.query.get("since", ""))
        elif not run.progress.is_over:
            state = "stops after this batch" if run.is_aborted else "at work"
        else:
            state = "failed" if fault else "stopped" if run.is_aborted else "done"
        goes_on = not run.progress.is_over if run else since is not None
        return self._page(
            request,
            template,
            here="/actions",
            run=run_id,
            progress=run.progress if run else None,
            done=run.progress.done if run else changed,
            last=last,
            fault=fault,
            state=state,
            poll=self._address(f"/runs/{run_id}/progress", since=since) if goes_on else None,
            poll_s=_POLL_S if run else _POLL_ELSEWHERE_S,
        )

    async def _elsewhere(self, last: datetime | None, since: str) -> tuple[str, int | None]:
        """The state of a run that this process does not know; and, if it may go on, since when the browser watches it.

        Only the records of its batches show the run. Each is written when the batch is done, so at first there may be
        none.
        """
        now = await self._reading.now()
        began = int(since) if re.fullmatch("[0-9]{1,10}", since) else int(now.timestamp())
        if now - (last or datetime.fromtimestamp(began, UTC)) < _SILENCE:
            return ("at work in another process" if last else "no batch yet"), began
        if last is None:
            return "no batch", None
        return "has stopped", None

    async def abort(self, request: web.Request) -> web.StreamResponse:
        run_id = _id(request)
        if not self._context.runs.abort(run_id):
            return self._fault(
                request,
                409,
                "It cannot be stopped here",
                "Another process performs this run, or it has ended.",
            )
        raise web.HTTPSeeOther(self._address(f"/runs/{run_id}"))

    async def actions(self, request: web.Request) -> web.StreamResponse:
        before = request.query.get("before", "")
        found = await self._reading.actions(
            int(before) if re.fullmatch("[0-9]{1,18}", before) else None, limit=_PAGE
        )
        return self._page(
            request,
            "actions.html",
            here="/actions",
            actions=found,
            before=before,
            next=found[-1].id if len(found) == _PAGE else None,
            changed=_changed(request.query),
            most_ids=shapes.MOST_IDS,
        )

    # --- workers, a test push, the way in -----------------------------------------------------------------------------

    async def workers(self, request: web.Request) -> web.StreamResponse:
        return await self._workers(request, "workers.html")

    async def workers_table(self, request: web.Request) -> web.StreamResponse:
        return await self._workers(request, "_workers.html")

    async def _workers(self, request: web.Request, template: str) -> web.StreamResponse:
        state = self._context.state()
        workers = await self._reading.workers()
        return self._page(
            request, template, here="/workers", workers=workers, own=state.worker, instance=state.instance
        )

    async def send_form(self, request: web.Request) -> web.StreamResponse:
        return self._page(request, "send.html", here="/send", faults=[], given={})

    @_if_allowed
    async def send(self, request: web.Request) -> web.StreamResponse:
        form = await read_form(request)
        given = {name: form.text(name) for name in form.fields}
        token = given.pop("token", "") or None
        faults = []
        user = next(iter(_uuids([given.get("user", "")], 1)), None)
        if given.get("user") and user is None:
            faults.append("The user must be a UUID.")
        elif (token is None) == (user is None):
            faults.append("Give a device or a user, and not both.")
        if not given.get("title"):
            faults.append("The title is missing.")
        if not faults:
            try:
                sent = await self._context.acting.send(
                    token=token,
                    user=user,
                    title=given["title"],
                    body=given.get("body", ""),
                    who=request[VISITOR].name,
                )
            except psycopg.errors.InvalidParameterValue as error:
                faults.append(f"The database refuses it: {error.diag.message_primary}.")
            else:
                raise web.HTTPSeeOther(self._address(f"/pushes/{sent}"))
        return self._page(request, "send.html", status=400, here="/send", faults=faults, given=given)

    async def login(self, request: web.Request) -> web.StreamResponse:
        faults = {
            "1": "That token is not known here.",
            "wait": "Too many wrong tokens: wait a second, and try again.",
        }
        fault = faults.get(request.query.get("wrong", ""))
        return self._page(
            request,
            "login.html",
            status=401 if fault else 200,
            here="/login",
            fault=fault,
            next=request.query.get("next", ""),
        )


def _id(request: web.Request) -> UUID:
    """The id in the path. Raises HTTPNotFound."""
    found = _uuids([request.match_info["id"]], 1)
    if not found:
        raise web.HTTPNotFound(text="not the id of anything\n")
    return found[0]


def _uuids(texts: Sequence[str], most: int) -> list[UUID]:
    """The UUIDs among the texts, without duplicates, no more than ``most``."""
    found: dict[UUID, None] = {}
    for text in texts:
        if re.fullmatch(_UUID, text):
            try:
                found[UUID(text)] = None
            except ValueError:
                continue
    return list(found)[:most]


def _what(text: str) -> Action:
    """Raises HTTPBadRequest."""
    for what in ACTIONS:
        if what == text:
            return what
    raise web.HTTPBadRequest(text="what must be requeue or cancel\n")


def _changes(status: str | None) -> list[Action]:
    """The actions that are possible for at least some pushes of a list with this status."""
    return [what for what in ACTIONS if status is None or status in STATUSES[what]]


def _at(text: str) -> datetime:
    """Raises HTTPBadRequest."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise web.HTTPBadRequest(text="frozen must be the time of the preview\n") from None
    if at.tzinfo is None:
        raise web.HTTPBadRequest(text="frozen must have a time zone\n")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise web.HTTPBadRequest(text="frozen must be a time from the year 1 to 9999, in UTC\n") from None


def _changed(query: Mapping[str, str]) -> str | None:
    """What an action on ticked pushes has done, in words. The address to which it redirects contains the numbers."""
    done, changed, of = _DONE.get(query.get("what", "")), query.get("changed", ""), query.get("of", "")
    if not done or not all(re.fullmatch("[0-9]{1,4}", text) for text in (changed, of)):
        return None
    rest = int(of) - int(changed)
    pushes = f"{changed} of {of} pushes {'was' if changed == '1' else 'were'} {done}."
    return (
        pushes if rest <= 0 else f"{pushes} The others had changed since the preview, or their time was over."
    )
