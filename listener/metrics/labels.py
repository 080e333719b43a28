"""The values of labels that are known before anything happens.

A series that is born with its first event hides that event: increase() and rate() see a counter only from its second
sample on. So every known series exists from the start, with 0.
"""

from __future__ import annotations

from typing import Final

PLATFORMS: Final = ("android", "ios", "web", "other")
"""Platforms of devices. other: a view of the application's own may call a platform anything."""

TARGETS: Final = (*PLATFORMS, "unknown", "topic")
"""Where a request goes. unknown: a registration token without a platform. topic: a topic or a condition."""

PRIORITIES: Final = ("high", "normal")

PAUSES: Final = ("refused", "away", "token_loss", "no_access_token")

STATUSES: Final = ("pending", "sent", "failed", "dead", "expired")
"""Statuses that a settlement gives a row."""

STATEMENTS: Final = ("claim", "settle", "read")
"""Statements that are timed."""

FAILING_STATEMENTS: Final = (
    "claim", "settle", "read", "look", "unwritable", "quota", "peers", "polling", "purge",
)  # fmt: skip

# --- codes -------------------------------------------------------------------------------------------------

FCM: Final = (
    "APNS_AUTH_ERROR", "INTERNAL", "INVALID_ARGUMENT", "QUOTA_EXCEEDED", "SENDER_ID_MISMATCH", "THIRD_PARTY_AUTH_ERROR",
    "UNAVAILABLE", "UNREGISTERED", "UNSPECIFIED_ERROR",
)  # fmt: skip
"""FCM's own codes. Source: FCM HTTP v1, ErrorCode."""

GOOGLE: Final = (
    "ABORTED", "ALREADY_EXISTS", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "NOT_FOUND",
    "OUT_OF_RANGE", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNIMPLEMENTED", "UNKNOWN",
)  # fmt: skip
"""Codes of every Google API. Source: google.rpc.Code; its other codes are among FCM's own."""

HTTP: Final = ("HTTP_400", "HTTP_403", "HTTP_404", "HTTP_429", "HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504")
"""Codes of answers that are not in FCM's JSON. Every HTTP status has a code; these are the frequent ones."""

FAULTS: Final = ("CONNECT", "DNS", "PROTOCOL", "PROXY", "RESET", "TIMEOUT", "TLS")
"""Codes of requests without an answer."""

OAUTH: Final = (
    "OAUTH_CONNECT", "OAUTH_CREDENTIALS", "OAUTH_PROTOCOL", "OAUTH_REFUSED", "OAUTH_TIMEOUT", "OAUTH_UNAVAILABLE",
)  # fmt: skip
"""Codes of failures to get an access token."""

INVALID: Final = (
    "EMPTY_MESSAGE", "INVALID_CONDITION", "INVALID_DATA", "INVALID_OPTIONS", "INVALID_PRIORITY", "INVALID_PUSH",
    "INVALID_TARGET", "INVALID_TOKEN", "INVALID_TOPIC", "NO_TARGET", "PAYLOAD_TOO_LARGE", "QUARANTINED",
    "TITLE_MISSING",
)  # fmt: skip
"""Codes of pushes that are refused before any request."""

OURS: Final = ("INTERNAL_ERROR", "INVALID_TEXT", "NOT_WRITTEN", "NO_RECIPIENTS", "TOKEN_LOSS")

DEAD: Final = (*FCM, *GOOGLE, *HTTP, *FAULTS, *INVALID, *OURS)
"""What a push may be given up for."""

RETRIED: Final = (*FCM, *GOOGLE, *HTTP, *FAULTS, "INTERNAL_ERROR")
"""What a push may be tried again for."""

DISABLED: Final = ("INVALID_ARGUMENT", "SENDER_ID_MISMATCH", "UNREGISTERED")
"""What a registration token may be disabled for."""

_PASSING: Final = (
    "ABANDONED", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INTERNAL_ERROR", "QUOTA_EXCEEDED",
    "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN", "HTTP_429", "HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504", *FAULTS,
    *OAUTH,
)  # fmt: skip

SENDS: Final = {
    "accepted": ("OK",),
    "retry": _PASSING,
    "drop_message": ("INVALID_ARGUMENT",),
    "drop_target": DISABLED,
    "pause": ("NOT_FOUND", "PERMISSION_DENIED", "TOKEN_LOSS", "UNAUTHENTICATED", *OAUTH),
    "pause_platform": ("APNS_AUTH_ERROR", "THIRD_PARTY_AUTH_ERROR"),
    "misfit": ("THIRD_PARTY_AUTH_ERROR",),
    "refused": ("NOT_FOUND",),
    "expired": ("EXPIRED",),
}
"""The codes of answers by their outcomes; the frequent ones."""


def platform_of(platform: str | None) -> str:
    """The label of a device's platform, which may be any text."""
    if platform is None:
        return "unknown"
    return platform if platform in PLATFORMS else "other"
