"""Rows that can never be sent: each ends, says why, and keeps nobody from being sent."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from listener.emulator import Emulator
from listener.postgres import workers
from listener.postgres.errors import Condition
from listener.postgres.queue import Queue
from listener.service import Service
from tests.support.postgres import Database
from tests.support.service import (
    Place,
    Rows,
    Shared,
    naming,
    pool_of,
    sample,
    serving,
    settings_for,
    shown,
    until,
    until_gone,
)

SECRET = "S3cr3t"
"""In every value below that must not be repeated."""

MB = 1 << 20

BAD: dict[str, tuple[dict[str, object], str, str]] = {
    # name: (columns, error_code, what the reason names)
    "data an array": ({"data": [SECRET, 1]}, "INVALID_DATA", "data must be a JSON object"),
    "data a string": ({"data": Jsonb(SECRET)}, "INVALID_DATA", "was it encoded twice?"),
    "data a number": ({"data": Jsonb(12345678)}, "INVALID_DATA", "data must be a JSON object"),
    "data null, nothing else": (
        {"data": Jsonb(None), "title": None, "body": None},
        "EMPTY_MESSAGE",
        "title, body, data and options are all empty",
    ),
    "body of 5 KB": ({"body": SECRET + "x" * 5000}, "PAYLOAD_TOO_LARGE", "FCM takes 4096 to a device"),
    "data of 5 KB": (
        {"data": {"k": SECRET + "x" * 5000}},
        "PAYLOAD_TOO_LARGE",
        "FCM takes 4096 to a device",
    ),
    "topic with 3 KB": (
        {"device_token": None, "topic": "news", "body": SECRET + "x" * 3000},
        "PAYLOAD_TOO_LARGE",
        "FCM takes 2048 to a topic",
    ),
    "token of 1 MB": ({"device_token": SECRET + "t" * MB}, "PAYLOAD_TOO_LARGE", "device_token"),
    "data of 1 MB": ({"data": {"k": SECRET + "d" * MB}}, "PAYLOAD_TOO_LARGE", "data"),
    "options of 1 MB": (
        {"options": {"android": {"k": SECRET + "o" * MB}}},
        "PAYLOAD_TOO_LARGE",
        "options",
    ),
    "no title": ({"title": None, "body": SECRET}, "TITLE_MISSING", "title is null and body is not"),
    "all null": (
        {"title": None, "body": None, "data": None},
        "EMPTY_MESSAGE",
        "title, body, data and options are all empty: nothing to send",
    ),
    "no target": ({"device_token": None}, "NO_TARGET", "set device_token, fid, topic, condition or user_id"),
    "two targets": ({"topic": "news"}, "INVALID_TARGET", "more than one of device_token, fid, topic and condition"),
    "unknown priority": ({"priority": SECRET}, "INVALID_PRIORITY", "priority must be 'normal' or 'high'"),
    "options a list": ({"options": [SECRET]}, "INVALID_OPTIONS", "options may have only android, apns"),
    "options of nobody": (
        {"options": {"blackberry": {"k": SECRET}}},
        "INVALID_OPTIONS",
        "options may have only android, apns",
    ),
    "a ttl that is none": ({"options": {"android": {"ttl": SECRET}}}, "INVALID_OPTIONS", "android.ttl"),
    "options FCM refuses": (
        {"options": {"android": {"notification": {"color": SECRET}}}},
        "INVALID_ARGUMENT",
        "FCM does not accept message.android.notification.color",
    ),
    "token with a space": ({"device_token": f"{SECRET} t"}, "INVALID_TOKEN", "device_token"),
    "token with umlauts": ({"device_token": f"{SECRET}ü"}, "INVALID_TOKEN", "device_token"),
    "token with a line break": ({"device_token": f"{SECRET}\n"}, "INVALID_TOKEN", "device_token"),
    "empty token": ({"device_token": ""}, "INVALID_TOKEN", "device_token is empty"),
    "topic with spaces": (
        {"device_token": None, "topic": f"{SECRET} news"},
        "INVALID_TOPIC",
        "topic must be one or more of",
    ),
    "condition of nothing": (
        {"device_token": None, "condition": " "},
        "INVALID_CONDITION",
        "condition must be an expression",
    ),
    "reserved data key": ({"data": {"google.x": SECRET}}, "INVALID_DATA", "FCM reserves the data key"),
    "user without devices": ({"device_token": None, "user_id": uuid4()}, "NO_RECIPIENTS", "no live device"),
}  # fmt: skip


async def good(rows: Rows, name: str) -> UUID:
    return await rows.add(device_token=f"{SECRET}-{name}", title="Hello", body="you", data={"k": "v"})


async def bad(rows: Rows, columns: dict[str, object]) -> UUID:
    return await rows.add(
        **{
            "device_token": f"{SECRET}-token",
            "title": SECRET,
            "body": SECRET,
            "data": {"k": SECRET},
            **columns,
        }
    )


@pytest.mark.oldest_postgres
async def test_one_batch_of_all_of_them_between_good_ones(database: Database, rows: Rows) -> None:
    neighbours, poison = [await good(rows, "first")], {}
    for name, (columns, *_) in BAD.items():
        poison[name] = await bad(rows, columns)
        neighbours.append(await good(rows, f"after {name}".replace(" ", "-")))
    expired = await bad(rows, {})
    await rows.query(
        "update push_notifications set expires_at = now() - interval '1 s' where id = %(id)s", id=expired
    )
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)) as service:
        found = await rows.over()
    for push_id in neighbours:
        assert (found[push_id]["status"], found[push_id]["last_error"]) == ("sent", None)
    for name, push_id in poison.items():
        row, (_, code, reason) = found[push_id], BAD[name]
        assert (name, row["status"], row["error_code"]) == (name, "dead", code)
        assert reason in row["last_error"], name
        assert row["retry_count"] == 0
    assert (found[expired]["status"], found[expired]["error_code"]) == ("expired", "EXPIRED")
    assert "expires_at" in found[expired]["last_error"]
    for push_id in (*poison.values(), expired):
        assert SECRET not in found[push_id]["last_error"]
    # All of it was one claim, and every row was claimed once.
    assert {row["delivery_attempts"] for row in found.values()} == {1}
    assert sample(service.metrics, "push_claimed_total") == len(found)
    assert len(emulator.accepted) == len(neighbours)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_far_too_large_never_reaches_the_service(place: Place) -> None:
    for columns, *_ in BAD.values():
        await bad(place.rows, columns)
    await bad(place.rows, {"body": "x" * 10 * MB})
    async with pool_of(place.database.dsn) as pool:
        pushes = await Queue(pool, worker_id=await workers.register(pool, "test"), lease=60.0).claim(100)
    assert len(pushes) == len(BAD) + 1
    assert sorted(filter(None, (push.oversized for push in pushes))) == [
        "body",
        "data",
        "device_token",
        "options",
    ]
    assert sum(len(repr(push)) for push in pushes) < 100_000


@pytest.mark.asyncio(loop_scope="module")
async def test_endless_expiry_and_json_null_in_data(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    first, null, last = (
        await good(rows, "first"),
        await bad(rows, {"data": Jsonb(None)}),
        await good(rows, "last"),
    )
    endless = {forever: await bad(rows, {}) for forever in ("infinity", "-infinity")}
    for forever, push_id in endless.items():
        await rows.query(
            "update push_notifications set expires_at = %(forever)s::timestamptz where id = %(id)s",
            forever=forever,
            id=push_id,
        )
    async with serving(place.settings()):
        found = await rows.over()
    assert {forever: found[push_id]["status"] for forever, push_id in endless.items()} == {
        "infinity": "sent",
        "-infinity": "expired",
    }
    assert {found[first]["status"], found[last]["status"], found[null]["status"]} == {"sent"}
    (message,) = [each.message for each in emulator.accepted if each.push_id == str(null)]
    assert message is not None
    assert message["data"] == {"push_id": str(null)}  # JSON null is no data


# --- triggers of the application's own ---------------------------------------------------------------------


async def trigger(rows: Rows, condition: str) -> None:
    """Has the application raise CODE on an update of a row for "touchy-CODE" that meets the condition."""
    await rows.connection.execute(
        f"""
        create function no_thanks() returns trigger language plpgsql as $$
          begin raise exception 'no thanks: %', new.title using errcode = split_part(new.device_token, '-', 2); end $$;
        create trigger no_thanks before update on push_notifications
          for each row when ({condition}) execute function no_thanks();
        """.encode()
    )


# Whatever an application may raise, or a fault in its function may.
CODES = ("P0001", "23514", "22000", "PT403", "P0002", "55000", "42703", "XX001")

ROUNDS = (CODES[:1], CODES[1:])
"""One row alone in its claim, and several."""


async def until_refused(rows: Rows, ids: list[UUID]) -> None:
    """Each of the rows is noted as one that cannot be written, or is over already."""
    left = (
        "select from push_notifications p where id = any(%(ids)s) and status in ('pending', 'processing') "
        "and not exists (select from push_listener.unwritable_rows where push_id = p.id)"
    )
    await until_gone(rows.query, left, ids=ids)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_raises_on_settling_rows(shared: Shared) -> None:
    rows = shared.rows
    await trigger(rows, "new.device_token like 'touchy-%' and new.status = 'sent'")
    for codes in ROUNDS:
        async with rows.connection.transaction():  # one claim takes them all
            neighbours = [await good(rows, f"before-{n}") for n in range(5)]
            touchy = {code: await rows.add(device_token=f"touchy-{code}", title=SECRET) for code in codes}
            neighbours += [await good(rows, f"after-{n}") for n in range(5)]
        # A row is blamed only once another one has been given the same status after it, and FCM's answers may come in
        # any order.
        await until_refused(rows, list(touchy.values()))
        neighbours.append(await good(rows, "later"))
        found = await rows.over(*neighbours, *touchy.values())
        assert {found[push_id]["status"] for push_id in neighbours} == {"sent"}
        assert {len(await rows.logs(push_id)) for push_id in neighbours} == {1}
        for code, push_id in touchy.items():
            with naming(code):
                row = found[push_id]
                assert (row["status"], row["error_code"]) == ("dead", "NOT_WRITTEN")
                assert row["last_error"].startswith("the result (sent) could not be written: SQLSTATE ")
                assert SECRET not in row["last_error"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_lets_nothing_be_settled_keeps_no_other_row(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    await trigger(rows, "new.device_token like 'touchy-%' and new.status <> 'processing'")
    touchy = await rows.add(device_token="touchy-P0001", title=SECRET)
    neighbour = await good(rows, "neighbour")
    async with serving(place.settings()):
        assert (await rows.one_over(neighbour))["status"] == "sent"
        assert (await rows.get(touchy))["status"] == "processing"
        # Sent again at the end of each lease, for ever? No: this process leaves it alone for a while.
        await rows.query("update push_notifications set next_attempt_at = now() where id = %(id)s", id=touchy)
        await rows.one_over(await good(rows, "another"))
    assert len(emulator.accepted) == 3
    assert (await rows.get(touchy))["delivery_attempts"] == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trigger_that_lets_rows_not_be_claimed_keeps_no_other_row(shared: Shared) -> None:
    rows = shared.rows
    await trigger(rows, "new.device_token like 'touchy-%'")
    for codes in ROUNDS:
        async with rows.connection.transaction():
            first = await good(rows, "first")
            touchy = [await rows.add(device_token=f"touchy-{code}", title=SECRET) for code in codes]
            last = await good(rows, "last")
        await rows.over(first, last)
        await rows.one_over(await good(rows, "late"))
        assert {row["status"] for row in (await rows.all(touchy)).values()} == {"pending"}


async def test_a_user_whose_recipients_cannot_be_read_keeps_no_neighbour(
    database: Database, rows: Rows
) -> None:
    """The application's own push_recipients raises an error for one user (a cast, a decryption)."""
    user = uuid4()
    await rows.device("bad", user)
    await rows.query("""
        create or replace view push_recipients with (security_invoker = true) as
          select user_id, case token when 'bad' then (1 / (length(token) - 3))::text else token end as token, platform
            from push_devices where disabled_at is null
    """)
    await rows.query(
        "insert into push_notifications (user_id, title) select %(user)s, 't' from generate_series(1, 60)",
        user=user,
    )
    await rows.add_many(30)
    neighbour = await rows.add(device_token="neighbour", title="t")
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        await rows.one_over(neighbour)


async def test_a_function_that_cannot_disable_a_token_keeps_no_other_row(
    rows: Rows, service: Service
) -> None:
    await rows.query(
        "create or replace function push_disable_token(p_token text, p_reason text) returns void language plpgsql as "
        "$$ begin raise exception 'not today: %', p_token using errcode = split_part(p_token, '-', 2); end $$"
    )
    for code in (*CODES, "57014", "55P03"):
        with naming(code):
            async with rows.connection.transaction():
                ids = [
                    await good(rows, "one"),
                    await rows.add(device_token=f"dead-{code}", title="t"),
                    await good(rows, "two"),
                ]
            found = await rows.over(*ids)
            logs = await rows.logs(ids[1])
            assert [found[push_id]["status"] for push_id in ids] == ["sent", "dead", "sent"]
            # What FCM said is written down all the same; only the token is asked for again with the next push.
            assert found[ids[1]]["error_code"] == "UNREGISTERED"
            assert [log["details"]["code"] for log in logs] == ["UNREGISTERED"]
    await shown(service.metrics, "push_dead_total", len(CODES) + 2, {"code": "UNREGISTERED"})
    assert sample(service.metrics, "push_tokens_disabled_total", {"code": "UNREGISTERED"}) == 0.0


async def test_what_was_undone_with_a_connection_that_died_over_a_token_is_written_again(
    database: Database, rows: Rows
) -> None:
    await rows.connection.execute("create sequence deaths")
    await rows.connection.execute("grant usage on sequence deaths to public")
    await rows.connection.execute(
        "create or replace function push_disable_token(p_token text, p_reason text) returns void language plpgsql as "
        "$$ begin if nextval('deaths') = 1 then perform pg_terminate_backend(pg_backend_pid()); end if; end $$"
    )
    ids = [await rows.add(device_token="dead-phone", title="t"), await good(rows, "one")]
    async with Emulator() as emulator, serving(settings_for(database.dsn, emulator)):
        found = await rows.over()
    assert [found[push_id]["status"] for push_id in ids] == ["dead", "sent"]
    assert [found[push_id]["delivery_attempts"] for push_id in ids] == [1, 1]
    assert [len(await rows.logs(push_id)) for push_id in ids] == [1, 1]


# --- faults of no row ----------------------------------------------------------------------------------------


async def failures(service: Service, statement: str) -> None:
    """Returns when a statement has failed so often that it is seen not to be given up."""
    labels = {"statement": statement}
    await until(lambda: (sample(service.metrics, "push_database_errors_total", labels) or 0.0) >= 3.0)


BREAKS = {
    "settle": (
        "alter table push_notifications rename sent_at to gone",
        "alter table push_notifications rename gone to sent_at",
    ),
    "claim": ("alter view push_recipients rename to gone", "alter view gone rename to push_recipients"),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_where_nothing_can_be_written_or_claimed_it_is_no_rows_fault(place: Place) -> None:
    rows, emulator = place.rows, place.emulator
    async with serving(place.settings()) as service:
        for failing, (breaks, mends) in BREAKS.items():
            with naming(failing):
                await rows.connection.execute(breaks.encode())
                ids = [await good(rows, f"{failing}-{n}") for n in range(5)]
                await failures(service, failing)
                await rows.connection.execute(mends.encode())
                found = await rows.over(*ids)
                assert {row["status"] for row in found.values()} == {"sent"}
                assert {len(await rows.logs(push_id)) for push_id in ids} == {1}
    assert emulator.stats()["duplicates"] == 0


LACKS = {
    "privilege": (
        "revoke update (claimed_by) on push_notifications from push_listener",
        "grant update (claimed_by) on push_notifications to push_listener",
    ),
    "column": (
        "alter table push_notifications rename column updated_at to changed_at",
        "alter table push_notifications rename column changed_at to updated_at",
    ),
}


async def test_no_row_is_blamed_for_what_every_claim_lacks(
    database: Database, rows: Rows, emulator: Emulator
) -> None:
    await rows.query("create role app_listener login in role push_listener")
    async with serving(settings_for(database.dsn_as("app_listener"), emulator)) as service:
        for what, (take, give) in LACKS.items():
            with naming(what):
                await rows.connection.execute(take.encode())
                push_id = await rows.add(device_token="phone", title="t")
                await until(lambda: service.obstacles() or emulator.accepted)
                await rows.connection.execute(give.encode())
                await rows.one_over(push_id)
                await until(lambda: service.obstacles() == [])
                assert await rows.query("select code from push_listener.unwritable_rows") == []
                emulator.clear()


REFUSALS = {
    "rule": (
        "create rule audit as on update to push_notifications do also select 1",
        "drop rule audit on push_notifications",
    ),
    "statement trigger": (
        "create trigger guard before update on push_notifications for each statement execute function guard()",
        "drop trigger guard on push_notifications",
    ),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_reachable_database_is_not_called_unreachable(shared: Shared) -> None:
    """A rule or a trigger refuses every claim, also one of no rows."""
    rows, service = shared.rows, shared.service
    await rows.query(
        "create function guard() returns trigger language plpgsql as $$ begin raise 'closed'; end $$"
    )
    for what, (refuse, allow) in REFUSALS.items():
        with naming(what):
            await rows.connection.execute(refuse.encode())
            push_id = await rows.add(device_token="phone", title="t")
            await until(service.obstacles)
            assert service.obstacles() == [str(Condition.REFUSED)]
            await rows.connection.execute(allow.encode())
            await rows.one_over(push_id)
            await until(lambda: service.obstacles() == [])
