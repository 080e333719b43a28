"""The queue in Postgres: claims, settlements, and what is due when.

The statements are in the folder sql; what they have in common is explained in statements.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, LiteralString
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg import AsyncRawCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import args_row, kwargs_row, scalar_row

from listener.log import should_log
from listener.postgres.batch_limit import BatchLimit
from listener.postgres.connect import STATEMENT_PATIENCE_S, Connection, Pool, fetch_value, met_rows
from listener.postgres.errors import ROW_FAULTS, fault_name, is_of_rows
from listener.postgres.frontier import WHOLE, Begin, Frontier, Seen
from listener.postgres.halving import Halving
from listener.postgres.locks import STRANGERS, LockHolder
from listener.postgres.parts import MANY_REFUSED, NotAsWritten, write_in_parts
from listener.postgres.put_back import put_back
from listener.postgres.statements import load, numbered
from listener.postgres.text import storable, storable_json
from listener.postgres.unwritable import CHANGED, IGNORED, Pause, UnwritableRows
from listener.push import EXPIRED_REASON, Decision, LogLine, Push, Settlement

log = structlog.get_logger(__name__)

_DUE = load(__file__, "due")
_CLAIM = load(__file__, "claim", due=_DUE)
_CLAIM_THESE = load(__file__, "claim", due=load(__file__, "these"))
_CLAIM_FORGOTTEN = load(__file__, "claim", due=load(__file__, "forgotten"))
_LOCK_DUE: LiteralString = f"with {_DUE} select id from due order by lane, due_at"  # noqa: S608  # no values
_UNCLAIMABLE = """
select push_id, code
  from push_listener.unclaimable(%(worker)s::integer, %(excluded)s::uuid[], 2000, 0.5::float8,
    pg_catalog.current_setting('search_path'))
"""
_LOG = load(__file__, "log", known="")
_IS_SETTLED = "l.push_id in (select s.id from settled s) or "
_SETTLE = load(__file__, "settle", log=load(__file__, "log", known=_IS_SETTLED))
_RELEASE = load(__file__, "release")
_EXPIRE = load(__file__, "expire")
_EARLIEST = load(__file__, "earliest")
_BEHIND = load(__file__, "behind")
_WITH_BITMAP = """
select pg_catalog.set_config('enable_indexscan', 'off', true), pg_catalog.set_config('enable_seqscan', 'off', true)
"""
_FOREIGN_TRIGGERS = load(__file__, "foreign_triggers")
_SWEEP = load(__file__, "sweep", earliest=_EARLIEST, strangers=STRANGERS, foreign_triggers=_FOREIGN_TRIGGERS)
_UNREADABLE = load(__file__, "unreadable")

# A row that SKIP LOCKED skips is locked by another transaction; a row that no longer exists is not.
_LOCKED = """
with free as materialized (
  select id from public.push_notifications where id = any(%(ids)s::uuid[])
    for no key update skip locked
)
select id from public.push_notifications where id = any(%(ids)s::uuid[]) and id not in (select id from free)
"""

_FATES = load(__file__, "fates")
_STILL_CLAIMED = load(__file__, "still_claimed")
_WAITING_AGAIN = load(__file__, "waiting_again")
_UNLOGGED = load(__file__, "unlogged")
_TAKE_BACK = load(__file__, "take_back")

_DISABLE = """
select public.push_disable_token(token, code)
  from unnest(%(tokens)s::text[], %(codes)s::text[]) as d(token, code)
"""

_NO_LIMIT = 1 << 12

# What a deferred trigger of the application does is seen before the commit.
_NOT_DEFERRED = "set constraints all immediate"

# For how long to find out which tokens cannot be disabled. Rows are locked meanwhile.
_DISABLING_S = 2.0


class Fate(StrEnum):
    """What has become of a row that was to be settled."""

    WRITTEN = "written"
    """The row holds the result, from this call or an earlier one."""
    TAKEN = "taken"
    """Another worker has claimed the row since."""
    CHANGED = "changed"
    """The application has given the row another status since."""
    DELETED = "deleted"
    """The row is gone."""
    REFUSED = "refused"
    """A trigger of the application has ignored or changed the result, and the row is still claimed; or it keeps the row
    from being claimed again after a crash."""
    FORGOTTEN = "forgotten"
    """The row is as it was before the claim, which Postgres has forgotten in a crash. ``settle`` does not return it."""
    UNLOGGED = "unlogged"
    """The row is still claimed: the log would not hold which devices have accepted it, and the others are to be tried
    again."""


NOT_OVER = frozenset({Fate.REFUSED, Fate.UNLOGGED})
"""The fates of results that this worker has to write in another way."""


class _Unlogged(Exception):
    """Undoes a settle: these pushes would be sent twice to the same devices."""

    def __init__(self, ids: set[UUID]) -> None:
        super().__init__()
        self.ids = ids


# SQLSTATEs. A database with the encoding SQL_ASCII stores any bytes, and refuses to send those that are no UTF-8.
_NOT_TEXT = ("22021", "22P05")
# Another transaction holds a lock, or another row what an index or an exclusion constraint lets only one row have.
_LOCKED_OUT = "55P03"
_PASSING = (_LOCKED_OUT, "23505", "23P01")
_NOT_UTF8 = (
    "a text of this push, or a token in push_recipients, is not valid UTF-8: write it again in that encoding"
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a worker finds when it has not been notified for a while."""

    earliest: float | None
    """Seconds until the first row is due (negative: it is due); None: no row waits."""
    polling_locked: bool
    """Whether another session holds the polling lock or waits for it, so that inserts do not notify."""
    registered: bool
    """Whether this worker's row is still in ``push_listener.workers``."""
    has_foreign_triggers: bool
    """Whether the application has triggers that may change a row after this service has written it."""
    is_restricted: bool
    """Whether a restrictive policy of the application may hide pushes from this service."""
    guarded: bool
    """Whether this worker's liveness lock is held."""
    strangers: Sequence[LockHolder]
    """The strangers that hold locks of push-listener."""


class Queue:
    """The rows of ``push_notifications``, as one worker claims and settles them.

    Every method raises ``psycopg.Error``: ``OperationalError`` when the database cannot be reached or no connection
    becomes free in time. None retries by itself.
    """

    def __init__(self, pool: Pool, *, worker_id: int, lease: float, incarnation: UUID | None = None) -> None:
        self._pool = pool
        self._worker = worker_id
        self._incarnation = incarnation
        self._lease = lease
        self.unwritable = UnwritableRows(pool)
        """The rows that no worker can write."""
        self.frontier = Frontier()
        """Where this worker begins to look."""
        self._batch_limit = BatchLimit(_NO_LIMIT)
        # Until look_for_triggers, or the first sweep, the application may have any trigger.
        self._verifies = True
        self._has_been_undone = False
        self._is_restricted = False
        self._disable_parts = Halving(_NO_LIMIT)
        self._disable_failures = 0  # in a row
        self._disabled: Counter[str] = Counter()
        self._unreadable = 0

    @property
    def worker_id(self) -> int:
        """The value of ``claimed_by`` in the rows of this worker."""
        return self._worker

    async def claim(
        self,
        limit: int,
        normal_limit: int | None = None,
        excluded: Sequence[UUID] = (),
        begin: Begin = WHOLE,
    ) -> list[Push]:
        """Claims due rows under a lease: high priority first, then by due time.

        Rows that cannot be claimed are passed over, and noted for all workers. Fewer rows are returned then, or none.

        Args:
            limit: at most this number of rows.
            normal_limit: at most this number of rows of normal priority; None: ``limit``.
            excluded: rows that are not claimed.
            begin: rows that are due earlier are not claimed, unless it names them.
        """
        normal_limit = limit if normal_limit is None else normal_limit
        ends = time.monotonic() + STATEMENT_PATIENCE_S / 4
        while True:
            now = time.monotonic()
            most = self._batch_limit.rows(now)
            limit = min(limit, most)
            try:
                if most == _NO_LIMIT:
                    return await self._claim_at_once(limit, normal_limit, excluded, begin)
            except asyncio.CancelledError:  # it took too long
                self._batch_limit.timed_out(limit, now)
                raise
            except ROW_FAULTS as error:
                if not is_of_rows(error):
                    raise
            pushes, refused = await self._claim_in_parts(limit, normal_limit, excluded, begin)
            if pushes or not refused or time.monotonic() >= ends:
                return pushes

    async def _claim_at_once(
        self, limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin
    ) -> list[Push]:
        """Raises psycopg.Error or NotAsWritten, and claims nothing, if a row cannot be claimed."""
        values = {**_due_values(limit, normal_limit, excluded, begin), "is_strict": True}
        began, reader = time.monotonic(), _Reader(begin)
        async with self._pool.connection() as conn:
            if not self._verifies:
                pushes = await self._take(conn, _CLAIM, values, reader)
            else:
                async with conn.transaction():
                    await conn.execute(_NOT_DEFERRED)
                    pushes = await self._take(conn, _CLAIM, values, reader)
            met_rows(conn, len(pushes))
        self.frontier.claimed(begin, reader.seen(limit, normal_limit), began, time.monotonic())
        return pushes

    async def _claim_in_parts(
        self, limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin
    ) -> tuple[list[Push], int]:
        """Claims what can be claimed, and notes the rest; returns the number of the latter as well.

        The frontier stays where it is, so that the next look sees the rows that this one has passed over.
        """
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_NOT_DEFERRED)

            async def claim(part: Sequence[UUID]) -> list[Push]:
                return await self._take(
                    conn, _CLAIM_THESE, {"ids": list(part), "is_strict": False}, _Reader()
                )

            await claim([])  # what fails without rows is no row's fault
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_LOCK_DUE, _due_values(limit, normal_limit, excluded, begin))
            written = await write_in_parts(conn, await cursor.fetchall(), claim, may_stop=True)
            refused = written.refused
            if len(refused) >= MANY_REFUSED:
                refused = await self._search(conn, excluded) | refused
            await self._note_unclaimable(conn, refused)
        if written.too_many:
            self._batch_limit.timed_out(written.too_many, time.monotonic())
        return [push for part in written.results for push in part], len(refused)

    async def _search(self, conn: Connection, excluded: Sequence[UUID]) -> dict[UUID, str]:
        """More due rows whose update is refused: a search in the server finds a thousand in the time of fifty claims.

        It finds neither what only reading a row shows nor rows that are slow.
        """
        try:
            async with conn.transaction():
                values = {"worker": self._worker, "excluded": list(excluded)}
                return dict(await (await conn.execute(_UNCLAIMABLE, values)).fetchall())
        except psycopg.errors.QueryCanceled:
            return {}

    async def _take(
        self, conn: Connection, statement: LiteralString, values: dict[str, object], reader: _Reader
    ) -> list[Push]:
        """Claims rows. Raises NotAsWritten, within the transaction, if a trigger has ignored or changed a claim."""
        # By position: a mapping by name (class_row) doubles the CPU time that 500 rows take here.
        cursor = AsyncRawCursor(conn, row_factory=args_row(reader))
        claim = numbered(statement)
        everything = {"lease": self._lease, "worker": self._worker, **values}
        await cursor.execute(claim.text, claim.values(everything), binary=True)
        claimed = await cursor.fetchall()
        pushes = [each for each in claimed if isinstance(each, Push)]
        codes = (
            {}
            if len(pushes) == len(claimed)
            else {each: IGNORED for each in claimed if isinstance(each, UUID)}
        )
        if self._verifies and pushes:
            held = await self._among(conn, _STILL_CLAIMED, [(push.id, push.attempt) for push in pushes])
            codes |= {push.id: CHANGED for push in pushes if push.id not in held}
        if codes:
            raise NotAsWritten(codes)
        return pushes

    async def _note_unclaimable(self, conn: Connection, codes: Mapping[UUID, str]) -> None:
        """Keeps rows from being claimed for a while, and gives up those whose texts cannot be read."""
        unreadable = [push_id for push_id, code in codes.items() if code in _NOT_TEXT]
        if unreadable:
            values = {"code": "INVALID_TEXT", "reason": _NOT_UTF8}

            async def give_up(part: Sequence[UUID]) -> int:
                return (await conn.execute(_UNREADABLE, {**values, "ids": list(part)})).rowcount

            written = await write_in_parts(conn, unreadable, give_up, may_stop=False)
            codes = {
                push_id: code for push_id, code in codes.items() if code not in _NOT_TEXT
            } | written.refused
            self._unreadable += sum(written.results)
            log.warning(
                "pushes dead", rows=sum(written.results), code="INVALID_TEXT", example=str(unreadable[0])
            )
        passing = {push_id: code for push_id, code in codes.items() if code in _PASSING}
        await self.unwritable.note(passing, Pause.SHORT, conn)
        refused = {push_id: code for push_id, code in codes.items() if code not in _PASSING}
        await self.unwritable.note(refused, Pause.LONG, conn)

    def take_unreadable(self) -> int:
        """How many pushes claims have given up since the last call, because their texts cannot be read."""
        count, self._unreadable = self._unreadable, 0
        return count

    def take_disabled(self) -> Counter[str]:
        """How many tokens settles have disabled since the last call, by error code."""
        count, self._disabled = self._disabled, Counter()
        return count

    async def _among(
        self, conn: Connection, statement: LiteralString, rows: list[tuple[UUID, int]]
    ) -> set[UUID]:
        """The ids that a statement returns of rows of this worker, which are given by id and attempt."""
        values = {
            "worker": self._worker,
            "ids": [push_id for push_id, _ in rows],
            "attempts": [attempt for _, attempt in rows],
        }
        cursor = conn.cursor(row_factory=scalar_row)
        await cursor.execute(statement, values)
        return set(await cursor.fetchall())

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        """Writes rows, log rows and dead tokens in one transaction; returns what has become of each row.

        Claims that Postgres has forgotten in a crash are made again first, if no other worker has claimed the rows.

        Raises psycopg.errors.LockNotAvailable when another transaction holds the lock of a row for more than a moment,
        or at all if the claim of the row is to be made again. Other rows may be written then.

        Args:
            batch: if empty, the method fails only for a reason that is not in a row.
            is_retry: an earlier call may have been committed although it failed here.
        """
        fates = await self._settle(batch, is_retry)
        if Fate.FORGOTTEN not in fates:
            return fates
        forgotten = [
            replace(settlement, dead_tokens=[])
            for settlement, fate in zip(batch, fates, strict=True)
            if fate is Fate.FORGOTTEN
        ]
        refused = await self._claim_forgotten(forgotten)
        # The log rows are written already.
        later = iter(await self._settle(forgotten, is_retry=True))
        fates = [next(later) if fate is Fate.FORGOTTEN else fate for fate in fates]
        for n, settlement in enumerate(batch):
            if fates[n] is Fate.FORGOTTEN:
                if settlement.push_id not in refused:
                    raise psycopg.errors.LockNotAvailable
                fates[n] = Fate.REFUSED
        return fates

    async def _claim_forgotten(self, batch: Sequence[Settlement]) -> set[UUID]:
        """Claims rows again for the same attempts, past those that others have locked; returns those that are refused.

        A row that a trigger of the application keeps locked is not refused.
        """
        attempts = {settlement.push_id: settlement.attempt for settlement in batch}
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_NOT_DEFERRED)

            async def claim(part: Sequence[UUID]) -> int:
                values = {
                    "ids": list(part),
                    "attempts": [attempts[push_id] for push_id in part],
                    "is_strict": False,
                }
                return len(await self._take(conn, _CLAIM_FORGOTTEN, values, _Reader()))

            await claim([])  # what fails without rows is no row's fault
            written = await write_in_parts(conn, list(attempts), claim, may_stop=False)
        if rows := sum(written.results):
            log.warning("claims that Postgres forgot in a crash were made again", rows=rows)
        return {push_id for push_id, code in written.refused.items() if code != _LOCKED_OUT}

    async def _settle(self, batch: Sequence[Settlement], is_retry: bool) -> list[Fate]:
        statuses, delays, tries, codes, reasons, message_ids = (
            map(list, zip(*[s.decision for s in batch], strict=True))
            if batch
            else [[]] * len(Decision._fields)
        )
        dead = [pair for s in batch if s.dead_tokens for pair in s.dead_tokens]
        disabled: list[tuple[str, str]] = []
        accepted = [
            (s.push_id, line.token or "")
            for s in batch
            if s.decision.delay is not None
            for line in s.logs
            if line.status == "sent"
        ]
        attempts = [s.attempt for s in batch]
        values = {
            "worker": self._worker,
            "is_retry": is_retry,
            "ids": [s.push_id for s in batch],
            "attempts": attempts,
            "statuses": [str(status) for status in statuses],
            "delays": delays,
            "tries": tries,
            "codes": codes,
            "reasons": [reason and storable(reason) for reason in reasons],
            "message_ids": [each and storable(each) for each in message_ids],
            **_log_values([(s.push_id, line) for s in batch for line in s.logs]),
        }
        try:
            async with self._pool.connection() as conn:
                if not (dead or accepted or self._verifies or max(attempts, default=1) > 1):
                    written, changed = await _write(conn, values)
                else:
                    async with conn.transaction():
                        if self._verifies:
                            await conn.execute(_NOT_DEFERRED)
                        written, changed = await _write(conn, values)
                        if dead:
                            disabled = await self._disable(conn, dead)
                        await self._check_accepted(conn, accepted)
                        await self._note_reopened(conn, [batch[position - 1] for position in written])
                met_rows(conn, len(batch))
        except _Unlogged as undone:
            rest = [s for s in batch if s.push_id not in undone.ids]
            fates = iter(await self._settle(rest, is_retry) if rest else [])
            return [Fate.UNLOGGED if s.push_id in undone.ids else next(fates) for s in batch]
        fates_of_all = await self._fates(batch, values, set(written), set(changed))
        if disabled:
            self._disabled.update(code for _, code in disabled)
        return fates_of_all

    async def _fates(
        self, batch: Sequence[Settlement], values: Mapping[str, object], written: set[int], changed: set[int]
    ) -> list[Fate]:
        if len(written) == len(batch):
            return [Fate.WRITTEN] * len(batch)
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_FATES, values)
            found = {position: Fate(fate) for position, fate in await cursor.fetchall()}
            found |= dict.fromkeys(written, Fate.WRITTEN) | dict.fromkeys(changed, Fate.REFUSED)
            fates = [found[position] for position in range(1, len(batch) + 1)]
            again = [
                s
                for s, fate in zip(batch, fates, strict=True)
                if fate is Fate.REFUSED and s.decision.delay is not None
            ]
            if again:
                ids, attempts = [s.push_id for s in again], [s.attempt for s in again]
                await conn.execute(
                    _TAKE_BACK,
                    {"worker": self._worker, "lease": self._lease, "ids": ids, "attempts": attempts},
                )
        return fates

    async def _check_accepted(self, conn: Connection, accepted: list[tuple[UUID, str]]) -> None:
        """Raises _Unlogged if the next attempt would not find in the log which devices have accepted a push."""
        if accepted:
            ids, tokens = [push_id for push_id, _ in accepted], [token for _, token in accepted]
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_UNLOGGED, {"ids": ids, "tokens": tokens})
            if found := set(await cursor.fetchall()):
                raise _Unlogged(found)

    async def _note_reopened(self, conn: Connection, results: list[Settlement]) -> None:
        """Keeps rows from being sent again that a trigger has put back into the queue after they were settled.

        Only a row that was claimed before may have been put back earlier, by a trigger that this worker did not know.
        """
        over = [s.push_id for s in results if s.decision.delay is None and (self._verifies or s.attempt > 1)]
        if over:
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_WAITING_AGAIN, {"ids": over})
            if reopened := await cursor.fetchall():
                self._verifies = self._has_been_undone = True
                await self.unwritable.note(dict.fromkeys(reopened, CHANGED), Pause.ENDLESS, conn)

    async def log(self, lines: Sequence[tuple[UUID, LogLine]]) -> None:
        """Writes log rows that a settle could not write. Rows that are there already are not written again."""
        async with self._pool.connection() as conn:
            await conn.execute(_LOG, {**_log_values(lines), "is_retry": True})

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        """The rows among these that another transaction has locked."""
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_LOCKED, {"ids": list(ids)})
            return set(await cursor.fetchall())

    async def _disable(self, conn: Connection, dead: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Disables tokens; returns those that are disabled now.

        The results are written even if that fails: the function may be the application's own.
        """

        async def disable(part: Sequence[tuple[str, str]]) -> None:
            async with conn.transaction():  # a savepoint
                await conn.execute(_DISABLE, {"tokens": [t for t, _ in part], "codes": [c for _, c in part]})

        refused, error = await self._disable_parts.write(dead, disable, _DISABLING_S)
        if error and conn.info.transaction_status is not TransactionStatus.INTRANS:
            raise error  # the connection is lost, and the results with it
        self._disable_failures = self._disable_failures + 1 if refused else 0
        if refused and should_log(self._disable_failures):
            log.error(
                "dead tokens not disabled",
                error=fault_name(error),
                tokens=len(refused),
                times=self._disable_failures,
            )
        return list((Counter(dead) - Counter(refused)).elements())

    async def release(self, held: Sequence[UUID]) -> int:
        """Puts back the rows that this worker has claimed without knowing: all but ``held``. Returns their number."""
        async with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_RELEASE, {"worker": self._worker, "held": list(held)})
            return await put_back(conn, await cursor.fetchall(), are_lost=False)

    async def expire(self, rows: int, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> int:
        """Expires pushes past ``expires_at`` among the first due rows of each lane; returns their number.

        Args:
            rows: at most this number of rows of each lane is read.
            excluded: rows that are left alone.
            begin: rows that are due earlier are left alone.
        """
        values = {"rows": rows, "excluded": list(excluded), "reason": EXPIRED_REASON, **_from(begin)}
        async with self._pool.connection() as conn:
            return int(await fetch_value(conn, _EXPIRE, values))

    async def earliest(self, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> float | None:
        """Seconds, by the database's clock, until the first row that is not ``excluded`` is due.

        Negative: it is due. None: no row waits; or if the question is not ``WHOLE``, none within its range.
        """
        began = time.monotonic()
        values = {"excluded": list(excluded), **_from(begin), "ahead": begin.ahead}
        async with self._pool.connection() as conn:
            value: float | None = await fetch_value(conn, _EARLIEST, values)
        self.frontier.asked(begin, value is not None and value <= 0.0, began, time.monotonic())
        return value

    async def look_behind(self, excluded: Sequence[UUID] = ()) -> bool:
        """Looks for due rows before those that claims take, beside the claims; returns whether there are any.

        The frontier then has a claim take them.
        """
        began = time.monotonic()
        look = self.frontier.begin_look(began)
        values = {
            "from": look.begin,
            "to_high": look.high,
            "to_normal": look.normal,
            "excluded": list(excluded),
        }
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_WITH_BITMAP)
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_BEHIND, values)
            early = await cursor.fetchall()
        self.frontier.looked(look, early, began, time.monotonic())
        return bool(early)

    async def sweep(self, excluded: Sequence[UUID] = (), begin: Begin = WHOLE) -> Sweep:
        """Returns what ``earliest`` returns, and what may keep notifications from this worker."""
        began = time.monotonic()
        async with self._pool.connection() as conn:
            cursor = conn.cursor(row_factory=kwargs_row(_sweep))
            await cursor.execute(
                _SWEEP,
                {
                    "worker": self._worker,
                    "incarnation": self._incarnation,
                    "excluded": list(excluded),
                    **_from(begin),
                    "ahead": begin.ahead,
                },
            )
            sweep = await cursor.fetchone()
        assert sweep is not None
        is_due = sweep.earliest is not None and sweep.earliest <= 0.0
        self.frontier.asked(begin, is_due, began, time.monotonic())
        self._verifies = sweep.has_foreign_triggers or self._has_been_undone
        if sweep.is_restricted and not self._is_restricted:
            log.warning(
                "a restrictive policy on push_notifications holds for the user of the address too",
                reason="pushes that it hides are neither sent nor counted; name in the policy the roles that it is for",
            )
        self._is_restricted = sweep.is_restricted
        return sweep

    async def look_for_triggers(self) -> None:
        """Finds out whether triggers of the application may change what this service writes; see ``sweep``."""
        async with self._pool.connection() as conn:
            found = bool(await fetch_value(conn, _FOREIGN_TRIGGERS))
        self._verifies = found or self._has_been_undone


async def _write(conn: Connection, values: Mapping[str, object]) -> tuple[list[int], list[int]]:
    """The positions of the results that were written, and of those that a trigger has changed."""
    row = await (await conn.execute(_SETTLE, values)).fetchone()
    assert row is not None
    written, changed = row
    return written, changed


def _log_values(lines: Sequence[tuple[UUID, LogLine]]) -> dict[str, object]:
    return {
        "log_ids": [push_id for push_id, _ in lines],
        "log_tokens": [line.token for _, line in lines],
        "log_statuses": [line.status for _, line in lines],
        "log_details": [storable_json(line.details) for _, line in lines],
    }


def _from(begin: Begin) -> dict[str, object]:
    return {"from_high": begin.high, "from_normal": begin.normal}


def _due_values(limit: int, normal_limit: int, excluded: Sequence[UUID], begin: Begin) -> dict[str, object]:
    return {
        "limit": limit,
        "normal_limit": normal_limit,
        "excluded": list(excluded),
        **_from(begin),
        "early": list(begin.early),
    }


# Postgres counts in whole ones, and a float holds half of one.
_HALF_A_MICROSECOND = 5e-7


class _Reader:
    """Makes pushes of the rows of _CLAIM, and remembers how far the claim has come."""

    def __init__(self, begin: Begin = WHOLE) -> None:
        self._begin = (begin.high - _HALF_A_MICROSECOND, begin.normal - _HALF_A_MICROSECOND)
        self._early = [0, 0]
        self._now = -math.inf
        self._running: Sequence[str] = ()
        self._counts = [0, 0]
        self._last = [-math.inf, -math.inf]

    def __call__(
        self, is_written: bool, now: float, snapshot: str | None, lane: int, due_at: float, *columns: Any
    ) -> Push | UUID | None:
        """A row: the columns that follow are the fields of Push in their order, and the first is the id."""
        self._now = now
        if snapshot is not None:  # xmin:xmax:running,...
            running = snapshot.rpartition(":")[2]
            self._running = running.split(",") if running else ()
        push_id: UUID | None = columns[0]
        if push_id is None:
            return None
        if due_at < self._begin[lane]:
            self._early[lane] += 1
        else:
            self._counts[lane] += 1
            self._last[lane] = due_at
        if not is_written:
            return push_id
        push = Push(*columns)
        push.recipients = (
            [(token, platform) for token, platform in orjson.loads(columns[9])] if columns[9] else []
        )
        return push

    def seen(self, limit: int, normal_limit: int) -> Seen:
        """How far a claim with these limits has come."""
        limit -= sum(self._early)
        room = min(normal_limit - self._early[1], limit - self._counts[0])
        return Seen(self._now, self._through(0, limit), self._through(1, room), self._running)

    def _through(self, lane: int, limit: int) -> float | None:
        if limit <= 0:
            return None
        return self._last[lane] if self._counts[lane] >= limit else self._now


def _sweep(*, strangers: str, **columns: Any) -> Sweep:
    return Sweep(strangers=[LockHolder(**each) for each in orjson.loads(strangers)], **columns)
