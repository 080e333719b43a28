"""The least that can be done: LISTEN, claim, POST. What the listener's latency is measured against.

No lease, no retry, no limit, no record of the answer. Takes DATABASE_URL, and the URL to POST to as its argument.
"""

from __future__ import annotations

import functools
import os
import sys

import orjson
import psycopg
import uvloop

from listener.fcm.transports.base import Outgoing
from listener.fcm.transports.direct import DirectTransport

_HEADERS = {"Authorization": "Bearer x"}

_CLAIM = """
update push_notifications set status = 'sent', next_attempt_at = null, sent_at = now()
  where id = (select id from push_notifications
                where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= now()
                  and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
                order by next_attempt_at limit 1 for update skip locked)
  returning id::text, device_token, title, body, data
"""


async def main(url: str) -> None:
    async with (
        await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as rings,
        await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as rows,
    ):
        http = DirectTransport(url)
        await rings.execute("listen push_listener")
        async for _ in rings.notifies():
            while row := await (await rows.execute(_CLAIM, prepare=True)).fetchone():
                push_id, token, title, body, data = row
                message = {
                    "token": token,
                    "notification": {"title": title, "body": body},
                    "data": {**data, "push_id": push_id},
                }
                body = functools.partial(orjson.dumps, {"message": message})
                await http.post(_HEADERS, Outgoing(body))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
