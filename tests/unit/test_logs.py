"""docs/logs.md names every event that the code logs, with its level and fields; debug events ask before they cost."""

from __future__ import annotations

import json
import logging
import re

import pytest

from listener.sending.trail import Trail
from listener.tracing import Tracing
from tests.support.log_events import ROOT, Event, collect

_ROW = re.compile(
    r"^\| (?P<event>[^|]+) \| (?P<level>[a-z ]+) \| (?P<fields>[^|]*) \| [^|]*\|$", re.MULTILINE
)


def documented() -> list[Event]:
    rows = _ROW.finditer((ROOT / "docs/logs.md").read_text())
    found = [
        Event(row["event"], row["level"], frozenset(re.findall(r"`([^`]+)`", row["fields"]))) for row in rows
    ]
    return [event for event in found if event.name != "event"]


def test_every_event_is_documented_and_no_other() -> None:
    logged = list(collect())
    assert len(logged) > 60  # the collection finds them
    assert {event.name for event in documented()} == {event.name for event in logged}
    assert set(documented()) == set(logged)


def test_the_records_shown_have_the_fields_of_their_events() -> None:
    text = (ROOT / "docs/logs.md").read_text()
    known = {event.name: event for event in documented()}
    records = re.findall(r"^\S+Z \[(\w+) +\] (\w+) +\[([\w.]+)\] (.*)$", text, re.MULTILINE)
    assert len(records) == 6
    for level, name, module, fields in records:
        assert Event(name, level, frozenset(re.findall(r"(\w+)=", fields))) == known[name]
        assert module == "listener.sending.trail"
    [line] = re.findall(r"^\{.*\}$", text, re.MULTILINE)
    record = json.loads(line)
    event = known[record.pop("event")]
    assert (record.pop("level"), record.pop("logger")) == (event.level, "listener.sending.trail")
    assert set(record) == {*event.fields, "timestamp"}


def test_no_event_is_named_twice() -> None:
    names = [event.name for event in documented()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("level", "is_on"), [("DEBUG", True), ("INFO", False), ("ERROR", False)])
def test_nobody_is_told_of_single_pushes_above_debug(level: str, is_on: bool) -> None:
    logger = logging.getLogger("listener.sending.trail")
    before = logger.level
    logger.setLevel(level)
    try:
        assert Trail(Tracing(), 1).is_on is is_on
    finally:
        logger.setLevel(before)


def test_debug_events_ask_first() -> None:
    """Each use of the trail on the way of a push stands behind a look at ``is_on``."""
    for name in ("dispatcher", "attempt", "result_writer"):
        lines = (ROOT / f"listener/sending/{name}.py").read_text().splitlines()
        uses = [
            n
            for n, line in enumerate(lines)
            if re.search(r"self\._trail\.(claimed|answered|settled)\(", line)
        ]
        assert uses
        for n in uses:
            assert any("if self._trail.is_on:" in line for line in lines[n - 2 : n])
