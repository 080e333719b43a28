"""``push-listener tail``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from listener import interrupts
from listener.cli import search, terminal
from listener.cli.shared import console, note, print_json
from listener.operating.filters import Filter
from listener.operating.records import Ended

if TYPE_CHECKING:
    import tenacity

    from listener.postgres.connect import Connection

_STATUSES = ("sent", "delivered", "dead", "expired", "cancelled", "failed")
_BETWEEN_LOOKS_S = 1.0
_LONGEST_WAIT_S = 15.0


@click.command()
@search.options(_STATUSES)
@click.option("--since", type=search.MOMENT, help="Begin at this time, or this long ago (12h); default: now.")
@click.option("--json", "as_json", is_flag=True, help="Print each push as a line of JSON.")
def command(
    user: UUID | None,
    status: str | None,
    code: str | None,
    kind: Any,
    since: datetime | None,
    as_json: bool,
) -> None:
    """Follow pushes as they end.

    It prints each push that is sent, dead, expired or cancelled, and once more when it is delivered; a failed try with
    --status failed. It reads twice a moment that has just passed, because a commit comes later than the time that it
    writes. When the database goes away, it goes on when the database comes back. Ctrl-C ends it.
    """
    with interrupts.importing():
        from listener import config, process

    wanted = Filter(status=status, user=user, code=code, kind=kind)
    process.run(_follow(config.load_database().database_url.get_secret_value(), wanted, since, as_json))


async def _follow(dsn: str, wanted: Filter, since: datetime | None, as_json: bool) -> None:
    import psycopg
    import tenacity

    from listener.operating.reading import Reading
    from listener.operating.tail import Shown, follow

    async with AsyncExitStack() as stack:
        reading = Reading(_kept(stack, search.connector(dsn, "push-listener tail")))
        shown = Shown(since or await reading.now())
        out = console()

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
            wait=tenacity.wait_exponential(max=_LONGEST_WAIT_S),
            before_sleep=_tell,
        )
        has_looked = False

        async def look(since: datetime) -> Ended:
            """Reads what has ended. The first read is not retried: a failure there usually lasts (a wrong password)."""
            nonlocal has_looked
            if has_looked:
                return await retrying(reading.ended, wanted, since)
            found = await reading.ended(wanted, since)
            has_looked = True
            return found

        async for news in follow(look, lambda: asyncio.sleep(_BETWEEN_LOOKS_S), shown):
            if news.is_cut:
                note(
                    "more pushes end than are read: some are missing here; choose some with --user or --code"
                )
            for line in news.lines:
                if as_json:
                    print_json(line)
                else:
                    terminal.show(out, line)


def _kept(
    stack: AsyncExitStack, connect: Callable[[], AbstractAsyncContextManager[Connection]]
) -> Callable[[], AbstractAsyncContextManager[Connection]]:
    """Keeps one connection for all uses, and opens a new one after it has broken."""
    kept: list[Connection] = []

    @asynccontextmanager
    async def use() -> Any:
        if not kept or kept[0].closed:
            kept[:] = [await stack.enter_async_context(connect())]
        yield kept[0]

    return use


def _tell(state: tenacity.RetryCallState) -> None:
    import psycopg

    from listener.postgres import errors

    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number == 1 and isinstance(error, psycopg.Error):
        note(f"the database: {errors.explain_statement(error)}; it is tried again")
