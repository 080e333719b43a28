"""What the page makes of records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.operating.durations import duration
from listener.operating.filters import STATUSES, Filter
from listener.web.page import shapes
from listener.web.page.history import Point, Series, Sums
from listener.web.page.history import series as series_of
from tests.support.page import AWAY, NASTY, series, snapshot, story

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def test_every_status_has_a_tone() -> None:
    assert set(STATUSES) <= set(shapes.TONES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.041, "41 ms"),
        (0.2, "0.2 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (192, "3 min 12 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_time_span_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1))
def test_what_is_used_never_shows_as_nothing_and_all_only_as_all(part: float) -> None:
    assert (shapes.percent(part) == "0 %") == (part == 0)
    assert (shapes.percent(part) == "100 %") == (part == 1)


@given(st.text())
def test_control_and_bidi_characters_are_made_visible(text: str) -> None:
    shown = shapes.visible(text)
    assert not any(ord(sign) < 0x20 or 0x7F <= ord(sign) < 0xA0 for sign in shown)
    assert not set(shown) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_what_is_no_control_character_stays() -> None:
    assert shapes.visible(NASTY) == "<img src=x onerror=alert(1)> [red]\u241b[2J\ufffdgnp"


def test_an_address_leaves_out_what_is_empty_and_escapes_the_rest() -> None:
    values = {"status": "dead", "user": None}
    found = shapes.address("/push", "/pushes", values, code="", after="a b&c", status="sent")
    assert found == "/push/pushes?status=sent&after=a+b%26c"


def test_a_chip_leads_to_the_list_without_its_condition() -> None:
    applied = Filter(status="dead", code="UNREGISTERED", since=datetime(2026, 1, 31, 12, tzinfo=UTC))
    code, since = shapes.chips("", applied)
    assert (code.value, code.without) == (
        "UNREGISTERED",
        "/pushes?status=dead&since=2026-01-31T12:00:00%2B00:00",
    )
    assert (since.value, since.without) == (
        "2026-01-31 12:00:00 UTC",
        "/pushes?status=dead&code=UNREGISTERED",
    )


def test_figures_that_nobody_can_know_are_not_zero() -> None:
    found = {figure.label: figure.value for figure in shapes.figures(snapshot(AWAY, figures=None))}
    assert {
        found[label] for label in ("Due now", "In flight", "Wait for a retry", "Scheduled", "Workers")
    } == {shapes.UNKNOWN}
    known = {figure.label: figure.value for figure in shapes.figures(snapshot())}
    assert (known["Due now"], known["Wait for a retry"], known["Workers"]) == ("3", "27", "2")


def test_the_table_of_the_charts_has_a_row_for_each_minute_and_dashes_for_gaps() -> None:
    at = [60.0, 90.0, 120.0, 150.0]
    found = shapes.minutes(
        Series(
            at,
            [None, 3.0, None, None],
            {"A": [None, 0.5, None, None]},
            [0.0, 7.0, 1.0, 2.0],
            [None] * 4,
            [None] * 4,
        )
    )
    assert [(row.at.timestamp(), row.accepted, row.failed, row.oldest_due, row.p50) for row in found] == [
        (120.0, shapes.UNKNOWN, shapes.UNKNOWN, "2.0 s", shapes.UNKNOWN),
        (60.0, "3", "0.50", "7.0 s", shapes.UNKNOWN),
    ]


def test_the_codes_beyond_the_most_frequent_ones_are_one_line() -> None:
    many = {f"CODE_{number}": [float(number), None] for number in range(9)}
    drawn = shapes.chart_data(replace(Series(), at=[1.0, 2.0], failed=many))["failed"]
    assert isinstance(drawn, dict)
    assert list(drawn) == ["CODE_8", "CODE_7", "CODE_6", "CODE_5", "CODE_4", "other"]
    assert drawn["other"] == [6.0, None]


def test_the_end_of_the_charts_is_the_end_of_each_line() -> None:
    whole, end = shapes.chart_data(series(0.0)), shapes.chart_data(series(0.0), last=5)
    assert end["at"] == whole["at"][-5:]  # type: ignore[index]
    assert end["p99"] == whole["p99"][-5:]  # type: ignore[index]


def test_a_story_is_told_in_order_of_time() -> None:
    found = shapes.moments(story())
    assert [moment.what for moment in found] == [
        "inserted",
        "accepted by FCM",
        "no clear answer",
        "refused",
        "shown on the device",
        "accepted by FCM",
        "opened",
        "refused",
    ]
    assert found[-1].since_insert == "+1 min 5 s"


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_an_ending_of_its_own(status: str) -> None:
    text = shapes.ending(story(status=status))
    assert text
    assert "Its status is" not in text


def test_copies_are_told_with_their_reason() -> None:
    assert "no clear answer" in (shapes.copies(story()) or "")
    clean = replace(story(), lost_claims=0, attempts=[story().attempts[0]])
    assert shapes.copies(clean) is None
    assert "more than once for 1 device" in (
        shapes.copies(replace(clean, attempts=[*clean.attempts, *clean.attempts])) or ""
    )


def test_a_filter_in_words() -> None:
    user = UUID("6f1e0c9a-7a64-4f0e-9d52-0b1d6f6a1c11")
    assert (
        shapes.described(Filter("dead", user, "UNREGISTERED"))
        == "dead pushes, code UNREGISTERED, of user 6f1e0c9a"
    )
    assert shapes.described(Filter()) == "all pushes"


def test_the_mean_of_a_minute_weighs_each_rate_by_its_time() -> None:
    """600 pushes in 55 s, none in the 5 s after: 10 a second in this minute."""
    sums = [Sums(0, {}, 0.0), Sums(600, {}, 0.0), Sums(600, {}, 0.0)]
    points = [Point(NOON + at, each) for at, each in zip((0.0, 55.0, 59.9), sums, strict=True)]
    (row,) = shapes.minutes(series_of(points, (float("inf"),)))
    assert float(row.accepted) > 9.5


def test_a_rate_counts_in_each_minute_that_it_is_of() -> None:
    """Nobody watched for two minutes, in which 1,200 pushes were accepted; then points follow closely."""
    at = [NOON, NOON + 120.0, NOON + 125.0, NOON + 130.0]
    found = Series(
        at=at, accepted=[None, 10.0, 0.0, 0.0], oldest_due=[0.0] * 4, p50=[None] * 4, p99=[None] * 4
    )
    rows = shapes.minutes(found)
    assert len(rows) == 3  # 12:00, 12:01 and 12:02
    assert [row.accepted for row in rows if row.at.minute == 1] == ["10"]


def test_with_sweep_the_number_of_workers_is_not_known() -> None:
    """Postgres sees no worker then; figures.workers says so by None, and the verdict leaves it out."""
    found = snapshot()
    assert found.state.figures is not None
    assert found.pulse is not None
    sweeping = replace(
        found,
        pulse=replace(found.pulse, workers=0),
        state=replace(found.state, figures=replace(found.state.figures, workers=None)),
    )
    (workers,) = [figure for figure in shapes.figures(sweeping) if figure.label == "Workers"]
    assert (workers.value, workers.tone) == (shapes.UNKNOWN, "plain")
