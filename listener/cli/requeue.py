"""``push-listener requeue``."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import click

from listener import interrupts
from listener.cli import bulk_options, search
from listener.cli.bulk_options import Choice
from listener.operating.changing import STATUSES
from listener.operating.filters import Filter, Kind


@click.command()
@bulk_options.options
@search.options(STATUSES["requeue"])
def command(
    ids: tuple[str, ...],
    user: UUID | None,
    status: str | None,
    code: str | None,
    kind: Kind | None,
    since: datetime | None,
    until: datetime | None,
    dry_run: bool,
    yes: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Put pushes back in the queue, with all tries again.

    Of the pushes with these IDs, or of all that the options choose, it requeues those that are dead, expired, failed or
    cancelled, and not past their expires_at; cancelled ones only by their IDs or with --status cancelled. It shows
    what it would do and who may see a push twice, and asks. What changes after that is left alone. Each batch is one
    transaction, with a record in push_listener.actions. Ctrl-C stops between two batches.

    It uses OPERATOR_DATABASE_URL if that is set, else DATABASE_URL; the login needs the role push_listener_operator, or
    must own the tables.
    """
    with interrupts.importing():
        from listener.cli import bulk

    wanted = Filter(status=status, user=user, code=code, since=since, until=until, kind=kind)
    bulk.perform("requeue", ids, wanted, Choice(dry_run, yes, reason, as_json))
