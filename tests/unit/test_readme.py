"""The README agrees with the settings, the commands and the documents."""

from __future__ import annotations

import re
from pathlib import Path

from listener import config
from listener.cli.main import SUMMARIES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_configuration_tables_are_those_of_the_settings() -> None:
    documented = []
    for line in README.splitlines():
        if line.startswith("### "):
            group = line.removeprefix("### ")
        elif row := re.fullmatch(r"\| `([A-Z_]+)` \| (.*?) \| (.*?) \|", line):
            documented.append((group, *row.groups()))
    assert documented == config.describe()


def test_the_readme_links_every_document_and_nothing_else() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z_]+\.md)\)", README))
    there = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert linked == there


def test_every_command_is_listed() -> None:
    assert set(re.findall(r"^\| `push-listener ([a-z]+)` \|", README, re.MULTILINE)) == set(SUMMARIES)
