"""What a worker asks before it sleeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from listener.metrics.own import Metrics
from listener.postgres.frontier import Frontier
from listener.postgres.locks import LockWatch
from listener.postgres.queue import Queue, Sweep
from listener.sending.behind import LooksBehind
from listener.sending.held import HeldRows
from listener.sending.reach import Reach
from listener.sending.sleeper import Sleeper
from listener.wakeup.waker import SweepingWaker


async def test_a_timer_that_fires_a_moment_early_leads_to_a_sweep_and_to_no_other_statement() -> None:
    """uvloop's timers do so now and then: an idle process would ask twice."""
    asked = []

    async def sweep(*_: object) -> Sweep:
        asked.append("sweep")
        return Sweep(
            None,
            polling_locked=False,
            registered=True,
            guarded=True,
            has_foreign_triggers=False,
            is_restricted=False,
            strangers=[],
        )

    async def earliest(*_: object) -> None:
        asked.append("earliest")

    metrics = Metrics()
    queue = cast(Queue, SimpleNamespace(sweep=sweep, earliest=earliest, frontier=Frontier()))
    held, waker = HeldRows(metrics, lease=120.0), SweepingWaker()
    sleeper = Sleeper(
        queue,
        waker,
        held,
        LooksBehind(queue, held, waker.look, metrics),
        Reach(metrics),
        LockWatch(metrics),
        sweep_interval=0.005,
    )
    for _ in range(3):
        await sleeper.ask_or_sweep()  # within ten milliseconds of the next sweep
    assert asked == ["sweep", "sweep", "sweep"]
    sleeper._sweep_interval = 60.0
    await sleeper.ask_or_sweep()
    await sleeper.ask_or_sweep()
    assert asked == ["sweep", "sweep", "sweep", "sweep", "earliest"]
