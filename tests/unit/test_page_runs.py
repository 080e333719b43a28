"""The actions on all that match that a process performs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from listener.operating.acting import Run
from listener.operating.filters import Filter, FilterFault
from listener.web.page.runs import Runs, TooManyRuns
from tests.support.page import FakeActing

_Ids = Callable[[str | None], Awaitable[tuple[list[UUID], str | None]]]


def run_over(ids: _Ids) -> Run:
    return Run(
        cast(Any, FakeActing()),
        ids,
        what="requeue",
        who="anna",
        reason="why",
        filter=Filter(),
        until=datetime(2026, 1, 31, tzinfo=UTC),
    )


async def none(after: str | None) -> tuple[list[UUID], str | None]:
    return [], None


async def faulty(after: str | None) -> tuple[list[UUID], str | None]:
    raise FilterFault(["a payload"])


async def endless(after: str | None) -> tuple[list[UUID], str | None]:
    await asyncio.sleep(0)
    return [], "on"


async def over(run: Run) -> None:
    while not run.progress.is_over:  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_run_that_a_fault_has_ended_does_not_look_done(caplog: pytest.LogCaptureFixture) -> None:
    runs, run = Runs(), run_over(faulty)
    runs.start(run, "asked")
    await over(run)
    assert "the log says where" in (runs.fault(run.id) or "")
    assert "payload" not in caplog.text + (runs.fault(run.id) or "")
    await runs.close()


async def test_what_is_asked_twice_is_one_run() -> None:
    runs, first, second = Runs(), run_over(endless), run_over(endless)
    assert runs.start(first, ("anna", 1)) == first.id
    assert runs.start(second, ("anna", 1)) == first.id
    assert runs.get(second.id) is None
    runs.abort(first.id)
    await over(first)
    assert runs.start(second, ("anna", 1)) == first.id
    assert runs.start(second, ("anna", 2)) == second.id
    await runs.close()


async def test_what_a_fault_has_ended_can_be_asked_for_again() -> None:
    runs, first, second = Runs(), run_over(faulty), run_over(none)
    runs.start(first, "asked")
    await over(first)
    assert runs.start(second, "asked") == second.id
    await over(second)
    assert runs.fault(second.id) is None
    await runs.close()


async def test_no_more_than_a_few_are_at_work() -> None:
    runs = Runs(at_work=2)
    started = [run_over(endless) for _ in range(2)]
    for number, run in enumerate(started):
        runs.start(run, number)
    with pytest.raises(TooManyRuns):
        runs.start(run_over(none), "one more")
    runs.abort(started[0].id)
    await over(started[0])
    runs.start(run_over(none), "one more")
    await runs.close()


async def test_the_newest_ones_are_remembered() -> None:
    runs, done = Runs(remembered=2), [run_over(none) for _ in range(4)]
    for number, run in enumerate(done):
        runs.start(run, number)
        await over(run)
    assert [runs.get(run.id) is not None for run in done] == [False, False, True, True]
    again = run_over(none)
    assert runs.start(again, 0) == again.id
    await runs.close()
