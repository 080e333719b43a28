"""What one user can write, and how much of it: bounds that no honest app meets, and no other user's token in sight."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.postgres import Database
from tests.support.rpc import NO_TIMEOUT, Caller, Connection, Second, post, request, rpc

ANN = "a0000000-0000-4000-8000-00000000000a"
BOB = "b0000000-0000-4000-8000-00000000000b"
AS_ANN = Caller("authenticated", ANN)
AS_BOB = Caller("authenticated", BOB)
SERVICE = Caller("service_role")
STATUSES = ("delivered", "opened", "clicked", "failed", "unknown")
PUSH = "00000000-0000-4000-8000-000000000001"
PHONE = "cJug2GoHzEfcshCE_OLL24:APA91bHa8-Viell9xjbeV96V4Njhufk9V7KcOA940Gp7FY1Dxsxmo8AJ7_erhKKqsgqsD8t6"

TAKEN, REPEATED, REFUSED = True, False, "42501"


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


class Session:
    """One user's requests, one transaction each, on one connection."""

    def __init__(self, connection: Connection, caller: Caller) -> None:
        self._connection = connection
        self._caller = caller

    def call(self, function: str, **arguments: object) -> Any:
        """The result of one request, or the SQLSTATE with which it is refused."""
        body = json.dumps(arguments)
        try:
            with self._connection.transaction():
                claims = json.dumps({"role": self._caller.role, "sub": self._caller.user})
                self._connection.execute(
                    "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
                    (self._caller.role, claims),
                )
                return post(self._connection, function, body)[0][0]
        except psycopg.Error as error:
            return error.diag.sqlstate

    def register(self, token: str) -> Any:
        return self.call("register_device", p_token=token, p_platform="android")

    def unregister(self, token: str) -> Any:
        return self.call("unregister_device", p_token=token)

    def report(self, push: str, token: str, status: str = "delivered", **details: object) -> Any:
        return self.call(
            "record_delivery_receipt",
            p_push_id=push,
            p_device_token=token,
            p_status=status,
            p_details=details,
        )


_open: dict[tuple[str, Caller | None], Connection] = {}
"""Connections that the tests have made, by address and caller: the first statements of one take 20 ms."""


@pytest.fixture(scope="module", autouse=True)
def connections() -> Iterator[None]:
    yield
    while _open:
        _open.popitem()[1].close()


def connection_to(dsn: str, caller: Caller | None = None) -> Connection:
    if (dsn, caller) not in _open:
        _open[dsn, caller] = psycopg.connect(dsn, autocommit=True, options=NO_TIMEOUT)
    return _open[dsn, caller]


@contextmanager
def session(database: Database, caller: Caller = AS_ANN) -> Iterator[Session]:
    yield Session(connection_to(database.dsn_as("authenticator"), caller), caller)


def run(database: Database, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """As the owner of the tables."""
    cursor = connection_to(database.dsn).execute(statement, values or None)
    return cursor.fetchall() if cursor.description else []


def devices(database: Database, *tokens: str, user: str = ANN) -> None:
    run(
        database,
        "insert into push_devices (token, user_id, platform, created_at) "
        "select token, %s, 'android', now() - interval '1 hour' from unnest(%s::text[]) token",
        UUID(user),
        list(tokens),
    )


def pushed(
    database: Database,
    status: str,
    *,
    user: str | None = ANN,
    token: str | None = None,
    accepted: Sequence[str | None] = (),
    attempts: int = 1,
) -> str:
    """A push in that state since half an hour ago, with a log row for each device that accepted it."""
    [(push,)] = run(
        database,
        "insert into push_notifications (user_id, device_token, title, status, next_attempt_at, delivery_attempts, "
        "updated_at, sent_at) values (%s, %s, 'hello', %s, "
        "case when %s in ('pending', 'processing', 'failed') then now() + interval '1 hour' end, %s, "
        "now() - interval '30 minutes', case when %s = 'sent' then now() - interval '30 minutes' end) returning id",
        user,
        token,
        status,
        status,
        attempts,
        status,
    )
    for each in accepted:
        run(
            database,
            "insert into push_delivery_logs (push_id, device_token, status, details) "
            "values (%s, %s, 'sent', '{\"attempt\": 1}')",
            push,
            each,
        )
    return str(push)


_RECEIPTS: LiteralString = (
    "select device_token, count(*) from push_delivery_logs where push_id = %s and details ? 'receipt' "
    "group by 1"
)


def receipts(database: Database, push: str) -> dict[str, int]:
    """How many receipts each device has left."""
    return dict(run(database, _RECEIPTS, push))


# --- receipts: the flood ---------------------------------------------------------------------------------


STATES = {
    "waits": {"status": "pending", "attempts": 0},
    "is being sent": {"status": "processing"},
    "was sent by the listener": {"status": "sent", "accepted": ["honest"]},
    "was sent by a worker that names no device": {"status": "sent", "accepted": [None]},
    "was sent by the application": {"status": "sent", "attempts": 0},
    "was given up": {"status": "dead"},
}


@pytest.mark.parametrize("state", STATES)
def test_a_user_cannot_make_up_devices_to_report_a_push(database: Database, state: str) -> None:
    devices(database, "honest")
    push = pushed(database, **STATES[state])  # type: ignore[arg-type]
    sent = state not in ("waits", "was given up")
    with session(database) as ann:
        for number in range(5):
            assert ann.register(f"made-up-{number}") == ""
            for status in STATUSES:
                assert ann.report(push, f"made-up-{number}", status, a="x" * 1000) == REFUSED
            assert ann.unregister(f"made-up-{number}") is True
        for status in STATUSES:
            assert ann.report(push, "honest", status) == (TAKEN if sent else REFUSED)
            assert ann.report(push, "honest", status) == (REPEATED if sent else REFUSED)
    assert receipts(database, push) == ({"honest": 5} if sent else {})


SETUPS = st.lists(
    st.tuples(st.sampled_from(["register", "unregister"]), st.sampled_from("abc"), st.sampled_from([0, 1])),
    max_size=6,
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["register", "unregister", "receipt", "receipt", "receipt", "settle"]),
        st.sampled_from("abcd"),
        st.sampled_from([0, 1]),
        st.sampled_from(STATUSES),
    ),
    max_size=25,
)


def test_a_push_has_receipts_of_the_devices_it_was_sent_to_only(database: Database) -> None:
    """Whatever two users do with their devices, before a push is claimed and afterwards."""
    people = (ANN, BOB)
    with (
        psycopg.connect(database.dsn, autocommit=True) as owner,
        session(database, AS_ANN) as ann,
        session(database, AS_BOB) as bob,
    ):
        users = (ann, bob)

        @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(before=SETUPS, after=CALLS)
        def hold(before: list[tuple[str, str, int]], after: list[tuple[str, str, int, str]]) -> None:
            owner.execute("truncate push_notifications, push_delivery_logs, push_devices")
            for action, token, user in before:
                getattr(users[user], action)(token)
            owner.execute(
                "insert into push_notifications (id, user_id, title, status, delivery_attempts) "
                "values (%s, %s, 'x', 'processing', 1)",
                (PUSH, ANN),
            )
            sent_to = {
                token
                for (token,) in owner.execute("select token from push_devices where user_id = %s", (ANN,))
            }
            for action, token, user, status in after:
                if action == "receipt":
                    users[user].report(PUSH, token, status)
                elif action == "settle":
                    owner.execute(
                        "insert into push_delivery_logs (push_id, device_token, status) "
                        "select %(push)s, token, 'sent' from unnest(%(tokens)s::text[]) token "
                        "where not exists (select from push_delivery_logs where details is null)",
                        {"push": PUSH, "tokens": sorted(sent_to)},
                    )
                    owner.execute(
                        "update push_notifications set status = %s", ("sent" if sent_to else "dead",)
                    )
                else:
                    getattr(users[user], action)(token)
                found: dict[str, int] = dict(owner.execute(_RECEIPTS, (PUSH,)).fetchall())
                assert set(found) <= sent_to, people
                assert all(count <= len(STATUSES) for count in found.values())

        hold()


def test_an_honest_phone_reports_before_and_after_the_result_is_written(database: Database) -> None:
    """As a worker of the application's own sends, step by step, through the functions."""
    with session(database) as ann, session(database, SERVICE) as worker:
        ann.register("phone")
        push = str(worker.call("enqueue_push", p_user_id=ANN, p_title="hello"))
        assert ann.report(push, "phone") == REFUSED
        assert worker.report(push, "phone") == "55000"
        assert str(worker.call("fetch_pending_pushes")) == push
        ann.register("late")
        assert ann.report(push, "phone") is TAKEN
        assert ann.report(push, "late") == REFUSED
        assert worker.call("mark_push_sent", p_push_id=push) == "delivered"
        assert ann.report(push, "phone", "opened") is TAKEN
        assert worker.report(push, "late") is TAKEN  # a service answers for what it says


def test_late_receipts_of_phones_that_were_offline(database: Database) -> None:
    devices(database, "phone")
    to_ann = pushed(database, "sent", accepted=["phone"])
    to_the_phone = pushed(database, "sent", user=None, token="phone", accepted=["phone"])
    with session(database) as ann, session(database, AS_BOB) as bob:
        assert ann.unregister("phone") is True
        assert ann.report(to_ann, "phone") is TAKEN
        assert ann.report(to_the_phone, "phone") == REFUSED
        assert bob.register("phone") == ""
        assert ann.report(to_ann, "phone", "opened") is TAKEN
        assert bob.report(to_ann, "phone") == REFUSED
        assert bob.report(to_the_phone, "phone") is TAKEN
        assert ann.report(to_the_phone, "phone", "opened") == REFUSED


def test_a_device_that_changes_hands_does_not_report_what_was_sent_before(database: Database) -> None:
    devices(database, "phone", user=BOB)
    devices(database, "tablet")
    push = pushed(database, "sent", attempts=0)
    with session(database) as ann:
        ann.register("phone")
        assert ann.report(push, "phone") == REFUSED
        assert ann.report(push, "tablet") is TAKEN


@pytest.mark.usefixtures("alone")
def test_an_adopted_table_that_does_not_know_when_a_device_came(database: Database) -> None:
    devices(database, "phone", "late")
    run(database, "alter table push_devices alter created_at drop not null")
    run(
        database,
        "alter table push_notifications alter updated_at drop not null, alter delivery_attempts drop not null",
    )
    run(
        database,
        "update push_devices set created_at = case token when 'late' then 'infinity'::timestamptz end",
    )
    push, undated = pushed(database, "sent", attempts=0), pushed(database, "sent", attempts=0)
    run(
        database,
        "update push_notifications set sent_at = null, updated_at = null, delivery_attempts = null where id = %s",
        UUID(undated),
    )
    with session(database) as ann:
        assert ann.report(push, "phone") is TAKEN
        assert ann.report(push, "late") == REFUSED
        assert ann.report(undated, "phone") is TAKEN


TOKENS_ELSEWHERE: LiteralString = """
    create table profiles (id uuid, fcm_token text);
    create or replace view push_recipients with (security_invoker = true) as
      select id as user_id, fcm_token as token, null::text as platform from profiles where fcm_token is not null;
"""


@pytest.mark.usefixtures("alone")
def test_where_tokens_are_kept_elsewhere(database: Database) -> None:
    """Nobody knows since when a token is there, and a user can change it at will: a number bounds it."""
    run(database, TOKENS_ELSEWHERE)
    run(database, "insert into profiles values (%s, 'phone')", UUID(ANN))
    by_listener = pushed(database, "sent", accepted=["phone"])
    by_application = pushed(database, "sent", attempts=0)
    with session(database) as ann, psycopg.connect(database.dsn, autocommit=True) as owner:
        answers = []
        owner.execute(
            "insert into push_delivery_logs (push_id, device_token, status, details) "
            "select %s, 'early-' || n, 'delivered', '{\"receipt\": {}}' from generate_series(1, 95) n",
            (UUID(by_application),),
        )
        for number in range(10):
            owner.execute("update profiles set fcm_token = %s", (f"token-{number}",))
            assert ann.report(by_listener, f"token-{number}") == REFUSED
            answers.append(ann.report(by_application, f"token-{number}"))
        assert answers == [TAKEN] * 5 + [REFUSED] * 5
        assert ann.report(by_listener, "phone") is TAKEN
        assert ann.report(by_application, "token-9", "opened") == REFUSED


def test_a_push_that_was_never_tried_takes_no_receipt_from_anybody(database: Database) -> None:
    devices(database, "phone")
    with session(database) as ann, session(database, SERVICE) as service:
        for status in ("pending", "failed", "dead", "expired", "cancelled"):
            push = pushed(database, status, token="phone", attempts=0)
            assert ann.report(push, "phone") == REFUSED, status
            assert service.report(push, "phone") == "55000", status
            after = run(
                database, "select status, delivered_at from push_notifications where id = %s", UUID(push)
            )
            assert after == [(status, None)]


def test_details_are_small(database: Database) -> None:
    devices(database, "phone")
    push = pushed(database, "sent", accepted=["phone"])
    with session(database) as ann:
        assert ann.report(push, "phone", a="x" * 2039) is TAKEN  # {"a": "..."} is 2048 bytes
        assert ann.report(push, "phone", "opened", a="x" * 2040) == "22023"
        assert ann.report(push, "phone", "opened", a="x" * 8000) == "22023"


# --- receipts: what one user can do to another -----------------------------------------------------------


def test_a_stranger_neither_waits_for_a_push_nor_locks_it(database: Database) -> None:
    devices(database, "phone", user=BOB)
    push = pushed(database, "sent", user=BOB, accepted=["phone"])
    with request(database, AS_BOB) as bob:
        body = json.dumps({"p_push_id": push, "p_device_token": "phone", "p_status": "opened"})
        assert post(bob, "record_delivery_receipt", body) == [(True,)]  # and Bob holds the lock now
        with request(database, AS_ANN) as ann:
            ann.execute("set local lock_timeout = '10ms'")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                post(ann, "record_delivery_receipt", body)


def test_what_is_noted_already_waits_for_nothing(database: Database) -> None:
    devices(database, "phone")
    push = pushed(database, "sent", accepted=["phone"])
    arguments = {"p_push_id": push, "p_device_token": "phone", "p_status": "opened"}
    assert rpc(database, AS_ANN, "record_delivery_receipt", **arguments) is TAKEN
    with psycopg.connect(database.dsn) as holder:
        holder.execute("select from push_notifications for update")
        with request(database, AS_ANN) as ann:
            ann.execute("set local lock_timeout = '10ms'")
            assert post(ann, "record_delivery_receipt", json.dumps(arguments)) == [(False,)]


@pytest.mark.usefixtures("alone")
def test_a_rule_of_the_application_does_not_show_what_it_keeps_of_another_user(database: Database) -> None:
    devices(database, PHONE, user=BOB)
    run(database, "alter table push_devices add nickname text")
    run(database, "update push_devices set nickname = 'phone of Bob'")
    run(
        database,
        "alter table push_devices add constraint web_has_no_name check (nickname is null or platform <> 'web')",
    )
    with (
        request(database, AS_ANN) as ann,
        pytest.raises(psycopg.errors.CheckViolation, match="web_has_no_name") as refusal,
    ):
        post(ann, "register_device", json.dumps({"p_token": PHONE, "p_platform": "web"}))
    assert refusal.value.diag.message_detail is None
    told = [refusal.value.diag.message_primary, refusal.value.diag.message_hint, str(refusal.value)]
    assert not any("Bob" in str(each) or PHONE[:22] in str(each) for each in told)


def test_a_worker_that_quotes_a_token_does_not_show_it(database: Database) -> None:
    """The owner of a push reads why it failed, when the device may be another user's."""
    for token, error in (
        (PHONE, f"bad token {PHONE}!"),
        (None, f"bad token {PHONE}!"),
        ("f" * 22, f"bad token {'f' * 22}!"),
    ):
        push = pushed(database, "processing", token=token)
        rpc(database, SERVICE, "mark_push_failed", p_push_id=push, p_error=error)
        reasons = run(
            database,
            "select p.last_error, l.details ->> 'reason' from push_notifications p "
            "join push_delivery_logs l on l.push_id = p.id where p.id = %s",
            push,
        )
        assert reasons == [("bad token [hidden]!",) * 2]


# --- devices ---------------------------------------------------------------------------------------------


def test_two_sessions_of_one_user_cannot_have_more_devices_than_one(database: Database) -> None:
    devices(database, *(f"phone-{number}" for number in range(100)))
    with request(database, AS_ANN) as first:
        post(first, "register_device", json.dumps({"p_token": "first", "p_platform": "web"}))
        second = Second(database, AS_ANN, "register_device", p_token="second", p_platform="web")
        second.wait_until_blocked()
    second.join()
    assert run(
        database,
        "select count(*), count(*) filter (where token in ('first', 'second')) from push_devices",
    ) == [(100, 2)]


def test_registrations_of_two_users_do_not_wait_for_each_other(database: Database) -> None:
    with request(database, AS_ANN) as ann, request(database, AS_BOB) as bob:
        for number, connection in enumerate((ann, bob)):
            connection.execute("set local lock_timeout = '10ms'")
            body = json.dumps({"p_token": f"phone-{number}", "p_platform": "web"})
            post(connection, "register_device", body)


def test_a_token_that_no_index_can_hold_is_refused_in_words(database: Database) -> None:
    with session(database) as ann:
        assert ann.register("x" * 2048) == ""
        assert ann.register("x" * 2049) == "22023"
        assert ann.unregister("x" * 4096) is False


# --- telemetry -------------------------------------------------------------------------------------------


RECORD = {"type": "tap", "message": "a button of some name", "meta": {"screen": "home", "ms": 412}}


def test_a_batch_has_a_size(database: Database) -> None:
    with session(database) as ann, session(database, SERVICE) as service:
        large = [RECORD | {"meta": {"a": "x" * 16_000}}] * 250
        for each in (ann, service):
            assert each.call("flush_telemetry", p_payloads=large) == "PT413"
            assert each.call("flush_telemetry", p_payloads=large[:100])["accepted"] == 100
        assert ann.call("flush_telemetry", p_payloads=["x" * 3_000_000]) == "PT413"


def test_what_a_user_may_send_within_an_hour_ends(database: Database) -> None:
    run(
        database,
        "insert into push_listener.telemetry_use select %s, at, at from (values (now() + interval '45 minutes')) t(at)",
        UUID(ANN),
    )
    with session(database) as ann, session(database, AS_BOB) as bob, session(database, SERVICE) as service:
        large = [RECORD | {"meta": {"a": "x" * 16_000}}] * 100
        sent = 0
        while (answer := ann.call("flush_telemetry", p_payloads=large)) != "PT429":
            assert answer["accepted"] == 100
            sent += 1
        assert sent == 5  # 1.6 MB each, of a quarter of 32 MiB; while they are sent, a little comes back
        assert bob.call("flush_telemetry", p_payloads=large)["accepted"] == 100
        assert service.call("flush_telemetry", p_payloads=large)["accepted"] == 100
    with (
        request(database, AS_ANN) as connection,
        pytest.raises(psycopg.Error, match="too much telemetry") as refusal,
    ):
        post(connection, "flush_telemetry", json.dumps({"p_payloads": large}))
    hint = refusal.value.diag.message_hint or ""
    seconds = int(hint.removeprefix("Send this batch again in ").removesuffix(" seconds."))
    # What it says is true.
    with session(database) as ann:
        for wait, taken in ((seconds - 60, False), (60, True)):
            run(
                database,
                "update push_listener.telemetry_use set records_until = records_until - make_interval(secs => %s), "
                "bytes_until = bytes_until - make_interval(secs => %s) where user_id = %s",
                wait,
                wait,
                ANN,
            )
            answer = ann.call("flush_telemetry", p_payloads=large)
            assert (answer != "PT429") is taken


def test_elements_that_are_not_stored_count_too(database: Database) -> None:
    run(
        database,
        "insert into push_listener.telemetry_use values (%s, now() + interval '54.6 minutes', now())",
        ANN,
    )
    with request(database, AS_ANN) as connection:  # in which no time passes, and there is room for some 4,500
        for _ in range(4):
            body = json.dumps({"p_payloads": [None] * 1000})
            assert post(connection, "flush_telemetry", body)[0][0]["accepted"] == 0
        assert post(connection, "flush_telemetry", '{"p_payloads": []}')[0][0]["accepted"] == 0
        with pytest.raises(psycopg.Error, match="too much telemetry"):
            post(connection, "flush_telemetry", json.dumps({"p_payloads": [RECORD] * 1000}))


def test_an_honest_phone_is_never_refused(database: Database) -> None:
    """It comes back with 10,000 records, and then sends a hundred every ten seconds until nothing is left of these."""
    with session(database) as ann:
        assert ann.call("flush_telemetry", p_payloads=[RECORD] * 1000)["accepted"] == 1000
    run(
        database,
        """
        do $$
        begin
          for n in 2 .. 10 loop
            if push_listener.telemetry_wait('a0000000-0000-4000-8000-00000000000a', 1000, 900000) is not null then
              raise 'refused at record %', n * 1000;
            end if;
          end loop;
          for n in 1 .. 360 loop
            update push_listener.telemetry_use
              set records_until = records_until - interval '10 s', bytes_until = bytes_until - interval '10 s';
            if push_listener.telemetry_wait('a0000000-0000-4000-8000-00000000000a', 100, 90000) is not null then
              raise 'refused after % batches', n;
            end if;
          end loop;
        end
        $$
        """,
    )


def test_batches_at_the_same_time_do_not_get_round_it(database: Database) -> None:
    run(
        database,
        "insert into push_listener.telemetry_use values (%s, now() + interval '59.5 minutes', now())",
        ANN,
    )
    body = {"p_payloads": [RECORD] * 400}  # and there is room for 416
    with request(database, AS_ANN) as first:
        assert post(first, "flush_telemetry", json.dumps(body))[0][0]["accepted"] == 400
        second = Second(database, AS_ANN, "flush_telemetry", **body)
        second.wait_until_blocked()
    assert second.join() == "PT429"
    assert run(database, "select count(*) from telemetry_logs") == [(400,)]


def test_old_rows_go(database: Database) -> None:
    run(
        database,
        "insert into push_listener.telemetry_use "
        "select gen_random_uuid(), now() - interval '1 s', now() - interval '1 s' from generate_series(1, 50)",
    )
    with request(database, AS_ANN) as connection:
        connection.execute("select setseed(0.5)")
        # 1 in 100 looks for old rows.
        connection.execute("select count(flush_telemetry('{}'::jsonb[])) from generate_series(1, 400)")
    assert run(database, "select user_id::text from push_listener.telemetry_use") == [(ANN,)]


def test_a_clock_that_was_put_back_does_not_silence_a_user(database: Database) -> None:
    run(
        database,
        "insert into push_listener.telemetry_use values (%s, now() + interval '30 days', now() + interval '30 days')",
        ANN,
    )
    with (
        request(database, AS_ANN) as connection,
        pytest.raises(psycopg.Error, match="too much") as refusal,
    ):
        post(connection, "flush_telemetry", json.dumps({"p_payloads": [RECORD]}))
    assert refusal.value.diag.message_hint == "Send this batch again in 1 seconds."


# --- JSON that is larger than it looks -------------------------------------------------------------------


def most_memory(connection: Connection) -> int:
    """Bytes that the backend of a connection has had at most; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    status = Path(f"/proc/{connection.info.backend_pid}/status").read_text(encoding="utf-8")
    (most,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(most) * 1024


@pytest.mark.parametrize("number", ["1e400", "-1e131071", "0e-16383", "1e-16383"])
def test_a_number_that_would_fill_pages_is_refused_unwritten(database: Database, number: str) -> None:
    devices(database, "phone")
    push = pushed(database, "sent", accepted=["phone"])
    many = f'{{"a": [{", ".join([number] * 500)}]}}'
    element = f'{{"type": "a", "message": "b", "meta": {many}}}'
    report = f'"p_push_id": "{push}", "p_device_token": "phone", "p_status": "opened", "p_details": {many}'
    with request(database, AS_ANN) as connection:
        small = f'{{"p_payloads": [{element.replace(number, "1")}]}}'
        assert post(connection, "flush_telemetry", small)[0][0]["accepted"] == 1
        before = most_memory(connection)
        body = f'{{"p_payloads": [{", ".join([element] * 10)}]}}'
        reasons = {each["reason"] for each in post(connection, "flush_telemetry", body)[0][0]["rejected"]}
        assert reasons == {"has a number of more than 400 digits"}
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            post(connection, "record_delivery_receipt", f"{{{report}}}")
        # These are 1.4 MB. Written out, the texts of 131071 digits would need 200 MB, those of 16383 digits 25 MB.
        assert most_memory(connection) < before + 12_000_000


def test_every_number_of_a_language_with_doubles_is_taken(database: Database) -> None:
    numbers = ("1.7976931348623157e308", "4.9406564584124654e-324", "-0.1", "12345678901234567890")
    elements = (f'{{"type": "a", "message": "b", "meta": {{"a": {number}}}}}' for number in numbers)
    with request(database, AS_ANN) as connection:
        body = f'{{"p_payloads": [{", ".join(elements)}]}}'
        assert post(connection, "flush_telemetry", body)[0][0]["rejected"] == []


def test_json_nested_as_deep_as_its_size_allows_is_taken(database: Database) -> None:
    deep = '{"a": ' * 2000 + "1" + "}" * 2000
    with request(database, AS_ANN) as connection:
        body = f'{{"p_payloads": [{{"type": "a", "message": "b", "meta": {deep}}}]}}'
        assert post(connection, "flush_telemetry", body)[0][0]["accepted"] == 1
    assert run(database, "select meta::text from telemetry_logs") == [(deep,)]
