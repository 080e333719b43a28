"""What the templates may hold: htmx reaches ``Function`` by some attributes, and the CSP forbids the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from listener.web.page import views

FOLDER = Path(views.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))

FORBIDDEN = {
    "an hx-on attribute": r"hx-on\b",
    "a value that htmx runs": r"(?:js|javascript):",
    "a filter of a trigger, which htmx runs": r"hx-trigger=\"[^\"]*\[",
    "an event handler": r"<[^>]*\son[a-z]+\s*=",
    "an inline style": r"<style\b|<[^>]*\sstyle\s*=",
    "an inline script": r"<script(?![^>]*\b(?:src=|type=\"application/json\"))",
    "text that is not escaped": r"\|\s*safe\b|autoescape\s+false|Markup",
    "an address of another site": r"https?://|[\"'(]//",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_holds_nothing_that_runs_or_leads_elsewhere(template: Path) -> None:
    text = template.read_text()
    found = [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text, re.IGNORECASE)]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an hx-on attribute", '<p hx-on:click="x">'),
        ("a value that htmx runs", '<p hx-vals="js:{}">'),
        ("a filter of a trigger, which htmx runs", '<p hx-trigger="every 1s [document.hidden]">'),
        ("an event handler", "<img src=x onerror=alert(1)>"),
        ("an inline style", '<p style="color: red">'),
        ("an inline script", "<script>alert(1)</script>"),
        ("text that is not escaped", "{{ title|safe }}"),
        ("an address of another site", '<img src="//example.org/x.png">'),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, text: str) -> None:
    assert re.search(FORBIDDEN[what], text, re.IGNORECASE)


def test_the_script_and_the_style_ask_no_other_site() -> None:
    for name in ("app.js", "app.css", "icon.svg"):
        text = (FOLDER / "static" / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|\beval\(|new Function|innerHTML", text), name


def test_the_style_is_small() -> None:
    assert len((FOLDER / "static/app.css").read_text().splitlines()) < 300
