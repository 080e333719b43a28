"""What a person does with pushes: requeue, cancel, reveal, send a test push.

Each action is one call of a function in the database, which also writes a record of it (push_listener.actions) in the
same transaction. The functions are those of the migration "operators"; docs/sql.md describes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import args_row
from psycopg.types.json import Jsonb

from listener.operating.changing import Action
from listener.operating.filters import Filter
from listener.operating.records import Progress, Revealed
from listener.postgres.connect import Connection, fetch_value

MOST = 1000
"""The most ids in one call. The database refuses more."""

_REQUEUE: LiteralString = """
select push_listener.operator_requeue(%(ids)s::uuid[], %(unchanged_since)s::timestamptz, %(who)s::text, %(why)s::text,
                                      %(filter)s::jsonb, %(run)s::uuid)
"""
_CANCEL: LiteralString = """
select push_listener.operator_cancel(%(ids)s::uuid[], %(unchanged_since)s::timestamptz, %(who)s::text, %(why)s::text,
                                     %(filter)s::jsonb, %(run)s::uuid)
"""
_REVEAL: LiteralString = """
select r.device_token, r.title, r.body, r.data, r.image, r.options, r.tokens
  from push_listener.operator_reveal(%(push_id)s::uuid, %(who)s::text) r
"""
_SEND: LiteralString = """
select push_listener.operator_send(%(token)s::text, %(user)s::uuid, %(title)s::text, %(body)s::text, %(who)s::text)
"""


class NotAllowed(Exception):
    """The login in the database address may not act on pushes; the message says what to do about it."""

    def __init__(self) -> None:
        super().__init__(
            "the database login may not act on pushes: let the owner of the tables or an administrator run "
            '"grant push_listener_operator to ...", or set OPERATOR_DATABASE_URL to a login that has this role'
        )


class Acting:
    """Actions on pushes that are named by their ids. Every method raises psycopg.Error or NotAllowed.

    Args:
        connect: yields a connection in autocommit; each action enters it once.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Connection]]) -> None:
        self._connect = connect

    async def change(
        self,
        what: Action,
        ids: Sequence[UUID],
        *,
        who: str,
        reason: str,
        until: datetime | None = None,
        filter: Filter | None = None,
        run: UUID | None = None,
    ) -> list[UUID]:
        """Requeues or cancels the pushes whose status allows it (``changing.STATUSES``); returns their ids.

        It skips rows that another transaction has locked, and requeues no push that is past its expires_at.

        Args:
            what: the action.
            ids: no more than ``MOST``.
            who: the person, for the record; 1 to 200 characters.
            reason: for the record; no more than 1,000 characters. Empty: no reason.
            until: pushes that changed later, by the database's clock, are left out.
            filter: what the person searched for, for the record.
            run: an id, the same for all batches of one action.
        """
        values = {
            "ids": list(ids),
            "unchanged_since": until,
            "who": who,
            "why": reason or None,
            "filter": None if filter is None else Jsonb(filter.as_values()),
            "run": run,
        }
        async with self._allowed() as conn:
            return list(await fetch_value(conn, _REQUEUE if what == "requeue" else _CANCEL, values))

    async def reveal(self, push_id: UUID, *, who: str) -> Revealed | None:
        """What a push says and where it goes; None if the push does not exist."""
        async with self._allowed() as conn:
            cursor = conn.cursor(row_factory=args_row(Revealed))
            await cursor.execute(_REVEAL, {"push_id": push_id, "who": who})
            return await cursor.fetchone()

    async def send(self, *, token: str | None, user: UUID | None, title: str, body: str, who: str) -> UUID:
        """Puts a push of priority high in the queue, to one device or to all devices of a user; returns its id.

        Raises psycopg.errors.InvalidParameterValue when a text is too long, or neither a token nor a user is given.
        """
        values = {"token": token, "user": user, "title": title, "body": body, "who": who}
        async with self._allowed() as conn:
            sent: UUID = await fetch_value(conn, _SEND, values)
            return sent

    @asynccontextmanager
    async def _allowed(self) -> AsyncIterator[Connection]:
        try:
            async with self._connect() as conn:
                yield conn
        except psycopg.errors.InsufficientPrivilege as error:
            raise NotAllowed from error


class Run:
    """One action on all pushes that match a filter, in batches. Each batch is a transaction with its own record.

    Args:
        acting: changes the pushes.
        ids: takes a cursor (None: begin at the start); returns the next ids and the next cursor (None: these were the
            last). ``Reading.ids`` returns batches of 500.
        what: the action.
        who: the person, for the records.
        reason: for the records.
        filter: what the person searched for, for the records.
        until: the time of the preview. Pushes that changed later are left out.
    """

    def __init__(
        self,
        acting: Acting,
        ids: Callable[[str | None], Awaitable[tuple[list[UUID], str | None]]],
        *,
        what: Action,
        who: str,
        reason: str,
        filter: Filter,
        until: datetime,
    ) -> None:
        self.id = uuid4()
        """The record of each batch contains it."""
        self.is_aborted = False
        self._acting, self._what = acting, what
        self._ids = ids
        self._who, self._reason, self._filter, self._until = who, reason, filter, until
        self._done, self._skipped, self._is_over = 0, 0, False

    @property
    def progress(self) -> Progress:
        """How far the action is. It is over when ``perform`` has returned or raised an error."""
        return Progress(self._done, self._skipped, self._is_over)

    def abort(self) -> None:
        """Lets no further batch begin. Pushes that were changed stay changed."""
        self.is_aborted = True

    async def perform(self) -> None:
        """Changes batch after batch until there are no more ids, or until ``abort``.

        Raises psycopg.Error, NotAllowed, and what ``ids`` raises. The batches before the error stay changed and
        recorded. Nothing of the batch that failed is changed or recorded.
        """
        after: str | None = None
        try:
            while not self.is_aborted:
                batch, after = await self._ids(after)
                if batch and not self.is_aborted:
                    changed = await self._acting.change(
                        self._what,
                        batch,
                        who=self._who,
                        reason=self._reason,
                        until=self._until,
                        filter=self._filter,
                        run=self.id,
                    )
                    self._done += len(changed)
                    self._skipped += len(batch) - len(changed)
                if after is None:
                    return
        finally:
            self._is_over = True
