"""The watchdog ends what is stuck, and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from listener.metrics.own import Metrics
from listener.watchdog import Watchdog, main_stack


class Said:
    """What the watchdog has called stuck."""

    def __init__(self) -> None:
        self.what: list[str] = []
        self.event = threading.Event()

    def __call__(self, what: str) -> None:
        self.what.append(what)
        self.event.set()


@asynccontextmanager
async def watched(*, stuck_after: float, tick: float) -> AsyncIterator[Said]:
    """A watchdog at work, which leaves no thread to the next test."""
    said, before = Said(), set(threading.enumerate())
    running = asyncio.create_task(Watchdog(Metrics(), timeout=stuck_after, on_stuck=said, tick=tick).run())
    await asyncio.sleep(0)  # it starts its thread
    (thread,) = [each for each in threading.enumerate() if each.name == "watchdog" and each not in before]
    try:
        yield said
    finally:
        running.cancel()
        await asyncio.wait({running})
        await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()


async def test_a_loop_that_does_not_turn_is_stuck() -> None:
    async with watched(stuck_after=0.2, tick=0.01) as said:
        await asyncio.sleep(0.05)
        assert said.event.wait(30)  # it blocks the loop
        assert said.what[0] == "the event loop"


def checked(watchdog: Watchdog) -> str | None:
    """What a check finds after a turn of the loop."""
    watchdog._turns += 1
    return watchdog._check()


def test_a_worker_without_progress_is_stuck() -> None:
    metrics = Metrics()
    metrics.progress.set_to_current_time()
    watchdog = Watchdog(metrics, timeout=1.0, on_stuck=Said())
    assert [checked(watchdog) for _ in range(11)] == [None] * 10 + ["the worker"]


def test_a_worker_with_progress_and_a_service_without_a_worker_are_not_stuck() -> None:
    """The second waits for its database, say. Ten checks without progress would be enough."""
    metrics = Metrics()
    watchdog = Watchdog(metrics, timeout=1.0, on_stuck=Said())
    for n in range(100):
        metrics.progress.set(float(n) if n < 50 else None)
        assert checked(watchdog) is None


async def test_its_thread_ends_with_the_service() -> None:
    """And at once: it does not wait for its next look, which is a minute away. `watched` asserts that it has ended."""
    async with watched(stuck_after=600.0, tick=0.001) as said:
        pass
    assert said.what == []


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 5.0)), min_size=1))
def test_the_lag_is_the_longest_of_the_last_half_minute(steps: list[tuple[float, float]]) -> None:
    watchdog = Watchdog(Metrics(), timeout=0.0, on_stuck=lambda what: None)
    now, seen = 0.0, []
    for pause, late in steps:
        now += pause
        seen.append((now, late))
        assert watchdog._longest(late, now) == max(each for at, each in seen if at >= now - 30.0)


def test_the_stack_names_functions_and_no_values() -> None:
    assert any("test_the_stack_names_functions_and_no_values" in line for line in main_stack())


_STUCK = """
import asyncio, time
from listener import log, process
from listener.metrics.own import Metrics
from listener.watchdog import Watchdog

log.configure("json", "info")

def hang():
    time.sleep(600)

async def main():
    watching = asyncio.create_task(Watchdog(Metrics(), timeout=0.2, on_stuck=process.exit_stuck, tick=0.01).run())
    await asyncio.sleep(0)  # it starts its thread
    hang()

process.run(main())
"""


def test_a_stuck_process_ends_and_says_where_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", _STUCK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (told,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (told["event"], told["what"]) == ("the process is stuck, and ends itself", "the event loop")
    assert any(" hang" in line for line in told["at"])
