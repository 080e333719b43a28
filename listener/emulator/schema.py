"""The FCM v1 message, and what Google's JSON front end makes of a request body. Pure: no I/O.

The front end knows only names and types, and reports all that is wrong at once. What the message says is
for :mod:`listener.emulator.checks`.

Sources: the FCM v1 discovery document (field names, types, enums) with the fields newer SDKs send; the
protobuf JSON mapping (both spellings of a name, null is unset, durations); Firebase, "FCM error codes".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

Violation = tuple[str | None, str]

TARGETS = ("token", "fid", "topic", "condition")

_FCM = "type.googleapis.com/google.firebase.fcm.v1."
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")


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
