"""The documents: their pages, and the SQL and the commands in their blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from listener.cli.main import SUMMARIES
from tests.support.service import PROJECT

PAGES = tuple(
    sorted(
        str(path.relative_to(PROJECT))
        for path in (*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), PROJECT / "examples/README.md")
    )
)

_BEGINS_SQL = ("select ", "insert ", "update ", "delete ", "create ", "alter ", "drop ", "grant ", "revoke ")

_CALL = re.compile(rf"(?:push-listener|-m listener) ((?:{'|'.join(SUMMARIES)})\b(?!-).*)")
_END = re.compile(r"\s+(?:#|&|\d?>|\|)|;")
_INLINE = re.compile(r"`([^`]*)`")

_VARIES = (
    (re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b(token|fid) [0-9a-f]{8}\b"), r"\1 HASH"),
    (re.compile(r"\d+(?:\.\d+)? (m?s)\b"), r"N \1"),
    (re.compile(r"0:\d{16}%[0-9a-f]{16}"), "MESSAGE"),
    (re.compile(r" {2,}"), " "),
)
"""What differs from run to run, and what stands for it."""


def text_of(page: str) -> str:
    return (PROJECT / page).read_text()


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Each block, in their order: its language, empty where it is indented or names none; and its text."""
    fence: str | None = None
    lines: list[str] = []
    for line in [*text_of(page).splitlines(), "end"]:
        if fence is not None:
            if line.strip() == "```":
                yield fence, "\n".join(lines) + "\n"
                fence, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("    ") or (lines and not line):
            lines.append(line.removeprefix("    "))
        else:
            if lines:
                yield "", "\n".join(lines).strip("\n") + "\n"
                lines = []
            if line.lstrip().startswith("```"):
                fence = line.strip().removeprefix("```")


def sql_blocks(page: str) -> list[str]:
    """The blocks of SQL."""
    return [
        text
        for language, text in blocks(page)
        if language == "sql" or (not language and text.startswith(_BEGINS_SQL))
    ]


def commands(page: str) -> list[str]:
    """The arguments of each call of push-listener, in blocks and in the text."""
    lines = [
        line
        for language, text in blocks(page)
        if language != "mermaid"
        for line in text.replace("\\\n", " ").splitlines()
    ]
    lines += [
        " ".join(code.split())
        for code in _INLINE.findall(re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S))
    ]
    # A placeholder counts as a word. What doctor prints begins with a sign.
    calls = (
        _CALL.search(re.sub(r"<[^<>]*>|\.\.\.", "PLACEHOLDER", line))
        for line in lines
        if not line.lstrip().startswith("✓")
    )
    return [_alone(call[1]) for call in calls if call]


def shape(output: str) -> list[str]:
    """The lines of an output, with a word for each id, time, duration and hash. Pages show those of another run."""
    for varies, word in _VARIES:
        output = varies.sub(word, output)
    return [line.strip() for line in output.strip().splitlines()]


def shown_calls(page: str) -> list[tuple[list[str], str]]:
    """Each call of push-listener of which a console shows what it prints: its arguments, and that."""
    calls = []
    for language, text in blocks(page):
        for call in re.split(r"^\$ ", text, flags=re.M) if language == "console" else ():
            command, _, output = call.partition("\n")
            if command.startswith("push-listener ") and output.strip():
                calls.append((shlex.split(command)[1:], output))
    return calls


def is_like(stated: Any, found: Any) -> bool:
    """Whether JSON is as a page shows it. There a text that ends with … stands for any, and a time for any time."""
    match stated:
        case dict():
            return list(stated) == list(found) and all(is_like(stated[name], found[name]) for name in stated)
        case list():
            return len(stated) == len(found) and all(map(is_like, stated, found))
        case str() if stated.endswith("…"):
            return isinstance(found, str)
        case str() if re.match(r"\d{4}-\d\d-\d\dT", stated):
            return datetime.fromisoformat(found).tzinfo is not None
        case _:
            return bool(stated == found)


def _alone(words: str) -> str:
    """A call without what follows it in a line of a shell, or the quote that closes a line for another shell."""
    words = _END.split(words)[0].strip()
    return words[:-1] if words.count('"') % 2 or words.count("'") % 2 else words
