"""A push as a claim brings it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from listener.push import Push

ID = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
TOKEN = "cJug2GoHzEfcshCE_OLL24:APA91bHa8-Viell9xjbeV96V4Njhufk9V7KcOA940Gp7FY1Dxsxmo8AJ7_erhKKqsgqsD8t6"


def push(**columns: Any) -> Push:
    """A plain push to one device, with ``columns`` changed. ``data`` and ``options`` may be objects."""
    row: dict[str, Any] = {
        "id": ID,
        "attempt": 1,
        "retry_count": 0,
        "lost_claims": 0,
        "device_token": TOKEN,
        "fid": None,
        "topic": None,
        "condition": None,
        "user_id": None,
        "recipients": [],
        "accepted_before": 0,
        "title": "Title",
        "body": "Body",
        "data": None,
        "channel": None,
        "priority": None,
        "image": None,
        "options": None,
        "collapse_key": None,
        "expires_at": None,
        "expires_in": None,
        "waited": 0.0,
        "oversized": None,
    }
    for column in ("data", "options"):
        if isinstance(columns.get(column), dict):
            columns[column] = json.dumps(columns[column])
    return Push(**{**row, **columns})
