"""From a row to the body of an FCM HTTP v1 request. Pure.

`prepare` checks a push once and writes the JSON that all its copies share. `Prepared.encode` only joins bytes, for each
target and each try.

Sources: Firebase, REST reference "projects.messages" (Message, AndroidConfig, ApnsConfig, WebpushConfig) and "FCM error
codes"; Apple, "Sending notification requests to APNs"; RFC 8030 for TTL, Urgency and Topic.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from listener.fcm.data import read_data
from listener.fcm.options import (
    MAX_TTL,
    NOTHING_SHOWN,
    Shown,
    Ttl,
    android_ttl,
    keep_background,
    merge_options,
    read_options,
    shown_by,
    web_ttl,
)
from listener.push import BadPush, Push, Target, TargetKind

TOKEN_LIMIT: Final = 4096
"""Characters; no registration token and no installation id is longer."""

DEVICE_PAYLOAD_LIMIT: Final = 4096
"""Bytes of payload to a device. Source: Firebase, "FCM error codes", "Message too big"."""

TOPIC_PAYLOAD_LIMIT: Final = 2048
"""Bytes of payload to a topic or a condition. Source: the same."""

MAX_CONDITION_TOPICS: Final = 5
"""Source: Firebase, "Send messages to topics", "up to five topics in your conditional expression"."""

# A Firebase installation id: 132 bits in base64url, of which the first four are 0111. A registration token is longer,
# because it begins with the id of its installation. Source: firebase-js-sdk, packages/installations, VALID_FID_PATTERN.
_FID = re.compile(r"[cdef][A-Za-z0-9_-]{21}")

_TOPIC = re.compile(r"[a-zA-Z0-9_.~%-]+")
_IN_TOPICS = re.compile(r"\bin\s+topics\b", re.IGNORECASE)
_WEB_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,32}")


# --- where it goes -------------------------------------------------------------------------------------


def targets(push: Push) -> list[Target]:
    """Where a push goes: its device, topic or condition, or else every live device of its user.

    The list is empty for a user without devices. It omits a device whose token is not valid, so that the other devices
    get the push, and has a token only once. ``push_recipients`` has tokens and installation ids in one column: their
    form tells which is which.

    Raises:
        BadPush: the row names no target, more than one, or an impossible one, or no token of the user can be one.
    """
    if push.oversized:
        raise _oversized(push)
    token, fid, topic, condition = push.device_token, push.fid, push.topic, push.condition
    if (token is not None) + (fid is not None) + (topic is not None) + (condition is not None) > 1:
        raise BadPush(
            "more than one of device_token, fid, topic and condition is set: set exactly one",
            code="INVALID_TARGET",
        )
    if token is not None:
        if not _may_be_token(token):
            raise BadPush(
                f"device_token is empty, longer than {TOKEN_LIMIT} characters, or has blanks or other "
                "characters that no registration token has: store it as the app got it",
                code="INVALID_TOKEN",
            )
        return [Target(TargetKind.TOKEN, token)]
    if fid is not None:
        if not _may_be_token(fid):
            raise BadPush(
                f"fid is empty, longer than {TOKEN_LIMIT} characters, or has blanks or other characters that no "
                "installation id has: store it as the app got it",
                code="INVALID_TOKEN",
            )
        return [Target(TargetKind.FID, fid)]
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
            "the push has no target: set device_token, fid, topic, condition or user_id", code="NO_TARGET"
        )
    devices: dict[str, str | None] = {}
    for device, platform in push.recipients:
        if _may_be_token(device):
            devices.setdefault(device, platform)
    if push.recipients and not devices and not push.accepted_before:
        raise BadPush(
            f"no token of the user in push_recipients can be a registration token ({len(push.recipients)} there): each "
            "is empty, too long, or has blanks or other characters that no token has: store them as the app got them",
            code="INVALID_TOKEN",
        )
    return [
        Target(TargetKind.FID if is_installation_id(device) else TargetKind.TOKEN, device, platform)
        for device, platform in devices.items()
    ]


def is_installation_id(text: str) -> bool:
    """Whether a text has the form of a Firebase installation id, which no registration token has."""
    return _FID.fullmatch(text) is not None


def _may_be_token(text: str) -> bool:
    """Whether a text has the characters and the length of a token. A regular expression would take 1 us more."""
    return 0 < len(text) <= TOKEN_LIMIT and text.isascii() and text.isprintable() and " " not in text


def _oversized(push: Push) -> BadPush:
    return BadPush(f"far too large to be sent: {push.oversized}", code="PAYLOAD_TOO_LARGE")


# --- what it says --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prepared:
    """A push that can be sent: the JSON that all its copies share. See `prepare`."""

    until_ttl: bytes
    """From the end of the target to the end of ``android``. That object is not closed, so that a ``ttl`` can follow."""
    until_web_ttl: bytes
    """From there to the end of ``webpush.headers``. That object is not closed, so that a ``TTL`` can follow."""
    android_ttl: Ttl | None = None
    web_ttl: Ttl | None = None
    doubts_token: bool = False
    """Whether FCM may call the valid token of an iPhone invalid.

    It does so for a message with settings for Apple that has nothing to show and no ``content-available``. Source:
    firebase-admin-node, issue 1224; beste/firebase-php, issue 700.
    """

    is_for_activity: bool = False
    """Whether it has a ``live_activity_token``."""
    names_apns_topic: bool = False
    """Whether the sender has set ``apns-topic``."""

    def encode(self, target: Target, expires_in: float | None, validate_only: bool = False) -> bytes:
        """The request body for one target and one try.

        Args:
            target: one of `targets`.
            expires_in: seconds until the push expires; None if it never does. FCM gets whole seconds, rounded down
                ("FCM error codes": ttl is "an integer representing a duration in seconds"), from 0 ("now or never") to
                28 days, or the ttl that the sender set in ``options``, if that is shorter.
            validate_only: FCM checks the message and does not send it.
        """
        parts = [_UNTIL_TARGET[target.kind], orjson.dumps(target.value), self.until_ttl]
        expires = expires_in is not None
        if (expires or self.android_ttl) and (ttl := _shorter(self.android_ttl, expires_in)):
            parts += (_comma(self.until_ttl), b'"ttl":"', ttl, b's"')
        parts.append(self.until_web_ttl)
        if (expires or self.web_ttl) and (ttl := _shorter(self.web_ttl, expires_in)):
            parts += (_comma(self.until_web_ttl), b'"TTL":"', ttl, b'"')
        parts.append(b'}}},"validate_only":true}' if validate_only else b"}}}}")
        return b"".join(parts)


_UNTIL_TARGET = {kind: b'{"message":{"%s":' % kind.encode() for kind in TargetKind}


def _comma(text: bytes) -> bytes:
    """The comma before the next member of the object that ``text`` has begun; none if the sender has emptied it."""
    return b"" if text.endswith(b"{") else b","


def _shorter(own: Ttl | None, expires_in: float | None) -> bytes | None:
    """The shorter of two times to live, in seconds, as FCM accepts it."""
    if expires_in is None:
        return own.text if own else None
    if own and own.seconds <= expires_in:
        return own.text
    return b"%d" % max(0.0, min(MAX_TTL, expires_in))


def prepare(push: Push) -> Prepared:
    """Check a push and write what all its copies share.

    - With a title it is a notification, which the phone itself shows. With data and neither title nor body it is a data
      message, which only the app sees. A data message has no notification object at all, because FCM would make even
      one that only holds a tag or a channel visible; so ``channel`` and ``image`` have no effect on it. To iOS it goes
      with priority 5 whatever the row says, because Apple refuses any other for a background push.
    - A visible push goes to iOS with priority 10, FCM's own default for it, whatever the row says: with 5 an iPhone may
      hold it back to spare its battery. If it has an image, it also has ``mutable-content``, without which iOS shows no
      image.
    - If only ``options`` make a push visible on a platform (a localized alert, a badge, a live activity), it gets what
      its kind needs there: a tag, and for iOS its ``apns-push-type``. A live activity has the priority of the row.
    - The id of the push is the Android notification tag, the ``apns-collapse-id``, the web ``Topic`` and the web
      notification's tag, so that a second copy replaces the first on the device. The app finds it in ``data`` as
      ``push_id``.
    - Only the sender sets ``collapse_key``, because a device keeps only four of them. It is also the
      ``apns-collapse-id`` if it has at most 64 printable ASCII characters, and the web ``Topic`` if it has at most 32
      base64url characters.
    - ``options`` replace all of this, field by field; a null removes a field. There are three exceptions: of two times
      to live the shorter counts (``android.ttl``, web ``TTL`` and ``apns-expiration`` beside ``expires_at``),
      ``push_id`` stays, and so do the fields that a background push to iOS needs.

    Raises:
        BadPush: the push can never be sent as it is. ``code`` is PAYLOAD_TOO_LARGE, EMPTY_MESSAGE, TITLE_MISSING,
            INVALID_PRIORITY, INVALID_DATA, INVALID_OPTIONS or INVALID_PUSH.
    """
    if push.oversized:
        raise _oversized(push)
    high = _is_high(push.priority)
    data = read_data(push.data)
    push_id = str(push.id)
    options = read_options(push.options, push_id) if push.options is not None else {}
    shown = shown_by(options) if options else NOTHING_SHOWN
    notification = _notification(push, data, shown)
    data["push_id"] = push_id

    try:
        if not (options or push.collapse_key or push.expires_at is not None):
            plain = _plain(high, notification is not None, bool(push.image), push.channel)
            if (prepared := _prepared_plain(data, notification, plain, push_id)) is not None:
                return prepared
        return _prepared(push, data, notification, options, shown, push_id)
    except (UnicodeEncodeError, TypeError):
        raise BadPush("there is text that is not valid Unicode, or JSON nested too deeply") from None


def _prepared(
    push: Push,
    data: dict[str, str],
    notification: dict[str, str] | None,
    options: dict[str, dict[str, Any]],
    shown: Shown,
    push_id: str,
) -> Prepared:
    is_live = shown.push_type == "liveactivity"
    is_background = not notification and shown.push_type in (None, "background")
    android, apns, webpush = _settings(
        shown,
        push_id,
        push_id.replace("-", ""),
        is_high=_is_high(push.priority),
        has_notification=notification is not None,
        has_image=bool(push.image),
        channel=push.channel,
    )
    if push.expires_at is not None and math.isfinite(push.expires_at):
        apns["headers"]["apns-expiration"] = str(max(0, int(push.expires_at)))
    if key := push.collapse_key:
        android["collapse_key"] = key
        if len(key) <= 64 and key.isascii() and key.isprintable() and not is_live:
            apns["headers"]["apns-collapse-id"] = key
        if _WEB_TOPIC.fullmatch(key):
            webpush["headers"]["Topic"] = key
    message: dict[str, Any] = {"data": data, "apns": apns}
    if notification:
        message["notification"] = notification

    own_android_ttl = own_web_ttl = None
    if options:
        # Fields that are all null show nothing, and an empty notification would hide the data from the app.
        for name, is_shown in (
            ("android", notification or shown.android),
            ("webpush", notification or shown.web),
        ):
            if not is_shown and name in options:
                options[name].pop("notification", None)
        merge_options(message, android, webpush, options)
        if is_background:
            keep_background(apns)
        own_android_ttl, own_web_ttl = android_ttl(android), web_ttl(webpush)
    # ``encode`` writes the times to live last in their objects.
    webpush["headers"] = webpush.pop("headers")
    until_ttl = b"," + orjson.dumps(message)[1:-1] + b',"android":' + orjson.dumps(android)[:-1]
    until_web_ttl = b'},"webpush":' + orjson.dumps(webpush)[:-2]
    _check_size(message, android, push, len(until_ttl))
    return Prepared(
        until_ttl,
        until_web_ttl,
        own_android_ttl,
        own_web_ttl,
        doubts_token=not (notification or shown.has_alert or _is_available(apns)),
        is_for_activity=bool(apns.get("live_activity_token") or apns.get("liveActivityToken")),
        names_apns_topic="apns-topic" in apns["headers"],
    )


def _settings(
    shown: Shown,
    push_id: str,
    web_topic: str,
    *,
    is_high: bool,
    has_notification: bool,
    has_image: bool,
    channel: str | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings for Android, for Apple and for browsers that follow from the columns."""
    is_live = shown.push_type == "liveactivity"
    is_background = not has_notification and shown.push_type in (None, "background")
    is_visible = has_notification or shown.push_type == "alert"
    at_once = is_high or (is_visible and not is_live)
    android: dict[str, Any] = {"priority": "HIGH" if is_high else "NORMAL"}
    apns: dict[str, Any] = {"headers": {"apns-priority": "10" if at_once and not is_background else "5"}}
    webpush: dict[str, Any] = {"headers": {"Urgency": "high" if is_high else "normal", "Topic": web_topic}}
    if not is_live:  # for notifications: an update of a live activity replaces the one before anyway
        apns["headers"]["apns-collapse-id"] = push_id
    if has_notification or shown.android:
        android["notification"] = {"tag": push_id}
        if channel:
            android["notification"]["channel_id"] = channel
    if has_notification or shown.web:
        webpush["notification"] = {"tag": push_id}
    if is_live:
        apns["headers"]["apns-push-type"] = "liveactivity"
    elif not has_notification:
        apns["headers"]["apns-push-type"] = shown.push_type or "background"
    if is_background:
        apns["payload"] = {"aps": {"content-available": 1}}
    elif (has_notification and has_image) or shown.has_image:
        apns["payload"] = {"aps": {"mutable-content": 1}}  # an extension of the app fetches the image
    return android, apns, webpush


# --- most pushes ---------------------------------------------------------------------------------------

# Placeholders for the id of the push, and for its form in the web topic.
_ID = "c5b1d24e-0b62-4e4c-8a0f-6a6f36b0b6a5"
_TOPIC_OF_ID = "6a0f36b0b6a5c5b1d24e0b624e4c8a0f"


class _Plain(NamedTuple):
    """The settings of a push without options, collapse key and expiry, in parts: the id goes between them."""

    until_ttl: list[bytes]
    """For Apple and Android."""
    until_web_topic: list[bytes]
    after_web_topic: bytes


@functools.lru_cache(maxsize=256)
def _plain(is_high: bool, has_notification: bool, has_image: bool, channel: str | None) -> _Plain:
    android, apns, webpush = _settings(
        NOTHING_SHOWN,
        _ID,
        _TOPIC_OF_ID,
        is_high=is_high,
        has_notification=has_notification,
        has_image=has_image,
        channel=channel,
    )
    webpush["headers"] = webpush.pop("headers")
    until_ttl = b',"apns":' + orjson.dumps(apns) + b',"android":' + orjson.dumps(android)[:-1]
    web = b'},"webpush":' + orjson.dumps(webpush)[:-2]
    until_topic, _, after_topic = web.partition(_TOPIC_OF_ID.encode())
    return _Plain(until_ttl.split(_ID.encode()), until_topic.split(_ID.encode()), after_topic)


def _prepared_plain(
    data: dict[str, str], notification: dict[str, str] | None, plain: _Plain, push_id: str
) -> Prepared | None:
    """Does the same as ``_prepared`` for a push that ``_Plain`` describes, in half the time.

    None: its payload may be too large.
    """
    texts = b',"data":' + orjson.dumps(data)
    if notification:
        texts += b',"notification":' + orjson.dumps(notification)
    its_id = push_id.encode()
    until_ttl = texts + its_id.join(plain.until_ttl)
    if len(until_ttl) > TOPIC_PAYLOAD_LIMIT:
        return None
    until_web_ttl = (
        its_id.join(plain.until_web_topic) + push_id.replace("-", "").encode() + plain.after_web_topic
    )
    return Prepared(until_ttl, until_web_ttl)


# --- sizes and texts -----------------------------------------------------------------------------------


def _is_available(apns: dict[str, Any]) -> bool:
    """Whether it has ``content-available``."""
    aps = (apns.get("payload") or {}).get("aps")
    return isinstance(aps, dict) and aps.get("content-available") is not None


def payload_size(message: dict[str, Any], android: dict[str, Any]) -> int:
    """Bytes of payload that a message brings to an Android device, as FCM limits them.

    These are the keys and values, in UTF-8, of the data and of the notification: "the total size of the payload data
    included in a message [...] includes both the keys and the values" (Firebase, "FCM error codes"). The settings of
    ``android`` are laid over the common ones, as FCM does it, so tag and channel count too. The target, the delivery
    settings and the other platforms do not count. FCM's own framing, some tens of bytes, is not documented. If a
    message exceeds the limit only by that, FCM itself refuses it.

    Args:
        message: with ``data`` and, unless it is a data message, ``notification``.
        android: its AndroidConfig.

    Raises:
        UnicodeEncodeError: a text has a lone surrogate.
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
    """Refuse a payload that is too large. ``json_size``: of message and android as JSON, which is never smaller."""
    to_topic = push.topic is not None or push.condition is not None
    limit = TOPIC_PAYLOAD_LIMIT if to_topic else DEVICE_PAYLOAD_LIMIT
    if json_size <= limit:
        return
    size = payload_size(message, android)
    if size > limit:
        target = "a topic or condition" if to_topic else "a device"
        raise BadPush(
            f"the payload is {size} bytes, and FCM takes {limit} to {target}: shorten title, body or data",
            code="PAYLOAD_TOO_LARGE",
        )


def _is_high(priority: str | None) -> bool:
    if priority is None or priority == "normal":
        return False
    if priority == "high":
        return True
    raise BadPush("priority must be 'normal' or 'high'", code="INVALID_PRIORITY")


def _notification(push: Push, data: dict[str, str], shown: Shown) -> dict[str, str] | None:
    """The part that is visible everywhere; None for a data message. An empty text counts as none."""
    if not push.title and not push.body:
        if not data and not shown.has_content:
            raise BadPush(
                "title, body, data and options are all empty: nothing to send", code="EMPTY_MESSAGE"
            )
        return None
    if push.title is None and not shown.has_title:
        raise BadPush(
            "title is null and body is not: set title, or for a data message leave body null too",
            code="TITLE_MISSING",
        )
    notification = {} if push.title is None else {"title": push.title}
    if push.body:
        notification["body"] = push.body
    if push.image:
        notification["image"] = push.image
    return notification
