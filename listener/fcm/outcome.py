"""What an answer of FCM, or the lack of one, means for a push. Pure.

Sources: Firebase, "FCM error codes" and "Best practices for sending FCM messages at scale"; the ``ErrorCode`` reference
of the HTTP v1 API; ``google.rpc.Status`` and its error details; error bodies in public reports of the Firebase SDKs.
What none of them says is marked "inferred".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import orjson

from listener.fcm.apns import AppleVerdict, known_reason, verdict
from listener.fcm.error_body import ErrorBody, read_error
from listener.fcm.fault import AuthFault, SendFault
from listener.fcm.redaction import quoted
from listener.fcm.retry_after import asked_delay

QUOTA_DELAY: Final = 60.0
"""Seconds before a retry after 429 without Retry-After. Source: Firebase, "FCM error codes"."""


class Disposition(StrEnum):
    """What to do after one attempt at one target."""

    ACCEPTED = "accepted"
    """FCM has accepted the message. It is never sent again."""
    RETRY = "retry"
    """Send again after ``delay``."""
    DROP_MESSAGE = "drop_message"
    """This push can never work, whatever the target."""
    DROP_TARGET = "drop_target"
    """This registration token can never work: disable it."""
    REFRESH_AUTH = "refresh_auth"
    """Get a new access token and send once more, at once; if FCM refuses that too, pause."""
    PAUSE = "pause"
    """Our configuration is wrong: stop sending, and probe again later."""
    PAUSE_PLATFORM = "pause_platform"
    """Apple or the web push service takes nothing from FCM: the credentials are wrong, or Apple has a problem. If it
    takes nothing for other devices either, stop sending to that platform."""
    MISFIT = "misfit"
    """This device does not fit FCM's credentials for Apple; its app may be a test build. Only this push waits, and it
    uses tries. If nearly all devices of the platform do not fit, the credentials are wrong."""
    REFUSED = "refused"
    """FCM refuses this push without a reason, and accepts others. Only this push waits, and it uses tries."""
    EXPIRED = "expired"
    """The push is past its expiry. No answer of FCM has this disposition: ``Attempts`` finds it out by the clock."""


class Limit(StrEnum):
    """Whose quota is used up, as far as an answer says."""

    PROJECT = "project"
    """The project's: all its pushes together are too many."""
    TARGET = "target"
    """One device's or one topic's: the rate of all other pushes is not the cause."""
    UNKNOWN = "unknown"


# Not frozen: each push makes one, and a frozen dataclass takes four times as long to make.
@dataclass(slots=True)
class Outcome:
    """The meaning of one attempt at one target. ``classify`` makes it, and nobody changes it.

    Attributes:
        disposition: what to do.
        code: a word of a bounded vocabulary, for ``error_code`` and metric labels: "OK"; a known error code of FCM or
            of ``google.rpc``; "HTTP_502" and the like; the code of a fault.
        reason: what is wrong and what to do about it, for a person. It contains neither token nor payload.
        http_status: the status of the answer; None if there was none.
        message_id: FCM's name for the accepted message, "projects/P/messages/ID"; None if unknown.
        delay: seconds that the answer asks to wait before the next try; 0 if it asks for none. The retry policy sets
            the shortest wait.
        ambiguous: whether the message may have been delivered although FCM did not accept it.
        uses_try: whether this counts against the push's tries.
        is_unclear: whether it is not clear if FCM refuses only this push or everything. The answer to a message that
            FCM only validates tells.
        apple_reason: Apple's word for it, if FCM passes on a known one; else empty.
        limit: the quota that is used up, so that the failure is no sign of an outage; None if none is.
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
    is_unclear: bool = False
    apple_reason: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether FCM has answered that it does not take the message. A RETRY only says that it cannot take it now.

        Without an access token there is no answer of FCM.
        """
        passes = self.disposition in (Disposition.ACCEPTED, Disposition.RETRY)
        return self.http_status is not None and not passes


def classify(status: int, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> Outcome:
    """The meaning of an HTTP answer to ``messages:send``. Never raises, whatever the answer.

    The ``errorCode`` of an FcmError detail decides first, then ``error.status``, then the HTTP status. If the errorCode
    is unknown, only the HTTP status decides, and no target is dropped.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without regard to case.
        body: the answer's body.
        now: Unix time, from which a Retry-After date counts if the answer has no usable Date header.
    """
    if 200 <= status < 300:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            if body.strip():
                return replace(_misrouted(status, _http_code(status)), ambiguous=True)
            answer = None
        # Inferred: a success without a readable name is a success; sending again would show the push twice.
        return Outcome(Disposition.ACCEPTED, "OK", "accepted by FCM", status, _message_name(answer))
    error = read_error(body)
    match error.fcm_code:
        case "UNREGISTERED":
            return Outcome(
                Disposition.DROP_TARGET,
                "UNREGISTERED",
                "FCM no longer knows this registration token (the app was removed, or its token replaced); "
                "nothing to do: the app registers again when it next starts",
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
    asked = asked_delay(headers, body, now)
    apple = verdict(error.apple_reason, error.apple_status)
    if apple is not None:
        outcome = _by_apple(apple, status, error, asked)
        outcome.apple_reason = known_reason(error.apple_reason)
        return outcome
    if error.fcm_code in _THIRD_PARTY:
        return _platform_refused(status, error)
    code = error.fcm_code or error.status or _http_code(status)
    return _by_http(error.stands_for or status, status, code, error, asked)


_THIRD_PARTY = ("THIRD_PARTY_AUTH_ERROR", "APNS_AUTH_ERROR")


def _platform_refused(status: int, error: ErrorBody) -> Outcome:
    return Outcome(
        Disposition.PAUSE_PLATFORM,
        error.fcm_code or "THIRD_PARTY_AUTH_ERROR",
        "Apple or the web push service refuses FCM's credentials; renew the APNs key or the web push certificate in "
        "the Firebase console, under Project settings, Cloud Messaging" + _said_by_apple(error),
        status,
        uses_try=False,
    )


def _by_apple(apple: AppleVerdict, status: int, error: ErrorBody, asked: float | None) -> Outcome:
    code = error.fcm_code or error.status or _http_code(status)
    match apple:
        case AppleVerdict.GONE:
            return Outcome(
                Disposition.DROP_TARGET,
                "UNREGISTERED",
                "Apple no longer knows this device's token (the app was removed, or notifications were turned off for "
                "good); nothing to do: the app registers again when it next starts" + _said_by_apple(error),
                status,
            )
        case AppleVerdict.MISFIT:
            return Outcome(
                Disposition.MISFIT,
                code,
                "Apple says that this device's token does not fit the APNs key in the Firebase console: the app on the "
                "device is a test build, say, and the key is for production only; or the app's bundle id or team "
                "differs" + _said_by_apple(error),
                status,
            )
        case AppleVerdict.CREDENTIALS:
            return _platform_refused(status, error)
        case AppleVerdict.TOO_LARGE:
            return Outcome(Disposition.DROP_MESSAGE, code, _TOO_LARGE + _said_by_apple(error), status)
        case AppleVerdict.MESSAGE:
            return Outcome(
                Disposition.DROP_MESSAGE,
                code,
                "Apple does not accept the message: check options.apns" + _said_by_apple(error),
                status,
            )
        case AppleVerdict.TOO_MANY:
            return Outcome(
                Disposition.RETRY,
                code,
                "Apple takes no more for this device at present" + _said_by_apple(error),
                status,
                delay=asked or 0.0,
                limit=Limit.TARGET,
            )
        case AppleVerdict.BUSY:
            return Outcome(
                Disposition.PAUSE_PLATFORM,
                code,
                "Apple's servers have a problem" + _said_by_apple(error),
                status,
                delay=asked or 0.0,
                ambiguous=True,
                uses_try=False,
            )


def _said_by_apple(error: ErrorBody) -> str:
    if reason := known_reason(error.apple_reason):
        return f" (Apple: {reason})"
    return quoted(error.message)


def from_send_fault(fault: SendFault) -> Outcome:
    """The meaning of a request that brought no answer: send again."""
    return Outcome(Disposition.RETRY, fault.code, fault.reason, ambiguous=fault.ambiguous)


def from_auth_fault(fault: AuthFault) -> Outcome:
    """The meaning of having no access token: nothing was sent, so no attempt is used."""
    if fault.permanent:
        return Outcome(Disposition.PAUSE, fault.code, fault.reason, uses_try=False)
    return Outcome(Disposition.RETRY, fault.code, fault.reason, uses_try=False)


def _message_name(answer: object) -> str | None:
    name = answer.get("name") if isinstance(answer, dict) else None
    # It goes into a text column, which cannot hold every character.
    if isinstance(name, str) and 0 < len(name) <= 512 and name.isascii() and name.isprintable():
        return name
    return None


def _http_code(status: int) -> str:
    return f"HTTP_{status}" if 100 <= status < 600 else "HTTP_OTHER"


def _by_http(meaning: int, status: int, code: str, error: ErrorBody, asked: float | None) -> Outcome:
    """The outcome of the HTTP status ``meaning``.

    Args:
        meaning: what the error code stands for, or ``status`` itself.
        status: the HTTP status of the answer.
        code: the outcome's.
        error: the answer's body.
        asked: seconds that the answer asks to wait; None if it asks for none.
    """
    if not error.is_google and 300 <= status < 500 and status not in _NOT_MISROUTED:
        return _misrouted(status, code)
    if error.is_fcm and error.stands_for is None and meaning in (401, 403, 404):
        # FCM's own error detail: FCM knows the project, and has judged this message, or all of the project's.
        text = f"FCM refuses with HTTP {status}, and with an error code that this version does not know"
        return replace(_pause(status, code, text + quoted(error.message)), is_unclear=True)
    match meaning:
        case 400 if _CONFIGURATION.intersection(error.reasons):
            return _pause(
                status, code, "FCM refuses the project: check FCM_PROJECT_ID" + quoted(error.message)
            )
        case 400:
            return _invalid(status, code, error)
        case 401:
            return Outcome(
                Disposition.REFRESH_AUTH,
                code,
                "FCM refused the access token" + quoted(error.message),
                status,
                uses_try=False,
            )
        case 403:
            return _pause(
                status,
                code,
                "this service account may not send for this project: check FCM_PROJECT_ID, enable the "
                "Firebase Cloud Messaging API there, and grant cloudmessaging.messages.create (role Firebase "
                "Cloud Messaging API Admin)" + quoted(error.message),
            )
        case 404:
            # For days in March 2021, FCM answered so for single registration tokens.
            return replace(
                _pause(
                    status,
                    code,
                    "no such project or URL: check FCM_PROJECT_ID and FCM_ENDPOINT" + quoted(error.message),
                ),
                is_unclear=True,
            )
        case 413 | 414 | 431:
            return Outcome(Disposition.DROP_MESSAGE, code, _TOO_LARGE, status)
        case 429:
            return Outcome(
                Disposition.RETRY,
                code,
                "an FCM quota is used up" + quoted(error.message),
                status,
                delay=QUOTA_DELAY if asked is None else asked,
                limit=_limit(error),
            )
        case 408 | 409 | 425 | 499:
            return _try_again(status, code, "the request was cut short", asked)
        case _ if 500 <= meaning < 600:
            return _try_again(status, code, "FCM or its front end has an internal problem", asked)
        case _ if 400 <= meaning < 500 and error.is_fcm:
            return Outcome(
                Disposition.DROP_MESSAGE, code, f"FCM refused the message with HTTP {status}", status
            )
        case _ if 300 <= meaning < 500:
            return _misrouted(status, code)
        case _:
            return _try_again(status, code, "this HTTP status cannot be a final answer", asked)


def _pause(status: int, code: str, reason: str) -> Outcome:
    return Outcome(Disposition.PAUSE, code, reason, status, uses_try=False)


# A proxy means the same by these as FCM does. Any other status from 300 to 499 without Google's JSON comes from
# something on the way.
_NOT_MISROUTED = frozenset({401, 403, 404, 408, 409, 425, 429, 499})

# Reasons of ErrorInfo that concern the project, whatever the status. Source: google.api.ErrorReason.
_CONFIGURATION = frozenset(
    {
        "API_KEY_INVALID",
        "API_KEY_SERVICE_BLOCKED",
        "BILLING_DISABLED",
        "CONSUMER_INVALID",
        "CONSUMER_SUSPENDED",
        "SERVICE_DISABLED",
    }
)


def _misrouted(status: int, code: str) -> Outcome:
    return _pause(
        status,
        code,
        f"this answer with HTTP {status} is not FCM's: something on the way has given it; check FCM_ENDPOINT and the "
        "proxies on the way",
    )


def refused_alone(outcome: Outcome) -> Outcome:
    """The outcome of an unclear refusal, when FCM accepts other messages: only this push is refused."""
    return replace(
        outcome,
        disposition=Disposition.REFUSED,
        reason=f"FCM answers HTTP {outcome.http_status} to this message, and not to one that it only validates",
        uses_try=True,
        is_unclear=False,
    )


def _try_again(status: int, code: str, reason: str, asked: float | None) -> Outcome:
    """A failure that passes. FCM may have delivered the message before it failed."""
    return Outcome(
        Disposition.RETRY, code, f"{reason} (HTTP {status})", status, delay=asked or 0.0, ambiguous=True
    )


# --- 400: whose fault is it? ---------------------------------------------------------------------------

_TOO_LARGE = (
    "the message is too large for FCM (4096 bytes, 2048 to a topic or condition): shorten title, body or data"
)

# What FCM says about a token if it names no field. Only the start of a text counts: later it may quote the payload, and
# no payload must ever disable a token.
_TOKEN_TEXTS = ("The registration token is not", "Invalid registration")

# That FCM names the field "fid" as it names "token" is inferred.
_TARGET_FIELDS = ("message.token", "message.fid")

# FCM's text (lower case) -> ours. FCM's may quote the payload, so it is not repeated.
_KNOWN_TEXTS = (
    ("too large", _TOO_LARGE),
    ("too big", _TOO_LARGE),
    ("exceeds the limit", _TOO_LARGE),
    ("invalid data payload key", "a key of data is reserved by FCM: rename it"),
    ("topic name", "FCM does not accept the topic name"),
    ("ttl", "FCM does not accept the time to live"),
    ("package name", "the app's package name is not the one that android.restricted_package_name asks for"),
)

# Only letters between the dots: neither a token nor a payload looks like a field's name.
_FIELD_PATH = re.compile(r"message(?:\.[A-Za-z_-]{1,40}|\[\d{1,4}\]){0,8}")


def _invalid(status: int, code: str, error: ErrorBody) -> Outcome:
    """400: the message is at fault, unless FCM clearly blames the token."""
    if _blames_token(error):
        return Outcome(
            Disposition.DROP_TARGET,
            code,
            "FCM says this is no registration token or fid: store it as the app got it, neither cut nor changed",
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


def _blames_token(error: ErrorBody) -> bool:
    """Whether the token is at fault beyond doubt: the code says so, and nothing but the token is named."""
    if error.is_fcm and error.fcm_code != "INVALID_ARGUMENT":
        return False
    if error.fields:
        return all(field in _TARGET_FIELDS for field in error.fields)
    return error.is_fcm and error.message.startswith(_TOKEN_TEXTS)


# --- 429: whose quota? ---------------------------------------------------------------------------------

# Google's front end counts the requests of each project.
_PROJECT_TEXT = "quota metric"
_PROJECT_REASON = "RATE_LIMIT_EXCEEDED"
_TARGET_TEXT = re.compile(r"\b(?:topic|device)\b", re.IGNORECASE)


def _limit(error: ErrorBody) -> Limit:
    """The reference promises a QuotaFailure that names the quota; often there is none, or only a text."""
    texts = [error.message, *(quota.description for quota in error.quotas)]
    if _PROJECT_REASON in error.reasons or any(_PROJECT_TEXT in text for text in texts):
        return Limit.PROJECT
    if any(_TARGET_TEXT.search(text) for text in texts):
        return Limit.TARGET
    # Inferred: if a project is named, and no device and no topic, the quota is the project's.
    names_project = any(quota.subject.startswith("project") for quota in error.quotas)
    return Limit.PROJECT if names_project else Limit.UNKNOWN
