"""How long the loop waits where there is no room, and what it asks when it wakes up."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

from listener import config
from listener.fcm.sender import Sender
from listener.limits.health import FcmHealth
from listener.limits.shared_quota import SharedQuota
from listener.metrics import Metrics
from listener.postgres.queue import Queue, Sweep
from listener.sending.dispatcher import Dispatcher


def test_a_probe_that_is_due_while_the_quota_is_used_up_waits_for_the_quota() -> None:
    health = SimpleNamespace(limit=lambda *_: 1, changes_in=lambda *_: 0.0)
    quota = SimpleNamespace(room=lambda _: (0, 0), opens_in=lambda _: 5.0, refused=None)
    dispatcher = Dispatcher(
        cast(Queue, None),
        cast(Sender, None),
        config.load(database_url="postgresql://nobody@localhost/none"),
        Metrics(),
        cast(FcmHealth, health),
        cast(SharedQuota, quota),
    )
    assert dispatcher._room().all == 0
    assert dispatcher._until_room() == 5.0


async def test_a_timer_that_fires_a_moment_early_leads_to_a_sweep_and_to_no_other_statement() -> None:
    """uvloop's timers do so now and then: an idle process would ask twice."""
    asked = []

    async def sweep(_: object) -> Sweep:
        asked.append("sweep")
        return Sweep(None, polling_locked=False, registered=True, strangers=[])

    async def earliest(_: object) -> None:
        asked.append("earliest")

    dispatcher = Dispatcher(
        cast(Queue, SimpleNamespace(sweep=sweep, earliest=earliest)),
        cast(Sender, None),
        config.load(database_url="postgresql://nobody@localhost/none"),
        Metrics(),
        cast(FcmHealth, None),
        cast(SharedQuota, SimpleNamespace(refused=None)),
    )
    dispatcher._sweep_at = time.monotonic() + 0.002
    await dispatcher._earliest()
    await dispatcher._earliest()  # the next sweep is far away
    assert asked == ["sweep", "earliest"]
