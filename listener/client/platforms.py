"""Options of one platform, in the shapes and with the names of firebase-admin.

``to_fcm`` of each class returns what FCM's HTTP v1 API expects, exactly as firebase-admin writes it; a test compares
them. It raises ValueError for a value that FCM would refuse. ``docs/options.md`` says what the listener adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_COLOR_WITH_ALPHA = re.compile(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?")
_LABEL = re.compile(r"[a-zA-Z0-9-_.~%]{1,50}")

Json = Mapping[str, Any]
"""A raw object of FCM's HTTP v1 API, for options that these classes do not have yet."""


@dataclass(frozen=True, slots=True)
class Notification:
    """What every platform shows."""

    title: str | None = None
    body: str | None = None
    image: str | None = None
    """URL of a picture."""


@dataclass(frozen=True, slots=True)
class FCMOptions:
    """Options of FCM for all platforms."""

    analytics_label: str | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty({"analytics_label": _label("FCMOptions", self.analytics_label)})


@dataclass(frozen=True, slots=True)
class LightSettings:
    """How the light of an Android phone blinks; durations in milliseconds, color ``#rrggbb`` or ``#rrggbbaa``."""

    color: str
    light_on_duration_millis: int | float | timedelta
    light_off_duration_millis: int | float | timedelta

    def to_fcm(self) -> dict[str, Any]:
        if not _COLOR_WITH_ALPHA.fullmatch(self.color):
            raise ValueError("LightSettings.color must be #RRGGBB or #RRGGBBAA")
        digits = self.color[1:].ljust(8, "F")
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4, 6)]
        return {
            "color": dict(zip(("red", "green", "blue", "alpha"), parts, strict=True)),
            "light_on_duration": _millis(
                "LightSettings.light_on_duration_millis", self.light_on_duration_millis
            ),
            "light_off_duration": _millis(
                "LightSettings.light_off_duration_millis", self.light_off_duration_millis
            ),
        }


@dataclass(frozen=True, slots=True)
class AndroidNotification:
    """What Android shows; what is set here replaces what ``Notification`` says."""

    title: str | None = None
    body: str | None = None
    icon: str | None = None
    color: str | None = None
    """``#rrggbb``."""
    sound: str | None = None
    tag: str | None = None
    """If it is None, the listener sets the id of the push, so that a second copy replaces the first."""
    click_action: str | None = None
    body_loc_key: str | None = None
    body_loc_args: Sequence[str] | None = None
    title_loc_key: str | None = None
    title_loc_args: Sequence[str] | None = None
    channel_id: str | None = None
    """``Push.channel`` is the same, and shorter."""
    image: str | None = None
    ticker: str | None = None
    sticky: bool | None = None
    event_timestamp: datetime | None = None
    """In UTC if it names no zone."""
    local_only: bool | None = None
    priority: str | None = None
    """``min``, ``low``, ``default``, ``high`` or ``max``: how it is shown, not how fast it is sent."""
    vibrate_timings_millis: Sequence[int | float] | None = None
    default_vibrate_timings: bool | None = None
    default_sound: bool | None = None
    light_settings: LightSettings | None = None
    default_light_settings: bool | None = None
    visibility: str | None = None
    """``private``, ``public`` or ``secret``."""
    notification_count: int | None = None
    proxy: str | None = None
    """``allow``, ``deny`` or ``if_priority_lowered``."""

    def to_fcm(self) -> dict[str, Any]:
        if self.color is not None and not _COLOR.fullmatch(self.color):
            raise ValueError("AndroidNotification.color must be #RRGGBB")
        _needs_key("AndroidNotification", "body_loc", self.body_loc_args, self.body_loc_key)
        _needs_key("AndroidNotification", "title_loc", self.title_loc_args, self.title_loc_key)
        priority = _one_of(
            "AndroidNotification.priority", self.priority, ("min", "low", "default", "high", "max")
        )
        visibility = _one_of(
            "AndroidNotification.visibility", self.visibility, ("private", "public", "secret")
        )
        proxy = _one_of("AndroidNotification.proxy", self.proxy, ("allow", "deny", "if_priority_lowered"))
        event_time = self.event_timestamp
        if event_time is not None:
            event_time = (
                event_time.replace(tzinfo=UTC) if event_time.tzinfo is None else event_time.astimezone(UTC)
            )
        return _without_empty(
            {
                "title": self.title,
                "body": self.body,
                "icon": self.icon,
                "color": self.color,
                "sound": self.sound,
                "tag": self.tag,
                "click_action": self.click_action,
                "body_loc_key": self.body_loc_key,
                "body_loc_args": _list(self.body_loc_args),
                "title_loc_key": self.title_loc_key,
                "title_loc_args": _list(self.title_loc_args),
                "channel_id": self.channel_id,
                "image": self.image,
                "ticker": self.ticker,
                "sticky": self.sticky,
                "event_time": event_time and event_time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "local_only": self.local_only,
                "notification_priority": priority and f"PRIORITY_{priority.upper()}",
                "vibrate_timings": [
                    _millis("AndroidNotification.vibrate_timings_millis", each)
                    for each in self.vibrate_timings_millis or ()
                ],
                "default_vibrate_timings": self.default_vibrate_timings,
                "default_sound": self.default_sound,
                "light_settings": self.light_settings and self.light_settings.to_fcm(),
                "default_light_settings": self.default_light_settings,
                "visibility": visibility and visibility.upper(),
                "notification_count": self.notification_count,
                "proxy": proxy and proxy.upper(),
            }
        )


@dataclass(frozen=True, slots=True)
class AndroidFCMOptions:
    """Options of FCM for Android."""

    analytics_label: str | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty({"analytics_label": _label("AndroidFCMOptions", self.analytics_label)})


@dataclass(frozen=True, slots=True)
class AndroidConfig:
    """What is particular to Android."""

    collapse_key: str | None = None
    priority: str | None = None
    """``normal`` or ``high``; ``Push.priority`` is for Android and the web, and for the place in the queue."""
    ttl: int | float | timedelta | None = None
    """Seconds for which FCM keeps the push for a phone that is off. ``Push.expires_at`` also limits the time in the
    queue."""
    restricted_package_name: str | None = None
    data: Mapping[str, str] | None = None
    notification: AndroidNotification | None = None
    fcm_options: AndroidFCMOptions | None = None
    direct_boot_ok: bool | None = None
    bandwidth_constrained_ok: bool | None = None
    restricted_satellite_ok: bool | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty(
            {
                "collapse_key": self.collapse_key,
                "priority": _one_of("AndroidConfig.priority", self.priority, ("normal", "high")),
                "ttl": None if self.ttl is None else _duration("AndroidConfig.ttl", _seconds(self.ttl)),
                "restricted_package_name": self.restricted_package_name,
                "data": _strings("AndroidConfig.data", self.data),
                "notification": self.notification and self.notification.to_fcm(),
                "fcm_options": self.fcm_options and self.fcm_options.to_fcm(),
                "direct_boot_ok": self.direct_boot_ok,
                "bandwidth_constrained_ok": self.bandwidth_constrained_ok,
                "restricted_satellite_ok": self.restricted_satellite_ok,
            }
        )


@dataclass(frozen=True, slots=True)
class CriticalSound:
    """A sound that iOS plays even if the phone is silent; ``volume`` from 0 to 1."""

    name: str
    critical: bool | None = None
    volume: float | None = None

    def to_fcm(self) -> dict[str, Any]:
        if not self.name:
            raise ValueError("CriticalSound.name must not be empty")
        if self.volume is not None and not 0 <= self.volume <= 1:
            raise ValueError("CriticalSound.volume must be from 0 to 1")
        return _without_empty(
            {"name": self.name, "volume": self.volume, "critical": 1 if self.critical else None}
        )


@dataclass(frozen=True, slots=True)
class ApsAlert:
    """What iOS shows."""

    title: str | None = None
    subtitle: str | None = None
    body: str | None = None
    loc_key: str | None = None
    loc_args: Sequence[str] | None = None
    title_loc_key: str | None = None
    title_loc_args: Sequence[str] | None = None
    action_loc_key: str | None = None
    launch_image: str | None = None
    custom_data: Mapping[str, Any] | None = None

    def to_fcm(self) -> dict[str, Any]:
        _needs_key("ApsAlert", "loc", self.loc_args, self.loc_key)
        _needs_key("ApsAlert", "title_loc", self.title_loc_args, self.title_loc_key)
        return _without_empty(
            {
                "title": self.title,
                "subtitle": self.subtitle,
                "body": self.body,
                "title-loc-key": self.title_loc_key,
                "title-loc-args": _list(self.title_loc_args),
                "loc-key": self.loc_key,
                "loc-args": _list(self.loc_args),
                "action-loc-key": self.action_loc_key,
                "launch-image": self.launch_image,
                **(self.custom_data or {}),
            }
        )


@dataclass(frozen=True, slots=True)
class Aps:
    """The ``aps`` dictionary of Apple."""

    alert: ApsAlert | str | None = None
    badge: int | None = None
    sound: CriticalSound | str | None = None
    content_available: bool | None = None
    category: str | None = None
    thread_id: str | None = None
    mutable_content: bool | None = None
    """Wakes the app's notification service extension, which receipts and pictures need."""
    custom_data: Mapping[str, Any] | None = None

    def to_fcm(self) -> dict[str, Any]:
        written = {
            "alert": self.alert.to_fcm() if isinstance(self.alert, ApsAlert) else self.alert,
            "badge": self.badge,
            "sound": self.sound.to_fcm() if isinstance(self.sound, CriticalSound) else self.sound,
            "category": self.category,
            "thread-id": self.thread_id,
            "content-available": 1 if self.content_available else None,
            "mutable-content": 1 if self.mutable_content else None,
        }
        return _without_empty(_with_custom("Aps", _without_empty(written), self.custom_data))


class APNSPayload:
    """The payload for Apple: ``aps``, and further keys for the app as keyword arguments."""

    __slots__ = ("aps", "custom_data")

    def __init__(self, aps: Aps, **kwargs: Any) -> None:
        self.aps = aps
        self.custom_data = kwargs

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty({"aps": self.aps.to_fcm(), **self.custom_data})


@dataclass(frozen=True, slots=True)
class APNSFCMOptions:
    """Options of FCM for Apple."""

    analytics_label: str | None = None
    image: str | None = None

    def to_fcm(self) -> dict[str, Any]:
        label = _label("APNSFCMOptions", self.analytics_label)
        return _without_empty({"analytics_label": label, "image": self.image})


@dataclass(frozen=True, slots=True)
class APNSConfig:
    """What is particular to Apple."""

    headers: Mapping[str, str] | None = None
    payload: APNSPayload | None = None
    fcm_options: APNSFCMOptions | None = None
    live_activity_token: str | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty(
            {
                "headers": _strings("APNSConfig.headers", self.headers),
                "payload": self.payload and self.payload.to_fcm(),
                "fcm_options": self.fcm_options and self.fcm_options.to_fcm(),
                "live_activity_token": self.live_activity_token,
            }
        )


@dataclass(frozen=True, slots=True)
class WebpushNotificationAction:
    """A button of a notification in a browser."""

    action: str
    title: str
    icon: str | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty({"action": self.action, "title": self.title, "icon": self.icon})


@dataclass(frozen=True, slots=True)
class WebpushNotification:
    """What a browser shows."""

    title: str | None = None
    body: str | None = None
    icon: str | None = None
    actions: Sequence[WebpushNotificationAction] | None = None
    badge: str | None = None
    data: Any = None
    direction: str | None = None
    """``auto``, ``ltr`` or ``rtl``."""
    image: str | None = None
    language: str | None = None
    renotify: bool | None = None
    require_interaction: bool | None = None
    silent: bool | None = None
    tag: str | None = None
    timestamp_millis: int | None = None
    vibrate: Sequence[int] | None = None
    custom_data: Mapping[str, Any] | None = None

    def to_fcm(self) -> dict[str, Any]:
        written = {
            "title": self.title,
            "body": self.body,
            "icon": self.icon,
            "actions": [each.to_fcm() for each in self.actions or ()],
            "badge": self.badge,
            "data": self.data,
            "dir": _one_of("WebpushNotification.direction", self.direction, ("auto", "ltr", "rtl")),
            "image": self.image,
            "lang": self.language,
            "renotify": self.renotify,
            "requireInteraction": self.require_interaction,
            "silent": self.silent,
            "tag": self.tag,
            "timestamp": self.timestamp_millis,
            "vibrate": _list(self.vibrate),
        }
        written = _without_empty(written)
        return _without_empty(_with_custom("WebpushNotification", written, self.custom_data))


@dataclass(frozen=True, slots=True)
class WebpushFCMOptions:
    """Options of FCM for browsers."""

    link: str | None = None
    """The page that a click opens; begins with ``https://``."""

    def to_fcm(self) -> dict[str, Any]:
        if self.link is not None and not self.link.startswith("https://"):
            raise ValueError("WebpushFCMOptions.link must begin with https://")
        return _without_empty({"link": self.link})


@dataclass(frozen=True, slots=True)
class WebpushConfig:
    """What is particular to browsers."""

    headers: Mapping[str, str] | None = None
    data: Mapping[str, str] | None = None
    notification: WebpushNotification | None = None
    fcm_options: WebpushFCMOptions | None = None

    def to_fcm(self) -> dict[str, Any]:
        return _without_empty(
            {
                "headers": _strings("WebpushConfig.headers", self.headers),
                "data": _strings("WebpushConfig.data", self.data),
                "notification": self.notification and self.notification.to_fcm(),
                "fcm_options": self.fcm_options and self.fcm_options.to_fcm(),
            }
        )


def _without_empty(written: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in written.items() if value not in (None, [], {})}


def _with_custom(name: str, written: dict[str, Any], custom: Mapping[str, Any] | None) -> dict[str, Any]:
    if twice := sorted(written.keys() & (custom or {}).keys()):
        raise ValueError(f"{name}.custom_data repeats {', '.join(twice)}, which is set already")
    return {**written, **(custom or {})}


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    if isinstance(values, str):
        raise ValueError("a list is needed, and not one text")
    return None if values is None else list(values)


def _strings(name: str, values: Mapping[str, str] | None) -> dict[str, str] | None:
    if values is None:
        return None
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in values.items()):
        raise ValueError(f"{name} must have only texts as keys and values")
    return dict(values)


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    return value


def _needs_key(name: str, prefix: str, args: Sequence[str] | None, key: str | None) -> None:
    if args and not key:
        raise ValueError(f"{name}.{prefix}_key is needed beside {prefix}_args")


def _label(name: str, label: str | None) -> str | None:
    if label is not None and not _LABEL.fullmatch(label):
        raise ValueError(f"{name}.analytics_label must be 1 to 50 of the characters a-z A-Z 0-9 - _ . ~ %")
    return label


def _seconds(value: int | float | timedelta) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def _millis(name: str, value: int | float | timedelta) -> str:
    return _duration(name, value if isinstance(value, timedelta) else timedelta(milliseconds=value))


def _duration(name: str, value: timedelta) -> str:
    """A duration as protobuf writes it in JSON: ``3s``, ``1.500000000s``."""
    if value < timedelta(0):
        raise ValueError(f"{name} must not be negative")
    micros = value // timedelta(microseconds=1)
    seconds, rest = divmod(micros, 1_000_000)
    return f"{seconds}.{rest * 1000:09d}s" if rest else f"{seconds}s"
