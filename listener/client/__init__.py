"""What an application imports to put pushes in the queue, record receipts, send telemetry, or run its own worker.

``docs/clients.md`` shows how. This package imports nothing else of push-listener. It imports psycopg only for the names
that need a connection (``Direct``, ``enqueue``, ``progress``, ``wait_for``, ``database_time``), and aiohttp only for
``Rest``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from listener.client.errors import (
    ClientError,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotInstalled,
    TooMany,
    Unavailable,
    WrongState,
)
from listener.client.platforms import (
    AndroidConfig,
    AndroidFCMOptions,
    AndroidNotification,
    APNSConfig,
    APNSFCMOptions,
    APNSPayload,
    Aps,
    ApsAlert,
    CriticalSound,
    FCMOptions,
    LightSettings,
    Notification,
    WebpushConfig,
    WebpushFCMOptions,
    WebpushNotification,
    WebpushNotificationAction,
)
from listener.client.push import Push
from listener.client.push_client import BatchResponse, PushClient, SendResponse
from listener.client.push_progress import ACCEPTED, OVER, DeviceProgress, Progress
from listener.client.receipts import DeliveryReceipts, Receipt, Recorded
from listener.client.telemetry import AsyncTelemetryService, TelemetryService
from listener.client.telemetry_buffer import TelemetryCounts
from listener.client.transport import Transport
from listener.client.worker_client import PendingPush, ProcessingCounts, PushWorkerClient, SendFailed, Stats

if TYPE_CHECKING:
    from listener.client.direct import Direct
    from listener.client.rest import Rest
    from listener.client.transaction import database_time, enqueue, progress, wait_for

__all__ = [
    "ACCEPTED",
    "OVER",
    "APNSConfig",
    "APNSFCMOptions",
    "APNSPayload",
    "AndroidConfig",
    "AndroidFCMOptions",
    "AndroidNotification",
    "Aps",
    "ApsAlert",
    "AsyncTelemetryService",
    "BatchResponse",
    "ClientError",
    "CriticalSound",
    "DeliveryReceipts",
    "DeviceProgress",
    "Direct",
    "FCMOptions",
    "InvalidArgument",
    "LightSettings",
    "NotAllowed",
    "NotFound",
    "NotInstalled",
    "Notification",
    "PendingPush",
    "ProcessingCounts",
    "Progress",
    "Push",
    "PushClient",
    "PushWorkerClient",
    "Receipt",
    "Recorded",
    "Rest",
    "SendFailed",
    "SendResponse",
    "Stats",
    "TelemetryCounts",
    "TelemetryService",
    "TooMany",
    "Transport",
    "Unavailable",
    "WebpushConfig",
    "WebpushFCMOptions",
    "WebpushNotification",
    "WebpushNotificationAction",
    "WrongState",
    "database_time",
    "enqueue",
    "progress",
    "wait_for",
]

_LATER = {
    "Direct": "direct",
    "Rest": "rest",
    "database_time": "transaction",
    "enqueue": "transaction",
    "progress": "transaction",
    "wait_for": "transaction",
}
"""Names whose modules need a driver, imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
