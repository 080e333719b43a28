"""Answers of FCM and Apple, and options, that once cost other pushes, good tokens or the truth.

Each docstring says what a user would see, and then what is right.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import json
import random
import time
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID, uuid4

import orjson
import pytest

from listener import config
from listener.clock import elapsed
from listener.fcm.message import prepare
from listener.fcm.outcome import Disposition, Outcome, classify
from listener.fcm.sender import Sender
from listener.fcm.transports.base import Outgoing
from listener.limits.health import FcmHealth
from listener.limits.quota import Quota
from listener.limits.retry_policy import RetryPolicy
from listener.limits.shared_quota import SharedQuota
from listener.limits.slow_start import SlowStart, after_losses
from listener.metrics.own import Metrics
from listener.postgres.workers import Workers
from listener.push import BadPush, Push, Status, Target, TargetKind
from listener.sending.attempt import Attempts
from listener.sending.fcm_question import FcmQuestion
from listener.sending.pause_report import PauseReport
from listener.sending.retry import backoff
from listener.sending.trail import Trail
from listener.tracing import Tracing
from listener.wakeup.look_signal import LookSignal
from tests.support.pushes import push

ACCEPTED = Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", 200)
NO_APNS = Outcome(Disposition.PAUSE_PLATFORM, "THIRD_PARTY_AUTH_ERROR", "APNs", 401, uses_try=False)


def error(
    http: int, status: str, code: str, apple: int | None = None, reason: str = "", message: str = "x"
) -> Outcome:
    """What an answer of FCM means, with an FcmError and perhaps an ApnsError."""
    prefix = "type.googleapis.com/google.firebase.fcm.v1."
    details: list[dict[str, Any]] = [{"@type": prefix + "FcmError", "errorCode": code}]
    if apple is not None:
        details.append({"@type": prefix + "ApnsError", "statusCode": apple, "reason": reason})
    body = {"error": {"code": http, "message": message, "status": status, "details": details}}
    return classify(http, {}, orjson.dumps(body))


MISFIT = error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", 403, "BadEnvironmentKeyInToken")
LIVE_ACTIVITY = {
    "apns": {
        "live_activity_token": "activity",
        "payload": {"aps": {"event": "update", "content-state": {"score": 1}, "timestamp": 1}},
    }
}
UNKNOWN_CODE = error(403, "PERMISSION_DENIED", "SOMETHING_NEW")


class _Answers:
    """Answers each message as ``answer`` says, and accepts questions."""

    def __init__(self, answer: Callable[[dict[str, Any]], Outcome]) -> None:
        self.asked: list[str] = []
        self._answer = answer

    async def send(self, outgoing: Outgoing) -> Outcome:
        body = json.loads(outgoing.make_body())
        if body.get("validate_only"):
            return ACCEPTED
        self.asked.append(body["message"].get("token", ""))
        return self._answer(body["message"])


def _attempts(sender: object, health: FcmHealth | None = None, **settings: str) -> tuple[Attempts, FcmHealth]:
    loaded = config.load(database_url="postgresql://nobody@localhost/none", **settings)
    health = health or FcmHealth(after_losses(0, loaded.max_in_flight, time.monotonic()))
    metrics = Metrics()
    quota = SharedQuota(cast(Workers, None), Quota(1_000_000, 0.0, time.monotonic()), metrics)
    report, trail = PauseReport(health, LookSignal(), metrics), Trail(Tracing(), 1)
    question = FcmQuestion(cast(Sender, sender), health, metrics)
    attempts = Attempts(cast(Sender, sender), loaded, metrics, health, quota, report, trail, question)
    return attempts, health


def _to(*devices: tuple[str, str | None], **columns: Any) -> Push:
    return push(id=uuid4(), user_id=uuid4(), device_token=None, recipients=list(devices), **columns)


# --- one target's trouble is still everybody's -----------------------------------------------------------------


@pytest.mark.parametrize(("share", "rate"), [(0.1, 10.0), (0.2, 1.0)])
def test_iphones_with_a_test_build_do_not_hold_back_the_others(share: float, rate: float) -> None:
    """A team sends ten pushes a second to iPhones, and one iPhone in ten has a test build (or one in five, at one a
    second). Three of those in a row are a matter of minutes, so iOS is held for a minute, and again and again; the
    probe after it may be a test build, which doubles the wait although nothing says that the key has become worse.
    70% of the good pushes come more than ten seconds late (46%), the slowest after 18 minutes, and with one in five
    at ten a second the queue never drains.

    Right: as the guard against token loss does, hold the platform only when nearly all of its users are refused
    (of twenty, say). Apple's word about one device (MISFIT) needs no hold at all: the device pays with its tries.
    """
    rng, policy = random.Random(1), RetryPolicy()
    health = FcmHealth(SlowStart(1000, 1.0, -1000.0))
    queue: list[tuple[float, int, Push, bool, float, int]] = []
    for n in range(int(1200 * rate)):
        one = push(id=UUID(int=n + 1), user_id=UUID(int=n + 1))
        heapq.heappush(queue, (n / rate, n, one, rng.random() < share, n / rate, 0))
    waits: list[float] = []
    while queue and queue[0][0] < 2400.0:
        now, n, one, is_bad, added, tries = heapq.heappop(queue)
        if wait := health.platform_wait("ios", now):
            delay = backoff(max(tries, 1), wait, policy, rng)
        else:
            phone = Target(TargetKind.TOKEN, f"phone-{n}", "ios")
            outcome = health.judge(one, phone, MISFIT if is_bad else ACCEPTED, now, now + 0.1)
            if outcome.disposition is Disposition.ACCEPTED:
                waits.append(now - added)
                continue
            tries += outcome.uses_try
            if tries >= policy.max_tries:
                continue
            delay = backoff(max(tries, 1), outcome.delay, policy, rng)
        again = dataclasses.replace(one, attempt=one.attempt + 1)
        heapq.heappush(queue, (now + delay, n, again, is_bad, added, tries))
    late = sum(wait > 10.0 for wait in waits) + sum(not is_bad for _, _, _, is_bad, _, _ in queue)
    assert late < 0.05 * 1200 * rate


async def test_a_code_that_is_good_for_a_minute_reaches_an_iphone_although_three_others_have_test_builds() -> (
    None
):
    """Three testers have got a push in vain. A customer's login code, which expires in a minute, goes to an iPhone with
    the app of the store: ``expired`` at once, "expires before the next try", without a request.

    Right: it is sent. Three devices that do not fit the key are no proof against all others.
    """
    sender = _Answers(lambda message: MISFIT if message["token"].startswith("test") else ACCEPTED)
    attempts, _ = _attempts(sender)
    await attempts.attempt(_to(("good-1", "ios")), elapsed())
    for n in range(3):
        await attempts.attempt(_to((f"test-{n}", "ios")), elapsed())
    settlement = await attempts.attempt(_to(("good-2", "ios"), expires_in=55.0), elapsed())
    assert settlement.decision.status is Status.SENT


@pytest.mark.parametrize("reason", ["BadTopic", "TopicDisallowed", "DeviceTokenNotForTopic"])
async def test_a_wrong_apns_topic_in_options_does_not_hold_back_ios(reason: str) -> None:
    """A developer sends pushes with a wrong ``apns-topic`` in options to three users. Apple refuses the topic that the
    message names, and all iPhones wait: the log tells the operator to look at the APNs key, which is right.

    Right: where the message names a topic, the answer is about that topic. The message is at fault (``dead``), and no
    platform waits.
    """
    refusal = error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", 400, reason)
    sender = _Answers(lambda message: refusal if "apns-topic" in message["apns"]["headers"] else ACCEPTED)
    attempts, health = _attempts(sender)
    options = {"apns": {"headers": {"apns-topic": "com.example.wrong"}}}
    for n in range(3):
        await attempts.attempt(_to((f"phone-{n}", "ios"), options=options), elapsed())
    assert health.held_platforms == {}


async def test_live_activities_that_have_ended_pause_nothing() -> None:
    """A match is over, and its last update goes to the live activities of 25 users, who have swiped them away: 410 for
    each. 19 users lose their iPhones, and with the twentieth everything is paused, Android and web too, because "FCM
    calls nearly every token dead".

    Right: the answers are about ``live_activity_token``; they are no votes of the guard against token loss.
    """
    answer = error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", 410, "ExpiredToken")
    attempts, health = _attempts(_Answers(lambda _: answer))
    for n in range(25):
        to = _to((f"iphone-{n}", "ios"), title=None, body=None, options=LIVE_ACTIVITY)
        await attempts.attempt(to, elapsed())
    assert health.reason is None


async def test_an_unknown_code_for_every_message_kills_no_queue() -> None:
    """FCM refuses a whole project with an error code that is new (the project is suspended, say): 403 to each push and
    to each question. Each push uses its five tries in about five minutes and is ``dead``; nothing pauses, /readyz is
    content.

    Right: ask with a validate_only message, as for 404 without details; if FCM refuses that too, everything pauses.
    """

    class RefusesAll:
        async def send(self, outgoing: Outgoing) -> Outcome:
            outgoing.make_body()
            return UNKNOWN_CODE

    attempts, _ = _attempts(RefusesAll())
    statuses = set()
    for n in range(30):
        to = _to((f"phone-{n}", "android"))
        for _ in range(5):
            decision = (await attempts.attempt(to, elapsed())).decision
            to = dataclasses.replace(
                to, attempt=to.attempt + 1, retry_count=to.retry_count + decision.uses_try
            )
        statuses.add(decision.status)
    assert Status.DEAD not in statuses


# --- a good token is disabled, a good push is lost ----------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        error(
            400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", 410, "ExpiredToken", "APNs device token is disabled."
        ),
        error(
            400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", 410, "Unregistered", "APNs device token is disabled."
        ),
        error(404, "NOT_FOUND", "UNREGISTERED", 410, "Unregistered", "Requested entity was not found."),
        error(404, "NOT_FOUND", "UNREGISTERED", message="Requested entity was not found."),
    ],
)
async def test_the_end_of_a_live_activity_disables_no_device(answer: Outcome) -> None:
    """The user swipes a live activity away, or its eight hours are over: Apple answers the next update with 410 for the
    token of the activity (``live_activity_token``). The registration token of the iPhone is disabled, and the user gets
    no push any more until the app registers it again.

    Right: of a message with ``live_activity_token`` the answer is about that token. The push is ``dead``, the device
    stays. Sources: kylebrowning/APNSwift, pull request 231 (ExpiredToken is what an ended live activity gets);
    loopandlearn/LoopFollow, pull request 657 (410); firebase-ios-sdk, issue 15956 (FCM answers 404 "Requested entity
    was not found" to updates of a live activity while the token is good).
    """
    attempts, _ = _attempts(_Answers(lambda _: answer))
    settlement = await attempts.attempt(
        _to(("iphone", "ios"), title=None, body=None, options=LIVE_ACTIVITY), elapsed()
    )
    assert settlement.dead_tokens == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(error(503, "UNAVAILABLE", "UNAVAILABLE", 503, "ServiceUnavailable"), id="503"),
        pytest.param(error(503, "UNAVAILABLE", "UNAVAILABLE", 503, "Shutdown"), id="shutdown"),
        pytest.param(error(500, "INTERNAL", "INTERNAL", 500, "InternalServerError"), id="500"),
    ],
)
async def test_an_outage_of_apple_kills_no_push(answer: Outcome) -> None:
    """Apple's servers answer 503 for ten minutes, and all pushes of the app go to iPhones. Each push uses its five
    tries within about three minutes and is ``dead``. When FCM itself answers 503 the same pushes survive, as they did
    with this answer, too, before an ApnsError was read: now it counts as the used-up quota of one device.

    Right: 5xx of Apple is an outage (of one platform, if others are accepted), and uses up nobody's last try. Only 429
    TooManyRequests is one device's.
    """
    attempts, _ = _attempts(_Answers(lambda _: answer))
    pushes = [_to((f"iphone-{n}", "ios")) for n in range(60)]
    dead = 0
    for _ in range(8):
        for n, one in enumerate(pushes):
            decision = (await attempts.attempt(one, elapsed())).decision
            dead += decision.status is Status.DEAD
            pushes[n] = dataclasses.replace(
                one, attempt=one.attempt + 1, retry_count=min(4, one.retry_count + decision.uses_try)
            )
    assert dead == 0


@pytest.mark.parametrize("bad", [UNKNOWN_CODE, MISFIT], ids=["unknown code", "misfit"])
async def test_the_bad_device_of_a_user_does_not_use_up_the_push_of_the_good_one(bad: Outcome) -> None:
    """A user has an iPhone, and iOS is held for an hour because the APNs key has expired; "no try is used". The user
    has a second device that FCM refuses each time with a try. After five minutes its tries are used up, and the push is
    ``dead``: the iPhone was never asked, and gets nothing when the key is renewed.

    Right: what waits for its platform outlives the tries of another device. Give that device up, and keep the row
    ``pending`` for the one that waits.
    """
    sender = _Answers(lambda message: bad if message["token"] == "bad" else ACCEPTED)
    attempts, health = _attempts(sender)
    for n in range(3):
        phone = Target(TargetKind.TOKEN, f"iphone-{n}", "ios")
        health.judge(push(id=uuid4(), user_id=uuid4()), phone, NO_APNS, time.monotonic(), time.monotonic())
    assert "ios" in health.held_platforms
    to = _to(("iphone", "ios"), ("bad", "web"))
    for _ in range(5):
        decision = (await attempts.attempt(to, elapsed())).decision
        to = dataclasses.replace(to, attempt=to.attempt + 1, retry_count=to.retry_count + decision.uses_try)
    assert sender.asked == ["bad"] * 5
    assert decision.status is not Status.DEAD


async def test_three_test_devices_of_a_user_do_not_take_the_push_of_the_fourth() -> None:
    """A tester has three iPhones with a test build and one with the app of the store. In a small service, or when the
    first attempt is the probe of a pause, the good iPhone is not asked in the first attempt, and each later attempt
    asks one iPhone at random and stops if that is refused. Each of them uses a try. About one push in four is ``dead``
    without a single request for the good iPhone.

    Right: Apple's word about one device says nothing about the others of its user, so the next one is asked.
    """
    sender = _Answers(lambda message: MISFIT if message["token"].startswith("test") else ACCEPTED)
    attempts, health = _attempts(sender, max_in_flight="2")
    lost = 0
    for n in range(40):
        health.judge(
            push(id=uuid4()), Target(TargetKind.TOKEN, "i", "ios"), ACCEPTED, *[time.monotonic()] * 2
        )
        tests = [(f"test-{n}-{each}", "ios") for each in range(3)]
        to = _to(*tests, (f"good-{n}", "ios"))
        for _ in range(5):
            decision = (await attempts.attempt(to, elapsed())).decision
            if f"good-{n}" in sender.asked or decision.status is Status.DEAD:
                break
            health.judge(
                push(id=uuid4()), Target(TargetKind.TOKEN, "i", "ios"), ACCEPTED, *[time.monotonic()] * 2
            )
            to = dataclasses.replace(
                to, attempt=to.attempt + 1, retry_count=to.retry_count + decision.uses_try
            )
        lost += f"good-{n}" not in sender.asked
    assert lost == 0


def test_a_first_refusal_after_a_long_pause_waits_seconds_not_an_hour() -> None:
    """A good push has waited behind a pause, and was claimed a dozen times for it. When sending goes on, FCM refuses it
    once (keys and permissions take a while to reach all of Google's servers). It waits an hour, where docs/outcomes.md
    says 20 to 30 s.

    Right: refusals count, claims without an answer do not.
    """
    health = FcmHealth(SlowStart(1000, 1.0, -1000.0))
    health.judge(
        push(id=uuid4(), user_id=uuid4()), Target(TargetKind.TOKEN, "a", "ios"), ACCEPTED, 99.0, 99.5
    )
    waited = push(id=uuid4(), user_id=uuid4(), attempt=13)
    outcome = health.judge(waited, Target(TargetKind.TOKEN, "b", "ios"), NO_APNS, 100.0, 100.5)
    assert outcome.delay <= 30.0


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><title>Welcome to nginx!</title>", b"Log in to the network"]
)
def test_a_page_in_the_place_of_fcm_is_no_acceptance(page: bytes) -> None:
    """FCM_ENDPOINT names a proxy that answers everything with its start page and 200. The whole queue is ``sent`` at
    full speed, nobody gets anything, nothing is in the log, and it cannot be brought back.

    Right: what is not Google's JSON is about the way, also with 200: pause, as with 400. An empty body may stay
    "accepted, id unknown".
    """
    assert classify(200, {"content-type": "text/html"}, page).disposition is Disposition.PAUSE


# --- options ---------------------------------------------------------------------------------------------------------


def _message(to: Push) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(prepare(to).encode(Target(TargetKind.TOKEN, "t"), None))["message"]
    return message


@pytest.mark.parametrize("platform", ["android", "webpush"])
@pytest.mark.parametrize("fields", [{"title": None, "body": None}, {"icon": None}, {}])
def test_a_notification_of_nulls_makes_no_data_message_visible(
    platform: str, fields: dict[str, None]
) -> None:
    """An encoder writes every field of ``options.android.notification``, null where it is empty. The data message
    becomes a notification with only a tag, so Android does not wake the app and shows an empty entry instead.

    Right: an object whose fields are all null counts as not given, as docs/options.md says of a null object.
    """
    to = push(title=None, body=None, data={"k": "v"}, options={platform: {"notification": fields}})
    assert "notification" not in _message(to)[platform]


@pytest.mark.parametrize(
    "options",
    [
        {"apns": {"payload": {"aps": {"alert": None}}}},
        {"apns": {"payload": {"aps": {}}}},
        {"android": {"notification": {"title": None}}},
        {"webpush": {"notification": {"title": None, "body": None}}},
    ],
)
def test_a_push_of_nulls_is_empty(options: dict[str, Any]) -> None:
    """Nothing is in the row but nulls. All devices of the user are woken by a push that has nothing but ``push_id``.

    Right: EMPTY_MESSAGE, as docs/options.md promises for "a push that is empty on every platform".
    """
    with pytest.raises(BadPush) as caught:
        prepare(push(title=None, body=None, options=options))
    assert caught.value.code == "EMPTY_MESSAGE"


@pytest.mark.parametrize("aps", [None, {"alert": None}, {"alert": None, "sound": "default"}])
def test_a_null_in_aps_means_the_same_with_and_without_an_image(aps: dict[str, Any] | None) -> None:
    """An encoder writes ``aps.alert: null``, or ``aps: null``. With an image the null is dropped. Without one it is
    sent, where it stands in the place of title and body (what ``apns.payload`` says comes before ``notification``).
    docs/options.md: "A null in the place of an object changes nothing", "A null takes away what the listener sets".

    Right: the nulls are dropped in both cases.
    """
    options = {"apns": {"payload": {"aps": aps}}}
    plain, pictured = (
        _message(push(options=options, image=image))["apns"].get("payload", {}).get("aps", {})
        for image in (None, "https://example.com/a.png")
    )
    pictured.pop("mutable-content")
    assert plain == pictured


async def test_a_shutdown_does_not_call_a_refused_message_perhaps_delivered() -> None:
    """FCM has answered 404 to a push, and the service stops while it asks FCM whether that concerns everybody. The log
    of the push says ``unknown``, "it may have been delivered", although FCM has refused it.

    Right: the answer that came is kept (``failed``, 404).
    """
    asked = asyncio.Event()

    class Hangs:
        async def send(self, outgoing: Outgoing) -> Outcome:
            if b'"validate_only":true' in outgoing.make_body():
                asked.set()
                await asyncio.Event().wait()
            return classify(404, {}, b"<html>not found</html>")

    attempts, _ = _attempts(Hangs())
    task = asyncio.create_task(attempts.attempt(_to(("phone", "android")), elapsed()))
    await asked.wait()
    task.cancel()
    assert [(line.status, line.details.get("http_status")) for line in (await task).logs] == [("failed", 404)]
