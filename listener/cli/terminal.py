"""Texts of others on a terminal: as text, whatever they hold."""

from __future__ import annotations

from datetime import datetime

from rich.table import Table
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


def status(word: str) -> Text:
    """A status, coloured where there are colours."""
    return Text(plain(word), style=_STYLES.get(word, ""))


def local(time: datetime) -> str:
    """A time in the zone of this machine; one that is no date as it is."""
    try:
        return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "no date"


def pushes(lines: list[PushLine], title: str) -> Table:
    """Pushes, for people."""
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, width in (("id", 36), ("status", 9), ("code", 12), ("changed", 19)):
        table.add_column(name, no_wrap=True, min_width=width)
    for name in ("to", "title"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(
            Text(str(line.id)),
            status(line.status),
            Text(plain(line.error_code)),
            Text(local(line.updated_at)),
            Text(plain(line.target)),
            Text(plain(line.title)),
        )
    return table
