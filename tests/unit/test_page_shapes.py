"""What the page makes of records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.operating.durations import duration
from listener.operating.filters import STATUSES, Filter
from listener.operating.records import Attempt, CodeGroup, Count, Revealed
from listener.web.page import shapes
from listener.web.page.history import Point, Series, Sums
from listener.web.page.history import series as series_of
from tests.support.page import AWAY, NASTY, now, series, snapshot, story

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

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
        "2026-01-31T12:00:00+00:00",
        "/pushes?status=dead&code=UNREGISTERED",
    )


def test_figures_that_nobody_can_know_are_not_zero() -> None:
    found = {figure.label: figure.value for figure in shapes.figures(snapshot(AWAY, figures=None))}
    assert {
        found[label] for label in ("Due now", "In flight", "Wait for a retry", "Scheduled", "Workers")
    } == {shapes.UNKNOWN}
    known = {figure.label: figure.value for figure in shapes.figures(snapshot())}
    assert (known["Due now"], known["Wait for a retry"], known["Workers"]) == ("3", "27", "2")


@pytest.mark.parametrize(
    ("seen", "known", "shown"),
    [
        (2, 2, ("2", "plain")),
        (0, 0, ("0", "bad")),
        (0, None, (shapes.UNKNOWN, "plain")),  # WAKEUP=sweep: Postgres sees no worker
        (1, None, ("1", "plain")),  # another process listens
    ],
)
def test_workers_that_nobody_can_see_are_not_called_none(
    seen: int, known: int | None, shown: tuple[str, str]
) -> None:
    found = snapshot()
    assert found.state.figures is not None
    assert found.pulse is not None
    changed = replace(
        found,
        pulse=replace(found.pulse, workers=seen),
        state=replace(found.state, figures=replace(found.state.figures, workers=known)),
    )
    (workers,) = [figure for figure in shapes.figures(changed) if figure.label == "Workers"]
    assert (workers.value, workers.tone) == shown


def test_before_the_first_reading_it_is_not_known_whether_workers_can_be_seen() -> None:
    found = snapshot(figures=None)
    assert found.pulse is not None
    (workers,) = [
        figure
        for figure in shapes.figures(replace(found, pulse=replace(found.pulse, workers=0)))
        if figure.label == "Workers"
    ]
    assert (workers.value, workers.tone) == (shapes.UNKNOWN, "plain")


def test_the_quota_is_called_close_where_the_alert_fires() -> None:
    tones = {
        used: next(
            figure.tone
            for figure in shapes.figures(snapshot(quota_used=used))
            if figure.label == "Quota used"
        )
        for used in (0.79, 0.8)
    }
    assert tones == {0.79: "plain", 0.8: "warn"}


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
    text = shapes.ending(story(status=status), NOW)
    assert text
    assert "Its status is" not in text


@pytest.mark.parametrize(
    ("due_in_s", "text"),
    [
        (60, "It waits for its time."),
        (-1, "It waits to be sent."),
        (-82_800, "It waits to be sent, 23 h after it was due."),
    ],
)
def test_a_pending_push_waits_for_its_time_only_until_it_is_due(due_in_s: int, text: str) -> None:
    found = story(status="pending")
    long_ago = NOW - timedelta(days=1)
    due = replace(
        found.line, created_at=long_ago, updated_at=long_ago, due_at=NOW + timedelta(seconds=due_in_s)
    )
    assert shapes.ending(replace(found, line=due), NOW) == text


def test_a_story_that_is_cut_counts_no_more_than_it_shows() -> None:
    """The log has more rows, and so there are more devices, and perhaps more copies."""
    found = story(status="sent")
    born = found.line.created_at
    attempts = [Attempt(born, 1, f"{n:08x}", None, "sent", None, None, None) for n in range(200)]
    attempts += [Attempt(born, 1, "aa", None, "unknown", None, None, None)]
    cut = replace(found, attempts=attempts, receipts=[], is_cut=True)
    assert "for at least 200 devices" in shapes.ending(cut, NOW)
    assert "at least 1 attempt had no clear answer" in (shapes.copies(cut) or "")


def test_copies_are_told_with_their_reason() -> None:
    assert "no clear answer" in (shapes.copies(story()) or "")
    clean = replace(story(), lost_claims=0, attempts=[story().attempts[0]])
    assert shapes.copies(clean) is None
    assert "more than once for 1 device" in (
        shapes.copies(replace(clean, attempts=[*clean.attempts, *clean.attempts])) or ""
    )


@pytest.mark.parametrize(
    ("attempts", "text"),
    [
        (0, "It is given up before any attempt."),
        (1, "It is given up at its first attempt."),
        (3, "It is given up after 3 attempts."),
    ],
)
def test_the_end_of_a_dead_push_says_how_often_it_was_tried(attempts: int, text: str) -> None:
    assert shapes.ending(replace(story(), delivery_attempts=attempts, attempts=[]), NOW) == text


def test_an_id_in_a_list_differs_from_that_of_the_next_push() -> None:
    """The first digits of a UUIDv7 are a time."""
    ids = [UUID("019ad0c5-8a11-7c3e-9d52-0b1d6f6a1c11"), UUID("019ad0c5-8a12-7b00-8a01-77d2e8c0ffee")]
    assert [shapes.short(each) for each in ids] == ["\u20266f6a1c11", "\u2026e8c0ffee"]


def test_what_is_too_long_is_cut_and_says_so() -> None:
    assert shapes.visible("x" * shapes.MOST_SHOWN) == "x" * shapes.MOST_SHOWN
    assert shapes.visible("\x1bxyz", 2) == "\u241bx\u2026 (cut here: 4 characters)"


def test_a_payload_is_no_longer_than_a_page_may_show() -> None:
    revealed = Revealed(None, None, "b", [[]] * 1_000_000, None, {"a": 1}, [f"token-{n}" for n in range(30)])
    found = shapes.payload(revealed)
    values = dict(found)
    assert shapes.MOST_SHOWN < len(values["Data"] or "") < shapes.MOST_SHOWN + 100
    assert values["Options"] == '{\n  "a": 1\n}'
    assert [name for name, _ in found].count("Token in the log") == shapes.MOST_IDS
    assert values["Tokens in the log"] == "30, of which 20 are shown"


@pytest.mark.parametrize("code", ["", "lower_case", "two words", "X" * 65, " UNREGISTERED"])
def test_a_code_that_no_filter_takes_has_no_link(code: str) -> None:
    group = CodeGroup("dead", code, Count(1, True), now())
    assert shapes.group_address("/push", group) is None


def test_a_code_leads_to_its_pushes() -> None:
    group = CodeGroup("dead", "UNREGISTERED", Count(1, True), now())
    assert shapes.group_address("/push", group) == "/push/pushes?status=dead&code=UNREGISTERED"


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:00-14:00", "soon"])
def test_a_time_in_a_record_that_is_none_here_is_a_text(value: str) -> None:
    assert shapes.moment_of("since", value) is None


def test_a_filter_in_words() -> None:
    user = UUID("6f1e0c9a-7a64-4f0e-9d52-0b1d6f6a1c11")
    assert (
        shapes.described(Filter("dead", user, "UNREGISTERED"))
        == "dead pushes, code UNREGISTERED, of user \u20266f6a1c11"
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
