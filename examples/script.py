"""Sends a push to a device, and says what became of it.

python script.py TOKEN            as in a cron job or a management command
python script.py TOKEN --async    the same in asyncio

Environment: DATABASE_URL. Exit code: 0 if FCM has accepted the push, 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from datetime import UTC, datetime, timedelta

import psycopg

from listener.client import Direct, Notification, Progress, Push, PushClient, enqueue, wait_for

PATIENCE = 10.0
"""Seconds to wait for FCM's answer."""


def backup_is_done(token: str) -> Push:
    now = datetime.now(UTC)
    return Push(
        token=token,
        notification=Notification(title="The backup is done", body=f"{now:%A, %H:%M} UTC"),
        data={"screen": "backups"},
        expires_at=now + timedelta(hours=1),
        # Started twice on a day, the script sends one push.
        idempotency_key=f"backup-{now:%Y-%m-%d}",
    )


def send(dsn: str, push: Push) -> Progress:
    with psycopg.connect(dsn) as conn:  # commits at the end of the block
        push_id = enqueue(conn, push)
    with psycopg.connect(dsn, autocommit=True) as conn:
        return wait_for(conn, push_id, PATIENCE)


async def send_async(dsn: str, push: Push) -> Progress:
    async with PushClient(Direct(dsn)) as client:
        push_id = await client.enqueue(push)
        return await client.wait(push_id, PATIENCE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("token")
    parser.add_argument("--async", action="store_true", dest="in_asyncio")
    given = parser.parse_args(arguments)
    dsn, push = os.environ["DATABASE_URL"], backup_is_done(given.token)
    progress = asyncio.run(send_async(dsn, push)) if given.in_asyncio else send(dsn, push)
    print(progress.status, progress.error_code or "")
    return 0 if progress.is_accepted else 1


if __name__ == "__main__":
    raise SystemExit(main())
