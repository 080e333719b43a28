"""The documents show the settings and commands that there are, say for whom they are, and have no dead link."""

from __future__ import annotations

import re
from pathlib import Path

from listener import config
from listener.cli.main import SUMMARIES
from listener.postgres.errors import Condition

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*ROOT.glob("*.md"), *PAGES]


def slug(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_the_configuration_tables_are_those_of_the_settings() -> None:
    documented = []
    for line in CONFIGURATION.splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif row := re.fullmatch(r"\| `([A-Z_]+)` \| (.*?) \| (.*?) \|", line):
            documented.append((group, *row.groups()))
    assert documented == config.describe()


def test_the_index_names_every_document() -> None:
    named = re.findall(r"\]\(([a-z_-]+\.md)\)", (ROOT / "docs/README.md").read_text())
    there = {path.name for path in (ROOT / "docs").glob("[a-z]*.md")}
    assert sorted(named) == sorted(there)


def test_each_page_begins_with_whom_it_is_for() -> None:
    for page in PAGES:
        if page.name in ("benchmarks.md", "transports.md"):
            continue  # they begin with commands, and with what the page is about
        title, blank, first = page.read_text().splitlines()[:3]
        assert title.startswith("# "), page.name
        assert (blank, first[:4]) == ("", "For "), page.name


def test_every_link_leads_somewhere() -> None:
    nowhere = []
    for document in DOCUMENTS:
        for target, heading in re.findall(r"\]\(([^):#]*)(?:#([a-z0-9_-]+))?\)", document.read_text()):
            there = (document.parent / target).resolve() if target else document
            if there.exists() and heading:
                headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                if heading in {slug(text) for text in headings}:
                    continue
            elif there.exists():
                continue
            nowhere.append(f"{document.relative_to(ROOT)}: {target}#{heading}")
    assert not nowhere, "\n".join(nowhere)


def test_every_command_is_listed() -> None:
    assert set(re.findall(r"^\| `push-listener ([a-z]+)` \|", README, re.MULTILINE)) == set(SUMMARIES)


def test_the_words_of_readyz_are_those_of_the_code() -> None:
    text = (ROOT / "docs/poolers.md").read_text()
    (sentence,) = re.findall(
        r"^- `/readyz` names the kind in fixed words, such as (.*?)\.$", text, re.M | re.S
    )
    named = {" ".join(words.split()) for words in re.findall(r"`([^`]*)`", sentence)}
    assert named
    assert named <= set(map(str, Condition))


def test_every_file_that_a_document_names_is_there() -> None:
    """A path of this project, and a test module by its name."""
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for document in DOCUMENTS:
        said = document.read_text()
        assert set(re.findall(r"`(test_[a-z0-9_]+)`", said)) <= modules, document.name
        for path in re.findall(r"`((?:listener|db|scripts|deploy|tests|examples)/[a-zA-Z0-9_./-]+)`", said):
            assert "NNNN" in path or (ROOT / path).exists(), f"{document.name}: {path}"
