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


class Looks(threading.Event):
    """In place of the event that its end sets: its thread looks once for each turn of the loop, however slow."""

    def __init__(self, watchdog: Watchdog) -> None:
        super().__init__()
        self._watchdog = watchdog
        self._next = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self._next.acquire()
        return self.is_set()

    def set(self) -> None:
        super().set()
        self._next.release()

    async def look(self) -> None:
        """Lets the loop turn, and the thread look."""
        turns = self._watchdog._turns
        while self._watchdog._turns == turns:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.001)
        self._next.release()


@asynccontextmanager
async def watched(watchdog: Watchdog, said: Said) -> AsyncIterator[Said]:
    """A watchdog at work, which leaves no thread to the next test."""
    before = set(threading.enumerate())
    running = asyncio.create_task(watchdog.run())
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
    said = Said()
    async with watched(Watchdog(Metrics(), timeout=0.2, on_stuck=said, tick=0.01), said):
        await asyncio.sleep(0.05)
        assert said.event.wait(30)  # it blocks the loop
        assert said.what[0] == "the event loop"


async def test_a_worker_without_progress_is_stuck() -> None:
    metrics, said = Metrics(), Said()
    metrics.progress.set_to_current_time()
    watchdog = Watchdog(metrics, timeout=0.2, on_stuck=said, tick=0.001)
    watchdog._ended = looks = Looks(watchdog)
    async with watched(watchdog, said), asyncio.timeout(30):
        while not said.what:
            await looks.look()
    assert said.what[0] == "the worker"


async def test_a_worker_with_progress_and_a_service_without_a_worker_are_not_stuck() -> None:
    """One that waits for its database, say. The thread looks five times as often as it needs."""
    metrics, said = Metrics(), Said()
    watchdog = Watchdog(metrics, timeout=0.1, on_stuck=said, tick=0.001)
    watchdog._ended = looks = Looks(watchdog)
    async with watched(watchdog, said):
        for n in range(100):
            metrics.progress.set(float(n) if n < 50 else None)
            await looks.look()
    assert said.what == []


async def test_its_thread_ends_with_the_service() -> None:
    """And at once: it does not wait for its next look, which is a minute away. `watched` asserts that it has ended."""
    said = Said()
    async with watched(Watchdog(Metrics(), timeout=600.0, on_stuck=said, tick=0.001), said):
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
