"""Reads ``{"error": {"code", "message", "status", "details"}}``, the body of FCM's error answers. Pure.

It can read any body. A field that is missing or has the wrong type is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_APNS_ERROR = "type.googleapis.com/google.firebase.fcm.v1.ApnsError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

# The HTTP status that each known code stands for. Source: google.rpc.Code and FCM's ErrorCode.
_STANDS_FOR = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "QUOTA_EXCEEDED": 429,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# The most specific code first, because one answer may have several.
_FCM_CODES = (
    "UNREGISTERED",
    "SENDER_ID_MISMATCH",
    "THIRD_PARTY_AUTH_ERROR",
    "APNS_AUTH_ERROR",  # the former name of the one before: firebase-admin-node, pull request 678
    "QUOTA_EXCEEDED",
    "INVALID_ARGUMENT",
    "UNAVAILABLE",
    "INTERNAL",
    "UNSPECIFIED_ERROR",
)


@dataclass(slots=True, frozen=True)
class QuotaViolation:
    """One violation of a QuotaFailure detail."""

    subject: str
    description: str


@dataclass(slots=True, frozen=True)
class ErrorBody:
    """The readable part of an error answer's body."""

    is_google: bool
    """It has the form of Google's errors. Otherwise something answers in FCM's place, or in front of it."""
    is_fcm: bool
    """There is an FcmError detail, whatever it says."""
    fcm_code: str | None
    """Its errorCode, if it is a known one; of several the most specific."""
    apple_reason: str
    """The ``reason`` of the ApnsError detail: what Apple has answered to FCM."""
    apple_status: int | None
    """The ``statusCode`` of the ApnsError detail."""
    status: str | None
    """``error.status``, if it is a known one and there is no FcmError, which would come first."""
    message: str
    fields: tuple[str, ...]
    """The fields that the BadRequest detail names."""
    reasons: tuple[str, ...]
    """The ``reason`` of each detail that has one, as ErrorInfo does."""
    quotas: tuple[QuotaViolation, ...]

    @property
    def stands_for(self) -> int | None:
        """The HTTP status that the code stands for; None: the answer's own status decides."""
        return _STANDS_FOR.get(self.fcm_code or self.status or "")


def read_error(body: bytes) -> ErrorBody:
    """Reads a body. Never raises."""
    error = _dict(_dict(_json(body)).get("error"))
    details = [_dict(item) for item in _list(error.get("details"))]
    codes = [item.get("errorCode") for item in details if item.get("@type") == _FCM_ERROR]
    apple = next((item for item in details if item.get("@type") == _APNS_ERROR), {})
    apple_status = apple.get("statusCode")
    status = error.get("status")
    return ErrorBody(
        is_google=bool(error),
        is_fcm=bool(codes),
        fcm_code=next((code for code in _FCM_CODES if code in codes), None),
        apple_reason=_text(apple.get("reason")),
        apple_status=apple_status if isinstance(apple_status, int) else None,
        status=status if isinstance(status, str) and status in _STANDS_FOR and not codes else None,
        message=_text(error.get("message")),
        fields=tuple(
            field
            for violation in _violations(details, _BAD_REQUEST, "fieldViolations")
            if (field := _text(violation.get("field")))
        ),
        reasons=tuple(reason for item in details if (reason := _text(item.get("reason")))),
        quotas=tuple(
            QuotaViolation(_text(violation.get("subject")), _text(violation.get("description")))
            for violation in _violations(details, _QUOTA_FAILURE, "violations")
        ),
    )


def is_json(body: bytes) -> bool:
    """Whether a body is JSON of any form."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def _violations(details: list[dict[str, Any]], detail_type: str, name: str) -> list[dict[str, Any]]:
    return [
        _dict(violation)
        for item in details
        if item.get("@type") == detail_type
        for violation in _list(item.get(name))
    ]


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
