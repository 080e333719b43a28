"""What a person does with pushes: which rows it changes, what is recorded of it, and who may."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from listener.operating import changing
from listener.operating.acting import MOST, Acting, NotAllowed, Run
from listener.operating.changing import Action
from listener.operating.filters import Filter
from listener.postgres import connect
from listener.schema import migrate
from listener.schema.migrate import MigrationError
from tests.support.access import (
    APPLICATION,
    OPERATOR,
    OWNER,
    WORKER,
    Regime,
    make_operator,
    make_worker,
    project,
)
from tests.support.postgres import Database, Server
from tests.support.service import Rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

GIVEN_UP = ("dead", "expired", "failed", "cancelled")
WAITING = ("pending", "failed")


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def rows(shared_rows: Rows) -> Rows:
    return shared_rows


def acting_as(dsn: str) -> Acting:
    @asynccontextmanager
    async def session() -> AsyncIterator[connect.Connection]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            yield conn

    return Acting(session)


@pytest.fixture
def acting(database: Database) -> Acting:
    make_operator(database)
    return acting_as(database.dsn_as(OPERATOR))


async def records(rows: Rows) -> list[dict[str, Any]]:
    return await rows.query(
        "select login, who, what, filter, reason, affected, ids, run from push_listener.actions order by id"
    )


async def one_of_each(rows: Rows) -> dict[str, UUID]:
    """A push in each status, by status."""
    statuses = ("pending", "processing", "sent", "delivered", *GIVEN_UP)
    return {status: await in_status(rows, status) for status in statuses}


async def in_status(rows: Rows, status: str, **values: object) -> UUID:
    push = await rows.add(
        device_token="t", title="t", **{"status": status, "next_attempt_at": None, **values}
    )
    if status in ("pending", "processing", "failed"):
        await rows.query(
            "update push_notifications set next_attempt_at = now() + interval '1 hour' where id = %(push)s",
            push=push,
        )
    return push


async def now(rows: Rows) -> datetime:
    moment: datetime = (await rows.query("select clock_timestamp() as at"))[0]["at"]
    return moment


# --- which rows --------------------------------------------------------------------------------------------------


@pytest.mark.oldest_postgres
@pytest.mark.parametrize(
    ("what", "from_", "to"), [("requeue", GIVEN_UP, "pending"), ("cancel", WAITING, "cancelled")]
)
async def test_it_changes_those_it_may_and_no_other(
    acting: Acting, rows: Rows, what: Action, from_: Sequence[str], to: str
) -> None:
    pushes, others = await one_of_each(rows), await one_of_each(rows)
    changed = await acting.change(what, [*pushes.values(), uuid4()], who="anna", reason="")
    assert set(changed) == {pushes[status] for status in from_}
    after = await rows.all()
    for status in pushes:
        assert after[pushes[status]]["status"] == (to if status in from_ else status)
        assert after[others[status]]["status"] == status


ACTIONS: dict[str, tuple[Sequence[str], LiteralString, LiteralString]] = {
    "requeue": (
        GIVEN_UP,
        "select push_listener.operator_requeue(array[%(push)s::uuid], null, 'anna', null, null, null)",
        "select requeue_pushes(array[%(push)s::uuid])",
    ),
    "cancel": (
        WAITING,
        "select push_listener.operator_cancel(array[%(push)s::uuid], null, 'anna', null, null, null)",
        "select cancel_push(%(push)s::uuid)",
    ),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", ACTIONS)
async def test_a_row_becomes_what_the_applications_function_makes_of_it(rows: Rows, what: str) -> None:
    """In one transaction, so that both see the same time."""
    statuses, operators, applications = ACTIONS[what]
    await rows.query("drop trigger test_tell on push_notifications")
    for status in statuses:
        used = {
            "retry_count": 3, "lost_claims": 2, "delivery_attempts": 4, "error_code": "UNAVAILABLE", "claimed_by": 7,
            "last_error": "away", "created_at": await now(rows),
        }  # fmt: skip
        pair = [await in_status(rows, status, **used) for _ in range(2)]
        async with rows.connection.transaction():
            for statement, push in zip((operators, applications), pair, strict=True):
                await rows.connection.execute(statement, {"push": push})
            after = await rows.all(pair)
        first, second = ({**after[push], "id": None, "next_in": None} for push in pair)
        assert first == second
        assert first["status"] != status


async def test_what_changes_after_the_preview_is_left_alone(acting: Acting, rows: Rows) -> None:
    before = [await in_status(rows, "dead"), await in_status(rows, "pending")]
    until = await now(rows)
    after = [await in_status(rows, "dead"), await in_status(rows, "pending")]
    assert await acting.change("requeue", [before[0], after[0]], who="anna", reason="", until=until) == [
        before[0]
    ]
    assert await acting.change("cancel", [before[1], after[1]], who="anna", reason="", until=until) == [
        before[1]
    ]


async def test_a_row_that_another_transaction_has_locked_is_left_out(acting: Acting, rows: Rows) -> None:
    locked, free = await in_status(rows, "dead"), await in_status(rows, "dead")
    async with rows.connection.transaction():
        await rows.connection.execute("select from push_notifications where id = %s for update", (locked,))
        assert await acting.change("requeue", [locked, free], who="anna", reason="") == [free]
    assert await acting.change("requeue", [locked, free], who="anna", reason="") == [locked]


async def test_what_is_past_its_expires_at_is_not_put_back(acting: Acting, rows: Rows) -> None:
    past, later = [
        (await rows.query("select now() + make_interval(hours => %(h)s) as at", h=h))[0]["at"]
        for h in (-1, 1)
    ]
    over, good = (
        await in_status(rows, "expired", expires_at=past),
        await in_status(rows, "dead", expires_at=later),
    )
    assert await acting.change("requeue", [over, good], who="anna", reason="") == [good]


async def test_a_push_whose_result_could_not_be_written_is_put_back_when_it_is_named(
    acting: Acting, rows: Rows
) -> None:
    push = await in_status(rows, "processing")
    await rows.query(
        "insert into push_listener.unwritable_rows (push_id, statement, code, until) "
        "values (%(push)s, 'settle', 'P0001', 'infinity')",
        push=push,
    )
    assert await acting.change("requeue", [push], who="anna", reason="") == [push]
    assert await rows.query("select from push_listener.unwritable_rows") == []


# --- what is recorded --------------------------------------------------------------------------------------------


async def test_one_record_tells_who_did_what_to_which(acting: Acting, rows: Rows) -> None:
    pushes, run = [await in_status(rows, "dead") for _ in range(3)], uuid4()
    wanted = Filter(status="dead", code="UNREGISTERED")
    changed = await acting.change(
        "requeue", pushes, who="anna", reason="FCM was away", filter=wanted, run=run
    )
    cancelled = await acting.change("cancel", pushes[:1], who="cli:root", reason="")
    assert await records(rows) == [
        {
            "login": OPERATOR, "who": "anna", "what": "requeue", "reason": "FCM was away", "affected": 3,
            "filter": {"status": "dead", "code": "UNREGISTERED"}, "ids": changed, "run": run,
        },
        {
            "login": OPERATOR, "who": "cli:root", "what": "cancel", "reason": None, "affected": 1, "filter": None,
            "ids": cancelled, "run": None,
        },
    ]  # fmt: skip


async def test_of_nothing_there_is_no_record(acting: Acting, rows: Rows) -> None:
    sent = await in_status(rows, "sent")
    assert await acting.change("requeue", [sent, uuid4()], who="anna", reason="") == []
    assert await acting.change("cancel", [], who="anna", reason="") == []
    assert await acting.reveal(uuid4(), who="anna") is None
    assert await records(rows) == []


REFUSING: LiteralString = """
create function public.refuse() returns trigger language plpgsql as
  $$ begin raise exception using errcode = 'P0001', message = 'no'; end $$;
"""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "trigger",
    [
        "create trigger refuse after insert on push_listener.actions execute function public.refuse()",
        "create constraint trigger refuse after insert on push_listener.actions deferrable initially deferred "
        "for each row execute function public.refuse()",
        "create constraint trigger refuse after update or insert on public.push_notifications "
        "deferrable initially deferred for each row execute function public.refuse()",
    ],
    ids=["the record", "the record, at commit", "the push, at commit"],
)
async def test_neither_stays_without_the_other(acting: Acting, rows: Rows, trigger: LiteralString) -> None:
    dead, waiting = await in_status(rows, "dead"), await in_status(rows, "pending")
    before = await rows.all()
    await rows.query(REFUSING)
    await rows.query(trigger)
    for action in (
        acting.change("requeue", [dead], who="anna", reason=""),
        acting.change("cancel", [waiting], who="anna", reason=""),
        acting.send(token="t", user=None, title="t", body="b", who="anna"),
    ):
        with pytest.raises(psycopg.errors.RaiseException):
            await action
    assert await records(rows) == []
    assert without_time(await rows.all()) == without_time(before)


def without_time(rows: dict[UUID, dict[str, Any]]) -> dict[UUID, dict[str, Any]]:
    return {push: {**row, "next_in": None} for push, row in rows.items()}


async def test_a_thousand_ids_and_no_more(acting: Acting, rows: Rows) -> None:
    await rows.query(
        "insert into push_notifications (device_token, title, status, next_attempt_at) "
        "select 't', 't', 'dead', null from generate_series(1, %(most)s)",
        most=MOST + 1,
    )
    everything = list(await rows.all())
    for what in changing.ACTIONS:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="no more than 1000 elements"):
            await acting.change(what, everything, who="anna", reason="")
    assert len(await acting.change("requeue", everything[:MOST], who="anna", reason="")) == MOST
    assert [record["affected"] for record in await records(rows)] == [MOST]


async def test_what_is_recorded_has_bounds(acting: Acting, rows: Rows) -> None:
    push = await in_status(rows, "dead")
    for who, reason, message in (
        ("", "", "p_who must name the person, in 1 to 200 characters"),
        ("a" * 201, "", "p_who must name the person, in 1 to 200 characters"),
        ("anna", "a" * 1001, "p_reason must be no longer than 1000 characters"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            await acting.change("requeue", [push], who=who, reason=reason)
    assert await acting.change("requeue", [push], who="a" * 200, reason="a" * 1000) == [push]


async def test_a_filter_is_a_small_object(rows: Rows) -> None:
    wrong: tuple[LiteralString, ...] = ("'[]'", "'\"text\"'", "jsonb_build_object('code', repeat('x', 4096))")
    for each in wrong:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="p_filter must be"):
            await rows.query(
                f"select push_listener.operator_cancel('{{}}', null, 'anna', null, {each}, null)"
            )


# --- to reveal and to send ---------------------------------------------------------------------------------------


async def test_what_is_revealed_is_recorded(acting: Acting, rows: Rows) -> None:
    push = await rows.add(
        user_id=OWNER, title="secret title", body="secret body", data={"key": "secret"}, image="https://secret",
        options={"android": {}},
    )  # fmt: skip
    for token in ("token-2", "token-1", "token-2", None):
        await rows.query(
            "insert into push_delivery_logs (push_id, device_token, status) values (%(push)s, %(token)s, 'failed')",
            push=push,
            token=token,
        )
    shown = await acting.reveal(push, who="anna")
    assert shown is not None
    assert (shown.token, shown.title, shown.body, shown.data, shown.image, shown.options, shown.tokens) == (
        None, "secret title", "secret body", {"key": "secret"}, "https://secret", {"android": {}},
        ["token-1", "token-2"],
    )  # fmt: skip
    assert repr(shown) == "Revealed()"
    (record,) = await records(rows)
    assert (record["who"], record["what"], record["ids"], record["affected"]) == ("anna", "reveal", [push], 1)


async def test_a_reveal_that_its_caller_rolls_back_leaves_no_record(database: Database, rows: Rows) -> None:
    """SECURITY.md says so of a person with SQL. The page commits before it shows anything: the next test."""
    make_operator(database)
    push = await rows.add(title="t", body="secret", device_token="a token")
    with psycopg.connect(database.dsn_as(OPERATOR)) as connection:
        seen = connection.execute(
            "select body from push_listener.operator_reveal(%s, 'anna')", [push]
        ).fetchone()
        connection.rollback()
    assert (seen, await records(rows)) == (("secret",), [])


async def test_what_is_revealed_is_recorded_before_it_is_returned(acting: Acting, rows: Rows) -> None:
    push = await rows.add(title="t", body="secret", device_token="a token")
    assert await acting.reveal(push, who="anna") is not None
    assert [(record["login"], record["what"]) for record in await records(rows)] == [(OPERATOR, "reveal")]


async def test_a_reveal_of_huge_texts_is_bounded_and_says_so(acting: Acting, rows: Rows) -> None:
    push = await rows.add(
        device_token="t" * 500_000, title="ü" * 500_000, body="b" * 5_000_000, image="i" * 500_000,
        data={"lists": [[]] * 100_000}, options={"android": {"text": "o" * 500_000}},
    )  # fmt: skip
    await rows.query(
        "insert into push_delivery_logs (push_id, device_token, status) "
        "select %(push)s, repeat('l', 500000), 'failed' returning id",
        push=push,
    )
    shown = await acting.reveal(push, who="anna")
    assert shown is not None
    texts = [shown.token, shown.title, shown.body, shown.data, shown.image, shown.options, *shown.tokens]
    assert all(str(text).endswith(" ... (cut)") for text in texts)
    assert max(len(str(text)) for text in texts) < 17_000


async def test_a_text_of_the_most_characters_is_revealed_whole(acting: Acting, rows: Rows) -> None:
    push = await rows.add(device_token="t", title="ü" * 16_384, body="", data={"key": "v" * 16_000})
    shown = await acting.reveal(push, who="anna")
    assert shown is not None
    assert (shown.title, shown.body, shown.image) == ("ü" * 16_384, "", None)
    assert shown.data == {"key": "v" * 16_000}


async def test_a_test_push_is_recorded_without_its_token(acting: Acting, rows: Rows) -> None:
    to_device = await acting.send(token="secret-token", user=None, title="t", body="b", who="anna")
    to_user = await acting.send(token=None, user=OWNER, title="t", body="b", who="anna")
    made = await rows.all()
    assert (made[to_device]["device_token"], made[to_user]["user_id"]) == ("secret-token", OWNER)
    assert {row["priority"] for row in made.values()} == {"high"}
    assert {row["status"] for row in made.values()} == {"pending"}
    found = await records(rows)
    assert [(record["what"], record["ids"]) for record in found] == [
        ("send", [to_device]),
        ("send", [to_user]),
    ]
    assert "secret-token" not in str(await rows.query("select a::text from push_listener.actions a"))


async def test_a_test_push_to_an_installation_id(acting: Acting, rows: Rows) -> None:
    push = await acting.send(token="cLwDkXAPQ0aQqWZbZ3sPQZ", user=None, title="t", body="b", who="anna")
    row = await rows.get(push)
    assert (row["fid"], row["device_token"]) == ("cLwDkXAPQ0aQqWZbZ3sPQZ", None)


async def test_a_test_push_that_fcm_would_refuse_is_refused(acting: Acting, rows: Rows) -> None:
    for values in (
        {"token": None, "user": None, "title": "t", "body": "b"},
        {"token": "white space", "user": None, "title": "t", "body": "b"},
        {"token": "t", "user": None, "title": "t", "body": "b" * 5000},
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            await acting.send(who="anna", **values)  # type: ignore[arg-type]
    assert (await rows.all(), await records(rows)) == ({}, [])


# --- who may -----------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Acting, UUID], Awaitable[object]]] = {
    "requeue": lambda acting, push: acting.change("requeue", [push], who="anna", reason=""),
    "cancel": lambda acting, push: acting.change("cancel", [push], who="anna", reason=""),
    "reveal": lambda acting, push: acting.reveal(push, who="anna"),
    "send": lambda acting, push: acting.send(token="t", user=None, title="t", body="b", who="anna"),
}


@pytest.mark.oldest_postgres
async def test_the_owner_may_and_the_listeners_role_may_not(database: Database, rows: Rows) -> None:
    make_worker(database)
    for number, (name, call) in enumerate(CALLS.items()):
        push = await in_status(rows, "failed")
        before = await rows.get(push)
        for login in (WORKER, "authenticator"):
            with pytest.raises(NotAllowed, match=r"grant push_listener_operator to .*OPERATOR_DATABASE_URL"):
                await call(acting_as(database.dsn_as(login)), push)
        assert len(await records(rows)) == number, name
        assert {**await rows.get(push), "next_in": None} == {**before, "next_in": None}, name
        await call(acting_as(database.dsn), push)
        assert len(await records(rows)) == number + 1, name


FUNCTIONS: Sequence[LiteralString] = (
    "select push_listener.operator_requeue('{}', null, 'anna', null, null, null)",
    "select push_listener.operator_cancel('{}', null, 'anna', null, null, null)",
    "select push_listener.operator_reveal(gen_random_uuid(), 'anna')",
    "select push_listener.operator_send('t', null, 't', 'b', 'anna')",
)


@pytest.mark.usefixtures("alone")
@pytest.mark.oldest_postgres
async def test_a_grant_by_mistake_lets_nobody_act(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn) as superuser:
        for role in ("anon", "authenticated", "service_role", "push_listener"):
            name = sql.Identifier(role)
            superuser.execute(sql.SQL("grant usage on schema push_listener to {}").format(name))
            superuser.execute(
                sql.SQL("grant execute on all functions in schema push_listener to {}").format(name)
            )
            superuser.execute(sql.SQL("set local role {}").format(name))
            for statement in FUNCTIONS:
                with (
                    pytest.raises(
                        psycopg.errors.InsufficientPrivilege, match=f"^{role} may not act on pushes"
                    ),
                    superuser.transaction(),
                ):
                    superuser.execute(statement)
            superuser.rollback()


@pytest.mark.usefixtures("alone")
async def test_a_user_is_no_operator_whatever_was_granted(database: Database) -> None:
    """And a login without inheritance is one as soon as it takes the role."""
    with psycopg.connect(database.superuser_dsn) as superuser:
        superuser.execute("create role test_both login in role push_listener_operator, authenticated")
        superuser.execute("create role test_later login noinherit in role push_listener_operator")
        superuser.execute("set session authorization test_both")
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="test_both may not act"),
            superuser.transaction(),
        ):
            superuser.execute(FUNCTIONS[0])
        superuser.execute("set session authorization test_later")
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"),
            superuser.transaction(),
        ):
            superuser.execute(FUNCTIONS[0])
        superuser.execute("set local role push_listener_operator")
        superuser.execute(FUNCTIONS[0])
        superuser.rollback()


@pytest.mark.usefixtures("alone")
@pytest.mark.oldest_postgres
async def test_the_record_is_shown_to_no_user_whatever_was_granted(database: Database) -> None:
    make_worker(database)
    make_operator(database)
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(FUNCTIONS[3])
    seen = "select count(*) from push_listener.actions"
    for login in (WORKER, OPERATOR):
        with psycopg.connect(database.dsn_as(login)) as reader:
            assert reader.execute(seen).fetchone() == (1,)
    with psycopg.connect(database.superuser_dsn) as superuser:
        superuser.execute("grant usage on schema push_listener to authenticated")
        superuser.execute("grant select on push_listener.actions to authenticated")
        superuser.execute("set local role authenticated")
        assert superuser.execute(seen).fetchone() == (0,)
        superuser.rollback()


@pytest.mark.usefixtures("alone")
async def test_what_was_changed_of_it_is_told_and_set_again(database: Database) -> None:
    drift = "select finding from push_listener.drift() order by 1"
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("alter table push_listener.actions disable row level security")
        owner.execute("drop policy push_listener_reads on push_listener.actions")
        owner.execute("create policy push_listener_more on push_listener.actions using (true)")
        owner.execute("grant delete on push_listener.actions to push_listener_operator")
        owner.execute("revoke execute on function push_listener.ended_by_code from push_listener")
        assert [line for (line,) in owner.execute(drift)] == [
            "push_listener may not execute on push_listener.ended_by_code(integer)",
            "push_listener_operator may delete on push_listener.actions",
            "row-level security is off on push_listener.actions",
            "the policy push_listener_more on push_listener.actions is there, and is not meant to be",
            "the policy push_listener_reads on push_listener.actions is missing",
        ]
    migrate.apply(database.dsn)
    with psycopg.connect(database.dsn) as owner:
        assert owner.execute(drift).fetchall() == []


# --- how pushes ended --------------------------------------------------------------------------------------------


async def test_pushes_are_counted_by_the_code_with_which_they_ended(rows: Rows, database: Database) -> None:
    make_worker(database)
    for status, code in (
        ("sent", None), ("sent", None), ("delivered", None), ("dead", "UNREGISTERED"), ("dead", "INTERNAL"),
        ("expired", "UNREGISTERED"), ("cancelled", None), ("dead", None), ("pending", "UNAVAILABLE"),
    ):  # fmt: skip
        await in_status(rows, status, error_code=code)
    await rows.query(
        "insert into push_listener.daily_counts (day, error_code, sent) "
        "select (now() at time zone 'UTC')::date - n, '', 10 from generate_series(1, 2) n"
    )
    with psycopg.connect(database.dsn_as(WORKER)) as worker:
        found = worker.execute("select * from push_listener.ended_by_code(2) order by 1").fetchall()
    assert found == [("", 13, 1, 0), ("INTERNAL", 0, 1, 0), ("UNREGISTERED", 0, 1, 1)]


# --- an action on all that match ---------------------------------------------------------------------------------

Batch = tuple[list[UUID], str | None]


def batches(*given: list[UUID]) -> Callable[[str | None], Awaitable[Batch]]:
    """The ids as Reading.ids returns them: the cursor is the number of the next batch."""

    async def ids(after: str | None) -> Batch:
        number = int(after or 0)
        return given[number], str(number + 1) if number + 1 < len(given) else None

    return ids


async def a_run(
    acting: Acting, rows: Rows, ids: Callable[[str | None], Awaitable[Batch]], what: Action = "requeue"
) -> Run:
    return Run(
        acting, ids, what=what, who="anna", reason="again", filter=Filter(code="X"), until=await now(rows)
    )


@pytest.mark.parametrize(("what", "status"), [("requeue", "dead"), ("cancel", "pending")])
async def test_a_run_has_a_record_for_each_batch(
    acting: Acting, rows: Rows, what: Action, status: str
) -> None:
    pushes = [await in_status(rows, status) for _ in range(5)]
    run = await a_run(acting, rows, batches(pushes[:2], [], pushes[2:4], pushes[4:]), what)
    later = await in_status(rows, status)
    await rows.query(
        "update push_notifications set updated_at = clock_timestamp() where id = %(push)s", push=pushes[3]
    )
    assert (run.progress.done, run.progress.is_over) == (0, False)
    await run.perform()
    assert (run.progress.done, run.progress.skipped, run.progress.is_over) == (4, 1, True)
    found = await records(rows)
    assert [record["ids"] for record in found] == [pushes[:2], pushes[2:3], pushes[4:]]
    for record in found:
        assert (record["what"], record["run"], record["reason"]) == (what, run.id, "again")
        assert record["filter"] == {"code": "X"}
    after = await rows.all()
    assert [after[push]["status"] == status for push in (pushes[3], later)] == [True, True]


async def test_an_aborted_run_begins_no_batch(acting: Acting, rows: Rows) -> None:
    pushes = [await in_status(rows, "dead") for _ in range(3)]
    reached, go_on = asyncio.Event(), asyncio.Event()
    give = batches(pushes[:1], pushes[1:2], pushes[2:])

    async def ids(after: str | None) -> Batch:
        if after == "1":
            reached.set()
            await go_on.wait()
        return await give(after)

    run = await a_run(acting, rows, ids)
    performing = asyncio.create_task(run.perform())
    await reached.wait()
    assert (run.progress.done, run.progress.is_over) == (1, False)
    run.abort()
    go_on.set()
    await performing
    assert run.is_aborted
    assert (run.progress.done, run.progress.is_over) == (1, True)
    assert [record["ids"] for record in await records(rows)] == [pushes[:1]]


@pytest.mark.usefixtures("alone")
async def test_a_batch_that_fails_leaves_those_before_it(acting: Acting, rows: Rows) -> None:
    pushes = [await in_status(rows, "dead") for _ in range(3)]
    await rows.query(REFUSING)
    await rows.query(
        f"create trigger refuse after update on push_notifications for each row when (new.id = '{pushes[1]}') "
        "execute function public.refuse()"
    )
    run = await a_run(acting, rows, batches(pushes[:1], pushes[1:]))
    with pytest.raises(psycopg.errors.RaiseException):
        await run.perform()
    assert (run.progress.done, run.progress.is_over) == (1, True)
    after = await rows.all()
    assert [after[push]["status"] for push in pushes] == ["pending", "dead", "dead"]
    assert [record["ids"] for record in await records(rows)] == [pushes[:1]]


async def test_a_run_of_a_login_that_may_not_act_changes_nothing(database: Database, rows: Rows) -> None:
    make_worker(database)
    push = await in_status(rows, "dead")
    run = await a_run(acting_as(database.dsn_as(WORKER)), rows, batches([push]))
    with pytest.raises(NotAllowed):
        await run.perform()
    assert run.progress.is_over
    assert (await rows.get(push))["status"] == "dead"


# --- there and back ----------------------------------------------------------------------------------------------

INDEXES: LiteralString = """
select c.relname::text, i.indisvalid, pg_get_indexdef(c.oid) from pg_class c join pg_index i on i.indexrelid = c.oid
  where c.relname in ('push_notifications_user', 'push_notifications_code') order by 1 desc
"""


@pytest.mark.usefixtures("alone")
async def test_the_indexes_are_on_every_table(postgres: Server, database: Database) -> None:
    with project(postgres, Regime.OLD, APPLICATION) as adopted, psycopg.connect(adopted.dsn) as conn:
        found = conn.execute(INDEXES).fetchall()
    with psycopg.connect(database.dsn) as conn:
        assert conn.execute(INDEXES).fetchall() == found
    assert [(name, valid) for name, valid, _ in found] == [
        ("push_notifications_user", True),
        ("push_notifications_code", True),
    ]
    user, code = (definition.partition(" USING ")[2] for *_, definition in found)
    assert user == "btree (user_id, created_at DESC, id) WHERE (user_id IS NOT NULL)"
    assert code.startswith('btree ("left"(')
    assert "error_code" in code.partition(" WHERE ")[0]


# Text that Postgres cannot compress below what an entry of an index may have (2,704 bytes).
LONG_CODE = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=4000))


@pytest.mark.usefixtures("alone")
async def test_a_push_with_a_long_code_can_be_inserted_and_can_expire(rows: Rows) -> None:
    await rows.add(title="t", device_token="t", status="dead", error_code=LONG_CODE)
    push = await rows.add(title="t", device_token="t", status="failed", error_code=LONG_CODE)
    await rows.query(
        "update push_notifications set status = 'expired' where id = %(id)s returning id", id=push
    )


@pytest.mark.usefixtures("alone")
async def test_a_table_with_a_long_code_can_be_migrated(database: Database) -> None:
    number = next(step.version for step in migrate.load() if step.name == "operator_indexes")
    migrate.rollback(database.dsn, number - 1)
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "insert into push_notifications (title, device_token, status, error_code) values ('t', 't', 'dead', %s)",
            [LONG_CODE],
        )
    migrate.apply(database.dsn)


@pytest.mark.usefixtures("alone")
async def test_the_way_back_does_not_lose_the_record_unasked(database: Database) -> None:
    number = next(step.version for step in migrate.load() if step.name == "operators")
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute(FUNCTIONS[3])
        owner.execute("delete from push_notifications")
    with pytest.raises(
        MigrationError, match=r"record of what operators did \(push_listener.actions\) has 1 rows"
    ):
        migrate.rollback(database.dsn, number - 1)
    undone = migrate.rollback(database.dsn, number - 1, discard_data=True)
    assert undone[-1].version == number
    migrate.apply(database.dsn)
