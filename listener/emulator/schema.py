"""The names and types of the FCM v1 message. Pure: no I/O.

Sources: the FCM v1 discovery document (field names, types, enums), and also the fields that newer SDKs send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TARGETS = ("token", "fid", "topic", "condition")

_FCM = "type.googleapis.com/google.firebase.fcm.v1."


@dataclass(slots=True, frozen=True)
class Scalar:
    """A protobuf scalar; ``label`` is its name in error texts."""

    label: str


@dataclass(slots=True, frozen=True)
class Enum:
    """A protobuf enum. A value is a name, in upper or lower case, or the number of one."""

    label: str
    names: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Repeated:
    """A list of values of one type."""

    of: Scalar


@dataclass(slots=True, frozen=True)
class Message:
    """A protobuf message.

    ``fields`` has each field twice, under ``collapse_key`` and ``collapseKey`` for example, with its protobuf name.
    """

    label: str
    fields: Mapping[str, tuple[str, Type]]
    oneof: tuple[str, tuple[str, ...]] | None = None
    """The name of a oneof, and its fields."""


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
    for field, field_type in fields.items():
        both[field] = both[_camel(field)] = (field, field_type)
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
                {name: (name, field_type) for name, field_type in _COLOR_FIELDS.items()},
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

# A preview of 2026, in which the notification is an AndroidNotification with an id.
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
