"""Sending alone, with aiohttp on uvloop: what a push costs by that client before there is a queue.

    python -m tests.benchmarks.alone URL ROWS IN_FLIGHT

POSTs ROWS messages to the URL, IN_FLIGHT at once, and reads the answers: no queue, no limit, no retry, no record. The
messages are those that the listener writes for the pushes of ``tests.benchmarks.drain``, and they are written before
the first request. Says "done" when all are answered, and stays until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from uuid import UUID, uuid4

import aiohttp
import uvloop

from listener.fcm.message import prepare
from listener.push import Push, Target, TargetKind

_HEADERS = {"Authorization": "Bearer x", "Content-Type": "application/json"}
_TOKEN = "c3kQ7xNw9eo-APA91bF" * 8 + "00000000042"
_NO_ID = UUID(int=0)
_PUSH = Push(
    id=_NO_ID,
    attempt=1,
    retry_count=0,
    lost_claims=0,
    device_token=_TOKEN,
    fid=None,
    topic=None,
    condition=None,
    user_id=None,
    recipients=[],
    accepted_before=0,
    title="Your ride is waiting",
    body="A blue estate car, number plate 4711, stands at the corner. It waits for 5 min.",
    data='{"ride": "00000042", "screen": "ride"}',
    channel=None,
    priority="normal",
    image=None,
    options=None,
    collapse_key=None,
    expires_at=None,
    expires_in=None,
    waited=0.0,
    oversized=None,
)


def messages(count: int) -> list[bytes]:
    """The bodies of the requests, each with a push id of its own."""
    body = prepare(_PUSH).encode(Target(TargetKind.TOKEN, _TOKEN), None)
    written = str(_NO_ID).encode()
    return [body.replace(written, str(uuid4()).encode()) for _ in range(count)]


async def main(url: str, rows: int, in_flight: int) -> None:
    left = iter(messages(rows))
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=600),
        connector=aiohttp.TCPConnector(limit=in_flight),
        headers=_HEADERS,
    ) as http:

        async def send(bodies: Iterator[bytes]) -> None:
            for body in bodies:
                async with http.post(url, data=body) as answer:
                    await answer.read()

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(send(left))
        print("done", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
