"""What the README says of the configuration and of the documents is so."""

from __future__ import annotations

import re
from pathlib import Path

from listener import config
from listener.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_configuration_table_is_that_of_the_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert rows == config.describe()


def test_every_document_that_is_linked_is_there_and_every_document_is_linked() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z_]+\.md)\)", README))
    there = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert linked == there


def test_every_command_is_named() -> None:
    assert set(re.findall(r"^\| `push-listener ([a-z]+)` \|", README, re.MULTILINE)) == set(main.commands)
