"""Prints texts that others have written, so that the terminal obeys nothing in them."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.text import Text

from listener.operating.records import PushLine

_JOINER = "\u200d"
"""Joins the parts of an emoji. Of all format characters only this one is kept."""

_LEAST_REASON = 30
"""Cells of a terminal row. If fewer are left after the rest of the push, its reason also uses the next row."""

_STYLES = {
    "sent": "green",
    "delivered": "green",
    "dead": "red",
    "expired": "red",
    "failed": "yellow",
    "cancelled": "dim",
}


def plain(text: str | None) -> str:
    """A text in which a blank replaces each character that a terminal obeys: control characters, the start of escape
    sequences, changes of direction.

    Print the result as ``Text`` or with ``click.echo``. With rich's markup, "[red]" in the text would be a command.
    """
    return "".join(c if c.isprintable() or c == _JOINER else " " for c in text or "")


def local(time: datetime) -> str:
    """A time in the zone of this machine, or "no date" if it cannot be shown there, such as one in the year 1."""
    try:
        return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "no date"


def show(out: Console, push: PushLine) -> None:
    """Prints a push in one line, which is never wrapped. On a terminal its reason is shortened, elsewhere it is not."""
    out.print(line(push, out.width if out.is_terminal else None), soft_wrap=True)


def line(push: PushLine, width: int | None) -> Text:
    """A push in one line.

    Args:
        width: of the terminal: the reason is cut at the end of a terminal row. None: the reason is not cut.
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
