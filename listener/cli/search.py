"""What the commands that look for pushes share: options, connections, and the name of the person."""

from __future__ import annotations

import getpass
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from listener import interrupts
from listener.operating.filters import KINDS, Filter, FilterFault

if TYPE_CHECKING:
    from listener.postgres.connect import Connection

F = TypeVar("F", bound=Callable[..., Any])


class _Moment(click.ParamType[datetime]):
    """A time, or an age such as 12h or 30d, which means the time that long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        with interrupts.importing():
            from listener import config

        try:
            return datetime.now(UTC) - config.age(value)
        except ValueError:
            pass
        try:
            found = Filter.parse({"since": value}).since
        except FilterFault as fault:
            self.fail(f"{str(fault).removeprefix('since ')}, or an age such as 12h or 30d", param, ctx)
        assert found is not None
        return found


MOMENT = _Moment()


def _code(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return Filter.parse({"code": value or ""}).code
    except FilterFault as fault:
        raise click.BadParameter(str(fault).removeprefix("code ")) from None


def options(statuses: Sequence[str]) -> Callable[[F], F]:
    """The options --user, --status, --code and --kind."""

    def decorate(command: F) -> F:
        for option in (
            click.option("--kind", type=click.Choice(KINDS), help="Only pushes with this kind of target."),
            click.option(
                "--code", callback=_code, help="Only pushes with this error code, such as UNREGISTERED."
            ),
            click.option("--status", type=click.Choice(list(statuses)), help="Only pushes with this status."),
            click.option("--user", type=click.UUID, help="Only pushes to this user."),
        ):
            command = option(command)
        return command

    return decorate


def connector(dsn: str, application_name: str) -> Callable[[], AbstractAsyncContextManager[Connection]]:
    """Returns a function that opens a connection in autocommit for each use. It raises psycopg.OperationalError."""
    from psycopg import AsyncConnection

    from listener.postgres.connect import with_defaults

    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with await AsyncConnection.connect(
            with_defaults(dsn), autocommit=True, application_name=application_name, prepare_threshold=None
        ) as conn:
            yield conn

    return connect


def who() -> str:
    """The name for the record of an action: ``cli:`` and the user that runs this command."""
    try:
        return f"cli:{getpass.getuser()}"[:200]
    except (KeyError, OSError):  # a container may run under a user id without a name
        return f"cli:{os.getuid()}"


def parse_ids(texts: Sequence[str]) -> list[UUID]:
    """The ids in the order given, without duplicates. Raises click.UsageError."""
    try:
        return list(dict.fromkeys(UUID(text) for text in texts))
    except ValueError:
        raise click.UsageError("an ID is the UUID of a push") from None
