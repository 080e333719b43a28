"""The doubt about FCM when it calls nearly every token dead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.outcome import Kind, Outcome
from listener.guard import TokenLossGuard

ALIVE = Outcome(Kind.ACCEPTED, "OK", "accepted by FCM", 200)
DEAD = Outcome(Kind.DROP_TARGET, "UNREGISTERED", "gone", 404)
OTHERS = [
    Outcome(Kind.RETRY, "UNAVAILABLE", "in trouble", 503),
    Outcome(Kind.DROP_MESSAGE, "INVALID_ARGUMENT", "bad", 400),
    Outcome(Kind.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_attempt=False),
    Outcome(Kind.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_attempt=False),
]

answers = st.lists(st.booleans(), max_size=400)


def doubted(outcome: Outcome) -> bool:
    return outcome.code == "TOKEN_LOSS"


def test_nineteen_dead_tokens_are_believed_and_the_twentieth_is_not() -> None:
    guard = TokenLossGuard()
    judged = [guard.judge(DEAD) for _ in range(25)]
    assert judged[:19] == [DEAD] * 19
    assert all(map(doubted, judged[19:]))


def test_what_takes_their_place_pauses_uses_no_try_and_says_what_to_do() -> None:
    guard = TokenLossGuard()
    last = [guard.judge(DEAD) for _ in range(20)][-1]
    assert (last.kind, last.code, last.uses_attempt, last.http_status) == (
        Kind.PAUSE,
        "TOKEN_LOSS",
        False,
        404,
    )
    assert "20 of the last 20 tokens dead (UNREGISTERED)" in last.reason
    assert "TOKEN_LOSS_GUARD=false" in last.reason


def test_a_tenth_alive_is_enough_only_just_not() -> None:
    for alive, expected in ((9, True), (10, True), (11, False)):
        guard = TokenLossGuard()
        for _ in range(alive):
            guard.judge(ALIVE)
        last = [guard.judge(DEAD) for _ in range(100 - alive)][-1]
        assert doubted(last) is expected, alive


def test_a_token_that_is_alive_is_always_believed() -> None:
    guard = TokenLossGuard()
    for _ in range(100):
        guard.judge(DEAD)
    assert guard.judge(ALIVE) is ALIVE


def test_once_tokens_are_alive_again_dead_ones_are_believed_again() -> None:
    guard = TokenLossGuard()
    for _ in range(1000):
        guard.judge(DEAD)
    for _ in range(11):
        guard.judge(ALIVE)
    assert guard.judge(DEAD) is DEAD


@pytest.mark.parametrize("other", OTHERS, ids=lambda each: str(each.kind))
def test_answers_that_say_nothing_of_a_token_count_for_nothing(other: Outcome) -> None:
    guard = TokenLossGuard()
    for _ in range(19):
        guard.judge(DEAD)
    for _ in range(200):
        assert guard.judge(other) is other
    assert doubted(guard.judge(DEAD))


@given(answers)
def test_dead_tokens_are_doubted_exactly_when_nine_in_ten_of_the_last_hundred_are(alive: list[bool]) -> None:
    guard, history = TokenLossGuard(), list[bool]()
    for each in alive:
        history.append(each)
        window = history[-100:]
        judged = guard.judge(ALIVE if each else DEAD)
        doubtful = not each and len(window) >= 20 and 10 * window.count(False) >= 9 * len(window)
        assert doubted(judged) == doubtful
        assert doubtful or judged is (ALIVE if each else DEAD)


@given(answers)
def test_of_any_hundred_answers_few_tokens_are_lost_while_nearly_all_are_dead(alive: list[bool]) -> None:
    """However they come, the run that is believed at the beginning is short."""
    guard = TokenLossGuard()
    for each in alive:
        guard.judge(ALIVE if each else DEAD)
    lost = sum(not doubted(guard.judge(DEAD)) for _ in range(200))
    assert lost < 100
