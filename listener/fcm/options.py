"""The sender's own settings for each platform, from the column ``options``, laid over ours. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from listener.fcm.data import as_texts, exact_json, refuse_reserved
from listener.push import BadPush

MAX_TTL: Final = 28 * 86400
"""Seconds. Source: REST reference, AndroidConfig.ttl, "4 weeks"."""

_ANALYTICS_LABEL = re.compile(r"[a-zA-Z0-9_.~%-]{1,50}")
_ALLOWED = "options may have only android, apns, webpush and fcm_options, each an object"

# FCM accepts either spelling of a field, but not both at once: the fields that we may set are merged under one.
_SPELLING = {
    "collapseKey": "collapse_key",
    "channelId": "channel_id",
    "fcmOptions": "fcm_options",
    "analyticsLabel": "analytics_label",
}
# The case of a header name does not matter, so they are merged under our spelling.
_HEADERS = {"ttl": "TTL", "urgency": "Urgency", "topic": "Topic"}

_ANDROID_TTL = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s", re.ASCII)
_WEB_TTL = re.compile(r"(\d{1,12})", re.ASCII)
_EPOCH = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(slots=True, frozen=True)
class Ttl:
    """A time to live that the sender set in ``options``."""

    seconds: float
    text: bytes
    """The seconds as the sender wrote them."""


def _bad_options(reason: str) -> BadPush:
    return BadPush(reason, code="INVALID_OPTIONS")


@dataclass(slots=True, frozen=True)
class Shown:
    """What a message shows on each platform because of the sender's options alone.

    Source: Apple, "Sending notification requests to APNs", apns-push-type: "alert" is for "an alert, badge, or sound",
    and a "background" push must have none of them.
    """

    android: bool
    """Whether it has a notification of its own."""
    web: bool
    """Whether it has a notification of its own."""
    push_type: str | None
    """The ``apns-push-type`` for iOS; None: the options ask for nothing that has one."""
    has_alert: bool
    """Whether iOS shows a text."""
    has_image: bool
    """Whether iOS is to show an image."""
    has_title: bool
    """Whether one of them has a title."""
    has_content: bool
    """Whether there is anything to send."""


NOTHING_SHOWN = Shown(
    android=False,
    web=False,
    push_type=None,
    has_alert=False,
    has_image=False,
    has_title=False,
    has_content=False,
)


def read_options(text: str | None, push_id: str) -> dict[str, dict[str, Any]]:
    """The sender's options in our spelling, by platform.

    Args:
        text: the column, as JSON.
        push_id: goes into each platform's own data, which replaces the common data there.

    Raises:
        BadPush: the options cannot be sent.
    """
    options = None if text is None else exact_json(text, "options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise _bad_options(_ALLOWED)
    for name, theirs in options.items():
        if name not in ("android", "apns", "webpush", "fcm_options") or not isinstance(theirs, dict | None):
            raise _bad_options(_ALLOWED)
    return {name: _normal(theirs, name, push_id) for name, theirs in options.items() if theirs is not None}


def shown_by(options: dict[str, dict[str, Any]]) -> Shown:
    """What the options make of a message that has neither title nor body."""
    if not options:
        return NOTHING_SHOWN
    android, web = (_inner(options.get(name), "notification") for name in ("android", "webpush"))
    apns = options.get("apns", {})
    payload, headers = _inner(apns, "payload"), _inner(apns, "headers")
    aps = _inner(payload, "aps")
    alert = aps.get("alert")
    push_type = headers.get("apns-push-type")
    if push_type is None and (_is_live(apns, aps)):
        push_type = "liveactivity"
    elif push_type is None and any(aps.get(key) is not None for key in ("alert", "badge", "sound")):
        push_type = "alert"
    titles = (android, web, alert if isinstance(alert, dict) else {})
    own_data = any(set(_inner(options.get(name), "data")) - {"push_id"} for name in ("android", "webpush"))
    return Shown(
        android=_has_any(android),
        web=_has_any(web),
        push_type=push_type if isinstance(push_type, str) else None,
        has_alert=bool(alert),
        has_image=bool(_inner(apns, "fcm_options").get("image")),
        has_title=any(each.get(key) for each in titles for key in _TITLES),
        has_content=_has_any(android)
        or _has_any(web)
        or own_data
        or _has_any(aps)
        or _has_any({**payload, "aps": None})
        or headers.get("apns-push-type") is not None,
    )


_TITLES = ("title", "title_loc_key", "titleLocKey", "title-loc-key")


def _is_live(apns: dict[str, Any], aps: dict[str, Any]) -> bool:
    return bool(
        apns.get("live_activity_token")
        or apns.get("liveActivityToken")
        or (aps.get("event") in ("start", "update", "end") and "content-state" in aps)
    )


def _has_any(fields: dict[str, Any]) -> bool:
    """Whether a field is not null."""
    return any(value is not None for value in fields.values())


def _inner(of: dict[str, Any] | None, key: str) -> dict[str, Any]:
    inner = (of or {}).get(key)
    return inner if isinstance(inner, dict) else {}


def merge_options(
    message: dict[str, Any],
    android: dict[str, Any],
    webpush: dict[str, Any],
    options: dict[str, dict[str, Any]],
) -> None:
    """Lays the sender's ``options`` over our settings, in place. A null removes our setting.

    An object that is null counts as absent, because encoders write null for an empty field. For a background push the
    caller then lets ``keep_background`` restore three settings without which Apple, or FCM, refuses such a push.

    Args:
        message: the message, with ``data`` and ``apns``.
        android: its AndroidConfig.
        webpush: its WebpushConfig.
        options: from ``read_options``.

    Raises:
        BadPush: the options cannot be sent.
    """
    ours = {"android": android, "apns": message["apns"], "webpush": webpush, "fcm_options": {}}
    expiration = message["apns"]["headers"].get("apns-expiration")
    for name, theirs in options.items():
        _merge(ours[name], theirs, f"options.{name}")
    _keep_earlier(message["apns"]["headers"], expiration)
    if ours["fcm_options"]:
        message["fcm_options"] = ours["fcm_options"]
    for config in (message, android, message["apns"], webpush):
        _check_label(config.get("fcm_options"))


def _normal(theirs: dict[str, Any], name: str, push_id: str) -> dict[str, Any]:
    """The sender's settings of one platform, in our spelling."""
    theirs = {_SPELLING.get(key, key): value for key, value in theirs.items()}
    for key in ("notification", "fcm_options"):
        if isinstance(inner := theirs.get(key), dict):
            theirs[key] = {_SPELLING.get(each, each): value for each, value in inner.items()}
    if isinstance(headers := theirs.get("headers"), dict):
        texts = as_texts({key: value for key, value in headers.items() if value is not None}, "options")
        theirs["headers"] = {_header(key): texts.get(key) for key in headers}
    # The data of a platform replaces the common data there, so the same rules hold.
    if name in ("android", "webpush") and isinstance(data := theirs.get("data"), dict):
        refuse_reserved(data)
        theirs["data"] = {**as_texts(data, "options"), "push_id": push_id}
    return theirs


def _header(name: str) -> str:
    lower = name.lower()
    return _HEADERS.get(lower) or (lower if lower.startswith("apns-") else name)


# The sender may put anything into these objects, so a null in them may be intended.
_FREE = ("options.apns.payload", "options.webpush.notification")
# In these objects single fields are ours, or may be.
_SHARED = ("options.apns.payload", "options.apns.payload.aps")


def _merge(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    for key, value in theirs.items():
        mine, inner = ours.get(key), f"{path}.{key}"
        if value is None:
            if isinstance(mine, dict) or inner in _SHARED:
                continue
            ours.pop(key, None)
            if path in _FREE and mine is None:
                ours[key] = None
        elif isinstance(value, dict) and (isinstance(mine, dict) or inner in _SHARED):
            _merge(ours.setdefault(key, {}), value, inner)
        elif isinstance(mine, dict):
            raise _bad_options(f"{inner} must be an object")
        else:
            ours[key] = value


def keep_background(apns: dict[str, Any]) -> None:
    """Restores the fields that a background push needs and that a null has removed.

    Source: Apple, "Pushing background updates to your App": type "background", priority 5, content-available 1. Without
    content-available FCM calls the token of every iPhone invalid (firebase-admin-node, issue 1224).

    Raises:
        BadPush: the sender has set another ``content-available``.
    """
    apns["headers"].setdefault("apns-priority", "5")
    apns["headers"].setdefault("apns-push-type", "background")
    aps = apns["payload"]["aps"]
    if orjson.dumps(aps.setdefault("content-available", 1)) not in (b"1", b"true"):
        raise _bad_options(
            "options.apns.payload.aps.content-available must be 1 where nothing is shown on iOS: leave it out"
        )


def _keep_earlier(headers: dict[str, Any], expiration: str | None) -> None:
    """Keeps the earlier of our ``apns-expiration`` and the sender's."""
    theirs = headers.get("apns-expiration")
    if theirs is None:
        if expiration is not None:
            headers["apns-expiration"] = expiration
        return
    if theirs == expiration:
        return
    if not _EPOCH.fullmatch(theirs):
        raise _bad_options("options.apns.headers.apns-expiration must be seconds since 1970, or 0")
    if expiration is not None and int(expiration) < int(theirs):
        headers["apns-expiration"] = expiration


def _check_label(fcm_options: object) -> None:
    label = fcm_options.get("analytics_label") if isinstance(fcm_options, dict) else None
    if label is not None and not (isinstance(label, str) and _ANALYTICS_LABEL.fullmatch(label)):
        raise _bad_options("analytics_label must be 1 to 50 of the characters a-z A-Z 0-9 - _ . ~ %")


def android_ttl(android: dict[str, Any]) -> Ttl | None:
    """Takes the sender's ``android.ttl`` out of the message. Raises BadPush."""
    return _ttl(android.pop("ttl", None), _ANDROID_TTL, 'options.android.ttl must be like "3600s"')


def web_ttl(webpush: dict[str, Any]) -> Ttl | None:
    """Takes the sender's web ``TTL`` out of the message. Raises BadPush."""
    return _ttl(
        webpush["headers"].pop("TTL", None), _WEB_TTL, 'options.webpush.headers.TTL must be like "3600"'
    )


def _ttl(value: object, pattern: re.Pattern[str], complaint: str) -> Ttl | None:
    if value is None:
        return None
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _bad_options(complaint)
    seconds = float(found[1])
    return Ttl(seconds, found[1].encode()) if seconds <= MAX_TTL else Ttl(MAX_TTL, b"%d" % MAX_TTL)
