"""However inserts, commits, rollbacks, sleeps and deaths interleave: no committed row waits for the sweep.

The sweep comes once an hour here, so a wake-up that is lost shows. Now and then so much comes that a listener polls,
and nobody rings: what is inserted meanwhile may be committed when it sleeps again, or is dead.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from psycopg import AsyncConnection, sql

from listener.postgres.locks import CHANNEL
from tests.chaos.recovery import Arrivals
from tests.chaos.world import LEASE, Listener, World, world

WRITERS = 3
CROWD = 250
"""Transactions, one after another, that make a listener get up."""

_LOUD = """
do $$ declare one uuid; begin
  foreach one in array {}::uuid[] loop
    insert into push_notifications (id, device_token, title) values (one, 'phone', 't'); commit;
  end loop;
end $$
"""

_steps = st.one_of(
    st.tuples(st.just("insert"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("insert"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("commit"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("commit"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("rollback"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("sleep"), st.integers(0, 30)),
    st.tuples(st.just("sleep"), st.integers(0, 150)),
    st.tuples(st.just("crowd"), st.just(0)),
    st.tuples(st.just("crowd"), st.just(0)),
    st.tuples(st.just("deaf"), st.just(0)),
    st.tuples(st.just("kill"), st.integers(0, 1)),
)


class Play:
    """Three writers and two listeners."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.arrivals = Arrivals(made)
        self.listeners: list[Listener] = []
        self.writers: list[AsyncConnection[tuple[object, ...]]] = []
        self.polls_begun = 0

    async def open(self, stack: AsyncExitStack) -> None:
        for _ in range(WRITERS):
            self.writers.append(
                await stack.enter_async_context(await AsyncConnection.connect(self.world.database.dsn))
            )
        self.crowd = await stack.enter_async_context(await self.world.admin())
        self.ear = await stack.enter_async_context(await self.world.admin())
        await self.ear.execute(f"listen {CHANNEL}")
        self.listeners = [await self._start(), await self._start()]
        for listener in self.listeners:
            await listener.program.said("ready")

    async def _start(self) -> Listener:
        return await self.world.start(settings={"fcm_quota": "600000"})

    async def script(self, steps: list[tuple[str, int]]) -> None:
        open_rows: list[list[UUID]] = [[] for _ in range(WRITERS)]
        committed: dict[UUID, float] = {}
        crowds: set[UUID] = set()
        deaths: list[asyncio.Task[None]] = []
        for what, which in [*steps, *(("commit", writer) for writer in range(WRITERS))]:
            match what:
                case "insert":
                    push_id = uuid4()
                    await self.writers[which].execute(
                        "insert into push_notifications (id, device_token, title, priority) "
                        "values (%s, 'phone', 't', 'high')",
                        (push_id,),
                    )
                    open_rows[which].append(push_id)
                case "crowd":
                    ids = [uuid4() for _ in range(CROWD)]
                    await self.crowd.execute(sql.SQL(_LOUD).format(sql.Literal([str(one) for one in ids])))
                    crowds.update(ids)
                case "commit":
                    began = time.time()
                    await self.writers[which].commit()
                    committed |= dict.fromkeys(open_rows[which], began)
                    open_rows[which] = []
                case "rollback":
                    await self.writers[which].rollback()
                    open_rows[which] = []
                case "sleep":
                    await asyncio.sleep(which / 1000)
                case "deaf":
                    await self.world.terminate()
                case "kill":
                    old = self.listeners[which]
                    self.listeners[which] = await self._start()
                    deaths.append(asyncio.create_task(old.kill()))
        await asyncio.gather(*deaths)
        found = await self.arrivals.until(len(committed), lambda exchange: exchange.push_id in committed)
        waits = {exchange.push_id: exchange.began - committed[exchange.push_id] for exchange in found}
        assert set(waits) == set(committed)
        # After so many deaths a listener starts gently, so these may take longer.
        await self.arrivals.until(len(crowds), lambda exchange: exchange.push_id in crowds)
        # Nothing but a wake-up finds a row before a lease could have ended.
        assert max(waits.values(), default=0.0) < LEASE
        async for notify in self.ear.notifies(timeout=0.05):
            self.polls_begun += bool(notify.payload)  # a worker that begins to poll says so


@pytest.mark.timeout(400)
def test_no_committed_row_waits_for_the_sweep() -> None:
    with asyncio.Runner() as runner:

        async def opened(stack: AsyncExitStack) -> Play:
            play = Play(await stack.enter_async_context(world(latency=0.0, audited=False)))
            await play.open(stack)
            return play

        stack = AsyncExitStack()
        try:
            play = runner.run(opened(stack))

            @settings(
                max_examples=8,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # each example takes a second: what fails is shown as it is
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(st.lists(_steps, min_size=6, max_size=24))
            def all_arrive(steps: list[tuple[str, int]]) -> None:
                runner.run(play.script(steps))

            all_arrive()
            by_chance = play.polls_begun
            over = time.monotonic() + 60.0
            while not play.polls_begun and time.monotonic() < over:  # this machine was too slow for a crowd
                # Nobody rings for what is inserted meanwhile.
                runner.run(play.script([("insert", 0), *[("crowd", 0)] * 8, ("insert", 1)]))
            print(f"polled {by_chance} times in the examples, {play.polls_begun} times in all")
            assert play.polls_begun
        finally:
            runner.run(stack.aclose())
