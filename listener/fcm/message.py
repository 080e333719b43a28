"""From a row to the body of an FCM HTTP v1 request. Pure.

A push is prepared once (`prepare`), which checks it and writes the JSON that all its copies share, and is
then encoded for each target and each try (`Prepared.encode`), which only joins bytes.

Sources: Firebase, REST reference "projects.messages" (Message, AndroidConfig, ApnsConfig, WebpushConfig) and
"FCM error codes"; Apple, "Sending notification requests to APNs"; RFC 8030 for TTL, Urgency and Topic.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Never

import orjson

from listener.push import BadPush, Push, Target, TargetKind

TOKEN_LIMIT: Final = 4096
"""Characters; a longer registration token is not one."""

DEVICE_PAYLOAD_LIMIT: Final = 4096
"""Bytes of payload to a device. Source: Firebase, "FCM error codes", "Message too big"."""

TOPIC_PAYLOAD_LIMIT: Final = 2048
"""Bytes of payload to a topic or a condition. Source: the same."""

MAX_TTL: Final = 28 * 86400
"""Seconds. Source: REST reference, AndroidConfig.ttl, "4 weeks"."""

MAX_CONDITION_TOPICS: Final = 5
"""Source: Firebase, "Send messages to topics", "up to five topics in your conditional expression"."""

_TOKEN = re.compile(rf"[!-~]{{1,{TOKEN_LIMIT}}}")
_TOPIC = re.compile(r"[a-zA-Z0-9_.~%-]+")
_IN_TOPICS = re.compile(r"\bin\s+topics\b", re.IGNORECASE)
_ANALYTICS_LABEL = re.compile(r"[a-zA-Z0-9_.~%-]{1,50}")
_WEB_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,32}")

# FCM refuses the whole message for one such key. The REST reference reserves "from", "message_type" and all
# that starts with "google." or "gcm.notification."; "FCM error codes" adds the bare words. Nothing more is
# refused here: what FCM might yet accept is FCM's to judge.
_RESERVED = frozenset({"from", "message_type", "google", "gcm"})
_RESERVED_PREFIXES = ("google.", "gcm.notification.")


# --- where it goes -------------------------------------------------------------------------------------


def targets(push: Push) -> list[Target]:
    """Where a push goes: its device, topic or condition, or else every live device of its user.

    A row for a user with no device gives an empty list. A device of a user whose token cannot be one is left
    out, so that it does not keep the push from the others; of a token listed twice one is kept.

    Raises:
        BadPush: the row names no target, more than one, or one that cannot be.
    """
    _refuse_oversized(push)
    token, topic, condition = push.device_token, push.topic, push.condition
    if (token is not None) + (topic is not None) + (condition is not None) > 1:
        raise BadPush(
            "more than one of device_token, topic and condition is set: set exactly one",
            code="INVALID_TARGET",
        )
    if token is not None:
        if not _TOKEN.fullmatch(token):
            raise BadPush(
                f"device_token is empty, longer than {TOKEN_LIMIT} characters, or has characters that no "
                "registration token has: store it as the app got it",
                code="INVALID_TOKEN",
            )
        return [Target(TargetKind.TOKEN, token)]
    if topic is not None:
        name = topic.removeprefix("/topics/")
        if not _TOPIC.fullmatch(name):
            raise BadPush(
                "topic must be one or more of the characters a-z A-Z 0-9 - _ . ~ %", code="INVALID_TOPIC"
            )
        return [Target(TargetKind.TOPIC, name)]
    if condition is not None:
        if not condition.isascii() or not condition.strip():
            raise BadPush(
                "condition must be an expression such as 'news' in topics && 'sport' in topics",
                code="INVALID_CONDITION",
            )
        if len(_IN_TOPICS.findall(condition)) > MAX_CONDITION_TOPICS:
            raise BadPush(
                f"condition names more than the {MAX_CONDITION_TOPICS} topics that FCM allows: send several pushes",
                code="INVALID_CONDITION",
            )
        return [Target(TargetKind.CONDITION, condition)]
    if push.user_id is None:
        raise BadPush(
            "the push has no target: set device_token, topic, condition or user_id", code="NO_TARGET"
        )
    devices: dict[str, str | None] = {}
    for device, platform in push.recipients:
        if _TOKEN.fullmatch(device):
            devices.setdefault(device, platform)
    return [Target(TargetKind.TOKEN, device, platform) for device, platform in devices.items()]


def _refuse_oversized(push: Push) -> None:
    if push.oversized:
        raise BadPush(f"far too large to be sent: {push.oversized}", code="PAYLOAD_TOO_LARGE")


# --- what it says --------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Ttl:
    """A time to live of the sender's own, from ``options``."""

    seconds: float
    text: bytes
    """The seconds as the sender wrote them."""


@dataclass(slots=True)
class Prepared:
    """A push that is fit to be sent, and the JSON that all its copies have in common. See `prepare`."""

    until_ttl: bytes
    """From after the target to the end of ``android``, which is left open for its ``ttl``."""
    until_web_ttl: bytes
    """From there to the end of ``webpush.headers``, which is left open for its ``TTL``."""
    android_ttl: _Ttl | None
    web_ttl: _Ttl | None

    def encode(self, target: Target, expires_in: float | None, validate_only: bool = False) -> bytes:
        """The request body for one target and one try.

        Args:
            target: one of `targets`.
            expires_in: seconds of the push's life that are left now; None if it never expires. Sent in whole
                seconds, rounded down ("FCM error codes": ttl is "an integer representing a duration in
                seconds"), from 0 ("now or never") to 28 days. Where the sender set a ttl in ``options`` too,
                the shorter of the two is sent.
            validate_only: have FCM check the message without sending it.
        """
        parts = [_UNTIL_TARGET[target.kind], orjson.dumps(target.value), self.until_ttl]
        if ttl := _shorter(self.android_ttl, expires_in):
            parts += (b',"ttl":"', ttl, b's"')
        parts.append(self.until_web_ttl)
        if ttl := _shorter(self.web_ttl, expires_in):
            parts += (b',"TTL":"', ttl, b'"')
        parts.append(b'}}},"validate_only":true}' if validate_only else b"}}}}")
        return b"".join(parts)


_UNTIL_TARGET = {kind: b'{"message":{"%s":' % kind.encode() for kind in TargetKind}


def _shorter(own: _Ttl | None, left: float | None) -> bytes | None:
    """The shorter of two times to live, in seconds, as FCM takes it."""
    if left is None:
        return own.text if own else None
    if own and own.seconds <= left:
        return own.text
    return b"%d" % max(0.0, min(MAX_TTL, left))


def prepare(push: Push) -> Prepared:
    """Check a push and write what all its copies share.

    - With a title it is a notification, shown by the phone itself; without title and body, and with data, it
      is a data message that only the app sees. Nothing of a data message may be a notification object, not
      even one that only holds a tag or a channel: FCM would make it a visible one. ``channel`` and ``image``
      therefore have no effect on it. To iOS it goes with priority 5 whatever the row says, because Apple
      refuses any other for a background push.
    - So that a second copy of the same push replaces the first on the device, its id is the Android
      notification tag, the ``apns-collapse-id``, the web ``Topic`` and the web notification's tag, and is in
      ``data`` as ``push_id`` for the app itself.
    - ``collapse_key`` is the sender's alone, because a device keeps only four of them. It is also the
      ``apns-collapse-id`` if it is of at most 64 printable ASCII characters, and the web ``Topic`` if it is
      of at most 32 base64url characters.
    - ``options`` go over all that, name by name, and win; except that of two times to live the shorter wins
      (``android.ttl``, web ``TTL`` and ``apns-expiration`` beside ``expires_at``), and that ``push_id`` stays.

    Raises:
        BadPush: it can never be sent as it is. ``code`` is PAYLOAD_TOO_LARGE, EMPTY_MESSAGE, TITLE_MISSING,
            INVALID_PRIORITY, INVALID_DATA, INVALID_OPTIONS or INVALID_PUSH.
    """
    _refuse_oversized(push)
    high = _is_high(push.priority)
    data = _read_data(push.data)
    notification = _notification(push, data)
    push_id = str(push.id)
    data["push_id"] = push_id

    android: dict[str, Any] = {"priority": "HIGH" if high else "NORMAL"}
    apns: dict[str, Any] = {
        "headers": {"apns-priority": "10" if high and notification else "5", "apns-collapse-id": push_id}
    }
    webpush: dict[str, Any] = {"headers": {"Urgency": "high" if high else "normal", "Topic": push.id.hex}}
    if push.expires_at is not None and math.isfinite(push.expires_at):
        apns["headers"]["apns-expiration"] = str(max(0, int(push.expires_at)))
    if key := push.collapse_key:
        android["collapse_key"] = key
        if len(key) <= 64 and key.isascii() and key.isprintable():
            apns["headers"]["apns-collapse-id"] = key
        if _WEB_TOPIC.fullmatch(key):
            webpush["headers"]["Topic"] = key
    message: dict[str, Any] = {"data": data, "apns": apns}
    if notification:
        message["notification"] = notification
        android["notification"] = {"tag": push_id}
        if push.channel:
            android["notification"]["channel_id"] = push.channel
        webpush["notification"] = {"tag": push_id}
    else:
        apns["headers"]["apns-push-type"] = "background"
        apns["payload"] = {"aps": {"content-available": 1}}

    android_ttl = web_ttl = None
    if push.options is not None:
        _merge_options(message, android, webpush, push.options, push_id)
        android_ttl = _own_ttl(android.pop("ttl", None), _ANDROID_TTL, 'android.ttl must be like "3600s"')
        web_ttl = _own_ttl(
            webpush["headers"].pop("TTL", None), _WEB_TTL, 'webpush.headers.TTL must be like "3600"'
        )
    # What is left open for a time to live comes last in its object, and neither object is empty.
    webpush["headers"] = webpush.pop("headers")
    try:
        until_ttl = b"," + orjson.dumps(message)[1:-1] + b',"android":' + orjson.dumps(android)[:-1]
        until_web_ttl = b'},"webpush":' + orjson.dumps(webpush)[:-2]
        _check_size(message, android, push, len(until_ttl))
    except (UnicodeEncodeError, TypeError):
        raise BadPush("there is text that is not valid Unicode, or JSON nested too deeply") from None
    return Prepared(until_ttl, until_web_ttl, android_ttl, web_ttl)


def payload_size(message: dict[str, Any], android: dict[str, Any]) -> int:
    """Bytes of payload that a message brings to an Android device, as FCM limits them.

    Counted are the keys and values, in UTF-8, of the data and of the notification: "the total size of the
    payload data included in a message [...] includes both the keys and the values" (Firebase, "FCM error
    codes"). The settings of ``android`` are laid over the common ones, as FCM does it, so tag and channel
    count too. Not counted are the target, the delivery settings and the other platforms; FCM's own framing,
    some tens of bytes, is not documented. What is over the limit by those alone FCM itself refuses.

    Args:
        message: with ``data`` and, unless it is a data message, ``notification``.
        android: its AndroidConfig.

    Raises:
        UnicodeEncodeError: there is a lone surrogate in it.
    """
    notification = dict(message.get("notification") or ())
    if isinstance(own := android.get("notification"), dict):
        notification |= own
    data = android.get("data")
    if not isinstance(data, dict):
        data = message["data"]
    texts = [*data, *data.values(), *notification]
    texts += [
        each if isinstance(each, str) else orjson.dumps(each).decode() for each in notification.values()
    ]
    return len("".join(texts).encode())


def _check_size(message: dict[str, Any], android: dict[str, Any], push: Push, json_size: int) -> None:
    """Refuse a payload that is too large. ``json_size``: of both as JSON, in which all of the payload is."""
    to_topic = push.topic is not None or push.condition is not None
    limit = TOPIC_PAYLOAD_LIMIT if to_topic else DEVICE_PAYLOAD_LIMIT
    if json_size <= limit:
        return
    size = payload_size(message, android)
    if size > limit:
        whom = "a topic or condition" if to_topic else "a device"
        raise BadPush(
            f"the payload is {size} bytes, and FCM takes {limit} to {whom}: shorten title, body or data",
            code="PAYLOAD_TOO_LARGE",
        )


def _is_high(priority: str | None) -> bool:
    if priority is None or priority == "normal":
        return False
    if priority == "high":
        return True
    raise BadPush("priority must be 'normal' or 'high'", code="INVALID_PRIORITY")


def _notification(push: Push, data: dict[str, str]) -> dict[str, str] | None:
    """The visible part; None for a data message. An empty text is as good as none."""
    if not push.title and not push.body:
        if not data:
            raise BadPush("title, body and data are all empty: nothing to send", code="EMPTY_MESSAGE")
        return None
    if push.title is None:
        raise BadPush(
            "title is null and body is not: set title, or for a data message leave body null too",
            code="TITLE_MISSING",
        )
    notification = {"title": push.title}
    if push.body:
        notification["body"] = push.body
    if push.image:
        notification["image"] = push.image
    return notification


# --- data ----------------------------------------------------------------------------------------------


def _invalid(column: str) -> str:
    return f"INVALID_{column.upper()}"


def _no_constant(name: str) -> Never:
    raise ValueError(name)


# Numbers are kept as they are written: neither cut to 64 bits nor turned into floats and back.
_EXACT = json.JSONDecoder(parse_int=orjson.Fragment, parse_float=orjson.Fragment, parse_constant=_no_constant)


def _exact(text: str, column: str) -> Any:
    try:
        return _EXACT.decode(text)
    except (ValueError, RecursionError):
        raise BadPush(f"{column} is not JSON that can be read", code=_invalid(column)) from None


def _read_data(text: str | None) -> dict[str, str]:
    """The strings of ``data``; a new dictionary."""
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _exact(text, "data")  # such as 1e400, which Postgres has and orjson has not
    if value is None:
        return {}
    if not isinstance(value, dict):
        hint = " (it is a string: was it encoded twice?)" if isinstance(value, str) else ""
        raise BadPush(f"data must be a JSON object{hint}", code="INVALID_DATA")
    if not set(map(type, value.values())) <= {str}:
        value = _texts(_exact(text, "data"), "data")
    data: dict[str, str] = value
    _refuse_reserved(data)
    return data


def _texts(value: dict[str, Any], column: str) -> dict[str, str]:
    """An object with every value that is no string replaced by its JSON text."""
    try:
        return {
            key: each if isinstance(each, str) else orjson.dumps(each).decode() for key, each in value.items()
        }
    except TypeError:
        raise BadPush(
            f"{column} has text that is not valid Unicode, or is nested too deeply", code=_invalid(column)
        ) from None


def _refuse_reserved(keys: Iterable[str]) -> None:
    for key in keys:
        if key in _RESERVED or key.startswith(_RESERVED_PREFIXES):
            raise BadPush(f"FCM reserves the data key {key[:60]!a}: rename it", code="INVALID_DATA")


# --- options -------------------------------------------------------------------------------------------

_ALLOWED = "options may have only android, apns, webpush and fcm_options, each an object"

# FCM takes both spellings of a field, but not both at once: what we may have set is merged under one.
_SPELLING = {
    "collapseKey": "collapse_key",
    "channelId": "channel_id",
    "fcmOptions": "fcm_options",
    "analyticsLabel": "analytics_label",
}
# Header names are the same in any case, so they are merged under ours.
_HEADERS = {"ttl": "TTL", "urgency": "Urgency", "topic": "Topic"}

_ANDROID_TTL = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s", re.ASCII)
_WEB_TTL = re.compile(r"(\d{1,12})", re.ASCII)
_EPOCH = re.compile(r"\d{1,12}", re.ASCII)


def _bad_options(reason: str) -> BadPush:
    return BadPush(reason, code="INVALID_OPTIONS")


def _merge_options(
    message: dict[str, Any], android: dict[str, Any], webpush: dict[str, Any], text: str, push_id: str
) -> None:
    """Put the sender's ``options`` over what we set, in place."""
    options = _exact(text, "options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise _bad_options(_ALLOWED)
    ours = {"android": android, "apns": message["apns"], "webpush": webpush, "fcm_options": {}}
    expiration = message["apns"]["headers"].get("apns-expiration")
    for name, theirs in options.items():
        if name not in ours or not isinstance(theirs, dict):
            raise _bad_options(_ALLOWED)
        _merge(ours[name], _normal(theirs, name, push_id), f"options.{name}")
    _keep_earlier(message["apns"]["headers"], expiration)
    if ours["fcm_options"]:
        message["fcm_options"] = ours["fcm_options"]
    for config in (message, android, message["apns"], webpush):
        _check_label(config.get("fcm_options"))


def _normal(theirs: dict[str, Any], name: str, push_id: str) -> dict[str, Any]:
    """The sender's settings of one platform, in the spelling that ours have."""
    theirs = {_SPELLING.get(key, key): value for key, value in theirs.items()}
    for key in ("notification", "fcm_options"):
        if isinstance(inner := theirs.get(key), dict):
            theirs[key] = {_SPELLING.get(each, each): value for each, value in inner.items()}
    if isinstance(headers := theirs.get("headers"), dict):
        theirs["headers"] = {_header(key): value for key, value in _texts(headers, "options").items()}
    # Data of one platform replaces the common data there, so it needs the same care.
    if name in ("android", "webpush") and isinstance(data := theirs.get("data"), dict):
        _refuse_reserved(data)
        theirs["data"] = {**_texts(data, "options"), "push_id": push_id}
    return theirs


def _header(name: str) -> str:
    lower = name.lower()
    return _HEADERS.get(lower) or (lower if lower.startswith("apns-") else name)


def _merge(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    for key, value in theirs.items():
        mine = ours.get(key)
        if not isinstance(mine, dict):
            ours[key] = value
        elif isinstance(value, dict):
            _merge(mine, value, f"{path}.{key}")
        else:
            raise _bad_options(f"{path}.{key} must be an object")


def _keep_earlier(headers: dict[str, Any], expiration: str | None) -> None:
    """Of our ``apns-expiration`` and the sender's, the one that comes first."""
    theirs = headers.get("apns-expiration")
    if theirs is None or theirs == expiration:
        return
    if not _EPOCH.fullmatch(theirs):
        raise _bad_options("options.apns.headers.apns-expiration must be seconds since 1970, or 0")
    if expiration is not None and int(expiration) < int(theirs):
        headers["apns-expiration"] = expiration


def _check_label(fcm_options: object) -> None:
    label = fcm_options.get("analytics_label") if isinstance(fcm_options, dict) else None
    if label is not None and not (isinstance(label, str) and _ANALYTICS_LABEL.fullmatch(label)):
        raise _bad_options("analytics_label must be 1 to 50 of the characters a-z A-Z 0-9 - _ . ~ %")


def _own_ttl(value: object, pattern: re.Pattern[str], complaint: str) -> _Ttl | None:
    if value is None:
        return None
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _bad_options(f"options.{complaint}")
    seconds = float(found[1])
    return _Ttl(seconds, found[1].encode()) if seconds <= MAX_TTL else _Ttl(MAX_TTL, b"%d" % MAX_TTL)
