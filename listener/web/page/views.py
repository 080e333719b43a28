"""What the page answers: each view asks for records, and a template shows them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import UUID

import psycopg
from aiohttp import web

from listener.operating import order
from listener.operating.acting import NotAllowed, Run
from listener.operating.filters import KINDS, STATUSES, Filter, FilterFault
from listener.operating.meanings import MEANINGS, meaning_of
from listener.operating.records import Count, Revealed
from listener.web.page import shapes
from listener.web.page.access import VISITOR
from listener.web.page.forms import read_form
from listener.web.page.rendering import TEMPLATES

if TYPE_CHECKING:
    from listener.web.page.app import Context, Snapshot

_What = Literal["requeue", "cancel"]
_DONE: Mapping[str, str] = {"requeue": "requeued", "cancel": "cancelled"}
_PAGE = 50
_NEWER_MOST = 100
_SILENCE = timedelta(minutes=1)
"""A batch takes no more than seconds. After so long without one, a run of another process has stopped."""
_POLL_S: Mapping[str, int] = {"at work": 1, "stops after this batch": 1, "at work in another process": 5}
"""Seconds after which the progress of a run is read again, by its state; of others it does not change."""
_TAIL = 12
"""Points of the charts in one event: those that the reading may have added since the last one, and a reserve."""
_UUID = "[0-9a-fA-F-]{36}"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def render_home(snapshot: Snapshot, prefix: str = "") -> dict[str, str]:
    """One sample of the first screen: the data of a server-sent event by the name of the event.

    The event without a name is HTML with the parts to be replaced. "series" is JSON: the newest points of the charts.
    "beat" is always another.
    """
    parts = TEMPLATES.get_template("_live.html").render(
        snapshot=snapshot, figures=shapes.figures(snapshot), prefix=prefix
    )
    # What has not changed is not sent again: the time tells that the listener is there.
    return {
        "": parts,
        "beat": f"{time.time():.0f}",
        "series": json.dumps(shapes.chart_data(snapshot.series, _TAIL), separators=(",", ":")),
    }


def routes(context: Context) -> list[web.RouteDef]:
    """Everything but static files, POST /login and POST /logout. Paths are without the prefix."""
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
    """The view, which says so if the login of the database may not act."""

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

    async def _needs(self) -> list[tuple[object, object, str | None]] | None:
        try:
            groups = await self._reading.codes()
        except psycopg.Error:
            return None
        ranked = sorted(groups, key=lambda group: (-group.pushes.number, group.status, group.code))
        prefix = self._context.prefix
        return [(group, meaning_of(group.code), shapes.group_address(prefix, group)) for group in ranked]

    # --- the list ---------------------------------------------------------------------------------------------------

    async def pushes(self, request: web.Request) -> web.StreamResponse:
        given = {
            name: request.query.get(name, "").strip()
            for name in ("status", "user", "code", "since", "until", "kind")
        }
        given = {name: value for name, value in given.items() if value}
        try:
            applied = Filter.parse(given)
        except FilterFault as fault:
            return self._list(request, given, faults=fault.faults)
        after = request.query.get("after") or None
        page = await self._reading.pushes(applied, after=after, limit=_PAGE)
        values = applied.as_values()
        ids = ",".join(str(line.id) for line in page.lines)
        return self._list(
            request,
            values,
            page=page,
            count=await self._count(applied),
            after=after,
            order=shapes.order(applied),
            chips=shapes.chips(self._context.prefix, applied),
            since=shapes.for_input(applied.since),
            until=shapes.for_input(applied.until),
            poll=self._address(
                "/pushes/newer", values, than=None if after else page.first, ids=ids, on=after and "1"
            ),
            meaning=meaning_of(applied.code) if applied.code else None,
            changes=[
                what for what, statuses in shapes.CHANGES.items() if applied.status in (None, *statuses)
            ],
        )

    def _list(self, request: web.Request, values: Mapping[str, str], **more: object) -> web.StreamResponse:
        nothing: dict[str, object] = {
            "page": None,
            "count": None,
            "after": None,
            "order": "",
            "chips": [],
            "poll": None,
            "meaning": None,
        }
        texts = {
            "since": values.get("since", ""),
            "until": values.get("until", ""),
            "faults": [],
            "changes": [],
        }
        shown = {**nothing, **texts, "codes": sorted(MEANINGS), "statuses": STATUSES, "kinds": KINDS, **more}
        status = 400 if shown["faults"] else 200
        return self._page(request, "pushes.html", status=status, here="/pushes", values=values, **shown)

    async def _count(self, applied: Filter) -> Count | None:
        """None: counting took too long; the list is there all the same."""
        try:
            return await self._reading.count(applied)
        except psycopg.errors.QueryCanceled:
            return None

    async def newer(self, request: web.Request) -> web.StreamResponse:
        """What has changed since the list was loaded: nothing moves, cells change."""
        applied = Filter.parse(request.query)
        than, is_later_page = request.query.get("than"), "on" in request.query
        ids = _uuids(request.query.get("ids", "").split(","), _PAGE)
        if is_later_page:
            newer = Count(0, True)
        elif than:
            order.seconds(than, "than must be what a page says of its first row")
            newer = await self._reading.newer(applied, than, most=_NEWER_MOST)
        else:
            newer = await self._reading.count(applied, most=_NEWER_MOST)
        return self._page(
            request,
            "_newer.html",
            newer=newer,
            href=self._address("/pushes", applied.as_values()),
            lines=await self._reading.lines(ids) if ids else [],
        )

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Leads from what a person has pasted to the push, the user or the error code that it names."""
        sought = request.query.get("q", "").strip()
        if ids := _uuids([sought], 1):
            is_push = bool(await self._reading.lines(ids))
            raise web.HTTPSeeOther(
                self._address(f"/pushes/{ids[0]}") if is_push else self._address("/pushes", user=sought)
            )
        try:
            values = Filter.parse({"code": sought.upper()}).as_values()
        except FilterFault:
            text = "Write the id of a push, the id of a user, or an error code such as UNREGISTERED."
            return self._fault(request, 400, "That is neither an id nor an error code", text)
        raise web.HTTPSeeOther(self._address("/pushes", values))

    # --- one push ---------------------------------------------------------------------------------------------------

    async def story(self, request: web.Request) -> web.StreamResponse:
        return await self._story(request, None)

    async def _story(self, request: web.Request, revealed: Revealed | None) -> web.StreamResponse:
        story = await self._reading.story(_id(request))
        if story is None:
            return self._gone(request)
        status = story.line.status
        return self._page(
            request,
            "story.html",
            here="/pushes",
            story=story,
            moments=shapes.moments(story),
            ending=shapes.ending(story),
            copies=shapes.copies(story),
            due=shapes.waits_until(story.line),
            meaning=meaning_of(story.line.error_code) if story.line.error_code else None,
            changes=[what for what, statuses in shapes.CHANGES.items() if status in statuses],
            revealed=revealed and shapes.payload(revealed),
        )

    @_if_allowed
    async def reveal(self, request: web.Request) -> web.StreamResponse:
        revealed = await self._context.acting.reveal(_id(request), who=request[VISITOR].name)
        if revealed is None:
            return self._gone(request)
        if "HX-Request" in request.headers:
            return self._page(request, "_payload.html", revealed=shapes.payload(revealed))
        return await self._story(request, revealed)

    def _gone(self, request: web.Request) -> web.StreamResponse:
        return self._fault(
            request,
            404,
            "There is no such push",
            "Finished pushes are deleted when they are older than RETENTION.",
        )

    # --- actions ----------------------------------------------------------------------------------------------------

    async def preview(self, request: web.Request) -> web.StreamResponse:
        what = _what(request.query.get("what", ""))
        asked = request.query.getall("id", [])
        return await (self._preview_ids(request, what, asked) if asked else self._preview_all(request, what))

    async def _preview_ids(self, request: web.Request, what: _What, asked: list[str]) -> web.StreamResponse:
        found = await self._reading.lines(_uuids(asked, _PAGE))
        lines = [line for line in found if line.status in shapes.CHANGES[what]]
        is_one = len(asked) == 1
        return self._preview(
            request,
            what,
            subject="this push" if is_one else f"{len(asked)} ticked pushes",
            count=Count(len(lines), True),
            lines=lines,
            until=max((line.updated_at for line in found), default=None),
            ids=[line.id for line in lines],
            left_out=len(asked) - len(lines),
            back=self._address(f"/pushes/{asked[0]}" if is_one and found else "/pushes"),
        )

    async def _preview_all(self, request: web.Request, what: _What) -> web.StreamResponse:
        applied = Filter.parse(request.query)
        preview = await self._reading.preview(applied, what)
        values = applied.as_values()
        return self._preview(
            request,
            what,
            subject=shapes.described(applied),
            count=preview.pushes,
            maybe_seen=preview.maybe_seen,
            lines=preview.examples,
            until=preview.until,
            values=values,
            back=self._address("/pushes", values),
        )

    def _preview(self, request: web.Request, what: _What, **more: Any) -> web.StreamResponse:
        shown: dict[str, Any] = {"maybe_seen": None, "values": {}, "ids": [], "left_out": 0, **more}
        return self._page(
            request,
            "preview.html",
            here="/pushes",
            what=what,
            done=_DONE[what],
            allowed=sorted(shapes.CHANGES[what]),
            **shown,
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
            act = getattr(self._context.acting, what)
            changed = await act(ids, who=who, reason=reason, until=until)
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
        if run is None and last is None:
            return self._fault(
                request, 404, "There is no such run", "It changed nothing, or the address is wrong."
            )
        progress = run.progress if run else None
        if progress is None:
            # Another process performs it, or has; the records of its batches are all that tells.
            has_stopped = last is None or datetime.now(UTC) - last > _SILENCE
            state = "has stopped" if has_stopped else "at work in another process"
        elif not progress.is_over:
            state = "stops after this batch" if run and run.is_aborted else "at work"
        else:
            state = "failed" if fault else "stopped" if run and run.is_aborted else "done"
        return self._page(
            request,
            template,
            here="/actions",
            run=run_id,
            progress=progress,
            done=progress.done if progress else changed,
            last=last,
            fault=fault,
            state=state,
            poll_s=_POLL_S.get(state),
        )

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
            faults.append("Give a registration token or a user, and not both.")
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
    """The UUIDs among the texts, each once, no more than ``most``."""
    found: dict[UUID, None] = {}
    for text in texts:
        if re.fullmatch(_UUID, text):
            try:
                found[UUID(text)] = None
            except ValueError:
                continue
    return list(found)[:most]


def _what(text: str) -> _What:
    """Raises HTTPBadRequest."""
    for what in get_args(_What):
        if what == text:
            return what  # type: ignore[no-any-return]
    raise web.HTTPBadRequest(text="what must be requeue or cancel\n")


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
    """What an action on ticked pushes has done, from the address that it leads to."""
    done, changed, of = _DONE.get(query.get("what", "")), query.get("changed", ""), query.get("of", "")
    if not done or not all(re.fullmatch("[0-9]{1,4}", text) for text in (changed, of)):
        return None
    rest = int(of) - int(changed)
    pushes = f"{changed} of {of} pushes {'was' if changed == '1' else 'were'} {done}."
    return (
        pushes if rest <= 0 else f"{pushes} The others had changed since the preview, or their time was over."
    )
