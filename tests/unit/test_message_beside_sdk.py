"""Random pushes beside the real Firebase SDK: what its encoder writes for the same settings, and what we send.

Nothing that the sender set is dropped, renamed or mistyped. All that is more is a default of docs/options.md, with
exactly its value.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from firebase_admin import _messaging_encoder, messaging

from listener.emulator import checks, front_end
from listener.fcm.message import prepare, targets
from listener.push import Push
from tests.support.pushes import push

PUSHES = 1500
NOW = 1_800_000_000
DAY = 86_400

pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated:DeprecationWarning")

Maker = Callable[[Random], Any]
Leaves = dict[tuple[str, ...], str]
"""Each value of a JSON object as JSON, by its path: so 1, 1.0 and true differ."""


# --- random settings, as a user of the SDK makes them --------------------------------------------------

_WORDS = ["a", "Bücher", "日本", "🎉", "x y", "0", "null", "{}", 'q"\\', "https://example.com/i.png"]


def _text(r: Random) -> str:
    return " ".join(r.choices(_WORDS, k=r.randint(1, 3)))


def _texts(r: Random) -> list[str]:
    return [_text(r) for _ in range(r.randint(1, 3))]


def _json(r: Random, depth: int = 2) -> Any:
    kinds: list[Maker] = [
        _text,
        lambda r: r.choice([None, True, False, 0, 1, -1, 1.0, 0.1, 1e30, 12345678901234567890]),
    ]
    if depth:
        kinds += [
            lambda r: [_json(r, depth - 1) for _ in range(r.randint(0, 2))],
            lambda r: {_text(r): _json(r, depth - 1) for _ in range(r.randint(0, 2))},
        ]
    return r.choice(kinds)(r)


def _object(r: Random) -> dict[str, Any]:
    return {f"custom {_text(r)}": _json(r) for _ in range(r.randint(1, 3))}


def _data(r: Random) -> dict[str, str]:
    keys = ["k", "collapse_key", "push_id", "notification", "ключ", "a.b"]
    return {key: _text(r) for key in r.sample(keys, r.randint(1, 3))}


def _flag(r: Random) -> bool:
    return r.random() < 0.5


def _color(r: Random) -> str:
    return f"#{r.randrange(1 << 24):06x}"


def _label(r: Random) -> str:
    return r.choice(["label", "a-b_c.d~e%", "x" * 50])


def _time(r: Random) -> datetime:
    zone = r.choice([None, UTC])
    return datetime(2026, 1, 1, tzinfo=zone) + timedelta(microseconds=r.randrange(10**14))


def _ttl(r: Random) -> Any:
    return r.choice([0, 3.5, 60, 3600, timedelta(minutes=5), timedelta(days=28), 10**7])


def _subset(r: Random, made: type, makers: dict[str, Maker], share: float = 0.3) -> Any:
    """An object of the SDK with some of its parameters. Fails if the SDK has other parameters than ``makers``."""
    parameters = inspect.signature(made).parameters
    known = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    assert known == set(makers), made
    required = {name for name in known if parameters[name].default is inspect.Parameter.empty}
    chosen = [name for name in makers if name in required or r.random() < share]
    return made(**{name: makers[name](r) for name in chosen})


def _light(r: Random) -> Any:
    makers: dict[str, Maker] = {
        "color": lambda r: _color(r) + r.choice(["", "80"]),
        "light_on_duration_millis": lambda r: r.choice([0, 100, 1500]),
        "light_off_duration_millis": lambda r: r.choice([200, timedelta(seconds=2)]),
    }
    return _subset(r, messaging.LightSettings, makers)


def _android_notification(r: Random) -> Any:
    makers: dict[str, Maker] = {
        "title": _text,
        "body": _text,
        "icon": _text,
        "color": _color,
        "sound": _text,
        "tag": _text,
        "click_action": _text,
        "body_loc_key": _text,
        "body_loc_args": _texts,
        "title_loc_key": _text,
        "title_loc_args": _texts,
        "channel_id": _text,
        "image": _text,
        "ticker": _text,
        "sticky": _flag,
        "event_timestamp": _time,
        "local_only": _flag,
        "priority": lambda r: r.choice(["min", "low", "default", "high", "max"]),
        "vibrate_timings_millis": lambda r: [100, 1500, 0.5][: r.randint(1, 3)],
        "default_vibrate_timings": _flag,
        "default_sound": _flag,
        "light_settings": _light,
        "default_light_settings": _flag,
        "visibility": lambda r: r.choice(["private", "public", "secret"]),
        "notification_count": lambda r: r.choice([0, 1, 7]),
        "proxy": lambda r: r.choice(["allow", "deny", "if_priority_lowered"]),
    }
    made = _subset(r, messaging.AndroidNotification, makers)
    made.body_loc_key = made.body_loc_key or ("key" if made.body_loc_args else None)
    made.title_loc_key = made.title_loc_key or ("key" if made.title_loc_args else None)
    return made


def _android(r: Random) -> Any:
    makers: dict[str, Maker] = {
        "collapse_key": _text,
        "priority": lambda r: r.choice(["high", "normal"]),
        "ttl": _ttl,
        "restricted_package_name": _text,
        "data": _data,
        "notification": _android_notification,
        "fcm_options": lambda r: _subset(r, messaging.AndroidFCMOptions, {"analytics_label": _label}, 0.9),
        "direct_boot_ok": _flag,
        "bandwidth_constrained_ok": _flag,
        "restricted_satellite_ok": _flag,
    }
    return _subset(r, messaging.AndroidConfig, makers)


def _alert(r: Random) -> Any:
    if r.random() < 0.3:
        return _text(r)
    makers: dict[str, Maker] = {
        "title": _text,
        "subtitle": _text,
        "body": _text,
        "loc_key": _text,
        "loc_args": _texts,
        "title_loc_key": _text,
        "title_loc_args": _texts,
        "action_loc_key": _text,
        "launch_image": _text,
        "custom_data": _object,
    }
    made = _subset(r, messaging.ApsAlert, makers)
    made.loc_key = made.loc_key or ("key" if made.loc_args else None)
    made.title_loc_key = made.title_loc_key or ("key" if made.title_loc_args else None)
    return made


def _sound(r: Random) -> Any:
    if r.random() < 0.5:
        return "default"
    makers: dict[str, Maker] = {
        "name": _text,
        "critical": _flag,
        "volume": lambda r: r.choice([0, 0.25, 1, 1.0]),
    }
    return _subset(r, messaging.CriticalSound, makers)


def _aps_custom(r: Random) -> dict[str, Any]:
    if r.random() < 0.5:
        return _object(r)
    event = r.choice(["start", "update", "end"])
    return {"event": event, "timestamp": NOW, "content-state": _object(r), "dismissal-date": NOW + 60}


def _payload(r: Random) -> Any:
    makers: dict[str, Maker] = {
        "alert": _alert,
        "badge": lambda r: r.choice([0, 1, 99]),
        "sound": _sound,
        "content_available": _flag,
        "category": _text,
        "thread_id": _text,
        "mutable_content": _flag,
        "custom_data": _aps_custom,
    }
    custom = _object(r) if _flag(r) else {}
    return messaging.APNSPayload(_subset(r, messaging.Aps, makers, r.choice([0.1, 0.3])), **custom)


def _apns_headers(r: Random) -> dict[str, str]:
    makers: dict[str, Maker] = {
        "apns-priority": lambda r: r.choice(["1", "5", "10"]),
        "apns-collapse-id": lambda r: "c" * r.randint(1, 64),
        "apns-expiration": lambda r: str(r.choice([0, NOW, NOW + 60, NOW + 3 * DAY])),
        "apns-push-type": lambda r: r.choice(["alert", "background", "liveactivity", "voip"]),
        "apns-topic": lambda _: "com.example.app",
    }
    return {name: make(r) for name, make in makers.items() if r.random() < 0.2}


def _apns(r: Random) -> Any:
    makers: dict[str, Maker] = {
        "headers": _apns_headers,
        "payload": _payload,
        "fcm_options": lambda r: _subset(
            r, messaging.APNSFCMOptions, {"analytics_label": _label, "image": _text}, 0.5
        ),
        "live_activity_token": lambda _: "8051d9c7",
    }
    made = _subset(r, messaging.APNSConfig, makers, 0.6)
    if r.random() < 0.8:
        made.live_activity_token = None
    return made


def _web_notification(r: Random) -> Any:
    action: dict[str, Maker] = {"action": _text, "title": _text, "icon": _text}
    makers: dict[str, Maker] = {
        "title": _text,
        "body": _text,
        "icon": _text,
        "actions": lambda r: [_subset(r, messaging.WebpushNotificationAction, action)],
        "badge": _text,
        "data": _json,
        "direction": lambda r: r.choice(["auto", "ltr", "rtl"]),
        "image": _text,
        "language": lambda _: "de",
        "renotify": _flag,
        "require_interaction": _flag,
        "silent": _flag,
        "tag": _text,
        "timestamp_millis": lambda r: r.choice([NOW * 1000, NOW * 1000.5]),
        "vibrate": lambda _: [100, 50, 100],
        "custom_data": _object,
    }
    return _subset(r, messaging.WebpushNotification, makers)


def _web_headers(r: Random) -> dict[str, str]:
    makers: dict[str, Maker] = {
        "TTL": lambda r: str(r.choice([0, 15, 3600, 28 * DAY, 10**7])),
        "Urgency": lambda r: r.choice(["very-low", "low", "normal", "high"]),
        "Topic": lambda _: "news",
    }
    return {name: make(r) for name, make in makers.items() if r.random() < 0.4}


def _webpush(r: Random) -> Any:
    def link(r: Random) -> Any:
        return _subset(r, messaging.WebpushFCMOptions, {"link": lambda _: "https://example.com/x"}, 0.9)

    makers: dict[str, Maker] = {
        "headers": _web_headers,
        "data": _data,
        "notification": _web_notification,
        "fcm_options": link,
    }
    return _subset(r, messaging.WebpushConfig, makers, 0.5)


# --- a push, and the same message by the SDK -----------------------------------------------------------


@dataclass
class Case:
    """A push, and what the SDK's encoder writes for what the sender set."""

    push: Push
    theirs: dict[str, Any]
    """The message with target, title, body, image, data and options; without what the other columns add."""


def _encoded(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(message, cls=_messaging_encoder.MessageEncoder))
    return found


def make_case(seed: int) -> Case:
    """The push number ``seed``."""
    r = Random(seed)
    makers: dict[str, Maker] = {
        "android": _android,
        "apns": _apns,
        "webpush": _webpush,
        "fcm_options": lambda r: _subset(r, messaging.FCMOptions, {"analytics_label": _label}, 0.9),
    }
    configs = {name: make(r) for name, make in makers.items() if r.random() < 0.6}
    options = _encoded(messaging.Message(topic="x", **configs))
    del options["topic"]

    token, condition = "abc:DEF", "'a' in topics && !('b' in topics)"
    target: dict[str, Any] = r.choice(
        [
            {"device_token": token},
            {"topic": "news"},
            {"topic": "/topics/a-Z0_.~%"},
            {"condition": condition},
            {
                "device_token": None,
                "user_id": UUID(int=r.getrandbits(128)),
                "recipients": [(token, r.choice(["ios", None]))],
            },
        ]
    )
    sdk_target: dict[str, Any] = {name: target[name] for name in ("topic", "condition") if name in target}

    title = r.choice([None, None, _text(r), _text(r), ""])
    body = None if title is None else (_text(r) if title == "" or _flag(r) else None)
    image = r.choice([None, "https://example.com/i.png"])
    data = {f"key {i}": _json(r) for i in range(r.randint(title is None, 3))}
    if r.random() < 0.1:
        data["push_id"] = "another"
    notification = None if title is None else messaging.Notification(title, body, image)
    as_sent = {key: value if isinstance(value, str) else _compact(value) for key, value in data.items()}

    expires_in = r.choice([None, 0.0, 59.9, 3600.0, 2.0 * DAY, 40.0 * DAY])
    key = r.choice([None, None, "order-7", "x" * 64, "x" * 65, "Bücher", "a b", "y" * 33])
    row = push(
        **{
            "device_token": None,
            **target,
            "id": UUID(int=r.getrandbits(128), version=4),
            "title": title,
            "body": body,
            "image": image,
            "data": json.dumps(data) if data else None,
            "channel": r.choice([None, "orders"]),
            "priority": r.choice([None, "normal", "high"]),
            "collapse_key": key,
            "options": json.dumps(options, ensure_ascii=_flag(r)) if options else None,
            "expires_at": None if expires_in is None else NOW + 0.5 + expires_in,
            "expires_in": expires_in,
        }
    )
    theirs = messaging.Message(
        notification=notification, data=as_sent, **(sdk_target or {"token": token}), **configs
    )
    return Case(row, _encoded(theirs))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- what docs/options.md promises ---------------------------------------------------------------------


def _at(message: dict[str, Any], *path: str) -> Any:
    value: Any = message
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _kind_on_ios(theirs: dict[str, Any]) -> str | None:
    """What the sender's settings are to Apple."""
    aps = _at(theirs, "apns", "payload", "aps") or {}
    own: str | None = _at(theirs, "apns", "headers", "apns-push-type")
    if own is not None:
        return own
    if _at(theirs, "apns", "live_activity_token") or ("event" in aps and "content-state" in aps):
        return "liveactivity"
    return "alert" if {"alert", "badge", "sound"} & set(aps) else None


def defaults(row: Push, theirs: dict[str, Any]) -> Leaves:
    """What the listener sets where the sender sets nothing."""
    push_id = str(row.id)
    high = row.priority == "high"
    key = row.collapse_key or ""
    visible = bool(row.title or row.body)
    kind = _kind_on_ios(theirs)
    background = not visible and kind in (None, "background")
    live = kind == "liveactivity"
    found: dict[tuple[str, ...], Any] = {
        ("data", "push_id"): push_id,
        ("android", "priority"): "HIGH" if high else "NORMAL",
        ("apns", "headers", "apns-priority"): "5",
        ("webpush", "headers", "Urgency"): "high" if high else "normal",
        ("webpush", "headers", "Topic"): key if re.fullmatch(r"[\w-]{1,32}", key, re.ASCII) else row.id.hex,
    }
    if key:
        found["android", "collapse_key"] = key
    if visible or _at(theirs, "android", "notification"):
        found["android", "notification", "tag"] = push_id
        if row.channel:
            found["android", "notification", "channel_id"] = row.channel
    if visible or _at(theirs, "webpush", "notification"):
        found["webpush", "notification", "tag"] = push_id
    if not live:
        fits = re.fullmatch(r"[ -~]{1,64}", key)
        found["apns", "headers", "apns-collapse-id"] = key if fits else push_id
    if live or not visible:
        found["apns", "headers", "apns-push-type"] = kind or "background"
    if background:
        found["apns", "payload", "aps", "content-available"] = 1
    elif (visible and row.image) or _at(theirs, "apns", "fcm_options", "image"):
        found["apns", "payload", "aps", "mutable-content"] = 1
    if not background and (high or (not live and (visible or kind == "alert"))):
        found["apns", "headers", "apns-priority"] = "10"
    return {path: json.dumps(value) for path, value in found.items()}


def shorter_lives(row: Push, theirs: dict[str, Any]) -> Leaves:
    """The times to live, of which the shorter counts, and the push id, which stays."""
    left = row.expires_in
    limit = 28 * DAY
    found: dict[tuple[str, ...], Any] = {}
    own = _at(theirs, "android", "ttl")
    if own is not None and float(own[:-1]) <= min(limit, limit if left is None else left):
        found["android", "ttl"] = own
    elif own is not None or left is not None:
        found["android", "ttl"] = f"{int(min(limit, limit if left is None else left))}s"
    own = _at(theirs, "webpush", "headers", "TTL")
    times = [each for each in (left, None if own is None else float(own)) if each is not None]
    if times:
        found["webpush", "headers", "TTL"] = str(int(min(limit, *times)))
    own = _at(theirs, "apns", "headers", "apns-expiration")
    ends = [int(each) for each in (row.expires_at, own) if each is not None]
    if ends:
        found["apns", "headers", "apns-expiration"] = str(min(ends))
    for platform in ("android", "webpush"):
        if _at(theirs, platform, "data"):
            found[platform, "data", "push_id"] = str(row.id)
    found["data", "push_id"] = str(row.id)
    return {path: json.dumps(value) for path, value in found.items()}


# --- the comparison ------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[str, ...] = ()) -> Leaves:
    """Every value in an object, with its path. An empty object is a value."""
    if not isinstance(value, dict) or (path and not value):
        return {path: json.dumps(value, sort_keys=True)}
    found: Leaves = {}
    for name, inner in value.items():
        found |= leaves(inner, (*path, name))
    return found


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), [name for name, _ in pairs]
    return dict(pairs)


def sent(row: Push) -> dict[str, Any]:
    """The message of a push to its first target, read back from the bytes."""
    [target] = targets(row)
    request = json.loads(prepare(row).encode(target, row.expires_in), object_pairs_hook=_no_name_twice)
    assert list(request) == ["message"]
    return dict(request["message"])


def test_all_that_the_sender_set_is_sent_and_all_else_is_a_default() -> None:
    kinds = set()
    for seed in range(PUSHES):
        case = make_case(seed)
        theirs = case.theirs
        expected = {**defaults(case.push, theirs), **leaves(theirs), **shorter_lives(case.push, theirs)}
        found = leaves(sent(case.push))
        wrong = {path: (expected.get(path), found.get(path)) for path in expected.keys() | found.keys()}
        wrong = {path: pair for path, pair in wrong.items() if pair[0] != pair[1]}
        assert not wrong, f"push {seed}: {{path: (expected, sent)}} = {wrong}\n{case.push.options}"
        kinds |= {*leaves(theirs), (_kind_on_ios(theirs) or "", str(bool(case.push.title)))}
    # The pushes are not all alike.
    assert {("alert", "False"), ("liveactivity", "True"), ("", "False"), ("voip", "False")} <= kinds
    assert len(kinds) > 200


def test_what_fcm_accepts_from_the_sdk_it_accepts_from_us() -> None:
    refused = 0
    for seed in range(0, PUSHES, 4):
        case = make_case(seed)
        if _refused(case.theirs):
            refused += 1
        else:
            assert _refused(sent(case.push)) is None, f"push {seed}"
    assert refused < PUSHES / 8


def _refused(message: dict[str, Any]) -> str | None:
    """The local FCM's refusal of a message."""
    request, violations = front_end.normalise({"message": message})
    if violations:
        return str(violations)
    answer = checks.check(request["message"])
    return None if answer is None else answer.body.decode()


def test_a_difference_is_seen() -> None:
    """The comparison tells apart what Python calls equal, and sees what is missing or more."""
    assert leaves({"a": 1}) != leaves({"a": True}) != leaves({"a": 1.0}) != leaves({"a": "1"})
    assert leaves({"a": {"b": 1}}) != leaves({"a": {"b": 1, "c": None}})
    assert leaves({"a": {}}) != leaves({})
    assert leaves({"a": {"b": [1]}}) == {("a", "b"): "[1]"}
