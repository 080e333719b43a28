"""Triggers, indexes, constraints and locks of the application that refuse what the service writes, or make it slow.

At most one request is made for such a row, its neighbours go on at once, and all workers know of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from listener.emulator import Emulator
from listener.postgres import parts, queue
from listener.postgres.locks import CHANNEL
from listener.sending import dispatcher, result_writer, settler, sleeper, unwritten
from listener.sending.unwritten import Unwritten
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import (
    PATIENCE,
    Place,
    Rows,
    Shared,
    connect,
    dispatcher_of,
    naming,
    sample,
    serving,
    settings_for,
    shown,
    until,
    until_found,
    until_gone,
    with_arguments,
)


@pytest.fixture(scope="module", autouse=True)
def _short_waits() -> Iterator[None]:
    """What could not be written is tried again soon, however long a try takes."""
    with pytest.MonkeyPatch.context() as patch:
        with_arguments(patch, Unwritten, first_wait=0.1, longest_wait=0.3, share_of_time=0.8)
        yield


async def trigger(
    rows: Rows, when: str, condition: str, body: str, table: str = "push_notifications", name: str = "meddle"
) -> None:
    """Creates a row trigger of the application, e.g. ``before update``."""
    await rows.connection.execute(
        f"""
        create or replace function {name}() returns trigger language plpgsql as $$ begin {body} end $$;
        create or replace trigger {name} {when} on {table}
          for each row when ({condition}) execute function {name}();
        """.encode()
    )


async def unwritable(rows: Rows) -> dict[UUID, tuple[str, str]]:
    """The rows that are noted, with what could not be written and why."""
    found = await rows.query("select push_id, statement, code from push_listener.unwritable_rows")
    return {row["push_id"]: (row["statement"], row["code"]) for row in found}


async def until_noted(rows: Rows, *ids: UUID) -> None:
    async with asyncio.timeout(PATIENCE):
        while not set(ids) <= set(await unwritable(rows)):  # noqa: ASYNC110  # a table cannot notify
            await asyncio.sleep(0.02)


async def until_none_noted(rows: Rows) -> None:
    """The worker deletes a note just after it has written the row."""
    await until_gone(unwritable, rows)


async def end_lease(rows: Rows, push_id: UUID) -> None:
    """Makes the row due, past every trigger."""
    async with rows.connection.transaction():  # so that nobody else's write passes them
        await rows.query("alter table push_notifications disable trigger user")
        await rows.query(
            "update push_notifications set next_attempt_at = now() - interval '1 s' where id = %(id)s",
            id=push_id,
        )
        await rows.query("alter table push_notifications enable trigger user")


def tokens(emulator: Emulator) -> list[str]:
    """The registration tokens for which FCM has accepted a push, in order."""
    return [str(one.message["token"]) for one in emulator.accepted if one.message]


def hurried(dsn: str, timeout: str) -> str:
    """The same address, with a statement_timeout as a role may have it."""
    return psycopg.conninfo.make_conninfo(dsn, options=f"-c statement_timeout={timeout}")


def obstacles(service: Service) -> list[str]:
    return service.obstacles()


TOUCHY = "new.device_token = 'touchy'"

# What a trigger makes of a claim: (when, condition, body), and the code that is noted.
CLAIMS = {
    "returns the old row": ("before update", "true", "return old;", "IGNORED"),
    "ignores it": ("before update", "true", "return null;", "IGNORED"),
    "keeps the status": ("before update", "true", "new.status := old.status; return new;", "IGNORED"),
    "renames the status": (
        "before update",
        "new.status = 'processing'",
        "new.status := 'cancelled'; return new;",
        "IGNORED",
    ),
    "counts otherwise": (
        "before update",
        "true",
        "new.delivery_attempts := old.delivery_attempts; return new;",
        "IGNORED",
    ),
    "undoes it afterwards": (
        "after update",
        "new.status = 'processing'",
        "update push_notifications set status = 'pending', next_attempt_at = now() where id = new.id; return null;",
        "CHANGED",
    ),
    "raises an error": ("before update", "true", "raise exception 'no';", "P0001"),
    "raises an error afterwards": (
        "after update",
        "true",
        "raise 'no' using errcode = 'PT403'; return null;",
        "PT403",
    ),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_claimed_is_not_sent_and_keeps_no_other(place: Place) -> None:
    """Two rows of each kind in one claim."""
    rows, emulator = place.rows, place.emulator
    touchy = {}
    for n, (kind, (when, condition, body, _)) in enumerate(CLAIMS.items()):
        await trigger(rows, when, f"new.device_token = '{kind}' and {condition}", body, name=f"meddle_{n}")
        touchy[kind] = [await rows.add(device_token=kind, title="t") for _ in range(2)]
    neighbour = await rows.add(device_token="neighbour", title="t")
    async with serving(place.settings()) as service:
        assert (await rows.one_over(neighbour))["status"] == "sent"
        await until_noted(rows, *(push_id for ids in touchy.values() for push_id in ids))
        assert obstacles(service) == []
    noted = await unwritable(rows)
    found = {kind: {noted[push_id] for push_id in ids} for kind, ids in touchy.items()}
    assert found == {kind: {("claim", code)} for kind, (_, _, _, code) in CLAIMS.items()}
    # Another worker knows of them as well, and so does this one after a restart.
    async with serving(place.settings()):
        late = await rows.add(device_token="late", title="t")
        assert (await rows.one_over(late))["status"] == "sent"
    assert tokens(emulator) == ["neighbour", "late"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_row_that_alone_cannot_be_claimed_is_noted_and_not_sent(shared: Shared) -> None:
    """One kind after the other, so that none is found out because another one made the claim fail."""
    rows, emulator = shared.rows, shared.emulator
    found = {}
    for kind, (when, condition, body, _) in CLAIMS.items():
        await trigger(rows, when, condition, body)
        touchy = await rows.add(device_token=kind, title="t")
        await until_noted(rows, touchy)
        found[kind] = await unwritable(rows)
        await rows.query("drop trigger meddle on push_notifications; delete from push_notifications")
        await rows.query("delete from push_listener.unwritable_rows")
    assert [list(notes.values()) for notes in found.values()] == [
        [("claim", code)] for _, _, _, code in CLAIMS.values()
    ]
    assert tokens(emulator) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_many_that_cannot_be_claimed_in_front_of_a_fresh_one(place: Place) -> None:
    rows = place.rows
    async with serving(place.settings()) as service:
        # Those that are ignored are found in one claim, whatever their number.
        for body, many in (("raise exception 'no';", 600), ("return null;", 100), ("return old;", 100)):
            with naming(body):
                await trigger(rows, "before update", "new.device_token like 'touchy%'", body)
                looks = dispatcher_of(service).looks
                async with rows.connection.transaction():  # a claim finds them all
                    for _ in range(2):
                        await rows.add_many(many, "touchy")
                    fresh = await rows.add(device_token="fresh", title="t")
                assert (await rows.one_over(fresh))["status"] == "sent"
                assert dispatcher_of(service).looks - looks < 20
                await rows.query("delete from push_notifications; delete from push_listener.unwritable_rows")
    assert tokens(place.emulator) == ["fresh"] * 3


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_that_a_broken_trigger_refused_go_out_when_it_is_mended(place: Place) -> None:
    async with serving(place.settings(sweep_interval=1)):
        for case in (one_whose_lease_it_takes_away, several_that_it_refuses):
            with naming(case.__name__):
                await case(place.rows)


async def one_whose_lease_it_takes_away(rows: Rows) -> None:
    """A trigger of an older queue, where only a row that is pending has a next_attempt_at."""
    await trigger(
        rows,
        "before update",
        f"{TOUCHY} and new.status <> 'pending'",
        "new.next_attempt_at := null; return new;",
    )
    async with rows.connection.transaction():  # one claim takes both
        touchy = await rows.add(device_token="touchy", title="t")
        neighbour = await rows.add(device_token="neighbour", title="t")
    await rows.one_over(neighbour)
    await rows.query("drop trigger meddle on push_notifications")
    await rows.query("update push_listener.unwritable_rows set until = now()")  # it would last 10 s
    assert (await rows.one_over(touchy))["status"] == "sent"


async def several_that_it_refuses(rows: Rows) -> None:
    """By the time it is mended each of them is to wait for longer than the test does."""
    await trigger(rows, "before update", "true", "raise 'no';")
    waiting = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(3)]

    async def refusals() -> int:
        """Ends the pauses until there have been three, because they last 10 s and 20 s."""
        await rows.query("update push_listener.unwritable_rows set until = now() where times < 3")
        await rows.query("select pg_notify(%(channel)s, '')", channel=CHANNEL)
        found = await rows.query("select coalesce(min(times), 0) as n from push_listener.unwritable_rows")
        return int(found[0]["n"])

    async with asyncio.timeout(60):
        while await refusals() < 3:  # the pause is 40 s then  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await rows.query("drop trigger meddle on push_notifications")
    # One of them does not wait longer each time, and the others follow it.
    probes = await rows.query(
        "update push_listener.unwritable_rows set until = now() "
        "where until < now() + interval '10.1 s' returning push_id"
    )
    assert 0 < len(probes) < 3
    await rows.one_over(await rows.add(device_token="fresh", title="t"))
    await rows.over(*waiting, patience=25)


# What a trigger makes of the result "sent".
RESULTS = {
    "ignores-it": ("before update", "return null;"),
    "keeps-the-old-row": ("before update", "return old;"),
    "keeps-the-status": ("before update", "new.status := old.status; return new;"),
    "makes-it-pending-again": ("before update", "new.status := 'pending'; return new;"),
    "makes-it-pending-afterwards": (
        "after update",
        "update push_notifications set status = 'pending', next_attempt_at = now() where id = new.id; return null;",
    ),
    "raises-an-error": ("before update", "raise exception 'no';"),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_whose_result_cannot_be_written_is_sent_once(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    touchy = {}
    async with serving(place.settings()) as service:
        for n, (kind, (when, body)) in enumerate(RESULTS.items()):
            condition = f"new.device_token = '{kind}' and new.status not in ('pending', 'processing')"
            await trigger(rows, when, condition, body, name=f"meddle_{n}")
            touchy[kind] = await rows.add(device_token=kind, title="t")
            await until_noted(rows, touchy[kind])
        await rows.one_over(await rows.add(device_token="neighbour", title="t"))
        for push_id in touchy.values():
            await end_lease(rows, push_id)
        await rows.one_over(await rows.add(device_token="another", title="t"))
        assert obstacles(service) == []
    noted = await unwritable(rows)
    assert {kind: noted[push_id][0] for kind, push_id in touchy.items()} == dict.fromkeys(RESULTS, "settle")
    found = await rows.all(touchy.values())
    assert {row["status"] for row in found.values()} <= {"pending", "processing"}
    async with serving(place.settings()):
        await rows.one_over(await rows.add(device_token="late", title="t"))
        sent_to = tokens(emulator)
        assert sent_to == [*RESULTS, "neighbour", "another", "late"]
        # The first worker has kept the results, and would write them now. Somebody has to put the rows back.
        for n in range(len(RESULTS)):
            await rows.connection.execute(f"drop function meddle_{n} cascade".encode())
        assert await rows.query("select requeue_pushes(p_since := '2000-01-01') as n") == [{"n": 0}]
        ids = list(touchy.values())
        assert await rows.query("select requeue_pushes(%(ids)s::uuid[]) as n", ids=ids) == [{"n": len(ids)}]
        assert {row["status"] for row in (await rows.over(*ids)).values()} == {"sent"}
    assert sorted(tokens(emulator)) == sorted([*sent_to, *RESULTS])
    assert await unwritable(rows) == {}


# --- pushes that a trigger puts back into the queue after they were settled ----------------------------------------


REOPEN = (
    "update push_notifications set status = 'pending', next_attempt_at = now() where id = {}; return null;"
)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_on_the_log_that_makes_a_push_pending_again(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.query(
        "alter table push_notifications disable trigger test_tell"
    )  # the table has no trigger of its own
    await trigger(rows, "after insert", "true", REOPEN.format("new.push_id"), "push_delivery_logs")
    async with serving(place.settings()):
        touchy = await rows.add(device_token="touchy", title="t")
        await until_noted(rows, touchy)
        await rows.add(device_token="other", title="t")
        await until(lambda: "other" in tokens(emulator))
    assert tokens(emulator) == ["touchy", "other"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_is_deferred_makes_a_push_pending_again(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.query("alter table push_notifications disable trigger test_tell")
    await rows.connection.execute(
        f"""
        create function meddle() returns trigger language plpgsql as $$ begin {REOPEN.format("new.id")} end $$;
        create constraint trigger meddle after update on push_notifications deferrable initially deferred
          for each row when (new.status = 'sent') execute function meddle();
        """.encode()
    )
    async with serving(place.settings()):
        touchy = await rows.add(device_token="touchy", title="t")
        await until_noted(rows, touchy)
        await rows.add(device_token="other", title="t")
        await until(lambda: "other" in tokens(emulator))
    assert tokens(emulator) == ["touchy", "other"]


@pytest.mark.parametrize(
    ("when", "column", "table"),
    [("after update", "id", "push_notifications"), ("before insert", "push_id", "push_delivery_logs")],
    ids=["after the result", "before the log row"],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_is_made_while_the_service_runs_causes_one_more_request(
    place: Place, when: str, column: str, table: str
) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.query("alter table push_notifications disable trigger test_tell")
    condition = "new.status = 'sent'"
    body = REOPEN.format(f"new.{column}").replace("return null", "return new")
    async with serving(place.settings()) as service:
        await rows.add(device_token="before", title="t")
        await shown(service.metrics, "push_settled_total", 1.0, {"status": "sent"})
        await trigger(rows, when, condition, body, table)
        touchy = await rows.add(device_token="touchy", title="t")
        await until_noted(rows, touchy)
        other = await rows.add(device_token="other", title="t")  # the worker knows of the trigger now
        await until_noted(rows, other)
        await rows.add(device_token="another", title="t")
        await until(lambda: "another" in tokens(emulator))
    assert tokens(emulator) == ["before", "touchy", "touchy", "other", "another"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_that_the_application_makes_pending_again_is_sent_again(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    for _ in range(3):
        push_id = await rows.add(device_token="phone", title="t")
        await rows.one_over(push_id)
        await rows.query("update push_notifications set status = 'pending', next_attempt_at = now()")
        await rows.one_over(push_id)
        await rows.query("delete from push_notifications")
    assert len(emulator.accepted) == 6
    assert await unwritable(rows) == {}


# --- retries that a trigger changes --------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a_push_whose_retry_a_trigger_changes_ends(shared: Shared) -> None:
    rows, emulator = shared.rows, shared.emulator
    changes = {
        "flaky-that-loses-its-time": "new.next_attempt_at := null;",
        "flaky-that-never-comes": "new.next_attempt_at := 'infinity';",
        "flaky-that-counts-no-try": "new.retry_count := 0;",
    }
    emulator.add_fault("unavailable,token_prefix=flaky,times=1000,retry_after=0")
    found = {}
    for n, (token, change) in enumerate(changes.items()):
        condition = f"new.device_token = '{token}' and new.status = 'failed'"
        await trigger(rows, "before update", condition, f"{change} return new;", name=f"meddle_{n}")
        row = await rows.one_over(await rows.add(device_token=token, title="t"))
        found[token] = (row["status"], row["error_code"])
    assert found == dict.fromkeys(changes, ("dead", "NOT_WRITTEN"))
    # A retry that a trigger only puts off goes on.
    body = "new.next_attempt_at := new.next_attempt_at + interval '0.2 s'; return new;"
    await trigger(rows, "before update", "new.device_token = 'flaky' and new.status = 'failed'", body)
    emulator.clear_faults()
    emulator.add_fault("unavailable,token=flaky,times=2,retry_after=0")
    assert (await rows.one_over(await rows.add(device_token="flaky", title="t")))["status"] == "sent"
    assert await unwritable(rows) == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_device_that_accepted_gets_no_second_push_although_a_trigger_changes_the_log(
    shared: Shared,
) -> None:
    rows, emulator = shared.rows, shared.emulator
    changes = {
        "ignores": "return null;",
        "hashes": "new.device_token := md5(new.device_token); return new;",
        "renames": "new.status := 'unknown'; return new;",
    }
    emulator.add_fault("unavailable,token_prefix=flaky-phone,times=9,retry_after=0")
    found = {}
    for n, (kind, body) in enumerate(changes.items()):
        user = uuid4()
        await rows.device(f"phone-{kind}", user)
        await rows.device(f"flaky-phone-{kind}", user)
        condition = f"new.device_token like '%phone-{kind}%'"
        await trigger(rows, "before insert", condition, body, "push_delivery_logs", name=f"meddle_{n}")
        together = await rows.one_over(await rows.add(user_id=user, title="t"))
        alone = await rows.one_over(await rows.add(device_token=f"phone-{kind}-2", title="t"))
        found[kind] = [(row["status"], row["error_code"]) for row in (together, alone)]
    assert found == {kind: [("sent", "NOT_WRITTEN"), ("sent", None)] for kind in changes}
    assert tokens(emulator) == [f"phone-{kind}{end}" for kind in changes for end in ("", "-2")]


# --- results that need a row to show that they cannot be written ---------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_the_status_is_written_although_the_log_table_takes_no_row_and_the_rows_follow(
    shared: Shared,
) -> None:
    """Past one that is never taken."""
    rows, service = shared.rows, shared.service
    await rows.query("alter table push_delivery_logs add column region text not null")
    await rows.query("alter table push_delivery_logs add constraint odd check (device_token <> 'touchy')")
    await rows.add_many(8)
    others = [await rows.add(device_token=token, title="t") for token in ("touchy", "dead-phone")]
    await rows.add_many(8)
    found = await rows.over()
    gone = found.pop(others[1])
    assert {row["status"] for row in found.values()} == {"sent"}
    assert (gone["status"], gone["error_code"]) == ("dead", "UNREGISTERED")
    assert obstacles(service) == []

    async def logged(count: int) -> None:
        async with asyncio.timeout(60):
            while await rows.query("select count(*) as n from push_delivery_logs") != [{"n": count}]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await rows.query("alter table push_delivery_logs drop column region")
    await logged(17)
    await rows.query("alter table push_delivery_logs drop constraint odd")
    await logged(18)
    assert sample(service.metrics, "push_log_rows_lost_total") == 0
    assert shared.emulator.stats()["duplicates"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_results_that_no_row_takes_are_kept_and_written_when_the_table_is_mended(
    shared: Shared,
) -> None:
    rows, emulator = shared.rows, shared.emulator
    await rows.query("alter table push_notifications add constraint no_sent check (status <> 'sent')")
    ids = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(5)]
    await until_noted(rows, *ids)
    for push_id in ids:
        await end_lease(rows, push_id)
    await rows.query("alter table push_notifications drop constraint no_sent")
    found = await rows.over()
    assert {row["status"] for row in found.values()} == {"sent"}
    assert {len(await rows.logs(push_id)) for push_id in ids} == {1}
    assert len(emulator.accepted) == 5
    await until_none_noted(rows)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_device_that_accepted_gets_no_second_push_although_the_log_cannot_be_written(
    shared: Shared,
) -> None:
    rows, emulator = shared.rows, shared.emulator
    user = uuid4()
    await rows.device("phone-1", user)
    await rows.device("flaky-phone", user)
    await rows.query("alter table push_delivery_logs add column region text not null")
    push_id = await rows.add(user_id=user, title="t")
    await emulator.wait_accepted(1, timeout=PATIENCE)
    await rows.until(lambda found: found[push_id]["status"] != "pending")
    await rows.query("alter table push_delivery_logs drop column region")
    await rows.one_over(push_id)
    assert tokens(emulator).count("phone-1") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_one_token_that_cannot_be_disabled_keeps_no_other(shared: Shared) -> None:
    rows = shared.rows
    user = uuid4()
    for n in range(10):
        await rows.device(f"dead-{n}", user)
    await trigger(rows, "before update", "new.token = 'dead-3'", "raise 'no';", "push_devices")
    await rows.one_over(await rows.add(user_id=user, title="t"))
    found = await rows.query("select token from push_devices where disabled_at is null")
    assert [row["token"] for row in found] == ["dead-3"]


# --- a unique index ----------------------------------------------------------------------------------------------


ONE_WAITS = "create unique index one_waits on push_notifications (user_id) where status = 'pending'"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_unique_index_on_pending_rows_stops_no_takeover(place: Place) -> None:
    rows = place.rows
    await rows.query(ONE_WAITS)
    user = uuid4()
    await rows.query(
        "insert into push_listener.workers (name, guarded) values ('dead', true)",
    )
    theirs = [
        await rows.add(device_token="a", title="t", user_id=user, status="processing", claimed_by=1),
        await rows.add(device_token="b", title="t", status="processing", claimed_by=1),
    ]
    await rows.query(
        "update push_notifications set claimed_by = w.id, delivery_attempts = 1, "
        "next_attempt_at = now() + interval '1 h' from push_listener.workers w"
    )
    blocking = await rows.add(
        device_token="later", title="t", user_id=user, next_attempt_at="2100-01-01T00:00:00Z"
    )
    async with serving(place.settings()):
        found = await rows.over(*theirs)
    assert {row["status"] for row in found.values()} == {"sent"}
    assert {row["lost_claims"] for row in found.values()} == {1}
    assert (await rows.get(blocking))["status"] == "pending"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_unique_index_on_pending_rows_makes_no_row_dead_that_is_given_back(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.query(ONE_WAITS)
    user = uuid4()
    emulator.latency = 60.0
    async with serving(place.settings(shutdown_grace=20.0)) as service:
        first = await rows.add(device_token="phone", title="t", user_id=user)
        await rows.until(lambda found: found[first]["status"] == "processing")
        second = await rows.add(
            device_token="phone", title="t", user_id=user, next_attempt_at="2100-01-01T00:00:00Z"
        )
        await until(lambda: emulator.stats()["max_in_flight"] > 0)
        service.stop()
        service.stop()
        found = await rows.until(lambda found: found[first]["status"] != "processing")
    assert (found[first]["status"], found[second]["status"]) == ("failed", "pending")
    assert found[first]["next_attempt_at"] is not None


@pytest.mark.asyncio(loop_scope="module")
async def test_a_unique_index_on_processing_rows_keeps_no_neighbour(place: Place) -> None:
    """Rows of one batch refuse each other, and none is refused alone."""
    rows = place.rows
    await rows.query(
        "create unique index one_at_a_time on push_notifications (user_id) where status = 'processing'"
    )
    await rows.query("""
        insert into push_notifications (user_id, device_token, title)
          select u.id, 'phone-' || u.n || '-' || m, 't'
            from (select n, gen_random_uuid() as id from generate_series(1, 12) n) u, generate_series(1, 3) m
            order by u.n, m
    """)
    neighbour = await rows.add(device_token="neighbour", title="t")
    async with serving(place.settings()):
        await rows.one_over(neighbour)


# --- slow triggers and locks -------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_makes_a_claim_longer_than_statement_timeout(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    await rows.add_many(45)
    await trigger(rows, "before update", "true", "perform pg_sleep(0.01); return new;")
    async with serving(settings_for(hurried(place.database.dsn, "300ms"), emulator)):
        found = await rows.over(patience=90)
    assert {row["status"] for row in found.values()} == {"sent"}
    assert emulator.stats()["duplicates"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_result_that_takes_longer_than_statement_timeout_keeps_no_other(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    conditions = {"push_notifications": f"{TOUCHY} and new.status = 'sent'", "push_delivery_logs": TOUCHY}
    async with serving(settings_for(hurried(place.database.dsn, "400ms"), emulator)):
        for table, condition in conditions.items():
            with naming(table):
                emulator.clear()
                await trigger(
                    rows, "before insert or update", condition, "perform pg_sleep(1); return new;", table
                )
                touchy = await rows.add(device_token="touchy", title="t")
                await until(lambda: tokens(emulator))
                neighbours = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(5)]
                await rows.over(*neighbours)
                await rows.connection.execute(f"drop trigger meddle on {table}".encode())
                await rows.over(touchy)
                await until_found(rows.logs, touchy)
                assert sorted(tokens(emulator)) == sorted(["touchy", *(f"phone-{n}" for n in range(5))])
                await until_none_noted(rows)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_hangs_when_one_row_is_claimed_keeps_no_neighbour(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the patience of this service ends the statement."""
    rows = place.rows
    for module in (dispatcher, result_writer, settler, sleeper, unwritten, parts, queue):
        monkeypatch.setattr(module, "STATEMENT_PATIENCE_S", 1.0)
    await trigger(rows, "before update", TOUCHY, "perform pg_sleep(3600); return new;")
    async with serving(place.settings()):
        await rows.add(device_token="touchy", title="t")
        neighbours = [await rows.add(device_token=f"phone-{n}", title="t") for n in range(5)]
        await rows.over(*neighbours)


@pytest.mark.asyncio(loop_scope="module")
async def test_one_row_that_raises_and_one_that_is_slow_keep_no_neighbour(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    body = f"""if {TOUCHY} then raise 'no'; end if; perform pg_sleep(3); return new;"""
    await trigger(rows, "before update", f"{TOUCHY} or new.device_token = 'slow'", body)
    async with serving(settings_for(hurried(place.database.dsn, "1s"), emulator)):
        await rows.query(
            "insert into push_notifications (device_token, title) select unnest('{touchy,slow,phone}'::text[]), 't'"
        )
        await until(lambda: tokens(emulator) == ["phone"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_guard_against_large_updates_is_learnt(place: Place) -> None:
    rows = place.rows
    await rows.query("""
        create function meddle() returns trigger language plpgsql as $$ begin
          if (select count(*) from changed) > 20 then raise 'too many rows at once'; end if;
          return null;
        end $$;
        create trigger meddle after update on push_notifications referencing new table as changed
          for each statement execute function meddle();
    """)
    for _ in range(8):
        await rows.add_many(20)
    async with serving(place.settings()):
        await rows.over(patience=60)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_hangs_when_one_row_is_rescued_keeps_no_neighbour(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, emulator = place.rows, place.emulator
    monkeypatch.setattr(parts, "STATEMENT_PATIENCE_S", 4.0)
    await trigger(
        rows,
        "before update",
        f"{TOUCHY} and old.status = 'processing' and new.status = 'pending'",
        "perform pg_sleep(3600); return new;",
    )
    await rows.query("insert into push_listener.workers (name, guarded) values ('dead', true)")
    for token in ("touchy", "neighbour"):
        await rows.add(device_token=token, title="t", status="processing", claimed_by=1)
    await rows.query(
        "update push_notifications set claimed_by = w.id, delivery_attempts = 1, "
        "next_attempt_at = now() + interval '1 h' from push_listener.workers w"
    )
    async with serving(place.settings()):
        await until(lambda: "neighbour" in tokens(emulator))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_lock_that_a_trigger_needs_keeps_only_the_rows_that_need_it(place: Place) -> None:
    rows = place.rows
    await rows.query("create table counters (name text primary key, n integer not null)")
    await rows.query("insert into counters values ('touchy', 0)")
    await rows.query("grant all on counters to public")
    await trigger(
        rows, "before update", TOUCHY, "update counters set n = n + 1 where name = 'touchy'; return new;"
    )
    touchy = await rows.add(device_token="touchy", title="t")
    async with await connect(place.database.dsn) as locking:
        async with locking.transaction():
            await locking.execute("select from counters for update")
            async with serving(place.settings()):
                fresh = [
                    await rows.add(device_token=f"fresh-{n}", title="t", priority="high") for n in range(20)
                ]
                found = await rows.over(*fresh)
                assert {row["status"] for row in found.values()} == {"sent"}
                assert (await rows.get(touchy))["status"] == "pending"
        async with serving(place.settings()):
            assert (await rows.one_over(touchy))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_foreign_key_lock_of_the_application_keeps_no_push(place: Place) -> None:
    rows = place.rows
    await rows.query(
        "create table replies (push_id uuid references push_notifications (id))",
    )
    push_id = await rows.add(device_token="phone", title="t")
    async with await connect(place.database.dsn) as replying, replying.transaction():
        await replying.execute("insert into replies values (%s)", (push_id,))
        async with serving(place.settings()):
            assert (await rows.one_over(push_id))["status"] == "sent"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_locked_row_of_a_dead_worker_keeps_no_other_from_being_rescued(place: Place) -> None:
    rows = place.rows
    await rows.query("insert into push_listener.workers (name, guarded) values ('dead', true)")
    locked, free = [
        await rows.add(device_token=token, title="t", status="processing", claimed_by=1)
        for token in ("locked", "free")
    ]
    await rows.query(
        "update push_notifications set claimed_by = w.id, delivery_attempts = 1, "
        "next_attempt_at = now() + interval '1 h' from push_listener.workers w"
    )
    async with AsyncExitStack() as stack, await connect(place.database.dsn) as locking:
        async with locking.transaction():
            await locking.execute("select from push_notifications where id = %s for update", (locked,))
            await stack.enter_async_context(serving(place.settings()))
            assert (await rows.one_over(free))["status"] == "sent"
            assert (await rows.get(locked))["status"] == "processing"
        assert (await rows.one_over(locked))["status"] == "sent"


# --- a policy ----------------------------------------------------------------------------------------------------


async def test_a_policy_that_hides_pushes_from_the_listener_is_told(database: Database, rows: Rows) -> None:
    await rows.query("create role app_listener login in role push_listener")
    message = "a restrictive policy on push_notifications also applies to the user of DATABASE_URL"
    async with Emulator() as emulator:
        settings = settings_for(database.dsn_as("app_listener"), emulator, sweep_interval=1)
        with capture_logs() as told:
            async with serving(settings):
                await rows.one_over(await rows.add(device_token="phone", title="t"))
                assert not [line for line in told if line["event"].startswith(message)]
                await rows.query("""
                    create policy tenants on push_notifications as restrictive for all to public
                      using (user_id is not null)
                """)
                await until(lambda: [line for line in told if line["event"].startswith(message)])
