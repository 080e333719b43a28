"""SIGTERM while the database is silent: the end does not wait for an answer."""

from __future__ import annotations

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
        await listener.end()  # fails after 20 s; a statement waits for its answer for 30 s
        assert listener.code == 0
