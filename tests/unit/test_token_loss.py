"""The doubt about FCM when it calls nearly every device dead."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.fcm.outcome import Disposition, Outcome
from listener.limits.token_loss import TokenLossBreaker

ALIVE = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200)
DEAD = Outcome(Disposition.DROP_TARGET, "UNREGISTERED", "gone", 404)
OTHERS = [
    Outcome(Disposition.RETRY, "UNAVAILABLE", "in trouble", 503),
    Outcome(Disposition.DROP_MESSAGE, "INVALID_ARGUMENT", "bad", 400),
    Outcome(Disposition.PAUSE, "PERMISSION_DENIED", "may not send", 403, uses_try=False),
    Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False),
]


def judge(guard: TokenLossBreaker, user: int, outcome: Outcome, push_id: UUID | None = None) -> Outcome:
    """The answer to a push of its own, or to one that the test names."""
    return guard.judge(user, push_id or uuid4(), outcome)


def voted(*, alive: int, dead: int) -> TokenLossBreaker:
    guard = TokenLossBreaker()
    for user in range(alive):
        judge(guard, -1 - user, ALIVE)
    for user in range(dead):
        judge(guard, user, DEAD)
    return guard


def doubted(outcome: Outcome) -> bool:
    return outcome.code == "TOKEN_LOSS"


def test_nineteen_dead_users_are_believed_and_the_twentieth_is_not() -> None:
    guard = TokenLossBreaker()
    judged = [judge(guard, user, DEAD) for user in range(25)]
    assert judged[:19] == [DEAD] * 19
    assert all(map(doubted, judged[19:]))


def test_when_all_are_dead_the_outcome_pauses_uses_no_try_and_says_what_to_do() -> None:
    last = judge(voted(alive=0, dead=19), 19, DEAD)
    assert (last.disposition, last.uses_try, last.http_status) == (Disposition.PAUSE, False, 404)
    assert "the devices of 20 of the last 20 users dead (UNREGISTERED)" in last.reason
    assert "FCM_PROJECT_ID" in last.reason
    assert "TOKEN_LOSS_BREAKER=false" in last.reason


def test_when_some_are_accepted_it_is_tried_again_uses_a_try_and_says_what_to_do() -> None:
    last = judge(voted(alive=1, dead=18), 18, DEAD)
    assert (last.disposition, last.code, last.uses_try, last.http_status) == (
        Disposition.RETRY,
        "TOKEN_LOSS",
        True,
        404,
    )
    assert "the devices of 19 of the last 20 users dead (UNREGISTERED)" in last.reason
    assert "FCM_PROJECT_ID" in last.reason
    assert "TOKEN_LOSS_BREAKER=false" in last.reason


def test_a_tenth_alive_is_enough_only_just_not() -> None:
    for alive, expected in ((9, True), (10, True), (11, False)):
        assert doubted(judge(voted(alive=alive, dead=99 - alive), 99, DEAD)) is expected, alive


def test_a_device_that_is_alive_is_always_believed() -> None:
    assert judge(voted(alive=0, dead=100), 7, ALIVE) is ALIVE


def test_once_users_are_alive_again_dead_ones_are_believed_again() -> None:
    guard = voted(alive=0, dead=1000)
    for user in range(1000, 1011):
        judge(guard, user, ALIVE)
    assert judge(guard, 999, DEAD) is DEAD


def test_one_user_with_a_hundred_dead_devices_has_one_vote() -> None:
    guard, push_id = voted(alive=0, dead=18), uuid4()
    assert all(judge(guard, 18, DEAD, push_id) is DEAD for _ in range(100))
    assert doubted(judge(guard, 19, DEAD))


def test_a_hundred_pushes_to_one_user_are_one_vote() -> None:
    guard = voted(alive=0, dead=18)
    assert all(judge(guard, 18, DEAD) is DEAD for _ in range(100))


def test_a_user_one_of_whose_devices_accepts_the_push_is_alive_and_the_dead_ones_are_believed() -> None:
    for answers in ([DEAD, ALIVE, DEAD], [ALIVE, DEAD, DEAD]):
        guard, push_id = voted(alive=0, dead=50), uuid4()
        judged = [judge(guard, 1000, each, push_id) for each in answers]
        assert judged[-1] is DEAD


def test_the_last_hundred_users_are_those_that_were_answered_for_latest() -> None:
    guard = TokenLossBreaker()
    judge(guard, 1000, ALIVE)
    for user in range(99):
        judge(guard, user, DEAD)
    judge(guard, 1000, ALIVE)
    judged = [judge(guard, user, DEAD).disposition for user in range(100, 200)]
    assert judged == [Disposition.RETRY] * 99 + [Disposition.PAUSE]


def test_it_is_the_latest_push_that_counts() -> None:
    guard = voted(alive=0, dead=50)
    judge(guard, 1000, ALIVE)
    assert judge(guard, 1000, DEAD).disposition is Disposition.PAUSE


@pytest.mark.parametrize("other", OTHERS, ids=lambda each: str(each.disposition))
def test_answers_that_say_nothing_of_a_device_count_for_nothing(other: Outcome) -> None:
    guard = voted(alive=0, dead=19)
    for user in range(1000, 1200):
        assert judge(guard, user, other) is other
    assert doubted(judge(guard, 19, DEAD))


answers = st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=400)


@given(answers)
def test_it_doubts_exactly_when_nine_in_ten_of_the_last_hundred_users_are_dead(
    answers: list[tuple[int, bool]],
) -> None:
    guard, history = TokenLossBreaker(), list[tuple[int, bool]]()
    for user, alive in answers:
        history.append((user, alive))
        votes = [vote for _, vote in latest_votes(history)[-100:]]
        judged = judge(guard, user, ALIVE if alive else DEAD)
        doubtful = not alive and len(votes) >= 20 and 10 * votes.count(False) >= 9 * len(votes)
        assert doubted(judged) == doubtful
        assert doubtful or judged is (ALIVE if alive else DEAD)
        if doubtful:
            assert judged.disposition is (Disposition.RETRY if any(votes) else Disposition.PAUSE)


def latest_votes(history: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """The latest vote of each user, oldest first."""
    latest: dict[int, bool] = {}
    for user, alive in history:
        latest.pop(user, None)
        latest[user] = alive
    return list(latest.items())


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 50)), max_size=300))
def test_when_every_user_is_dead_fewer_than_twenty_lose_their_devices(
    pushes: list[tuple[int, int]],
) -> None:
    guard, lost, seen = TokenLossBreaker(), set[int](), set[int]()
    for user, devices in pushes:
        seen.add(user)
        push_id = uuid4()
        judged = [judge(guard, user, DEAD, push_id) for _ in range(devices)]
        if DEAD in judged:
            lost.add(user)
        assert len(lost) <= 19
        if len(seen) >= 20:
            assert {each.disposition for each in judged} == {Disposition.PAUSE}


@given(answers, st.lists(st.integers(1, 150), max_size=6))
def test_one_user_never_makes_it_pause_while_another_is_alive(
    before: list[tuple[int, bool]], bursts: list[int]
) -> None:
    guard = TokenLossBreaker()
    for user, alive in before:
        judge(guard, user, ALIVE if alive else DEAD)
    for devices in bursts:
        judge(guard, -1, ALIVE)
        push_id = uuid4()
        assert all(
            judge(guard, -2, DEAD, push_id).disposition is not Disposition.PAUSE for _ in range(devices)
        )
