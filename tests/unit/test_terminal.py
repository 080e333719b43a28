"""A push as one line of a terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from listener.cli import terminal
from listener.operating.records import PushLine

_AT = datetime(2026, 1, 1, tzinfo=UTC)
DEAD = PushLine(
    UUID(int=1), "dead", "normal", "token", "token 3f9a1c2e", "Your ride", "INTERNAL", None, 0, _AT, _AT, None
)


@given(st.text(min_size=1), st.integers(1, 300))
def test_a_reason_ends_with_a_row_of_the_terminal(reason: str, width: int) -> None:
    bare = terminal.line(DEAD, width)
    text = terminal.line(replace(DEAD, last_error=reason), width)
    assert text.plain.startswith(bare.plain)
    assert text.cell_len <= -(-bare.cell_len // width) * width + width


def test_a_reason_is_cut_on_a_terminal_and_whole_elsewhere() -> None:
    long = replace(DEAD, last_error="no " * 200 + "end")
    assert terminal.line(long, None).plain.endswith(" - " + "no " * 200 + "end")
    cut = terminal.line(long, 160)
    assert cut.cell_len == 160
    assert cut.plain.endswith("…")


def test_a_short_reason_is_whole_on_a_narrow_terminal() -> None:
    assert terminal.line(replace(DEAD, last_error="FCM was away"), 80).plain.endswith(" - FCM was away")
