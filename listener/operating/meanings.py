"""What each error code of a push means, and what a person does about it. Pure.

docs/outcomes.md says which answer gives which code, and how the listener acts on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HTTP = re.compile(r"HTTP_(\d{3}|OTHER)")


@dataclass(frozen=True, slots=True)
class Meaning:
    """An error code in words."""

    code: str
    meaning: str
    remedy: str
    """What to do about dead and expired pushes with this code."""


_NOTHING_TO_DO = "Nothing: the listener tries again. If pushes ended so, requeue them when FCM answers again."
_OUTDATED_KEY = "Renew the APNs key or the web push certificate in the Firebase console, then requeue."
_OUR_ACCESS = (
    "Check FCM_PROJECT_ID, enable the Firebase Cloud Messaging API there, and let the service account send "
    "(role Firebase Cloud Messaging API Admin); then requeue."
)
_NEW_TOKEN = "Nothing: the app registers a new token when it next starts. A requeued push fails again."  # noqa: S105
_CORRECT_ROW = "Correct what writes these rows, and insert the pushes again: a requeued one fails again."
_QUOTA = "Nothing: the listener sends more slowly. If pushes ended so, requeue them; ask Google for a higher quota."
_WAY_OUT = "Check the network between this machine and FCM: firewall, DNS, proxy. Then requeue."
_TOKEN_ENDPOINT = "Check the network to oauth2.googleapis.com. Then requeue what ended so."  # noqa: S105
_CREDENTIALS = (
    "Replace the key of the service account by a valid one; push-listener doctor checks it. Then requeue."
)
_UNKNOWN_REMEDY = "Read last_error of one of these pushes. If its cause is gone, requeue them."

_WORDS: dict[str, tuple[str, str]] = {
    # FCM's own
    "UNREGISTERED": ("FCM or Apple no longer knows the registration token: the app was removed.", _NEW_TOKEN),
    "SENDER_ID_MISMATCH": (
        "The registration token belongs to another Firebase project.",
        "Build the app with the configuration of the project that FCM_PROJECT_ID names.",
    ),
    "INVALID_ARGUMENT": (
        "FCM does not accept the message, or says that the token is none.",
        "Read last_error: it names the field. " + _CORRECT_ROW,
    ),
    "QUOTA_EXCEEDED": ("A quota of FCM is used up.", _QUOTA),
    "UNAVAILABLE": ("FCM is overloaded or away.", _NOTHING_TO_DO),
    "INTERNAL": ("FCM has an internal problem.", _NOTHING_TO_DO),
    "THIRD_PARTY_AUTH_ERROR": (
        "Apple or the web push service refuses FCM's credentials, or the device does not fit them.",
        _OUTDATED_KEY,
    ),
    "APNS_AUTH_ERROR": ("Apple refuses FCM's credentials, or the device does not fit them.", _OUTDATED_KEY),
    "UNSPECIFIED_ERROR": ("FCM does not say why it refuses.", _UNKNOWN_REMEDY),
    # of every Google API
    "UNAUTHENTICATED": ("FCM refuses the access token.", _CREDENTIALS),
    "PERMISSION_DENIED": ("The service account may not send for this project.", _OUR_ACCESS),
    "NOT_FOUND": (
        "FCM does not find the project, or refuses this message alone so.",
        "Check FCM_PROJECT_ID and FCM_ENDPOINT, then requeue.",
    ),
    "RESOURCE_EXHAUSTED": ("A quota of FCM is used up.", _QUOTA),
    "FAILED_PRECONDITION": ("FCM does not accept the message as things are.", _UNKNOWN_REMEDY),
    "OUT_OF_RANGE": ("A value in the message is out of range.", _CORRECT_ROW),
    "ABORTED": ("FCM cut the request short.", _NOTHING_TO_DO),
    "ALREADY_EXISTS": ("FCM cut the request short.", _NOTHING_TO_DO),
    "CANCELLED": ("FCM cut the request short.", _NOTHING_TO_DO),
    "DEADLINE_EXCEEDED": ("FCM did not answer in its own time.", _NOTHING_TO_DO),
    "DATA_LOSS": ("FCM has an internal problem.", _NOTHING_TO_DO),
    "UNKNOWN": ("FCM has an internal problem.", _NOTHING_TO_DO),
    "UNIMPLEMENTED": ("FCM has an internal problem.", _NOTHING_TO_DO),
    # no answer
    "CONNECT": ("No connection to FCM.", _WAY_OUT),
    "DNS": ("The name of FCM's server cannot be resolved.", _WAY_OUT),
    "TLS": (
        "No TLS connection to FCM, or its certificate is not valid.",
        "Check the clock of this machine, its certificates, and proxies that open TLS. Then requeue.",
    ),
    "PROXY": ("No way through the proxy.", "Check the proxy settings and the proxy. Then requeue."),
    "TIMEOUT": ("FCM did not answer in time. The push may have been delivered.", _WAY_OUT),
    "RESET": ("The connection broke before the answer. The push may have been delivered.", _WAY_OUT),
    "PROTOCOL": (
        "What answered does not speak HTTP.",
        "Check FCM_ENDPOINT and the proxies on the way. Then requeue.",
    ),
    # no access token
    "OAUTH_CONNECT": ("No connection to Google's token endpoint.", _TOKEN_ENDPOINT),
    "OAUTH_TIMEOUT": ("Google's token endpoint did not answer in time.", _TOKEN_ENDPOINT),
    "OAUTH_UNAVAILABLE": ("Google's token endpoint is away.", _TOKEN_ENDPOINT),
    "OAUTH_PROTOCOL": ("The answer of Google's token endpoint cannot be read.", _TOKEN_ENDPOINT),
    "OAUTH_REFUSED": ("Google's token endpoint refuses the credentials.", _CREDENTIALS),
    "OAUTH_CREDENTIALS": ("The credentials cannot be used.", _CREDENTIALS),
    "OAUTH_INVALID_GRANT": (
        "Google refuses the key of the service account, or the clock is wrong.",
        _CREDENTIALS,
    ),
    # refused before any request
    "EMPTY_MESSAGE": ("Title, body, data and options are all empty.", _CORRECT_ROW),
    "TITLE_MISSING": ("The push has a body or an image, and no title.", _CORRECT_ROW),
    "INVALID_CONDITION": ("FCM would not accept the condition.", _CORRECT_ROW),
    "INVALID_DATA": ("data is not an object that FCM accepts.", _CORRECT_ROW),
    "INVALID_OPTIONS": ("options are not what FCM accepts.", _CORRECT_ROW),
    "INVALID_PRIORITY": ("priority is neither normal nor high.", _CORRECT_ROW),
    "INVALID_PUSH": ("The row cannot be made a message.", _CORRECT_ROW),
    "INVALID_TARGET": ("The push has more than one target.", _CORRECT_ROW),
    "INVALID_TOKEN": ("The token or installation id has characters that none has.", _CORRECT_ROW),
    "INVALID_TOPIC": ("The topic has characters that no topic has.", _CORRECT_ROW),
    "INVALID_TEXT": ("A text of the row cannot be read as UTF-8.", _CORRECT_ROW),
    "NO_TARGET": ("The push has no token, installation id, topic, condition or user.", _CORRECT_ROW),
    "PAYLOAD_TOO_LARGE": ("The message is larger than FCM accepts (4,096 bytes).", _CORRECT_ROW),
    # ours
    "NO_RECIPIENTS": (
        "The user has no live device in push_recipients.",
        "Nothing: the app registers when it next starts. Requeue what is still of use then.",
    ),
    "EXPIRED": (
        "expires_at had passed before the push could be sent.",
        "Find out why the queue was late. An expired push cannot be requeued.",
    ),
    "TOKEN_LOSS": (
        "FCM called the devices of nearly all users dead, which is hard to believe; no token was disabled.",
        "Check that the app and FCM_PROJECT_ID belong to the same project. If the devices are dead, set "
        "TOKEN_LOSS_BREAKER=false. Then requeue.",
    ),
    "QUARANTINED": (
        "Several workers died, or lost their lease, while they held the push.",
        "Read their logs before you requeue it.",
    ),
    "NOT_WRITTEN": (
        "The result could not be written. FCM may have accepted the push.",
        "Correct what refuses the write (a trigger, a constraint). A requeued push may be seen twice.",
    ),
    "NOT_TRIED": ("The push was not tried at one of its devices in this attempt.", _NOTHING_TO_DO),
    "PLATFORM_PAUSED": (
        "The push waits: Apple or the web push service takes nothing from FCM at present.",
        _OUTDATED_KEY,
    ),
    "STALE_AT_ADOPTION": (
        "The push had waited for long when push-listener adopted the table, so it was not sent.",
        "Requeue those that are still of use.",
    ),
    "INTERNAL_ERROR": (
        "A fault of push-listener itself.",
        "Read the log of the listener, and report it. Then requeue.",
    ),
    "WORKER_FAILED": (
        "A worker of the application reported the push as failed (mark_push_failed).",
        _UNKNOWN_REMEDY,
    ),
}

MEANINGS = {code: Meaning(code, *words) for code, words in _WORDS.items()}
"""The meanings of all codes with a fixed name. ``meaning_of`` also knows the others, such as HTTP_502."""


def meaning_of(code: str | None) -> Meaning:
    """What a code means. The code may be missing, or an application may have written it."""
    if not code:
        return Meaning(
            "", "There is no error code: push-listener did not write this status.", _UNKNOWN_REMEDY
        )
    if found := MEANINGS.get(code):
        return found
    if http := _HTTP.fullmatch(code):
        return _http(code, http[1])
    if code.startswith("OAUTH_"):
        return Meaning(code, "Google's token endpoint refuses the credentials.", _CREDENTIALS)
    return Meaning(code, "This code is not one of push-listener.", _UNKNOWN_REMEDY)


def _http(code: str, status: str) -> Meaning:
    if status in ("413", "414", "431"):
        return Meaning(code, "The message is too large for what answered.", _CORRECT_ROW)
    if status == "429":
        return Meaning(code, f"HTTP {status}: a quota is used up.", _QUOTA)
    if status.startswith("5"):
        return Meaning(
            code, f"HTTP {status}: FCM, or something on the way to it, has a problem.", _NOTHING_TO_DO
        )
    if status == "403":
        return Meaning(code, "HTTP 403: this service account, or this network, may not send.", _OUR_ACCESS)
    what = "an HTTP status that there is not" if status == "OTHER" else f"HTTP {status}"
    return Meaning(
        code, f"{what}, and not in FCM's form: something on the way answers.",
        "Check FCM_ENDPOINT and the proxies on the way. Then requeue.",
    )  # fmt: skip
