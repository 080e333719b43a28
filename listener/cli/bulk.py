"""What ``requeue`` and ``cancel`` share: a preview, a question, and batches with a progress bar."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from uuid import UUID

import click
import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from listener import config, interrupts, process
from listener.cli import search, terminal
from listener.cli.bulk_options import Choice
from listener.cli.shared import console, explain, note, print_json
from listener.operating.acting import MOST, Acting, NotAllowed, Run
from listener.operating.changing import WHY_NOT, Action
from listener.operating.filters import Filter
from listener.operating.reading import Reading
from listener.operating.records import Count, Preview, PushLine
from listener.postgres.connect import Connection

_DONE = {"requeue": "requeued", "cancel": "cancelled"}
_BETWEEN_DRAWS_S = 0.1


def perform(what: Action, ids: Sequence[str], wanted: Filter, choice: Choice) -> None:
    """Requeues or cancels the pushes with these ids, or all pushes that the filter matches."""
    if bool(ids) != wanted.is_empty:
        raise click.UsageError(
            "give the IDs of pushes, or options that choose some (--code, --user, --status ...)"
        )
    if choice.as_json and not (choice.yes or choice.dry_run):
        raise click.UsageError("--json needs --yes or --dry-run")
    if len(choice.reason) > 1000:
        raise click.UsageError("--reason has more than 1,000 characters")
    if ids:
        _perform_named(what, search.parse_ids(ids), choice)
    else:
        _perform_matching(what, wanted, choice)


# --- by ids ------------------------------------------------------------------------------------------------------


def _perform_named(what: Action, ids: list[UUID], choice: Choice) -> None:
    lines, shown = process.run(_preview_named(what, ids))
    missing = len(ids) - len(lines)
    if not choice.as_json:
        _show(what, shown)
        _show_left_out(what, lines, shown)
        if missing:
            note(f"{missing:,} of these pushes do not exist")
    if choice.dry_run:
        if choice.as_json:
            print_json({**_as_json(shown), "missing": missing, "dry_run": True})
        return
    changed: list[UUID] = []
    error: Exception | None = None
    if shown.pushes.number:
        _ask(what, shown, choice)
        changed, error = process.run(_act(what, ids, choice.reason, shown.until))
    unchanged = [push for push in ids if push not in set(changed)]
    if choice.as_json:
        print_json({"changed": changed, "unchanged": unchanged, "error": _words(error)})
    else:
        click.echo(f"{_DONE[what]}: {len(changed):,} of {len(ids):,}")
        if changed and unchanged:
            click.echo("\n".join(["not changed:", *map(str, unchanged)]))
    if error is not None:
        raise error
    if unchanged:
        if len(changed) < shown.pushes.number and not choice.as_json:
            note(f"some {_MEANWHILE}")
        raise SystemExit(1)


_MEANWHILE = "were changed by others meanwhile, or are locked"


async def _preview_named(what: Action, ids: list[UUID]) -> tuple[list[PushLine], Preview]:
    """The pushes that exist, and what the action would do to them."""
    async with _reading() as reading:
        found = [await reading.preview(Filter(), what, ids=some) for some in _batches(ids)]
        lines = await reading.lines(ids)
    return lines, Preview(
        Count(sum(each.pushes.number for each in found), True),
        [line for each in found for line in each.examples],
        Count(sum(each.maybe_seen.number for each in found), True),
        found[0].until,
    )


async def _act(
    what: Action, ids: list[UUID], reason: str, until: datetime
) -> tuple[list[UUID], Exception | None]:
    """Returns the pushes that were changed, and the error that stopped the work, if there was one."""
    changed: list[UUID] = []
    try:
        async with _acting(what) as acting:
            for some in _batches(ids):
                changed += await acting.change(what, some, who=search.who(), reason=reason, until=until)
    except (psycopg.Error, NotAllowed) as error:
        return changed, error
    return changed, None


def _batches(ids: list[UUID]) -> list[list[UUID]]:
    return [ids[first : first + MOST] for first in range(0, len(ids), MOST)]


# --- all that match ----------------------------------------------------------------------------------------------


def _perform_matching(what: Action, wanted: Filter, choice: Choice) -> None:
    shown = process.run(_preview(what, wanted))
    if not choice.as_json:
        _show(what, shown)
    if choice.dry_run:
        if choice.as_json:
            print_json({**_as_json(shown), "dry_run": True})
        return
    if not shown.examples and shown.pushes.is_exact:
        if choice.as_json:
            print_json({"changed": 0, "skipped": 0, "run": None, "aborted": False, "error": None})
        return
    _ask(what, shown, choice)
    run, error = process.run(_run(what, wanted, shown, choice))
    done, skipped = run.progress.done, run.progress.skipped
    if choice.as_json:
        told = {"changed": done, "skipped": skipped, "run": run.id, "aborted": run.is_aborted}
        print_json({**told, "error": _words(error)})
    elif done or error is None:
        others = f"; {skipped:,} {_MEANWHILE}" if skipped else ""
        click.echo(f"{_DONE[what]}: {done:,}{others} (run {run.id})")
    if error is not None:
        if done and not choice.as_json:
            note("an error ended it between two batches: what was changed stays changed")
        raise error
    if run.is_aborted:
        note("stopped between two batches: what was changed stays changed")
        raise SystemExit(interrupts.EXIT_CODE)


def _words(error: Exception | None) -> str | None:
    return None if error is None else explain(error).message


def _as_json(shown: Preview) -> dict[str, object]:
    return {
        "pushes": shown.pushes.number,
        "is_exact": shown.pushes.is_exact,
        "maybe_seen": shown.maybe_seen.number,
        "examples": shown.examples,
        "until": shown.until,
    }


def _show(what: Action, shown: Preview) -> None:
    if not shown.examples:
        more = "" if shown.pushes.is_exact else " among those that were looked at"
        click.echo(f"no push is to be {_DONE[what]}{more}")
        return
    such_as = "" if shown.pushes.is_exact and len(shown.examples) == shown.pushes.number else ", such as"
    click.echo(
        f"to be {_DONE[what]}: {_number(shown.pushes)}, as they were at {terminal.local(shown.until)}{such_as}"
    )
    _print(shown.examples)
    if shown.maybe_seen.number:
        note(f"{shown.maybe_seen} of them may be seen twice: FCM accepted them, or may have")


def _show_left_out(what: Action, lines: Sequence[PushLine], shown: Preview) -> None:
    """Shows the pushes that the action would not change; only their number if the preview does not list all others."""
    left_out = len(lines) - shown.pushes.number
    if not left_out:
        return
    click.echo(f"not to be {_DONE[what]}: {left_out:,}; {WHY_NOT[what]}")
    if len(shown.examples) == shown.pushes.number:
        wanted = {line.id for line in shown.examples}
        _print([line for line in lines if line.id not in wanted])


def _print(lines: Sequence[PushLine]) -> None:
    out = console()
    for line in lines:
        terminal.show(out, line)


def _ask(what: Action, shown: Preview, choice: Choice) -> None:
    """Raises click.Abort when the answer is no, or when nobody answers."""
    if choice.yes:
        return
    if not shown.examples:
        click.confirm(f"look through the others, and {what} all that match?", abort=True)
    else:
        click.confirm(f"{what} {_number(shown.pushes)}?", abort=True)


def _number(pushes: Count) -> str:
    return f"{pushes} push" if pushes == Count(1, True) else f"{pushes} pushes"


async def _preview(what: Action, wanted: Filter) -> Preview:
    async with _reading() as reading:
        return await reading.preview(wanted, what)


async def _run(what: Action, wanted: Filter, shown: Preview, choice: Choice) -> tuple[Run, Exception | None]:
    """Returns what was done, and the error that stopped the work, if there was one."""
    async with _reading() as reading, _acting(what) as acting:

        async def ids(after: str | None) -> tuple[list[UUID], str | None]:
            return await reading.ids(wanted, what, shown.until, after)

        run = Run(
            acting, ids, what=what, who=search.who(), reason=choice.reason, filter=wanted, until=shown.until
        )
        total = shown.pushes.number if shown.pushes.is_exact else None
        work = asyncio.create_task(run.perform())
        with _stopped_by_ctrl_c(run, work), _bars(quiet=choice.as_json) as bars:
            bar = bars.add_task(what, total=total)
            while not work.done():
                await asyncio.wait([work], timeout=_BETWEEN_DRAWS_S)
                bars.update(bar, completed=run.progress.done + run.progress.skipped)
    try:
        await work
    except (psycopg.Error, NotAllowed) as error:
        return run, error
    except asyncio.CancelledError:  # by a second Ctrl-C
        return run, None
    return run, None


@contextmanager
def _stopped_by_ctrl_c(run: Run, work: asyncio.Task[None]) -> Iterator[None]:
    """The first Ctrl-C stops the work after the current batch. A second one cancels it; Postgres undoes the batch."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if run.is_aborted:
            work.cancel()
        else:
            run.abort()
            note("the batch that has begun ends first; another Ctrl-C undoes it")

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _bars(*, quiet: bool) -> Progress:
    """A progress bar; it draws nothing if standard output is not a terminal."""
    out = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=out, disable=quiet or not out.is_terminal)


@asynccontextmanager
async def _reading() -> AsyncIterator[Reading]:
    dsn = config.load_database().database_url.get_secret_value()
    async with _one_connection(dsn, "push-listener") as connect:
        yield Reading(connect)


@asynccontextmanager
async def _acting(what: Action) -> AsyncIterator[Acting]:
    """Connects with OPERATOR_DATABASE_URL if that is set, else with DATABASE_URL."""
    dsn = os.environ.get("OPERATOR_DATABASE_URL", "").strip() or (
        config.load_database().database_url.get_secret_value()
    )
    async with _one_connection(dsn, f"push-listener {what}") as connect:
        yield Acting(connect)


@asynccontextmanager
async def _one_connection(
    dsn: str, application_name: str
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Connection]]]:
    async with search.connector(dsn, application_name)() as conn:

        @asynccontextmanager
        async def connect() -> AsyncIterator[Connection]:
            yield conn

        yield connect
