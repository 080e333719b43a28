"""Reads posted forms. Strangers may post anything, so no content may make the page raise an unexpected error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from aiohttp import web

_KIND = "application/x-www-form-urlencoded"
_MOST_FIELDS = 200


class FormFault(Exception):
    """A form that cannot be used; the message says why, and quotes nothing from the form."""


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form."""

    fields: Mapping[str, Sequence[str]] = field(repr=False)
    """The values for each name, empty texts included."""

    def text(self, name: str) -> str:
        """The value for a name, without surrounding blanks; '' if there is none."""
        return next(iter(self.fields.get(name, ())), "").strip()


async def read_form(request: web.Request) -> Form:
    """Reads a form as browsers post it.

    Raises FormFault, or HTTPRequestEntityTooLarge if the form is larger than 1 MiB.
    """
    if request.content_type != _KIND or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise FormFault(f"It must be {_KIND}, in UTF-8.")
    body = await request.read()
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise FormFault("It is not in UTF-8, or has too many fields.") from None
    if any("\0" in text for texts in fields.values() for text in texts):
        raise FormFault("It holds a character that the database cannot hold (NUL).")
    return Form(fields)
