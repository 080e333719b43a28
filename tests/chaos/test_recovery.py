"""The faults that happen every week are over in seconds. ``python -m tests.chaos.recovery`` measures all of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.recovery import measure
from tests.chaos.world import LEASE


@pytest.mark.timeout(200)
async def test_work_goes_on_soon() -> None:
    """All at once: each has a Postgres of its own, and waits for most of the time."""
    names = ("kill", "listen", "restart", "crash")
    found = await asyncio.gather(*(measure([name], 1) for name in names), return_exceptions=True)
    faults = []
    for name, one in zip(names, found, strict=True):
        if isinstance(one, BaseException):
            faults.append(f"{name}: {one!r}")
        elif one[0].last[0] >= LEASE:  # after which rows come back in any case
            faults.append(f"{name}: {one[0].last[0]:.1f} s")
    assert not faults, "\n".join(faults)
