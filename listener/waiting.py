"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio


async def wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Waits for the event, at most so long; returns whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
