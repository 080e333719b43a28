"""Every fault once, in a minute, and every promise held against every row. ``make chaos`` does it for longer."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.chaos.faults import ACTS, plan
from tests.chaos.run import run, show

_SECONDS = 45.0


def test_a_seed_decides_which_faults_come_when() -> None:
    assert plan(3, 250) == plan(3, 250)
    assert plan(3, 250) != plan(4, 250)
    assert {step.fault for step in plan(3, _SECONDS)} == set(ACTS)
    assert all(0 < step.at < 250 for step in plan(3, 250))


@pytest.mark.timeout(400)
async def test_every_promise_is_kept_under_every_fault(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = await run(seed, _SECONDS, refused_pause=5.0)
    with capsys.disabled():
        print()
        show(result, Console(highlight=False, width=120))
    assert not result.findings.violations
    assert {event.fault for event in result.events} == set(ACTS)
    # A run in which hardly anything happens proves nothing.
    assert result.findings.counts["rows committed"] > 1000
    # Claims of the process that SIGKILL ended. The fault "workers forgotten" may come before the rescue: then the peers
    # do not know that the process ever lived, and take its claims when the lease ends.
    taken_over = ("claims rescued from dead workers", "claims whose lease ran out")
    assert sum(result.findings.counts[fate] for fate in taken_over) > 0
    assert result.findings.counts["lost"] == result.findings.counts["stuck"] == 0
