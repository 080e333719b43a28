"""What the page says of a push, of the queue and of the charts must be so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from listener.operating.verdict import Facts, verdict
from listener.web.page import shapes
from listener.web.page.history import Point, Series, Sums, series

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def test_it_does_not_say_sending_while_it_does_not_know_whether_anything_is_accepted() -> None:
    found = verdict(Facts(oldest_due=86_400.0, accepted=None, workers=1))
    assert not found.sentence.startswith("Sending")


def test_a_pause_of_yesterday_has_a_date() -> None:
    since = datetime.now(UTC) - timedelta(days=2)
    found = verdict(Facts(obstacles=["sending is paused"], pause="refused", paused_since=since, accepted=0))
    assert f"{since:%d}" in found.sentence or "days" in found.sentence


def test_the_mean_of_a_minute_weighs_each_rate_by_its_time() -> None:
    """600 pushes in 55 s, none in the 5 s after: 10 a second in this minute."""
    sums = [Sums(0, {}, 0.0), Sums(600, {}, 0.0), Sums(600, {}, 0.0)]
    points = [Point(NOON + at, each) for at, each in zip((0.0, 55.0, 59.9), sums, strict=True)]
    (row,) = shapes.minutes(series(points, (float("inf"),)))
    assert float(row.accepted) > 9.5


def test_the_sum_of_all_minutes_is_what_was_accepted() -> None:
    """Nobody watched for two minutes, in which 1,200 pushes were accepted; then points follow closely."""
    at = [NOON, NOON + 120.0, NOON + 125.0, NOON + 130.0]
    found = Series(
        at=at, accepted=[None, 10.0, 0.0, 0.0], oldest_due=[0.0] * 4, p50=[None] * 4, p99=[None] * 4
    )
    rows = shapes.minutes(found)
    assert len(rows) == 3  # 12:00, 12:01 and 12:02
    assert [row.accepted for row in rows if row.at.minute == 1] == ["10"]
