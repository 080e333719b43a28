"""What FCM HTTP v1 makes of a request body. Pure: no I/O.

Two stages, as with FCM. The JSON front end knows only names and types, and reports all that is wrong at
once. Then FCM itself looks at what the message says, and reports the first thing that is wrong.

Sources: the FCM v1 discovery document (field names, types, enums) with the fields newer SDKs send; the
protobuf JSON mapping (both spellings of a name, null is unset, durations); Firebase, "FCM error codes".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from . import answers
from .answers import Answer

Violation = tuple[str | None, str]

MAX_TTL = 28 * 86_400
MAX_PAYLOAD = 4096
MAX_TOPIC_PAYLOAD = 2048
MAX_CONDITION_TOPICS = 5
MAX_TOKEN = 4096
MAX_COLLAPSE_ID = 64
TARGETS = ("token", "fid", "topic", "condition")

_TOPIC_BIG = "Message is too large. The maximum is 2K (2048 bytes)."
_FCM = "type.googleapis.com/google.firebase.fcm.v1."
_TOPIC = re.compile(r"[a-zA-Z0-9\-_.~%]+")
_LABEL = re.compile(r"[a-zA-Z0-9\-_.~%]{1,50}")
_WEB_TOPIC = re.compile(r"[A-Za-z0-9_\-]{1,32}")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_IN_TOPICS = re.compile(r"""(?:'([^']*)'|"([^"]*)")\s+in\s+topics""")


# --- types ---------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Scalar:
    """A protobuf scalar; ``label`` is its name in error texts."""

    label: str


@dataclass(slots=True, frozen=True)
class Enum:
    """A protobuf enum. Names are taken in any case, numbers within range."""

    label: str
    names: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Repeated:
    """A list of ``of``."""

    of: Scalar


@dataclass(slots=True, frozen=True)
class Message:
    """A protobuf message; ``fields`` has each field under both of its names."""

    label: str
    fields: Mapping[str, tuple[str, Type]]
    oneof: tuple[str, tuple[str, ...]] | None = None
    """A oneof's name and its fields."""


Type = Scalar | Enum | Repeated | Message

STRING = Scalar("TYPE_STRING")
BOOL = Scalar("TYPE_BOOL")
INT32 = Scalar("TYPE_INT32")
FLOAT = Scalar("TYPE_FLOAT")
DURATION = Scalar("type.googleapis.com/google.protobuf.Duration")
TIMESTAMP = Scalar("type.googleapis.com/google.protobuf.Timestamp")
STRUCT = Scalar("type.googleapis.com/google.protobuf.Struct")
STRING_MAP = Scalar("map")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _message(
    name: str, fields: Mapping[str, Type], oneof: tuple[str, tuple[str, ...]] | None = None
) -> Message:
    both: dict[str, tuple[str, Type]] = {}
    for field, kind in fields.items():
        both[field] = both[_camel(field)] = (field, kind)
    return Message(_FCM + name, both, oneof)


_COLOR_FIELDS: dict[str, Type] = {"red": FLOAT, "green": FLOAT, "blue": FLOAT, "alpha": FLOAT}
_LABEL_FIELD: dict[str, Type] = {"analytics_label": STRING}

_ANDROID_NOTIFICATION: dict[str, Type] = {
    "title": STRING,
    "body": STRING,
    "icon": STRING,
    "color": STRING,
    "sound": STRING,
    "tag": STRING,
    "click_action": STRING,
    "body_loc_key": STRING,
    "body_loc_args": Repeated(STRING),
    "title_loc_key": STRING,
    "title_loc_args": Repeated(STRING),
    "channel_id": STRING,
    "ticker": STRING,
    "sticky": BOOL,
    "event_time": TIMESTAMP,
    "local_only": BOOL,
    "notification_priority": Enum(
        _FCM + "AndroidNotification.NotificationPriority",
        (
            "PRIORITY_UNSPECIFIED",
            "PRIORITY_MIN",
            "PRIORITY_LOW",
            "PRIORITY_DEFAULT",
            "PRIORITY_HIGH",
            "PRIORITY_MAX",
        ),
    ),
    "default_sound": BOOL,
    "default_vibrate_timings": BOOL,
    "default_light_settings": BOOL,
    "vibrate_timings": Repeated(DURATION),
    "visibility": Enum(
        _FCM + "AndroidNotification.Visibility", ("VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET")
    ),
    "notification_count": INT32,
    "light_settings": _message(
        "LightSettings",
        {
            "color": Message(
                "type.googleapis.com/google.type.Color",
                {name: (name, kind) for name, kind in _COLOR_FIELDS.items()},
            ),
            "light_on_duration": DURATION,
            "light_off_duration": DURATION,
        },
    ),
    "image": STRING,
    "bypass_proxy_notification": BOOL,
    "proxy": Enum(
        _FCM + "AndroidNotification.Proxy", ("PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED")
    ),
}

_ANDROID_COMMON: dict[str, Type] = {
    "collapse_key": STRING,
    "ttl": DURATION,
    "restricted_package_name": STRING,
    "data": STRING_MAP,
    "fcm_options": _message("AndroidFcmOptions", _LABEL_FIELD),
    "direct_boot_ok": BOOL,
    "bandwidth_constrained_ok": BOOL,
    "restricted_satellite_ok": BOOL,
}

_ANDROID = _message(
    "AndroidConfig",
    {
        **_ANDROID_COMMON,
        "priority": Enum(_FCM + "AndroidMessagePriority", ("NORMAL", "HIGH")),
        "notification": _message("AndroidNotification", _ANDROID_NOTIFICATION),
    },
)

# A preview of 2026. Its notification is AndroidNotification with an id.
_ANDROID_V2 = _message(
    "AndroidConfigV2",
    {
        **_ANDROID_COMMON,
        "remote_notification": _message(
            "AndroidRemoteNotification",
            {
                "notification": _message("AndroidNotificationV2", {**_ANDROID_NOTIFICATION, "id": INT32}),
                "mutable_content": BOOL,
                "use_as_v1_data_message": BOOL,
            },
        ),
        "background_sync": _message("AndroidBackgroundSyncMessage", {}),
    },
    oneof=("message", ("remote_notification", "background_sync")),
)

MESSAGE = _message(
    "Message",
    {
        "name": STRING,
        "data": STRING_MAP,
        "notification": _message("Notification", {"title": STRING, "body": STRING, "image": STRING}),
        "android": _ANDROID,
        "android_v2": _ANDROID_V2,
        "webpush": _message(
            "WebpushConfig",
            {
                "headers": STRING_MAP,
                "data": STRING_MAP,
                "notification": STRUCT,
                "fcm_options": _message("WebpushFcmOptions", {"link": STRING, **_LABEL_FIELD}),
            },
        ),
        "apns": _message(
            "ApnsConfig",
            {
                "headers": STRING_MAP,
                "payload": STRUCT,
                "fcm_options": _message("ApnsFcmOptions", {"image": STRING, **_LABEL_FIELD}),
                "live_activity_token": STRING,
            },
        ),
        "fcm_options": _message("FcmOptions", _LABEL_FIELD),
        "token": STRING,
        "fid": STRING,
        "topic": STRING,
        "condition": STRING,
    },
    oneof=("target", TARGETS),
)

REQUEST = _message("SendMessageRequest", {"validate_only": BOOL, "message": MESSAGE})


# --- the front end: names and types --------------------------------------------------------------------


def normalise(body: object) -> tuple[dict[str, Any], list[Violation]]:
    """The request under the names of the protobuf, without nulls, and what the front end objects to.

    The request is of use only if there are no objections.
    """
    violations: list[Violation] = []
    if not isinstance(body, dict):
        text = 'Invalid JSON payload received. Unknown name "": Root element must be a message.'
        return {}, [(None, text)]
    return _read_message(REQUEST, body, "", violations), violations


def _read_message(
    kind: Message, value: dict[str, Any], path: str, violations: list[Violation]
) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, item in value.items():
        found = kind.fields.get(name)
        if found is None:
            at = f" at '{path}'" if path else ""
            text = f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
            violations.append((path or None, text))
            continue
        if item is None:
            continue
        field, of = found
        if kind.oneof is not None and field in kind.oneof[1]:
            for other in kind.oneof[1]:
                if other in read:
                    text = (
                        f"Invalid value at '{path}' (oneof), oneof field '{kind.oneof[0]}' is already set. "
                        f"Cannot set '{name}'"
                    )
                    violations.append((path, text))
        read[field] = _read(of, item, f"{path}.{field}" if path else field, name, violations)
    return read


def _read(kind: Type, value: Any, path: str, name: str, violations: list[Violation]) -> Any:
    if isinstance(kind, Scalar):
        if kind is STRING_MAP:
            return _read_map(value, path, violations)
        wrong = _wrong_scalar(kind, value, name)
    elif isinstance(kind, Enum):
        wrong = _wrong_enum(kind, value)
    elif isinstance(kind, Repeated):
        if isinstance(value, list):
            return [_read(kind.of, item, f"{path}[{i}]", name, violations) for i, item in enumerate(value)]
        violations.append((path, f"Invalid value at '{path}' ({kind.of.label}), {_show(value)}"))
        return value
    elif isinstance(value, dict):
        return _read_message(kind, value, path, violations)
    else:
        wrong = _show(value)
    if wrong is not None:
        if isinstance(value, list) and kind is not STRUCT:
            parent = path.rpartition(".")[0]
            text = (
                f"Invalid JSON payload received. Unknown name \"{name}\" at '{parent}': "
                "Proto field is not repeating, cannot start list."
            )
            violations.append((parent, text))
        else:
            violations.append((path, f"Invalid value at '{path}' ({kind.label}), {wrong}"))
    return value


def _read_map(value: Any, path: str, violations: list[Violation]) -> Any:
    if not isinstance(value, dict):
        violations.append((path, f"Invalid value at '{path}' (map), {_show(value)}"))
        return value
    for i, item in enumerate(value.values()):
        if not isinstance(item, str):
            at = f"{path}[{i}].value"
            text = f"Invalid value at '{at}' ({STRING.label}), {_show(item)}"
            violations.append((at, text))
    return value


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "Starting an object on a scalar field"
    return orjson.dumps(value).decode()


def _wrong_scalar(kind: Scalar, value: Any, name: str) -> str | None:
    """What follows the comma in "Invalid value at 'x' (TYPE), ..."; None if the value is good."""
    if kind is STRING:
        good = isinstance(value, str)
    elif kind is BOOL:
        good = isinstance(value, bool)
    elif kind is INT32:
        good = _whole(value)
    elif kind is FLOAT:
        good = _number(value) is not None
    elif kind is STRUCT:
        good = isinstance(value, dict)
    elif kind is DURATION:
        return _wrong_duration(value, name)
    else:
        good = isinstance(value, str) and _is_timestamp(value)
    return None if good else _show(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> bool:
    number = _number(value)
    return number is not None and number.is_integer() and -(2**31) <= number < 2**31


def _is_timestamp(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _wrong_duration(value: Any, name: str) -> str | None:
    if not isinstance(value, str):
        return _show(value)
    if not value.endswith("s"):
        return f"Field '{name}', Illegal duration format; duration must end with 's'"
    if _DURATION.fullmatch(value) is None:
        return f"Field '{name}', Illegal duration format; \"{value[:-1]}\" is not a number"
    return None


def _wrong_enum(kind: Enum, value: Any) -> str | None:
    if isinstance(value, str) and value.upper() in kind.names:
        return None
    if _whole(value) and 0 <= float(value) < len(kind.names):
        return None
    return _show(value)


# --- FCM: what the message says ------------------------------------------------------------------------


def target_of(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind and value of a message's target; None if it has none."""
    for kind in TARGETS:
        value = message.get(kind)
        if isinstance(value, str):
            return kind, value
    return None


def check(message: Mapping[str, Any]) -> Answer | None:
    """What FCM refuses a well-formed message with; None if it takes it."""
    target = target_of(message)
    if target is None:
        return answers.invalid("message", "Recipient of the message is not set.")
    kind, value = target
    if kind in ("token", "fid") and not _possible_token(value):
        return answers.invalid_token()
    if kind == "topic" and _TOPIC.fullmatch(value) is None:
        return answers.invalid("message", "Topic name contains invalid characters.")
    if kind == "condition" and not _good_condition(value):
        return answers.invalid("message", "Invalid condition expression provided.")
    return (
        _check_data(message) or _check_options(message) or _check_platforms(message) or _check_size(message)
    )


def _possible_token(value: str) -> bool:
    return 0 < len(value) <= MAX_TOKEN and not any(c.isspace() for c in value)


def _good_condition(text: str) -> bool:
    """At most five topics, joined by && and ||, with ! and parentheses."""
    topics = [a or b for a, b in _IN_TOPICS.findall(text)]
    if not 1 <= len(topics) <= MAX_CONDITION_TOPICS:
        return False
    if any(_TOPIC.fullmatch(topic) is None for topic in topics):
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
            if key in ("from", "message_type") or key.startswith(("google.", "gcm.notification.")):
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


def _check_platforms(message: Mapping[str, Any]) -> Answer | None:
    for path in ("android", "android_v2"):
        config = message.get(path, {})
        ttl = config.get("ttl")
        if ttl is not None and not 0 <= float(ttl[:-1]) <= MAX_TTL:
            return answers.invalid(
                f"message.{path}.ttl", "Invalid TTL: must be between 0 and 2419200 seconds."
            )
        color = _android_notification(config).get("color")
        if color and _COLOR.fullmatch(color) is None:
            return answers.invalid(f"message.{path}.notification.color", "Invalid color: must be #rrggbb.")
    headers = _lower(message.get("apns", {}).get("headers", {}))
    if len(headers.get("apns-collapse-id", "").encode()) > MAX_COLLAPSE_ID:
        return _apns("BadCollapseId", "apns-collapse-id is longer than 64 bytes.")
    if headers.get("apns-priority", "10") not in ("1", "5", "10"):
        return _apns("BadPriority", "apns-priority must be 1, 5 or 10.")
    if not headers.get("apns-expiration", "0").isdigit():
        return _apns("BadExpirationDate", "apns-expiration must be Unix time in seconds.")
    headers = _lower(message.get("webpush", {}).get("headers", {}))
    if _WEB_TOPIC.fullmatch(headers.get("topic", "x")) is None:
        return _web("Topic must be at most 32 characters of the URL and filename safe base64 alphabet.")
    if not headers.get("ttl", "0").isdigit():
        return _web("TTL must be a number of seconds.")
    if headers.get("urgency", "normal") not in ("very-low", "low", "normal", "high"):
        return _web("Urgency must be very-low, low, normal or high.")
    return None


def _android_notification(config: Mapping[str, Any]) -> Mapping[str, Any]:
    notification: Mapping[str, Any] = config.get("remote_notification", config).get("notification", {})
    return notification


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _apns(reason: str, text: str) -> Answer:
    return answers.invalid("message.apns.headers", text, answers.apns_error(400, reason))


def _web(text: str) -> Answer:
    return answers.invalid("message.webpush.headers", text)


def payload_size(message: Mapping[str, Any]) -> int:
    """Bytes of payload, as an Android device gets it: keys and values of its data and its notification.

    Firebase documents the limit ("this includes both the keys and the values") but no formula; that
    the notification counts in the same way is inferred.
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
