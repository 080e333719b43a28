"""From a row to the body of a request."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.emulator import checks, front_end
from listener.fcm.message import payload_size, prepare, targets
from listener.fcm.options import MAX_TTL
from listener.push import BadPush, Push, Target, TargetKind
from tests.support.pushes import ID, TOKEN, push
from tests.support.strategies import JSON, SECRET, pushes, sendable_pushes

PUSH_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
HEX_ID = "0f8fad5bd9cb469fa16570867728950e"
DEVICE = Target(TargetKind.TOKEN, TOKEN)
FID = "dIsVQ2QVRT-TWzQVxvNYhM"


def sent(expires_in: float | None = None, **columns: Any) -> dict[str, Any]:
    """The message of a push to one device, read back from the bytes."""
    request = json.loads(prepare(push(**columns)).encode(DEVICE, expires_in))
    assert list(request) == ["message"]
    return dict(request["message"])


def refused(**columns: Any) -> BadPush:
    """The fault that ``prepare`` finds in a push."""
    row = push(**columns)
    with pytest.raises(BadPush) as caught:
        prepare(row)
    return caught.value


# --- whole messages ------------------------------------------------------------------------------------


def test_plain_notification() -> None:
    assert sent() == {
        "token": TOKEN,
        "notification": {"title": "Title", "body": "Body"},
        "data": {"push_id": PUSH_ID},
        "android": {"priority": "NORMAL", "notification": {"tag": PUSH_ID}},
        "apns": {"headers": {"apns-priority": "10", "apns-collapse-id": PUSH_ID}},
        "webpush": {
            "headers": {"Urgency": "normal", "Topic": HEX_ID},
            "notification": {"tag": PUSH_ID},
        },
    }


def test_notification_with_everything() -> None:
    message = sent(
        priority="high",
        channel="orders",
        image="https://example.com/a.png",
        collapse_key="order-7",
        data={"order": "7"},
        expires_at=1_800_000_000.9,
        expires_in=59.9,
    )
    assert message == {
        "token": TOKEN,
        "notification": {"title": "Title", "body": "Body", "image": "https://example.com/a.png"},
        "data": {"order": "7", "push_id": PUSH_ID},
        "android": {
            "priority": "HIGH",
            "collapse_key": "order-7",
            "notification": {"tag": PUSH_ID, "channel_id": "orders"},
            "ttl": "59s",
        },
        "apns": {
            "headers": {
                "apns-priority": "10",
                "apns-collapse-id": "order-7",
                "apns-expiration": "1800000000",
            },
            "payload": {"aps": {"mutable-content": 1}},
        },
        "webpush": {
            "headers": {"Urgency": "high", "Topic": "order-7", "TTL": "59"},
            "notification": {"tag": PUSH_ID},
        },
    }


def test_data_message_has_no_notification_anywhere() -> None:
    message = sent(
        title=None,
        body=None,
        data={"sync": "1"},
        priority="high",
        channel="orders",
        image="https://example.com/a.png",
    )
    assert message == {
        "token": TOKEN,
        "data": {"sync": "1", "push_id": PUSH_ID},
        "android": {"priority": "HIGH"},
        "apns": {
            "headers": {"apns-priority": "5", "apns-collapse-id": PUSH_ID, "apns-push-type": "background"},
            "payload": {"aps": {"content-available": 1}},
        },
        "webpush": {"headers": {"Urgency": "high", "Topic": HEX_ID}},
    }


def test_validate_only() -> None:
    body = prepare(push()).encode(DEVICE, None, validate_only=True)
    assert json.loads(body) == {"message": sent(), "validate_only": True}


def test_each_kind_of_target() -> None:
    prepared = prepare(push())
    for kind in TargetKind:
        message = json.loads(prepared.encode(Target(kind, "x"), None))["message"]
        assert {name: message[name] for name in TargetKind if name in message} == {kind: "x"}


# --- title, body, priority -----------------------------------------------------------------------------


def test_title_alone_is_enough() -> None:
    assert sent(body=None)["notification"] == {"title": "Title"}


@pytest.mark.parametrize("data", [None, {}, {"a": "b"}])
def test_body_without_title_is_refused(data: dict[str, str] | None) -> None:
    bad = refused(title=None, data=data)
    assert bad.code == "TITLE_MISSING"
    assert "title is null" in str(bad)


def test_an_empty_title_with_a_body_is_sent() -> None:
    assert sent(title="")["notification"] == {"title": "", "body": "Body"}


@pytest.mark.parametrize(("title", "body"), [(None, None), ("", ""), ("", None), (None, "")])
def test_no_text_makes_a_data_message_or_nothing(title: str | None, body: str | None) -> None:
    assert "notification" not in sent(title=title, body=body, data={"a": "b"})
    for nothing in (None, "null", "{}"):
        assert refused(title=title, body=body, data=nothing).code == "EMPTY_MESSAGE"


@pytest.mark.parametrize("priority", ["HIGH", "urgent", "", "5"])
def test_unknown_priority(priority: str) -> None:
    bad = refused(priority=priority)
    assert bad.code == "INVALID_PRIORITY"
    assert "'normal' or 'high'" in str(bad)


# --- data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"text"', "text"),
        ('""', ""),
        ("7", "7"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("1.10", "1.10"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("1e400", "1e400"),
        ("true", "true"),
        ("false", "false"),
        ("null", "null"),
        ("[]", "[]"),
        (
            '{"a": [1, 2.50, 18446744073709551616], "b": {"c": "\\u00e9"}}',
            '{"a":[1,2.50,18446744073709551616],"b":{"c":"é"}}',
        ),
    ],
)
def test_values_that_are_not_strings_are_sent_as_their_json(text: str, value: str) -> None:
    assert sent(data=f'{{"key": {text}, "other": "x"}}')["data"] == {
        "key": value,
        "other": "x",
        "push_id": PUSH_ID,
    }


@given(st.dictionaries(st.text(max_size=8).map("k".__add__), JSON, max_size=5))
def test_data_survives_unchanged(data: dict[str, Any]) -> None:
    got = sent(data=json.dumps(data))["data"]
    assert got.pop("push_id") == PUSH_ID
    assert got.keys() == data.keys()
    for key, value in data.items():
        assert got[key] == value if isinstance(value, str) else json.loads(got[key]) == value


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "true", "", "{", "NaN", '{"a": NaN}', '{"a": Infinity}'])
def test_data_that_is_no_object(text: str) -> None:
    assert refused(data=text).code == "INVALID_DATA"


def test_data_encoded_twice_is_reported() -> None:
    assert "encoded twice" in str(refused(data=json.dumps('{"a": "b"}')))


@pytest.mark.parametrize("depth", [300, 100_000])
def test_data_nested_too_deeply(depth: int) -> None:
    assert refused(data='{"a": ' + "[" * depth + "]" * depth + "}").code == "INVALID_DATA"


@pytest.mark.parametrize(
    "key",
    [
        "from",
        "message_type",
        "google",
        "google.x",
        "googlefoo",
        "google_id",
        "gcm",
        "gcm.notification.title",
        "google." + "x" * 500,
    ],
)
def test_reserved_keys_are_named(key: str) -> None:
    bad = refused(data={"fine": "x", key: SECRET})
    assert bad.code == "INVALID_DATA"
    assert key[:60] in str(bad)
    assert SECRET not in str(bad)
    assert len(str(bad)) < 120


@pytest.mark.parametrize(
    "key", ["From", "Google", "goog", "gcmx", "gcm.other", "notification", "collapse_key", ""]
)
def test_keys_that_only_look_reserved(key: str) -> None:
    assert sent(data={key: "x"})["data"][key] == "x"


def test_our_push_id_wins() -> None:
    assert sent(data={"push_id": "theirs"})["data"] == {"push_id": PUSH_ID}


# --- size ----------------------------------------------------------------------------------------------

# What a notification with an empty body has besides its title: the words "title", "push_id" and "tag", and
# the push id twice.
BESIDES_TITLE = len("title" + "push_id" + "tag") + 2 * 36


@pytest.mark.parametrize(
    ("columns", "limit"),
    [
        ({}, 4096),
        ({"device_token": None, "user_id": ID}, 4096),
        ({"device_token": None, "topic": "news"}, 2048),
        ({"device_token": None, "condition": "'a' in topics"}, 2048),
    ],
)
def test_size_limit_to_the_byte(columns: dict[str, Any], limit: int) -> None:
    # A letter of two bytes: the limit counts bytes, not characters.
    room = limit - BESIDES_TITLE
    title = "é" * (room // 2) + "x" * (room % 2)
    prepare(push(title=title, body=None, **columns))
    bad = refused(title=title + "x", body=None, **columns)
    assert bad.code == "PAYLOAD_TOO_LARGE"
    assert f"{limit + 1} bytes" in str(bad)
    assert f"{limit} to a" in str(bad)


def test_size_counts_data_and_what_options_bring_to_a_device() -> None:
    assert refused(data={"a" * 2100: "b" * 2100}).code == "PAYLOAD_TOO_LARGE"
    assert refused(data={"a": ["b" * 4100]}).code == "PAYLOAD_TOO_LARGE"
    assert refused(options={"android": {"notification": {"body": "b" * 4100}}}).code == "PAYLOAD_TOO_LARGE"
    assert refused(options={"android": {"data": {"a": "b" * 4100}}}).code == "PAYLOAD_TOO_LARGE"


def test_payload_size_lays_the_android_settings_over_the_common_ones() -> None:
    message = {"notification": {"title": "ab"}, "data": {"k": "é"}}
    assert payload_size(message, {}) == len("title") + 2 + 1 + 2
    assert payload_size(message, {"notification": {"title": "abc"}, "data": {}}) == len("title") + 3
    assert payload_size({"data": {"k": "v"}}, {"notification": {"badge": 10}}) == 2 + len("badge") + 2


_TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


_SETTINGS = st.dictionaries(
    st.text(max_size=8), st.text(max_size=8) | st.integers(0, 9999) | _TEXTS, max_size=4
)


@given(_TEXTS, _TEXTS, st.none() | _TEXTS, st.none() | _SETTINGS)
def test_no_payload_is_larger_than_its_json(
    data: dict[str, str], common: dict[str, str], own_data: dict[str, str] | None, own: dict[str, Any] | None
) -> None:
    """So a short JSON proves that the payload is below the limit."""
    message = {"data": data, "notification": common}
    android = {"data": own_data, "notification": own}
    json_size = len(orjson.dumps(message)) + len(orjson.dumps(android))
    assert payload_size(message, android) <= json_size


@pytest.mark.parametrize("make", [prepare, targets])
def test_columns_that_were_too_large_to_read_are_named(make: Any) -> None:
    row = push(oversized="data, title", device_token=None)
    with pytest.raises(BadPush, match="data, title") as caught:
        make(row)
    assert caught.value.code == "PAYLOAD_TOO_LARGE"


# --- time to live --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (None, None),
        (59.99, "59"),
        (60.0, "60"),
        (0.4, "0"),
        (0.0, "0"),
        (-5.0, "0"),
        (1e12, str(MAX_TTL)),
        (float("inf"), str(MAX_TTL)),
        (float("-inf"), "0"),
        (float("nan"), str(MAX_TTL)),
    ],
)
def test_ttl_has_whole_seconds(left: float | None, seconds: str | None) -> None:
    message = sent(left)
    assert message["android"].get("ttl") == (seconds and f"{seconds}s")
    assert message["webpush"]["headers"].get("TTL") == seconds


@pytest.mark.parametrize(
    ("own", "left", "ttl"),
    [
        ("3600s", None, "3600s"),
        ("3.5s", None, "3.5s"),
        ("3.5s", 100.0, "3.5s"),
        ("3600s", 100.0, "100s"),
        ("0s", 100.0, "0s"),
        ("99999999s", None, f"{MAX_TTL}s"),
        ("99999999s", 1e12, f"{MAX_TTL}s"),
    ],
)
def test_the_shorter_ttl_wins_on_android(own: str, left: float | None, ttl: str) -> None:
    assert sent(left, options={"android": {"ttl": own}})["android"]["ttl"] == ttl


@pytest.mark.parametrize(("own", "left", "ttl"), [("60", None, "60"), (60, 100.0, "60"), ("60", 9.5, "9")])
def test_the_shorter_ttl_wins_on_the_web(own: object, left: float | None, ttl: str) -> None:
    headers = sent(left, options={"webpush": {"headers": {"ttl": own}}})["webpush"]["headers"]
    assert headers == {"Urgency": "normal", "Topic": HEX_ID, "TTL": ttl}


@pytest.mark.parametrize(
    ("own", "expires_at", "expiration"),
    [
        ("100", None, "100"),
        ("100", 200.0, "100"),
        ("300", 200.0, "200"),
        ("0", 200.0, "0"),
        (300, 200.0, "200"),
    ],
)
def test_the_earlier_expiration_wins_on_ios(own: object, expires_at: float | None, expiration: str) -> None:
    message = sent(expires_at=expires_at, options={"apns": {"headers": {"APNS-Expiration": own}}})
    assert message["apns"]["headers"]["apns-expiration"] == expiration


@pytest.mark.parametrize("expires_at", [float("inf"), float("nan")])
def test_an_infinite_expires_at_sets_no_expiration(expires_at: float) -> None:
    assert "apns-expiration" not in sent(expires_at=expires_at)["apns"]["headers"]


@pytest.mark.parametrize(
    "options",
    [
        {"android": {"ttl": "1m"}},
        {"android": {"ttl": 3600}},
        {"android": {"ttl": "-1s"}},
        {"android": {"ttl": "٣s"}},
        {"webpush": {"headers": {"TTL": "1h"}}},
        {"apns": {"headers": {"apns-expiration": "soon"}}},
    ],
)
def test_unreadable_ttl(options: dict[str, Any]) -> None:
    assert refused(options=options).code == "INVALID_OPTIONS"


# --- collapse key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "collapse_id", "topic"),
    [
        ("a" * 32, "a" * 32, "a" * 32),
        ("a" * 33, "a" * 33, HEX_ID),
        ("a" * 64, "a" * 64, HEX_ID),
        ("a" * 65, PUSH_ID, HEX_ID),
        ("a b", "a b", HEX_ID),
        ("é", PUSH_ID, HEX_ID),
        ("a\nb", PUSH_ID, HEX_ID),
        ("a\n", PUSH_ID, HEX_ID),
    ],
)
def test_collapse_key_goes_where_it_fits(key: str, collapse_id: str, topic: str) -> None:
    message = sent(collapse_key=key)
    assert message["android"]["collapse_key"] == key
    assert message["apns"]["headers"]["apns-collapse-id"] == collapse_id
    assert message["webpush"]["headers"]["Topic"] == topic


def test_an_empty_collapse_key_counts_as_none() -> None:
    assert sent(collapse_key="") == sent()


# --- options -------------------------------------------------------------------------------------------


def test_options_are_merged_and_win() -> None:
    message = sent(
        channel="ours",
        collapse_key="ours",
        options={
            "android": {
                "priority": "HIGH",
                "collapseKey": "theirs",
                "direct_boot_ok": True,
                "notification": {"channelId": "theirs", "color": "#ff0000"},
            },
            "apns": {
                "headers": {"Apns-Priority": "10", "APNS-COLLAPSE-ID": "theirs", "apns-topic": "app"},
                "payload": {"aps": {"badge": 12345678901234567890123, "sound": "default"}, "ratio": 1.50},
            },
            "webpush": {
                "headers": {"urgency": "very-low", "TOPIC": "theirs", "X-Other": "x"},
                "notification": {"tag": "theirs", "icon": "i.png"},
                "fcm_options": {"link": "https://example.com"},
            },
            "fcm_options": {"analyticsLabel": "spring"},
        },
    )
    assert message == {
        "token": TOKEN,
        "notification": {"title": "Title", "body": "Body"},
        "data": {"push_id": PUSH_ID},
        "android": {
            "priority": "HIGH",
            "collapse_key": "theirs",
            "direct_boot_ok": True,
            "notification": {"tag": PUSH_ID, "channel_id": "theirs", "color": "#ff0000"},
        },
        "apns": {
            "headers": {"apns-priority": "10", "apns-collapse-id": "theirs", "apns-topic": "app"},
            "payload": {"aps": {"badge": 12345678901234567890123, "sound": "default"}, "ratio": 1.5},
        },
        "webpush": {
            "headers": {"Urgency": "very-low", "Topic": "theirs", "X-Other": "x"},
            "notification": {"tag": "theirs", "icon": "i.png"},
            "fcm_options": {"link": "https://example.com"},
        },
        "fcm_options": {"analytics_label": "spring"},
    }


def by_options(data: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """A message of high priority with neither title nor body."""
    return sent(title=None, body=None, data=data, priority="high", options=options)


LOC = {"title_loc_key": "NEW_ORDER", "titleLocArgs": ["7"]}
ALERTS: list[Any] = [
    {"loc-key": "NEW_ORDER"},
    {"title-loc-key": "NEW_ORDER"},
    {"title": "T", "body": "B"},
    "B",
]


@pytest.mark.parametrize("data", [None, {"a": "b"}])
def test_a_localized_notification_of_android_is_one(data: dict[str, str] | None) -> None:
    message = by_options(data, android={"notification": LOC})
    assert message["android"] == {"priority": "HIGH", "notification": {"tag": PUSH_ID, **LOC}}
    assert "notification" not in message
    assert "notification" not in message["webpush"]
    assert message["apns"]["headers"]["apns-push-type"] == "background"


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("data", [None, {"a": "b"}])
def test_an_alert_of_ios_is_one(alert: object, data: dict[str, str] | None) -> None:
    message = by_options(data, apns={"payload": {"aps": {"alert": alert}}})
    assert message["apns"] == {
        "headers": {"apns-priority": "10", "apns-collapse-id": PUSH_ID, "apns-push-type": "alert"},
        "payload": {"aps": {"alert": alert}},
    }


@pytest.mark.parametrize("aps", [{"badge": 0}, {"sound": "default"}])
@pytest.mark.parametrize("data", [None, {"a": "b"}])
def test_a_badge_or_a_sound_is_no_background_push(
    aps: dict[str, object], data: dict[str, str] | None
) -> None:
    """Apple: a background push must have neither."""
    message = by_options(data, apns={"payload": {"aps": aps}})
    assert message["apns"]["headers"]["apns-push-type"] == "alert"
    assert message["apns"]["headers"]["apns-priority"] == "10"
    assert message["apns"]["payload"]["aps"] == aps


@pytest.mark.parametrize("named", ["live_activity_token", "liveActivityToken", None, "header"])
@pytest.mark.parametrize("title", [None, "Title"])
def test_a_live_activity_is_one(named: str | None, title: str | None) -> None:
    aps = {"event": "update", "content-state": {"score": 1}, "timestamp": 1}
    if named:
        del aps["event"]
    apns: dict[str, Any] = {"payload": {"aps": aps}}
    if named == "header":
        apns["headers"] = {"apns-push-type": "liveactivity"}
    elif named:
        apns[named] = "token"
    message = sent(title=title, body=None, priority="high", options={"apns": apns})
    assert message["apns"]["headers"] == {"apns-priority": "10", "apns-push-type": "liveactivity"}
    assert message["apns"]["payload"] == {"aps": aps}


def test_a_notification_of_the_web_is_one() -> None:
    message = by_options(None, webpush={"notification": {"title": "T"}})
    assert message["webpush"]["notification"] == {"tag": PUSH_ID, "title": "T"}


def test_the_senders_own_push_type_stays() -> None:
    message = by_options(None, apns={"headers": {"apns-push-type": "location"}, "payload": {"aps": {}}})
    assert message["apns"]["headers"]["apns-push-type"] == "location"
    assert message["apns"]["payload"] == {"aps": {}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"android": {"ttl": "5s"}},
        {"android": {"notification": {}}},
        {"webpush": {"data": {}}},
        {"apns": {"payload": {"aps": {}}}},
        {"apns": {"payload": {"aps": {"badge": None}}}},
        {"fcm_options": {"analytics_label": "a"}},
    ],
)
def test_options_that_show_nothing_do_not_make_an_empty_message_whole(options: dict[str, Any]) -> None:
    assert refused(title=None, body=None, options=options).code == "EMPTY_MESSAGE"


def test_a_body_needs_no_title_where_options_have_one() -> None:
    message = sent(title=None, options={"android": {"notification": LOC}})
    assert message["notification"] == {"body": "Body"}


def test_background_settings_survive_a_merge() -> None:
    message = sent(
        title=None, body=None, data={"a": "b"}, options={"apns": {"payload": {"aps": {"thread-id": "t"}}}}
    )
    assert message["apns"]["payload"] == {"aps": {"content-available": 1, "thread-id": "t"}}


# --- nulls in options ------------------------------------------------------------------------------------


def test_a_null_takes_away_what_we_set() -> None:
    message = sent(
        channel="orders",
        collapse_key="order-7",
        image="https://example.com/a.png",
        options={
            "android": {
                "priority": None,
                "collapseKey": None,
                "notification": {"tag": None, "channelId": None, "color": None},
            },
            "apns": {
                "headers": {"apns-priority": None, "APNS-COLLAPSE-ID": None, "apns-topic": None},
                "payload": {"aps": {"mutable-content": None, "badge": None}, "theirs": None},
            },
            "webpush": {
                "headers": {"Urgency": None, "topic": None},
                "notification": {"tag": None, "data": None},
            },
            "fcm_options": {"analytics_label": None},
        },
    )
    assert message["android"] == {"notification": {}}
    assert message["apns"] == {"headers": {}, "payload": {"aps": {}, "theirs": None}}
    assert message["webpush"] == {"headers": {}, "notification": {"data": None}}
    assert "fcm_options" not in message


@pytest.mark.parametrize(
    "options",
    [
        dict.fromkeys(("android", "apns", "webpush", "fcm_options")),
        {"android": {"notification": None}, "apns": {"headers": None, "payload": None}},
        {"webpush": {"headers": None, "notification": None}},
        {"apns": {"headers": {"apns-expiration": None}}, "webpush": {"headers": {"TTL": None}}},
        {"android": {"ttl": None}},
    ],
)
def test_a_null_in_the_place_of_an_object_or_of_a_time_to_live_changes_nothing(options: object) -> None:
    columns: dict[str, Any] = {"expires_at": 1_800_000_000.0, "expires_in": 59.0}
    assert sent(options=options, **columns) == sent(**columns)


def test_what_a_background_push_cannot_be_without_stays() -> None:
    """Without content-available FCM calls the token of every iPhone invalid."""
    columns: dict[str, Any] = {"title": None, "body": None, "data": {"a": "b"}}
    options = {
        "apns": {
            "headers": {"apns-priority": None, "apns-push-type": None},
            "payload": {"aps": {"content-available": None}},
        }
    }
    assert sent(options=options, **columns) == sent(**columns)
    wrong: list[object] = [0, False, "0", "1", [], 2]
    for value in wrong:
        other = {"apns": {"payload": {"aps": {"content-available": value}}}}
        bad = refused(options=other, **columns)
        assert (bad.code, "content-available must be 1" in str(bad)) == ("INVALID_OPTIONS", True)
    for right in (1, True):
        other = {"apns": {"payload": {"aps": {"content-available": right}}}}
        assert sent(options=other, **columns)["apns"]["payload"]["aps"] == {"content-available": right}


def test_emptied_objects_take_a_time_to_live() -> None:
    message = sent(
        title=None,
        body=None,
        data={"a": "b"},
        expires_in=60.0,
        options={"android": {"priority": None}, "webpush": {"headers": {"Urgency": None, "Topic": None}}},
    )
    assert (message["android"], message["webpush"]) == ({"ttl": "60s"}, {"headers": {"TTL": "60"}})


# --- what is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "is_mutable"),
    [
        ({"image": "https://example.com/a.png"}, True),
        ({"options": {"apns": {"fcm_options": {"image": "https://example.com/a.png"}}}}, True),
        ({"options": {"apns": {"fcmOptions": {"image": "https://example.com/a.png"}}}}, True),
        ({"title": None, "body": None, "data": {"a": "b"}, "image": "https://example.com/a.png"}, False),
        ({"options": {"android": {"notification": {"image": "https://example.com/a.png"}}}}, False),
        ({}, False),
    ],
)
def test_an_image_needs_mutable_content_on_ios(columns: dict[str, Any], is_mutable: bool) -> None:
    """Source: Firebase, "Send an image in the notification payload"."""
    aps = sent(**columns)["apns"].get("payload", {}).get("aps", {})
    assert (aps.get("mutable-content") == 1) == is_mutable


def test_a_visible_push_of_normal_priority_is_shown_at_once_on_ios_unless_the_sender_wants_otherwise() -> (
    None
):
    assert sent(priority="normal")["apns"]["headers"]["apns-priority"] == "10"
    own = {"apns": {"headers": {"apns-priority": "5"}}}
    assert sent(priority="high", options=own)["apns"]["headers"]["apns-priority"] == "5"


LIVE: dict[str, Any] = {"event": "update", "content-state": {"a": 1}, "timestamp": 1}
aps_parts = st.fixed_dictionaries(
    {},
    optional={
        "alert": st.sampled_from(["B", {"title": "T"}, {"loc-key": "K"}, None]),
        "badge": st.sampled_from([0, 3, None]),
        "sound": st.sampled_from(["default", {"critical": 1, "name": "a.caf"}, None]),
        "thread-id": st.just("t"),
        "content-available": st.sampled_from([1, None]),
        "mutable-content": st.sampled_from([1, None]),
    },
)
headers = st.fixed_dictionaries(
    {}, optional={"apns-priority": st.sampled_from(["5", "10"]), "apns-collapse-id": st.just("theirs")}
)
shown_options = st.fixed_dictionaries(
    {},
    optional={
        "apns": st.fixed_dictionaries(
            {},
            optional={
                "headers": headers,
                "payload": st.fixed_dictionaries({"aps": aps_parts | aps_parts.map(lambda aps: aps | LIVE)}),
                "fcm_options": st.just({"image": "https://example.com/a.png"}),
            },
        ),
        "android": st.fixed_dictionaries(
            {}, optional={"notification": st.sampled_from([{"title": "T"}, {"body_loc_key": "K"}, {}, None])}
        ),
        "webpush": st.fixed_dictionaries(
            {}, optional={"notification": st.sampled_from([{"title": "T"}, {}, None])}
        ),
    },
)


@given(
    title=st.sampled_from([None, "Title"]),
    priority=st.sampled_from(["normal", "high"]),
    image=st.sampled_from([None, "https://example.com/a.png"]),
    channel=st.sampled_from([None, "orders"]),
    options=shown_options,
)
def test_defaults_follow_what_is_shown(
    title: str | None, priority: str, image: str | None, channel: str | None, options: dict[str, Any]
) -> None:
    message = sent(
        title=title,
        body=None,
        data={"a": "b"},
        priority=priority,
        image=image,
        channel=channel,
        options=options,
    )
    own = options.get("apns") or {}
    own_aps = (own.get("payload") or {}).get("aps") or {}
    own_headers = own.get("headers") or {}
    is_live = "content-state" in own_aps
    is_visible = title is not None or any(own_aps.get(key) is not None for key in ("alert", "badge", "sound"))
    headers, aps = message["apns"]["headers"], message["apns"].get("payload", {}).get("aps", {})

    push_type = "liveactivity" if is_live else None if title else "alert" if is_visible else "background"
    assert headers.get("apns-push-type") == push_type
    at_once = priority == "high" if is_live else is_visible
    assert headers["apns-priority"] == own_headers.get("apns-priority", "10" if at_once else "5")
    collapse_id = own_headers.get("apns-collapse-id", None if is_live else PUSH_ID)
    assert headers.get("apns-collapse-id") == collapse_id
    is_background = not (is_live or is_visible)
    assert aps.get("content-available") == (1 if is_background else own_aps.get("content-available"))
    has_image = (title is not None and image is not None) or "fcm_options" in own
    if has_image and not is_background and "mutable-content" not in own_aps:
        assert aps["mutable-content"] == 1

    for platform, tag in (("android", "tag"), ("webpush", "tag")):
        theirs = (options.get(platform) or {}).get("notification")
        shown = message[platform].get("notification")
        if title is None and not theirs:
            assert not shown
        else:
            assert shown[tag] == PUSH_ID
            if platform == "android":
                assert shown.get("channel_id") == channel


@pytest.mark.parametrize(
    ("columns", "doubts"),
    [
        ({}, False),
        ({"title": None, "body": None, "data": {"a": "b"}}, False),
        ({"title": None, "options": {"apns": {"payload": {"aps": {"badge": 1}}}}}, True),
        ({"title": None, "options": {"apns": {"payload": {"aps": {"alert": "A"}}}}}, False),
        ({"title": None, "options": {"apns": {"payload": {"aps": LIVE}}}}, True),
    ],
)
def test_fcm_may_blame_the_token_only_beyond_doubt(columns: dict[str, Any], doubts: bool) -> None:
    assert prepare(push(**({"body": None} | columns))).doubts_token is doubts


@pytest.mark.parametrize("platform", ["android", "webpush"])
def test_data_of_one_platform_keeps_the_same_rules(platform: str) -> None:
    options = {platform: {"data": {"n": 7, "push_id": "theirs"}}}
    assert sent(options=options)[platform]["data"] == {"n": "7", "push_id": PUSH_ID}
    assert refused(options={platform: {"data": {"from": "x"}}}).code == "INVALID_DATA"


@pytest.mark.parametrize("options", [None, "null", "{}"])
def test_no_options(options: str | None) -> None:
    assert sent(options=options) == sent()


@pytest.mark.parametrize(
    "options",
    [
        "[]",
        '"android"',
        "{",
        {"token": TOKEN},
        {"topic": "news"},
        {"validate_only": True},
        {"notification": {"title": "x"}},
        {"data": {"a": "b"}},
        {"fcmOptions": {}},
        {"android": "x"},
        {"apns": []},
    ],
)
def test_options_that_are_not_allowed(options: object) -> None:
    bad = refused(options=options)
    assert bad.code == "INVALID_OPTIONS"
    if isinstance(options, dict):
        assert "android, apns, webpush and fcm_options" in str(bad)


@pytest.mark.parametrize(
    "options",
    [
        {"android": {"notification": "x"}},
        {"apns": {"headers": []}},
        {"webpush": {"headers": False}},
        {"webpush": {"notification": 1}},
    ],
)
def test_options_that_would_replace_an_object(options: dict[str, Any]) -> None:
    bad = refused(options=options)
    assert bad.code == "INVALID_OPTIONS"
    assert "must be an object" in str(bad)


@pytest.mark.parametrize("label", ["", "a b", "a" * 51, "é", 5, "a\n"])
@pytest.mark.parametrize("place", ["", "android", "apns", "webpush"])
def test_analytics_label(label: object, place: str) -> None:
    def options(value: object) -> dict[str, Any]:
        inner = {"fcm_options": {"analytics_label": value}}
        return {place: inner} if place else inner

    sent(options=options("a-zA-Z0_9.~%" + "a" * 38))
    assert refused(options=options(label)).code == "INVALID_OPTIONS"


@pytest.mark.parametrize("column", ["title", "channel", "collapse_key", "options", "data"])
def test_text_that_is_not_unicode(column: str) -> None:
    text = "\ud800"
    value = {"options": '{"apns": {"payload": {"a": "\\ud800"}}}', "data": '{"a": "\\ud800"}'}.get(
        column, text
    )
    assert refused(**{column: value}).code in ("INVALID_PUSH", "INVALID_DATA")


# --- targets -------------------------------------------------------------------------------------------


def where(**columns: Any) -> list[Target]:
    return targets(push(**{"device_token": None, **columns}))


def nowhere(**columns: Any) -> BadPush:
    row = push(**{"device_token": None, **columns})
    with pytest.raises(BadPush) as caught:
        targets(row)
    return caught.value


def test_a_target_of_each_kind() -> None:
    assert where(device_token=TOKEN) == [Target(TargetKind.TOKEN, TOKEN)]
    assert where(fid=FID) == [Target(TargetKind.FID, FID)]
    assert where(topic="news") == [Target(TargetKind.TOPIC, "news")]
    assert where(topic="/topics/a-Z0_.~%") == [Target(TargetKind.TOPIC, "a-Z0_.~%")]
    condition = "'a' in topics && ('b' in topics || 'c' in topics)"
    assert where(condition=condition) == [Target(TargetKind.CONDITION, condition)]
    assert where(user_id=ID, recipients=[("t1", "ios"), ("t2", None)]) == [
        Target(TargetKind.TOKEN, "t1", "ios"),
        Target(TargetKind.TOKEN, "t2"),
    ]


@pytest.mark.parametrize(
    "columns", [{"device_token": TOKEN}, {"fid": FID}, {"topic": "news"}, {"condition": "'a' in topics"}]
)
def test_a_user_beside_a_target_is_only_its_owner(columns: dict[str, str]) -> None:
    assert where(user_id=ID, recipients=[("other", None)], **columns) == where(**columns)


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (FID, TargetKind.FID),
        ("c" * 22, TargetKind.FID),
        (f"{FID}:APA91bexample", TargetKind.TOKEN),
        (FID[:-1], TargetKind.TOKEN),
        ("b" + FID[1:], TargetKind.TOKEN),
        (FID[:-1] + ".", TargetKind.TOKEN),
    ],
)
def test_the_form_of_a_users_device_tells_its_kind(device: str, kind: TargetKind) -> None:
    assert where(user_id=ID, recipients=[(device, "web")]) == [Target(kind, device, "web")]


def test_a_device_token_is_never_taken_for_an_installation_id() -> None:
    """The column says what it is."""
    assert where(device_token=FID) == [Target(TargetKind.TOKEN, FID)]


def test_a_user_without_devices() -> None:
    assert where(user_id=ID) == []


def test_invalid_tokens_are_omitted_and_duplicates_merged() -> None:
    recipients = [("", None), ("a b", "ios"), ("t1", "ios"), ("x" * 4097, None), ("t2", None), ("t1", "web")]
    assert where(user_id=ID, recipients=recipients) == [
        Target(TargetKind.TOKEN, "t1", "ios"),
        Target(TargetKind.TOKEN, "t2"),
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"device_token": TOKEN, "topic": "news"},
        {"device_token": TOKEN, "fid": FID},
        {"fid": FID, "topic": "news"},
        {"topic": "news", "condition": "'a' in topics"},
        {"device_token": TOKEN, "condition": "'a' in topics", "user_id": ID},
        {"device_token": "", "topic": "news"},
    ],
)
def test_two_targets(columns: dict[str, Any]) -> None:
    assert nowhere(**columns).code == "INVALID_TARGET"


def test_no_target() -> None:
    assert nowhere(recipients=[("t1", None)]).code == "NO_TARGET"


@pytest.mark.parametrize("token", ["", " ", "a b", "a\n", "a\x00", "é", "x" * 4097, "\ud800", "a\u2028"])
def test_invalid_tokens(token: str) -> None:
    bad = nowhere(device_token=token)
    assert bad.code == "INVALID_TOKEN"
    assert not token.strip() or token not in str(bad)
    assert nowhere(fid=token).code == "INVALID_TOKEN"


def test_the_longest_token() -> None:
    assert where(device_token="x" * 4096) == [Target(TargetKind.TOKEN, "x" * 4096)]


@pytest.mark.parametrize("topic", ["", " ", "a b", "a/b", "/topics/", "/topics//topics/a", "é", "a\n"])
def test_invalid_topics(topic: str) -> None:
    assert nowhere(topic=topic).code == "INVALID_TOPIC"


@pytest.mark.parametrize("condition", ["", "  ", "'é' in topics", " || ".join(["'a' in topics"] * 6)])
def test_invalid_conditions(condition: str) -> None:
    assert nowhere(condition=condition).code == "INVALID_CONDITION"


def test_five_topics_in_a_condition() -> None:
    assert where(condition=" || ".join(["'a' in topics"] * 5))


# --- for any row ---------------------------------------------------------------------------------------


@given(sendable_pushes())
def test_a_sendable_row_gives_complete_messages(row: Push) -> None:
    prepared = prepare(row)
    for place in targets(row):
        check_request(prepared.encode(place, row.expires_in), row, place)


@given(sendable_pushes())
def test_a_plain_row_says_what_it_would_say_beside_an_expiry_that_never_comes(row: Push) -> None:
    """Most rows have neither options nor an expiry, and their settings are written from a template."""
    plain = dataclasses.replace(row, options=None, collapse_key=None, expires_at=None, expires_in=None)
    try:
        ours = prepare(plain)
    except BadPush as bad:
        with pytest.raises(BadPush, match=re.escape(str(bad))):
            prepare(dataclasses.replace(plain, expires_at=math.inf))
        return
    theirs = prepare(dataclasses.replace(plain, expires_at=math.inf))
    target = Target(TargetKind.TOKEN, "t")
    for left in (None, 60.0):
        assert json.loads(ours.encode(target, left)) == json.loads(theirs.encode(target, left))
    assert dataclasses.replace(ours, until_ttl=b"", until_web_ttl=b"") == dataclasses.replace(
        theirs, until_ttl=b"", until_web_ttl=b""
    )


@given(pushes())
def test_any_row_gives_complete_messages_or_a_safe_fault(row: Push) -> None:
    complaint = None
    try:
        prepared, places = prepare(row), targets(row)
    except BadPush as bad:
        complaint = bad
    if complaint is None:
        for place in places:
            check_request(prepared.encode(place, row.expires_in), row, place)
    else:
        assert SECRET not in str(complaint)
        assert len(str(complaint)) < 300
        assert re.fullmatch(r"[A-Z_]{1,24}", complaint.code)


def check_request(body: bytes, row: Push, place: Target) -> None:
    request = json.loads(body)
    assert list(request) == ["message"]
    message = request["message"]
    assert {name: message[name] for name in TargetKind if name in message} == {place.kind: place.value}
    assert all(isinstance(value, str) for value in message["data"].values())
    assert message["data"]["push_id"] == str(row.id)
    if (ttl := message["android"].get("ttl")) is not None:
        assert re.fullmatch(r"\d+(\.\d+)?s", ttl)
        assert 0 <= float(ttl[:-1]) <= MAX_TTL
    if row.expires_in is not None:
        assert float(message["android"]["ttl"][:-1]) <= max(0.0, row.expires_in) or math.isnan(row.expires_in)
        assert 0 <= int(message["webpush"]["headers"]["TTL"]) <= MAX_TTL
    if not row.title and not row.body:
        assert "notification" not in message
        if row.options is None:
            assert not any("notification" in message[part] for part in ("android", "apns", "webpush"))


@given(sendable_pushes())
def test_the_emulator_accepts_every_message(row: Push) -> None:
    """Names, types and values are those of the FCM schema, as the emulator reads it."""
    row.options = None
    prepared = prepare(row)
    for place in targets(row):
        request, objections = front_end.normalise(json.loads(prepared.encode(place, row.expires_in)))
        assert objections == []
        assert checks.check(request["message"]) is None
