"""Texts of others on a terminal: as text, whatever they hold."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from listener.operating.records import PushLine

_JOINER = "\u200d"
"""Of emoji; of all format characters the only one that stays."""

_STYLES = {
    "sent": "green",
    "delivered": "green",
    "dead": "red",
    "expired": "red",
    "failed": "yellow",
    "cancelled": "dim",
}


def plain(text: str | None) -> str:
    """A text without what a terminal obeys: control characters, escape sequences, changes of direction.

    Each becomes a blank. Print the result without markup, as ``Text`` or by ``click.echo``: "[red]" is a text, too.
    """
    return "".join(c if c.isprintable() or c == _JOINER else " " for c in text or "")


def local(time: datetime) -> str:
    """A time in the zone of this machine; one that is no date as it is."""
    try:
        return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "no date"


def line(push: PushLine) -> Text:
    """A push in one line; to be printed with ``soft_wrap``, so that no width cuts it."""
    return Text.assemble(
        local(push.updated_at),
        " ",
        (f"{plain(push.status):<9}", _STYLES.get(push.status, "")),
        f" {push.id} ",
        plain(push.target),
        f" {plain(push.error_code)}" if push.error_code else "",
        f" {plain(push.title)}" if push.title else "",
    )
