"""The faults that happen every week are over in seconds. ``python -m tests.chaos.recovery`` measures all of them."""

from __future__ import annotations

import pytest

from tests.chaos.recovery import measure_in
from tests.chaos.world import LEASE, world


@pytest.mark.timeout(300)
async def test_work_goes_on_soon() -> None:
    """One after the other, on one Postgres: to make one costs as much CPU time as two of the faults."""
    faults = []
    async with world(audited=False) as made:
        for name in ("listen", "kill", "restart", "crash"):
            found = await measure_in(made, name, f"{name}-")
            if found.last[0] >= LEASE:  # after which rows come back in any case
                faults.append(f"{name}: {found.last[0]:.1f} s")
    assert not faults, "\n".join(faults)
