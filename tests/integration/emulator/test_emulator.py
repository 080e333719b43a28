"""The emulator over real HTTP: what it refuses, what it accepts, its faults, and real SDKs as its clients."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import stat
import time
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import firebase_admin
import orjson
import pytest
import requests
import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from firebase_admin import exceptions, messaging
from google.auth import exceptions as auth_exceptions
from google.auth.transport.requests import Request
from google.oauth2 import service_account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listener.emulator import FAULTS, Emulator, Fault, answers, checks, front_end, parse_fault, run, schema
from listener.emulator.oauth import ACCOUNT
from tests.support.fcm_client import (
    APNS_ERROR,
    BAD_REQUEST,
    FCM_ERROR,
    GRANT,
    SCOPE,
    Client,
    Reply,
    RSASigner,
    assertion,
    jwt_encode,
)
from tests.support.service import PATIENCE, naming

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
Credentials: Any = service_account.Credentials  # google-auth claims to be typed, but this is not.

pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated:DeprecationWarning")


# --- access tokens -------------------------------------------------------------------------------------


async def test_grant_gives_a_token_that_fcm_accepts(client: Client) -> None:
    reply = await client.grant(assertion(client.emulator))
    assert (reply.status, reply.json["token_type"], reply.json["expires_in"]) == (200, "Bearer", 3600)
    assert (await client.post({"message": {"token": "a"}}, token=reply.json["access_token"])).status == 200


@pytest.mark.parametrize("audience", ["own", "https://www.googleapis.com/oauth2/v4/token"])
async def test_grant_accepts_every_audience_of_a_google_library(client: Client, audience: str) -> None:
    own = client.emulator.service_account["token_uri"]
    reply = await client.grant(assertion(client.emulator, aud=own if audience == "own" else audience))
    assert reply.status == 200


async def test_grant_accepts_the_wider_scope_among_others(client: Client) -> None:
    scope = "openid https://www.googleapis.com/auth/cloud-platform"
    assert (await client.grant(assertion(client.emulator, scope=scope))).status == 200


def _other_key() -> str:
    return (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        .decode()
    )


WRONG_CLAIMS: list[tuple[dict[str, Any], str, str]] = [
    ({"iss": "someone@else.iam.gserviceaccount.com"}, "invalid_grant", "account not found"),
    ({"iss": None}, "invalid_grant", "account not found"),
    ({"aud": "https://example.com/token"}, "invalid_grant", "Failed audience check"),
    ({"aud": None}, "invalid_grant", "Failed audience check"),
    ({"iat": int(time.time()) - 7200, "exp": int(time.time()) - 3600}, "invalid_grant", "short-lived"),
    ({"iat": int(time.time()) + 7200, "exp": int(time.time()) + 9000}, "invalid_grant", "short-lived"),
    ({"exp": int(time.time()) + 86_400}, "invalid_grant", "short-lived"),
    ({"exp": None}, "invalid_grant", "short-lived"),
    ({"iat": "now"}, "invalid_grant", "short-lived"),
    ({"scope": "https://www.googleapis.com/auth/datastore"}, "invalid_scope", "Invalid OAuth scope"),
    ({"scope": None}, "invalid_scope", "Invalid OAuth scope"),
]


async def test_grant_refuses_wrong_claims(client: Client) -> None:
    for changes, code, words in WRONG_CLAIMS:
        with naming(str(changes)):
            reply = await client.grant(assertion(client.emulator, **changes))
            assert (reply.status, reply.json["error"]) == (400, code)
            assert words in reply.json["error_description"]


async def test_grant_refuses_a_signature_of_another_key(client: Client) -> None:
    reply = await client.grant(assertion(client.emulator, key=_other_key()))
    assert (reply.status, reply.json) == (
        400,
        {"error": "invalid_grant", "error_description": "Invalid JWT Signature."},
    )


async def test_grant_refuses_claims_changed_after_signing(client: Client) -> None:
    header, _, signature = assertion(client.emulator).split(".")
    _, other_claims, _ = assertion(client.emulator, scope=SCOPE + " openid").split(".")
    reply = await client.grant(".".join((header, other_claims, signature)))
    assert reply.json["error_description"] == "Invalid JWT Signature."


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
async def test_grant_refuses_other_algorithms(client: Client, algorithm: str) -> None:
    account = client.emulator.service_account
    signer = RSASigner.from_string(account["private_key"])
    claims = {"iss": account["client_email"], "iat": 0, "exp": 1}
    token = jwt_encode(signer, claims, header={"alg": algorithm}).decode()
    reply = await client.grant(token)
    assert (reply.status, reply.json["error"]) == (400, "invalid_grant")
    assert "RS256" in reply.json["error_description"]


@pytest.mark.parametrize(
    "garbage", ["x", "a.b", "a.b.c", "e30.e30.e30.e30", "W10.W10.eA", "\u00e9.\u00e9.\u00e9"]
)
async def test_grant_refuses_what_is_no_jwt(client: Client, garbage: str) -> None:
    reply = await client.grant(garbage)
    assert (reply.status, reply.json["error"]) == (400, "invalid_grant")


async def test_grant_refuses_other_grant_types(client: Client) -> None:
    reply = await client.grant(assertion(client.emulator), "client_credentials")
    assert (reply.status, reply.json["error"]) == (400, "unsupported_grant_type")
    reply = await client.request("POST", "/token", data={})
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")
    reply = await client.request("POST", "/token", data={"grant_type": GRANT})
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")


async def test_send_without_credentials(client: Client) -> None:
    for headers in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}):
        reply = await client.request(
            "POST",
            "/v1/projects/demo-project/messages:send",
            json={"message": {"token": "a"}},
            headers=headers,
        )
        assert (reply.status, reply.error["status"]) == (401, "UNAUTHENTICATED")
        assert reply.details[ERROR_INFO]["reason"] == "CREDENTIALS_MISSING"
        assert reply.details[ERROR_INFO]["metadata"]["service"] == "fcm.googleapis.com"
        assert reply.headers["WWW-Authenticate"].startswith("Bearer realm=")
    assert client.emulator.accepted == []


async def test_send_with_an_access_token_that_was_never_issued(client: Client) -> None:
    reply = await client.post({"message": {"token": "a"}}, token="ya29.invented")
    assert (reply.status, reply.error["status"]) == (401, "UNAUTHENTICATED")
    assert reply.details[ERROR_INFO]["reason"] == "ACCESS_TOKEN_TYPE_UNSUPPORTED"


async def test_send_with_an_expired_access_token(client: Client) -> None:
    client.emulator.expire_access_tokens()
    reply = await client.send(token="a")
    assert (reply.status, reply.error["status"]) == (401, "UNAUTHENTICATED")
    assert reply.details[ERROR_INFO]["reason"] == "ACCESS_TOKEN_EXPIRED"
    await client.authorize()
    assert (await client.send(token="a")).status == 200


async def test_access_tokens_live_for_the_given_time() -> None:
    async with Emulator(token_lifetime=0) as emulator, aiohttp.ClientSession() as session:
        client = Client(emulator, session)
        reply = await client.grant(assertion(emulator))
        assert reply.json["expires_in"] == 0
        reply = await client.post({"message": {"token": "a"}}, token=reply.json["access_token"])
        assert reply.details[ERROR_INFO]["reason"] == "ACCESS_TOKEN_EXPIRED"


async def test_send_for_another_project(client: Client) -> None:
    reply = await client.post({"message": {"token": "a"}}, project="other")
    assert (reply.status, reply.error["status"]) == (403, "PERMISSION_DENIED")
    assert "cloudmessaging.messages.create" in reply.error["message"]
    assert reply.details[ERROR_INFO]["reason"] == "IAM_PERMISSION_DENIED"
    assert FCM_ERROR not in reply.details


async def test_no_such_url(client: Client) -> None:
    for method, path in (
        ("GET", "/v1/projects/demo-project/messages:send"),
        ("POST", "/v1/projects/demo-project/messages"),
        ("POST", "/fcm/send"),
    ):
        reply = await client.request(method, path)
        assert reply.status == 404
        assert reply.headers["Content-Type"].startswith("text/html")


# --- what is accepted ----------------------------------------------------------------------------------

FULL = {
    "notification": {"title": "T", "body": "B", "image": "https://example.com/i.png"},
    "data": {"push_id": "p-1", "k": "v"},
    "android": {
        "collapse_key": "c",
        "priority": "HIGH",
        "ttl": "3.5s",
        "restricted_package_name": "com.example",
        "data": {"a": "b"},
        "direct_boot_ok": True,
        "bandwidth_constrained_ok": True,
        "restricted_satellite_ok": False,
        "fcm_options": {"analytics_label": "l"},
        "notification": {
            "title": "T",
            "tag": "t",
            "channel_id": "ch",
            "color": "#aabbcc",
            "body_loc_args": ["x", "y"],
            "notification_priority": "PRIORITY_HIGH",
            "visibility": "PUBLIC",
            "notification_count": 3,
            "event_time": "2026-01-02T03:04:05.000006Z",
            "vibrate_timings": ["0.1s", "1s"],
            "proxy": "ALLOW",
            "light_settings": {
                "color": {"red": 1, "green": 0.5, "blue": 0, "alpha": 1},
                "light_on_duration": "1s",
                "light_off_duration": "0.000000001s",
            },
        },
    },
    "apns": {
        "headers": {
            "apns-priority": "5",
            "apns-expiration": "1800000000",
            "apns-collapse-id": "\u00e9" * 32,
        },
        "payload": {"aps": {"alert": {"title": "T"}, "badge": 1}, "custom": [1, None, {"x": 1.5}]},
        "fcm_options": {"analytics_label": "l", "image": "https://example.com/i.png"},
        "live_activity_token": "x",
    },
    "webpush": {
        "headers": {"TTL": "15", "Urgency": "high", "Topic": "0123456789abcdef0123456789abcdef"},
        "data": {"a": "b"},
        "notification": {"title": "T", "tag": "t", "requireInteraction": True},
        "fcm_options": {"link": "https://example.com/", "analytics_label": "l"},
    },
    "fcm_options": {"analytics_label": "a-b_c.d~e%"},
}


async def test_a_message_with_every_field(client: Client) -> None:
    reply = await client.send(token="abc", **FULL)
    assert reply.status == 200, reply.body
    name = reply.json["name"]
    assert name.startswith("projects/demo-project/messages/0:")
    [record] = client.emulator.received
    assert (record.kind, record.target, record.name) == ("token", "abc", name)
    assert (record.status, record.error_code, record.outcome) == (200, None, "accepted")
    assert record.message == {"token": "abc", **FULL}
    assert record.push_id == "p-1"


def _light(**changes: Any) -> dict[str, Any]:
    """``light_settings``, with some parts changed (None: omitted)."""
    settings = {"color": {"red": 1, "alpha": 0.5}, "light_on_duration": "1s", "light_off_duration": "2s"}
    return {name: value for name, value in {**settings, **changes}.items() if value is not None}


ACCEPTED: list[dict[str, Any]] = [
    {"token": "a"},
    {"fid": "dIsVQ2QVRT-TWzQVxvNYhM"},
    {"topic": "news-2_a.b~c%"},
    {"condition": "'a' in topics"},
    {"condition": "'a' in topics && ('b' in topics || !('c' in topics))"},
    {"token": "a", "android": {"priority": "high", "ttl": "0s"}},
    {"token": "a", "android": {"priority": 1, "ttl": "2419200s"}},
    {"token": "a", "android": {"collapseKey": "c", "fcmOptions": {"analyticsLabel": "l"}}},
    {"token": "a", "topic": None, "notification": {"title": None}},
    {
        "token": "a",
        "data": {"collapse_key": "allowed", "notification": "allowed", "gcmx": "allowed", "": ""},
    },
    {"token": "a", "android": {"notification": {"notification_count": "3"}}},
    {"token": "a", "android_v2": {"ttl": "5s", "background_sync": {}}},
    {"token": "a", "android_v2": {"remote_notification": {"notification": {"id": 4, "title": "T"}}}},
    {"token": "x" * 4096},
    {"topic": "x" * 900},
    {"token": "a", "android": {"notification": {"event_time": "2026-01-02T03:04:05.123456789+05:30"}}},
    {"token": "a", "android": {"notification": {"event_time": "2028-02-29T03:04:05Z"}}},
    {"token": "a", "android": {"notification": {"vibrate_timings": ["315576000000s"]}}},
    {"token": "a", "android": {"notification": {"light_settings": _light(color={"red": 1})}}},
    {"token": "a", "android": {"notification": {"light_settings": None}}},
]


async def test_messages_that_fcm_accepts(client: Client) -> None:
    for message in ACCEPTED:
        with naming(str(message)):
            reply = await client.send(**message)
            assert reply.status == 200, reply.body


async def test_names_are_unique(client: Client) -> None:
    replies = await asyncio.gather(*(client.send(token="same", data={"push_id": "1"}) for _ in range(50)))
    assert len({reply.json["name"] for reply in replies}) == 50
    assert [record.duplicate_of for record in client.emulator.received] == list(range(50))
    assert client.emulator.stats()["duplicates"] == 49


async def test_the_same_push_to_another_target_is_no_duplicate(client: Client) -> None:
    await client.send(token="a", data={"push_id": "1"})
    await client.send(token="b", data={"push_id": "1"})
    await client.send(topic="a", data={"push_id": "1"})
    await client.send(token="a", data={"push_id": "2"})
    assert [record.duplicate_of for record in client.emulator.received] == [0, 0, 0, 0]


async def test_validate_only_checks_and_delivers_nothing(client: Client) -> None:
    reply = await client.post({"validate_only": True, "message": {"token": "a", "data": {"push_id": "1"}}})
    assert reply.json == {"name": "projects/demo-project/messages/fake_message_id"}
    assert (await client.post({"validateOnly": True, "message": {}})).status == 400
    assert (await client.post({"validateOnly": True, "message": {"token": "dead-1"}})).status == 404
    assert [record.outcome for record in client.emulator.received] == ["validated", "refused", "refused"]
    assert client.emulator.accepted == []
    await client.send(token="a", data={"push_id": "1"})
    assert client.emulator.received[-1].duplicate_of == 0


async def test_dead_tokens_need_no_rule(client: Client) -> None:
    for message in ({"token": "dead-1"}, {"fid": "dead-1"}):
        reply = await client.send(**message)
        assert (reply.status, reply.error["status"]) == (404, "NOT_FOUND")
        assert reply.error["message"] == "Requested entity was not found."
        assert reply.fcm_code == "UNREGISTERED"
    assert (await client.send(topic="dead-topic")).status == 200


# --- what is refused -----------------------------------------------------------------------------------


WRONG_NAMES_AND_TYPES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"token": "a", "x": 1},
        "message",
        "Invalid JSON payload received. Unknown name \"x\" at 'message': Cannot find field.",
    ),
    (
        {"token": "a", "android": {"notification": {"titel": "T"}}},
        "message.android.notification",
        "Invalid JSON payload received. Unknown name \"titel\" at 'message.android.notification': "
        "Cannot find field.",
    ),
    (
        {"token": "a", "data": {"k": 12}},
        "message.data[0].value",
        "Invalid value at 'message.data[0].value' (TYPE_STRING), 12",
    ),
    (
        {"token": "a", "data": {"k": "v", "l": True}},
        "message.data[1].value",
        "Invalid value at 'message.data[1].value' (TYPE_STRING), true",
    ),
    (
        {"token": "a", "data": {"k": {"l": "m"}}},
        "message.data[0].value",
        "Invalid value at 'message.data[0].value' (TYPE_STRING), Starting an object on a scalar field",
    ),
    (
        {"token": "a", "data": {"k": None}},
        "message.data[0].value",
        "Invalid value at 'message.data[0].value' (TYPE_STRING), null",
    ),
    ({"token": "a", "data": "x"}, "message.data", "Invalid value at 'message.data' (map), \"x\""),
    (
        {"token": "a", "notification": {"title": 12}},
        "message.notification.title",
        "Invalid value at 'message.notification.title' (TYPE_STRING), 12",
    ),
    (
        {"token": "a", "notification": {"title": ["x"]}},
        "message.notification",
        "Invalid JSON payload received. Unknown name \"title\" at 'message.notification': "
        "Proto field is not repeating, cannot start list.",
    ),
    (
        {"token": "a", "notification": "x"},
        "message.notification",
        "Invalid value at 'message.notification' "
        '(type.googleapis.com/google.firebase.fcm.v1.Notification), "x"',
    ),
    (
        {"token": "a", "topic": "b"},
        "message",
        "Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set 'topic'",
    ),
    (
        {"token": "a", "android": {"priority": "URGENT"}},
        "message.android.priority",
        "Invalid value at 'message.android.priority' "
        '(type.googleapis.com/google.firebase.fcm.v1.AndroidMessagePriority), "URGENT"',
    ),
    (
        {"token": "a", "android": {"ttl": "3"}},
        "message.android.ttl",
        "Invalid value at 'message.android.ttl' (type.googleapis.com/google.protobuf.Duration), "
        "Field 'ttl', Illegal duration format; duration must end with 's'",
    ),
    (
        {"token": "a", "android": {"ttl": 3}},
        "message.android.ttl",
        "Invalid value at 'message.android.ttl' (type.googleapis.com/google.protobuf.Duration), 3",
    ),
    (
        {"token": "a", "apns": {"payload": "x"}},
        "message.apns.payload",
        "Invalid value at 'message.apns.payload' (type.googleapis.com/google.protobuf.Struct), \"x\"",
    ),
    (
        {"token": "a", "apns": {"headers": {"apns-priority": 5}}},
        "message.apns.headers[0].value",
        "Invalid value at 'message.apns.headers[0].value' (TYPE_STRING), 5",
    ),
    (
        {"token": "a", "android": {"direct_boot_ok": "true"}},
        "message.android.direct_boot_ok",
        "Invalid value at 'message.android.direct_boot_ok' (TYPE_BOOL), \"true\"",
    ),
    (
        {"token": "a", "android": {"notification": {"notification_count": 1.5}}},
        "message.android.notification.notification_count",
        "Invalid value at 'message.android.notification.notification_count' (TYPE_INT32), 1.5",
    ),
    (
        {"token": "a", "android": {"notification": {"event_time": "yesterday"}}},
        "message.android.notification.event_time",
        "Invalid value at 'message.android.notification.event_time' "
        '(type.googleapis.com/google.protobuf.Timestamp), "yesterday"',
    ),
    (
        {"token": "a", "android": {"notification": {"body_loc_args": "x"}}},
        "message.android.notification.body_loc_args",
        "Invalid value at 'message.android.notification.body_loc_args' (TYPE_STRING), \"x\"",
    ),
    (
        {"token": "a", "android": {"notification": {"vibrate_timings": ["1s", "x"]}}},
        "message.android.notification.vibrate_timings[1]",
        "Invalid value at 'message.android.notification.vibrate_timings[1]' "
        "(type.googleapis.com/google.protobuf.Duration), Field 'vibrate_timings', "
        "Illegal duration format; duration must end with 's'",
    ),
]


async def test_the_front_end_refuses_wrong_names_and_types(client: Client) -> None:
    for message, field, text in WRONG_NAMES_AND_TYPES:
        with naming(str(message)):
            reply = await client.send(**message)
            assert (reply.status, reply.error["status"], reply.error["message"]) == (
                400,
                "INVALID_ARGUMENT",
                text,
            )
            [detail] = reply.error["details"]
            assert detail == {
                "@type": BAD_REQUEST,
                "fieldViolations": [{"field": field, "description": text}],
            }
            [record] = client.emulator.received
            assert (record.outcome, record.error_code) == ("refused", "INVALID_ARGUMENT")
            client.emulator.clear()


async def test_the_front_end_reports_all_violations_at_once(client: Client) -> None:
    reply = await client.post({"mesage": {}, "message": {"token": 1, "x": 2}})
    assert len(reply.details[BAD_REQUEST]["fieldViolations"]) == 3
    assert reply.error["message"].count("\n") == 2
    assert reply.details[BAD_REQUEST]["fieldViolations"][0] == {
        "description": 'Invalid JSON payload received. Unknown name "mesage": Cannot find field.'
    }


NO_TIMES = [
    "2026-01-02",
    "2026-01-02 03:04:05Z",
    "2026-01-02t03:04:05Z",
    "2026-01-02T03:04:05",
    "2026-01-02T03:04:05z",
    "2026-01-02T03:04Z",
    "2026-01-02T03:04:05+0530",
    "2026-01-02T03:04:05,5Z",
    "2026-01-02T03:04:05.1234567890Z",
    "2026-01-02T03:04:60Z",
    "2026-02-30T03:04:05Z",
    "2026-01-02T03:04:05+24:00",
    "20260102T030405Z",
    "2026-W01-1T00:00:00Z",
    "0000-01-02T03:04:05Z",
    " 2026-01-02T03:04:05Z",
    "\u0662026-01-02T03:04:05Z",
    "1767322800",
]


async def test_the_front_end_takes_only_times_of_rfc_3339(client: Client) -> None:
    for text in NO_TIMES:
        with naming(text):
            reply = await client.send(token="a", android={"notification": {"event_time": text}})
            assert (reply.status, reply.violations) == (400, ["message.android.notification.event_time"])


NO_DURATIONS = ["1.s", "\u0661s", "1 s", "+1s", "1e3s", "315576000001s", "-315576000001s"]


async def test_the_front_end_takes_only_durations_of_protobuf(client: Client) -> None:
    for duration in NO_DURATIONS:
        with naming(duration):
            reply = await client.send(token="a", android={"notification": {"vibrate_timings": [duration]}})
            assert (reply.status, reply.violations) == (
                400,
                ["message.android.notification.vibrate_timings[0]"],
            )


INVALID_VALUES: list[tuple[dict[str, Any], str]] = [
    ({}, "message"),
    ({"notification": {"title": "T"}}, "message"),
    ({"topic": "a b"}, "message"),
    ({"topic": "/topics/a"}, "message"),
    ({"topic": ""}, "message"),
    ({"condition": ""}, "message"),
    ({"condition": "'a' in topics &&"}, "message"),
    ({"condition": "'a' in topics 'b' in topics"}, "message"),
    ({"condition": "T && 'a' in topics"}, "message"),
    ({"condition": "('a' in topics"}, "message"),
    ({"condition": "!" * 10_000 + "'a' in topics"}, "message"),
    ({"condition": "'a b' in topics"}, "message"),
    ({"condition": " || ".join(f"'{c}' in topics" for c in "abcdef")}, "message"),
    ({"token": "a", "data": {"from": "x"}}, "message.data"),
    ({"token": "a", "data": {"message_type": "x"}}, "message.data"),
    ({"topic": "x" * 901}, "message"),
    ({"condition": f"'{'x' * 901}' in topics"}, "message"),
    ({"token": "a", "data": {"google.x": "x"}}, "message.data"),
    ({"token": "a", "data": {"google": "x"}}, "message.data"),
    ({"token": "a", "data": {"googlefoo": "x"}}, "message.data"),
    ({"token": "a", "data": {"gcm": "x"}}, "message.data"),
    ({"token": "a", "data": {"gcm.notification.x": "x"}}, "message.data"),
    ({"token": "a", "android": {"data": {"from": "x"}}}, "message.android.data"),
    ({"token": "a", "webpush": {"data": {"from": "x"}}}, "message.webpush.data"),
    ({"token": "a", "android": {"ttl": "-1s"}}, "message.android.ttl"),
    ({"token": "a", "android": {"ttl": "2419201s"}}, "message.android.ttl"),
    ({"token": "a", "android": {"notification": {"color": "red"}}}, "message.android.notification.color"),
    *(
        (
            {"token": "a", "android": {"notification": {"light_settings": settings}}},
            f"message.android.notification.light_settings{field}",
        )
        for settings, field in [
            ({}, ".color"),
            (_light(color=None), ".color"),
            (_light(light_on_duration=None), ".light_on_duration"),
            (_light(light_off_duration=None), ".light_off_duration"),
            (_light(color={"green": 1.5}), ".color.green"),
            (_light(color={"alpha": -1}), ".color.alpha"),
        ]
    ),
    (
        {
            "token": "a",
            "android_v2": {"remote_notification": {"notification": {"light_settings": {}}}},
        },
        "message.android_v2.remote_notification.notification.light_settings.color",
    ),
    (
        {"token": "a", "android_v2": {"remote_notification": {"notification": {"color": "red"}}}},
        "message.android_v2.remote_notification.notification.color",
    ),
    ({"token": "a", "fcm_options": {"analytics_label": "a b"}}, "message.fcm_options.analytics_label"),
    (
        {"token": "a", "apns": {"fcm_options": {"analytics_label": "x" * 51}}},
        "message.apns.fcm_options.analytics_label",
    ),
    ({"token": "a", "webpush": {"headers": {"Topic": "x" * 33}}}, "message.webpush.headers"),
    ({"token": "a", "webpush": {"headers": {"topic": "a.b"}}}, "message.webpush.headers"),
    ({"token": "a", "webpush": {"headers": {"TTL": "1.5"}}}, "message.webpush.headers"),
    ({"token": "a", "webpush": {"headers": {"Urgency": "now"}}}, "message.webpush.headers"),
    (
        {"token": "a", "webpush": {"fcm_options": {"link": "http://example.com"}}},
        "message.webpush.fcm_options.link",
    ),
]


async def test_fcm_refuses_invalid_values(client: Client) -> None:
    for message, field in INVALID_VALUES:
        with naming(str(message)):
            reply = await client.send(**message)
            assert (reply.status, reply.error["status"]) == (400, "INVALID_ARGUMENT")
            assert reply.fcm_code == "INVALID_ARGUMENT"
            assert reply.violations == [field]
            assert client.emulator.accepted == []


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"apns-collapse-id": "x" * 65}, "BadCollapseId"),
        ({"APNS-Collapse-Id": "\u00e9" * 33}, "BadCollapseId"),
        ({"apns-priority": "7"}, "BadPriority"),
        ({"apns-expiration": "soon"}, "BadExpirationDate"),
        ({"apns-push-type": "silent"}, "InvalidPushType"),
    ],
)
async def test_a_refusal_by_apple_names_no_field(
    client: Client, headers: dict[str, str], reason: str
) -> None:
    reply = await client.send(token="a", notification={"title": "T"}, apns={"headers": headers})
    assert reply.error["message"] == "Request contains an invalid argument."
    assert reply.error["details"] == [
        {"@type": FCM_ERROR, "errorCode": "INVALID_ARGUMENT"},
        {"@type": APNS_ERROR, "statusCode": 400, "reason": reason},
    ]


DATA = {"k": "v"}


NOTHING_TO_DELIVER: list[dict[str, Any]] = [
    {"data": DATA, "apns": {"headers": {"apns-priority": "10"}}},
    {"data": DATA, "apns": {"headers": {"apns-priority": "5", "apns-push-type": "background"}}},
    {"data": DATA, "apns": {"headers": {"apns-priority": "5"}, "payload": {"aps": {}}}},
    {"apns": {"payload": {"details": "Custom details", "aps": {}}}},
    {"apns": {"payload": {"aps": {"content_available": 1}}}},
    {"apns": {"payload": {"aps": {"content-available": None}}}},
    {"apns": {"payload": {"aps": {"content-available": 0}}}},
    {"apns": {"payload": {"aps": {"mutable-content": 1, "alert": None}}}},
    {"apns": {"payload": {"aps": "x"}}},
    {"apns": {"payload": {"content-available": 1}}},
    {"notification": {}, "apns": {"headers": {"apns-priority": "5"}}},
    {"android": {"notification": {"title": "T"}}, "apns": {"headers": {"apns-priority": "5"}}},
]


async def test_settings_for_apple_without_anything_to_deliver_blame_the_token(client: Client) -> None:
    for target, message in itertools.product(({"token": "a"}, {"fid": "a"}), NOTHING_TO_DELIVER):
        with naming(f"{target}, {message}"):
            reply = await client.send(**target, **message)
            assert (reply.status, reply.fcm_code) == (400, "INVALID_ARGUMENT")
            assert reply.violations == ["message.token"]
            assert reply.error["message"] == "The registration token is not a valid FCM registration token"


DELIVERED: list[dict[str, Any]] = [
    {"data": DATA},
    {"data": DATA, "apns": {}},
    {"data": DATA, "apns": {"fcm_options": {"analytics_label": "l"}}},
    {"notification": {"title": "T"}, "apns": {"headers": {"apns-priority": "10"}}},
    *(
        {"data": DATA, "apns": {"headers": {"apns-priority": "5"}, "payload": {"aps": aps}}}
        for aps in (
            {"content-available": 1},
            {"content-available": True},
            {"content-available": "1"},
            {"alert": "A"},
            {"badge": 0},
            {"sound": "default"},
            {"event": "update", "content-state": {"x": 1}, "timestamp": 1},
        )
    ),
    {"apns": {"live_activity_token": "x", "payload": {"aps": {"timestamp": 1}}}},
]


async def test_settings_for_apple_with_something_to_deliver(client: Client) -> None:
    for message in DELIVERED:
        with naming(str(message)):
            reply = await client.send(token="a", **message)
            assert reply.status == 200, reply.body


async def test_a_topic_has_no_token_to_blame(client: Client) -> None:
    for target in ({"topic": "a"}, {"condition": "'a' in topics"}):
        reply = await client.send(**target, data=DATA, apns={"headers": {"apns-priority": "5"}})
        assert reply.status == 200, reply.body


async def test_the_texts_of_the_real_service(client: Client) -> None:
    texts: dict[str, dict[str, Any]] = {
        "Recipient of the message is not set.": {},
        "Topic name contains invalid characters.": {"topic": "a b"},
        "Invalid data payload key: from": {"token": "a", "data": {"from": "x"}},
    }
    for text, message in texts.items():
        reply = await client.send(**message)
        assert reply.error["message"] == text
        assert [detail["@type"] for detail in reply.error["details"]] == [BAD_REQUEST, FCM_ERROR]


async def test_impossible_registration_tokens(client: Client) -> None:
    for kind, token in itertools.product(("token", "fid"), ("", "a b", "a\n", "\u2003", "x" * 4097)):
        with naming(f"{kind} {token[:10]!r}"):
            reply = await client.send(**{kind: token})
            assert (reply.status, reply.error["status"]) == (400, "INVALID_ARGUMENT")
            assert reply.error["message"] == "The registration token is not a valid FCM registration token"
            assert [detail["@type"] for detail in reply.error["details"]] == [FCM_ERROR, BAD_REQUEST]
            assert (reply.fcm_code, reply.violations) == ("INVALID_ARGUMENT", [f"message.{kind}"])


@pytest.mark.parametrize(
    ("target", "limit"),
    [({"token": "a"}, 4096), ({"topic": "a"}, 2048), ({"condition": "'a' in topics"}, 2048)],
)
async def test_the_payload_limit_counts_keys_and_values(
    client: Client, target: dict[str, str], limit: int
) -> None:
    assert (await client.send(**target, data={"key": "v" * (limit - 3)})).status == 200
    assert (await client.send(**target, data={"k\u00e9": "v" * (limit - 3)})).status == 200
    for message in (
        {"data": {"key": "v" * (limit - 2)}},
        {"data": {"k\u00e9": "v" * (limit - 2)}},
        {"notification": {"body": "v" * limit}},
        {"data": {"key": "v"}, "android": {"data": {"key": "v" * limit}}},
        {"apns": {"payload": {"aps": {"alert": "v" * limit}}}},
        {"webpush": {"notification": {"body": "v" * limit}}},
    ):
        reply = await client.send(**target, **message)
        assert (reply.status, reply.fcm_code, reply.violations) == (400, "INVALID_ARGUMENT", [])
        assert "too big" in reply.error["message"] or "too large" in reply.error["message"]
    # Android data replaces the common data and does not count twice.
    small = {"data": {"key": "v" * limit}, "android": {"data": {"key": "v"}}}
    assert (await client.send(**target, **small)).status == 200


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"message": {"token": "a",}}', "Unexpected token."),
        (b'{"message": {"token": "a"', "Unexpected end of string."),
        (b"", "Unexpected end of string."),
        (b"\xff", "Unexpected token."),
        (b"[]", "Root element must be a message."),
        (b"12", "Root element must be a message."),
    ],
)
async def test_malformed_json(client: Client, raw: bytes, text: str) -> None:
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}
    reply = await client.request("POST", "/v1/projects/demo-project/messages:send", data=raw, headers=headers)
    assert (reply.status, reply.error["status"]) == (400, "INVALID_ARGUMENT")
    assert text in reply.error["message"]
    assert (reply.fcm_code, reply.violations) == (None, [None])
    [record] = client.emulator.received
    assert (record.message, record.kind, record.outcome) == (None, None, "refused")


async def test_a_body_that_is_not_json(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "text/plain"}
    reply = await client.request(
        "POST", "/v1/projects/demo-project/messages:send", data=b'{"message":{"token":"a"}}', headers=headers
    )
    assert (reply.status, reply.fcm_code) == (400, None)
    assert "Invalid JSON payload received" in reply.error["message"]


async def test_an_oversized_request(client: Client) -> None:
    reply = await client.send(token="a", notification={"body": "x" * (10 * 2**20)})
    assert (reply.status, reply.error["status"]) == (400, "INVALID_ARGUMENT")
    assert reply.error["message"] == "Request payload size exceeds the limit: 10485760 bytes."
    assert (await client.send(token="a")).status == 200


@cache
def _anything() -> st.SearchStrategy[Any]:
    """JSON with names and some values of FCM mixed in."""
    words = {
        "push_id",
        "from",
        "1s",
        "-1s",
        "HIGH",
        "red",
        "a b",
        "'a' in topics",
        "apns-priority",
        "TTL",
        "",
    }
    text = st.sampled_from(sorted(_names(schema.REQUEST) | words)) | st.text(max_size=5)
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )


def _names(kind: schema.Message) -> set[str]:
    names = set(kind.fields)
    for _, of in kind.fields.values():
        if isinstance(of, schema.Message):
            names |= _names(of)
    return names


def _of_type(kind: schema.Type) -> st.SearchStrategy[Any]:
    """Values that pass the front end, so that FCM itself checks them."""
    if isinstance(kind, schema.Message):
        fields = {name: _of_type(of) for name, (field, of) in kind.fields.items() if name == field}
        for one_of in kind.oneof[1] if kind.oneof else ():
            fields.pop(one_of)
        return st.fixed_dictionaries({}, optional=fields)
    if isinstance(kind, schema.Enum):
        return st.sampled_from(kind.names)
    if isinstance(kind, schema.Repeated):
        return st.lists(_of_type(kind.of), max_size=2)
    text = st.text(max_size=8)
    scalars: dict[str, st.SearchStrategy[Any]] = {
        schema.STRING.label: text,
        schema.BOOL.label: st.booleans(),
        schema.INT32.label: st.integers(-(2**31), 2**31 - 1),
        schema.FLOAT.label: st.floats(allow_nan=False, allow_infinity=False),
        schema.DURATION.label: st.integers(-10, 10**7).map(lambda seconds: f"{seconds}s"),
        schema.TIMESTAMP.label: st.just("2026-01-02T03:04:05Z"),
        schema.STRUCT.label: st.dictionaries(text, _anything(), max_size=2),
        schema.STRING_MAP.label: st.dictionaries(text, text, max_size=2),
    }
    return scalars[kind.label]


def _as_parsed(value: Any) -> Any:
    """The value as the server's parser reads it: integers beyond 64 bits become floats."""
    return orjson.loads(json.dumps(value))


@given(
    _anything()
    | st.fixed_dictionaries(
        {"message": st.dictionaries(st.sampled_from(sorted(schema.MESSAGE.fields)), _anything(), max_size=4)}
    )
)
def test_any_json_can_be_read(body: Any) -> None:
    read, violations = front_end.normalise(_as_parsed(body))
    if not violations:
        checks.check(read.get("message", {}))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_of_type(schema.REQUEST), st.sampled_from(["token", "fid", "topic"]))
def test_a_message_of_the_right_types_passes_the_front_end(body: dict[str, Any], kind: str) -> None:
    message = {**body.get("message", {}), kind: "a"}
    read, violations = front_end.normalise(_as_parsed({"message": message}))
    assert violations == []
    answer = checks.check(read["message"])
    assert answer is None or (answer.status, answer.code) == (400, "INVALID_ARGUMENT")


# --- faults --------------------------------------------------------------------------------------------

ANSWERS = {
    "invalid_token": (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "invalid_argument": (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "invalid_field": (400, "INVALID_ARGUMENT", None),
    "too_big": (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    "no_details_400": (400, "INVALID_ARGUMENT", None),
    "third_party_auth": (401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
    "third_party_auth_missing_credentials": (401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
    "apns_auth_error": (401, "UNAUTHENTICATED", "APNS_AUTH_ERROR"),
    "unauthenticated": (401, "UNAUTHENTICATED", None),
    "token_expired": (401, "UNAUTHENTICATED", None),
    "sender_id_mismatch": (403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
    "permission_denied": (403, "PERMISSION_DENIED", None),
    "unregistered": (404, "NOT_FOUND", "UNREGISTERED"),
    "not_found_no_details": (404, "NOT_FOUND", None),
    "quota_exceeded": (429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "topic_quota_exceeded": (429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "device_quota_exceeded": (429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    "project_quota_exceeded": (429, "RESOURCE_EXHAUSTED", None),
    "internal": (500, "INTERNAL", "INTERNAL"),
    "gateway_timeout": (504, "DEADLINE_EXCEEDED", None),
    "unavailable": (503, "UNAVAILABLE", "UNAVAILABLE"),
    "unavailable_no_details": (503, "UNAVAILABLE", None),
    "unknown_code": (500, "INTERNAL", "SOME_FUTURE_ERROR"),
}
HTML = {"bad_request_html": 400, "not_found_html": 404, "bad_gateway_html": 502}
FOREIGN = {
    "bad_request_text": ("text/plain; charset=utf-8", b"400 Bad Request"),
    "bad_request_json": ("application/json; charset=UTF-8", b'{"message":"Bad Request"}'),
}
APPLE = {
    "BadEnvironmentKeyInToken": (401, "THIRD_PARTY_AUTH_ERROR", 403),
    "InvalidProviderToken": (401, "THIRD_PARTY_AUTH_ERROR", 403),
    "ExpiredProviderToken": (401, "THIRD_PARTY_AUTH_ERROR", 403),
    "BadDeviceToken": (400, "INVALID_ARGUMENT", 400),
    "DeviceTokenNotForTopic": (400, "INVALID_ARGUMENT", 400),
    "SomeFutureReason": (400, "INVALID_ARGUMENT", 400),
    "Unregistered": (400, "INVALID_ARGUMENT", 410),
    "PayloadTooLarge": (400, "INVALID_ARGUMENT", 413),
    "TooManyProviderTokenUpdates": (429, "QUOTA_EXCEEDED", 429),
    "TooManyRequests": (429, "QUOTA_EXCEEDED", 429),
    "InternalServerError": (500, "INTERNAL", 500),
    "ServiceUnavailable": (503, "UNAVAILABLE", 503),
}
SILENT = ["reset", "reset_after_accept", "timeout", "timeout_after_accept"]
OAUTH = {
    "oauth_invalid_grant": (400, "invalid_grant"),
    "oauth_temporarily_unavailable": (400, "temporarily_unavailable"),
    "oauth_server_error_400": (400, "server_error"),
    "oauth_internal_failure_400": (400, "internal_failure"),
    "oauth_rate_limit_exceeded": (403, "rate_limit_exceeded"),
    "oauth_server_error": (500, "internal_failure"),
}
OTHERS = ["ok_without_body", "slow", "several_codes", "apns_error", "oauth_timeout"]


def test_every_fault_is_tested_here() -> None:
    assert {*ANSWERS, *HTML, *FOREIGN, *SILENT, *OAUTH, *OTHERS} == FAULTS


def test_every_fault_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[3] / "docs/emulator.md").read_text()
    assert [name for name in sorted({*FAULTS, *answers.APPLE_STATUS}) if f"`{name}`" not in manual] == []


async def test_faults_that_answer_in_json(client: Client) -> None:
    for fault in ANSWERS:
        with naming(fault):
            client.emulator.add_fault(fault, token="a", retry_after=7, times=1)
            reply = await client.send(token="a")
            assert (reply.status, reply.error["status"], reply.fcm_code) == ANSWERS[fault]
            assert reply.headers["Retry-After"] == "7"
            [record] = client.emulator.received
            assert (record.status, record.fault, record.outcome) == (reply.status, fault, "refused")
            assert record.error_code == (reply.fcm_code or reply.error["status"])
            assert (await client.send(token="a")).status == 200
            client.emulator.clear()


async def test_the_bodies_of_faults(client: Client) -> None:
    """Bodies of the real service."""

    async def body(fault: str) -> Reply:
        client.emulator.add_fault(fault, times=1)
        return await client.send(token="a")

    reply = await body("invalid_token")
    assert reply.error["message"] == "The registration token is not a valid FCM registration token"
    assert reply.violations == ["message.token"]
    reply = await body("invalid_field")
    assert reply.error["message"] == "Invalid value at 'message.data[0].value' (TYPE_STRING), 12"
    assert reply.violations == ["message.data[0].value"]
    assert (await body("invalid_argument")).violations == ["message"]
    reply = await body("too_big")
    assert reply.error["message"] == "Android message is too big"
    assert reply.details[BAD_REQUEST] == {"@type": BAD_REQUEST}
    assert "details" not in (await body("no_details_400")).error
    assert "details" not in (await body("unavailable_no_details")).error
    reply = await body("third_party_auth")
    assert reply.error["message"] == "Auth error from APNS or Web Push Service"
    reply = await body("third_party_auth_missing_credentials")
    assert reply.error["message"].startswith("Request is missing required authentication credential.")
    reply = await body("token_expired")
    assert reply.details[ERROR_INFO]["reason"] == "ACCESS_TOKEN_EXPIRED"
    reply = await body("permission_denied")
    assert reply.details[ERROR_INFO]["reason"] == "IAM_PERMISSION_DENIED"
    assert (await body("sender_id_mismatch")).error["message"] == "SenderId mismatch"
    assert (await body("topic_quota_exceeded")).error["message"] == "Topic quota exceeded."
    assert (await body("internal")).error["message"] == "Internal error encountered."
    assert (await body("unavailable")).error["message"] == "The service is currently unavailable."


@pytest.mark.parametrize("fault", HTML)
async def test_faults_that_answer_in_html(client: Client, fault: str) -> None:
    client.emulator.add_fault(fault)
    reply = await client.send(token="a")
    assert reply.status == HTML[fault]
    assert reply.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert reply.body.startswith(b"<!DOCTYPE html>")
    assert client.emulator.received[0].outcome == "refused"


@pytest.mark.parametrize("fault", FOREIGN)
async def test_faults_that_something_on_the_way_answers(client: Client, fault: str) -> None:
    client.emulator.add_fault(fault, token="a")
    reply = await client.send(token="a")
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (400, *FOREIGN[fault])
    assert (client.emulator.received[0].outcome, client.emulator.received[0].error_code) == ("refused", None)
    assert (await client.send(token="b")).status == 200


@pytest.mark.parametrize("reason", APPLE)
async def test_refusals_by_apple(client: Client, reason: str) -> None:
    status, code, apple_status = APPLE[reason]
    client.emulator.add_fault(f"apns_error,reason={reason},token_prefix=ios,retry_after=7")
    reply = await client.send(token="ios-1")
    assert (reply.status, reply.fcm_code, reply.headers["Retry-After"]) == (status, code, "7")
    assert reply.error["details"] == [
        {"@type": FCM_ERROR, "errorCode": code},
        {"@type": APNS_ERROR, "statusCode": apple_status, "reason": reason},
    ]
    text = {401: "Auth error from APNS or Web Push Service", 400: "Request contains an invalid argument."}
    if reason == "Unregistered":
        assert reply.error["message"] == "APNs device token is disabled."
    elif status in text:
        assert reply.error["message"] == text[status]
    assert (await client.send(token="android-1")).status == 200


@pytest.mark.parametrize("reason", answers.APPLE_STATUS)
def test_every_reason_of_apple_has_an_answer(reason: str) -> None:
    answer = Fault(fault="apns_error", reason=reason).answer("p")
    assert json.loads(answer.body)["error"]["details"][1]["reason"] == reason


async def test_several_codes_in_one_answer(client: Client) -> None:
    client.emulator.add_fault("several_codes", token="a")
    reply = await client.send(token="a")
    assert (reply.status, reply.error["status"]) == (400, "INVALID_ARGUMENT")
    assert [detail["errorCode"] for detail in reply.error["details"]] == ["INVALID_ARGUMENT", "UNREGISTERED"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 503])
async def test_unknown_code_under_another_status(client: Client, status: int) -> None:
    client.emulator.add_fault(f"unknown_code,status={status}")
    reply = await client.send(token="a")
    assert (reply.status, reply.fcm_code) == (status, "SOME_FUTURE_ERROR")


async def test_ok_without_body(client: Client) -> None:
    client.emulator.add_fault("ok_without_body")
    reply = await client.send(token="a")
    assert (reply.status, reply.body) == (200, b"")
    [record] = client.emulator.received
    assert record.accepted
    assert record.name is not None


@pytest.mark.parametrize("accepted", [False, True])
async def test_reset(client: Client, accepted: bool) -> None:
    client.emulator.add_fault("reset_after_accept" if accepted else "reset", times=1)
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await client.send(token="a")
    assert isinstance(caught.value, ConnectionResetError) or caught.value.errno == 104
    [record] = client.emulator.received
    assert (record.status, record.accepted) == (None, accepted)
    assert record.outcome == ("accepted" if accepted else "lost")
    assert (await client.send(token="a")).status == 200


@pytest.mark.parametrize("accepted", [False, True])
async def test_timeout_never_answers_and_ends_with_the_client(client: Client, accepted: bool) -> None:
    client.emulator.add_fault("timeout_after_accept" if accepted else "timeout", times=1)
    hanging = asyncio.create_task(client.send(token="a"))
    [record] = await client.emulator.wait_received()
    assert (record.status, record.accepted) == (None, accepted)
    assert client.emulator.stats()["in_flight"] == 1
    # The hanging connection does not delay another.
    assert (await client.send(token="b")).status == 200
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    async with asyncio.timeout(PATIENCE):
        while (await client.request("GET", "/emulator/stats")).json["in_flight"]:
            pass


async def test_slow_is_accepted_at_once_and_answered_later(client: Client) -> None:
    client.emulator.add_fault("slow", latency_ms=600_000)
    pending = asyncio.create_task(client.send(token="a"))
    [record] = await client.emulator.wait_accepted()
    assert record.status == 200
    assert (await client.request("GET", "/emulator/stats")).status == 200
    assert not pending.done()
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending


async def test_latency_of_a_rule_and_of_the_emulator(client: Client) -> None:
    client.emulator.latency = 600
    client.emulator.add_fault("unavailable", token="quick", latency_ms=0)
    pending = asyncio.create_task(client.send(token="a"))
    await client.emulator.wait_accepted()
    assert (await client.send(token="quick")).status == 503
    assert not pending.done()
    client.emulator.latency = 0.001
    assert (await client.send(token="b")).status == 200
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending


async def test_rules_match_by_target_and_the_first_wins(client: Client) -> None:
    emulator = client.emulator
    emulator.add_fault("unavailable", token="a")
    emulator.add_fault("internal", token_prefix="a")
    emulator.add_fault("quota_exceeded", topic="a")
    emulator.add_fault("unregistered", token_prefix="pre-", times=1)
    expected = [
        ({"token": "a"}, 503),
        ({"fid": "a"}, 503),
        ({"token": "ab"}, 500),
        ({"topic": "a"}, 429),
        ({"topic": "ab"}, 200),
        ({"condition": "'a' in topics"}, 200),
        ({"token": "b"}, 200),
        ({"token": "pre-1"}, 404),
        ({"token": "pre-2"}, 200),
    ]
    for message, status in expected:
        assert (await client.send(**message)).status == status, message


async def test_a_spent_rule_gives_way_to_the_next(client: Client) -> None:
    client.emulator.add_fault("unavailable", times=2)
    client.emulator.add_fault("internal", times=1)
    assert [(await client.send(token="a")).status for _ in range(5)] == [503, 503, 500, 200, 200]


async def test_a_rule_applies_only_to_messages_that_fcm_would_accept(client: Client) -> None:
    client.emulator.add_fault("unavailable", times=1)
    assert (await client.send(token="a", x=1)).status == 400
    assert (await client.post({"message": {"token": "a"}}, token="wrong")).status == 401
    assert (await client.send(token="a")).status == 503


async def test_a_rule_comes_before_a_dead_token(client: Client) -> None:
    client.emulator.add_fault("unavailable", times=1)
    assert [(await client.send(token="dead-1")).status for _ in range(2)] == [503, 404]


async def test_share_depends_on_the_seed() -> None:
    async def statuses(seed: int) -> list[int]:
        emulator = Emulator(seed=seed, faults=["unavailable,share=0.3"])
        async with emulator, aiohttp.ClientSession() as session:
            client = Client(emulator, session)
            await client.authorize()
            return [(await client.send(token="a")).status for _ in range(100)]

    first = await statuses(1)
    assert first == await statuses(1)
    assert first != await statuses(2)
    assert set(first) == {200, 503}
    assert 10 <= first.count(503) <= 50


@pytest.mark.parametrize(("share", "status"), [("0", 200), ("1", 503)])
async def test_share_of_none_and_all(client: Client, share: str, status: int) -> None:
    client.emulator.add_fault(f"unavailable,share={share}")
    assert {(await client.send(token="a")).status for _ in range(20)} == {status}


@pytest.mark.parametrize("fault", OAUTH)
async def test_oauth_faults(client: Client, fault: str) -> None:
    client.emulator.add_fault(fault, times=1)
    reply = await client.grant(assertion(client.emulator))
    assert (reply.status, reply.json["error"]) == OAUTH[fault]
    assert (await client.grant(assertion(client.emulator))).status == 200
    # The fixture's own grant counts too; no send failed.
    status, code = OAUTH[fault]
    assert client.emulator.stats()["token_answers"] == {"200": 2, f"{status} {code}": 1}
    assert (await client.send(token="a")).status == 200


async def test_oauth_timeout(client: Client) -> None:
    client.emulator.add_fault("oauth_timeout", times=1)
    hanging = asyncio.create_task(client.grant(assertion(client.emulator)))
    async with asyncio.timeout(PATIENCE):
        while "no answer" not in (await client.request("GET", "/emulator/stats")).json["token_answers"]:
            pass
    assert (await client.grant(assertion(client.emulator))).status == 200
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


# --- rules as text -------------------------------------------------------------------------------------


def test_parse_fault() -> None:
    assert parse_fault("unavailable,token=abc,times=2,retry_after=1") == Fault(
        fault="unavailable", token="abc", times=2, retry_after="1"
    )
    assert parse_fault("slow, latency_ms=1.5, share=0.25") == Fault(fault="slow", latency_ms=1.5, share=0.25)
    assert parse_fault("unavailable,retry_after=Wed, 21 Oct 2026 07:28:00 GMT,times=1") == Fault(
        fault="unavailable", retry_after="Wed, 21 Oct 2026 07:28:00 GMT", times=1
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "fault must be text, and not empty"),
        ("unavailble", "known are: apns_auth_error"),
        ("unavailable,tokn=a", "known are: token"),
        ("unavailable,token", "not name=value"),
        ("unavailable,token=", "must be text"),
        ("unavailable,times=1,times=2", "twice"),
        ("unavailable,times=0", "at least 1"),
        ("unavailable,times=1.5", "whole number"),
        ("unavailable,share=2", "between 0 and 1"),
        ("unavailable,share=nan", "between 0 and 1"),
        ("unavailable,latency_ms=-1", "at least 0"),
        ("unavailable,latency_ms=inf", "at least 0"),
        ("unavailable,retry_after=soon", "HTTP date"),
        ("unavailable,retry_after=-1", "HTTP date"),
        ("unavailable,status=500", "unknown_code only"),
        ("unknown_code,status=200", "between 400 and 599"),
        ("apns_error", "known are: BadCollapseId"),
        ("apns_error,reason=Nonsense", "known are: BadCollapseId"),
        ("unavailable,reason=Unregistered", "apns_error only"),
        ("oauth_temporarily_unavailable,topic=a", "token endpoint"),
        ("reset,retry_after=1", "no answer"),
        ("oauth_timeout,token=a", "token endpoint"),
    ],
)
def test_parse_fault_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_fault(text)


def test_a_bad_rule_is_refused_before_the_start() -> None:
    with pytest.raises(ValueError, match="unknown fault"):
        Emulator(faults=["nonsense"])


# --- control API ---------------------------------------------------------------------------------------


async def test_rules_over_http(client: Client) -> None:
    reply = await client.request("POST", "/emulator/faults", json={"fault": "unavailable", "token": "a"})
    assert (reply.status, reply.json["id"], reply.json["fired"]) == (201, 1, 0)
    reply = await client.request("POST", "/emulator/faults", json="internal,times=1,retry_after=5")
    assert (reply.status, reply.json["retry_after"]) == (201, "5")
    assert (await client.send(token="a")).status == 503
    assert (await client.send(token="b")).status == 500
    reply = await client.request(
        "POST",
        "/emulator/faults",
        json={"fault": "apns_error", "reason": "BadDeviceToken", "token_prefix": "ios"},
    )
    assert (reply.status, reply.json["reason"]) == (201, "BadDeviceToken")
    assert (await client.send(token="ios-1")).details[APNS_ERROR]["reason"] == "BadDeviceToken"
    assert (await client.request("DELETE", "/emulator/faults/3")).status == 204
    rules = (await client.request("GET", "/emulator/faults")).json["faults"]
    assert rules == [
        {"id": 1, "fault": "unavailable", "token": "a", "fired": 1, "spent": False},
        {"id": 2, "fault": "internal", "times": 1, "retry_after": "5", "fired": 1, "spent": True},
    ]
    assert (await client.request("DELETE", "/emulator/faults/1")).status == 204
    assert (await client.request("DELETE", "/emulator/faults/1")).status == 404
    assert (await client.send(token="a")).status == 200
    await client.request("POST", "/emulator/faults", json={"fault": "unavailable"})
    assert (await client.request("DELETE", "/emulator/faults")).status == 204
    assert (await client.request("GET", "/emulator/faults")).json == {"faults": []}
    assert (await client.send(token="a")).status == 200


@pytest.mark.parametrize(
    "body",
    [{}, {"fault": 1}, {"fault": "x"}, {"fault": "slow", "times": True}, {"fault": "slow", "x": 1}, [], 1],
)
async def test_a_bad_rule_over_http(client: Client, body: Any) -> None:
    reply = await client.request("POST", "/emulator/faults", json=body)
    assert reply.status == 400
    assert reply.json["error"]
    assert (await client.request("GET", "/emulator/faults")).json == {"faults": []}


async def test_messages_over_http(client: Client) -> None:
    await client.send(token="a", data={"push_id": "1"})
    await client.send(token="a", data={"push_id": "1"})
    await client.send(topic="a", data={"push_id": "2"})
    await client.send(token="dead-1", data={"push_id": "3"})
    await client.send(x=1)

    async def numbers(query: str) -> list[int]:
        reply = await client.request("GET", f"/emulator/messages{query}")
        return [message["number"] for message in reply.json["messages"]]

    assert await numbers("") == [1, 2, 3, 4, 5]
    assert await numbers("?token=a") == [1, 2]
    assert await numbers("?topic=a") == [3]
    assert await numbers("?push_id=1&outcome=accepted") == [1, 2]
    assert await numbers("?outcome=refused") == [4, 5]
    assert await numbers("?outcome=UNREGISTERED") == [4]
    assert await numbers("?limit=2") == [4, 5]
    assert await numbers("?limit=0") == []
    reply = await client.request("GET", "/emulator/messages?limit=1&token=a")
    assert (reply.json["count"], reply.json["forgotten"]) == (2, 0)
    [message] = reply.json["messages"]
    assert message["message"] == {"token": "a", "data": {"push_id": "1"}}
    assert (message["kind"], message["target"], message["status"]) == ("token", "a", 200)
    assert (message["accepted"], message["outcome"], message["duplicate_of"]) == (True, "accepted", 1)
    assert message["name"].startswith("projects/demo-project/messages/")
    assert message["received_at"] == pytest.approx(time.time(), abs=60)
    assert (await client.request("GET", "/emulator/messages?tokn=a")).status == 400
    assert (await client.request("DELETE", "/emulator/messages")).status == 204
    assert await numbers("") == []
    await client.send(token="a", data={"push_id": "1"})
    assert await numbers("") == [6]
    assert client.emulator.received[0].duplicate_of == 0


async def test_the_record_is_bounded() -> None:
    async with Emulator(remember=3) as emulator, aiohttp.ClientSession() as session:
        client = Client(emulator, session)
        await client.authorize()
        for token in ("a", "b", "c", "d", "a"):
            await client.send(token=token, data={"push_id": "1"})
        assert [record.target for record in emulator.received] == ["c", "d", "a"]
        assert emulator.forgotten == 2
        # A forgotten message is no duplicate any more.
        assert emulator.received[-1].duplicate_of == 0
        assert emulator.stats()["accepted"] == emulator.stats()["received"] == 5


async def test_stats_over_http(client: Client) -> None:
    client.emulator.add_fault("timeout", token="hang")
    await client.send(token="a")
    await client.send(token="dead-1")
    hanging = [asyncio.create_task(client.send(token="hang")) for _ in range(3)]
    await client.emulator.wait_received(5)
    stats = (await client.request("GET", "/emulator/stats")).json
    assert stats["answers"] == {"200": 1, "404 UNREGISTERED": 1, "no answer": 3}
    assert (stats["received"], stats["accepted"]) == (5, 1)
    assert (stats["in_flight"], stats["max_in_flight"]) == (3, 3)
    assert stats["connections_open"] == 4
    assert stats["connections_total"] >= 4
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_connections_are_kept_alive(client: Client) -> None:
    before = client.emulator.stats()["connections_total"]
    for _ in range(5):
        await client.send(token="a")
        await client.send(token="dead-1")
        await client.send(x=1)
    assert client.emulator.stats()["connections_total"] == before


async def test_index(client: Client) -> None:
    reply = await client.request("GET", "/")
    assert reply.status == 200
    for path in ("messages:send", "/token", "/emulator/messages", "/emulator/faults", "/emulator/stats"):
        assert path in reply.body.decode()


async def test_the_key_over_http_names_the_address_of_the_request(client: Client) -> None:
    reply = await client.request("GET", "/emulator/service-account.json", headers={"Host": "emulator:9"})
    assert reply.json == {**client.emulator.service_account, "token_uri": "http://emulator:9/token"}


# --- the Python API ------------------------------------------------------------------------------------


async def test_wait_for_counts_earlier_and_later_records(client: Client) -> None:
    await client.send(token="a")
    await client.send(token="dead-1")
    waiting = asyncio.create_task(client.emulator.wait_accepted(3))
    await client.send(token="b")
    await client.send(x=1)
    assert not waiting.done()
    await client.send(token="c")
    assert [record.target for record in await waiting] == ["a", "b", "c"]
    found = await client.emulator.wait_for(lambda record: record.error_code == "UNREGISTERED")
    assert [record.target for record in found] == ["dead-1"]
    assert await client.emulator.wait_accepted(0) == []


async def test_wait_for_says_what_it_saw_instead(client: Client) -> None:
    await client.send(token="dead-secret")
    with pytest.raises(TimeoutError, match=r"0 of 1 records.*1 x 404 UNREGISTERED") as caught:
        await client.emulator.wait_accepted(timeout=0.01)
    assert "secret" not in str(caught.value)


async def test_stop_and_start_on_the_same_port(client: Client) -> None:
    emulator, endpoint = client.emulator, client.emulator.endpoint
    emulator.add_fault("timeout", token="hang")
    hanging = asyncio.create_task(client.send(token="hang"))
    await emulator.wait_received()
    await emulator.stop()
    with pytest.raises(aiohttp.ClientError):
        await hanging
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.send(token="a")
    await emulator.start()
    assert emulator.endpoint == endpoint
    assert (await client.send(token="a")).status == 200
    assert [record.target for record in emulator.received] == ["hang", "a"]


@pytest.mark.parametrize("host", ["::1", "0.0.0.0", "::"])
async def test_the_endpoint_can_be_reached_whatever_the_host(host: str) -> None:
    async with Emulator("p", host) as emulator, aiohttp.ClientSession() as session:
        client = Client(emulator, session)
        await client.authorize()
        assert (await client.post({"message": {"token": "a"}}, project="p")).status == 200


async def test_run_writes_the_key_and_says_how_to_use_it(tmp_path: Path) -> None:
    said: list[str] = []
    ready = asyncio.Event()

    def say(text: str) -> None:
        said.append(text)
        ready.set()

    path = tmp_path / "the key.json"
    older = {"client_email": f"{ACCOUNT}@p", "was": "open to all, and longer than what will be" * 100}
    path.write_text(json.dumps(older))
    path.chmod(0o644)
    running = asyncio.create_task(
        run(port=0, project_id="p", faults=["unavailable,times=1"], credentials=path, say=say)
    )
    async with asyncio.timeout(PATIENCE):
        await ready.wait()
    key = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"FCM_ENDPOINT={key['token_uri'].removesuffix('/token')}" in said[0]
    assert f"GOOGLE_APPLICATION_CREDENTIALS='{path}'" in said[0]  # there is a space in it
    credentials = Credentials.from_service_account_file(path, scopes=[SCOPE])
    await asyncio.to_thread(credentials.refresh, Request())
    assert credentials.valid
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_it_works_the_same_on_uvloop() -> None:
    async def scenario() -> list[str]:
        faults = ["reset,token=broken", "timeout,token=hang"]
        async with Emulator(faults=faults) as emulator, aiohttp.ClientSession() as session:
            client = Client(emulator, session)
            await client.authorize()
            await client.send(token="a")
            with pytest.raises(aiohttp.ClientOSError):
                await client.send(token="broken")
            hanging = asyncio.create_task(client.send(token="hang"))
            await emulator.wait_received(3)
            await emulator.stop()
            with pytest.raises(aiohttp.ClientError):
                await hanging
            return [record.outcome for record in emulator.received]

    assert uvloop.run(scenario()) == ["accepted", "lost", "lost"]


# --- Google's own libraries ----------------------------------------------------------------------------


async def test_google_auth_refreshes(client: Client, credentials: Any) -> None:
    await asyncio.to_thread(credentials.refresh, Request())
    assert credentials.valid
    assert (await client.post({"message": {"token": "a"}}, token=credentials.token)).status == 200


async def test_google_auth_sees_a_refusal(emulator: Emulator, credentials: Any) -> None:
    emulator.add_fault("oauth_invalid_grant")
    with pytest.raises(auth_exceptions.RefreshError, match="invalid_grant"):
        await asyncio.to_thread(credentials.refresh, Request())


async def test_google_auth_tries_again_after_an_outage(emulator: Emulator, credentials: Any) -> None:
    emulator.add_fault("oauth_server_error", times=1)
    await asyncio.to_thread(credentials.refresh, Request())
    assert credentials.valid
    assert emulator.stats()["token_answers"] == {"500 internal_failure": 1, "200": 1}


async def test_firebase_sends_to_a_token_and_a_topic(
    emulator: Emulator, firebase: firebase_admin.App
) -> None:
    message = messaging.Message(
        token="abc",
        data={"k": "v"},
        notification=messaging.Notification(title="T", body="B"),
        android=messaging.AndroidConfig(
            priority="high",
            ttl=3.5,
            notification=messaging.AndroidNotification(
                tag="t",
                channel_id="c",
                color="#aabbcc",
                priority="high",
                visibility="public",
                vibrate_timings_millis=[100, 1500],
                light_settings=messaging.LightSettings("#aabbccdd", 100, 200),
            ),
            fcm_options=messaging.AndroidFCMOptions("label"),
        ),
        apns=messaging.APNSConfig(
            headers={"apns-priority": "5"}, payload=messaging.APNSPayload(messaging.Aps(badge=1))
        ),
        webpush=messaging.WebpushConfig(
            headers={"TTL": "5"},
            notification=messaging.WebpushNotification("T"),
            fcm_options=messaging.WebpushFCMOptions(link="https://example.com"),
        ),
    )
    name = await asyncio.to_thread(messaging.send, message, app=firebase)
    topic = await asyncio.to_thread(messaging.send, messaging.Message(topic="news"), app=firebase)
    first, second = emulator.received
    assert (first.kind, first.target, first.name) == ("token", "abc", name)
    assert (second.kind, second.target, second.name) == ("topic", "news", topic)


async def test_firebase_dry_run(emulator: Emulator, firebase: firebase_admin.App) -> None:
    await asyncio.to_thread(messaging.send, messaging.Message(token="a"), dry_run=True, app=firebase)
    assert [record.outcome for record in emulator.received] == ["validated"]


async def test_firebase_send_each(emulator: Emulator, firebase: firebase_admin.App) -> None:
    messages = [messaging.Message(token=token) for token in ("a", "dead-1", "b")]
    batch = await asyncio.to_thread(messaging.send_each, messages, app=firebase)
    assert (batch.success_count, batch.failure_count) == (2, 1)
    assert [response.success for response in batch.responses] == [True, False, True]
    assert isinstance(batch.responses[1].exception, messaging.UnregisteredError)
    assert {record.target for record in emulator.accepted} == {"a", "b"}


ERRORS: list[tuple[str, type[Exception], int]] = [
    ("unregistered", messaging.UnregisteredError, 1),
    ("sender_id_mismatch", messaging.SenderIdMismatchError, 1),
    ("quota_exceeded", messaging.QuotaExceededError, 1),
    # To google-auth every 401 is an expired token: it gives up after two new tokens and three sends.
    ("third_party_auth", messaging.ThirdPartyAuthError, 3),
    ("apns_auth_error", messaging.ThirdPartyAuthError, 3),
    ("apns_error,reason=BadEnvironmentKeyInToken", messaging.ThirdPartyAuthError, 3),
    ("apns_error,reason=Unregistered", exceptions.InvalidArgumentError, 1),
    ("apns_error,reason=TooManyRequests", messaging.QuotaExceededError, 1),
    ("bad_request_html", exceptions.InvalidArgumentError, 1),
    ("not_found_no_details", exceptions.NotFoundError, 1),
    ("unavailable", exceptions.UnavailableError, 5),
    ("internal", exceptions.InternalError, 5),
    ("invalid_argument", exceptions.InvalidArgumentError, 1),
    ("permission_denied", exceptions.PermissionDeniedError, 1),
    ("not_found_html", exceptions.NotFoundError, 1),
]


async def test_firebase_raises_its_own_errors(emulator: Emulator, firebase: firebase_admin.App) -> None:
    for fault, error, requests_seen in ERRORS:
        with naming(fault):
            emulator.clear()
            emulator.clear_faults()
            emulator.add_fault(fault)
            with pytest.raises(error):
                await asyncio.to_thread(messaging.send, messaging.Message(token="a"), app=firebase)
            assert len(emulator.received) == requests_seen


async def test_firebase_sees_what_fcm_makes_of_settings_for_apple_alone(
    emulator: Emulator, firebase: firebase_admin.App
) -> None:
    def background(aps: messaging.Aps) -> messaging.Message:
        headers = {"apns-priority": "5", "apns-push-type": "background"}
        apns = messaging.APNSConfig(headers=headers, payload=messaging.APNSPayload(aps))
        return messaging.Message(token="a", data={"k": "v"}, apns=apns)

    with pytest.raises(exceptions.InvalidArgumentError, match="not a valid FCM registration token"):
        await asyncio.to_thread(messaging.send, background(messaging.Aps()), app=firebase)
    await asyncio.to_thread(messaging.send, background(messaging.Aps(content_available=True)), app=firebase)
    assert [record.outcome for record in emulator.received] == ["refused", "accepted"]


async def test_firebase_refreshes_an_expired_access_token(
    emulator: Emulator, firebase: firebase_admin.App
) -> None:
    await asyncio.to_thread(messaging.send, messaging.Message(token="a"), app=firebase)
    emulator.expire_access_tokens()
    await asyncio.to_thread(messaging.send, messaging.Message(token="a"), app=firebase)
    assert [record.status for record in emulator.received] == [200, 401, 200]
    assert emulator.stats()["access_tokens_issued"] == 2


async def test_requests_sees_a_connection_that_breaks(client: Client) -> None:
    """A client that is not asyncio sees the same fault."""
    client.emulator.add_fault("reset")

    def post() -> None:
        requests.post(
            f"{client.emulator.endpoint}/v1/projects/demo-project/messages:send",
            json={"message": {"token": "a"}},
            headers={"Authorization": f"Bearer {client.token}"},
            timeout=PATIENCE,
        )

    with pytest.raises(requests.ConnectionError):
        await asyncio.to_thread(post)
