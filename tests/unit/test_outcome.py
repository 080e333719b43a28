"""What an answer of FCM, or the lack of one, means."""

from __future__ import annotations

import json
import math
import re
import time
from itertools import permutations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.fcm.error_body import is_json
from listener.fcm.fault import AuthFault, SendFault
from listener.fcm.outcome import (
    Disposition,
    Limit,
    Outcome,
    classify,
    from_auth_fault,
    from_send_fault,
    refused_alone,
)
from listener.fcm.retry_after import LONGEST_DELAY
from tests.support.strategies import JSON

FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

TOKEN = "cJug2GoHzEfcshCE_OLL24:APA91bHa8-Viell9xjbeV96V4Njhufk9V7KcOA940Gp7FY1Dxsxmo8AJ7_erhKKqsgqsD8t6"
INVALID_TOKEN = "The registration token is not a valid FCM registration token"
PAGE_502 = (
    b"<!DOCTYPE html>\n<html lang=en>\n<title>Error 502 (Server Error)!!1</title>\n"
    b"<p><b>502.</b> <ins>That\xe2\x80\x99s an error.</ins>\n<p>The server encountered a temporary error and "
    b"could not complete your request.<p>Please try again in 30 seconds.  <ins>That\xe2\x80\x99s all we know.</ins>\n"
)
PAGE_404 = (
    b"<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n<p><b>404.</b>\n"
    b"<p>The requested URL <code>/v1/projects//messages:send</code> was not found on this server.\n"
)

Detail = dict[str, Any]


def fcm(code: object) -> Detail:
    return {"@type": FCM_ERROR, "errorCode": code}


def bad_request(*fields: str, text: str = "Invalid value") -> Detail:
    return {
        "@type": BAD_REQUEST,
        "fieldViolations": [{"field": field, "description": text} for field in fields],
    }


def error(status: int, name: str, message: str, *details: Detail) -> bytes:
    body: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        body["details"] = list(details)
    return json.dumps({"error": body}).encode()


def outcome(status: int, body: bytes = b"", **headers: str) -> Outcome:
    return classify(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# --- bodies of the real service ------------------------------------------------------------------------

VALUE_400 = "Invalid value at 'message.data[0].value' (TYPE_STRING), 12"
SIGN_IN = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)
DENIED = (
    "Permission 'cloudmessaging.messages.create' denied on resource "
    "'//cloudresourcemanager.googleapis.com/projects/my-project' (or it may not exist)."
)
UNAVAILABLE = "The service is currently unavailable."

SEEN = [
    # 400: the token
    (
        400,
        "INVALID_ARGUMENT",
        INVALID_TOKEN,
        [fcm("INVALID_ARGUMENT"), bad_request("message.token")],
        Disposition.DROP_TARGET,
    ),
    (400, "INVALID_ARGUMENT", INVALID_TOKEN, [fcm("INVALID_ARGUMENT")], Disposition.DROP_TARGET),
    (
        400,
        "INVALID_ARGUMENT",
        "Request contains an invalid argument.",
        [fcm("INVALID_ARGUMENT"), bad_request("message.token", text="Invalid registration token")],
        Disposition.DROP_TARGET,
    ),
    # 400: the message
    (
        400,
        "INVALID_ARGUMENT",
        VALUE_400,
        [bad_request("message.data[0].value", text=VALUE_400)],
        Disposition.DROP_MESSAGE,
    ),
    (
        400,
        "INVALID_ARGUMENT",
        "Topic name contains invalid characters.",
        [bad_request("message"), fcm("INVALID_ARGUMENT")],
        Disposition.DROP_MESSAGE,
    ),
    (
        400,
        "INVALID_ARGUMENT",
        "Recipient of the message is not set.",
        [bad_request("message"), fcm("INVALID_ARGUMENT")],
        Disposition.DROP_MESSAGE,
    ),
    (
        400,
        "INVALID_ARGUMENT",
        "Android message is too big",
        [{"@type": BAD_REQUEST}, fcm("INVALID_ARGUMENT")],
        Disposition.DROP_MESSAGE,
    ),
    (
        400,
        "INVALID_ARGUMENT",
        "Invalid data payload key: from",
        [bad_request("message.data[0].key"), fcm("INVALID_ARGUMENT")],
        Disposition.DROP_MESSAGE,
    ),
    (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", [], Disposition.DROP_MESSAGE),
    (
        400,
        "INVALID_ARGUMENT",
        "Request contains an invalid argument.",
        [fcm("INVALID_ARGUMENT")],
        Disposition.DROP_MESSAGE,
    ),
    # 401
    (
        401,
        "UNAUTHENTICATED",
        "Auth error from APNS or Web Push Service",
        [fcm("THIRD_PARTY_AUTH_ERROR")],
        Disposition.PAUSE_PLATFORM,
    ),
    (401, "UNAUTHENTICATED", SIGN_IN, [fcm("THIRD_PARTY_AUTH_ERROR")], Disposition.PAUSE_PLATFORM),
    (
        401,
        "UNAUTHENTICATED",
        SIGN_IN,
        [{"@type": ERROR_INFO, "reason": "ACCESS_TOKEN_EXPIRED", "domain": "googleapis.com"}],
        Disposition.REFRESH_AUTH,
    ),
    (401, "UNAUTHENTICATED", SIGN_IN, [], Disposition.REFRESH_AUTH),
    # 403
    (403, "PERMISSION_DENIED", "SenderId mismatch", [fcm("SENDER_ID_MISMATCH")], Disposition.DROP_TARGET),
    (
        403,
        "PERMISSION_DENIED",
        DENIED,
        [{"@type": ERROR_INFO, "reason": "IAM_PERMISSION_DENIED"}],
        Disposition.PAUSE,
    ),
    (403, "PERMISSION_DENIED", "The caller does not have permission", [], Disposition.PAUSE),
    # 404
    (404, "NOT_FOUND", "Requested entity was not found.", [fcm("UNREGISTERED")], Disposition.DROP_TARGET),
    (404, "NOT_FOUND", "Requested entity was not found.", [], Disposition.PAUSE),
    # 429
    (429, "RESOURCE_EXHAUSTED", "Topic quota exceeded.", [fcm("QUOTA_EXCEEDED")], Disposition.RETRY),
    (
        429,
        "RESOURCE_EXHAUSTED",
        "Quota exceeded.",
        [{"@type": QUOTA_FAILURE, "violations": [{"subject": "project:1"}]}, fcm("QUOTA_EXCEEDED")],
        Disposition.RETRY,
    ),
    # 5xx
    (500, "INTERNAL", "Internal error encountered.", [fcm("INTERNAL")], Disposition.RETRY),
    (503, "UNAVAILABLE", UNAVAILABLE, [fcm("UNAVAILABLE")], Disposition.RETRY),
    (503, "UNAVAILABLE", UNAVAILABLE, [], Disposition.RETRY),
    (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.", [], Disposition.RETRY),
]


@pytest.mark.parametrize(("status", "name", "message", "details", "disposition"), SEEN)
def test_bodies_of_the_real_service_in_any_order_of_details(
    status: int, name: str, message: str, details: list[Detail], disposition: Disposition
) -> None:
    for order in permutations(details):
        result = outcome(status, error(status, name, message, *order))
        assert result.disposition is disposition
        assert result.http_status == status
        codes = [detail["errorCode"] for detail in details if "errorCode" in detail]
        assert result.code == (codes[0] if codes else name)


def test_accepted() -> None:
    assert outcome(
        200, b'{\n  "name": "projects/p/messages/0:1500415314455276%31bd1c9631bd1c96"\n}\n'
    ) == Outcome(
        Disposition.ACCEPTED,
        "OK",
        "accepted by FCM",
        200,
        message_id="projects/p/messages/0:1500415314455276%31bd1c9631bd1c96",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'"x"',
        b" \n",
        b'{"name": 5}',
        b'{"name": ""}',
        b'{"name": "a\\u0000b"}',
        b'{"name": "\\u00e9"}',
        json.dumps({"name": "x" * 513}).encode(),
        error(200, "UNREGISTERED", "", fcm("UNREGISTERED")),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_success_without_a_usable_name_is_never_sent_again(status: int, body: bytes) -> None:
    assert outcome(status, body) == Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", status)


@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><title>Welcome to nginx!</title>", b"Log in to the network"]
)
@pytest.mark.parametrize("status", [200, 201])
def test_a_page_in_the_place_of_fcm_is_no_acceptance(status: int, body: bytes) -> None:
    """A misrouted endpoint would otherwise mark the whole queue as sent."""
    result = outcome(status, body)
    assert (result.disposition, result.code, result.uses_try) == (Disposition.PAUSE, f"HTTP_{status}", False)
    assert result.ambiguous


def test_quota() -> None:
    body = error(429, "RESOURCE_EXHAUSTED", "Topic quota exceeded.", fcm("QUOTA_EXCEEDED"))
    result = outcome(429, body, Retry_After="90")
    assert (result.disposition, result.code, result.delay) == (Disposition.RETRY, "QUOTA_EXCEEDED", 90.0)
    assert result.limit is Limit.TARGET
    assert result.uses_try
    assert not result.ambiguous
    assert "Topic quota exceeded." in result.reason
    assert outcome(429, body).delay == 60.0
    assert outcome(429, b"<html>") == Outcome(
        Disposition.RETRY, "HTTP_429", "an FCM quota is used up", 429, delay=60.0, limit=Limit.UNKNOWN
    )


def quota_failure(description: object, subject: object = "QUOTA_EXCEEDED") -> Detail:
    return {"@type": QUOTA_FAILURE, "violations": [{"subject": subject, "description": description}]}


FRONT_END = (
    "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of service "
    "'fcm.googleapis.com' for consumer 'project_number:123456789012'."
)
RATE_LIMIT = {
    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
    "reason": "RATE_LIMIT_EXCEEDED",
    "domain": "googleapis.com",
}


@pytest.mark.parametrize(
    ("message", "details", "limit"),
    [
        (FRONT_END, [], Limit.PROJECT),
        (FRONT_END, [RATE_LIMIT], Limit.PROJECT),
        ("Too much.", [RATE_LIMIT], Limit.PROJECT),
        (
            "Quota exceeded.",
            [fcm("QUOTA_EXCEEDED"), quota_failure("", "project:smart-device")],
            Limit.PROJECT,
        ),
        ("Topic quota exceeded.", [fcm("QUOTA_EXCEEDED")], Limit.TARGET),
        ("Topic quota exceeded.", [quota_failure("Topic quota exceeded.", "project:p")], Limit.TARGET),
        (
            "Quota exceeded.",
            [quota_failure("Device message rate exceeded"), fcm("QUOTA_EXCEEDED")],
            Limit.TARGET,
        ),
        # The reference's general text for QUOTA_EXCEEDED.
        ("Sending limit exceeded for the message target.", [fcm("QUOTA_EXCEEDED")], Limit.UNKNOWN),
        ("Resource has been exhausted (e.g. check quota).", [], Limit.UNKNOWN),
        ("topics-of-conversation", [quota_failure(5, ["project"]), quota_failure(None, None)], Limit.UNKNOWN),
        ("", [{"@type": QUOTA_FAILURE, "violations": "many"}, {"@type": QUOTA_FAILURE}], Limit.UNKNOWN),
    ],
)
def test_whose_quota_is_used_up(message: str, details: list[Detail], limit: Limit) -> None:
    assert outcome(429, error(429, "RESOURCE_EXHAUSTED", message, *details)).limit is limit


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, error(500, "INTERNAL", "Internal error encountered.", fcm("INTERNAL"))),
        (503, error(503, "UNAVAILABLE", UNAVAILABLE, fcm("UNAVAILABLE"))),
        (503, b""),
        (504, b"upstream request timeout"),
        (502, b"<html>Bad Gateway</html>"),
        (501, b""),
        (520, b""),
        (599, b""),
    ],
)
def test_a_server_error_is_retried_and_ambiguous(status: int, body: bytes) -> None:
    result = outcome(status, body)
    assert (result.disposition, result.delay) == (Disposition.RETRY, 0.0)
    assert result.ambiguous
    assert result.uses_try
    assert result.limit is None
    assert outcome(status, body, Retry_After="3").delay == 3.0
    assert outcome(status, body, Retry_After="300").delay == 300.0


def test_the_html_page_that_names_a_delay() -> None:
    result = outcome(502, PAGE_502)
    assert (result.disposition, result.code, result.delay) == (Disposition.RETRY, "HTTP_502", 30.0)
    assert outcome(502, PAGE_502, Retry_After="120").delay == 120.0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, error(403, "PERMISSION_DENIED", DENIED)),
        (403, b"<html>Forbidden</html>"),
        (404, PAGE_404),
        (404, b""),
        (301, b""),
        (302, b""),
        (304, b""),
        (405, b""),
        (407, b""),
        (451, b""),
    ],
)
def test_a_wrong_configuration_pauses_and_uses_no_try(status: int, body: bytes) -> None:
    result = outcome(status, body, Location="https://elsewhere.example")
    assert result.disposition is Disposition.PAUSE
    assert not result.uses_try
    assert not result.ambiguous
    assert "check FCM_" in result.reason


def test_refused_credentials_use_no_try() -> None:
    assert not outcome(401).uses_try
    third_party = error(401, "UNAUTHENTICATED", "Auth error", fcm("THIRD_PARTY_AUTH_ERROR"))
    assert not outcome(401, third_party).uses_try


@pytest.mark.parametrize("status", [413, 414, 431])
def test_a_request_too_large_for_fcm(status: int) -> None:
    result = outcome(status, error(status, "SOME", "Request Entity Too Large"))
    assert (result.disposition, result.code) == (Disposition.DROP_MESSAGE, f"HTTP_{status}")
    assert "too large" in result.reason


PAGE_400 = (
    b"<!DOCTYPE html>\n<html lang=en>\n<title>Error 400 (Bad Request)!!1</title>\n<p><b>400.</b> "
    b"<p>Your client has issued a malformed or illegal request.\n"
)


@pytest.mark.parametrize(
    "body",
    [
        PAGE_400,
        b"",
        b"Bad Request",
        b"400 The plain HTTP request was sent to HTTPS port",
        b"{}",
        b"[]",
        b'{"error": "no"}',
    ],
)
def test_what_is_not_googles_json_is_about_the_way_and_not_about_the_message(body: bytes) -> None:
    for status in (400, 402, 405, 406, 410, 412, 413, 414, 418, 431):
        result = outcome(status, body)
        found = (result.disposition, result.code, result.uses_try)
        assert found == (Disposition.PAUSE, f"HTTP_{status}", False)
        assert "check FCM_ENDPOINT and the proxies" in result.reason, status


# --- what Apple says -----------------------------------------------------------------------------------

APNS_ERROR = "type.googleapis.com/google.firebase.fcm.v1.ApnsError"


def apns(status: object, reason: object) -> Detail:
    return {"@type": APNS_ERROR, "statusCode": status, "reason": reason}


GONE, ALONE = (Disposition.DROP_TARGET, True), (Disposition.MISFIT, True)
KEY, MESSAGE = (Disposition.PAUSE_PLATFORM, False), (Disposition.DROP_MESSAGE, True)
TOO_MANY, BUSY = (Disposition.RETRY, True), KEY

# Source of the reasons: Apple, "Handling notification responses from APNs".
APPLE = [
    (410, "Unregistered", GONE),
    (410, "ExpiredToken", GONE),
    (410, "SomeFutureReason", GONE),
    (400, "Unregistered", GONE),
    (403, "BadEnvironmentKeyInToken", ALONE),
    (403, "BadCertificateEnvironment", ALONE),
    (400, "BadDeviceToken", ALONE),
    (400, "DeviceTokenNotForTopic", ALONE),
    (400, "BadTopic", ALONE),
    (400, "TopicDisallowed", ALONE),
    (400, "MissingTopic", ALONE),
    (403, "InvalidProviderToken", KEY),
    (403, "ExpiredProviderToken", KEY),
    (403, "MissingProviderToken", KEY),
    (403, "UnrelatedKeyIdInToken", KEY),
    (403, "BadCertificate", KEY),
    (403, "Forbidden", KEY),
    (400, "BadCollapseId", MESSAGE),
    (400, "BadExpirationDate", MESSAGE),
    (400, "BadPriority", MESSAGE),
    (400, "InvalidPushType", MESSAGE),
    (400, "PayloadEmpty", MESSAGE),
    (413, "PayloadTooLarge", MESSAGE),
    (429, "TooManyRequests", TOO_MANY),
    (429, "TooManyProviderTokenUpdates", BUSY),
    (500, "InternalServerError", BUSY),
    (503, "ServiceUnavailable", BUSY),
    (503, "Shutdown", BUSY),
    (503, "SomeFutureReason", BUSY),
]


@pytest.mark.parametrize(
    ("answer", "code"),
    [(400, "INVALID_ARGUMENT"), (401, "THIRD_PARTY_AUTH_ERROR"), (401, "APNS_AUTH_ERROR"), (500, "INTERNAL")],
)
def test_apples_verdict_decides_whatever_fcm_makes_of_it(answer: int, code: str) -> None:
    for status, reason, expected in APPLE:
        for order in permutations([fcm(code), apns(status, reason)]):
            body = error(answer, "INVALID_ARGUMENT", "APNs device token is disabled.", *order)
            result = outcome(answer, body)
            assert (result.disposition, result.uses_try) == expected, (status, reason)
            assert result.code == ("UNREGISTERED" if expected is GONE else code), (status, reason)
        assert f"Apple: {reason}" in result.reason or reason == "SomeFutureReason"
        assert result.limit is (Limit.TARGET if expected is TOO_MANY else None)
        assert result.apple_reason == ("" if reason == "SomeFutureReason" else reason)


@pytest.mark.parametrize(
    "detail",
    [apns(400, "SomeFutureReason"), apns("410", 5), apns(None, None), {"@type": APNS_ERROR}, apns([], {})],
)
def test_what_apple_says_in_unknown_words_drops_no_token(detail: Detail) -> None:
    """FCM's own code decides, as if Apple had said nothing."""
    body = error(400, "INVALID_ARGUMENT", "APNs refused.", fcm("INVALID_ARGUMENT"), detail)
    assert outcome(400, body).disposition is Disposition.DROP_MESSAGE
    body = error(401, "UNAUTHENTICATED", SIGN_IN, fcm("THIRD_PARTY_AUTH_ERROR"), detail)
    assert (outcome(401, body).disposition, outcome(401, body).uses_try) == KEY


@pytest.mark.parametrize(
    ("codes", "telling"),
    [
        (["INTERNAL", "UNREGISTERED"], "UNREGISTERED"),
        (["INVALID_ARGUMENT", "SENDER_ID_MISMATCH"], "SENDER_ID_MISMATCH"),
        (["UNSPECIFIED_ERROR", "QUOTA_EXCEEDED"], "QUOTA_EXCEEDED"),
        (["UNAVAILABLE", "THIRD_PARTY_AUTH_ERROR"], "THIRD_PARTY_AUTH_ERROR"),
        (["NEW", "UNSPECIFIED_ERROR", "INVALID_ARGUMENT"], "INVALID_ARGUMENT"),
    ],
)
def test_of_several_error_codes_the_most_telling_counts(codes: list[str], telling: str) -> None:
    for order in permutations(codes):
        result = outcome(400, error(400, "INVALID_ARGUMENT", "", *map(fcm, order)))
        assert result.code == telling


def test_a_404_without_details_is_unclear_and_becomes_the_pushs_own_if_fcm_accepts_others() -> None:
    result = outcome(404, error(404, "NOT_FOUND", "Requested entity was not found."))
    assert (result.disposition, result.is_unclear) == (Disposition.PAUSE, True)
    alone = refused_alone(result)
    assert (alone.disposition, alone.uses_try, alone.is_unclear) == (Disposition.REFUSED, True, False)
    assert alone.code == "NOT_FOUND"
    assert outcome(404, PAGE_404).is_unclear
    assert not outcome(404, error(404, "NOT_FOUND", "", fcm("UNREGISTERED"))).is_unclear
    assert not outcome(403, error(403, "PERMISSION_DENIED", DENIED)).is_unclear


@pytest.mark.parametrize("status", [408, 409, 425, 499, 100, 103, 0, -1, 600, 999, 10**9])
def test_unusual_statuses_are_retried(status: int) -> None:
    result = outcome(status)
    assert (result.disposition, result.delay) == (Disposition.RETRY, 0.0)
    assert result.ambiguous


# --- precedence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name", "details", "disposition"),
    [
        # errorCode before all
        (400, "INVALID_ARGUMENT", [fcm("UNREGISTERED")], Disposition.DROP_TARGET),
        (403, "PERMISSION_DENIED", [fcm("THIRD_PARTY_AUTH_ERROR")], Disposition.PAUSE_PLATFORM),
        (403, "PERMISSION_DENIED", [fcm("QUOTA_EXCEEDED")], Disposition.RETRY),
        (404, "NOT_FOUND", [fcm("UNAVAILABLE")], Disposition.RETRY),
        (500, "INTERNAL", [fcm("INVALID_ARGUMENT")], Disposition.DROP_MESSAGE),
        # error.status before HTTP
        (400, "UNAUTHENTICATED", [], Disposition.REFRESH_AUTH),
        (400, "PERMISSION_DENIED", [], Disposition.PAUSE),
        (403, "RESOURCE_EXHAUSTED", [], Disposition.RETRY),
        (404, "UNAVAILABLE", [], Disposition.RETRY),
        (500, "INVALID_ARGUMENT", [], Disposition.DROP_MESSAGE),
        # a known errorCode is found behind an unknown one and other details
        (404, "NOT_FOUND", [{"@type": ERROR_INFO}, fcm("NEW"), fcm("UNREGISTERED")], Disposition.DROP_TARGET),
        # an errorCode outside FcmError is none
        (404, "NOT_FOUND", [{"@type": ERROR_INFO, "errorCode": "UNREGISTERED"}], Disposition.PAUSE),
        (404, "UNREGISTERED", [], Disposition.PAUSE),
    ],
)
def test_precedence(status: int, name: str, details: list[Detail], disposition: Disposition) -> None:
    assert outcome(status, error(status, name, "", *details)).disposition is disposition


BY_HTTP_CLASS = [
    (400, Disposition.DROP_MESSAGE),
    (401, Disposition.PAUSE),
    (403, Disposition.PAUSE),
    (404, Disposition.PAUSE),
    (409, Disposition.RETRY),
    (418, Disposition.DROP_MESSAGE),
    (429, Disposition.RETRY),
    (500, Disposition.RETRY),
    (503, Disposition.RETRY),
]


@pytest.mark.parametrize(("status", "disposition"), BY_HTTP_CLASS)
def test_with_an_unknown_error_code_the_http_status_decides_and_no_token_is_dropped(
    status: int, disposition: Disposition
) -> None:
    codes = ("SOME_FUTURE_ERROR", "UNSPECIFIED_ERROR", "unregistered", "", None, 5, ["UNREGISTERED"])
    for code in codes:
        body = error(status, "INVALID_ARGUMENT", INVALID_TOKEN, fcm(code), bad_request("message.token"))
        result = outcome(status, body)
        assert result.disposition is disposition, code
        assert result.code == ("UNSPECIFIED_ERROR" if code == "UNSPECIFIED_ERROR" else f"HTTP_{status}"), code
        # A question tells whether FCM refuses everything.
        assert result.is_unclear == (status in (401, 403, 404)), code


@pytest.mark.parametrize(
    ("message", "details"),
    [
        # a text that only quotes the phrase
        (
            f"Invalid value at 'message.data[0].value' (TYPE_STRING), \"{INVALID_TOKEN}\"",
            [fcm("INVALID_ARGUMENT")],
        ),
        (f"Invalid data payload key: {INVALID_TOKEN}", [fcm("INVALID_ARGUMENT")]),
        # the text without FcmError
        (INVALID_TOKEN, []),
        # the text, and a violation on another field
        (INVALID_TOKEN, [fcm("INVALID_ARGUMENT"), bad_request("message.topic")]),
        # the token, and another field
        (INVALID_TOKEN, [fcm("INVALID_ARGUMENT"), bad_request("message.token", "message.android.ttl")]),
        ("", [fcm("INVALID_ARGUMENT"), bad_request("message.token_x")]),
    ],
)
def test_a_token_is_kept_in_doubt(message: str, details: list[Detail]) -> None:
    assert (
        outcome(400, error(400, "INVALID_ARGUMENT", message, *details)).disposition
        is Disposition.DROP_MESSAGE
    )


# --- reasons -------------------------------------------------------------------------------------------


def test_a_400_names_the_field_and_not_the_value() -> None:
    reason = outcome(
        400, error(400, "INVALID_ARGUMENT", VALUE_400, bad_request("message.data[0].value", text=VALUE_400))
    ).reason
    assert reason == "FCM does not accept message.data[0].value"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Android message is too big", "too large"),
        ("Message is too large. The maximum is 2K (2048 bytes).", "too large"),
        ("Request payload size exceeds the limit: 8192 bytes.", "too large"),
        ("Invalid data payload key: from", "reserved"),
        ("Topic name contains invalid characters.", "topic name"),
        ("Request contains an invalid argument.", "does not say why"),
    ],
)
def test_a_400_without_fields_gets_our_own_text(message: str, words: str) -> None:
    reason = outcome(400, error(400, "INVALID_ARGUMENT", message)).reason
    assert words in reason
    assert message not in reason


def test_a_known_phrase_inside_a_quoted_value_is_ignored() -> None:
    text = "Invalid value at 'message.notification.title' (TYPE_STRING), \"too big\""
    body = error(400, "INVALID_ARGUMENT", text, bad_request("message.notification.title"))
    assert outcome(400, body).reason == "FCM does not accept message.notification.title"


@pytest.mark.parametrize(
    "field", [TOKEN, f"message.{TOKEN}", "message.data[secret value]", "message.a\nb", "x" * 999]
)
def test_what_is_no_field_name_is_not_shown(field: str) -> None:
    reason = outcome(
        400, error(400, "INVALID_ARGUMENT", "", bad_request(field, "message.android.ttl"))
    ).reason
    assert reason == "FCM does not accept message.android.ttl"


@pytest.mark.parametrize(
    ("status", "name"), [(403, "PERMISSION_DENIED"), (401, "UNAUTHENTICATED"), (404, "NOT_FOUND")]
)
def test_what_operators_need_is_kept(status: int, name: str) -> None:
    message = f"{DENIED}\r\n\x00 for push@my-project-0123456789.iam.gserviceaccount.com"
    reason = outcome(status, error(status, name, message)).reason
    assert f"{DENIED} for push@my-project-0123456789.iam.gserviceaccount.com" in reason


_TOKEN_LIKE = (
    st.from_regex(r"[a-zA-Z0-9_-]{22}:APA91b[a-zA-Z0-9_-]{134}", fullmatch=True)
    | st.from_regex(r"ya29\.a0Af[a-zA-Z0-9_-]{120}", fullmatch=True)
    | st.from_regex(r"[0-9a-f]{31}[0-9][0-9a-f]{32}", fullmatch=True)
)


@given(_TOKEN_LIKE, st.sampled_from([400, 401, 403, 404, 429, 500, 503]), st.text(max_size=400))
def test_no_reason_shows_a_token(token: str, status: int, noise: str) -> None:
    message = f"{noise} {token}"
    reason = outcome(status, error(status, "", message, bad_request(token, text=message))).reason
    for part in re.findall(r"[A-Za-z0-9_-]{30,}", token):
        assert part not in reason


# --- when to come back ---------------------------------------------------------------------------------

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
NOW = 1792567680.0  # DATE


@pytest.mark.parametrize(
    ("headers", "now", "delay"),
    [
        ({"Retry-After": "120"}, None, 120.0),
        ({"retry-after": "120"}, None, 120.0),
        ({"RETRY-AFTER": " 120 "}, None, 120.0),
        ({"Retry-After": "120.5"}, None, 120.5),
        ({"Retry-After": "0"}, None, 0.0),
        ({"Retry-After": "999999999999"}, None, LONGEST_DELAY),
        # a date counts from the answer's Date header, whatever our clock says
        ({"Retry-After": "Wed, 21 Oct 2026 07:30:00 GMT", "Date": DATE}, None, 120.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:30:00 GMT", "date": DATE}, NOW + 1e6, 120.0),
        ({"Retry-After": "Wednesday, 21-Oct-26 07:30:00 GMT", "Date": DATE}, None, 120.0),
        ({"Retry-After": "Wed Oct 21 07:30:00 2026", "Date": DATE}, None, 120.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:20:00 GMT", "Date": DATE}, None, 0.0),
        ({"Retry-After": "Sat, 21 Oct 9996 07:20:00 GMT", "Date": DATE}, None, LONGEST_DELAY),
        # without that header, from the given time
        ({"Retry-After": "Wed, 21 Oct 2026 07:30:00 GMT"}, NOW, 120.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:30:00 GMT", "Date": "today"}, NOW, 120.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:30:00 GMT"}, None, 60.0),
        # unreadable: as if absent
        *(
            ({"Retry-After": value, "Date": DATE}, NOW, 60.0)
            for value in (
                "",
                "soon",
                "-5",
                "+5",
                "nan",
                "inf",
                "1e3",
                "0x10",
                "١٢",
                "1" * 5000,
                "Wed, 99 Oct",
            )
        ),
    ],
)
def test_retry_after(headers: dict[str, str], now: float | None, delay: float) -> None:
    assert classify(429, headers, b"", now=now).delay == delay


def test_a_date_without_a_zone_is_in_utc_whatever_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Asia/Tokyo")
            time.tzset()
            headers = {"Retry-After": "Wed Oct 21 07:30:00 2026", "Date": DATE}
            assert classify(429, headers, b"").delay == 120.0
    finally:
        time.tzset()


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ambiguous", [False, True])
def test_no_answer(ambiguous: bool) -> None:
    fault = SendFault("TIMEOUT", "no answer within 30 s", ambiguous=ambiguous)
    assert from_send_fault(fault) == Outcome(
        Disposition.RETRY, "TIMEOUT", "no answer within 30 s", ambiguous=ambiguous
    )


def test_no_access_token() -> None:
    assert from_auth_fault(AuthFault("INVALID_GRANT", "the key was deleted", permanent=True)) == Outcome(
        Disposition.PAUSE, "INVALID_GRANT", "the key was deleted", uses_try=False
    )
    assert from_auth_fault(AuthFault("OAUTH_DOWN", "answered 503", permanent=False)) == Outcome(
        Disposition.RETRY, "OAUTH_DOWN", "answered 503", uses_try=False
    )


def test_faults_say_what_they_are() -> None:
    assert str(SendFault("DNS", "cannot resolve host", ambiguous=False)) == "DNS: cannot resolve host"
    assert str(AuthFault("BAD_KEY", "not a key", permanent=True)) == "BAD_KEY: not a key"


# --- for any answer ------------------------------------------------------------------------------------

CODES = {
    *("OK", "UNREGISTERED", "SENDER_ID_MISMATCH", "THIRD_PARTY_AUTH_ERROR", "UNSPECIFIED_ERROR"),
    *("INVALID_ARGUMENT", "QUOTA_EXCEEDED", "UNAVAILABLE", "INTERNAL", "HTTP_OTHER"),
    *("FAILED_PRECONDITION", "OUT_OF_RANGE", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "ABORTED"),
    *("ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "CANCELLED", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"),
    "DEADLINE_EXCEEDED",
    *(f"HTTP_{status}" for status in range(100, 600)),
}

_WORDS = st.sampled_from(sorted(CODES)) | st.text(max_size=20)
_DETAILS = st.fixed_dictionaries(
    {"@type": st.sampled_from([FCM_ERROR, BAD_REQUEST, ERROR_INFO]) | JSON},
    optional={
        "errorCode": _WORDS | JSON,
        "fieldViolations": st.lists(
            st.fixed_dictionaries({"field": st.just("message.token") | st.text(max_size=20) | JSON}) | JSON,
            max_size=3,
        )
        | JSON,
    },
)
_ERRORS = st.fixed_dictionaries(
    {},
    optional={
        "code": JSON,
        "message": st.just(INVALID_TOKEN) | st.text(max_size=600) | JSON,
        "status": _WORDS | JSON,
        "details": st.lists(_DETAILS | JSON, max_size=4) | JSON,
    },
)
_BODIES = (
    st.binary(max_size=80)
    | st.sampled_from([PAGE_404, PAGE_502, b"\xff\xfe{}", b'{"error": {"message": "\xff"}}'])
    | st.fixed_dictionaries({"error": _ERRORS | JSON}).map(lambda body: json.dumps(body).encode())
    | JSON.map(lambda body: json.dumps(body).encode())
)
_HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "retry-after", "Date", "DATE"]) | st.text(max_size=12),
    st.sampled_from([DATE, "Wed, 21 Oct 9999 07:28:00 -2300", "5", "1" * 50]) | st.text(max_size=40),
    max_size=4,
)


@given(st.integers(100, 599) | st.integers(), _HEADERS, _BODIES, st.none() | st.floats())
@example(400, {}, b"[" * 100_000, None)
@example(400, {}, b'{"error":' * 100_000, None)
def test_any_answer_has_a_safe_and_bounded_outcome(
    status: int, headers: dict[str, str], body: bytes, now: float | None
) -> None:
    result = classify(status, headers, body, now=now)
    assert result.disposition is not Disposition.EXPIRED
    is_page = bool(body.strip()) and not is_json(body)
    assert (result.disposition is Disposition.ACCEPTED) == (200 <= status < 300 and not is_page)
    assert result.code in CODES
    assert 0 < len(result.reason) < 700
    assert result.reason.isprintable()
    assert math.isfinite(result.delay)
    assert (
        0.0 <= result.delay <= LONGEST_DELAY
        if result.disposition is Disposition.RETRY
        else result.delay == 0.0
    )
    assert result.uses_try == (
        result.disposition not in (Disposition.PAUSE, Disposition.PAUSE_PLATFORM, Disposition.REFRESH_AUTH)
    )
    assert not result.ambiguous or result.disposition is Disposition.RETRY or 200 <= status < 300
    assert result.limit is None or result.disposition is Disposition.RETRY
    if result.disposition is Disposition.DROP_TARGET:
        assert (
            b"UNREGISTERED" in body
            or b"SENDER_ID_MISMATCH" in body
            or b"INVALID_ARGUMENT" in body
            or (status == 400 and b"message.token" in body)
        )
