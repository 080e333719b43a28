"""A worker of another queue, for ``tests.benchmarks.peers``; runs in the peers' own virtual environment.

    peer.py PEER install DSN
    peer.py PEER work DSN URL       sends POST {URL}/{job} for each job; says "ready"
    peer.py PEER enqueue DSN        for each line of standard input adds that many jobs, and says when (Unix time)

As their documentation has it, with the settings that they come with; procrastinate, which leaves the jobs of dead
workers to the application, has the periodic task that its documentation proposes, once a minute.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp

_CONCURRENCY = 100

Post = Callable[[str], Awaitable[None]]
Enqueue = Callable[[int], Awaitable[None]]


async def _pgqueuer(what: str, dsn: str, post: Post) -> None:
    import asyncpg  # type: ignore[import-not-found]
    from pgqueuer import PgQueuer  # type: ignore[import-not-found]
    from pgqueuer.db import AsyncpgPoolDriver  # type: ignore[import-not-found]
    from pgqueuer.queries import Queries  # type: ignore[import-not-found]

    async with asyncpg.create_pool(dsn) as pool:
        if what == "work":
            queue = PgQueuer.from_asyncpg_pool(pool)

            @queue.entrypoint("send")  # type: ignore[untyped-decorator]
            async def send(job: object) -> None:
                await post(str(job.id))  # type: ignore[attr-defined]

            print("ready", flush=True)
            await queue.run(batch_size=_CONCURRENCY)
            return
        async with AsyncpgPoolDriver(pool) as driver:
            queries = Queries(driver)
            if what == "install":
                await queries.install()
            else:
                await _enqueue(lambda n: queries.enqueue(["send"] * n, [None] * n, [0] * n))


async def _procrastinate(what: str, dsn: str, post: Post) -> None:
    import procrastinate  # type: ignore[import-not-found]

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))

    @app.task(name="send", pass_context=True)  # type: ignore[untyped-decorator]
    async def send(context: object) -> None:
        await post(str(context.job.id))  # type: ignore[attr-defined]

    @app.periodic(cron="* * * * *")  # type: ignore[untyped-decorator]
    @app.task(name="rescue", queueing_lock="rescue")  # type: ignore[untyped-decorator]
    async def rescue(timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs():
            await app.job_manager.retry_job(job)

    async with app.open_async():
        if what == "install":
            await app.schema_manager.apply_schema_async()
        elif what == "work":
            print("ready", flush=True)
            await app.run_worker_async(concurrency=_CONCURRENCY)
        else:
            await _enqueue(lambda n: send.batch_defer_async(*[{}] * n))


async def _enqueue(add: Enqueue) -> None:
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await add(int(line))
        print(time.time(), flush=True)


async def _main(peer: str, what: str, dsn: str, url: str = "") -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:

        async def post(job: str) -> None:
            async with http.post(f"{url}/{job}") as answer:
                await answer.read()

        await (_pgqueuer if peer == "pgqueuer" else _procrastinate)(what, dsn, post)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
