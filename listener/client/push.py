"""A push as an application describes it, in firebase-admin's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from listener.client.errors import InvalidArgument
from listener.client.platforms import (
    AndroidConfig,
    APNSConfig,
    FCMOptions,
    Json,
    Notification,
    WebpushConfig,
)
from listener.client.transport import object_of, text_of, time_text, to_json, uuid_text

TARGETS = ("fid", "token", "topic", "condition", "user_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One push: its target, what it says, and how it is sent.

    Exactly one of ``fid``, ``token``, ``topic``, ``condition`` and ``user_id`` is set; ``user_id`` may also stand
    beside ``fid`` or ``token``, to say which user the device belongs to.

    Raises:
        ValueError: there is no target, or several, a time has no zone, user_id is not a UUID, or the priority does not
            exist. The database checks the rest.
    """

    notification: Notification | None = None
    data: Mapping[str, Any] | None = None
    """For the app. A value that is not text reaches the app as JSON."""
    android: AndroidConfig | Json | None = None
    apns: APNSConfig | Json | None = None
    webpush: WebpushConfig | Json | None = None
    fcm_options: FCMOptions | Json | None = None

    fid: str | None = field(default=None, repr=False)
    """A Firebase installation id, which newer SDKs hand out in place of a token."""
    token: str | None = field(default=None, repr=False)
    """A registration token."""
    topic: str | None = None
    condition: str | None = None
    user_id: UUID | str | None = None
    """Every device of this user."""

    priority: str | None = None
    """``normal`` or ``high``: the place in the queue, and the priority on Android and the web."""
    channel: str | None = None
    """The notification channel on Android."""
    collapse_key: str | None = None
    idempotency_key: str | None = None
    """1 to 255 characters. A second push with the same key is not added: repeating a call is harmless."""
    send_at: datetime | None = None
    """Not sent before this."""
    expires_at: datetime | None = None
    """Not sent after this."""

    def __post_init__(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"the push has no target: set one of {', '.join(TARGETS)}")
        if len(given) > 1 and not (
            len(given) == 2 and given[0] in ("fid", "token") and given[1] == "user_id"
        ):
            raise ValueError(f"the push has several targets, {' and '.join(given)}: set one")
        if self.user_id is not None:
            uuid_text("user_id", self.user_id)
        if self.priority not in (None, "normal", "high"):
            raise ValueError("priority must be normal or high")
        for name in ("send_at", "expires_at"):
            time = getattr(self, name)
            if time is not None:
                time_text(name, time)

    @classmethod
    def from_message(
        cls,
        message: Any,
        *,
        user_id: UUID | str | None = None,
        collapse_key: str | None = None,
        idempotency_key: str | None = None,
        send_at: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> Self:
        """The push for a ``firebase_admin.messaging.Message``, with everything that the message contains.

        ``android.priority`` also becomes the priority of the push: its place in the queue, and its urgency on the web.

        Args:
            message: the message as for ``messaging.send``.
            user_id: the user whose device the token belongs to, so that this user may send receipts.
            collapse_key, idempotency_key, send_at, expires_at: fields of a push that a message does not have.

        Raises:
            ValueError: firebase-admin refuses the message; or see ``Push``.
            TypeError: ``message`` is not a Message.
        """
        module = type(message).__module__
        if type(message).__name__ != "Message" or not module.startswith("firebase_admin."):
            raise TypeError(
                f"from_message takes a firebase_admin.messaging.Message, not {type(message).__name__}"
                " (for a MulticastMessage, make one push for each token)"
            )
        # A Message's text is the JSON that firebase-admin sends.
        parts: dict[str, Any] = json.loads(str(message))
        notification = parts.get("notification")
        return cls(
            notification=notification and Notification(**notification),
            data=parts.get("data"),
            android=parts.get("android"),
            apns=parts.get("apns"),
            webpush=parts.get("webpush"),
            fcm_options=parts.get("fcm_options"),
            fid=parts.get("fid"),
            token=parts.get("token"),
            topic=parts.get("topic"),
            condition=parts.get("condition"),
            user_id=user_id,
            priority=(parts.get("android") or {}).get("priority"),
            collapse_key=collapse_key,
            idempotency_key=idempotency_key,
            send_at=send_at,
            expires_at=expires_at,
        )

    @property
    def target(self) -> tuple[str, str]:
        """The name and the value of the target that is set."""
        name = next(name for name in TARGETS if getattr(self, name) is not None)
        return name, str(getattr(self, name))

    def columns(self) -> dict[str, Any]:
        """The fields that are set, as JSON values, under the names of the table's columns and of ``enqueue_pushes``.

        Raises:
            InvalidArgument: a field cannot be written as JSON, or FCM would refuse it.
        """
        shown = self.notification or Notification()
        if not isinstance(shown, Notification):
            raise InvalidArgument(f"notification must be a Notification, not {type(shown).__name__}")
        options = {
            name: written
            for name in ("android", "apns", "webpush", "fcm_options")
            if (written := _written(name, getattr(self, name)))
        }
        texts = {
            "fid": self.fid,
            "device_token": self.token,
            "topic": self.topic,
            "condition": self.condition,
            "title": shown.title,
            "body": shown.body,
            "image": shown.image,
            "channel": self.channel,
            "priority": self.priority,
            "collapse_key": self.collapse_key,
            "idempotency_key": self.idempotency_key,
        }
        columns = {
            **{name: text_of(name, value) for name, value in texts.items()},
            "user_id": None if self.user_id is None else uuid_text("user_id", self.user_id),
            "data": object_of("data", self.data),
            "options": options or None,
            "send_at": self.send_at and time_text("send_at", self.send_at),
            "expires_at": self.expires_at and time_text("expires_at", self.expires_at),
        }
        given = {name: value for name, value in columns.items() if value is not None}
        to_json(given)
        return given

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``enqueue_push``, for an application with its own driver: ``{"p_title": ...}``.

        Raises InvalidArgument, as ``columns`` does.
        """
        return {f"p_{name}": value for name, value in self.columns().items()}


def _written(name: str, option: Any) -> dict[str, Any] | None:
    """An option as FCM expects it. Raises InvalidArgument if it is not an option, or FCM would refuse a value."""
    if option is None:
        return None
    if isinstance(option, Mapping):
        return dict(option)
    try:
        written: dict[str, Any] = option.to_fcm()
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    except (TypeError, AttributeError, ArithmeticError) as error:  # for example a number instead of a text
        problem = type(error).__name__
    else:
        return written
    raise InvalidArgument(f"{name} has a value of a wrong type ({problem})")
