"""What the page says of a push, of the queue and of the charts must be so."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from listener.operating.records import Attempt, Count, WorkerLine
from listener.web.page import shapes
from tests.support.page import story

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def test_a_push_that_is_overdue_does_not_wait_for_its_time() -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    found = story(status="pending")
    line = replace(
        found.line, created_at=yesterday, updated_at=yesterday, due_at=yesterday + timedelta(hours=1)
    )
    assert shapes.ending(replace(found, line=line)) != "It waits for its time."


def test_a_story_that_is_cut_does_not_say_how_many_devices_there_are() -> None:
    found = story(status="sent")
    attempts = [
        Attempt(found.line.created_at, 1, f"{n:08x}", None, "sent", None, None, None) for n in range(200)
    ]
    assert "of 200 devices" not in shapes.ending(replace(found, attempts=attempts, receipts=[], is_cut=True))


def test_a_worker_that_holds_no_lock_is_not_called_unseen() -> None:
    from listener.web.page.views import _TEMPLATES

    worker = WorkerLine(4, "web.1", datetime.now(UTC), None, False, False, Count(3, True), is_guarded=False)
    text = _TEMPLATES.get_template("_workers.html").render(workers=[worker], own=4)
    assert "not seen" not in text
