"""The headers of every answer of the page, and its answers when something goes wrong."""

from __future__ import annotations

import psycopg
from aiohttp import web
from aiohttp.typedefs import Handler

from listener.operating.acting import NotAllowed
from listener.operating.filters import FilterFault
from listener.postgres.errors import explain
from listener.web.page.faults import tell_fault
from listener.web.page.forms import FormFault
from listener.web.page.rendering import Renderer
from listener.web.page.runs import TooManyRuns

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
NEVER_CHANGES = "public, max-age=31536000, immutable"
"""The Cache-Control of a file whose path contains a hash of its content."""


async def secure(request: web.Request, response: web.StreamResponse) -> None:
    """Sets the headers of every answer before it is sent, also of those that aiohttp makes itself (404, 405)."""
    response.headers.update(_HEADERS)
    if response.headers.get("Cache-Control") != NEVER_CHANGES:
        response.headers["Cache-Control"] = "no-store"


def with_errors(handler: Handler, renderer: Renderer) -> Handler:
    """Wraps a handler: its errors become pages for people, and texts for programs."""

    def tell(request: web.Request, status: int, title: str, *sentences: str) -> web.StreamResponse:
        if "text/html" in request.headers.get("Accept", ""):
            answer = renderer.fault(request, status, title, *sentences)
        else:
            answer = web.Response(status=status, text="\n".join([f"{title}.", *sentences]) + "\n")
        if status == 503:
            answer.headers["Retry-After"] = "5"
        return answer

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except FormFault as fault:
            return tell(request, 400, "This form cannot be read", str(fault))
        except FilterFault as fault:
            return tell(request, 400, "These filters cannot be used", *fault.faults)
        except TooManyRuns as error:
            return tell(request, 429, "Too much is going on", str(error))
        except NotAllowed as error:
            return tell(request, 403, "The database does not let you do that", str(error))
        except psycopg.errors.QueryCanceled:
            return tell(request, 503, "The search took too long", _NARROWER)
        except psycopg.DataError:
            return tell(request, 400, "The database cannot use that", _ODD)
        except psycopg.Error as error:
            return tell(request, 503, "The database cannot be read", explain(error), _STAYS)
        except ConnectionResetError:  # the client has gone
            raise
        except Exception as error:
            tell_fault(_route(request), error)
            return tell(request, 500, "This page has a fault", "The log says where.")

    return answer


_NARROWER = "Name a user, an error code or a shorter time, and try again."
_ODD = "The address or the form holds a value that no column can hold, such as a time out of range."
_STAYS = "Pushes wait in it and are sent when it is back. This page can be loaded again at any time."


def _route(request: web.Request) -> str:
    """The route, not the path, because the path may contain what a person searches for."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
