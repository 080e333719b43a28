"""The checker is not content with everything: each way to break a promise is seen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from tests.chaos.checker import Evidence, check
from tests.chaos.faults import CRASH, Event
from tests.chaos.fcm import Exchange
from tests.chaos.world import MAX_TRIES, Listener
from tests.chaos.writers import Ledger, Wish

PUSH = UUID(int=1)
OTHER = UUID(int=2)


def exchange(port: int = 1, began: float = 11.0, name: str = "m/1") -> Exchange:
    return Exchange(
        port=port,
        push_id=PUSH,
        target="phone",
        began=began,
        accepted=True,
        status=200,
        name=name,
        hiding=(str(PUSH),),
        silent=False,
        ended=began + 0.5,
    )


def change(
    at: float, before: str | None, after: str, attempt: int, worker: int | None = 1, **more: Any
) -> dict[str, Any]:
    row = {
        "at": at,
        "push_id": PUSH,
        "old_status": before,
        "status": after,
        "worker": worker,
        "attempt": attempt,
    }
    return row | {"old_due": 10.0, "due": 10.0, "lost": False} | more


def process(number: int) -> Listener:
    stub = SimpleNamespace(
        name=f"listener-{number}",
        port=number,
        killed=None,
        ended=99.0,
        code=0,
        stops=[],
        gave_up=False,
        program=SimpleNamespace(output=""),
    )
    return cast(Listener, stub)


def sent_once() -> Evidence:
    """One push, sent as it should be."""
    return Evidence(
        ledger=Ledger(committed={PUSH: Wish(PUSH, token="phone")}),
        exchanges=[exchange()],
        processes=[process(1), process(2)],
        events=[],
        workers={1: "listener-1", 2: "listener-2"},
        rows={
            PUSH: {
                "status": "sent",
                "retry_count": 0,
                "error_code": None,
                "last_error": None,
                "next_attempt_at": None,
                "expires_at": None,
            }
        },
        logs=[
            {
                "push_id": PUSH,
                "device_token": "phone",
                "status": "sent",
                "details": {"attempt": 1, "message_id": "m/1"},
            }
        ],
        audit=[
            change(10.0, None, "pending", 0, None),
            change(10.5, "pending", "processing", 1),
            change(12.0, "processing", "sent", 1),
        ],
    )


def again(evidence: Evidence, **how: Any) -> None:
    """The same push is claimed once more, after the first claim was settled, and sent by another worker."""
    evidence.audit = [
        *evidence.audit[:-1],
        change(12.0, "processing", "failed", 1),
        change(13.0, "failed", "processing", 2, worker=2),
        change(15.0, "processing", "sent", 2, worker=2),
    ]
    evidence.exchanges = [*evidence.exchanges, exchange(**{"port": 2, "began": 13.5, "name": "m/2", **how})]
    second = {"attempt": 2, "message_id": "m/2"}
    evidence.logs = [*evidence.logs, {**evidence.logs[0], "details": second}]


def of_the_row(**values: Any) -> Callable[[Evidence], None]:
    return lambda evidence: cast(dict[str, Any], evidence.rows[PUSH]).update(values)


def of_the_log(**values: Any) -> Callable[[Evidence], None]:
    return lambda evidence: cast(dict[str, Any], evidence.logs[0]).update(values)


def tampered(field: str, change: Callable[[Any], Any]) -> Callable[[Evidence], None]:
    return lambda evidence: setattr(evidence, field, change(getattr(evidence, field)))


def unheard(evidence: Evidence) -> None:
    again(evidence)
    of_the_log(status="unknown", details={"attempt": 1, "code": "RESET"})(evidence)


def in_two_hands(evidence: Evidence) -> None:
    unheard(evidence)
    evidence.exchanges[0].ended = 14.0


def ghost(evidence: Evidence) -> None:
    """The first claim is lost with its worker, whose request comes while the second is being sent."""
    again(evidence)
    created, claimed, _, *second = evidence.audit
    evidence.audit = [created, claimed, change(12.0, "processing", "pending", 1, lost=True), *second]
    evidence.exchanges[0].began, evidence.exchanges[0].ended = 13.7, 13.8


def not_hiding(evidence: Evidence) -> None:
    unheard(evidence)
    evidence.exchanges[1].hiding = ("another",)


def late(evidence: Evidence) -> None:
    of_the_row(expires_at=10.1)(evidence)
    evidence.exchanges[0].began = 12.2


def unlogged(evidence: Evidence) -> None:
    """The first worker is killed after its request; the second sends the push again."""
    again(evidence)
    created, claimed, _, *second = evidence.audit
    evidence.audit = [created, claimed, change(12.0, "processing", "pending", 1, lost=True), *second]
    evidence.logs = evidence.logs[1:]
    evidence.processes[0].killed = 11.2


def long_after_its_death(evidence: Evidence) -> None:
    """No request can be under way for so long."""
    unlogged(evidence)
    evidence.exchanges[0].began, evidence.exchanges[0].ended = 15.3, 15.4


def test_what_is_in_order_is_not_complained_of() -> None:
    assert check(sent_once()).violations == []
    evidence = sent_once()
    unheard(evidence)
    found = check(evidence)
    assert found.violations == []
    assert sum(found.doubles.values()) == 1


def test_a_request_of_a_claim_that_was_lost_may_come_late() -> None:
    evidence = sent_once()
    ghost(evidence)
    found = check(evidence)
    assert found.violations == []
    assert sum(found.doubles.values()) == 1


def test_a_process_that_is_killed_may_leave_a_request_without_a_log_row() -> None:
    evidence = sent_once()
    unlogged(evidence)
    found = check(evidence)
    assert found.violations == []
    assert found.unlogged == {"listener-1": 1}


def test_a_server_that_was_cut_off_does_not_hear_that_the_worker_has_given_up() -> None:
    evidence = sent_once()
    in_two_hands(evidence)
    evidence.events = [Event("network to FCM: half-open", 11.5, 11.5, evidence.processes[0])]
    assert check(evidence).violations == []


def forgotten(evidence: Evidence) -> None:
    """Postgres crashes after the first claim, which is gone; another worker makes its first claim."""
    created, _, settled = evidence.audit
    evidence.audit = [
        created,
        change(14.0, "pending", "processing", 1, worker=2),
        {**settled, "at": 15.0, "worker": 2},
    ]
    evidence.exchanges = [*evidence.exchanges, exchange(port=2, began=14.5, name="m/2")]
    evidence.logs = [*evidence.logs, {**evidence.logs[0], "details": {"attempt": 1, "message_id": "m/2"}}]


def test_a_crash_of_postgres_may_undo_a_claim_after_its_request() -> None:
    evidence = sent_once()
    forgotten(evidence)
    evidence.events = [Event(CRASH, 11.5, 13.0, None)]
    found = check(evidence)
    assert found.violations == []
    assert sum(found.doubles.values()) == 1


def test_a_claim_that_was_forgotten_and_made_again_is_no_double() -> None:
    evidence = sent_once()
    created, claimed, settled = evidence.audit
    evidence.audit = [created, {**claimed, "at": 13.5}, {**settled, "at": 13.6}]
    evidence.events = [Event(CRASH, 11.5, 13.0, None)]
    found = check(evidence)
    assert found.violations == []
    assert sum(found.doubles.values()) == 0


def test_a_push_may_be_cancelled_while_the_request_of_a_forgotten_claim_is_under_way() -> None:
    evidence = sent_once()
    evidence.audit = [evidence.audit[0], change(13.2, "pending", "cancelled", 0, None)]
    of_the_row(status="cancelled")(evidence)
    evidence.ledger.cancelled[PUSH] = 13.2
    evidence.exchanges[0].began, evidence.exchanges[0].ended = 13.3, 13.4
    assert any("cancelled, and sent" in violation for violation in check(evidence).violations)
    evidence.events = [Event(CRASH, 11.5, 13.0, None)]
    assert check(evidence).violations == []


def forgotten_and_logged_once(evidence: Evidence) -> None:
    forgotten(evidence)
    evidence.events = [Event(CRASH, 11.5, 13.0, None)]
    evidence.logs = evidence.logs[1:]


def forgotten_too_late(evidence: Evidence) -> None:
    """The crash came so long after the request that the claim was on disk."""
    forgotten(evidence)
    evidence.events = [Event(CRASH, 17.0, 17.5, None)]


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (tampered("rows", lambda _: {}), "is gone"),
        (of_the_row(status="pending"), "is still pending"),
        (of_the_row(retry_count=MAX_TRIES + 1), "was tried"),
        (of_the_row(error_code="NOT_WRITTEN"), "NOT_WRITTEN"),
        (tampered("exchanges", lambda _: []), "FCM has not accepted it"),
        (tampered("logs", lambda _: []), "has no log row"),
        (tampered("logs", lambda logs: logs * 2), "was logged 2 times"),
        (of_the_log(status="failed", details={"attempt": 1, "http_status": 503}), "but FCM answered 200"),
        (of_the_log(status="failed", details={"attempt": 1}), "unknown to the log"),
        (of_the_log(details={"attempt": 1, "message_id": "m/9"}), "another message's name"),
        (tampered("exchanges", lambda made: [*made, exchange(began=11.2)]), "sent 2 requests"),
        (tampered("exchanges", lambda made: [*made, exchange(port=2)]), "had not claimed it"),
        (again, "and sent again"),
        (in_two_hands, "two workers at once"),
        (forgotten, "had not claimed it"),
        (forgotten_too_late, "had not claimed it"),
        (forgotten_and_logged_once, "no log row says so"),
        (not_hiding, "do not hide each other"),
        (late, "after its expiry"),
        (long_after_its_death, "has no log row"),
        (tampered("audit", lambda rows: [{**rows[0], "due": 12.0}, *rows[1:]]), "before its time"),
        (
            tampered("audit", lambda rows: [rows[0], {**rows[1], "old_due": 11.0}, rows[2]]),
            "before it was due",
        ),
        (tampered("audit", lambda rows: [*rows, change(20.0, "sent", "pending", 1)]), "from sent to pending"),
        (tampered("ledger", lambda _: Ledger(taken_back={PUSH})), "was rolled back"),
        (tampered("ledger", lambda _: Ledger(cancelled={PUSH: 10.2})), "was cancelled"),
    ],
)
def test_each_broken_promise_is_seen(tamper: Callable[[Evidence], None], complaint: str) -> None:
    evidence = sent_once()
    tamper(evidence)
    assert any(complaint in violation for violation in check(evidence).violations)
