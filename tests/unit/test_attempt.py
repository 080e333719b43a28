"""One attempt at one row, with senders that do as they are told."""

from __future__ import annotations

import asyncio
import time
from typing import cast
from uuid import UUID

from listener import config
from listener.attempt import Attempts
from listener.fcm.outcome import Kind, Outcome
from listener.fcm.sender import Sender
from listener.health import FcmHealth
from listener.metrics import Metrics
from listener.push import Push
from listener.ramp import after_losses
from listener.retry import Status

ACCEPTED = Outcome(Kind.ACCEPTED, "OK", "accepted by FCM", 200, message_id="projects/p/messages/1")


class _Broken:
    """Accepts what goes to the device "good"; the request to any other one is cancelled by nobody that is known."""

    async def send(self, body: bytes) -> Outcome:
        if b'"good"' in body:
            return ACCEPTED
        raise asyncio.CancelledError


async def test_a_request_that_is_cancelled_from_within_may_have_been_delivered() -> None:
    settings = config.load(database_url="postgresql://nobody@localhost/none")
    now = time.monotonic()
    health = FcmHealth(after_losses(0, 1, now))
    attempts = Attempts(cast(Sender, _Broken()), settings, Metrics(), health, on_limit=lambda *_: None)
    settlement = await attempts.attempt(_push("good", "bad"), now)
    assert (settlement.decision.status, settlement.decision.code) == (Status.PENDING, "ABANDONED")
    assert [(line.token, line.status) for line in settlement.logs] == [("good", "sent"), ("bad", "unknown")]


def _push(*devices: str) -> Push:
    """To a user with these devices."""
    return Push(
        id=UUID(int=1), attempt=1, retry_count=0, lost_claims=0, device_token=None, topic=None, condition=None,
        user_id=UUID(int=2), recipients=[(device, "android") for device in devices], accepted_before=0, title="T",
        body="B", data=None, channel=None, priority=None, image=None, options=None, collapse_key=None,
        expires_at=None, expires_in=None, waited=0.0, oversized=None,
    )  # fmt: skip
