"""Texts of this service, made storable in a database of any encoding. Pure."""

from __future__ import annotations

from typing import overload


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: None) -> None: ...
def storable(text: str | None) -> str | None:
    """A text with ``?`` for each character that some database cannot store.

    Every server encoding has ASCII, and Postgres stores no NUL. FCM's words, the names of hosts and the like may have
    other characters, and must not cost a row its result.
    """
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.encode("ascii", "replace").decode().replace("\0", "?")
