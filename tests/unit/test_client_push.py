"""A push in firebase-admin's shape: what it refuses, and that each option is written as firebase-admin writes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from firebase_admin import messaging
from hypothesis import given
from hypothesis import strategies as st

from listener import client
from listener.client import InvalidArgument, Notification, Push

ANN = UUID("a0000000-0000-4000-8000-00000000000a")


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({}, "no target: set one of fid, token, topic, condition, user_id"),
        ({"token": "t", "topic": "n"}, "several targets, token and topic"),
        ({"token": "t", "fid": "f"}, "several targets, fid and token"),
        ({"topic": "n", "user_id": ANN}, "several targets"),
        ({"fid": "f", "token": "t", "user_id": ANN}, "several targets"),
        ({"user_id": "seventeen"}, "user_id is no UUID"),
        ({"token": "t", "priority": "urgent"}, "priority must be normal or high"),
        ({"token": "t", "send_at": datetime(2026, 1, 1)}, "send_at has no time zone"),
        ({"token": "t", "expires_at": datetime(2026, 1, 1)}, "expires_at has no time zone"),
    ],
)
def test_a_push_that_can_never_be_sent_is_refused(given_: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Push(**given_)


def test_a_token_may_stand_beside_its_user() -> None:
    push = Push(token="t", user_id=str(ANN))
    assert push.target == ("token", "t")
    assert push.columns() == {"user_id": str(ANN), "device_token": "t"}


def test_a_token_is_not_shown() -> None:
    assert "APA91" not in repr(Push(token="x:APA91")) + repr(Push(fid="APA91"))


def test_times_are_written_in_utc() -> None:
    there = datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=5, minutes=45)))
    assert Push(token="t", send_at=there).columns()["send_at"] == "2026-01-01T21:19:05.000006+00:00"


def test_arguments_are_those_of_enqueue_push() -> None:
    push = Push(topic="news", notification=Notification("t"), data={"a": 1})
    assert push.arguments() == {"p_topic": "news", "p_title": "t", "p_data": {"a": 1}}


# --- as firebase-admin ---------------------------------------------------------------------------------


def messages() -> st.SearchStrategy[Callable[[Any], Any]]:
    """Messages of every option, as functions of the module whose classes they are made of."""
    storable = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
    text = st.text(storable, max_size=5)
    some = st.text(storable, min_size=1, max_size=5)
    texts = st.lists(text, max_size=2)
    strings = st.dictionaries(text, text, max_size=2)
    flag = st.booleans()
    # Eighths of a second: others firebase-admin rounds, because it reckons in floats.
    eighths = st.integers(0, 10**6).map(lambda number: 125 * number)
    millis = eighths | eighths.map(lambda number: timedelta(milliseconds=number))
    label = st.from_regex(r"[a-zA-Z0-9-_.~%]{1,50}", fullmatch=True)
    color = st.from_regex(r"#[0-9a-f]{6}", fullmatch=True)
    # Names of the application's own, which repeat none of the standard's.
    custom = st.dictionaries(st.text("xyz", min_size=1, max_size=3), text, max_size=2)

    def maybe(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({}, optional=options)

    def made(name: str, arguments: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
        return arguments.map(lambda values: (name, values))

    zones: st.SearchStrategy[Any] = st.sampled_from([None, UTC])
    light = made(
        "LightSettings",
        st.fixed_dictionaries(
            {
                "color": st.from_regex(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", fullmatch=True),
                "light_on_duration_millis": millis,
                "light_off_duration_millis": millis,
            }
        ),
    )
    android_notification = made(
        "AndroidNotification",
        maybe(
            title=text, body=text, icon=text, color=color, sound=text, tag=text, click_action=text,
            body_loc_key=some, title_loc_key=some, channel_id=text, image=text, ticker=text, sticky=flag,
            event_timestamp=st.datetimes(datetime(1971, 1, 1), timezones=zones),
            local_only=flag, priority=st.sampled_from(["min", "low", "default", "high", "max"]),
            vibrate_timings_millis=st.lists(eighths, max_size=2), default_vibrate_timings=flag,
            default_sound=flag, light_settings=light, default_light_settings=flag,
            visibility=st.sampled_from(["private", "public", "secret"]), notification_count=st.integers(0, 9),
            proxy=st.sampled_from(["allow", "deny", "if_priority_lowered"]),
        ),
    )  # fmt: skip
    android = made(
        "AndroidConfig",
        maybe(
            collapse_key=text, priority=st.sampled_from(["high", "normal"]), ttl=st.integers(0, 10**6) | millis,
            restricted_package_name=text, data=strings, notification=android_notification,
            fcm_options=made("AndroidFCMOptions", maybe(analytics_label=label)), direct_boot_ok=flag,
            bandwidth_constrained_ok=flag, restricted_satellite_ok=flag,
        ),
    )  # fmt: skip
    alert = made(
        "ApsAlert",
        st.fixed_dictionaries(
            {"loc_key": some, "title_loc_key": some},
            optional={
                "title": text, "subtitle": text, "body": text, "loc_args": texts, "title_loc_args": texts,
                "action_loc_key": text, "launch_image": text, "custom_data": custom,
            },
        ),
    )  # fmt: skip
    sound = made(
        "CriticalSound",
        st.fixed_dictionaries({"name": some}, optional={"critical": flag, "volume": st.floats(0, 1)}),
    )
    aps = made(
        "Aps",
        maybe(
            alert=text | alert, badge=st.integers(0, 9), sound=some | sound, content_available=flag, category=text,
            thread_id=text, mutable_content=flag, custom_data=custom,
        ),
    )  # fmt: skip
    payload = made("APNSPayload", st.tuples(aps, custom).map(lambda pair: {"aps": pair[0], **pair[1]}))
    apns = made(
        "APNSConfig",
        maybe(
            headers=strings, payload=payload, live_activity_token=text,
            fcm_options=made("APNSFCMOptions", maybe(analytics_label=label, image=text)),
        ),
    )  # fmt: skip
    action = made(
        "WebpushNotificationAction",
        st.fixed_dictionaries({"action": text, "title": text}, optional={"icon": text}),
    )
    web_notification = made(
        "WebpushNotification",
        maybe(
            title=text, body=text, icon=text, actions=st.lists(action, max_size=2), badge=text, data=strings,
            direction=st.sampled_from(["auto", "ltr", "rtl"]), image=text, language=text, renotify=flag,
            require_interaction=flag, silent=flag, tag=text, timestamp_millis=st.integers(0, 10**13),
            vibrate=st.lists(st.integers(0, 99), max_size=2), custom_data=custom,
        ),
    )  # fmt: skip
    webpush = made(
        "WebpushConfig",
        maybe(
            headers=strings, data=strings, notification=web_notification,
            fcm_options=made("WebpushFCMOptions", maybe(link=st.just("https://example.com/"))),
        ),
    )  # fmt: skip
    arguments = st.fixed_dictionaries(
        {"topic": st.just("news")},
        optional={
            "data": strings, "android": android, "apns": apns, "webpush": webpush,
            "notification": made("Notification", maybe(title=text, body=text, image=text)),
            "fcm_options": made("FCMOptions", maybe(analytics_label=label)),
        },
    )  # fmt: skip
    return arguments.map(
        lambda values: lambda module: {name: build(module, value) for name, value in values.items()}
    )


def build(module: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        name, arguments = value
        return getattr(module, name)(**{key: build(module, each) for key, each in arguments.items()})
    return [build(module, each) for each in value] if isinstance(value, list) else value


@given(messages())
def test_options_are_written_as_firebase_admin_writes_them(of: Callable[[Any], dict[str, Any]]) -> None:
    theirs = json.loads(str(messaging.Message(**of(messaging))))
    ours = Push(**of(client)).columns()
    assert ours.get("options", {}) == {
        name: theirs[name] for name in ("android", "apns", "webpush", "fcm_options") if theirs.get(name)
    }


@given(messages())
def test_a_message_becomes_the_push_that_was_meant(of: Callable[[Any], dict[str, Any]]) -> None:
    made = Push.from_message(messaging.Message(**of(messaging)), idempotency_key="k").columns()
    priority = made.get("options", {}).get("android", {}).get("priority")
    meant = Push(**of(client), priority=priority, idempotency_key="k").columns()
    # firebase-admin leaves out an empty data.
    assert made | {"data": made.get("data") or {}} == meant | {"data": meant.get("data") or {}}


@pytest.mark.parametrize("target", ["token", "fid", "topic", "condition"])
def test_a_message_keeps_its_target(target: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        message = messaging.Message(data={"a": "b"}, **{target: "news"})
    assert Push.from_message(message).target == (target, "news")


def test_what_is_no_message_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        many = messaging.MulticastMessage(tokens=["a"])
    for other in (many, {"token": "t"}, "text"):
        with pytest.raises(TypeError, match=r"takes a firebase_admin.messaging.Message, not"):
            Push.from_message(other)
    with pytest.raises(ValueError, match="Exactly one of"):
        Push.from_message(messaging.Message(data={"a": "b"}))


@pytest.mark.parametrize(
    "name",
    [
        "AndroidConfig", "AndroidFCMOptions", "AndroidNotification", "APNSConfig", "APNSFCMOptions", "Aps", "ApsAlert",
        "CriticalSound", "FCMOptions", "LightSettings", "Notification", "WebpushConfig", "WebpushFCMOptions",
        "WebpushNotification", "WebpushNotificationAction",
    ],
)  # fmt: skip
def test_each_class_has_the_arguments_of_firebase_admins_in_their_order(name: str) -> None:
    theirs = getattr(messaging, name).__init__.__code__
    assert (
        tuple(each.name for each in fields(getattr(client, name)))
        == theirs.co_varnames[1 : theirs.co_argcount]
    )


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            {"android": client.AndroidConfig(priority="urgent")},
            "AndroidConfig.priority must be one of normal, high",
        ),
        ({"android": client.AndroidConfig(ttl=-1)}, "AndroidConfig.ttl must not be negative"),
        (
            {"android": client.AndroidConfig(notification=client.AndroidNotification(color="red"))},
            "color must be #RRGGBB",
        ),
        (
            {"android": client.AndroidConfig(notification=client.AndroidNotification(body_loc_args=["a"]))},
            "body_loc_key is needed beside body_loc_args",
        ),
        (
            {"webpush": client.WebpushConfig(fcm_options=client.WebpushFCMOptions("http://example.com"))},
            "must begin with https://",
        ),
        ({"fcm_options": client.FCMOptions("no blanks")}, "analytics_label must be"),
        (
            {
                "apns": client.APNSConfig(
                    payload=client.APNSPayload(client.Aps(badge=1, custom_data={"badge": 2}))
                )
            },
            "repeats badge",
        ),
    ],
)
def test_an_option_that_fcm_would_refuse_is_refused(option: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Push(token="t", **option).columns()


def test_an_option_may_be_what_fcm_takes() -> None:
    assert Push(token="t", android={"futureField": True}).columns()["options"] == {
        "android": {"futureField": True}
    }
