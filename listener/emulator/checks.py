"""FCM's own checks of a well-formed message. Like FCM, they report only the first violation. Pure: no I/O.

Sources: the FCM v1 discovery document (descriptions of the fields); Firebase, "FCM error codes", ``ErrorCode`` and
``projects.registrations.topicSubscriptions`` (topic names); Apple, "Sending notification requests to APNs"; RFC 8030;
google.type.Color. Texts that are not in :mod:`listener.emulator.answers` are inferred, except those for the recipient,
the topic and the data key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from listener.emulator import answers
from listener.emulator.answers import Answer
from listener.emulator.schema import TARGETS

MAX_TTL = 28 * 86_400
MAX_PAYLOAD = 4096
MAX_TOPIC_PAYLOAD = 2048
MAX_CONDITION_TOPICS = 5
MAX_CONDITION = 8192
"""The most characters of a condition. Inferred: five of the longest topic names fit."""
MAX_TOKEN = 4096
MAX_COLLAPSE_ID = 64

PUSH_TYPES = frozenset(
    {
        "alert",
        "background",
        "complication",
        "controls",
        "fileprovider",
        "liveactivity",
        "location",
        "mdm",
        "pushtotalk",
        "voip",
        "widgets",
    }
)
"""The values of the header ``apns-push-type``."""

_TOPIC_BIG = "Message is too large. The maximum is 2K (2048 bytes)."
_TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]{1,900}")
_LABEL = re.compile(r"[a-zA-Z0-9\-_.~%]{1,50}")
_WEB_TOPIC = re.compile(r"[A-Za-z0-9_\-]{1,32}")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_IN_TOPICS = re.compile(r"""(?:'([^']*)'|"([^"]*)")\s+in\s+topics""")


def target_of(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind and value of a message's target; None if it has none."""
    for kind in TARGETS:
        value = message.get(kind)
        if isinstance(value, str):
            return kind, value
    return None


def check(message: Mapping[str, Any]) -> Answer | None:
    """FCM's refusal of a well-formed message; None if FCM accepts the message."""
    target = target_of(message)
    if target is None:
        return answers.invalid("message", "Recipient of the message is not set.")
    kind, value = target
    if kind in ("token", "fid") and not possible_token(value):
        return answers.invalid_token(f"message.{kind}")
    if kind == "topic" and not good_topic(value):
        return answers.invalid("message", "Topic name contains invalid characters.")
    if kind == "condition" and not _good_condition(value):
        return answers.invalid("message", "Invalid condition expression provided.")
    return (
        _check_data(message)
        or _check_options(message)
        or _check_android(message)
        or _check_apns(message)
        or _check_webpush(message)
        or _check_size(message)
    )


def possible_token(value: str) -> bool:
    """Whether FCM could have issued this registration token or installation id."""
    return 0 < len(value) <= MAX_TOKEN and not any(c.isspace() for c in value)


def good_topic(name: str) -> bool:
    """Whether a topic can have this name."""
    return _TOPIC.fullmatch(name) is not None


def _good_condition(text: str) -> bool:
    """Whether it has at most five topics, joined by && and ||, with ! and parentheses."""
    if len(text) > MAX_CONDITION:
        return False
    topics = [a or b for a, b in _IN_TOPICS.findall(text)]
    if not 1 <= len(topics) <= MAX_CONDITION_TOPICS:
        return False
    if not all(map(good_topic, topics)):
        return False
    if "T" in _IN_TOPICS.sub("", text):
        return False
    rest = re.sub(r"\s+", "", _IN_TOPICS.sub("T", text))
    while True:
        shorter = re.sub(r"!T|\(T\)|T(?:&&|\|\|)T", "T", rest)
        if shorter == rest:
            return rest == "T"
        rest = shorter


def _maps(message: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for path in ("", "android", "android_v2", "webpush"):
        holder = message.get(path, {}) if path else message
        if "data" in holder:
            yield (f"message.{path}.data" if path else "message.data"), holder["data"]


def _check_data(message: Mapping[str, Any]) -> Answer | None:
    for path, data in _maps(message):
        for key in data:
            # The reference of Message reserves "from", "message_type" and the prefixes "google." and
            # "gcm.notification.", that of ErrorCode "from", "gcm" and "any value prefixed by google".
            if key in ("from", "message_type", "gcm") or key.startswith(("google", "gcm.notification.")):
                return answers.invalid(path, f"Invalid data payload key: {key}")
    return None


def _check_options(message: Mapping[str, Any]) -> Answer | None:
    for path in ("", "android", "android_v2", "apns", "webpush"):
        options = (message.get(path, {}) if path else message).get("fcm_options", {})
        label = options.get("analytics_label")
        if label and _LABEL.fullmatch(label) is None:
            at = ".".join(part for part in ("message", path, "fcm_options.analytics_label") if part)
            return answers.invalid(at, "Invalid analytics label.")
        link = options.get("link")
        if link and not link.startswith("https://"):
            return answers.invalid("message.webpush.fcm_options.link", "Invalid link: HTTPS is required.")
    return None


def _check_android(message: Mapping[str, Any]) -> Answer | None:
    for path, inner in (("android", ""), ("android_v2", ".remote_notification")):
        config = message.get(path, {})
        ttl = config.get("ttl")
        if ttl is not None and not 0 <= float(ttl[:-1]) <= MAX_TTL:
            return answers.invalid(
                f"message.{path}.ttl", "Invalid TTL: must be between 0 and 2419200 seconds."
            )
        notification = _android_notification(config)
        at = f"message.{path}{inner}.notification"
        color = notification.get("color")
        if color and _COLOR.fullmatch(color) is None:
            return answers.invalid(f"{at}.color", "Invalid color: must be #rrggbb.")
        if "light_settings" in notification:
            refusal = _check_light(notification["light_settings"], f"{at}.light_settings")
            if refusal is not None:
                return refusal
    return None


def _check_light(settings: Mapping[str, Any], path: str) -> Answer | None:
    """The reference says that all three settings are required. A missing part of a colour is 0, as in any protobuf."""
    for name in ("color", "light_on_duration", "light_off_duration"):
        if name not in settings:
            return answers.invalid(f"{path}.{name}", f"Invalid light settings: {name} is required.")
    for name, share in settings["color"].items():
        if not 0 <= float(share) <= 1:
            return answers.invalid(f"{path}.color.{name}", f"Invalid color: {name} must be between 0 and 1.")
    return None


def _android_notification(config: Mapping[str, Any]) -> Mapping[str, Any]:
    notification: Mapping[str, Any] = config.get("remote_notification", config).get("notification", {})
    return notification


def _check_apns(message: Mapping[str, Any]) -> Answer | None:
    apns = message.get("apns", {})
    headers = _lower(apns.get("headers", {}))
    if len(headers.get("apns-collapse-id", "").encode()) > MAX_COLLAPSE_ID:
        return answers.refused_by_apple("BadCollapseId")
    if headers.get("apns-priority", "10") not in ("1", "5", "10"):
        return answers.refused_by_apple("BadPriority")
    if not headers.get("apns-expiration", "0").isdigit():
        return answers.refused_by_apple("BadExpirationDate")
    if headers.get("apns-push-type", "alert") not in PUSH_TYPES:
        return answers.refused_by_apple("InvalidPushType")
    to_device = "token" in message or "fid" in message
    if to_device and (headers or apns.get("payload")) and not _delivers_on_ios(message, apns):
        return answers.invalid_token()
    return None


def _delivers_on_ios(message: Mapping[str, Any], apns: Mapping[str, Any]) -> bool:
    """Whether there is anything for Apple to deliver: a text, a badge, a sound, a live activity or content-available.

    If a message has settings for Apple but nothing to deliver, FCM blames the token of the iOS device. Users report it
    in firebase/firebase-admin-node#1224 (a valid token, "Invalid registration token"), beste/firebase-php#700 (an
    apns-priority in a data message; content-available helps), firebase/firebase-admin-java#214 (an empty ``aps``; a
    badge helps) and firebase/firebase-admin-go#679. It is inferred that a live activity is enough.
    """
    if any(message.get("notification", {}).values()) or apns.get("live_activity_token"):
        return True
    aps = apns.get("payload", {}).get("aps")
    if not isinstance(aps, dict):
        return False
    if aps.get("content-available") in (1, "1"):
        return True
    return any(aps.get(name) is not None for name in ("alert", "badge", "sound", "content-state"))


def _check_webpush(message: Mapping[str, Any]) -> Answer | None:
    headers = _lower(message.get("webpush", {}).get("headers", {}))
    if _WEB_TOPIC.fullmatch(headers.get("topic", "x")) is None:
        return _web("Topic must be at most 32 characters of the URL and filename safe base64 alphabet.")
    if not headers.get("ttl", "0").isdigit():
        return _web("TTL must be a number of seconds.")
    if headers.get("urgency", "normal") not in ("very-low", "low", "normal", "high"):
        return _web("Urgency must be very-low, low, normal or high.")
    return None


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _web(text: str) -> Answer:
    return answers.invalid("message.webpush.headers", text)


def payload_size(message: Mapping[str, Any]) -> int:
    """Bytes of payload on an Android device: the keys and values of its data and its notification.

    Firebase documents the limit ("this includes both the keys and the values") but no formula. It is inferred that the
    notification counts in the same way.
    """
    android = message.get("android") or message.get("android_v2", {})
    data = android.get("data") or message.get("data", {})
    notification = {**message.get("notification", {}), **_android_notification(android)}
    size = sum(len(key.encode()) + len(value.encode()) for key, value in data.items())
    for key, value in notification.items():
        size += len(key) + len(value.encode() if isinstance(value, str) else orjson.dumps(value))
    return size


def _check_size(message: Mapping[str, Any]) -> Answer | None:
    fan_out = "topic" in message or "condition" in message
    limit = MAX_TOPIC_PAYLOAD if fan_out else MAX_PAYLOAD
    apns = message.get("apns", {}).get("payload")
    webpush = message.get("webpush", {})
    if payload_size(message) > limit:
        return answers.too_big(_TOPIC_BIG) if fan_out else answers.too_big()
    if apns and len(orjson.dumps(apns)) > limit:
        return answers.too_big("iOS message is too big")
    web = {name: webpush[name] for name in ("data", "notification") if name in webpush}
    if web and len(orjson.dumps(web)) > limit:
        return answers.too_big("Web message is too big")
    return None
