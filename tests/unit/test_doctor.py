"""What the checks of doctor make of facts that are hard to bring about."""

from __future__ import annotations

import pytest

from listener.config import Settings
from listener.doctor import (
    clock,
    connections,
    dead_rows,
    fcm,
    listening,
    machine,
    migrations,
    notify_queue,
    reaching,
    snapshots,
    workers,
)
from listener.doctor.clock import Offset
from listener.doctor.connections import Facts
from listener.doctor.dead_rows import Table
from listener.doctor.findings import Finding, Level
from listener.doctor.limits import Deadline, Limits
from listener.doctor.migrations import Trigger
from listener.doctor.reaching import Reached, Way
from listener.doctor.snapshots import Holder
from listener.doctor.workers import Worker
from listener.emulator import answers
from listener.fcm.fault import AuthFault
from listener.fcm.outcome import classify


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


def test_what_the_limits_allow_a_dead_database_adds_up_to_less_than_20_seconds() -> None:
    limits = Limits()
    before_the_first_check = limits.resolve + limits.connect
    longest_check = max(limits.mode, limits.check)
    assert before_the_first_check + longest_check + limits.still_there < 20
    assert limits.fcm + 1 < 20


def test_a_deadline_is_shared() -> None:
    assert Deadline(10.0).left(3.0) == 3.0
    assert Deadline(0.0).left(3.0) == 0.0


# --- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "living", "expected"),
    [
        (Facts(100, 3, 20, -1, 20, -1, 5, 0), 1, Level.OK),
        (Facts(60, 3, 50, -1, 20, -1, 5, 10), 2, Level.OK),  # all of them are open already
        (Facts(60, 3, 50, -1, 20, -1, 5, 4), 2, Level.OK),
        (Facts(60, 3, 52, -1, 20, -1, 5, 4), 2, Level.WARNING),  # 5 are free, and 6 may be wanted
        (Facts(60, 3, 56, -1, 20, -1, 5, 0), 0, Level.FAULT),  # 1 is free, and a process needs 2
        (Facts(60, 3, 60, -1, 20, -1, 5, 2), 1, Level.WARNING),  # it works with the two that it has
        (Facts(100, 3, 20, 22, 20, -1, 5, 0), 1, Level.WARNING),
        (Facts(100, 3, 20, 20, 20, -1, 5, 0), 1, Level.FAULT),
        (Facts(100, 3, 20, -1, 20, 6, 5, 0), 1, Level.FAULT),
        (Facts(100, 3, 20, 0, 20, -1, 5, 0), 1, Level.FAULT),
    ],
)
def test_connections(facts: Facts, living: int, expected: Level) -> None:
    (found,) = connections.judge(facts, workers=living, each=connections.MOST)
    assert found.level is expected
    assert (found.remedy is None) == (expected is Level.OK)


# --- clock -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (Offset(0.4, 0.01), Level.OK),
        (Offset(-1.2, 0.5), Level.OK),  # a slow network, perhaps
        (Offset(1.2, 0.01), Level.WARNING),
        (Offset(-59.0, 0.01), Level.WARNING),
        (Offset(61.0, 0.01), Level.FAULT),
        (Offset(-3600.0, 0.01), Level.FAULT),
    ],
)
def test_clock(offset: Offset, expected: Level) -> None:
    assert clock.judge(offset).level is expected


def test_the_clock_that_is_wrong_is_named() -> None:
    assert clock.judge(Offset(90.0, 0.0)).text.startswith(
        "this machine's clock is 90.0 s behind the database's"
    )
    assert clock.judge(Offset(-90.0, 0.0)).text.startswith(
        "this machine's clock is 90.0 s ahead of the database's"
    )


# --- snapshots -------------------------------------------------------------------------------------------------------


def holder(
    kind: str = "session", age: int = 0, seconds: float | None = 0.0, state: str | None = "active"
) -> Holder:
    return Holder(kind, "it's", 7, "app", state, age, seconds)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (holder(age=9_999, seconds=59.0), Level.OK),
        (holder(seconds=61.0), Level.WARNING),
        (holder(age=10_000), Level.WARNING),
        (holder(seconds=3601.0), Level.FAULT),
        (holder("replication slot", 1_000_000, None, "inactive"), Level.FAULT),
        (holder("standby", 20_000, None), Level.WARNING),
    ],
)
def test_snapshots(held: Holder, expected: Level) -> None:
    (found,) = snapshots.judge([held], sees_all=True, role="r")
    assert found.level is expected


def test_each_kind_of_snapshot_has_its_remedy() -> None:
    assert holder().remedy == "select pg_terminate_backend(7)"
    assert holder("prepared transaction").remedy == "rollback prepared 'it''s'"
    assert holder("replication slot", state="inactive").remedy == "select pg_drop_replication_slot('it''s')"
    assert holder("replication slot").remedy == "let the consumer of the slot catch up"
    assert "hot_standby_feedback" in holder("standby").remedy


# --- dead rows, the queue of notifications ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (Table("t", 10, 10_000, None, True, True, 50.0), [Level.OK]),
        (Table("t", 10, 10_001, None, True, True, 50.0), [Level.WARNING]),
        (Table("t", 10**7, 3 * 10**6, "now", True, True, 2e6), [Level.OK]),
        (Table("t", 10**7, 5 * 10**6, "now", True, True, 2e6), [Level.WARNING]),
        (Table("t", 0, 0, None, False, True, 50.0), [Level.FAULT, Level.OK]),
        (Table("t", 0, 0, None, True, False, 50.0), [Level.FAULT, Level.OK]),
    ],
)
def test_dead_rows(table: Table, expected: list[Level]) -> None:
    assert levels(list(dead_rows.judge([table]))) == expected


@pytest.mark.parametrize(("usage", "expected"), [(0.0, Level.OK), (0.1, Level.WARNING), (0.5, Level.FAULT)])
def test_the_queue_of_notifications(usage: float, expected: Level) -> None:
    assert notify_queue.judge(usage).level is expected


# --- workers ---------------------------------------------------------------------------------------------------------


def test_workers() -> None:
    alive, dead = Worker(1, "a", True, 9.0, True, 0), Worker(2, "b", True, 9.0, False, 10_001)
    starting, sweeping = Worker(3, "c", False, 1.0, False, 0), Worker(4, "d", False, 99.0, False, 0)
    assert levels(list(workers.judge([alive]))) == [Level.OK]
    assert levels(list(workers.judge([]))) == [Level.WARNING]
    assert levels(list(workers.judge([dead]))) == [Level.WARNING, Level.WARNING]
    assert levels(list(workers.judge([starting]))) == []
    assert levels(list(workers.judge([sweeping]))) == [Level.SKIPPED]
    both = list(workers.judge([alive, dead]))
    assert levels(both) == [Level.WARNING, Level.OK]
    assert "holds more than 10,000 rows" in both[0].text


# --- triggers, LISTEN, TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("enabled", "sweeps", "expected"),
    [("O", False, Level.OK), ("A", False, Level.OK), ("D", False, Level.FAULT), ("R", True, Level.OK)],
)
def test_triggers(enabled: str, sweeps: bool, expected: Level) -> None:
    trigger = Trigger("public.push_notifications", "push_listener_ring_insert", enabled)
    assert levels(list(migrations.judge_triggers([trigger], sweeps=sweeps))) == [expected]


def test_a_trigger_that_sets_a_row_due_is_needed_in_a_sweep_too() -> None:
    trigger = Trigger("public.push_notifications", "push_listener_set_due", "D")
    assert levels(list(migrations.judge_triggers([trigger], sweeps=True))) == [Level.FAULT]


def test_a_notification_that_does_not_arrive() -> None:
    assert listening.judge_round_trip(None).level is Level.FAULT


def reached(
    *, version: int = 17, tls: bool = False, local: bool = False, checks: bool = False
) -> list[Finding]:
    return list(reaching.judge(Way("DATABASE_URL", Reached("", version, tls, local, checks))))


def test_tls() -> None:
    assert levels(reached(local=True)) == [Level.OK]
    (_, plain) = reached()
    assert (plain.level, "sslmode=require" in str(plain.remedy)) == (Level.WARNING, True)
    assert "not checked" in reached(tls=True)[1].text
    assert "is checked" in reached(tls=True, checks=True)[1].text


def test_an_old_server() -> None:
    assert levels(reached(version=14, local=True)) == [Level.WARNING]


def test_a_host_with_ipv6_alone() -> None:
    def fault(addresses: list[str], has_ipv6: bool) -> Finding:
        way = Way("DATABASE_URL", None, "why", addresses, has_ipv6)
        (found,) = reaching.judge(way)
        return found

    assert fault(["2001:db8::1"], False).remedy == reaching.SESSION_POOLER
    assert fault(["2001:db8::1"], True).text == "DATABASE_URL: why"
    assert fault(["2001:db8::1", "192.0.2.1"], False).text == "DATABASE_URL: why"


# --- this machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "expected"), [(1250, Level.OK), (900, Level.WARNING), (0, Level.FAULT)])
def test_open_files(allowed: int, expected: Level) -> None:
    assert machine.judge_open_files(1250, allowed).level is expected


@pytest.mark.parametrize(
    ("host", "token", "expected"),
    [
        (None, None, Level.WARNING),
        ("0.0.0.0", None, Level.WARNING),
        ("127.0.0.1", None, Level.OK),
        ("0.0.0.0", "0123456789", Level.OK),
    ],
)
def test_metrics(host: str | None, token: str | None, expected: Level) -> None:
    settings = Settings(database_url="dbname=x", host=host, metrics_token=token)  # type: ignore[arg-type]
    assert machine.judge_metrics(settings).level is expected


# --- FCM -------------------------------------------------------------------------------------------------------------

DISABLED = answers.error(
    403,
    "PERMISSION_DENIED",
    "Firebase Cloud Messaging API has not been used in project 123456 before or it is disabled. Enable it by visiting "
    "https://console.developers.google.com/apis/api/fcm.googleapis.com/overview?project=123456 then retry.",
    {"@type": answers.ERROR_INFO, "reason": "SERVICE_DISABLED", "domain": "googleapis.com"},
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (DISABLED, "the Firebase Cloud Messaging API is disabled in this project"),
        (answers.permission_denied("another"), "the key may not send for this project"),
        (answers.not_found_html(), "FCM knows no such project"),
        (answers.credentials_invalid("ACCESS_TOKEN_TYPE_UNSUPPORTED"), "FCM did not accept a message"),
        (answers.unregistered(), "--device: FCM no longer knows this registration token"),
        (answers.refused_by_apple("InvalidProviderToken"), "Apple or the web push service refuses"),
    ],
)
def test_what_fcm_answers(answer: answers.Answer, said: str) -> None:
    outcome = classify(answer.status, answer.headers, answer.body)
    (found,) = fcm.judge_outcome(outcome, 1.0, fcm.OF_FCM, to_device=True)
    assert found.level is Level.FAULT
    assert found.text.startswith(said)


def test_a_topic_says_nothing_about_apple() -> None:
    outcome = classify(200, {}, b'{"name": "projects/p/messages/1"}')
    assert levels(list(fcm.judge_outcome(outcome, 1.0, fcm.OF_FCM, to_device=False))) == [
        Level.OK,
        Level.SKIPPED,
    ]
    assert levels(list(fcm.judge_outcome(outcome, 1.0, fcm.OF_FCM, to_device=True))) == [Level.OK]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("OAUTH_INVALID_GRANT", "the key was revoked, or its service account disabled"),
        ("OAUTH_CONNECT", "no access token: why"),
        ("OAUTH_INVALID_CLIENT", "no access token: why"),
    ],
)
def test_why_there_is_no_access_token(code: str, said: str) -> None:
    found = fcm.judge_no_token(AuthFault(code, "why", permanent=True), fcm.OF_FCM)
    assert found.text.startswith(said)
    assert found.remedy
