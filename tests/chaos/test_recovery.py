"""The faults that happen every week are over in seconds. ``python -m tests.chaos.recovery`` measures all of them."""

from __future__ import annotations

import pytest

from tests.chaos.recovery import measure

_SLACK = 5.0
"""Seconds that a busy machine may take beyond the bound of docs/guarantees.md."""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("fault", ["kill", "listen", "restart", "crash"])
async def test_work_goes_on_soon(fault: str) -> None:
    [recovery] = await measure([fault], 1)
    assert recovery.last[0] < recovery.bound + _SLACK
