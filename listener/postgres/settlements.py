"""Writes the results of claimed rows: status, log rows and dead tokens in one transaction.

A row is written only while this worker holds it: settle.sql has this fence. For each row that was not written,
fates.sql tells what has become of it.

**Claims that Postgres forgets.** A claim does not wait for the disk: due.sql sets synchronous_commit. So a crash of
Postgres may undo it while the request is under way, and the row is as it was before the claim. Then one of these
happens:

- This worker writes the result. The fence finds no row, fates.sql says ``forgotten``, and ``Settlements.settle`` claims
  the row again, for the same attempt (forgotten.sql), and writes. That claim waits for the disk.
- This worker claims the row before that. ``HeldRows.add`` (sending/held.py) recognises the attempt, so no second
  request is made, and the result of the first is written.
- Another worker claims the row before that, and sends the push as well. The fate of this worker's result is ``taken``.
  Its log rows are written. log.sql distinguishes the log rows of the two requests by FCM's names for the messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from uuid import UUID

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row

from listener.log import should_log
from listener.postgres.claiming import CLAIM_FORGOTTEN, Claiming, ClaimReader
from listener.postgres.connect import Connection, Pool
from listener.postgres.errors import fault_name
from listener.postgres.foreign_triggers import NOT_DEFERRED
from listener.postgres.halving import Halving
from listener.postgres.parts import write_in_parts
from listener.postgres.statements import load
from listener.postgres.text import storable, storable_json
from listener.postgres.unwritable import CHANGED, LOCKED_OUT, Pause, UnwritableRows
from listener.push import Decision, LogLine, Settlement

log = structlog.get_logger(__name__)

_LOG = load(__file__, "log", known="")
_IS_SETTLED = "l.push_id in (select s.id from settled s) or "
_SETTLE = load(__file__, "settle", log=load(__file__, "log", known=_IS_SETTLED))
_FATES = load(__file__, "fates")
_WAITING_AGAIN = load(__file__, "waiting_again")
_UNLOGGED = load(__file__, "unlogged")
_TAKE_BACK = load(__file__, "take_back")

# A row that SKIP LOCKED skips is locked by another transaction; a row that no longer exists is not.
_LOCKED = """
with free as materialized (
  select id from public.push_notifications where id = any(%(ids)s::uuid[])
    for no key update skip locked
)
select id from public.push_notifications where id = any(%(ids)s::uuid[]) and id not in (select id from free)
"""

_DISABLE = """
select public.push_disable_token(token, code)
  from unnest(%(tokens)s::text[], %(codes)s::text[]) as d(token, code)
"""
_MOST_TOKENS_AT_ONCE = 1 << 12
# For how long to find out which tokens cannot be disabled. Rows are locked meanwhile.
_DISABLING_S = 2.0


class Fate(StrEnum):
    """What has become of a row that was to be settled."""

    WRITTEN = "written"
    """The row holds the result, from this call or an earlier one."""
    TAKEN = "taken"
    """Another worker has claimed the row since."""
    CHANGED = "changed"
    """Since the claim, the application has changed the status, or a peer took this worker for dead and put the row
    back."""
    DELETED = "deleted"
    """The row is gone."""
    REFUSED = "refused"
    """A trigger of the application has ignored or changed the result, and the row is still claimed; or it keeps the row
    from being claimed again after a crash."""
    FORGOTTEN = "forgotten"
    """The row is as it was before the claim, which Postgres has forgotten in a crash. ``settle`` does not return it."""
    UNLOGGED = "unlogged"
    """The row is still claimed. It was not written, because the log would not hold which devices have accepted the
    push, and the others are to be tried again."""


UNFINISHED = frozenset({Fate.REFUSED, Fate.UNLOGGED})
"""The fates of results that this worker has to write in another way."""


class _Unlogged(Exception):
    """Undoes a settle: these pushes would be sent twice to the same devices."""

    def __init__(self, ids: set[UUID]) -> None:
        super().__init__()
        self.ids = ids


class Settlements:
    """Writes the results of one worker.

    Every method raises ``psycopg.Error``: ``OperationalError`` when the database cannot be reached or no connection
    becomes free in time. None retries by itself.

    Args:
        claiming: makes claims again that Postgres has forgotten.
        unwritable: notes rows that a trigger has put back into the queue.
    """

    def __init__(self, pool: Pool, claiming: Claiming, unwritable: UnwritableRows) -> None:
        self._pool = pool
        self._claiming = claiming
        self._triggers = claiming.triggers
        self.unwritable = unwritable
        """The rows that no worker can write."""
        self._disable_parts = Halving(_MOST_TOKENS_AT_ONCE)
        self._disable_failures = 0  # in a row
        self._disabled: Counter[str] = Counter()

    async def settle(self, batch: Sequence[Settlement], *, is_retry: bool = False) -> list[Fate]:
        """Writes rows, log rows and dead tokens in one transaction; returns what has become of each row.

        A row whose claim Postgres has forgotten in a crash is claimed again, and then written, if no other worker has
        claimed it.

        Raises psycopg.errors.LockNotAvailable when another transaction holds the lock of a row for more than a moment.
        If the row is to be claimed again, a moment is enough. Other rows may have been written in either case.

        Args:
            batch: may be empty: then the method fails only if no row is at fault.
            is_retry: an earlier call may have been committed although it failed here.
        """
        fates = await self._settle_held(batch, is_retry)
        if Fate.FORGOTTEN not in fates:
            return fates
        forgotten = [
            replace(settlement, dead_tokens=[])
            for settlement, fate in zip(batch, fates, strict=True)
            if fate is Fate.FORGOTTEN
        ]
        refused = await self._claim_forgotten(forgotten)
        # The log rows are written already.
        later = iter(await self._settle_held(forgotten, is_retry=True))
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
            await conn.execute(NOT_DEFERRED)

            async def claim(part: Sequence[UUID]) -> int:
                values = {
                    "ids": list(part),
                    "attempts": [attempts[push_id] for push_id in part],
                    "is_strict": False,
                }
                return len(await self._claiming.claim(conn, CLAIM_FORGOTTEN, values, ClaimReader()))

            await claim([])  # if this fails, no row is at fault
            written = await write_in_parts(conn, list(attempts), claim, may_stop=False)
        if rows := sum(written.results):
            log.warning("claims that Postgres forgot in a crash were made again", rows=rows)
        return {push_id for push_id, code in written.refused.items() if code != LOCKED_OUT}

    async def _settle_held(self, batch: Sequence[Settlement], is_retry: bool) -> list[Fate]:
        """Writes the results of the rows that this worker holds; returns what has become of each row."""
        attempts = [s.attempt for s in batch]
        values = {
            "worker": self._claiming.worker_id,
            "is_retry": is_retry,
            "attempts": attempts,
            **_values(batch),
        }
        dead = [pair for s in batch if s.dead_tokens for pair in s.dead_tokens]
        accepted = _accepted_and_tried_again(batch)
        disabled: list[tuple[str, str]] = []
        try:
            async with self._pool.connection() as conn:
                if not (dead or accepted or self._triggers.may_change_rows or max(attempts, default=1) > 1):
                    written, changed = await _write(conn, values)
                else:
                    async with conn.transaction():
                        if self._triggers.may_change_rows:
                            await conn.execute(NOT_DEFERRED)
                        written, changed = await _write(conn, values)
                        if dead:
                            disabled = await self._disable(conn, dead)
                        await self._check_accepted(conn, accepted)
                        await self._note_reopened(conn, [batch[position - 1] for position in written])
        except _Unlogged as undone:
            rest = [s for s in batch if s.push_id not in undone.ids]
            fates = iter(await self._settle_held(rest, is_retry) if rest else [])
            return [Fate.UNLOGGED if s.push_id in undone.ids else next(fates) for s in batch]
        fates_of_all = await self._fates(batch, values, set(written), set(changed))
        if disabled:
            self._disabled.update(code for _, code in disabled)
        return fates_of_all

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

        While no trigger is known, it looks only at rows with an earlier claim: an unknown trigger may have put them
        back after that one.
        """
        over = [
            s.push_id
            for s in results
            if s.decision.delay is None and (self._triggers.may_change_rows or s.attempt > 1)
        ]
        if over:
            cursor = conn.cursor(row_factory=scalar_row)
            await cursor.execute(_WAITING_AGAIN, {"ids": over})
            if reopened := await cursor.fetchall():
                self._triggers.note_changed_row()
                await self.unwritable.note(dict.fromkeys(reopened, CHANGED), Pause.ENDLESS, conn)

    async def _fates(
        self, batch: Sequence[Settlement], values: Mapping[str, object], written: set[int], changed: set[int]
    ) -> list[Fate]:
        """What has become of each row. A changed result that is to be tried again goes back to this worker."""
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
                await conn.execute(
                    _TAKE_BACK,
                    {
                        "worker": self._claiming.worker_id,
                        "lease": self._claiming.lease,
                        "ids": [s.push_id for s in again],
                        "attempts": [s.attempt for s in again],
                    },
                )
        return fates

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

    def take_disabled(self) -> Counter[str]:
        """How many tokens settles have disabled since the last call, by error code."""
        count, self._disabled = self._disabled, Counter()
        return count

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


async def _write(conn: Connection, values: Mapping[str, object]) -> tuple[list[int], list[int]]:
    """The positions of the results that were written, and of those that a trigger has changed."""
    row = await (await conn.execute(_SETTLE, values)).fetchone()
    assert row is not None
    written, changed = row
    return written, changed


def _values(batch: Sequence[Settlement]) -> dict[str, object]:
    statuses, delays, tries, codes, reasons, message_ids = (
        map(list, zip(*[s.decision for s in batch], strict=True)) if batch else [[]] * len(Decision._fields)
    )
    return {
        "ids": [s.push_id for s in batch],
        "statuses": [str(status) for status in statuses],
        "delays": delays,
        "tries": tries,
        "codes": codes,
        "reasons": [reason and storable(reason) for reason in reasons],
        "message_ids": [each and storable(each) for each in message_ids],
        **_log_values([(s.push_id, line) for s in batch for line in s.logs]),
    }


def _log_values(lines: Sequence[tuple[UUID, LogLine]]) -> dict[str, object]:
    return {
        "log_ids": [push_id for push_id, _ in lines],
        "log_tokens": [line.token for _, line in lines],
        "log_statuses": [line.status for _, line in lines],
        "log_details": [storable_json(line.details) for _, line in lines],
    }


def _accepted_and_tried_again(batch: Sequence[Settlement]) -> list[tuple[UUID, str]]:
    """The devices that have accepted a push which is to be tried again at others: id of the push, and token."""
    return [
        (s.push_id, line.token or "")
        for s in batch
        if s.decision.delay is not None
        for line in s.logs
        if line.status == "sent"
    ]
