"""The meaning of Apple's answer, which FCM passes on in an ApnsError detail. Pure.

Source: Apple, "Handling notification responses from APNs" (the table of reasons).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class AppleVerdict(Enum):
    """What Apple's reason concerns."""

    GONE = auto()
    """The device's token, which will never work again."""
    MISFIT = auto()
    """The device's token does not fit FCM's credentials for Apple: it is of another environment, app or team.

    One device with a test build gets this answer. If the key is wrong, all devices get it.
    """
    CREDENTIALS = auto()
    """FCM's credentials for Apple."""
    MESSAGE = auto()
    """The message."""
    TOO_LARGE = auto()
    """The size of the message."""
    BUSY = auto()
    """Apple's servers, for the moment."""
    TOO_MANY = auto()
    """The number of notifications to one device."""


_REASONS: Final = {
    "ExpiredToken": AppleVerdict.GONE,
    "Unregistered": AppleVerdict.GONE,
    "BadCertificateEnvironment": AppleVerdict.MISFIT,
    "BadDeviceToken": AppleVerdict.MISFIT,
    "BadEnvironmentKeyInToken": AppleVerdict.MISFIT,
    "BadTopic": AppleVerdict.MISFIT,
    "DeviceTokenNotForTopic": AppleVerdict.MISFIT,
    "MissingTopic": AppleVerdict.MISFIT,
    "TopicDisallowed": AppleVerdict.MISFIT,
    "BadCertificate": AppleVerdict.CREDENTIALS,
    "ExpiredProviderToken": AppleVerdict.CREDENTIALS,
    "Forbidden": AppleVerdict.CREDENTIALS,
    "InvalidProviderToken": AppleVerdict.CREDENTIALS,
    "MissingProviderToken": AppleVerdict.CREDENTIALS,
    "UnrelatedKeyIdInToken": AppleVerdict.CREDENTIALS,
    "BadCollapseId": AppleVerdict.MESSAGE,
    "BadExpirationDate": AppleVerdict.MESSAGE,
    "BadMessageId": AppleVerdict.MESSAGE,
    "BadPriority": AppleVerdict.MESSAGE,
    "DuplicateHeaders": AppleVerdict.MESSAGE,
    "InvalidPushType": AppleVerdict.MESSAGE,
    "PayloadEmpty": AppleVerdict.MESSAGE,
    "PayloadTooLarge": AppleVerdict.TOO_LARGE,
    "IdleTimeout": AppleVerdict.BUSY,
    "InternalServerError": AppleVerdict.BUSY,
    "ServiceUnavailable": AppleVerdict.BUSY,
    "Shutdown": AppleVerdict.BUSY,
    "TooManyProviderTokenUpdates": AppleVerdict.BUSY,
    "TooManyRequests": AppleVerdict.TOO_MANY,
}

# These statuses mean the same whatever the reason. They cover reasons that Apple adds later.
_STATUSES: Final = {410: AppleVerdict.GONE, 413: AppleVerdict.TOO_LARGE, 429: AppleVerdict.TOO_MANY}


def verdict(reason: str, status: int | None) -> AppleVerdict | None:
    """What Apple has said; None if neither the reason nor the status is known.

    Args:
        reason: a word such as "Unregistered"; empty if there is none.
        status: Apple's own HTTP status, which is not FCM's; None if there is none.
    """
    known = _REASONS.get(reason) or _STATUSES.get(status or 0)
    if known is None and status is not None and status >= 500:
        return AppleVerdict.BUSY
    return known


TOPIC_REASONS: Final = frozenset({"BadTopic", "TopicDisallowed", "DeviceTokenNotForTopic"})
"""Reasons that name ``apns-topic``, which FCM sets from the app of the device unless the sender has set it."""


def known_reason(reason: str) -> str:
    """The reason if it is one of Apple's; otherwise empty, because a text from outside may hold anything."""
    return reason if reason in _REASONS else ""
