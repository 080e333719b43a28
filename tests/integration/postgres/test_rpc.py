"""The functions that PostgREST exposes, called as PostgREST calls them, by those who mean no good."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from listener.schema import migrate
from tests.support.postgres import Database
from tests.support.rpc import Caller, Second, post, refusal, request, rpc, session, use_every_function

ANN = "a0000000-0000-4000-8000-00000000000a"
BOB = "b0000000-0000-4000-8000-00000000000b"
ANNS_PUSH = "00000000-0000-4000-8000-000000000001"
BOBS_PUSH = "00000000-0000-4000-8000-000000000002"
HELD_PUSH = "00000000-0000-4000-8000-000000000003"
TAKEN_PUSH = "00000000-0000-4000-8000-000000000004"
NO_PUSH = "00000000-0000-4000-8000-00000000000f"

ANON = Caller("anon")
AS_ANN = Caller("authenticated", ANN)
AS_NOBODY = Caller("authenticated")
SERVICE = Caller("service_role")


TABLES = ("push_notifications", "push_delivery_logs", "push_devices", "telemetry_logs")


def contents(database: Database) -> list[list[tuple[Any, ...]]]:
    with psycopg.connect(database.dsn) as connection:
        return [
            connection.execute(f"select t::text from public.{t} t order by 1".encode()).fetchall()
            for t in TABLES
        ]


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def peopled(database: Database) -> Database:
    """Ann and Bob, each with a phone and a push; a push that a listener holds, and one taken by another worker."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            """
            insert into public.push_devices (token, user_id, platform)
              values ('ann-phone', %(ann)s, 'android'), ('bob-phone', %(bob)s, 'ios')
            """,
            {"ann": ANN, "bob": BOB},
        )
        connection.cursor().executemany(
            """
            insert into public.push_notifications (id, user_id, title, status, next_attempt_at, claimed_by)
              values (%s, %s, 'hello', %s, now() + %s * interval '1 minute', %s)
            """,
            [
                (ANNS_PUSH, ANN, "sent", None, 1),
                (BOBS_PUSH, BOB, "sent", None, 1),
                (HELD_PUSH, ANN, "processing", 1, 7),
                (TAKEN_PUSH, ANN, "processing", 1, None),
            ],
        )
        connection.execute(
            "insert into public.push_delivery_logs (push_id, device_token, status) values (%s, 'ann-phone', 'sent')",
            (ANNS_PUSH,),
        )
    return database


MEGABYTE = "x" * (1 << 20)
INJECTION = "'; drop table public.push_notifications; --"
INVALID_TEXT, INVALID_PARAMETER, NO_CHARACTER = "22P02", "22023", "22P05"
FORBIDDEN, NOT_THERE, WRONG_STATE, BAD_TIME = "42501", "PT404", "55000", "22007"


def receipt(
    push: object = ANNS_PUSH, token: object = "ann-phone", status: object = "opened", **more: object
) -> str:
    return json.dumps({"p_push_id": push, "p_device_token": token, "p_status": status, **more})


def receipts(**columns: object) -> str:
    one = {"push_id": ANNS_PUSH, "device_token": "ann-phone", "status": "opened", **columns}
    return json.dumps({"p_receipts": [one]})


def device(token: object = "phone", platform: object = "web", **more: object) -> str:
    return json.dumps({"p_token": token, "p_platform": platform, **more})


def push(**arguments: object) -> str:
    return json.dumps({"p_device_token": "phone", "p_title": "hello"} | arguments)


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


HOSTILE: dict[str, list[tuple[Caller, str, str]]] = {
    "fetch_pending_pushes": [
        (ANON, "{}", FORBIDDEN),
        (AS_ANN, "{}", FORBIDDEN),
        (AS_ANN, '{"p_limit": 1}', FORBIDDEN),
        (SERVICE, '{"p_limit": 0}', INVALID_PARAMETER),
        (SERVICE, '{"p_limit": -1}', INVALID_PARAMETER),
        (SERVICE, '{"p_limit": 1001}', INVALID_PARAMETER),
        (SERVICE, '{"p_limit": null}', INVALID_PARAMETER),
        (SERVICE, '{"p_limit": 99999999999}', "22003"),
        (SERVICE, '{"p_limit": "all"}', INVALID_TEXT),
        (SERVICE, '{"p_limit": [1]}', INVALID_TEXT),
        (SERVICE, json.dumps({"p_limit": INJECTION}), INVALID_TEXT),
    ],
    "mark_push_sent": [
        (ANON, json.dumps({"p_push_id": TAKEN_PUSH}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_push_id": TAKEN_PUSH}), FORBIDDEN),
        (SERVICE, json.dumps({"p_push_id": HELD_PUSH}), WRONG_STATE),
        (SERVICE, json.dumps({"p_push_id": NO_PUSH}), NOT_THERE),
        (SERVICE, '{"p_push_id": null}', INVALID_PARAMETER),
        (SERVICE, '{"p_push_id": 1}', INVALID_TEXT),
        (SERVICE, '{"p_push_id": {}}', INVALID_TEXT),
        (SERVICE, json.dumps({"p_push_id": INJECTION}), INVALID_TEXT),
        (SERVICE, json.dumps({"p_push_id": "x" * 400}), INVALID_TEXT),
        (SERVICE, '{"p_push_id": "\\u0000"}', NO_CHARACTER),
    ],
    "mark_push_failed": [
        (ANON, json.dumps({"p_push_id": TAKEN_PUSH, "p_error": "x"}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_push_id": TAKEN_PUSH, "p_error": "x"}), FORBIDDEN),
        (SERVICE, json.dumps({"p_push_id": HELD_PUSH, "p_error": "x"}), WRONG_STATE),
        (SERVICE, json.dumps({"p_push_id": ANNS_PUSH, "p_error": "x"}), WRONG_STATE),
        (SERVICE, json.dumps({"p_push_id": NO_PUSH, "p_error": MEGABYTE}), NOT_THERE),
        (SERVICE, '{"p_push_id": null, "p_error": null}', INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_push_id": [TAKEN_PUSH], "p_error": "x"}), INVALID_TEXT),
        (SERVICE, json.dumps({"p_push_id": TAKEN_PUSH, "p_error": "a\0b"}), NO_CHARACTER),
        (SERVICE, json.dumps({"p_push_id": TAKEN_PUSH, "p_error": "\ud800"}), INVALID_TEXT),
    ],
    "record_delivery_receipt": [
        (ANON, receipt(), FORBIDDEN),
        (AS_NOBODY, receipt(), FORBIDDEN),
        (Caller("authenticated", ""), receipt(), FORBIDDEN),
        (Caller("authenticated", "not-a-uuid"), receipt(), INVALID_TEXT),
        (AS_ANN, receipt(BOBS_PUSH), FORBIDDEN),
        (AS_ANN, receipt(BOBS_PUSH, "bob-phone"), FORBIDDEN),
        (AS_ANN, receipt(ANNS_PUSH, "bob-phone"), FORBIDDEN),
        (AS_ANN, receipt(NO_PUSH), FORBIDDEN),
        (AS_ANN, receipt(token="' or true --"), FORBIDDEN),
        (AS_ANN, receipt(token="ann-phone\u202e"), FORBIDDEN),
        (AS_ANN, receipt(token=["ann-phone"]), FORBIDDEN),
        (AS_ANN, receipt(token="ann-phone\0"), NO_CHARACTER),
        (AS_ANN, receipt(token="\ud800"), INVALID_TEXT),
        (AS_ANN, receipt(token=MEGABYTE), INVALID_PARAMETER),
        (AS_ANN, receipt(token=""), INVALID_PARAMETER),
        (AS_ANN, receipt(token=None), INVALID_PARAMETER),
        (AS_ANN, receipt(push=None), INVALID_PARAMETER),
        (AS_ANN, receipt(push=INJECTION), INVALID_TEXT),
        (AS_ANN, receipt(status="sent"), INVALID_PARAMETER),
        (AS_ANN, receipt(status="OPENED"), INVALID_PARAMETER),
        (AS_ANN, receipt(status=None), INVALID_PARAMETER),
        (AS_ANN, receipt(status=MEGABYTE), INVALID_PARAMETER),
        (AS_ANN, receipt(status=INJECTION), INVALID_PARAMETER),
        (AS_ANN, receipt(BOBS_PUSH, p_at="2026-01-01T00:00:00Z"), FORBIDDEN),
        (AS_ANN, receipt(p_at="yesterdayish"), BAD_TIME),
        (AS_ANN, receipt(p_at=1767225600), "22008"),
        (AS_ANN, receipt(p_at="9999999-01-01"), "22008"),
        (AS_ANN, receipt(p_details=[1]), INVALID_PARAMETER),
        (AS_ANN, receipt(p_details="text"), INVALID_PARAMETER),
        (AS_ANN, receipt(p_details={"a": MEGABYTE}), INVALID_PARAMETER),
        (AS_ANN, receipt(p_details={"a": list(range(20_000))}), INVALID_PARAMETER),
        (AS_ANN, receipt(p_details={"a": "\0"}), NO_CHARACTER),
        (AS_ANN, receipt()[:-1] + f', "p_details": {deep(50_000)}' + "}", "54001"),
        (SERVICE, receipt(NO_PUSH), NOT_THERE),
        (SERVICE, receipt(status="dead"), INVALID_PARAMETER),
    ],
    "flush_telemetry": [
        (ANON, '{"p_payloads": [{"type": "a", "message": "b"}]}', FORBIDDEN),
        (AS_NOBODY, '{"p_payloads": [{"type": "a", "message": "b"}]}', FORBIDDEN),
        (AS_ANN, '{"p_payloads": null}', INVALID_PARAMETER),
        (AS_ANN, '{"p_payloads": {"type": "a", "message": "b"}}', INVALID_TEXT),
        (AS_ANN, '{"p_payloads": "text"}', INVALID_TEXT),
        (AS_ANN, '{"p_payloads": 1}', INVALID_TEXT),
        (AS_ANN, '{"p_payloads": [[1, 2], [3]]}', "22P02"),
        (AS_ANN, '{"p_payloads": [{"type": "a", "message": "\\u0000"}]}', NO_CHARACTER),
        (AS_ANN, json.dumps({"p_payloads": [{"type": "a", "message": "b"}] * 1001}), INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_payloads": [1] * 20_000}), INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_payloads": [[1] * 1000] * 20}), INVALID_PARAMETER),
        (ANON, json.dumps({"p_payloads": [], "p_batch_id": NO_PUSH}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_payloads": None, "p_batch_id": NO_PUSH}), INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_payloads": [], "p_batch_id": INJECTION}), INVALID_TEXT),
        (AS_ANN, '{"p_payloads": [], "p_batch_id": 1}', INVALID_TEXT),
    ],
    "record_delivery_receipts": [
        (ANON, receipts(), FORBIDDEN),
        (AS_NOBODY, receipts(), FORBIDDEN),
        (AS_NOBODY, '{"p_receipts": []}', FORBIDDEN),
        (AS_ANN, '{"p_receipts": null}', INVALID_PARAMETER),
        (AS_ANN, '{"p_receipts": {}}', INVALID_TEXT),
        (AS_ANN, '{"p_receipts": "text"}', INVALID_TEXT),
        (AS_ANN, '{"p_receipts": [[1], [2, 3]]}', INVALID_TEXT),
        (AS_ANN, '{"p_receipts": [[1], [2]]}', INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_receipts": [{}] * 501}), INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_receipts": [1] * 20_000}), INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_receipts": [{"a": MEGABYTE + str(n)} for n in range(9)]}), "PT413"),
        (AS_ANN, receipts(details={"a": "\0"}), NO_CHARACTER),
        (AS_ANN, receipts(status="\ud800"), INVALID_TEXT),
        (AS_ANN, '{"p_receipts": [' + deep(50_000) + "]}", "54001"),
    ],
    "get_push": [
        (ANON, json.dumps({"p_push_id": ANNS_PUSH}), FORBIDDEN),
        (AS_NOBODY, json.dumps({"p_push_id": ANNS_PUSH}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_push_id": BOBS_PUSH}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_push_id": NO_PUSH}), FORBIDDEN),
        (AS_ANN, '{"p_push_id": null}', INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_push_id": INJECTION}), INVALID_TEXT),
        (AS_ANN, json.dumps({"p_push_id": [ANNS_PUSH]}), INVALID_TEXT),
        (AS_ANN, '{"p_push_id": "\\u0000"}', NO_CHARACTER),
        (SERVICE, json.dumps({"p_push_id": NO_PUSH}), NOT_THERE),
    ],
    "enqueue_pushes": [
        (ANON, '{"p_pushes": []}', FORBIDDEN),
        (AS_ANN, '{"p_pushes": []}', FORBIDDEN),
        (AS_ANN, json.dumps({"p_pushes": [{"user_id": ANN, "title": "to myself"}]}), FORBIDDEN),
        (SERVICE, '{"p_pushes": null}', INVALID_PARAMETER),
        (SERVICE, '{"p_pushes": {}}', INVALID_TEXT),
        (SERVICE, '{"p_pushes": "text"}', INVALID_TEXT),
        (SERVICE, '{"p_pushes": [[1, 2], [3]]}', INVALID_TEXT),
        (SERVICE, '{"p_pushes": [[1, 2], [3, 4]]}', INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_pushes": [{"topic": "a", "title": "b"}] * 10_001}), INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_pushes": [1] * 20_000}), INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_pushes": [{"topic": "a", "title": "b\0"}]}), NO_CHARACTER),
        (SERVICE, json.dumps({"p_pushes": [{"topic": "a", "title": "\udfff"}]}), INVALID_TEXT),
        (SERVICE, '{"p_pushes": [' + deep(50_000) + "]}", "54001"),
    ],
    "enqueue_push": [
        (ANON, push(), FORBIDDEN),
        (AS_ANN, push(), FORBIDDEN),
        (AS_ANN, json.dumps({"p_user_id": ANN, "p_title": "to myself"}), FORBIDDEN),
        (SERVICE, "{}", INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=INJECTION), INVALID_PARAMETER),
        (SERVICE, push(p_device_token="phone\n"), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=["phone", "other"]), INVALID_PARAMETER),
        (SERVICE, push(p_device_token="\u202ephone"), INVALID_PARAMETER),
        (SERVICE, push(p_topic="news"), INVALID_PARAMETER),
        (SERVICE, push(p_fid="dIsVQ2QVRT-TWzQVxvNYhM"), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_fid=""), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_fid=INJECTION), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_fid=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_topic=INJECTION), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_topic="news\n"), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_topic=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_condition=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_condition="\n"), INVALID_PARAMETER),
        (SERVICE, push(p_device_token=None, p_condition="'a' in topics || " * 6), INVALID_PARAMETER),
        (SERVICE, push(p_title=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_body=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_title="a\0"), NO_CHARACTER),
        (SERVICE, push(p_title="\udfff"), INVALID_TEXT),
        (SERVICE, push(p_data=[]), INVALID_PARAMETER),
        (SERVICE, push(p_data="{}"), INVALID_PARAMETER),
        (SERVICE, push(p_data=1), INVALID_PARAMETER),
        (SERVICE, push(p_data={"a": MEGABYTE}), INVALID_PARAMETER),
        (SERVICE, push(p_data={MEGABYTE: "a"}), INVALID_PARAMETER),
        (SERVICE, push(p_data={"a": [1] * 20_000}), INVALID_PARAMETER),
        (SERVICE, push(p_data={str(n): "" for n in range(20_000)}), INVALID_PARAMETER),
        (SERVICE, push(p_data={"a": "\0"}), NO_CHARACTER),
        (SERVICE, push(p_data={"gcm.notification.x": "a"}), INVALID_PARAMETER),
        (SERVICE, push()[:-1] + f', "p_data": {deep(50_000)}' + "}", "54001"),
        (SERVICE, push(p_options=[{}]), INVALID_PARAMETER),
        (SERVICE, push(p_options="android"), INVALID_PARAMETER),
        (SERVICE, push(p_options={"android": False}), INVALID_PARAMETER),
        (SERVICE, push(p_options={"token": {}}), INVALID_PARAMETER),
        (SERVICE, push(p_options={"android": {"a": MEGABYTE}}), INVALID_PARAMETER),
        (SERVICE, push(p_priority="HIGH"), INVALID_PARAMETER),
        (SERVICE, push(p_priority=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_channel=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_image=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_collapse_key=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_idempotency_key=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, push(p_idempotency_key=""), INVALID_PARAMETER),
        (SERVICE, push(p_user_id="me"), INVALID_TEXT),
        (SERVICE, push(p_expires_at="1999-01-01T00:00:00Z"), INVALID_PARAMETER),
        (SERVICE, push(p_expires_at="-infinity"), INVALID_PARAMETER),
        (SERVICE, push(p_expires_at="someday"), BAD_TIME),
        (SERVICE, push(p_expires_at="2999-01-01", p_send_at="2999-01-02"), INVALID_PARAMETER),
        (SERVICE, push(p_send_at="infinity"), INVALID_PARAMETER),
        (SERVICE, push(p_send_at="9999999-01-01"), "22008"),
    ],
    "register_device": [
        (ANON, device(), FORBIDDEN),
        (AS_NOBODY, device(), FORBIDDEN),
        (AS_ANN, device(p_user_id=BOB), FORBIDDEN),
        (AS_ANN, device("bob-phone", p_user_id=BOB), FORBIDDEN),
        (AS_NOBODY, device(p_user_id=BOB), FORBIDDEN),
        (AS_ANN, device(p_user_id="Ann"), INVALID_TEXT),
        (AS_ANN, device(MEGABYTE), INVALID_PARAMETER),
        (AS_ANN, device(""), INVALID_PARAMETER),
        (AS_ANN, device(None), INVALID_PARAMETER),
        (AS_ANN, device("a\nb"), INVALID_PARAMETER),
        (AS_ANN, device("t\u00f6ken"), INVALID_PARAMETER),
        (AS_ANN, device("a\0"), NO_CHARACTER),
        (AS_ANN, device(INJECTION), INVALID_PARAMETER),
        (AS_ANN, device({"a": "b c"}), INVALID_PARAMETER),
        (AS_ANN, device(platform="Android"), INVALID_PARAMETER),
        (AS_ANN, device(platform=None), INVALID_PARAMETER),
        (AS_ANN, device(platform=MEGABYTE), INVALID_PARAMETER),
        (SERVICE, device(), INVALID_PARAMETER),
        (SERVICE, device(p_user_id=1), INVALID_TEXT),
    ],
    "unregister_device": [
        (ANON, '{"p_token": "ann-phone"}', FORBIDDEN),
        (AS_NOBODY, '{"p_token": "ann-phone"}', FORBIDDEN),
        (AS_ANN, '{"p_token": null}', INVALID_PARAMETER),
        (AS_ANN, '{"p_token": ""}', INVALID_PARAMETER),
        (AS_ANN, json.dumps({"p_token": MEGABYTE}), INVALID_PARAMETER),
        (AS_ANN, '{"p_token": "\\u0000"}', NO_CHARACTER),
    ],
    "cancel_push": [
        (ANON, json.dumps({"p_push_id": ANNS_PUSH}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_push_id": ANNS_PUSH}), FORBIDDEN),
        (SERVICE, '{"p_push_id": null}', INVALID_PARAMETER),
        (SERVICE, '{"p_push_id": true}', INVALID_TEXT),
        (SERVICE, json.dumps({"p_push_id": INJECTION}), INVALID_TEXT),
    ],
    "requeue_pushes": [
        (ANON, json.dumps({"p_ids": [ANNS_PUSH]}), FORBIDDEN),
        (AS_ANN, json.dumps({"p_ids": [ANNS_PUSH]}), FORBIDDEN),
        (SERVICE, "{}", INVALID_PARAMETER),
        (SERVICE, '{"p_ids": null, "p_error_code": null, "p_since": null}', INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_ids": [NO_PUSH] * 20_000}), INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_ids": [[NO_PUSH] * 1000] * 11}), INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_ids": [INJECTION]}), INVALID_TEXT),
        (SERVICE, json.dumps({"p_ids": NO_PUSH}), INVALID_TEXT),
        (SERVICE, '{"p_since": "yesterdayish"}', BAD_TIME),
        (SERVICE, '{"p_until": "yesterdayish"}', BAD_TIME),
        (SERVICE, '{"p_status": "sent"}', INVALID_PARAMETER),
        (SERVICE, '{"p_status": "pending", "p_error_code": "X"}', INVALID_PARAMETER),
        (SERVICE, json.dumps({"p_status": INJECTION}), INVALID_PARAMETER),
        (SERVICE, '{"p_user_id": "me"}', INVALID_TEXT),
        (AS_ANN, json.dumps({"p_user_id": ANN}), FORBIDDEN),
        (SERVICE, '{"p_error_code": "X", "p_limit": -5}', INVALID_PARAMETER),
        (SERVICE, '{"p_error_code": "X", "p_limit": null}', INVALID_PARAMETER),
        (SERVICE, '{"p_error_code": "X", "p_limit": 100000}', INVALID_PARAMETER),
    ],
}


def test_hostile_input_is_refused_and_nothing_is_written(peopled: Database) -> None:
    before = contents(peopled)
    faults = []
    with session(peopled) as connection:
        for function, calls in HOSTILE.items():
            for caller, body, sqlstate in calls:
                if (found := refusal(connection, caller, function, body)) != sqlstate:
                    faults.append(f"{function} by {caller.role}: {found} and not {sqlstate}: {body[:200]}")
            if contents(peopled) != before:
                faults.append(f"{function} has written")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("caller", [ANON, AS_ANN, SERVICE], ids=lambda each: each.role)
def test_nobody_gets_at_what_the_functions_are_made_of(database: Database, caller: Caller) -> None:
    for call in (
        "push_listener.caller()",
        "push_listener.caller_id()",
        "push_listener.settled_before(gen_random_uuid(), 'sent')",
        "push_listener.store_telemetry('{}', gen_random_uuid(), gen_random_uuid())",
        "push_listener.adopted('push_devices')",
    ):
        with request(database, caller) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"select {call}".encode())


def test_text_is_kept_as_text(peopled: Database) -> None:
    title = INJECTION + " $1 %s %I \\ \u202e \U0001f4a9"
    made = rpc(
        peopled,
        SERVICE,
        "enqueue_push",
        p_device_token="$(x)`'\"\\",
        p_title=title,
        p_idempotency_key=INJECTION,
    )
    assert (
        rpc(peopled, SERVICE, "enqueue_push", p_topic="x", p_title="y", p_idempotency_key=INJECTION) == made
    )
    assert rpc(peopled, SERVICE, "mark_push_failed", p_push_id=TAKEN_PUSH, p_error=title) == "failed"
    details = {"a'; --": title}
    assert rpc(
        peopled,
        AS_ANN,
        "record_delivery_receipt",
        p_push_id=ANNS_PUSH,
        p_device_token="ann-phone",
        p_status="opened",
        p_details=details,
    )
    rpc(peopled, AS_ANN, "flush_telemetry", p_payloads=[{"type": INJECTION, "message": title}])
    assert rpc(peopled, SERVICE, "requeue_pushes", p_error_code=INJECTION) == 0
    with psycopg.connect(peopled.dsn) as connection:
        assert connection.execute(
            """
            select (select title from public.push_notifications where id = %s),
                   (select last_error from public.push_notifications where id = %s),
                   (select details -> 'receipt' from public.push_delivery_logs where status = 'opened'),
                   (select message from public.telemetry_logs where type = %s)
            """,
            (made, TAKEN_PUSH, INJECTION),
        ).fetchone() == (title, title, details, title)


def test_a_batch_of_telemetry_loses_only_what_is_bad(peopled: Database) -> None:
    good = {"type": "a", "message": "b"}
    payloads = [
        good,
        None,
        1,
        "x",
        True,
        [good],
        {},
        good | {"message": MEGABYTE},
        good | {"user_id": BOB},
        good,
    ]
    with request(peopled, AS_ANN) as connection:
        answer = post(connection, "flush_telemetry", json.dumps({"p_payloads": payloads}))[0][0]
    assert answer["accepted"] == 2
    assert [each["index"] for each in answer["rejected"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    with psycopg.connect(peopled.dsn) as connection:
        rows = connection.execute(
            "select user_id::text, batch_id::text from public.telemetry_logs"
        ).fetchall()
    assert rows == [(ANN, answer["batch_id"])] * 2


def test_an_array_of_arrays_of_objects_is_not_taken_for_objects(peopled: Database) -> None:
    payload = {"type": "a", "message": "b"}
    answer = rpc(peopled, AS_ANN, "flush_telemetry", p_payloads=[[payload, payload]])
    assert answer["accepted"] == 0
    assert [each["index"] for each in answer["rejected"]] == [0]


def test_a_role_of_the_applications_own_is_no_service(peopled: Database) -> None:
    """A role with the rights of ``authenticated`` is as bound to its own user as that is."""
    role = f"manager_{uuid4().hex[:8]}"
    with psycopg.connect(peopled.superuser_dsn, autocommit=True) as connection:
        name = sql.Identifier(role)
        connection.execute(
            sql.SQL("create role {0} in role authenticated; grant {0} to authenticator").format(name)
        )
        try:
            manager = Caller(role, ANN)
            before = contents(peopled)
            assert (
                refusal(peopled, manager, "register_device", device("bob-phone", p_user_id=BOB)) == FORBIDDEN
            )
            assert (
                refusal(peopled, manager, "record_delivery_receipt", receipt(BOBS_PUSH, "bob-phone"))
                == FORBIDDEN
            )
            assert rpc(peopled, manager, "unregister_device", p_token="bob-phone") is False
            assert contents(peopled) == before
        finally:
            connection.execute(sql.SQL("drop role {}").format(name))


# --- at the same time ------------------------------------------------------------------------------------


def test_two_workers_never_get_the_same_row(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            """
            insert into public.push_notifications (device_token, title, priority)
              select 'phone', n::text, case n % 3 when 0 then 'high' else 'normal' end from generate_series(1, 30) n
            """
        )
    with request(database, SERVICE) as one, request(database, SERVICE) as other:
        rows = [post(each, "fetch_pending_pushes", '{"p_limit": 10}') for each in (one, other, one, other)]
    taken = [row[0] for batch in rows for row in batch]
    assert [len(batch) for batch in rows] == [10, 10, 10, 0]
    assert len(set(taken)) == 30


def test_the_same_receipt_twice_at_the_same_time_is_noted_once(peopled: Database) -> None:
    arguments = {"p_push_id": ANNS_PUSH, "p_device_token": "ann-phone", "p_status": "opened"}
    with request(peopled, AS_ANN) as first:
        assert post(first, "record_delivery_receipt", json.dumps(arguments)) == [(True,)]
        second = Second(peopled, AS_ANN, "record_delivery_receipt", **arguments)
        second.wait_until_blocked()
    assert second.join() is False
    with psycopg.connect(peopled.dsn) as connection:
        query = "select count(*) from public.push_delivery_logs where status = 'opened'"
        assert connection.execute(query).fetchone() == (1,)


@pytest.mark.parametrize("commits", [True, False])
def test_the_same_keys_in_two_calls_at_the_same_time_are_the_same_pushes(
    database: Database, commits: bool
) -> None:
    """Whatever their order is: nobody waits in a circle."""
    pushes = [
        {"topic": "news", "title": "hello", "idempotency_key": f"key {n % 5}" if n % 2 else None}
        for n in range(20)
    ]
    with request(database, SERVICE) as first:
        made = post(first, "enqueue_pushes", json.dumps({"p_pushes": pushes}))
        second = Second(database, SERVICE, "enqueue_pushes", p_pushes=list(reversed(pushes)))
        second.wait_until_blocked()
        if not commits:
            first.rollback()
    second.join()
    again = second.rows
    assert [row[3] for row in (*made, *again)] == [None] * 40
    ids = {push["idempotency_key"]: row[1] for push, row in zip(pushes, made, strict=True)}
    for push, row in zip(reversed(pushes), again, strict=True):
        if (key := push["idempotency_key"]) is not None:
            assert (row[1] == ids[key]) is commits
            assert not (commits and row[2])
    with psycopg.connect(database.dsn) as connection:
        query = "select count(*), count(distinct idempotency_key) from public.push_notifications"
        assert connection.execute(query).fetchone() == ((25, 5) if commits else (15, 5))


@pytest.mark.parametrize("commits", [True, False])
def test_the_same_batch_of_telemetry_twice_at_the_same_time_is_stored_once(
    database: Database, commits: bool
) -> None:
    arguments = {"p_payloads": [{"type": "a", "message": "b"}, {}] * 50, "p_batch_id": NO_PUSH}
    for caller in (AS_ANN, SERVICE):
        with request(database, caller) as first:
            answer = post(first, "flush_telemetry", json.dumps(arguments))[0][0]
            second = Second(database, caller, "flush_telemetry", **arguments)
            second.wait_until_blocked()
            if not commits:
                first.rollback()
        assert second.join() == answer
        assert (answer["batch_id"], answer["accepted"], len(answer["rejected"])) == (NO_PUSH, 50, 50)
    with psycopg.connect(database.dsn) as connection:
        query = "select user_id::text, count(*) from public.telemetry_logs group by 1 order by 1"
        assert connection.execute(query).fetchall() == [(ANN, 50), (None, 50)]


def test_two_devices_of_one_user_do_not_wait_in_a_circle(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        rows = connection.execute(
            "insert into public.push_notifications (user_id, title, status, next_attempt_at, sent_at) "
            "select %s, 'hello', 'sent', null, now() from generate_series(1, 20) returning id::text",
            (ANN,),
        ).fetchall()
        connection.execute(
            "insert into public.push_delivery_logs (push_id, device_token, status) "
            "select id, t, 'sent' from public.push_notifications, unnest(array['phone', 'tablet']) t"
        )
    sent = [{"push_id": push, "device_token": "phone", "status": "opened"} for (push,) in rows]
    with request(database, AS_ANN) as first:
        assert all(
            row[1] for row in post(first, "record_delivery_receipts", json.dumps({"p_receipts": sent}))
        )
        backwards = [{**each, "device_token": "tablet"} for each in reversed(sent)]
        second = Second(database, AS_ANN, "record_delivery_receipts", p_receipts=backwards)
        second.wait_until_blocked()
    second.join()
    assert [row[1:] for row in second.rows] == [(True, None)] * 20


@pytest.mark.parametrize("commits", [True, False])
def test_the_same_idempotency_key_twice_at_the_same_time_is_one_push(
    database: Database, commits: bool
) -> None:
    arguments = {"p_device_token": "phone", "p_title": "hello", "p_idempotency_key": "once"}
    with request(database, SERVICE) as first:
        made = post(first, "enqueue_push", json.dumps(arguments))[0][0]
        second = Second(database, SERVICE, "enqueue_push", **arguments)
        second.wait_until_blocked()
        if not commits:
            first.rollback()
    assert (second.join() == made) is commits
    with psycopg.connect(database.dsn) as connection:
        rows = connection.execute("select id from public.push_notifications").fetchall()
    assert rows == [(second.result,)]


def test_settled_twice_at_the_same_time_is_logged_once(peopled: Database) -> None:
    with request(peopled, SERVICE) as first:
        assert post(first, "mark_push_failed", json.dumps({"p_push_id": TAKEN_PUSH, "p_error": "x"})) == [
            ("failed",)
        ]
        second = Second(peopled, SERVICE, "mark_push_failed", p_push_id=TAKEN_PUSH, p_error="x")
        second.wait_until_blocked()
    assert second.join() == "failed"
    with psycopg.connect(peopled.dsn) as connection:
        query = """
            select count(*), max(p.retry_count)
              from public.push_delivery_logs l join public.push_notifications p on p.id = l.push_id
              where p.id = %s
            """
        assert connection.execute(query, (TAKEN_PUSH,)).fetchone() == (1, 1)


# --- cost ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alone")
@pytest.mark.oldest_postgres
def test_no_function_reads_the_history(peopled: Database) -> None:
    with psycopg.connect(peopled.superuser_dsn, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # triggers would take a second
        connection.execute(
            """
            insert into public.push_notifications (user_id, title, status, next_attempt_at, updated_at, error_code)
              select %s, 'old', case n %% 100 when 0 then 'dead' else 'sent' end, null, now() - n * interval '1 s',
                     case n %% 100 when 0 then 'X' end
              from generate_series(1, 2000) n
            """,
            (ANN,),
        )
        connection.execute(
            "insert into public.push_delivery_logs (push_id, device_token, status) "
            "select id, 'ann-phone', 'sent' from public.push_notifications where title = 'old'"
        )
        connection.execute(
            "insert into public.push_notifications (user_id, title) select %s, 'new' from generate_series(1, 20)",
            (ANN,),
        )
        connection.execute("vacuum analyze public.push_notifications, public.push_delivery_logs")
    calls = {
        "fetch_pending_pushes": (SERVICE, '{"p_limit": 10}'),
        "mark_push_sent": (SERVICE, json.dumps({"p_push_id": TAKEN_PUSH})),
        "record_delivery_receipt": (AS_ANN, receipt()),
        "enqueue_push": (SERVICE, push(p_idempotency_key="once")),
        "cancel_push": (SERVICE, json.dumps({"p_push_id": NO_PUSH})),
        "enqueue_pushes": (
            SERVICE,
            json.dumps(
                {"p_pushes": [{"topic": "a", "title": "b", "idempotency_key": str(n)} for n in range(9)]}
            ),
        ),
        "get_push": (AS_ANN, json.dumps({"p_push_id": ANNS_PUSH})),
        "record_delivery_receipts": (AS_ANN, receipts(status="clicked")),
        "requeue_pushes": (SERVICE, '{"p_error_code": "X", "p_since": "2020-01-01", "p_limit": 5}'),
    }
    for function, (caller, body) in calls.items():
        with request(peopled, caller) as connection:
            post(connection, function, body)
            rows = connection.execute(
                """
                select relname, seq_scan, coalesce(idx_tup_fetch, 0)
                  from pg_stat_xact_user_tables
                  where relname in ('push_notifications', 'push_delivery_logs')
                """
            ).fetchall()
        assert rows
        for table, scans, read in rows:
            assert scans == 0, (function, table)
            assert read < 300, (function, table)


@pytest.mark.usefixtures("alone")
def test_ten_thousand_pushes_are_one_insert_and_a_refused_one_costs_a_few(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(
            """
            create sequence public.inserts;
            grant usage on sequence public.inserts to service_role;
            create function public.count_inserts() returns trigger language plpgsql
              as 'begin perform nextval(''public.inserts''); return null; end';
            create trigger count_inserts before insert on public.push_notifications
              for each statement execute function public.count_inserts();
            alter table public.push_notifications add constraint no_swearing check (title <> 'damn') not valid;
            """
        )
        for titles, inserts in (
            (["hello"] * 10_000, 1),
            (["hello"] * 999 + ["damn"], 1 + 2 * 10),  # the halves of 1,000
            (["damn"] * 2_000, 300),  # a hundred alone, and what is left of each half together
            (["hello", "damn"] * 110, 440),  # they are not all of that kind, so each is tried
        ):
            connection.execute("alter sequence public.inserts restart")
            pushes = [
                {"topic": "news", "title": title, "idempotency_key": f"{inserts} {n}"}
                for n, title in enumerate(titles)
            ]
            with request(database, SERVICE) as session:
                rows = post(session, "enqueue_pushes", json.dumps({"p_pushes": pushes}))
            assert [row[0] for row in rows] == list(range(len(titles)))
            assert sum(row[2] for row in rows) == titles.count("hello")
            (last,) = connection.execute("select last_value from public.inserts").fetchall()[0]
            assert last <= inserts


# --- elsewhere than on Supabase --------------------------------------------------------------------------


def test_roles_without_auth(bare_database: Database) -> None:
    """Somebody's own PostgREST: the roles, and another way to say who a request is from."""
    with psycopg.connect(bare_database.dsn, autocommit=True) as connection:
        for path in sorted(migrate.sql_directory("supabase").glob("01_*.sql")):
            connection.execute(path.read_bytes())
        migrate.apply(bare_database.dsn)
        use_every_function(connection)
        assert refusal(bare_database, AS_ANN, "register_device", device()) == FORBIDDEN
        # It is looked up at each call, so that it may come later.
        connection.execute((migrate.sql_directory("supabase") / "02_auth.sql").read_bytes())
        assert rpc(bare_database, AS_ANN, "register_device", p_token="phone", p_platform="web") == ""
        assert rpc(bare_database, AS_ANN, "unregister_device", p_token="phone") is True


def test_tables_of_the_applications_own(blank_database: Database) -> None:
    """Other types, texts that must not be null, a trigger, and an older function of one of the names."""
    with psycopg.connect(blank_database.dsn, autocommit=True) as connection:
        connection.execute(
            """
            create table push_notifications (
              id uuid primary key default gen_random_uuid(), user_id uuid,
              title varchar(200) not null, body text not null, data json,
              channel varchar(50) default 'general', priority varchar(10) default 'normal',
              status varchar(20) not null default 'pending' check (status in ('pending', 'sent', 'failed')),
              retry_count smallint not null default 0, delivery_attempts bigint not null default 0,
              created_at timestamptz default now(), updated_at timestamptz default now());
            create function touch() returns trigger language plpgsql
              as 'begin new.updated_at = now(); return new; end';
            create trigger touch before update on push_notifications for each row execute function touch();
            create table push_delivery_logs (
              id uuid primary key default gen_random_uuid(), push_id uuid references push_notifications (id),
              device_token varchar(300) not null, status varchar(20) not null);
            create table telemetry_logs (
              id bigserial primary key, type varchar(30) not null, message text not null, meta jsonb,
              timestamp timestamptz not null);
            create function mark_push_sent(p_push_id uuid, p_status text) returns text language sql return 'old';
            """
        )
        migrate.apply(blank_database.dsn)
        use_every_function(connection)
    made = rpc(blank_database, SERVICE, "enqueue_push", p_device_token="phone", p_data={"a": 1})
    with request(blank_database, SERVICE) as request_:
        (row,) = post(request_, "fetch_pending_pushes", "{}")
    assert row[0] == made
    assert row[2:6] == ("phone", "", "", {"a": 1})
    assert rpc(blank_database, SERVICE, "mark_push_sent", p_push_id=str(made), p_status="x") == "old"
    assert rpc(blank_database, SERVICE, "mark_push_sent", p_push_id=str(made)) == "sent"
    long = {"type": "x" * 31, "message": "y"}
    answer = rpc(blank_database, AS_ANN, "flush_telemetry", p_payloads=[long, {"type": "x", "message": "y"}])
    assert answer["accepted"] == 1
    assert [each["index"] for each in answer["rejected"]] == [0]


def test_every_function_is_granted_to_the_service(database: Database) -> None:
    granted = _grants(database)
    assert {function for function, _ in granted} == {
        function for function, role in granted if role == "service_role"
    }
    assert len(granted) == 2 * len(HOSTILE) + 6  # the owner and service_role; and for six authenticated


def _grants(database: Database) -> set[tuple[Any, ...]]:
    with psycopg.connect(database.dsn) as connection:
        rows = connection.execute(
            """
            select p.oid::regprocedure::text, coalesce(nullif(g.grantee, 0)::regrole::text, 'public')
              from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
              where p.pronamespace = 'public'::regnamespace and p.proname = any (%s)
            """,
            (list(HOSTILE),),
        ).fetchall()
    return set(rows)


def test_the_examples_in_the_documentation_run(database: Database) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "sql.md").read_text()
    examples = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(examples) == 6
    results = []
    with psycopg.connect(database.dsn) as connection:
        for example in examples:
            # What operators call is not for the application's server.
            for_operators = "push_listener.operator_" in example
            connection.execute("reset role" if for_operators else "set local role service_role")
            results.append(connection.execute(example.encode()).fetchall())
    assert [(row[0], row[2], row[3]) for row in results[1]] == [
        (0, False, None),  # the push of the example before
        (1, False, "there is no key titel: the keys are those of enqueue_push without p_"),
    ]
    assert results[1][0][1] == results[0][0][0]
    assert results[2] == [(0,)]
    assert results[3][0][0]["rejected"] == [{"index": 1, "reason": "message must be a string"}]
    assert [row[3] for row in results[4]] == ["Your table is ready"]
