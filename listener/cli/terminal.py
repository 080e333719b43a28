"""Texts of others on a terminal: as text, whatever they hold."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.text import Text

from listener.operating.records import PushLine

_JOINER = "\u200d"
"""Of emoji; of all format characters the only one that stays."""

_LEAST_REASON = 30
"""Cells of a row of the terminal. If less is left beside the push, its reason gets the next row as well."""

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


def show(out: Console, push: PushLine) -> None:
    """Prints a push in one line, which no width cuts; on a terminal its reason is cut, elsewhere it is whole."""
    out.print(line(push, out.width if out.is_terminal else None), soft_wrap=True)


def line(push: PushLine, width: int | None) -> Text:
    """A push in one line.

    Args:
        width: of the terminal: the reason then ends with a row of it. None: the reason is whole.
    """
    text = Text.assemble(
        local(push.updated_at),
        " ",
        (f"{plain(push.status):<9}", _STYLES.get(push.status, "")),
        f" {push.id} ",
        plain(push.target),
        f" {plain(push.error_code)}" if push.error_code else "",
        f" {plain(push.title)}" if push.title else "",
    )
    if not push.last_error:
        return text
    reason = Text(f" - {plain(push.last_error)}", "dim")
    if width is not None:
        left = -text.cell_len % width
        reason.truncate(left if left >= _LEAST_REASON else left + width, overflow="ellipsis")
    return text.append_text(reason)
