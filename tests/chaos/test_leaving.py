"""SIGTERM while the database is silent: who waits for it must not wait for its answer."""

from __future__ import annotations

import time

import pytest

from tests.chaos.recovery import Arrivals, insert
from tests.chaos.world import world

GRACE = 3.0


@pytest.mark.parametrize("busy", [False, True])
async def test_it_leaves_in_time_although_the_network_to_the_database_is_a_black_hole(busy: bool) -> None:
    async with world(audited=False, latency=1.0) as made:
        listener = await made.start(settings={"shutdown_grace": f"{GRACE:g}", "listen_check_interval": "1"})
        await listener.program.said("ready")
        if busy:
            arrivals = Arrivals(made)
            await insert(made, 20, "phone-")
            await arrivals.until(20)
        listener.postgres.hole()
        await insert(made, 20, "more-")
        began = time.monotonic()
        await listener.end()
        assert listener.code == 0
        assert time.monotonic() - began < GRACE + 5
