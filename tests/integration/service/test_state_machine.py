"""Whatever is done to rows, by whomever and in whatever order: Postgres agrees with a model of forty lines.

Time is moved by moving the rows: a lease, a schedule or a wait lasts a thousand seconds until a step ends it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString
from uuid import UUID

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from listener.postgres.connect import Address, ServicePool
from listener.postgres.locks import LIVENESS_CLASS
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.postgres.workers import register
from listener.push import Decision, LogLine, Push, Settlement, Status
from tests.support.postgres import Database
from tests.support.service import workers_of

LONG = 1000.0
"""Seconds: of a lease, a schedule, a wait."""

TRIES = 5

WAITING = ("pending", "failed", "processing")
GIVEN_UP = ("dead", "expired", "failed", "cancelled")

UNDO = """
update push_notifications p
  set (status, next_attempt_at, claimed_by, delivery_attempts, lost_claims, push_first_due_at, last_retry_at) = (
    select b.status, b.next_attempt_at, b.claimed_by, b.delivery_attempts, b.lost_claims, b.push_first_due_at,
        b.last_retry_at)
  from before b
  where b.id = p.id and p.id = any(%s)
"""
"""Undoes a claim."""

OUTCOMES: dict[str, tuple[Decision, str | None]] = {
    "sent": (Decision(Status.SENT, message_id="projects/p/messages/1"), "sent"),
    "failed": (Decision(Status.FAILED, LONG, True, "UNAVAILABLE", "try again"), "failed"),
    "not counted": (Decision(Status.PENDING, LONG, False, "CONNECT", "no connection"), "failed"),
    "untouched": (Decision(Status.PENDING, 0.0), None),
    "dead": (Decision(Status.DEAD, None, True, "UNAVAILABLE", "given up"), "failed"),
    "expired": (Decision(Status.EXPIRED, code="EXPIRED", reason="too late"), None),
    "unknown": (Decision(Status.FAILED, LONG, True, "TIMEOUT", "no answer"), "unknown"),
}


@dataclass(slots=True)
class Row:
    """A row as it should be."""

    lane: int
    topic: bool
    status: str = "pending"
    due: bool = True
    """Whether the time to look at it has come; of no meaning once it is over."""
    attempts: int = 0
    tries: int = 0
    lost: int = 0
    worker: int | None = None
    received: bool = False
    past: bool = False
    """Its ``expires_at`` has passed."""
    logs: Counter[str] = field(default_factory=Counter)
    logged: set[int] = field(default_factory=set)
    """Claims for which there is a row in the log."""

    @property
    def claimable(self) -> bool:
        return self.status in WAITING and self.due

    def forgets(self, worker: int, attempt: int) -> bool:
        """Whether the row is as it was before this claim, which Postgres has forgotten."""
        return (
            self.status in WAITING and self.attempts == attempt - 1 and (attempt > 1 or self.worker != worker)
        )

    def claim(self, worker: int | None) -> None:
        if worker is not None:
            self.lost += self.status == "processing"
        self.status, self.due, self.worker = "processing", False, worker
        self.attempts += 1


@dataclass(slots=True)
class Worker:
    """A worker that may be dead without knowing it."""

    queue: Queue
    id: int
    life: psycopg.Connection
    """Holds its liveness lock."""
    hands: list[Push] = field(default_factory=list)
    """What it believes to hold, or to have held."""
    alive: bool = True

    def takes(self, pushes: Sequence[Push]) -> None:
        """If Postgres has forgotten a claim in a crash, the next one brings the same attempt."""
        known = {(push.id, push.attempt) for push in self.hands}
        self.hands += [push for push in pushes if (push.id, push.attempt) not in known]


class Rows(RuleBasedStateMachine):
    """Claims, settlements, deaths and what applications do, one after another."""

    # Of all examples: a session of Postgres takes 50 ms until it has planned what is asked here.
    database: Database
    runner: asyncio.Runner
    conn: psycopg.Connection[dict[str, Any]]
    crash: psycopg.Connection
    pool: ServicePool
    lives: list[psycopg.Connection]
    """Sessions for liveness locks that no worker has."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[UUID, Row] = {}
        self.workers: list[Worker] = []
        self.settled: list[tuple[Worker, Settlement]] = []
        self.sql("truncate push_notifications, push_delivery_logs, push_listener.workers")

    @initialize(lanes=st.lists(st.booleans(), min_size=1, max_size=3))
    def two_workers_and_some_rows(self, lanes: list[bool]) -> None:
        self.begin()
        self.begin()
        for high in lanes:
            self.insert_row(high=high, later=False, topic=False)

    def teardown(self) -> None:
        for worker in self.workers:
            worker.life.execute("select pg_advisory_unlock_all()")
            self.lives.append(worker.life)

    # --- help --------------------------------------------------------------------------------------------

    def sql(self, statement: LiteralString, **values: object) -> list[dict[str, Any]]:
        cursor = self.conn.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    def begin(self) -> None:
        worker = self.runner.run(register(self.pool, "test"))
        life = self.lives.pop() if self.lives else psycopg.connect(self.database.dsn, autocommit=True)
        life.execute("select pg_advisory_lock(%s, %s)", (LIVENESS_CLASS, worker))
        self.sql("update push_listener.workers set guarded = true where id = %(id)s", id=worker)
        self.workers.append(Worker(Queue(self.pool, worker_id=worker, lease=LONG), worker, life))

    def some(self, data: st.DataObject, rows: Sequence[UUID]) -> UUID:
        return data.draw(st.sampled_from(sorted(rows)))

    def worker(self, data: st.DataObject) -> Worker:
        return data.draw(st.sampled_from(self.workers))

    def first(self, limit: int, *, topics: bool = True) -> list[UUID]:
        """Which rows are to be claimed next, in order; as many of the high lane as there are come first."""
        due = self.sql(
            "select id from push_notifications "
            "where status in ('pending', 'processing', 'failed') and next_attempt_at <= clock_timestamp() "
            "order by (case priority when 'high' then 0 else 1 end), next_attempt_at"
        )
        ids = [row["id"] for row in due]
        assert set(ids) == {k for k, row in self.rows.items() if row.claimable}
        return [push_id for push_id in ids if topics or not self.rows[push_id].topic][:limit]

    # --- what applications do ----------------------------------------------------------------------------

    @rule(high=st.booleans(), later=st.booleans(), topic=st.booleans())
    def insert(self, high: bool, later: bool, topic: bool) -> None:
        self.insert_row(high, later, topic)

    def insert_row(self, high: bool, later: bool, topic: bool) -> None:
        push_id = UUID(int=len(self.rows) + 1)
        self.sql(
            "insert into push_notifications (id, device_token, topic, title, priority, next_attempt_at) "
            "values (%(id)s, %(token)s, %(topic)s, 't', %(priority)s, now() + make_interval(secs => %(wait)s))",
            id=push_id,
            token=None if topic else "phone",
            topic="news" if topic else None,
            priority="high" if high else "normal",
            wait=LONG if later else 0.0,
        )
        self.rows[push_id] = Row(lane=0 if high else 1, topic=topic, due=not later)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        push_id = self.some(data, list(self.rows))
        row = self.rows[push_id]
        may = row.status in ("pending", "failed")
        assert self.sql("select cancel_push(%(id)s) as done", id=push_id) == [{"done": may}]
        if may:
            row.status = "cancelled"

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, max_size=3, unique=True))
        back = [each for each in ids if self.rows[each].status in GIVEN_UP and not self.rows[each].past]
        assert self.sql("select requeue_pushes(p_ids => %(ids)s) as n", ids=ids) == [{"n": len(back)}]
        for each in back:
            row = self.rows[each]
            row.status, row.due, row.tries, row.lost = "pending", True, 0, 0

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), status=st.sampled_from(["delivered", "opened", "unknown"]))
    def receipt(self, data: st.DataObject, status: str) -> None:
        being_sent = [push_id for push_id, row in self.rows.items() if row.status == "processing"]
        push_id = self.some(data, being_sent or list(self.rows))
        row = self.rows[push_id]
        new = row.logs[f"receipt {status}"] == 0
        report: LiteralString = "select record_delivery_receipt(%(id)s, 'phone', %(status)s) as new"
        # Postgres may have forgotten the claim, and the log still holds the request.
        is_logged = not row.topic and (row.logs["sent"] or row.logs["unknown"])
        if row.attempts == 0 and not is_logged:  # no device can have received it, as far as is known
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                self.sql(report, id=push_id, status=status)
            return
        [answer] = self.sql(report, id=push_id, status=status)
        assert answer["new"] == new
        row.logs[f"receipt {status}"] = 1
        if new and status != "unknown":
            row.received = True
            if row.status == "sent":
                row.status = "delivered"

    # --- time passes -------------------------------------------------------------------------------------

    @precondition(lambda self: any(row.status in WAITING and not row.due for row in self.rows.values()))
    @rule(data=st.data())
    def time_comes(self, data: st.DataObject) -> None:
        """A schedule, a wait or a lease is over."""
        waiting = [push_id for push_id, row in self.rows.items() if row.status in WAITING and not row.due]
        self.comes_due(self.some(data, waiting))

    @precondition(lambda self: any(row.status == "processing" and not row.due for row in self.rows.values()))
    @rule(data=st.data())
    def lease_ends_and_the_row_is_claimed(self, data: st.DataObject) -> None:
        """By another, or by the same worker, which does not know that it has lost it."""
        held = [push_id for push_id, row in self.rows.items() if row.status == "processing" and not row.due]
        self.comes_due(self.some(data, held))
        self.claims(self.worker(data), 4)

    def comes_due(self, push_id: UUID) -> None:
        self.sql(
            "update push_notifications set next_attempt_at = clock_timestamp() where id = %(id)s", id=push_id
        )
        self.rows[push_id].due = True

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def meaning_is_lost(self, data: st.DataObject) -> None:
        push_id = self.some(data, list(self.rows))
        self.sql(
            "update push_notifications set expires_at = now() - interval '1 second' where id = %(id)s",
            id=push_id,
        )
        self.rows[push_id].past = True

    # --- workers -----------------------------------------------------------------------------------------

    @rule(data=st.data(), limit=st.integers(1, 4))
    def claim(self, data: st.DataObject, limit: int) -> None:
        self.claims(self.worker(data), limit)

    @rule(data=st.data(), limit=st.integers(1, 4))
    def claim_that_a_crash_undoes(self, data: st.DataObject, limit: int) -> None:
        worker, expected = self.worker(data), self.first(limit)
        self.crash.execute("truncate before; insert into before table push_notifications")
        pushes = self.runner.run(worker.queue.claim(limit))
        self.crash.execute(UNDO, [expected])
        assert [push.id for push in pushes] == expected
        worker.takes(pushes)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        late = [push_id for push_id in self.all_due() if self.rows[push_id].past]
        assert self.runner.run(self.worker(data).queue.expire(1000)) == len(late)
        for push_id in late:
            self.rows[push_id].status = "expired"

    def claims(self, worker: Worker, limit: int) -> None:
        expected = self.first(limit)
        pushes = self.runner.run(worker.queue.claim(limit))
        assert [push.id for push in pushes] == expected
        for push in pushes:
            row = self.rows[push.id]
            row.claim(worker.id)
            assert (push.attempt, push.retry_count, push.lost_claims) == (row.attempts, row.tries, row.lost)
            assert (push.expires_in is not None and push.expires_in < 0) == row.past
        worker.takes(pushes)

    @precondition(lambda self: any(worker.hands for worker in self.workers))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Some of what it holds, or held: the dead do it as well."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.hands]))
        places = data.draw(st.sets(st.sampled_from(range(len(worker.hands))), min_size=1, max_size=3))
        batch = []
        for place in places:
            push = worker.hands[place]
            decision, log = OUTCOMES[data.draw(st.sampled_from(sorted(OUTCOMES)))]
            if decision.uses_try and push.retry_count + 1 >= TRIES:
                decision, log = OUTCOMES["dead"]
            token = None if push.topic else "phone"
            lines = [] if log is None else [LogLine(token, log, {"attempt": push.attempt})]
            batch.append(Settlement(push.id, push.attempt, decision, lines))
        worker.hands = [push for place, push in enumerate(worker.hands) if place not in places]
        fates = self.runner.run(worker.queue.settlements.settle(batch))
        for settlement in batch:
            for line in settlement.logs:  # the attempt was made, whoever has the row by now
                self.rows[settlement.push_id].logs[line.status] += 1
        written = [self.settles(worker, each) for each in batch]
        again = [
            not done and self.settles_anew(worker, each) for done, each in zip(written, batch, strict=True)
        ]
        assert [fate is Fate.WRITTEN for fate in fates] == [
            any(each) for each in zip(written, again, strict=True)
        ]
        assert Fate.REFUSED not in fates
        self.settled += [(worker, each) for each in batch]

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """The answer to a settle was lost: it is done once more, however much has happened since."""
        worker, settlement = data.draw(st.sampled_from(self.settled))
        [fate] = self.runner.run(worker.queue.settlements.settle([settlement], is_retry=True))
        assert fate is not Fate.REFUSED
        if self.settles_anew(worker, settlement):
            assert fate is Fate.WRITTEN

    def settles(self, worker: Worker, settlement: Settlement) -> bool:
        row, decision = self.rows[settlement.push_id], settlement.decision
        if (row.status, row.worker, row.attempts) != ("processing", worker.id, settlement.attempt):
            return False
        row.status = str(decision.status)
        if row.status == "sent" and row.received:
            row.status = "delivered"
        row.due = decision.delay == 0.0
        row.tries += decision.uses_try
        return True

    def settles_anew(self, worker: Worker, settlement: Settlement) -> bool:
        """The claim is made again first."""
        row = self.rows[settlement.push_id]
        if not row.forgets(worker.id, settlement.attempt):
            return False
        row.claim(worker.id)
        return self.settles(worker, settlement)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A worker that does not know what it has claimed puts back all that it does not know of."""
        worker = self.worker(data)
        held = {push.id for push in worker.hands}
        unknown = [
            row
            for push_id, row in self.rows.items()
            if row.status == "processing" and row.worker == worker.id and not row.due and push_id not in held
        ]
        assert self.runner.run(worker.queue.release(sorted(held))) == len(unknown)
        for row in unknown:
            row.status, row.due = "pending", True

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """The answer to a claim was lost."""
        self.worker(data).hands.clear()

    @precondition(lambda self: len(self.workers) < 4)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.alive]))
        worker.life.execute("select pg_advisory_unlock_all()")
        worker.alive = False
        self.begin()

    @rule(data=st.data())
    def rescue(self, data: st.DataObject) -> None:
        """A peer takes everybody for dead; the living come to no harm."""
        saver = self.worker(data)
        suspects = [worker.id for worker in self.workers if worker is not saver]
        lost = [
            row
            for row in self.rows.values()
            if row.status == "processing"
            and not row.due  # else it can be claimed already
            and any(row.worker == w.id and not w.alive and w is not saver for w in self.workers)
            and row.worker in self.unburied()
        ]
        seen = self.runner.run(workers_of(saver.queue).peers())
        assert all(seen.get(w.id, w.alive) == w.alive for w in self.workers if w is not saver)
        dead, count, _ = self.runner.run(workers_of(saver.queue).rescue(suspects))
        assert count == len(lost)
        assert set(dead) >= {row.worker for row in lost}
        for row in lost:
            row.status, row.due = "pending", True
            row.lost += 1

    def unburied(self) -> set[int]:
        return {
            row["id"] for row in self.sql("select id from push_listener.workers where stopped_at is null")
        }

    @rule(limit=st.integers(1, 3))
    def foreign_claim(self, limit: int) -> None:
        """A worker of the application's own, through the functions."""
        for push_id in self.first(1000):
            if self.rows[push_id].past:
                self.rows[push_id].status = "expired"
        expected = [
            push_id
            for push_id in self.all_due()
            if not self.rows[push_id].topic and not self.rows[push_id].past
        ][:limit]
        found = self.sql("select id from fetch_pending_pushes(%(limit)s)", limit=limit)
        assert [row["id"] for row in found] == expected
        for push_id in expected:
            self.rows[push_id].claim(None)

    def all_due(self) -> list[UUID]:
        due = self.sql(
            "select id from push_notifications "
            "where status in ('pending', 'processing', 'failed') and next_attempt_at <= clock_timestamp() "
            "order by (case priority when 'high' then 0 else 1 end), next_attempt_at"
        )
        return [row["id"] for row in due]

    @precondition(lambda self: any(r.status == "processing" and r.worker is None for r in self.rows.values()))
    @rule(data=st.data(), good=st.booleans())
    def foreign_settle(self, data: st.DataObject, good: bool) -> None:
        theirs = [k for k, row in self.rows.items() if row.status == "processing" and row.worker is None]
        push_id = self.some(data, theirs)
        row = self.rows[push_id]
        if good:
            self.sql("select mark_push_sent(%(id)s)", id=push_id)
            row.status = "delivered" if row.received else "sent"
            row.logs["sent"] += 1
            return
        self.sql("select mark_push_failed(%(id)s, 'no')", id=push_id)
        row.logs["failed"] += 1
        row.tries += 1
        row.status = "dead" if row.tries >= TRIES else "expired" if row.past else "failed"
        row.due = False

    # --- what is true at any time ------------------------------------------------------------------------

    @invariant()
    def postgres_agrees(self) -> None:
        found = self.sql(
            "select id, status, next_attempt_at <= clock_timestamp() as due, delivery_attempts, retry_count, "
            "lost_claims, claimed_by, delivered_at is not null as received, "
            "(select jsonb_object_agg(l.status, l.n) from ("
            "  select case when details ? 'receipt' then 'receipt ' else '' end || status as status, count(*) as n "
            "    from push_delivery_logs where push_id = p.id group by 1) l) as logs "
            "from push_notifications p"
        )
        assert {row["id"] for row in found} == set(self.rows)
        for row in found:
            model = self.rows[row["id"]]
            assert (
                row["status"],
                row["delivery_attempts"],
                row["retry_count"],
                row["lost_claims"],
                row["received"],
            ) == (model.status, model.attempts, model.tries, model.lost, model.received)
            if model.status in WAITING:
                assert row["due"] == model.due
            else:
                assert row["due"] is None
            if model.status == "processing":
                assert row["claimed_by"] == model.worker
            assert row["retry_count"] <= TRIES
            assert (row["logs"] or {}) == {status: n for status, n in model.logs.items() if n}


@pytest.mark.timeout(600)  # when it fails, five minutes go into finding a short way to it
def test_rows_go_as_the_model_says(database: Database) -> None:
    with (
        asyncio.Runner() as runner,
        psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as conn,
        psycopg.connect(database.superuser_dsn, autocommit=True) as crash,
    ):
        crash.execute("set session_replication_role = replica")  # no trigger of the table is fired
        crash.execute("create temporary table before as table push_notifications")
        pool = ServicePool(Address(database.dsn), prepares=True)
        runner.run(pool.open())
        lives: list[psycopg.Connection] = []
        given = {
            "database": database,
            "runner": runner,
            "conn": conn,
            "crash": crash,
            "pool": pool,
            "lives": lives,
        }
        try:
            run_state_machine_as_test(
                type("Machine", (Rows,), given),
                settings=settings(
                    max_examples=30,
                    stateful_step_count=50,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            for life in lives:
                life.close()
            runner.run(pool.close())
