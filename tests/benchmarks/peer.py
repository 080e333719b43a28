"""Another queue, for the benchmarks; runs in the peers' own virtual environment.

    peer.py PEER install DSN      makes its tables; prints the statement that adds a job, with ARGS for its arguments
    peer.py PEER work DSN URL     makes a POST to the URL for each job; says "ready"

A job's arguments are a push, {"push_id", "token", "title", "body", "data"}; its request is the one that FCM would get.

As their documentation has it, on uvloop, each with the settings that were best here of those tried: pgqueuer with
1,000 jobs at once in batches of 250 (tried: 200 to 2,000, in batches of 100 to 500); procrastinate, which has no
batches, with 100 jobs at once and its own pool of 4 connections to Postgres (tried: 50 to 1,000, pools of 2 to 40).
procrastinate leaves the jobs of dead workers to the application: it has the periodic task that its documentation
proposes, once a minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import uvloop

_PGQUEUER = {"max_concurrent_tasks": 1000, "batch_size": 250}
_PROCRASTINATE = {"concurrency": 100}
_CONNECTIONS = 1000
"""To FCM, at most."""

Post = Callable[[dict[str, Any]], Awaitable[None]]


async def _pgqueuer(what: str, dsn: str, post: Post) -> None:
    import asyncpg  # type: ignore[import-not-found]
    from pgqueuer import PgQueuer  # type: ignore[import-not-found]
    from pgqueuer.db import AsyncpgPoolDriver  # type: ignore[import-not-found]
    from pgqueuer.queries import Queries  # type: ignore[import-not-found]

    async with asyncpg.create_pool(dsn) as pool:
        if what == "install":
            async with AsyncpgPoolDriver(pool) as driver:
                queries = Queries(driver)
                await queries.install()
                statement = queries.qbq.build_enqueue_query()
            for parameter, value in {
                "$1::int[]": "array[0]",
                "$2::text[]": "array['send']",
                "$3::bytea[]": "array[convert_to((ARGS)::text, 'UTF8')]",
                "$4::interval[]": "array['0'::interval]",
                "$5::text[]": "array[null]::text[]",
                "$6::jsonb[]": "array['null'::jsonb]",
            }.items():
                statement = statement.replace(parameter, value)
            print(json.dumps(statement))
            return
        queue = PgQueuer.from_asyncpg_pool(pool)

        @queue.entrypoint("send")  # type: ignore[untyped-decorator]
        async def send(job: Any) -> None:
            await post(orjson.loads(job.payload))

        print("ready", flush=True)
        await queue.run(**_PGQUEUER)


async def _procrastinate(what: str, dsn: str, post: Post) -> None:
    import procrastinate  # type: ignore[import-not-found]

    connector = procrastinate.PsycopgConnector(
        conninfo=dsn, json_loads=orjson.loads, json_dumps=lambda given: orjson.dumps(given).decode()
    )
    app = procrastinate.App(connector=connector)

    @app.task(name="send")  # type: ignore[untyped-decorator]
    async def send(**push: Any) -> None:
        await post(push)

    @app.periodic(cron="* * * * *")  # type: ignore[untyped-decorator]
    @app.task(name="rescue", queueing_lock="rescue")  # type: ignore[untyped-decorator]
    async def rescue(timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs():
            await app.job_manager.retry_job(job)

    async with app.open_async():
        if what == "install":
            await app.schema_manager.apply_schema_async()
            row = "row('default', 'send', 0, null, null, ARGS, null)::procrastinate_job_to_defer_v1"
            print(json.dumps(f"select unnest(procrastinate_defer_jobs_v1(array[{row}])) as id"))
        else:
            print("ready", flush=True)
            await app.run_worker_async(**_PROCRASTINATE)


async def _main(peer: str, what: str, dsn: str, url: str = "") -> None:
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=600),
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
        headers={"Authorization": "Bearer x", "Content-Type": "application/json"},
    ) as http:

        async def post(push: dict[str, Any]) -> None:
            message = {
                "token": push["token"],
                "notification": {"title": push["title"], "body": push["body"]},
                "data": {**push["data"], "push_id": push["push_id"]},
            }
            body = orjson.dumps({"message": message})
            async with http.post(url, data=body) as answer:
                await answer.read()

        await (_pgqueuer if peer == "pgqueuer" else _procrastinate)(what, dsn, post)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
