"""The ``push-listener`` command. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, get_args
from uuid import UUID

import click
import orjson
import psycopg
import structlog
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from listener import __version__, client, config, log, process
from listener.config import ConfigError, Settings
from listener.demo import run as demonstration
from listener.demo.embedded import EmbeddedPostgresError
from listener.emulator.run import DEFAULT_PORT
from listener.emulator.run import run as run_emulator
from listener.fcm.auth import load_credentials
from listener.postgres import errors, stats
from listener.postgres.connect import with_keepalive
from listener.schema import doctor, export, migrate, retention, served
from listener.schema.doctor import Level
from listener.schema.exposure import Way
from listener.service import NotMigrated, Service, credentials_for

P = ParamSpec("P")
_out = Console(highlight=False)


class _Failed(click.ClickException):
    exit_code = 1


class _Misconfigured(click.ClickException):
    exit_code = 2


def _plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Faults that a user can mend are told in a line or two, not in a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigError as error:
            lines = "".join(f"\n  {fault}" for fault in error.faults)
            raise _Misconfigured(f"the configuration cannot be used:{lines}") from None
        except (migrate.MigrationError, NotMigrated, EmbeddedPostgresError) as error:
            raise _Failed(str(error)) from None
        except psycopg.errors.UndefinedTable:
            raise _Failed(str(NotMigrated())) from None
        except psycopg.Error as error:  # its own text may quote the address, or a whole row
            raise _Failed(f"the database: {errors.explain_statement(error)}") from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise _Failed(
                "a fault of push-listener's own; its text is withheld because it may quote a secret\n"
                + log.without_text(error)
            ) from None

    return wrapped


def _run(main: Coroutine[Any, Any, None]) -> None:
    factory = None
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(log.tell_of_lost_fault)
        runner.run(main)


def _environment() -> str:
    rows = [
        f"  {name:<32} {text}" + (f" [{default}]" if default else "")
        for name, default, text in config.describe()
    ]
    return "\b\nEnvironment (default in brackets, times in seconds):\n" + "\n".join(rows)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 140})
@click.version_option(__version__, prog_name="push-listener")
def main() -> None:
    """Turns rows committed to push_notifications into pushes through FCM, without polling."""
    log.silence_drivers()


def _adopt_copy(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    return click.option("--adopt-copy", "adoption", type=click.Choice(get_args(served.Adoption)), help=text)


@main.command(epilog=_environment())
@_adopt_copy(
    "If the database is a copy of one that was served before, or has another address now: what becomes of the pushes "
    "that wait in it."
)
@_plain_errors
def run(adoption: served.Adoption | None) -> None:
    """Run the service until SIGTERM or SIGINT.

    It is configured by the environment alone; every fault of it is told at once, with exit code 2.
    """
    try:
        settings = config.load()
    except ConfigError as error:
        raise ConfigError(error.faults + _faults_of_credentials(error.faults)) from None
    log.configure(settings.log_format, settings.log_level)
    credentials, project = credentials_for(settings)
    settings = _with_open_files(settings)
    # A push under way is some hundred objects that the collector counts, and none of them is garbage. Left alone, it
    # looks them all over again and again, and all that was loaded at the start: a third of the CPU time of a drain.
    gc.freeze()
    gc.set_threshold(10_000 + 200 * settings.max_in_flight)

    async def serve() -> None:
        await Service(settings, credentials, project, on_overdue=_leave, adoption=adoption).run()

    try:
        _run(serve())
    except OSError as error:
        raise _Misconfigured(f"HOST, PORT: cannot listen on port {settings.port}: {error.strerror}") from None


def _with_open_files(settings: Settings) -> Settings:
    """No more in flight than files may be open. Raises ConfigError where that is nothing."""
    places = process.allow(settings.max_in_flight + process.OTHERS) - process.OTHERS
    if places >= settings.max_in_flight:
        return settings
    fault = f"the limit of open files allows {max(0, places)}; raise it (ulimit -n)"
    if places < 1:
        raise ConfigError([f"MAX_IN_FLIGHT: {fault}"])
    structlog.get_logger(__name__).warning(
        "MAX_IN_FLIGHT lowered", reason=fault, wanted=settings.max_in_flight
    )
    return settings.model_copy(update={"max_in_flight": places})


def _leave() -> None:
    """Ends the process as it is: the platform would kill it next, and its rows come back all the same."""
    structlog.get_logger(__name__).error("could not end in time")
    os._exit(0)


def _faults_of_credentials(told: list[str]) -> list[str]:
    """What is wrong with the credentials that google-auth looks for, when there are faults in the settings already."""
    key, path = "FCM_SERVICE_ACCOUNT_JSON", "GOOGLE_APPLICATION_CREDENTIALS"
    if os.environ.get(key) or any(fault.startswith((key, path)) for fault in told):
        return []
    try:
        load_credentials(None)
    except ValueError as error:
        return [f"{key} / {path}: {error}"]
    return []


def _age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    try:
        return config.age(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None


@main.command("migrate")
@click.option("--status", "show", is_flag=True, help="Show what is applied and what is not; change nothing.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run; change nothing.")
@click.option(
    "--down", metavar="VERSION", type=click.IntRange(0), help="Go back to this version; 0: to nothing."
)
@click.option(
    "--emit",
    "project",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the migrations and their pgTAP tests into this folder `supabase`, for the Supabase CLI.",
)
@click.option(
    "--expire-older-than",
    "patience",
    metavar="AGE",
    default="1d",
    show_default=True,
    callback=_age,
    help="Rows of an adopted queue that have waited for longer (12h, 7d) expire instead of being sent.",
)
@click.option(
    "--share-new-columns",
    is_flag=True,
    help="Users who could read every column of an adopted table read the new ones, too: select * goes on working.",
)
@click.option("--send-old", is_flag=True, help="Send waiting rows of an adopted queue however old they are.")
@click.option(
    "--discard-data",
    is_flag=True,
    help="With --down: drop tables that push-listener made, rows and all, and delete rows that an adopted table "
    "could not hold before.",
)
@_adopt_copy(
    "Decide before the next run what becomes of the pushes that wait. With expire all of them expire, in any "
    "database, copy or not."
)
@click.option("--json", "as_json", is_flag=True, help="With --status: as JSON.")
@_plain_errors
def migrate_command(
    show: bool,
    dry_run: bool,
    down: int | None,
    project: Path | None,
    patience: timedelta,
    share_new_columns: bool,
    send_old: bool,
    discard_data: bool,
    adoption: served.Adoption | None,
    as_json: bool,
) -> None:
    """Create the tables, or adopt the ones that are there. Safe to repeat, and beside a running application.

    Works on LISTEN_DATABASE_URL if it is set, else on DATABASE_URL: a direct or session-mode connection. With
    --emit it needs neither.
    """
    if discard_data and down is None:
        raise click.UsageError("--discard-data goes with --down")
    if as_json and not show:
        raise click.UsageError("--json goes with --status")
    if adoption is not None and (show or dry_run or down is not None or project is not None):
        raise click.UsageError("--adopt-copy does not go with --status, --dry-run, --down or --emit")
    if share_new_columns and (show or dry_run or down is not None or project is not None):
        raise click.UsageError("--share-new-columns does not go with --status, --dry-run, --down or --emit")
    if sum((show, dry_run, down is not None, project is not None)) > 1:
        raise click.UsageError("--status, --dry-run, --down and --emit exclude each other")
    if project is not None:
        written = export.emit(project)
        for path in written:
            click.echo(f"written {path}")
        click.echo(f"{len(written)} files written" if written else "nothing to do: every file is there")
        return
    settings = config.load()
    dsn = settings.listen_dsn
    expire = None if send_old else patience
    if show:
        _show_status(dsn, expire, as_json=as_json)
    elif dry_run:
        for state in migrate.status(dsn):
            if state.applied_at is None:
                click.echo(f"-- {state.migration.version:04d}_{state.migration.name}\n{state.migration.up}")
        _foretell(dsn, expire)
    elif down is not None:
        undone = migrate.rollback(
            dsn, down, discard_data=discard_data, report=lambda m: _step("taken back", m), warn=_note
        )
        click.echo(f"{len(undone)} migrations taken back")
    else:
        notes: list[str] = []

        def note(line: str) -> None:
            notes.append(line)
            _note(line)

        done = migrate.apply(
            dsn,
            expire_older_than=expire,
            share_new_columns=share_new_columns,
            report=lambda m: _step("applied", m),
            warn=note,
        )
        if done:
            click.echo(f"{len(done)} migrations applied")
        elif notes:
            click.echo("no migration to apply; what is noted above has been mended")
        else:
            click.echo("nothing to do: the database is up to date")
        _tell_exposures(migrate.exposures(dsn), everything=False)
        if adoption is not None:
            _adopt(settings, adoption)


def _adopt(settings: Settings, adoption: served.Adoption) -> None:
    """Decides about what waits, also in a database that is known: one restored in place has the identity it had."""
    if adoption == "expire":
        migrate.refuse_while_in_use(settings.listen_dsn)

    async def work() -> None:
        conn = await psycopg.AsyncConnection.connect(
            with_keepalive(settings.listen_dsn), autocommit=True, application_name=migrate.APPLICATION_NAME
        )
        async with conn:
            dsn = settings.database_url.get_secret_value()
            expired = await served.adopt(conn, dsn, settings.installation, adoption)
        click.echo(
            f"{expired:,} waiting pushes have expired" if adoption == "expire" else "what waits will be sent"
        )

    _run(work())


def _foretell(dsn: str, expire_older_than: timedelta | None) -> None:
    for line in migrate.foresee(dsn, expire_older_than=expire_older_than):
        _note(line)


def _show_status(dsn: str, expire: timedelta | None, *, as_json: bool) -> None:
    """Migrations, privileges that have changed since, and who can cause, change or read a push."""
    states = migrate.status(dsn)
    if as_json:
        click.echo(
            orjson.dumps(
                [
                    {
                        "version": s.migration.version,
                        "name": s.migration.name,
                        "applied_at": s.applied_at,
                        "changed": s.changed,
                    }
                    for s in states
                ]
            )
        )
        return
    _show_migrations(states)
    _foretell(dsn, expire)
    for line in migrate.drift(dsn):
        _note(f"privileges have changed: {line}. push-listener migrate sets them again")
    _tell_exposures(migrate.exposures(dsn), everything=True)


def _tell_exposures(ways: list[Way], *, everything: bool) -> None:
    """Who can cause, change or read a push: in brief what is meant, and what needs a look with what to do.

    ``everything``: all of it is what was asked for. Otherwise only what needs a look is noted.
    """
    look = [f"{way}. To close it: {way.remedy}" for way in ways if not way.expected]
    if not everything:
        for line in look:
            _note(line)
    elif ways:
        roles = sorted({role for way in ways if way.expected for role in way.roles})
        click.echo("Who can cause, change or read a push: superusers, the owner of push_notifications, and")
        click.echo(f"  as push-listener means it: {', '.join(roles)} (docs/privileges.md)")
        click.echo("  in other ways:" + ("" if look else " nobody"))
        for line in look:
            click.echo(f"  - {line}")


def _note(line: str) -> None:
    click.echo(f"note: {line}", err=True)


def _step(verb: str, migration: migrate.Migration) -> None:
    click.echo(f"{verb} {migration.version:04d}_{migration.name}")


def _show_migrations(states: list[migrate.State]) -> None:
    table = Table("version", "name", "applied at", "")
    for s in states:
        when = s.applied_at.isoformat(" ", "seconds") if s.applied_at else "not applied"
        table.add_row(
            f"{s.migration.version:04d}", s.migration.name, when, "file has changed" if s.changed else ""
        )
    _out.print(table)


@main.command("emulator")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--project", default="demo-project", show_default=True, help="Firebase project to stand in for."
)
@click.option(
    "--latency-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="Before each answer."
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="RULE",
    help="For example unavailable,share=0.1,retry_after=1.",
)
@click.option(
    "--credentials", type=click.Path(dir_okay=False, path_type=Path), help="Write a service-account key here."
)
def emulator_command(
    host: str, port: int, project: str, latency_ms: float, faults: tuple[str, ...], credentials: Path | None
) -> None:
    """Run a local FCM HTTP v1 and OAuth server that answers as the real ones do, with faults on demand."""
    try:
        _run(
            run_emulator(
                host=host,
                port=port,
                project_id=project,
                latency_ms=latency_ms,
                faults=faults,
                credentials=credentials,
                say=click.echo,
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise _Failed(str(error)) from None
    except KeyboardInterrupt:
        pass


@main.command()
@click.option("--user", type=click.UUID, help="Every live device of this user.")
@click.option("--token", help="One registration token.")
@click.option("--topic", help="A topic.")
@click.option("--condition", help="A condition on topics.")
@click.option("--title")
@click.option("--body")
@click.option("--data", metavar="JSON", help="A JSON object.")
@click.option("--priority", type=click.Choice(["normal", "high"]))
@click.option("--channel", help="Android notification channel.")
@click.option("--delay", type=click.FloatRange(0), help="Seconds from now at which to send it.")
@click.option(
    "--expires-in",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which it is not worth sending.",
)
@click.option("--idempotency-key", help="Added once only, however often it is sent.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    help="Wait up to so many seconds for the outcome; exit code 1 if it is not sent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@_plain_errors
def send(
    user: UUID | None,
    token: str | None,
    topic: str | None,
    condition: str | None,
    title: str | None,
    body: str | None,
    data: str | None,
    priority: str | None,
    channel: str | None,
    delay: float | None,
    expires_in: float | None,
    idempotency_key: str | None,
    wait: float | None,
    as_json: bool,
) -> None:
    """Add one push to the queue, as an application would, and optionally wait for what becomes of it."""
    targets = sum(target is not None for target in (token, topic, condition))
    if targets > 1 or (targets == 0 and user is None):
        raise click.UsageError("give one of --token, --topic, --condition, or else --user")
    if title is None and data is None:
        raise click.UsageError("give --title (and --body), or --data for a push without a notification")
    try:
        payload = None if data is None else orjson.loads(data)
    except orjson.JSONDecodeError:
        raise click.UsageError("--data is not JSON") from None
    if payload is not None and not isinstance(payload, dict):
        raise click.UsageError("--data is not a JSON object")
    dsn = config.load().database_url.get_secret_value()
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10, prepare_threshold=None) as conn:
        push_id = client.enqueue(
            conn,
            user_id=user,
            device_token=token,
            topic=topic,
            condition=condition,
            title=title,
            body=body,
            data=payload,
            priority=priority,
            channel=channel,
            idempotency_key=idempotency_key,
            send_at=None if delay is None else client.database_time(conn, ahead=delay),
            expires_at=None if expires_in is None else client.database_time(conn, ahead=expires_in),
        )
        outcome = client.wait_for(conn, push_id, wait or 0.0)
    if as_json:
        click.echo(orjson.dumps(asdict(outcome)))
    else:
        trouble = f" ({outcome.error_code}: {outcome.last_error})" if outcome.error_code else ""
        click.echo(f"{push_id} {outcome.status}{trouble}")
    if wait is not None and outcome.status not in client.ACCEPTED:
        raise SystemExit(1)


@main.command("stats")
@click.option(
    "--days",
    default=7,
    show_default=True,
    type=click.IntRange(1, 3650),
    help="How many days to count, in UTC, today included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_plain_errors
def stats_command(days: int, as_json: bool) -> None:
    """Show what waits in the queue, and what became of pushes lately. What has been purged is counted."""
    found = stats.read(config.load().database_url.get_secret_value(), days)
    if as_json:
        click.echo(orjson.dumps(asdict(found)))
        return
    waiting = Table("status", "pushes", title="waiting")
    for status, count in sorted(found.waiting.items()):
        waiting.add_row(status, f"{count:,}")
    ended = Table("", "number", title=f"the last {days} days" if days > 1 else "today")
    for name in ("sent", "delivered", "opened", "clicked", "dead", "expired", "cancelled", "retries"):
        ended.add_row(name, f"{getattr(found, name):,}")
    for name, seconds in (("accepted", found.accepted_after), ("delivered", found.delivered_after)):
        ended.add_row(f"seconds until {name}", "" if seconds is None else f"{seconds:,.1f}")
    failures = Table("status", "error code", "pushes", title="why pushes were not sent")
    for one in found.failures:
        failures.add_row(one.status, one.error_code, f"{one.pushes:,}")
    _out.print(waiting, f"the oldest has been due for {found.oldest_due:,.1f} s", ended, failures)


_SIGNS = {Level.GOOD: "[green]✓[/]", Level.LOOK: "[yellow]![/]", Level.WRONG: "[red]✗[/]"}


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print every finding as JSON.")
@_plain_errors
def doctor_command(as_json: bool) -> None:
    """Look the installation over: what is wrong, what deserves a look, and what to do. Changes nothing.

    Works on DATABASE_URL and LISTEN_DATABASE_URL. As the owner of the tables it sees most. Exit code 1 if something
    is wrong.
    """
    settings = config.load()
    findings = list(doctor.examine(settings))
    if as_json:
        click.echo(orjson.dumps([asdict(finding) for finding in findings]))
    # Lines are not wrapped: most remedies are SQL that people copy.
    for group, found in [] if as_json else itertools.groupby(findings, key=lambda finding: finding.group):
        _out.print(f"[bold]{escape(group)}[/]")
        # What is mended in the same way stands together.
        for remedy, alike in itertools.groupby(found, key=lambda finding: finding.remedy):
            for finding in alike:
                _out.print(f"  {_SIGNS[finding.level]} {escape(finding.text)}", soft_wrap=True)
            if remedy:
                _out.print(f"    try this: {escape(remedy)}", soft_wrap=True)
    if any(finding.level is Level.WRONG for finding in findings):
        raise SystemExit(1)


@main.command("purge")
@click.option(
    "--older-than",
    "age",
    required=True,
    metavar="AGE",
    callback=_age,
    help="For example 30d, 12h or 8w, since the last change.",
)
@click.option("--dead", is_flag=True, help="Dead pushes too, which are kept for somebody to requeue.")
@click.option("--telemetry", is_flag=True, help="Processed rows of telemetry_logs too.")
@click.option(
    "--batch", default=5000, show_default=True, type=click.IntRange(1, 50_000), help="Pushes per transaction."
)
@click.option("--dry-run", is_flag=True, help="Count only; this may take its time.")
@click.option("--json", "as_json", is_flag=True, help="Print what was deleted as JSON.")
@_plain_errors
def purge_command(
    age: timedelta, dead: bool, telemetry: bool, batch: int, dry_run: bool, as_json: bool
) -> None:
    """Delete pushes that ended long ago, and their delivery logs. Safe beside a running service.

    Sent, delivered, expired and cancelled pushes are deleted, in short transactions with rests between them; so are
    log rows whose push is not there any more. What statistics tell does not change. To have the service do this by
    itself, set RETENTION.

    Works on LISTEN_DATABASE_URL if it is set, else on DATABASE_URL.
    """
    dsn = config.load().listen_dsn
    found = retention.Purged()

    async def work() -> None:
        nonlocal found
        async with await retention.connect(dsn) as conn:
            before = await retention.moment(conn, age)
            if dry_run:
                found = await retention.count(conn, before, dead=dead, telemetry=telemetry)
                return
            expected = await retention.count_pushes(conn, before, dead=dead)
            stages = {
                "pushes": retention.pushes(conn, before, dead=dead, batch=batch, expected=expected),
                "logs without a push": retention.orphans(conn, before, batch=batch),
            }
            if telemetry:
                stages["telemetry"] = retention.telemetry(conn, before)
            with Progress(console=_out, disable=as_json or not _out.is_terminal) as bars:
                for stage, steps in stages.items():
                    bar = bars.add_task(stage, total=1.0)
                    async for step in retention.gently(steps, rest=1.0):
                        found += step.gone
                        bars.update(bar, completed=step.share)
                    bars.update(bar, completed=1.0)
                    if not (as_json or _out.is_terminal):
                        click.echo(f"{stage}: done")

    try:
        _run(work())
    except psycopg.errors.ForeignKeyViolation as error:
        raise _Failed(
            f"{error.diag.schema_name}.{error.diag.table_name} refers to pushes that would be deleted "
            f"(constraint {error.diag.constraint_name}): give that constraint ON DELETE CASCADE or SET NULL"
        ) from None
    if as_json:
        click.echo(orjson.dumps({**asdict(found), "dry_run": dry_run}))
    else:
        verb = "would be deleted" if dry_run else "deleted"
        what = f"{found.pushes:,} pushes, {found.logs:,} log rows"
        click.echo(f"{verb}: {what}" + (f", {found.telemetry:,} telemetry rows" if telemetry else ""))


@main.command("demo")
@click.option(
    "--once", is_flag=True, help="End when every row has ended; exit code 0 only if each ended as it should."
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="For the web server; a free one if it is taken.",
)
@_plain_errors
def demo_command(once: bool, port: int) -> None:
    """Show the whole thing at work: a private Postgres, a local FCM, the real listener, rows in, pushes out."""
    faults: list[str] = []

    async def show() -> None:
        faults.extend(await demonstration.run(_out, once=once, port=port))

    try:
        _run(show())
    except KeyboardInterrupt:
        if once:
            raise  # nobody knows how its rows would have ended
        return
    except demonstration.DemoFailed as error:
        raise _Failed(str(error)) from None
    if faults:
        raise _Failed("not every row ended as it should:\n  " + "\n  ".join(faults))
