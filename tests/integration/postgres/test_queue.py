"""The queue: claims, leases, fences and settlements on a real Postgres.

Each statement runs on the oldest version too, in the tests that use most of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from listener.postgres import claiming, errors, overview, queue, workers
from listener.postgres.connect import Address, Pool, ServicePool
from listener.postgres.frontier import WHOLE
from listener.postgres.overview import Depth
from listener.postgres.queue import Queue
from listener.postgres.settlements import Fate
from listener.push import Decision, LogLine, Push, Settlement, Status
from listener.schema import migrate
from tests.support.postgres import Database, Server, Template
from tests.support.service import PATIENCE, Rows, pool_of, rows_of, workers_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _of_module(postgres: Server) -> AsyncIterator[tuple[str, Rows, Pool]]:
    """A database that the tests share, with what they have of it open: most of them change nothing but rows."""
    with postgres.database(Template.MIGRATED) as database:
        async with rows_of(database.dsn) as rows, pool_of(database.dsn) as pool:
            await rows.may_be_early()
            yield database.dsn, rows, pool


@pytest_asyncio.fixture(loop_scope="module")
async def rows(_of_module: tuple[str, Rows, Pool]) -> AsyncIterator[Rows]:
    """Those of the shared database. There is none."""
    _, rows, _ = _of_module
    yield rows
    await rows.query(
        "truncate push_notifications, push_delivery_logs, push_devices, push_listener.workers, "
        "push_listener.unwritable_rows"
    )


@pytest.fixture
def dsn(_of_module: tuple[str, Rows, Pool]) -> str:
    return _of_module[0]


@pytest.fixture
def pool(_of_module: tuple[str, Rows, Pool]) -> Pool:
    return _of_module[2]


@pytest_asyncio.fixture(loop_scope="module")
async def own_rows(database: Database) -> AsyncIterator[Rows]:
    """Those of a database that a test has for itself, for it changes more than rows."""
    async with rows_of(database.dsn) as opened:
        await opened.may_be_early()
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def own_pool(database: Database) -> AsyncIterator[Pool]:
    async with pool_of(database.dsn) as opened:
        yield opened


async def worker(pool: Pool, lease: float = LEASE) -> Queue:
    incarnation = uuid4()
    worker_id = await workers.register(pool, "test", incarnation=incarnation)
    return Queue(pool, worker_id=worker_id, lease=lease, incarnation=incarnation)


async def depth_of(pool: Pool) -> Depth:
    return (await overview.read(pool)).depth


def sent(push: Push, *tokens: str, message_id: str = "projects/p/messages/1") -> Settlement:
    logs = [LogLine(token, "sent", {"attempt": push.attempt}) for token in tokens]
    return Settlement(push.id, push.attempt, Decision(Status.SENT, message_id=message_id), logs)


def again(push: Push, delay: float, *, uses_try: bool = True) -> Settlement:
    status = Status.FAILED if uses_try else Status.PENDING
    decision = Decision(status, delay, uses_try, "UNAVAILABLE", "in trouble")
    return Settlement(push.id, push.attempt, decision, [LogLine("a", "failed", {"attempt": push.attempt})])


async def due_at(rows: Rows, push_id: UUID, moment: str, **columns: str) -> None:
    """Moves a row in time; ``moment`` is seconds from now, or 'infinity' and the like."""
    when = sql.SQL("now() + make_interval(secs => {})").format(sql.Literal(float(moment)))
    if "infinity" in moment:
        when = sql.SQL("{}::timestamptz").format(sql.Literal(moment))
    await rows.connection.execute(
        sql.SQL("update push_notifications set next_attempt_at = {} where id = {}").format(
            when, sql.Literal(push_id)
        )
    )
    for name, value in columns.items():
        await rows.connection.execute(
            sql.SQL("update push_notifications set {} = {} where id = {}").format(
                sql.Identifier(name), sql.Literal(value), sql.Literal(push_id)
            )
        )


# --- plans that a session keeps ---------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_plans_that_were_made_while_the_tables_were_small_do_not_last(
    database: Database, own_rows: Rows
) -> None:
    """The first broadcast in a new database, and the first after a purge of all.

    Nothing invalidates a plan before the tables are analyzed.
    """
    async with ServicePool(Address(database.dsn), prepares=True) as pool:
        mine = await worker(pool)

        async def send(count: int) -> None:
            pushes = await mine.claim(count)
            assert len(pushes) == count
            await mine.settlements.settle([sent(push, "a") for push in pushes])
            await mine.earliest()

        async def read() -> int:
            async with pool.connection() as conn:
                await conn.execute("select pg_stat_force_next_flush()")
            (found,) = await own_rows.query(
                "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint as read from pg_stat_user_tables "
                "where relname in ('push_notifications', 'push_delivery_logs')"
            )
            return int(found["read"])

        # psycopg prepares a statement after 5 times, and Postgres keeps a plan after 5 more.
        for _ in range(12):
            await own_rows.add_many(1)
            await send(1)
        for _ in range(2):
            await own_rows.query("truncate push_notifications, push_delivery_logs")
            await own_rows.query("vacuum analyze push_notifications, push_delivery_logs")
            for _ in range(12):
                await own_rows.add_many(1)
                await send(1)
            await own_rows.add_many(5000)
            await send(200)
            before = await read()
            for _ in range(10):
                await send(200)
            assert await read() - before < 10 * 200 * 10  # some rows for each push


# --- claim ---------------------------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_a_claim_brings_every_column_that_is_sent(pool: Pool, rows: Rows) -> None:
    user = uuid4()
    push_id = await rows.add(
        device_token="t", user_id=user, title="T", body="B", data={"k": "v", "n": 1}, channel="c",
        priority="high", image="https://i", options={"android": {"ttl": "5s"}}, collapse_key="ck",
    )  # fmt: skip
    await rows.query(
        "update push_notifications set expires_at = now() + interval '100 s', "
        "created_at = now() - interval '50 s', next_attempt_at = now() - interval '7 s'"
    )
    mine = await worker(pool)
    (push,) = await mine.claim(10)
    row = await rows.get(push_id)
    assert push.expires_in is not None
    assert 100.0 - PATIENCE < push.expires_in <= 100.0
    assert 7.0 <= push.waited < 7.0 + PATIENCE
    assert push == Push(
        id=push_id, attempt=1, retry_count=0, lost_claims=0, device_token="t", fid=None, topic=None,
        condition=None, user_id=user,
        recipients=[], accepted_before=0, title="T", body="B", data='{"k": "v", "n": 1}', channel="c",
        priority="high", image="https://i", options='{"android": {"ttl": "5s"}}', collapse_key="ck",
        expires_at=row["expires_at"].timestamp(), expires_in=push.expires_in, waited=push.waited,
        oversized=None,
    )  # fmt: skip
    assert (row["status"], row["claimed_by"], row["delivery_attempts"]) == ("processing", mine.worker_id, 1)
    assert LEASE - PATIENCE < row["next_in"] <= LEASE
    assert row["last_retry_at"] is None


async def test_the_columns_of_a_claim_are_the_fields_of_a_push_in_their_order(dsn: str) -> None:
    due = queue._due_values(0, 0, [], WHOLE)
    values = {**due, "lease": LEASE, "worker": 1, "is_strict": True}
    with psycopg.connect(dsn) as conn:
        columns = conn.execute(claiming.CLAIM, values).description
    assert columns is not None
    assert [column.name for column in columns[6:]] == [field.name for field in dataclasses.fields(Push)]


@pytest.mark.oldest_postgres
async def test_high_priority_first_then_by_due_time_up_to_the_limit(pool: Pool, rows: Rows) -> None:
    names = {}
    for name, priority, due in [
        ("normal late", "normal", "-10"),
        ("normal early", None, "-30"),
        ("high late", "high", "-5"),
        ("high early", "high", "-20"),
        ("odd", "urgent!", "-25"),
    ]:
        push_id = await rows.add(device_token=name, title="t", priority=priority)
        await due_at(rows, push_id, due)
        names[push_id] = name
    await rows.query("update push_notifications set created_at = now() - interval '1 hour'")
    mine = await worker(pool)
    first, rest = await mine.claim(3), await mine.claim(10)
    assert [names[push.id] for push in first] == ["high early", "high late", "normal early"]
    assert [names[push.id] for push in rest] == ["odd", "normal late"]
    assert await mine.claim(10) == []


async def test_the_wait_of_a_row_scheduled_in_the_past_counts_from_its_insertion(
    pool: Pool, rows: Rows
) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, next_attempt_at) values ('t', 't', '-infinity')"
    )
    (push,) = await (await worker(pool)).claim(1)
    assert 0.0 <= push.waited < PATIENCE


@pytest.mark.oldest_postgres
async def test_the_wait_of_a_retry_counts_from_when_the_push_was_first_due(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)

    async def claim() -> Push:
        (push,) = await mine.claim(1)
        return push

    async def was_due_s(column: str = "push_first_due_at") -> float | None:
        query = f"select extract(epoch from now() - {column})::float8 as age from push_notifications"
        found = (await rows.query(query))[0]["age"]
        return None if found is None else float(str(found))

    await rows.query(
        "update push_notifications set next_attempt_at = now() - interval '300 s', "
        "created_at = now() - interval '1 day'"
    )
    assert await was_due_s() is None
    first = await claim()
    assert 300.0 <= first.waited < 300.0 + PATIENCE
    await mine.settlements.settle([again(first, 0.0)])
    second = await claim()
    assert 300.0 <= second.waited < 300.0 + PATIENCE
    await rows.query(
        "update push_notifications set next_attempt_at = now() - interval '1 s'"
    )  # the lease ended
    third = await claim()
    assert (third.lost_claims, 300.0 <= third.waited < 300.0 + PATIENCE) == (1, True)
    await mine.settlements.settle([again(third, 0.0, uses_try=False)])
    fourth = await claim()
    await mine.settlements.settle([sent(fourth, "t")])
    assert 300.0 <= fourth.waited < 300.0 + PATIENCE
    assert await was_due_s() is None

    await due_at(rows, push_id, "-5", status="pending")  # by hand: it begins anew
    fifth = await claim()
    assert 5.0 <= fifth.waited < 5.0 + PATIENCE


async def test_a_cancelled_push_that_is_requeued_by_hand_is_late_since_then(pool: Pool, rows: Rows) -> None:
    """As one that had ended otherwise is: its first life does not count."""
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    await rows.query("update push_notifications set next_attempt_at = now() - interval '300 s'")
    await rows.query("update push_notifications set created_at = now() - interval '1 day'")
    (first,) = await mine.claim(1)
    await mine.settlements.settle([again(first, 100.0)])
    await rows.query("select cancel_push(%(id)s)", id=push_id)
    await due_at(rows, push_id, "-5", status="pending")
    (push,) = await mine.claim(1)
    assert 5.0 <= push.waited < 5.0 + PATIENCE


@pytest.mark.parametrize("ended", ["cancelled", "sent", "dead"])
async def test_a_push_that_the_application_has_ended_itself_is_late_since_it_was_requeued(
    pool: Pool, rows: Rows, ended: str
) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    await rows.query(
        "update push_notifications set next_attempt_at = now() - interval '300 s', "
        "created_at = now() - interval '1 day'"
    )
    (first,) = await mine.claim(1)
    await mine.settlements.settle([again(first, 100.0)])
    assert (await rows.get(push_id))["push_first_due_at"] is not None
    await rows.query("update push_notifications set status = %(ended)s", ended=ended)
    assert (await rows.get(push_id))["push_first_due_at"] is None
    await due_at(rows, push_id, "-5", status="pending")
    (push,) = await mine.claim(1)
    assert 5.0 <= push.waited < 5.0 + PATIENCE


@pytest.mark.parametrize("call", ["mark_push_sent(id)", "mark_push_failed(id)"])
async def test_a_worker_of_another_kind_ends_the_wait_with_the_push(
    pool: Pool, rows: Rows, call: LiteralString
) -> None:
    push_id = await rows.add(device_token="t", title="t", retry_count=4)
    await rows.query("select id from fetch_pending_pushes(1)")
    assert (await rows.get(push_id))["push_first_due_at"] is not None
    await rows.query(f"select {call} from push_notifications")
    row = await rows.get(push_id)
    assert (row["status"] in ("sent", "dead"), row["push_first_due_at"]) == (True, None)


async def test_the_wait_counts_from_the_time_at_which_a_worker_of_another_kind_took_over(
    pool: Pool, rows: Rows
) -> None:
    """docs/state_machine.md: a claim of fetch_pending_pushes writes push_first_due_at, too."""
    await rows.add(device_token="t", title="t")
    await rows.query(
        "update push_notifications set next_attempt_at = now() - interval '300 s', "
        "created_at = now() - interval '1 day'"
    )
    assert len(await rows.query("select id from fetch_pending_pushes(1)")) == 1
    await rows.query("update push_notifications set next_attempt_at = now()")  # it died, and its lease ended
    (push,) = await (await worker(pool)).claim(1)
    assert 300.0 <= push.waited < 300.0 + PATIENCE


async def test_the_wait_of_a_push_that_was_never_tried_is_not_what_an_application_has_written(
    pool: Pool, rows: Rows
) -> None:
    """An insert may name the column, whatever it means by it."""
    await rows.query(
        "insert into push_notifications (device_token, title, push_first_due_at) values ('t', 't', '2020-01-01')"
    )
    (push,) = await (await worker(pool)).claim(1)
    assert 0.0 <= push.waited < PATIENCE


@pytest.mark.oldest_postgres
async def test_rows_of_the_future_are_left_alone(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    await due_at(rows, push_id, "30")
    mine = await worker(pool)
    assert await mine.claim(10) == []
    row = await rows.get(push_id)
    assert (row["status"], row["delivery_attempts"]) == ("pending", 0)
    earliest = await mine.earliest()
    assert earliest is not None
    assert 0.0 < earliest <= 30.0


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("status", ["sent", "delivered", "dead", "expired", "cancelled"])
async def test_what_is_over_is_never_claimed_whatever_its_time_says(
    pool: Pool, rows: Rows, status: str
) -> None:
    await rows.add(device_token="t", title="t", status=status)
    mine = await worker(pool)
    assert await mine.claim(10) == []
    assert await mine.earliest() is None
    assert sum((await depth_of(pool)).due.values()) == 0


async def test_a_row_without_a_time_is_never_claimed(pool: Pool, rows: Rows) -> None:
    await rows.add(device_token="t", title="t", status="failed", next_attempt_at=None)
    mine = await worker(pool)
    assert (await mine.claim(10), await mine.earliest()) == ([], None)


@pytest.mark.oldest_postgres
async def test_claims_at_the_same_time_share_no_row_and_leave_none(dsn: str, pool: Pool, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, priority) "
        "select 't', 't', case when n % 3 = 0 then 'high' else 'normal' end from generate_series(1, 800) n"
    )
    async with pool_of(dsn) as other_pool:
        workers = [await worker(pool), await worker(other_pool)]

        async def take_all(mine: Queue) -> list[UUID]:
            taken: list[UUID] = []
            while pushes := await mine.claim(37):
                taken += [push.id for push in pushes]
            return taken

        shares = await asyncio.gather(*(take_all(mine) for mine in workers for _ in range(2)))
    every = [push_id for share in shares for push_id in share]
    assert len(every) == len(set(every)) == 800
    assert sum(bool(share) for share in shares) >= 2


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("priority", ["normal", "high"])
async def test_a_row_that_another_transaction_holds_is_passed_over(
    pool: Pool, rows: Rows, priority: str
) -> None:
    held = await rows.add(device_token="held", title="t", priority=priority)
    free = await rows.add(device_token="free", title="t", priority=priority)
    mine = await worker(pool)
    async with rows.connection.transaction():
        await rows.query("select from push_notifications where id = %(id)s for update", id=held)
        async with asyncio.timeout(PATIENCE):
            assert [push.id for push in await mine.claim(10)] == [free]
    assert [push.id for push in await mine.claim(10)] == [held]


async def test_a_lease_that_has_ended_is_taken_over(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    first, second = await worker(pool), await worker(pool)
    (lost,) = await first.claim(1)
    assert await second.claim(1) == []
    await due_at(rows, push_id, "-1")
    (taken,) = await second.claim(1)
    assert (taken.id, taken.attempt, taken.retry_count) == (push_id, 2, 0)
    assert (await rows.get(push_id))["claimed_by"] == second.worker_id
    assert await first.settlements.settle([sent(lost, "t")]) == [Fate.TAKEN]


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("most", [1, 10])
async def test_what_is_not_to_be_claimed_is_not_and_is_not_waited_for(
    pool: Pool, rows: Rows, most: int
) -> None:
    ours, other = await rows.add(device_token="t", title="t"), await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    await due_at(rows, ours, "-60")
    await due_at(rows, other, "-30")
    assert [push.id for push in await mine.claim(most, most, [ours])] == [other]
    assert await mine.claim(most, most, [ours]) == []
    earliest = await mine.earliest([ours])
    assert earliest is not None
    assert earliest > 0.0  # the lease of the other


async def test_the_time_of_a_retry_is_kept(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await mine.settlements.settle([again(push, 0.0)])
    (push,) = await mine.claim(1)
    row = await rows.get(push_id)
    assert (push.retry_count, row["last_retry_at"]) == (1, row["updated_at"])


# --- infinite times --------------------------------------------------------------------------------------


@pytest.mark.parametrize("forever", ["infinity", "-infinity"])
async def test_a_push_with_an_infinite_expiry(pool: Pool, rows: Rows, forever: str) -> None:
    push_id = await rows.add(device_token="t", title="t")
    await due_at(rows, push_id, "-1", expires_at=forever)
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    if forever == "infinity":
        assert (push.expires_at, push.expires_in) == (None, None)
    else:
        assert (push.expires_at, push.expires_in) == (-math.inf, -math.inf)


@pytest.mark.oldest_postgres
async def test_infinite_times_of_the_queue(pool: Pool, rows: Rows) -> None:
    never = await rows.add(device_token="never", title="t")
    await due_at(rows, never, "infinity")
    mine = await worker(pool)
    assert await mine.claim(10) == []
    assert await mine.earliest() == math.inf
    depth = await depth_of(pool)
    assert (depth.by_status["pending"], depth.due, max(depth.oldest_due.values())) == (
        1,
        {"high": 0, "normal": 0},
        0.0,
    )

    always = await rows.add(device_token="always", title="t", priority="high")
    await due_at(rows, always, "-infinity")
    assert await mine.earliest() == -math.inf
    depth = await depth_of(pool)
    assert (depth.by_status["pending"], depth.due) == (2, {"high": 1, "normal": 0})
    assert 0.0 <= depth.oldest_due["high"] < PATIENCE
    assert [push.id for push in await mine.claim(10)] == [always]


# --- too large to be read --------------------------------------------------------------------------------


TEXTS = [
    "device_token", "topic", "condition", "title", "body", "channel", "priority", "image", "collapse_key"
]  # fmt: skip
JSONS = ["data", "options"]


@pytest.mark.oldest_postgres
async def test_a_column_that_is_far_too_large_is_named_and_not_read(pool: Pool, rows: Rows) -> None:
    added = {}
    for column in TEXTS + JSONS:
        # Repetitive text is compressed to almost nothing; what counts is its length when read.
        values: dict[str, object] = {"device_token": "t", "title": "T", "data": {"k": "v"}, "body": "B"}
        values[column] = {"k": "x" * 400_000} if column in JSONS else "x" * 40_000
        added[await rows.add(**values)] = column
    pushes = await (await worker(pool)).claim(100)
    assert {push.id: push.oversized for push in pushes} == added
    read = {added[push.id] for push in pushes if any(getattr(push, name) for name in TEXTS + JSONS)}
    assert read == set()


async def test_all_that_is_too_large_is_named(pool: Pool, rows: Rows) -> None:
    await rows.add(device_token="t", title="x" * 32_769, data={"k": "x" * 400_000}, body="x" * 32_768)
    (push,) = await (await worker(pool)).claim(1)
    assert push.oversized == "title, data"


async def test_what_just_fits_is_read(pool: Pool, rows: Rows) -> None:
    await rows.add(device_token="t", title="x" * 32_768)
    (push,) = await (await worker(pool)).claim(1)
    assert (push.oversized, len(push.title or "")) == (None, 32_768)


# --- to a user -------------------------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_recipients_are_the_live_devices_of_the_user(pool: Pool, rows: Rows) -> None:
    user = uuid4()
    await rows.device("phone", user)
    await rows.device("tablet", user, "ios")
    await rows.device("old", user)
    await rows.device("stranger", uuid4())
    await rows.query("update push_devices set disabled_at = now() where token = 'old'")
    await rows.add(user_id=user, title="t")
    (push,) = await (await worker(pool)).claim(1)
    assert sorted(push.recipients) == [("phone", "android"), ("tablet", "ios")]
    assert push.accepted_before == 0


@pytest.mark.parametrize("target", [{"device_token": "t"}, {"topic": "t"}, {"condition": "'t' in topics"}])
async def test_a_user_beside_another_target_adds_no_devices(
    pool: Pool, rows: Rows, target: dict[str, str]
) -> None:
    user = uuid4()
    await rows.device("phone", user)
    await rows.add(user_id=user, title="t", **target)
    (push,) = await (await worker(pool)).claim(1)
    assert push.recipients == []


@pytest.mark.oldest_postgres
async def test_a_retry_goes_only_to_devices_that_neither_accepted_nor_died(pool: Pool, rows: Rows) -> None:
    user = uuid4()
    for token in ("accepted", "failed", "dead", "new"):
        await rows.device(token, user)
    await rows.add(user_id=user, title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    settlement = again(push, 0.0)
    settlement.logs = [
        LogLine("accepted", "sent", {"message_id": "1"}),
        LogLine("failed", "failed", {"outcome": "retry"}),
        LogLine("dead", "failed", {"outcome": "drop_target"}),
    ]
    assert await mine.settlements.settle([settlement]) == [Fate.WRITTEN]
    (push,) = await mine.claim(1)
    assert sorted(token for token, _ in push.recipients) == ["failed", "new"]
    assert push.accepted_before == 1


async def test_an_applications_own_tokens_are_used_through_the_view_and_the_function(
    own_pool: Pool, own_rows: Rows
) -> None:
    await own_rows.connection.execute(
        """
        create table profiles (id uuid primary key, fcm_token text);
        create or replace view push_recipients with (security_invoker = true) as
          select id as user_id, fcm_token as token, null::text as platform
            from profiles where fcm_token is not null;
        create or replace function push_disable_token(p_token text, p_reason text) returns void
          language sql as $$ update profiles set fcm_token = null where fcm_token = p_token $$;
        """
    )
    user = uuid4()
    await own_rows.query("insert into profiles values (%(user)s, 'of-the-profile')", user=user)
    await own_rows.device("of-push-devices", user)
    await own_rows.add(user_id=user, title="t")
    mine = await worker(own_pool)
    (push,) = await mine.claim(1)
    assert push.recipients == [("of-the-profile", None)]
    settlement = Settlement(push.id, push.attempt, Decision(Status.DEAD, code="UNREGISTERED"))
    settlement.dead_tokens = [("of-the-profile", "UNREGISTERED")]
    await mine.settlements.settle([settlement])
    assert await own_rows.query("select fcm_token from profiles") == [{"fcm_token": None}]


# --- settle ----------------------------------------------------------------------------------------------


async def test_a_settled_push_and_its_log(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    assert await mine.settlements.settle([sent(push, "t", message_id="projects/p/messages/7")]) == [
        Fate.WRITTEN
    ]
    row = await rows.get(push_id)
    assert (row["status"], row["next_attempt_at"], row["fcm_message_id"]) == (
        "sent",
        None,
        "projects/p/messages/7",
    )
    assert row["sent_at"] == row["updated_at"] > row["created_at"]
    assert (row["retry_count"], row["error_code"], row["last_error"]) == (0, None, None)
    assert await rows.logs(push_id) == [{"device_token": "t", "status": "sent", "details": {"attempt": 1}}]
    assert await mine.claim(10) == []


async def test_a_failed_push_comes_back_after_its_delay(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await mine.settlements.settle([again(push, 30.0)])
    row = await rows.get(push_id)
    assert (row["status"], row["retry_count"]) == ("failed", 1)
    assert (row["error_code"], row["last_error"]) == ("UNAVAILABLE", "in trouble")
    assert 0.0 < row["next_in"] <= 30.0
    assert await mine.claim(10) == []


async def test_a_push_put_back_has_used_no_try(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await mine.settlements.settle([again(push, 0.0, uses_try=False)])
    row = await rows.get(push_id)
    assert (row["status"], row["retry_count"], row["delivery_attempts"]) == ("pending", 0, 1)


async def test_the_message_id_of_an_earlier_acceptance_is_kept(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    settlement = again(push, 0.0)
    settlement.decision = Decision(Status.FAILED, 0.0, True, "X", "x", message_id="projects/p/messages/1")
    await mine.settlements.settle([settlement])
    (push,) = await mine.claim(1)
    await mine.settlements.settle([Settlement(push.id, push.attempt, Decision(Status.SENT))])
    assert (await rows.get(push_id))["fcm_message_id"] == "projects/p/messages/1"


@pytest.mark.oldest_postgres
async def test_a_batch_gives_each_row_its_own(pool: Pool, rows: Rows) -> None:
    ids = [await rows.add(device_token=str(n), title="t") for n in range(3)]
    mine = await worker(pool)
    pushes = {push.id: push for push in await mine.claim(3)}
    a, b, c = (pushes[push_id] for push_id in ids)
    dead = Settlement(c.id, c.attempt, Decision(Status.DEAD, code="TITLE_MISSING", reason="no title"))
    assert await mine.settlements.settle([again(b, 30.0), dead, sent(a, "0", "0b")]) == [Fate.WRITTEN] * 3
    states = [(r["status"], r["error_code"]) for r in map((await rows.all()).get, ids) if r]
    assert states == [("sent", None), ("failed", "UNAVAILABLE"), ("dead", "TITLE_MISSING")]
    assert [len(await rows.logs(push_id)) for push_id in ids] == [2, 1, 0]


@pytest.mark.oldest_postgres
async def test_a_row_claimed_by_another_since_is_not_touched(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    ours = await rows.add(device_token="u", title="t")
    first, second = await worker(pool), await worker(pool)
    lost = {push.id: push for push in await first.claim(2)}
    await due_at(rows, push_id, "-1")
    await second.claim(1)
    before = await rows.get(push_id)
    del before["next_in"]
    # The others of the batch are written all the same.
    batch = [sent(lost[push_id], "t"), sent(lost[ours], "u")]
    assert await first.settlements.settle(batch) == [Fate.TAKEN, Fate.WRITTEN]
    after = await rows.get(push_id)
    del after["next_in"]
    assert after == before
    assert (await rows.get(ours))["status"] == "sent"


async def test_a_row_claimed_again_by_the_same_worker_is_another_attempt(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (lost,) = await mine.claim(1)
    await due_at(rows, push_id, "-1")
    (held,) = await mine.claim(1)
    assert await mine.settlements.settle([sent(lost, "t")]) == [Fate.TAKEN]
    assert (await rows.get(push_id))["status"] == "processing"
    assert await mine.settlements.settle([sent(held, "t")]) == [Fate.WRITTEN]


async def test_a_row_whose_count_was_reset_is_still_not_ours_when_another_has_it(
    pool: Pool, rows: Rows
) -> None:
    push_id = await rows.add(device_token="t", title="t")
    first, second = await worker(pool), await worker(pool)
    (lost,) = await first.claim(1)
    await rows.query(
        "update push_notifications set status = 'pending', delivery_attempts = 0, next_attempt_at = now()"
    )
    (held,) = await second.claim(1)
    assert lost.attempt == held.attempt
    assert await first.settlements.settle([sent(lost, "t")]) == [Fate.TAKEN]
    assert (await rows.get(push_id))["status"] == "processing"


async def test_a_row_cancelled_while_it_was_sent_stays_cancelled(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await rows.query("update push_notifications set status = 'cancelled', next_attempt_at = null")
    assert await mine.settlements.settle([sent(push, "t")]) == [Fate.CHANGED]
    assert (await rows.get(push_id))["status"] == "cancelled"


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("status", ["pending", "failed", "sent"])
async def test_a_status_that_others_have_given_the_row_is_not_taken_for_the_result(
    pool: Pool, rows: Rows, status: str
) -> None:
    """Peers took this worker for dead and put the row back, say."""
    push_id = await rows.add(device_token="a", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await rows.query(
        "update push_notifications set status = %(status)s, next_attempt_at = now() where id = %(id)s",
        status=status,
        id=push_id,
    )
    before = await rows.get(push_id)
    result = sent(push, "a") if status == "sent" else again(push, 30.0, uses_try=status == "failed")
    assert await mine.settlements.settle([result]) == [Fate.CHANGED]
    after = await rows.get(push_id)
    assert before.pop("next_in") > after.pop("next_in")
    assert after == before


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("delay", [None, 30.0])
async def test_a_settle_that_is_repeated_changes_nothing_and_logs_nothing(
    pool: Pool, rows: Rows, delay: float | None
) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    settlement = sent(push, "t") if delay is None else again(push, delay)
    await mine.settlements.settle([settlement])
    before = await rows.get(push_id)
    await mine.settlements.settle([settlement], is_retry=True)
    after = await rows.get(push_id)
    assert before.pop("next_in") == after.pop("next_in") or delay is not None
    assert after == before
    assert len(await rows.logs(push_id)) == 1


@pytest.mark.oldest_postgres
async def test_a_settle_that_is_repeated_after_another_claim_logs_nothing_twice(
    pool: Pool, rows: Rows
) -> None:
    push_id = await rows.add(device_token="a", title="t")
    mine, other = await worker(pool), await worker(pool)
    (push,) = await mine.claim(1)
    await mine.settlements.settle([again(push, 0.0)])
    (taken,) = await other.claim(1)
    assert await mine.settlements.settle([again(push, 0.0)], is_retry=True) == [Fate.WRITTEN]
    assert len(await rows.logs(push_id)) == 1
    await other.settlements.settle([again(taken, 0.0)], is_retry=True)
    assert len(await rows.logs(push_id)) == 2


async def test_a_settle_that_is_repeated_writes_what_the_first_did_not(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    assert await mine.settlements.settle([sent(push, "t")], is_retry=True) == [Fate.WRITTEN]
    assert (await rows.get(push_id))["status"] == "sent"
    assert len(await rows.logs(push_id)) == 1


async def test_a_receipt_that_came_before_the_answer_is_not_undone(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    await rows.query("update push_notifications set delivered_at = now()")
    await mine.settlements.settle([sent(push, "t")])
    assert (await rows.get(push_id))["status"] == "delivered"


@pytest.mark.oldest_postgres
async def test_what_somebody_has_locked_is_not_waited_for(pool: Pool, rows: Rows) -> None:
    held, free = await rows.add(device_token="t", title="t"), await rows.add(device_token="t", title="t")
    mine = await worker(pool)
    batch = [sent(push, "t") for push in await mine.claim(2)]
    ids = [held, free, uuid4()]
    async with rows.connection.transaction():
        await rows.query("select from push_notifications where id = %(id)s for update", id=held)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await mine.settlements.settle(batch)
        assert await mine.settlements.locked(ids) == {held}
        assert await mine.settlements.settle([s for s in batch if s.push_id == free]) == [Fate.WRITTEN]
    assert await mine.settlements.locked(ids) == set()
    assert await mine.settlements.settle(batch, is_retry=True) == [Fate.WRITTEN] * 2
    async with pool.connection() as conn:  # nothing stays
        assert await (await conn.execute("show lock_timeout")).fetchone() == ("0",)


@pytest.mark.oldest_postgres
async def test_dead_tokens_are_disabled_with_the_reason(pool: Pool, rows: Rows) -> None:
    user = uuid4()
    await rows.device("gone", user)
    await rows.device("alive", user)
    await rows.add(user_id=user, title="t")
    mine = await worker(pool)
    (push,) = await mine.claim(1)
    settlement = sent(push, "alive")
    settlement.dead_tokens = [("gone", "UNREGISTERED")]
    assert await mine.settlements.settle([settlement]) == [Fate.WRITTEN]
    devices = await rows.query(
        "select token, disabled_reason, disabled_at is not null as off from push_devices order by token"
    )
    assert devices == [
        {"token": "alive", "disabled_reason": None, "off": False},
        {"token": "gone", "disabled_reason": "UNREGISTERED", "off": True},
    ]


async def test_a_token_that_cannot_be_disabled_keeps_no_result(own_pool: Pool, own_rows: Rows) -> None:
    await own_rows.connection.execute(
        "create or replace function push_disable_token(p_token text, p_reason text) returns void "
        "language plpgsql as $$ begin update no_such_table set x = 1; end $$"
    )
    push_id = await own_rows.add(device_token="t", title="t")
    mine = await worker(own_pool)
    (push,) = await mine.claim(1)
    settlement = Settlement(push.id, push.attempt, Decision(Status.DEAD, code="UNREGISTERED"))
    settlement.dead_tokens = [("t", "UNREGISTERED")]
    assert await mine.settlements.settle([settlement]) == [Fate.WRITTEN]
    assert (await own_rows.get(push_id))["status"] == "dead"


# --- depth, workers --------------------------------------------------------------------------------------


async def test_a_push_that_waits_for_its_next_try_has_been_due_since_before_its_first(
    pool: Pool, rows: Rows
) -> None:
    """Also if its failure has used no try, so that it is pending; not while a worker holds it."""
    for status, first_due, oldest in (
        ("failed", "now() - interval '50 s'", 50.0),
        ("pending", "now() - interval '80 s'", 80.0),
        ("processing", "now() - interval '300 s'", 80.0),
        ("failed", "now() + interval '10 s'", 80.0),
        ("failed", "'infinity'", 80.0),
    ):
        push_id = await rows.add(device_token="t", title="t", status=status, delivery_attempts=1)
        await due_at(rows, push_id, "1000")
        await rows.connection.execute(
            f"update push_notifications set push_first_due_at = {first_due}, created_at = now() - interval '1 hour' "
            "where id = %s",
            (push_id,),
        )
        found = await depth_of(pool)
        assert oldest <= found.oldest_due["normal"] < oldest + PATIENCE / 2
        assert found.due["normal"] == 0


async def test_a_push_that_the_application_holds_is_not_due(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t", status="failed", delivery_attempts=1)
    await due_at(rows, push_id, "infinity")
    await rows.query("update push_notifications set push_first_due_at = now() - interval '50 s'")
    assert (await depth_of(pool)).oldest_due["normal"] == 0.0


@pytest.mark.oldest_postgres
async def test_depth_counts_what_waits_and_nothing_else(pool: Pool, rows: Rows) -> None:
    mine = await worker(pool)
    assert (await depth_of(pool)).by_status == {"pending": 0, "processing": 0, "failed": 0}
    for status, due in [("pending", "-40"), ("pending", "30"), ("failed", "-5"), ("sent", "-90")]:
        push_id = await rows.add(device_token="t", title="t", status=status, delivery_attempts=1)
        await due_at(rows, push_id, due)
        await rows.query("update push_notifications set created_at = now() - interval '1 hour'")
    depth = await depth_of(pool)
    assert depth.by_status == {"pending": 2, "processing": 0, "failed": 1}
    assert (depth.due, depth.scheduled) == ({"high": 0, "normal": 2}, 1)
    assert 40.0 <= depth.oldest_due["normal"] < 40.0 + PATIENCE
    await mine.claim(1)
    assert (await depth_of(pool)).by_status == {"pending": 1, "processing": 1, "failed": 1}


async def test_scheduled_are_those_whose_time_has_not_come(pool: Pool, rows: Rows) -> None:
    """A row whose lease has ended is due and never was scheduled; one that is passed over is due in spite of that."""
    for _ in range(3):
        await rows.add(device_token="t", title="t")
    await (await worker(pool)).claim(3)
    await rows.query("update push_notifications set next_attempt_at = now() - interval '1 s'")  # leases ended
    for _ in range(5):
        await due_at(rows, await rows.add(device_token="t", title="t"), "3600")
    assert (await depth_of(pool)).scheduled == 5


async def test_a_row_that_is_passed_over_is_not_scheduled(pool: Pool, rows: Rows) -> None:
    push_id = await rows.add(device_token="t", title="t")
    await rows.query(
        "insert into push_listener.unwritable_rows (push_id, statement, code, until) "
        "values (%(id)s, 'claim', 'P0001', now() + interval '1 h')",
        id=push_id,
    )
    assert (await depth_of(pool)).scheduled == 0


async def test_each_start_is_a_worker_of_its_own_that_signs_off(pool: Pool, rows: Rows) -> None:
    first, second = await worker(pool), await worker(pool)
    assert first.worker_id != second.worker_id
    await workers_of(first).sign_off()
    signed_off = await rows.query(
        "select id from push_listener.workers where name = 'test' and stopped_at is not null"
    )
    assert signed_off == [{"id": first.worker_id}]


# --- a table that was there before -------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_an_adopted_table(blank_database: Database) -> None:
    with psycopg.connect(blank_database.dsn, autocommit=True) as conn:
        conn.execute(
            """
            create table push_notifications (
              id uuid primary key default gen_random_uuid(),
              user_id uuid not null,
              title varchar(200) not null,
              body text not null default '',
              data json,
              priority varchar(10) not null default 'normal' check (priority in ('normal', 'high')),
              status varchar(20) not null default 'pending' check (status in ('pending', 'sent', 'failed')),
              retry_count smallint not null default 0,
              created_at timestamptz not null default now()
            )
            """
        )
    await asyncio.to_thread(migrate.apply, blank_database.dsn)
    async with pool_of(blank_database.dsn) as pool, rows_of(blank_database.dsn) as rows:
        user = uuid4()
        await rows.device("phone", user)
        push_id = await rows.add(user_id=user, title="Hello", data={"k": "v"})
        mine = await worker(pool)
        (push,) = await mine.claim(5)
        assert (push.title, push.body, push.data) == ("Hello", "", '{"k": "v"}')
        assert push.recipients == [("phone", "android")]
        assert await mine.settlements.settle([again(push, 0.0)]) == [Fate.WRITTEN]
        (push,) = await mine.claim(5)
        assert push.retry_count == 1
        assert await mine.settlements.settle([sent(push, "phone")]) == [Fate.WRITTEN]
        assert (await rows.get(push_id))["status"] == "sent"


# --- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.oldest_postgres
async def test_statements_that_were_prepared_before_a_column_got_another_type_are_prepared_anew(
    database: Database, own_rows: Rows
) -> None:
    """The server refuses them for as long as the session lasts."""
    async with ServicePool(Address(database.dsn), prepares=True) as pool:
        hands = await worker(pool)
        for _ in range(20):  # psycopg prepares what it executes for the sixth time
            await hands.claim(10)
        await own_rows.query("alter table push_notifications alter column title type varchar(500)")
        push_id = await own_rows.add(device_token="t", title="t")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as raised:
            await hands.claim(10)
        assert errors.is_transient(raised.value)
        assert [push.id for push in await hands.claim(10)] == [push_id]


@pytest.mark.oldest_postgres
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
async def test_a_transaction_that_holds_dead_rows_is_seen(dsn: str, pool: Pool, isolation: str) -> None:
    """One that has written holds them between its statements too, when it has no snapshot: its own id does."""
    async with rows_of(dsn) as holding, rows_of(dsn) as rows:
        await holding.connection.execute(f"begin isolation level {isolation}".encode())
        await holding.query("select pg_current_xact_id()")
        await rows.connection.execute(
            "do $$ begin for n in 1..100 loop perform pg_current_xact_id(); commit; end loop; end $$"
        )
        age = (await overview.read(pool)).server.snapshot_age
        assert age is not None
        assert age >= 100


async def test_a_session_plans_anew_when_the_table_has_doubled(dsn: str, rows: Rows) -> None:
    async with ServicePool(Address(dsn), prepares=True) as pool:

        async def discards(size: int) -> bool:
            """Whether the sessions plan anew, all of the pool, once the table has that size."""
            pool.note_size(size)
            async with AsyncExitStack() as stack:
                sessions = [await stack.enter_async_context(pool.connection()) for _ in range(pool.max_size)]
                last = await rows.query(
                    "select distinct query from pg_stat_activity where pid = any(%(pids)s)",
                    pids=[session.info.backend_pid for session in sessions],
                )
                for session in sessions:
                    await session.execute("select 1")
            return [row["query"] for row in last] == ["discard plans"]

        assert not await discards(100_000)
        assert await discards(1_000_000)
        assert not await discards(1_900_000)
        assert not await discards(8_192)  # Postgres itself plans anew when a table shrinks
        assert await discards(1_000_000)


async def test_a_claim_tells_the_size_of_the_table(dsn: str, rows: Rows) -> None:
    async with ServicePool(Address(dsn), prepares=True) as pool:
        mine = await worker(pool)
        assert await mine.claim(10) == []
        empty = pool._size
        await rows.add_many(1000)
        await mine.claim(10)
        (found,) = await rows.query("select pg_relation_size('push_notifications') as size")
        assert empty < found["size"] == pool._size
