"""The faults that happen every week are over in seconds. ``python -m tests.chaos.recovery`` measures all of them."""

from __future__ import annotations

import pytest

from tests.chaos.recovery import measure
from tests.chaos.world import LEASE


@pytest.mark.timeout(200)
@pytest.mark.parametrize("fault", ["kill", "listen", "restart", "crash"])
async def test_work_goes_on_soon(fault: str) -> None:
    [recovery] = await measure([fault], 1)
    assert recovery.last[0] < LEASE  # after which rows come back in any case
