"""The documents: their pages, and the SQL and the commands in their blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

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


def _alone(words: str) -> str:
    """A call without what follows it in a line of a shell, or the quote that closes a line for another shell."""
    words = _END.split(words)[0].strip()
    return words[:-1] if words.count('"') % 2 or words.count("'") % 2 else words
