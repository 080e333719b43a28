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
    DEAD,
    FAILED,
    FAILED_SHARE,
    LATE_S,
    OLD_S,
    RETRYING,
    STALLED_S,
    USUAL_CODES,
    Facts,
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
    is_due=st.booleans(),
    retrying=st.integers(0, 20),
    dead=st.dictionaries(st.sampled_from(["INTERNAL", "UNREGISTERED", ""]), st.integers(1, 9)),
    ended=st.tuples(st.integers(0, 200), st.integers(0, 60)),
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
        and all(number < DEAD for code, number in facts.dead.items() if code not in USUAL_CODES)
        and (facts.ended[1] < FAILED or facts.ended[1] <= FAILED_SHARE * sum(facts.ended))
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
            "Paused since 2026-03-01 12:03 UTC: FCM refuses our credentials, permissions or project. "
            "Pushes wait and lose no tries.",
        ),
        (
            replace(WELL, pause="away", paused_since=SINCE),
            "attention",
            "This process has paused since 2026-03-01 12:03 UTC: FCM does not answer. Others go on sending.",
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
            "No push goes out: the oldest due push has waited 1 min 15 s, and FCM has accepted none for 2 minutes.",
        ),
        (replace(WELL, oldest_due=75.0), "attention", "Sending, but late: the oldest due push has waited 1 min 15 s."),
        (
            replace(WELL, oldest_due=7200.0),
            "attention",
            "Sending, but some pushes are late: the oldest due push has waited 2 h.",
        ),
        (
            replace(WELL, oldest_due=86_400.0, accepted=None),
            "attention",
            "Late: the oldest due push has waited 1 d. Whether FCM accepts any push is not known yet.",
        ),
        (
            replace(WELL, oldest_due=75.0, accepted=0, is_due=False, retrying=RETRYING),
            "trouble",
            "No push goes out: the oldest due push has waited 1 min 15 s, and FCM has accepted none for 2 minutes.",
        ),
        (
            replace(WELL, oldest_due=75.0, accepted=0, is_due=False, retrying=1),
            "attention",
            "Late: the oldest due push has waited 1 min 15 s, and waits for its next try.",
        ),
        (
            replace(WELL, dead={"INTERNAL": 5, "INVALID_ARGUMENT": 1200, "": 4, "UNREGISTERED": 900}),
            "attention",
            "Pushes were given up in the last hour: 1,200 with INVALID_ARGUMENT, 5 with INTERNAL.",
        ),
        (
            replace(WELL, ended=(60, 20)),
            "attention",
            "Of the pushes that ended in the last 15 minutes, 25% failed.",
        ),
        (replace(WELL, ended=(80, 20)), "ok", "Sending; the oldest due push has waited 0.2 s."),
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
    letters = next(line for line in alerts.splitlines() if "#deadletters" in line)
    assert f"at least {DEAD} dead with one code within an hour" in letters
    rule = (ROOT / "deploy/prometheus/rules/causes.yml").read_text()
    usual = re.search(r'push_dead_total\{code!~"([A-Z_|]+)"', rule)
    assert usual is not None
    assert {*usual[1].split("|"), "EXPIRED"} == USUAL_CODES
    ratio = next(line for line in alerts.splitlines() if "#failureratio" in line)
    assert f"more than {FAILED_SHARE:.0%} of the requests failed in 15 minutes, at least {FAILED}" in ratio
    assert f"at least {RETRYING} requests failed" in stalled


@pytest.mark.parametrize("accepted", [0, 9])
def test_the_time_of_a_pause_can_be_written_in_another_zone(accepted: int) -> None:
    found = verdict(replace(WELL, pause="away", paused_since=SINCE, accepted=accepted))
    before, after = found.around_since
    assert f"{before}2026-03-01 12:03 UTC{after}" == found.sentence
    assert before.endswith("since ")
    assert found.since == SINCE
    assert verdict(WELL).around_since == (verdict(WELL).sentence, "")
