"""Makes answers from templates and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jinja2
from aiohttp import web

from listener.web.page import shapes
from listener.web.page.access import NOBODY, VISITOR


def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}
    found.filters.update(utc=shapes.utc, short=shapes.short, tone=shapes.tone, visible=shapes.visible)
    found.globals["moment_of"] = shapes.moment_of
    return found


TEMPLATES = _templates()


class Renderer:
    """Makes the answers of one page.

    Args:
        prefix: '', or a path such as /push.
        asset: returns the URL of a file in static/.
    """

    def __init__(self, prefix: str, asset: Callable[[str], str]) -> None:
        self._prefix = prefix
        self._asset = asset
        self._address = partial(shapes.address, prefix)

    def page(
        self, request: web.Request, template: str, *, status: int = 200, **values: object
    ) -> web.Response:
        """Renders a template with ``values``, and with the values that every template may use."""
        text = TEMPLATES.get_template(template).render(
            prefix=self._prefix,
            asset=self._asset,
            address=self._address,
            visitor=request.get(VISITOR, NOBODY),
            **values,
        )
        return web.Response(text=text, status=status, content_type="text/html")

    def fault(self, request: web.Request, status: int, title: str, *sentences: str) -> web.Response:
        """A page that says what is wrong, and has a link back."""
        return self.page(request, "fault.html", status=status, here="", title=title, sentences=sentences)
