"""The headers of every answer of the page, and what it says when something goes wrong."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Sequence

import psycopg
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from listener.operating.acting import NotAllowed
from listener.operating.filters import FilterFault
from listener.postgres.errors import explain

log = structlog.get_logger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NEVER_CHANGES = "public, max-age=31536000, immutable"


def secure(response: web.StreamResponse, *, never_changes: bool = False) -> None:
    """Sets the headers. ``never_changes``: the path holds a hash of the content."""
    response.headers.update(_HEADERS)
    response.headers["Cache-Control"] = _NEVER_CHANGES if never_changes else "no-store"


def with_headers(handler: Handler, *, never_changes: bool = False) -> Handler:
    """The handler, whose answers get the headers. One that is prepared already must have got them by ``secure``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as exception:
            secure(exception)
            raise
        if not response.prepared:
            secure(response, never_changes=never_changes and response.status == 200)
        return response

    return answer


def with_errors(handler: Handler, style: Callable[[], str]) -> Handler:
    """The handler, whose errors become pages. ``style``: the URL of the style sheet."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except FilterFault as fault:
            return _problem(request, 400, "These filters cannot be used", fault.faults, style())
        except NotAllowed as error:
            return _problem(request, 403, "The database does not let you do that", [str(error)], style())
        except psycopg.errors.QueryCanceled:
            return _problem(request, 503, "The search took too long", [_NARROWER], style())
        except psycopg.Error as error:
            return _problem(request, 503, "The database cannot be read", [explain(error), _STAYS], style())
        except ConnectionResetError:  # the client has gone
            raise
        except Exception as error:
            tell_fault(_route(request), error)
            return _problem(request, 500, "This page has a fault", ["The log says where."], style())

    return answer


_NARROWER = "Name a user, an error code or a shorter time, and try again."
_STAYS = "Pushes wait in it and are sent when it is back. This page can be loaded again at any time."


def tell_fault(route: str, error: Exception) -> None:
    """Logs a fault of our own, without the text of the exception, which may quote a payload."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error(
        "the page has a fault",
        route=route,
        error=type(error).__name__,
        at=f"{where.filename}:{where.lineno}",
    )


def _problem(
    request: web.Request, status: int, title: str, lines: Sequence[str], style: str
) -> web.StreamResponse:
    headers = {"Retry-After": "5"} if status == 503 else {}
    if "text/html" not in request.headers.get("Accept", ""):
        text = "\n".join([f"{title}.", *lines]) + "\n"
        return web.Response(status=status, headers=headers, text=text)
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    body = f'<section class="fault" role="alert"><h1>{html.escape(title)}</h1>{paragraphs}</section>'
    if "HX-Request" not in request.headers:
        body = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="stylesheet" href="{html.escape(style)}"></head><body><main>{body}</main></body></html>'
        )
    return web.Response(status=status, headers=headers, text=body, content_type="text/html")


def _route(request: web.Request) -> str:
    """The route and not the path, which may hold what somebody searches for."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
