"""The answers of FCM HTTP v1 and of Google's token endpoint, byte for byte as far as they are known.

Pure: no I/O. Sources: Firebase, "FCM error codes" and the ``ErrorCode`` reference; Google Cloud,
``google.rpc`` error details; RFC 6749 section 5.2; and bodies quoted in public reports of the Firebase
SDKs. What is not documented is marked "inferred".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

JSON_TYPE = "application/json; charset=UTF-8"
HTML_TYPE = "text/html; charset=UTF-8"
TEXT_TYPE = "text/plain; charset=utf-8"

FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
APNS_ERROR = "type.googleapis.com/google.firebase.fcm.v1.ApnsError"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

INVALID_TOKEN_TEXT = "The registration token is not a valid FCM registration token"  # noqa: S105
_SIGN_IN = "See https://developers.google.com/identity/sign-in/web/devconsole-project."
_EXPECTED = (
    f"Expected OAuth 2 access token, login cookie or other valid authentication credential. {_SIGN_IN}"
)

_MISSING_TEXT = f"Request is missing required authentication credential. {_EXPECTED}"

DEAD_PREFIX = "dead-"
"""The emulator answers UNREGISTERED for every registration token with this prefix. No rule is needed."""

Detail = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Answer:
    """One HTTP answer, ready to be written."""

    status: int
    body: bytes
    code: str | None = None
    """``errorCode`` of FcmError, else ``error.status`` (or the OAuth ``error``); None for a success."""
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)

    def with_retry_after(self, value: str | None) -> Answer:
        """The same answer with the header ``Retry-After: value``; unchanged if ``value`` is None."""
        if value is None:
            return self
        return replace(self, headers={**self.headers, "Retry-After": value})


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def error(
    http: int, status: str, message: str, *details: Detail, headers: Mapping[str, str] | None = None
) -> Answer:
    """A ``google.rpc.Status`` as Google's JSON front end writes it; ``details`` is left out if empty."""
    body: dict[str, Any] = {"code": http, "message": message, "status": status}
    if details:
        body["details"] = list(details)
    code = next((d["errorCode"] for d in details if d["@type"] == FCM_ERROR), status)
    return Answer(http, _json({"error": body}), code, headers=headers or {})


def fcm_error(code: str) -> Detail:
    """The ``FcmError`` detail."""
    return {"@type": FCM_ERROR, "errorCode": code}


def apns_error(status: int, reason: str) -> Detail:
    """The ``ApnsError`` detail: what Apple answered to FCM."""
    return {"@type": APNS_ERROR, "statusCode": status, "reason": reason}


def bad_request(*violations: tuple[str | None, str]) -> Detail:
    """The ``BadRequest`` detail; a violation without a field has only its description."""
    detail: Detail = {"@type": BAD_REQUEST}
    if violations:
        detail["fieldViolations"] = [
            {"description": text} if name is None else {"field": name, "description": text}
            for name, text in violations
        ]
    return detail


def _error_info(reason: str, domain: str, **metadata: str) -> Detail:
    return {"@type": ERROR_INFO, "reason": reason, "domain": domain, "metadata": metadata}


def _html(status: int, title: str, text: str) -> Answer:
    page = (
        "<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n"
        f"<title>Error {status} ({title})!!1</title>\n"
        f"<p><b>{status}.</b> <ins>That\N{RIGHT SINGLE QUOTATION MARK}s an error.</ins>\n"
        f"<p>{text} <ins>That\N{RIGHT SINGLE QUOTATION MARK}s all we know.</ins>\n"
    )
    return Answer(status, page.encode(), None, HTML_TYPE)


def sent(name: str) -> Answer:
    """200 with the message's name."""
    return Answer(200, b'{\n  "name": "' + name.encode() + b'"\n}\n')


def malformed(violations: list[tuple[str | None, str]]) -> Answer:
    """400 of the JSON front end, before FCM sees the message: BadRequest alone, no FcmError."""
    return error(400, "INVALID_ARGUMENT", "\n".join(text for _, text in violations), bad_request(*violations))


def invalid(name: str, text: str) -> Answer:
    """400 of FCM itself: BadRequest, then FcmError INVALID_ARGUMENT (the order FCM uses for these)."""
    return error(400, "INVALID_ARGUMENT", text, bad_request((name, text)), fcm_error("INVALID_ARGUMENT"))


def invalid_token(field: str = "message.token") -> Answer:
    """400: this is not a registration token, or not an installation id. The field ``message.fid`` is inferred."""
    return error(
        400,
        "INVALID_ARGUMENT",
        INVALID_TOKEN_TEXT,
        fcm_error("INVALID_ARGUMENT"),
        bad_request((field, "Invalid registration token")),
    )


def too_big(text: str = "Android message is too big") -> Answer:
    """400: the payload is over the limit. The BadRequest detail names no field."""
    return error(400, "INVALID_ARGUMENT", text, bad_request(), fcm_error("INVALID_ARGUMENT"))


def request_too_large(limit: int) -> Answer:
    """400 of the front end: the HTTP request body is over ``limit`` bytes."""
    return error(400, "INVALID_ARGUMENT", f"Request payload size exceeds the limit: {limit} bytes.")


def _unauthenticated(message: str, reason: str, *, challenge: str = "") -> Answer:
    info = _error_info(
        reason,
        "googleapis.com",
        method="google.firebase.fcm.v1.FcmService.SendMessage",
        service="fcm.googleapis.com",
    )
    headers = {"WWW-Authenticate": f'Bearer realm="https://accounts.google.com/"{challenge}'}
    return error(401, "UNAUTHENTICATED", message, info, headers=headers)


def credentials_missing() -> Answer:
    """401: the header ``Authorization: Bearer`` is missing."""
    return _unauthenticated(_MISSING_TEXT, "CREDENTIALS_MISSING")


def credentials_invalid(reason: str) -> Answer:
    """401: the access token was never issued, or has expired (``reason`` ACCESS_TOKEN_EXPIRED)."""
    return _unauthenticated(
        f"Request had invalid authentication credentials. {_EXPECTED}",
        reason,
        challenge=', error="invalid_token"',
    )


def permission_denied(project: str, permission: str = "cloudmessaging.messages.create") -> Answer:
    """403: this service account does not have the permission for ``project``, or the project does not exist."""
    return error(
        403,
        "PERMISSION_DENIED",
        f"Permission '{permission}' denied on resource "
        f"'//cloudresourcemanager.googleapis.com/projects/{project}' (or it may not exist).",
        _error_info(
            "IAM_PERMISSION_DENIED",
            "cloudresourcemanager.googleapis.com",
            permission=permission,
            resource=f"projects/{project}",
        ),
    )


def unregistered() -> Answer:
    """404: the app instance no longer exists."""
    return error(404, "NOT_FOUND", "Requested entity was not found.", fcm_error("UNREGISTERED"))


def not_found_html() -> Answer:
    """404 of the front end: the URL does not exist."""
    return _html(404, "Not Found", "The requested URL was not found on this server.")


def unknown_code(status: int) -> Answer:
    """An ``errorCode`` that no version of the reference lists, under any HTTP status."""
    return error(
        status,
        _STATUS_NAMES.get(status, "UNKNOWN"),
        "An error of a new kind.",
        fcm_error("SOME_FUTURE_ERROR"),
    )


_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _quota(project: str, text: str) -> Answer:
    violation = {"subject": f"project:{project}", "description": text}
    failure = {"@type": QUOTA_FAILURE, "violations": [violation]}
    return error(429, "RESOURCE_EXHAUSTED", text, fcm_error("QUOTA_EXCEEDED"), failure)


def _front_end_quota(project: str) -> Answer:
    """429 of Google's front end, before the request reaches FCM."""
    text = (
        "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of service "
        f"'fcm.googleapis.com' for consumer 'projects/{project}'."
    )
    info = _error_info(
        "RATE_LIMIT_EXCEEDED", "googleapis.com", service="fcm.googleapis.com", consumer=f"projects/{project}"
    )
    return error(429, "RESOURCE_EXHAUSTED", text, info)


APPLE_STATUS: Mapping[str, int] = {
    "BadCollapseId": 400,
    "BadDeviceToken": 400,
    "BadExpirationDate": 400,
    "BadPriority": 400,
    "BadTopic": 400,
    "DeviceTokenNotForTopic": 400,
    "InvalidPushType": 400,
    "TopicDisallowed": 400,
    "SomeFutureReason": 400,
    "BadCertificate": 403,
    "BadCertificateEnvironment": 403,
    "BadEnvironmentKeyInToken": 403,
    "ExpiredProviderToken": 403,
    "InvalidProviderToken": 403,
    "MissingProviderToken": 403,
    "ExpiredToken": 410,
    "Unregistered": 410,
    "PayloadTooLarge": 413,
    "TooManyProviderTokenUpdates": 429,
    "TooManyRequests": 429,
    "InternalServerError": 500,
    "ServiceUnavailable": 503,
    "Shutdown": 503,
}
"""Apple's reasons for a refusal, each with its HTTP status. Source: Apple, "Handling notification responses from APNs".
Users of FCM report ``BadEnvironmentKeyInToken``. ``SomeFutureReason`` is invented: Apple does not send it."""

_THIRD_PARTY_TEXT = "Auth error from APNS or Web Push Service"
_INVALID_TEXT = "Request contains an invalid argument."


def refused_by_apple(reason: str) -> Answer:
    """FCM's answer when Apple refuses the message; ``reason`` is one of :data:`APPLE_STATUS`.

    Public reports show such bodies, all without a BadRequest detail: 400 in xtrinch/fcm-django#201, 401 and 410 in the
    tests of other senders. The bodies for other statuses are inferred from FCM's own errors.
    """
    status = APPLE_STATUS[reason]
    if status == 403:
        http, name, code, text = 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", _THIRD_PARTY_TEXT
    elif status == 429:
        http, name, code, text = 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "Quota exceeded."
    elif status == 500:
        http, name, code, text = 500, "INTERNAL", "INTERNAL", "Internal error encountered."
    elif status == 503:
        http, name, code, text = 503, "UNAVAILABLE", "UNAVAILABLE", "The service is currently unavailable."
    else:
        text = "APNs device token is disabled." if status == 410 else _INVALID_TEXT
        http, name, code = 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"
    return error(http, name, text, fcm_error(code), apns_error(status, reason))


_FIELD_TEXT = "Invalid value at 'message.data[0].value' (TYPE_STRING), 12"

# Each function takes the project id. The names are those of the faults in listener.emulator.faults.
ERRORS: Mapping[str, Callable[[str], Answer]] = {
    "invalid_token": lambda _: invalid_token(),
    "invalid_argument": lambda _: invalid("message", _INVALID_TEXT),
    "invalid_field": lambda _: malformed([("message.data[0].value", _FIELD_TEXT)]),
    "too_big": lambda _: too_big(),
    "no_details_400": lambda _: error(400, "INVALID_ARGUMENT", _INVALID_TEXT),
    "bad_request_html": lambda _: _html(
        400, "Bad Request", "Your client has issued a malformed or illegal request."
    ),
    "bad_request_text": lambda _: Answer(400, b"400 Bad Request", None, TEXT_TYPE),
    "bad_request_json": lambda _: Answer(400, b'{"message":"Bad Request"}'),
    "several_codes": lambda _: error(
        400, "INVALID_ARGUMENT", _INVALID_TEXT, fcm_error("INVALID_ARGUMENT"), fcm_error("UNREGISTERED")
    ),
    "third_party_auth": lambda _: error(
        401, "UNAUTHENTICATED", _THIRD_PARTY_TEXT, fcm_error("THIRD_PARTY_AUTH_ERROR")
    ),
    # firebase/firebase-admin-node#3215.
    "third_party_auth_missing_credentials": lambda _: error(
        401, "UNAUTHENTICATED", _MISSING_TEXT, fcm_error("THIRD_PARTY_AUTH_ERROR")
    ),
    # The name of THIRD_PARTY_AUTH_ERROR until 2019; the SDKs still know it. The text is inferred.
    "apns_auth_error": lambda _: error(
        401, "UNAUTHENTICATED", _THIRD_PARTY_TEXT, fcm_error("APNS_AUTH_ERROR")
    ),
    "unauthenticated": lambda _: credentials_invalid("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    "token_expired": lambda _: credentials_invalid("ACCESS_TOKEN_EXPIRED"),
    "sender_id_mismatch": lambda _: error(
        403, "PERMISSION_DENIED", "SenderId mismatch", fcm_error("SENDER_ID_MISMATCH")
    ),
    "permission_denied": permission_denied,
    "unregistered": lambda _: unregistered(),
    # In March 2021 FCM gave this answer for valid tokens for several days.
    "not_found_no_details": lambda _: error(404, "NOT_FOUND", "Requested entity was not found."),
    "not_found_html": lambda _: not_found_html(),
    "quota_exceeded": lambda project: _quota(project, "Quota exceeded."),
    "topic_quota_exceeded": lambda project: _quota(project, "Topic quota exceeded."),
    "device_quota_exceeded": lambda project: _quota(project, "Device message rate exceeded."),
    "project_quota_exceeded": _front_end_quota,
    "internal": lambda _: error(500, "INTERNAL", "Internal error encountered.", fcm_error("INTERNAL")),
    "bad_gateway_html": lambda _: _html(
        502,
        "Server Error",
        "The server encountered a temporary error and could not complete your request.<p>"
        "Please try again in 30 seconds.",
    ),
    "gateway_timeout": lambda _: error(
        504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."
    ),
    "unavailable": lambda _: error(
        503, "UNAVAILABLE", "The service is currently unavailable.", fcm_error("UNAVAILABLE")
    ),
    "unavailable_no_details": lambda _: error(503, "UNAVAILABLE", "The service is currently unavailable."),
}


def oauth_token(access_token: str, expires_in: int) -> Answer:
    """200 of the token endpoint. ``expires_in`` in seconds."""
    body = {"access_token": access_token, "expires_in": expires_in, "token_type": "Bearer"}
    return Answer(200, orjson.dumps(body))


def oauth_error(code: str, description: str, status: int = 400) -> Answer:
    """An error of the token endpoint. Source: RFC 6749, section 5.2."""
    return Answer(status, _json({"error": code, "error_description": description}), code)


OAUTH_ERRORS: Mapping[str, Answer] = {
    "oauth_invalid_grant": oauth_error("invalid_grant", "Invalid JWT Signature."),
    "oauth_temporarily_unavailable": oauth_error(
        "temporarily_unavailable", "The service is temporarily unavailable."
    ),
    "oauth_server_error_400": oauth_error("server_error", "An internal error occurred."),
    "oauth_internal_failure_400": oauth_error("internal_failure", "Backend Error"),
    "oauth_rate_limit_exceeded": oauth_error("rate_limit_exceeded", "Rate Limit Exceeded", 403),
    "oauth_server_error": oauth_error("internal_failure", "Backend Error", 500),
}
"""google-auth repeats a request after each of these codes. The texts are inferred."""
