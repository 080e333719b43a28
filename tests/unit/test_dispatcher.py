"""How long the loop waits where there is no room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from listener import config
from listener.dispatcher import Dispatcher
from listener.fcm.sender import Sender
from listener.fleet import SharedQuota
from listener.health import FcmHealth
from listener.metrics import Metrics
from listener.queue import Queue


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
