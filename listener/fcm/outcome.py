"""What an answer of FCM, or the lack of one, means for a push. Pure.

Sources: Firebase, "FCM error codes" and "Best practices for sending FCM messages at scale"; the
``ErrorCode`` reference of the HTTP v1 API; ``google.rpc.Status`` and its error details; error bodies quoted
in public reports of the Firebase SDKs. What none of them says is marked "inferred".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from listener.fcm.fault import AuthFault, SendFault

QUOTA_DELAY: Final = 60.0
"""Seconds before a retry after 429 without Retry-After. Source: Firebase, "FCM error codes"."""

LONGEST_DELAY: Final = 28 * 86400.0
"""Seconds; a longer Retry-After is cut to this. FCM keeps no message longer, so no push can need more."""

_TEXT_LIMIT = 300

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"


class Disposition(StrEnum):
    """What to do after one attempt at one target."""

    ACCEPTED = "accepted"
    """FCM has taken the message. Never sent again."""
    RETRY = "retry"
    """Send again after ``delay``."""
    DROP_MESSAGE = "drop_message"
    """This push can never work, whatever the target."""
    DROP_TARGET = "drop_target"
    """This registration token can never work: disable it."""
    REFRESH_AUTH = "refresh_auth"
    """Get a new access token and send once more at once; if that is refused too, pause."""
    PAUSE = "pause"
    """Our configuration is wrong: stop sending, and probe again later."""
    PAUSE_PLATFORM = "pause_platform"
    """FCM's credentials for APNs or web push are wrong: stop sending to that platform."""
    EXPIRED = "expired"
    """The push has lost its meaning. Never said by an answer: see the retry policy."""


class Limit(StrEnum):
    """Whose quota is used up, as far as an answer says so."""

    PROJECT = "project"
    """Everything that is sent for the project: too much at once."""
    TARGET = "target"
    """One device, or one topic: says nothing about the rate of everything else."""
    UNKNOWN = "unknown"


# One is made for each push, and a frozen one takes four times as long.
@dataclass(slots=True)
class Outcome:
    """The meaning of one attempt at one target. Not to be changed.

    Attributes:
        kind: what to do.
        code: a word of a bounded vocabulary, for ``error_code`` and metric labels: "OK"; an error code of
            FCM or of ``google.rpc`` known here; "HTTP_502" and the like; the code of a fault.
        reason: what is wrong and what to do about it, for a person. Holds neither token nor payload.
        http_status: the status of the answer; None if there was none.
        message_id: FCM's name for the accepted message, "projects/P/messages/ID"; None if unknown.
        delay: seconds that the answer asks to wait before the next try; 0 if it asks nothing. The least wait
            before any retry is the retry policy's.
        ambiguous: whether the message may have been delivered although it was not accepted.
        uses_try: whether this counts against the push's tries.
        limit: the quota that is used up, so that the failure is no sign of an outage; None: none is.
    """

    disposition: Disposition
    code: str
    reason: str
    http_status: int | None = None
    message_id: str | None = None
    delay: float = 0.0
    ambiguous: bool = False
    uses_try: bool = True
    limit: Limit | None = None


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> Outcome:
    """The meaning of an HTTP answer to ``messages:send``. Never raises, whatever the answer.

    The ``errorCode`` of an FcmError detail decides first, then ``error.status``, then the HTTP status; an
    errorCode not known here counts for nothing, and then only the HTTP status decides and no target is
    dropped.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without regard to case.
        body: the answer's body.
        now: Unix time, to count a Retry-After date from if the answer has no usable Date header of its own.
    """
    if 200 <= status < 300:
        # Inferred: a success without a readable name is a success; sending again would show the push twice.
        return Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", status, message_id=_message_name(body))
    error = _read_error(body)
    match error.fcm_code:
        case "UNREGISTERED":
            return Outcome(
                Disposition.DROP_TARGET,
                "UNREGISTERED",
                "FCM no longer knows this registration token (the app was removed, or its token replaced); "
                "nothing to do, the app registers anew when it next starts",
                status,
            )
        case "SENDER_ID_MISMATCH":
            return Outcome(
                Disposition.DROP_TARGET,
                "SENDER_ID_MISMATCH",
                "the registration token belongs to another Firebase project; build the app with the "
                "configuration of the project that FCM_PROJECT_ID names",
                status,
            )
        case "THIRD_PARTY_AUTH_ERROR":
            return Outcome(
                Disposition.PAUSE_PLATFORM,
                "THIRD_PARTY_AUTH_ERROR",
                "Apple or the web push service refuses FCM's credentials; renew the APNs key or the web push "
                "certificate in the Firebase console, under Project settings, Cloud Messaging"
                + _quoted(error.message),
                status,
                uses_try=False,
            )
    code = error.fcm_code or error.status or _http_code(status)
    return _by_http(error.stands_for or status, status, code, error, _Timing(headers, body, now))


def from_send_fault(fault: SendFault) -> Outcome:
    """The meaning of a request that brought no answer: try again."""
    return Outcome(Disposition.RETRY, fault.code, fault.reason, ambiguous=fault.ambiguous)


def from_auth_fault(fault: AuthFault) -> Outcome:
    """The meaning of having no access token: nothing was sent, so no attempt is used."""
    if fault.permanent:
        return Outcome(Disposition.PAUSE, fault.code, fault.reason, uses_try=False)
    return Outcome(Disposition.RETRY, fault.code, fault.reason, uses_try=False)


def _by_http(meaning: int, status: int, code: str, error: _Error, timing: _Timing) -> Outcome:
    """The outcome for the HTTP status ``meaning``; ``status`` is the one that really came."""
    match meaning:
        case 400:
            return _invalid(status, code, error)
        case 401:
            return Outcome(
                Disposition.REFRESH_AUTH,
                code,
                "FCM refused the access token" + _quoted(error.message),
                status,
                uses_try=False,
            )
        case 403:
            return _pause(
                status,
                code,
                "this service account may not send for this project: check FCM_PROJECT_ID, enable the "
                "Firebase Cloud Messaging API there, and grant cloudmessaging.messages.create (role Firebase "
                "Cloud Messaging API Admin)" + _quoted(error.message),
            )
        case 404:
            return _pause(
                status,
                code,
                "no such project or URL: check FCM_PROJECT_ID and FCM_ENDPOINT" + _quoted(error.message),
            )
        case 413 | 414 | 431:
            return Outcome(Disposition.DROP_MESSAGE, code, _TOO_LARGE, status)
        case 429:
            return Outcome(
                Disposition.RETRY,
                code,
                "an FCM quota is used up" + _quoted(error.message),
                status,
                delay=timing.delay(otherwise=QUOTA_DELAY),
                limit=_limit(error),
            )
        case 408 | 409 | 425 | 499:
            return _try_again(status, code, "the request was cut short", timing)
        case _ if 500 <= meaning < 600:
            return _try_again(status, code, "FCM or its front end is in trouble", timing)
        case _ if 400 <= meaning < 500 and error.is_fcm:
            return Outcome(
                Disposition.DROP_MESSAGE, code, f"FCM refused the message with HTTP {status}", status
            )
        case _ if 300 <= meaning < 500:
            # FCM itself gives none of these: something else answers in its place.
            return _pause(
                status,
                code,
                f"HTTP {status} is no answer of FCM's: check FCM_ENDPOINT and the proxies on the way",
            )
        case _:
            return _try_again(status, code, "no HTTP status that can be a final answer", timing)


def _pause(status: int, code: str, reason: str) -> Outcome:
    return Outcome(Disposition.PAUSE, code, reason, status, uses_try=False)


def _try_again(status: int, code: str, reason: str, timing: _Timing) -> Outcome:
    """A failure that passes. FCM may have done its work before it: copies must carry the same ids."""
    return Outcome(
        Disposition.RETRY, code, f"{reason} (HTTP {status})", status, delay=timing.delay(), ambiguous=True
    )


# --- 400: whose fault is it? ---------------------------------------------------------------------------

_TOO_LARGE = (
    "the message is too large for FCM (4096 bytes, 2048 to a topic or condition): shorten title, body or data"
)

# What FCM says of a token when it names no field. Only the start of a text is looked at: what FCM quotes
# from the payload comes later, and must never cost a token.
_TOKEN_TEXTS = ("The registration token is not", "Invalid registration")

# FCM's text (lower case) -> ours. FCM's own may quote the payload, so none of it is repeated.
_KNOWN_TEXTS = (
    ("too large", _TOO_LARGE),
    ("too big", _TOO_LARGE),
    ("exceeds the limit", _TOO_LARGE),
    ("invalid data payload key", "a key of data is reserved by FCM: rename it"),
    ("topic name", "FCM does not accept the topic name"),
    ("ttl", "FCM does not accept the time to live"),
    ("package name", "the app's package name is not the one that android.restricted_package_name asks for"),
)

# Letters only between the dots: no token and no payload passes for a field's name.
_FIELD_PATH = re.compile(r"message(?:\.[A-Za-z_-]{1,40}|\[\d{1,4}\]){0,8}")


def _invalid(status: int, code: str, error: _Error) -> Outcome:
    """400: the token's fault only where FCM says so beyond doubt, else the message's."""
    if error.blames_token:
        return Outcome(
            Disposition.DROP_TARGET,
            code,
            "FCM says this is no registration token: store it as the app got it, neither cut nor changed",
            status,
        )
    fields = [field for field in error.fields if _FIELD_PATH.fullmatch(field)]
    text = error.message.lower()
    # "Invalid value at '...' (TYPE_STRING), ..." quotes a value, which may contain any phrase.
    known = None
    if not text.startswith("invalid value"):
        known = next((ours for phrase, ours in _KNOWN_TEXTS if phrase in text), None)
    if fields:
        named = ", ".join(dict.fromkeys(fields[:5]))
        reason = f"FCM does not accept {named}" + (f": {known}" if known else "")
    else:
        reason = known or "FCM does not accept the message and does not say why; a frequent cause is its size"
    return Outcome(Disposition.DROP_MESSAGE, code, reason, status)


# --- 429: whose quota? ---------------------------------------------------------------------------------

# Of Google's front end, which counts the requests of each project.
_PROJECT_TEXT = "quota metric"
_PROJECT_REASON = "RATE_LIMIT_EXCEEDED"
_TARGET_TEXT = re.compile(r"\b(?:topic|device)\b", re.IGNORECASE)


def _limit(error: _Error) -> Limit:
    """The reference promises a QuotaFailure that says which quota it was; often there is none, or words only."""
    quotas = [
        _dict(violation)
        for item in error.details
        if item.get("@type") == _QUOTA_FAILURE
        for violation in _list(item.get("violations"))
    ]
    texts = [error.message, *(_text(quota.get("description")) for quota in quotas)]
    if any(_PROJECT_TEXT in text for text in texts):
        return Limit.PROJECT
    if any(item.get("reason") == _PROJECT_REASON for item in error.details):
        return Limit.PROJECT
    if any(_TARGET_TEXT.search(text) for text in texts):
        return Limit.TARGET
    # Inferred: a project that is named where a device or a topic is not, is what has the quota.
    named = any(_text(quota.get("subject")).startswith("project") for quota in quotas)
    return Limit.PROJECT if named else Limit.UNKNOWN


# --- reading an error body -----------------------------------------------------------------------------

# The HTTP status that each code known here stands for. Source: google.rpc.Code and FCM's ErrorCode.
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
_FCM_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "UNREGISTERED",
        "SENDER_ID_MISMATCH",
        "QUOTA_EXCEEDED",
        "UNAVAILABLE",
        "INTERNAL",
        "THIRD_PARTY_AUTH_ERROR",
        "UNSPECIFIED_ERROR",
    }
)


@dataclass(slots=True, frozen=True)
class _Error:
    """The readable part of ``{"error": {"code", "message", "status", "details"}}``."""

    is_fcm: bool
    """There is an FcmError detail, whatever it says."""
    fcm_code: str | None
    """Its errorCode, if known here."""
    status: str | None
    """``error.status`` if known here, and if there is no FcmError to decide before it."""
    message: str
    fields: tuple[str, ...]
    """The fields of the BadRequest detail that FCM complains of."""
    details: tuple[dict[str, Any], ...]
    """All of them, as they came."""

    @property
    def stands_for(self) -> int | None:
        """The HTTP status that decides; None to leave it to the answer's own."""
        return _STANDS_FOR.get(self.fcm_code or self.status or "")

    @property
    def blames_token(self) -> bool:
        """Beyond doubt: a code that does not speak of the token, or a second complaint, acquits it."""
        if self.is_fcm and self.fcm_code != "INVALID_ARGUMENT":
            return False
        if self.fields:
            return all(field == "message.token" for field in self.fields)
        return self.is_fcm and self.message.startswith(_TOKEN_TEXTS)


def _read_error(body: bytes) -> _Error:
    error = _dict(_dict(_json(body)).get("error"))
    details = [_dict(item) for item in _list(error.get("details"))]
    codes = [item.get("errorCode") for item in details if item.get("@type") == _FCM_ERROR]
    violations = [
        _dict(violation)
        for item in details
        if item.get("@type") == _BAD_REQUEST
        for violation in _list(item.get("fieldViolations"))
    ]
    status = error.get("status")
    return _Error(
        is_fcm=bool(codes),
        fcm_code=next((code for code in codes if isinstance(code, str) and code in _FCM_CODES), None),
        status=status if isinstance(status, str) and status in _STANDS_FOR and not codes else None,
        message=_text(error.get("message")),
        fields=tuple(field for item in violations if isinstance(field := item.get("field"), str) and field),
        details=tuple(details),
    )


def _message_name(body: bytes) -> str | None:
    try:
        name = orjson.loads(body)["name"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    # Kept in a text column, so nothing that a text column cannot hold.
    if isinstance(name, str) and 0 < len(name) <= 512 and name.isascii() and name.isprintable():
        return name
    return None


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


def _http_code(status: int) -> str:
    return f"HTTP_{status}" if 100 <= status < 600 else "HTTP_OTHER"


# --- FCM's words, made safe to show --------------------------------------------------------------------

_LONG_WORD = re.compile(r"[A-Za-z0-9_-]{20,}")


def _quoted(text: str) -> str:
    """FCM's own text as an appendix to a reason: one line, bounded, without anything like a token."""
    line = without_tokens(text)
    if len(line) > _TEXT_LIMIT:
        line = line[: _TEXT_LIMIT - 3] + "..."
    return f'; FCM says: "{line}"' if line else ""


def without_tokens(text: str) -> str:
    """A text of somebody else's as one line, without anything like a token or a key."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _LONG_WORD.sub(_hide_token, line)


def _hide_token(match: re.Match[str]) -> str:
    """Tokens mix capitals and small letters, or are long hexadecimal; names of projects do neither."""
    word = match.group()
    mixed = word != word.lower() and word != word.upper()
    if mixed or (len(word) >= 32 and any(c.isdigit() for c in word)):
        return "[hidden]"
    return word


# --- when to come back ---------------------------------------------------------------------------------

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)

# Google's front end, on its HTML pages: "Please try again in 30 seconds."
_TRY_AGAIN_IN = re.compile(rb"try again in (\d{1,4}) seconds")
_PAGE_LIMIT = 16_384


@dataclass(slots=True, frozen=True)
class _Timing:
    """All that an answer says about when to come back."""

    headers: Mapping[str, str]
    body: bytes
    now: float | None

    def delay(self, *, otherwise: float = 0.0) -> float:
        """Seconds: what Retry-After asks for, else what the page says, else ``otherwise``."""
        asked = self._retry_after()
        if asked is None and (page := _TRY_AGAIN_IN.search(self.body, 0, _PAGE_LIMIT)):
            asked = float(page.group(1))
        return min(LONGEST_DELAY, max(0.0, otherwise if asked is None else asked))

    def _retry_after(self) -> float | None:
        """Seconds; None if absent or unreadable. Source: RFC 9110, section 10.2.3."""
        value = self._header("retry-after").strip()
        if _SECONDS.fullmatch(value):
            return float(value)
        if (until := _http_date(value)) is None:
            return None
        # Counted from the server's own clock where it shows it, so that a wrong clock here does no harm.
        since = _http_date(self._header("date"))
        if since is None:
            since = self.now
        return None if since is None else until - since

    def _header(self, name: str) -> str:
        return next((value for key, value in self.headers.items() if key.lower() == name), "")


def _http_date(value: str) -> float | None:
    """Unix time; None if ``value`` is no date. A date without a zone is in UTC, as HTTP has it."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
