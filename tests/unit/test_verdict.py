"""The sentence on the first screen: by the rules of /readyz and of the alerts."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.limits.health import Pause
from listener.metrics.labels import PAUSES
from listener.operating.verdict import (
    ACCEPTED_WITHIN_S,
    LATE_S,
    OLD_S,
    STALLED_S,
    Facts,
    duration,
    verdict,
)

ROOT = Path(__file__).parents[2]
WELL = Facts(oldest_due=0.2, accepted=10, workers=2)
SINCE = datetime(2026, 3, 1, 12, 3, 59, tzinfo=UTC)

any_facts = st.builds(
    Facts,
    obstacles=st.lists(st.sampled_from(["stopping", "not listening for new rows", "the database is read-only"])),
    pause=st.none() | st.sampled_from(PAUSES),
    paused_since=st.none() | st.just(SINCE),
    database=st.none() | st.just("there is no answer in time"),
    oldest_due=st.none() | st.floats(0, 1e7),
    accepted=st.none() | st.integers(0, 3),
    workers=st.none() | st.integers(0, 3),
    platforms=st.lists(st.sampled_from(["ios", "web"]), unique=True),
    unwritable=st.integers(0, 2000),
)  # fmt: skip


@settings(deadline=None)
@given(any_facts)
def test_it_is_a_sentence_and_says_what_to_do_about_trouble(facts: Facts) -> None:
    found = verdict(facts)
    assert re.fullmatch(r"[A-Z].*\.", found.sentence)
    assert found.remedy or found.level != "trouble"


@settings(deadline=None)
@given(any_facts)
def test_all_is_well_only_if_readyz_says_so_and_no_push_is_late(facts: Facts) -> None:
    is_well = verdict(facts).level == "ok"
    assert is_well is (
        not facts.obstacles
        and facts.pause is None
        and facts.database is None
        and not facts.platforms
        and not facts.unwritable
        and facts.oldest_due is not None
        and facts.oldest_due <= LATE_S
    )


@settings(deadline=None)
@given(any_facts, st.floats(0, 1e7))
def test_a_longer_wait_is_never_better(facts: Facts, longer: float) -> None:
    levels = ["ok", "attention", "trouble"]
    if facts.oldest_due is not None:
        worse = replace(facts, oldest_due=facts.oldest_due + longer)
        assert levels.index(verdict(worse).level) >= levels.index(verdict(facts).level)


@settings(deadline=None)
@given(any_facts)
def test_every_obstacle_is_named_unless_the_pause_is(facts: Facts) -> None:
    if facts.pause is None and "stopping" not in facts.obstacles[:1]:
        assert all(obstacle in verdict(facts).sentence for obstacle in facts.obstacles)


@pytest.mark.parametrize(
    ("facts", "level", "sentence"),
    [
        (WELL, "ok", "Sending; the oldest due push has waited 0.2 s."),
        (replace(WELL, oldest_due=0.0, accepted=0), "ok", "Sending; no push is due."),
        (
            replace(WELL, pause="refused", paused_since=SINCE, accepted=None, obstacles=["sending is paused: x"]),
            "trouble",
            "Paused since 12:03 UTC: FCM refuses our credentials, permissions or project. "
            "Pushes wait and lose no tries.",
        ),
        (
            replace(WELL, pause="away", paused_since=SINCE),
            "attention",
            "This process has paused since 12:03 UTC: FCM does not answer. Others go on sending.",
        ),
        (
            replace(WELL, database="x", oldest_due=None, obstacles=["the database cannot be reached"]),
            "trouble",
            "No push goes out from here: the database cannot be reached.",
        ),
        (
            replace(WELL, database="x", oldest_due=None),
            "attention",
            "This page cannot read the database, so it does not know how the queue is; this process can work.",
        ),
        (
            replace(WELL, oldest_due=75.0, accepted=0),
            "trouble",
            "No push goes out: the oldest due push has waited 75 s, and FCM has accepted none for 2 minutes.",
        ),
        (replace(WELL, oldest_due=75.0), "attention", "Sending, but late: the oldest due push has waited 75 s."),
        (
            replace(WELL, oldest_due=7200.0),
            "attention",
            "Sending, but some pushes are late: the oldest due push has waited 2.0 h.",
        ),
        (
            replace(WELL, workers=0, accepted=None, obstacles=["not listening for new rows"]),
            "trouble",
            "No worker is alive, so no push goes out: not listening for new rows.",
        ),
        (
            replace(WELL, obstacles=["not listening for new rows"]),
            "attention",
            "Pushes go out, but this process has a problem: not listening for new rows.",
        ),
        (
            replace(WELL, obstacles=["stopping", "x"]),
            "attention",
            "This process is stopping; it claims no more pushes.",
        ),
        (
            replace(WELL, unwritable=3),
            "attention",
            "Sending; the oldest due push has waited 0.2 s, but 3 cannot be written.",
        ),
        (
            replace(WELL, platforms=["web", "ios"]),
            "trouble",
            "Nothing is sent to ios and web: Apple or the web push service refuses FCM's credentials, or has a "
            "problem. The other pushes go out.",
        ),
    ],
)  # fmt: skip
def test_examples(facts: Facts, level: str, sentence: str) -> None:
    found = verdict(facts)
    assert (found.level, found.sentence) == (level, sentence)


@pytest.mark.parametrize("kind", PAUSES)
def test_a_pause_is_told_in_the_words_of_readyz_and_with_a_remedy_of_its_own(kind: str) -> None:
    found = verdict(replace(WELL, pause=kind, accepted=None))
    words = Pause[kind.upper()].partition(";")[0]
    assert words in found.sentence
    assert "doctor" not in found.remedy
    assert [other.lower() for other in Pause.__members__ if other.lower() == kind] == [kind]


def test_the_limits_are_those_of_the_alerts() -> None:
    alerts = (ROOT / "docs/alerts.md").read_text()
    assert f"within {LATE_S:g} s of being due" in alerts
    stalled = next(line for line in alerts.splitlines() if "#queuestalled" in line)
    assert f"more than {STALLED_S:g} s ago" in stalled
    assert f"none for {ACCEPTED_WITHIN_S / 60:g} minutes" in stalled
    old = next(line for line in alerts.splitlines() if "#queueold" in line)
    assert f"more than {OLD_S:g} s ago" in old


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0.0 s"), (0.24, "0.2 s"), (9.4, "9.4 s"), (12.3, "12 s"), (89.0, "89 s"), (90.0, "2 min"),
     (600.0, "10 min"), (5400.0, "1.5 h"), (40_000.0, "11 h"), (86_400.0 * 3, "3 days")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
