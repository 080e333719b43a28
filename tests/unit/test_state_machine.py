"""docs/state_machine.md shows the moves that the checker of the chaos suite allows, no more and no fewer."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.checker import MOVES

DOCUMENT = (Path(__file__).parents[2] / "docs/state_machine.md").read_text()


def section(title: str) -> str:
    """The text below a heading."""
    return DOCUMENT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def moves(text: str) -> set[tuple[str, str]]:
    """The first two columns of a table of moves."""
    return set(re.findall(r"^\| `([a-z]+)` \| `([a-z]+)` \|", text, re.MULTILINE))


def test_the_table_has_the_moves_of_the_checker() -> None:
    assert moves(section("Moves")) == MOVES


def test_the_diagram_has_the_moves_of_the_checker() -> None:
    drawn = re.findall(r"^  ([a-z]+) --> ([a-z]+): \S", DOCUMENT, re.MULTILINE)
    assert set(drawn) == MOVES
    assert len(drawn) == len(MOVES)


def test_the_statuses_are_those_of_the_checker() -> None:
    described = re.findall(r"^\| `([a-z]+)` \|", section("Statuses"), re.MULTILINE)
    assert sorted(described) == sorted({status for move in MOVES for status in move})
