"""Every block of docs/migrating.md runs: the old way against stand-ins for what it calls, and the new way."""

from __future__ import annotations

import asyncio
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import firebase_admin
import psycopg
import pytest
import requests
from deno import find_deno_bin
from firebase_admin import messaging

from listener.emulator import Emulator
from tests.support.examples import ANN, BOB
from tests.support.postgres import Database
from tests.support.service import PROJECT, Rows, serving, settings_for

PAGE = (PROJECT / "docs/migrating.md").read_text()
BOOKING = SimpleNamespace(id=17, user_id=ANN, token="anns-phone")

WEBHOOKS = """
create table public.called (path text, body jsonb);
create schema supabase_functions;
create function supabase_functions.http_request() returns trigger language plpgsql as
  $$ begin insert into public.called values (tg_argv[0], to_jsonb(new)); return new; end $$;
"""
NET = """
create table public.called (path text, body jsonb);
create schema net;
create function net.http_post(url text, body jsonb, params jsonb default '{}', headers jsonb default '{}',
                              timeout_milliseconds integer default 5000)
  returns bigint language sql as $$ insert into public.called values (url, body) returning 1::bigint $$;
"""
CRON = """
create schema cron;
create table cron.job (jobname text primary key, schedule text, command text);
create function cron.schedule(job_name text, schedule text, command text) returns bigint language sql as
  $$ insert into cron.job values (job_name, schedule, command) returning 1::bigint $$;
create function cron.unschedule(job_name text) returns boolean language sql as
  $$ delete from cron.job where jobname = job_name returning true $$;
"""
# As pgmq 1.x: a message that was read is not seen for so many seconds, and is there until it is deleted.
PGMQ = """
create schema pgmq;
create table pgmq.q (
  msg_id bigint generated always as identity, read_ct integer not null default 0,
  enqueued_at timestamptz not null default now(), vt timestamptz not null default now(), message jsonb);
create function pgmq.send(queue_name text, msg jsonb) returns setof bigint language sql as
  $$ insert into pgmq.q (message) values (msg) returning msg_id $$;
create function pgmq.read(queue_name text, vt integer, qty integer) returns setof pgmq.q language sql as
  $$ update pgmq.q set read_ct = read_ct + 1, vt = clock_timestamp() + make_interval(secs => $2)
       where msg_id in (select msg_id from pgmq.q q where q.vt <= clock_timestamp() order by msg_id limit $3 for update)
       returning * $$;
create function pgmq.delete(queue_name text, msg_id bigint) returns boolean language sql as
  $$ with gone as (delete from pgmq.q q where q.msg_id = $2 returning 1) select exists (select from gone) $$;
"""


def blocks(section: str, part: str, language: str) -> list[str]:
    """The blocks of one language under a heading of the second and one of the third level."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    if part:
        (text,) = re.findall(rf"^### {part}\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def defined(code: str, **names: Any) -> dict[str, Any]:
    """What a block of Python defines."""
    exec(compile(code, "docs/migrating.md", "exec", dont_inherit=True), names)
    return names


def test_no_block_is_left_out() -> None:
    """The tests below name sections and languages: a new block has to be in one of them."""
    assert re.findall(r"^```(\w+)$", PAGE, re.MULTILINE) == [
        *["sql", "sql", "ts", "sql"],
        *["sql", "sql", "sql"],
        *["python", "python"],
        *["python", "python", "sql", "python"],
    ]


async def test_tokens_of_a_table_are_copied(rows: Rows) -> None:
    await rows.query("create table profiles (id uuid, fcm_token text)")
    await rows.query("insert into profiles values (%(ann)s, 'anns-phone'), (%(bob)s, null)", ann=ANN, bob=BOB)
    (copy,) = blocks("In every case", "", "sql")
    for _ in range(2):
        await rows.connection.execute(copy.encode())
    assert await rows.query("select user_id, token from push_recipients") == [
        {"user_id": ANN, "token": "anns-phone"}
    ]


WEBHOOK = "From a database webhook with an Edge Function"


def test_the_edge_function_is_typescript() -> None:
    (function,) = blocks(WEBHOOK, "Before", "ts")
    parsed = subprocess.run(
        [find_deno_bin(), "fmt", "--ext", "ts", "-"], input=function, capture_output=True, text=True
    )
    assert parsed.returncode == 0, parsed.stderr


async def test_from_a_webhook(database: Database, rows: Rows, emulator: Emulator) -> None:
    await rows.connection.execute(WEBHOOKS.encode())
    (before,) = blocks(WEBHOOK, "Before", "sql")
    await rows.connection.execute(before.encode())
    await rows.add(device_token="anns-phone", title="by the webhook")
    (after,) = blocks(WEBHOOK, "After", "sql")
    await rows.connection.execute(after.encode())
    await rows.add(device_token="anns-phone", title="by the listener")
    assert await rows.query("select body ->> 'title' as title from called") == [{"title": "by the webhook"}]
    async with serving(settings_for(database.dsn, emulator)):
        await rows.over()
    titles = [each.message and each.message["notification"]["title"] for each in emulator.received]
    assert titles == ["by the listener"]
    await rows.connection.execute(before.encode())  # and back again


async def test_from_pg_cron_and_pgmq(rows: Rows) -> None:
    section = "From pg_cron and pgmq"
    await rows.connection.execute((NET + CRON + PGMQ).encode())
    (before,) = blocks(section, "Before", "sql")
    await rows.connection.execute(before.encode())
    (job,) = await rows.query("select command from cron.job")
    await rows.connection.execute(job["command"].encode())
    assert await rows.query("select path from called") == [
        {"path": "https://PROJECT.supabase.co/functions/v1/send-pushes"}
    ]
    await rows.query("""select pgmq.send('pushes', '{"topic": "news", "titel": "misspelt"}')""")

    enqueue, move = blocks(section, "After", "sql")
    await rows.connection.execute(enqueue.encode())
    unschedule, move_left = re.split(r"(?<=;)\n\n", move)
    await rows.connection.execute(unschedule.encode())
    assert await rows.query("select from cron.job") == []

    async def moved() -> list[tuple[int, bool, str | None]]:
        cursor = await rows.connection.execute(move_left.encode())
        return sorted((row["msg_id"], row["is_gone"], row["error"]) for row in await cursor.fetchall())

    first, second = await moved()
    assert first == (1, True, None)
    assert second[:2] == (2, False)
    assert "titel" in str(second[2])
    assert await moved() == []  # the one that was refused is not visible for a while
    assert await rows.query("select msg_id from pgmq.q") == [{"msg_id": 2}]
    # Nor does a lost answer double: the same message once more.
    await rows.query(
        'insert into pgmq.q (msg_id, message) overriding system value values (1, \'{"topic": "news", "title": "t"}\')'
    )
    assert await moved() == [(1, True, None)]
    keys = await rows.query(
        "select idempotency_key as key, title, user_id from push_notifications order by 1"
    )
    assert keys == [
        {"key": key, "title": "Your table is ready", "user_id": ANN} for key in ("booking-17-ready", "pgmq-1")
    ]


@pytest.fixture
def firebase(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The SDK's default app, at the emulator, as docs/emulator.md says."""
    monkeypatch.setattr(
        messaging._MessagingService, "FCM_URL", emulator.endpoint + "/v1/projects/{0}/messages:send"
    )
    app = firebase_admin.initialize_app(firebase_admin.credentials.Certificate(emulator.service_account))
    yield
    firebase_admin.delete_app(app)


@pytest.mark.filterwarnings("ignore:Message.token is deprecated:DeprecationWarning")
async def test_from_firebase_admin(
    database: Database, rows: Rows, emulator: Emulator, firebase: None
) -> None:
    await rows.query("create table bookings (id integer, status text)")

    async def book(function: Callable[..., None], *, commit: bool) -> None:
        def work() -> None:
            with psycopg.connect(database.dsn) as conn:
                function(conn, BOOKING)
                if not commit:
                    conn.rollback()

        await asyncio.to_thread(work)

    (before,) = blocks("From firebase-admin in the request", "Before", "python")
    (after,) = blocks("From firebase-admin in the request", "After", "python")
    old, new = defined(before)["table_is_ready"], defined(after)["table_is_ready"]
    await book(old, commit=False)
    (received,) = await emulator.wait_accepted(1)
    by_sdk = received.message  # for a booking that was rolled back
    async with serving(settings_for(database.dsn, emulator)):
        await book(new, commit=False)
        assert await rows.all() == {}
        await book(new, commit=True)
        await book(new, commit=True)
        await rows.over()
    (received,) = emulator.received[1:]
    by_listener = received.message
    assert by_sdk is not None
    assert by_listener is not None
    (row,) = (await rows.all()).values()
    assert row["user_id"] == ANN
    assert by_listener["data"] == {**by_sdk["data"], "push_id": str(row["id"])}
    for name in ("token", "notification"):
        assert by_listener[name] == by_sdk[name]
    assert by_listener["android"]["priority"] == by_sdk["android"]["priority"] == "high"


async def test_from_onesignal(database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []

    def post(url: str, *, headers: dict[str, str], json: dict[str, Any], timeout: float) -> Any:
        assert headers == {"Authorization": "Key of-the-tests"}
        sent.append((url, json))
        return SimpleNamespace(raise_for_status=lambda: None)

    monkeypatch.setattr(requests, "post", post)
    (before,) = blocks("From OneSignal", "Before", "python")
    names = defined(before, ONESIGNAL_KEY="of-the-tests", ONESIGNAL_APP=str(uuid.uuid4()))
    names["table_is_ready"](BOOKING)
    ((url, said),) = sent
    assert url.startswith("https://api.onesignal.com/notifications")

    (after,) = blocks("From OneSignal", "After", "python")
    table_is_ready = defined(after)["table_is_ready"]

    def work() -> None:
        with psycopg.connect(database.dsn) as conn:
            table_is_ready(conn, BOOKING)

    await asyncio.to_thread(work)
    (row,) = (await rows.all()).values()
    assert [str(row["user_id"])] == said["include_aliases"]["external_id"]
    assert {"en": row["title"]} == said["headings"]
    assert {"en": row["body"]} == said["contents"]
    assert (row["data"], row["collapse_key"]) == (said["data"], said["collapse_id"])
    assert (row["priority"], said["priority"]) == ("high", 10)
    assert timedelta(0) < row["expires_at"] - row["created_at"] <= timedelta(seconds=said["ttl"] + 60)
    assert str(uuid.uuid5(uuid.NAMESPACE_URL, row["idempotency_key"])) == said["idempotency_key"]


async def test_devices_of_onesignal(database: Database, rows: Rows) -> None:
    await rows.query("create table onesignal_export (external_id uuid, push_token text, platform text)")
    await rows.query(
        "insert into onesignal_export values (%(ann)s, 'anns:APA91b', 'android'), (%(bob)s, %(apns)s, 'ios')",
        ann=ANN,
        bob=BOB,
        apns="0123456789abcdef" * 4,
    )
    (copy,) = blocks("From OneSignal", "In the transition", "sql")
    (python,) = blocks("From OneSignal", "In the transition", "python")
    has_new_app = defined(python)["has_new_app"]
    await rows.connection.execute(copy.encode())

    def look() -> list[bool]:
        with psycopg.connect(database.dsn) as conn:
            return [has_new_app(conn, user) for user in (ANN, BOB)]

    assert await asyncio.to_thread(look) == [True, False]
