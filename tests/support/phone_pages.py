"""docs/flutter.md and docs/javascript.md show the files of docs/phones whole. As a program: writes them into the pages.

A page shows a file with a line that links to it alone, and a block of code after that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.service import PROJECT

DOCS = PROJECT / "docs"
PAGES = (DOCS / "flutter.md", DOCS / "javascript.md")
CODE = DOCS / "phones"

_SHOWN = re.compile(r"^\[([^]\n]+)\]\((phones/[^)\n]+)\)\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A block of code on a page, and the file that it is."""

    file: Path
    code: str


def shown(page: Path) -> list[Shown]:
    """The files that a page shows, in its order."""
    return [Shown(DOCS / found[2], found[4]) for found in _SHOWN.finditer(page.read_text())]


def sources() -> list[Path]:
    """Every file of code, but not the requests."""
    return sorted(path for path in CODE.glob("*/*") if path.suffix in (".dart", ".swift", ".ts"))


def write(page: Path) -> None:
    """Puts the files as they are into the blocks of a page."""

    def block(found: re.Match[str]) -> str:
        code = (DOCS / found[2]).read_text()
        return f"[{found[1]}]({found[2]})\n\n```{found[3]}\n{code}```"

    page.write_text(_SHOWN.sub(block, page.read_text()))


if __name__ == "__main__":
    for each in PAGES:
        write(each)
