"""SIGTERM while the database is silent: the end does not wait for an answer."""

from __future__ import annotations

from tests.chaos.recovery import Arrivals, insert
from tests.chaos.world import World, world

GRACE = 1.0


async def test_it_leaves_in_time_although_the_network_to_the_database_is_a_black_hole() -> None:
    async with world(audited=False, latency=1.0) as made:
        assert [await _left(made, busy=busy) for busy in (False, True)] == [0, 0]


async def _left(made: World, *, busy: bool) -> int | None:
    """The exit code, idle or with results that wait to be written."""
    listener = await made.start(settings={"shutdown_grace": f"{GRACE:g}", "listen_check_interval": "1"})
    await listener.program.said("ready")
    if busy:
        arrivals = Arrivals(made)
        await insert(made, 20, "phone-")
        await arrivals.until(20, lambda exchange: exchange.target.startswith("phone-"))
    listener.postgres.hole()
    await insert(made, 20, "more-")
    await listener.end()  # fails after 20 s; a statement waits for its answer for 30 s
    return listener.code
