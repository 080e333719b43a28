"""What ``requeue`` and ``cancel`` share: a preview, a question, and batches with a progress bar."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from listener import config, interrupts, process
from listener.cli import search, terminal
from listener.cli.shared import Failed, console, note, print_json
from listener.operating.acting import MOST, Acting, NotAllowed, Run, What
from listener.operating.filters import Filter
from listener.operating.reading import Reading
from listener.operating.records import Preview, PushLine
from listener.postgres.connect import Connection

_DONE = {"requeue": "requeued", "cancel": "cancelled"}
_BETWEEN_DRAWS_S = 0.1
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choice:
    """How the command is to act."""

    dry_run: bool
    yes: bool
    reason: str
    as_json: bool


def options(command: F) -> F:
    """The arguments and options of both commands, but for the filter's."""
    for add in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run."),
        click.option("--reason", default="", help="Why, for the record (push_listener.actions)."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what would be changed; change nothing."),
        click.option(
            "--until", type=search.MOMENT, help="Only pushes that last changed before this time, or age."
        ),
        click.option(
            "--since", type=search.MOMENT, help="Only pushes that changed since this time, or age (12h)."
        ),
        click.argument("ids", metavar="[ID]...", nargs=-1),
    ):
        command = add(command)
    return command


def perform(what: What, ids: Sequence[str], wanted: Filter, choice: Choice) -> None:
    """Does it to the pushes with these ids, or to all to which the filter applies."""
    if bool(ids) != wanted.is_empty:
        raise click.UsageError(
            "give the IDs of pushes, or options that choose some (--code, --user, --status ...)"
        )
    if choice.as_json and not (choice.yes or choice.dry_run):
        raise click.UsageError("--json needs --yes or --dry-run")
    if len(choice.reason) > 1000:
        raise click.UsageError("--reason has more than 1,000 characters")
    try:
        if ids:
            _perform_named(what, search.parse_ids(ids), choice)
        else:
            _perform_matching(what, wanted, choice)
    except NotAllowed as error:
        raise Failed(str(error)) from None


# --- by ids ------------------------------------------------------------------------------------------------------


def _perform_named(what: What, ids: list[UUID], choice: Choice) -> None:
    lines = process.run(_lines(ids))
    missing = len(ids) - len(lines)
    if not choice.as_json:
        _print(lines)
        if missing:
            note(f"{missing:,} of these pushes do not exist")
    changed: list[UUID] = []
    if choice.dry_run:
        if choice.as_json:
            print_json({"examples": lines, "missing": missing, "dry_run": True})
        return
    if lines:
        _ask(what, f"{len(lines):,}", choice)
        changed = process.run(_act(what, [line.id for line in lines], choice.reason))
    if choice.as_json:
        print_json({"changed": changed, "unchanged": [push for push in ids if push not in set(changed)]})
    else:
        click.echo(f"{_DONE[what]}: {len(changed):,} of {len(ids):,}")
    if len(changed) < len(ids):
        if lines and not choice.as_json:
            note(_WHY_NOT[what])
        raise SystemExit(1)


_WHY_NOT = {
    "requeue": "only dead, expired, failed and cancelled pushes are requeued, and none past its expires_at",
    "cancel": "only pending and failed pushes are cancelled; one that is being sent is not",
}


async def _lines(ids: list[UUID]) -> list[PushLine]:
    async with _reading() as reading:
        return await reading.lines(ids)


async def _act(what: What, ids: list[UUID], reason: str) -> list[UUID]:
    async with _acting(what) as acting:
        act = acting.requeue if what == "requeue" else acting.cancel
        changed: list[UUID] = []
        for first in range(0, len(ids), MOST):
            changed += await act(ids[first : first + MOST], who=search.who(), reason=reason)
        return changed


# --- all that match ----------------------------------------------------------------------------------------------


def _perform_matching(what: What, wanted: Filter, choice: Choice) -> None:
    shown = process.run(_preview(what, wanted))
    if not choice.as_json:
        _show(what, shown)
    if choice.dry_run:
        if choice.as_json:
            print_json({**_as_json(shown), "dry_run": True})
        return
    if not shown.examples and shown.pushes.is_exact:
        if choice.as_json:
            print_json({"changed": 0, "skipped": 0, "run": None, "aborted": False})
        return
    _ask(what, str(shown.pushes), choice)
    run = process.run(_run(what, wanted, shown, choice))
    progress = run.progress
    if choice.as_json:
        print_json(
            {"changed": progress.done, "skipped": progress.skipped, "run": run.id, "aborted": run.is_aborted}
        )
    else:
        skipped = (
            f"; {progress.skipped:,} were changed by others meanwhile, or are locked"
            if progress.skipped
            else ""
        )
        click.echo(f"{_DONE[what]}: {progress.done:,}{skipped} (run {run.id})")
    if run.is_aborted:
        note("stopped between two batches: what was changed stays changed")
        raise SystemExit(interrupts.EXIT_CODE)


def _as_json(shown: Preview) -> dict[str, object]:
    return {
        "pushes": shown.pushes.number,
        "is_exact": shown.pushes.is_exact,
        "maybe_seen": shown.maybe_seen.number,
        "examples": shown.examples,
        "until": shown.until,
    }


def _show(what: What, shown: Preview) -> None:
    if not shown.examples:
        more = "" if shown.pushes.is_exact else " among those that were looked at"
        click.echo(f"no push is to be {_DONE[what]}{more}")
        return
    click.echo(
        f"to be {_DONE[what]}: {shown.pushes} pushes, as they were at {terminal.local(shown.until)}, such as"
    )
    _print(shown.examples)
    if shown.maybe_seen.number:
        note(f"{shown.maybe_seen} of them may be seen twice: FCM accepted them, or may have")


def _print(lines: Sequence[PushLine]) -> None:
    out = console()
    for line in lines:
        out.print(terminal.line(line), soft_wrap=True)


def _ask(what: What, pushes: str, choice: Choice) -> None:
    """Raises click.Abort when the answer is no, or when nobody answers."""
    if not choice.yes:
        click.confirm(f"{what} {pushes} pushes?", abort=True)


async def _preview(what: What, wanted: Filter) -> Preview:
    async with _reading() as reading:
        return await reading.preview(wanted, what)


async def _run(what: What, wanted: Filter, shown: Preview, choice: Choice) -> Run:
    async with _reading() as reading, _acting(what) as acting:

        async def ids(after: str | None) -> tuple[list[UUID], str | None]:
            return await reading.ids(wanted, what, shown.until, after)

        run = Run(
            acting, ids, what=what, who=search.who(), reason=choice.reason, filter=wanted, until=shown.until
        )
        total = shown.pushes.number if shown.pushes.is_exact else None
        with _stopped_by_ctrl_c(run), _bars(quiet=choice.as_json) as bars:
            bar = bars.add_task(what, total=total)
            work = asyncio.create_task(run.perform())
            while not work.done():
                await asyncio.wait([work], timeout=_BETWEEN_DRAWS_S)
                bars.update(bar, completed=run.progress.done + run.progress.skipped)
            await work
        return run


@contextmanager
def _stopped_by_ctrl_c(run: Run) -> Iterator[None]:
    """The first Ctrl-C lets the batch end that has begun; another one cancels it, and Postgres undoes it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if run.is_aborted:
            task.cancel()
        run.abort()

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (NotImplementedError, ValueError, RuntimeError):  # Windows, or another thread than the main one
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _bars(*, quiet: bool) -> Progress:
    """A progress bar where there is a terminal."""
    out = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=out, disable=quiet or not out.is_terminal)


@asynccontextmanager
async def _reading() -> AsyncIterator[Reading]:
    dsn = config.load_database().database_url.get_secret_value()
    async with _one_connection(dsn, "push-listener") as connect:
        yield Reading(connect)


@asynccontextmanager
async def _acting(what: What) -> AsyncIterator[Acting]:
    """As OPERATOR_DATABASE_URL says, else as DATABASE_URL."""
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
