"""Hypothesis strategies that several tests draw from."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

from listener.push import Push

SECRET = "S3cr3t"
"""In every text of ``pushes`` that must not be shown: tokens, title, body, values of data and options."""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value, as Python has it."""

_ANY = st.text(max_size=30) | st.text(st.characters(codec=None), max_size=6)


def _secret(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.map(lambda text: SECRET + text)


def _objects(values: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.dictionaries(keys, values, max_size=5).map(json.dumps)


_SECRET_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _secret(_ANY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_ANY, inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["from", "google.x", "gcm.notification.y", "push_id", "a"]) | _ANY
_HEADERS = st.dictionaries(
    st.sampled_from(
        ["TTL", "ttl", "Urgency", "topic", "apns-priority", "Apns-Expiration", "apns-collapse-id", "x"]
    ),
    st.sampled_from(["0", "60", "3600", "99999999999", "-1", "high", ""]) | _secret(_ANY) | st.integers(),
    max_size=4,
)
_PLATFORM = st.fixed_dictionaries(
    {},
    optional={
        "ttl": st.sampled_from(["0s", "3.5s", "3600s", "99999999s", "1m", "-1s", 5, None]),
        "headers": _HEADERS,
        "notification": st.fixed_dictionaries(
            {}, optional={"tag": _secret(_ANY), "channelId": _secret(_ANY), "title": _secret(_ANY)}
        ),
        "data": st.dictionaries(_KEYS, _SECRET_JSON, max_size=3),
        "payload": st.dictionaries(st.sampled_from(["aps", "x"]), _SECRET_JSON, max_size=2),
        "collapseKey": _secret(_ANY),
        "token": _secret(_ANY),
        "fcm_options": st.fixed_dictionaries({}, optional={"analytics_label": st.just("ok") | _ANY}),
    },
)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "android": _PLATFORM | _SECRET_JSON,
        "apns": _PLATFORM,
        "webpush": _PLATFORM,
        "fcm_options": st.fixed_dictionaries({}, optional={"analyticsLabel": st.just("ok") | _ANY}),
        "token": _secret(_ANY),
        "validate_only": st.booleans(),
    },
).map(json.dumps)

_TOKEN = st.text("abcXYZ019_-:", min_size=1, max_size=40).map(SECRET.__add__)
_RECIPIENTS = st.lists(
    st.tuples(_TOKEN | _secret(_ANY) | st.just(""), st.sampled_from(["android", "ios", "web", None])),
    max_size=3,
)
_SECONDS = st.floats() | st.floats(min_value=0, max_value=3e9)
_TEXT = st.text(max_size=30)


@st.composite
def sendable_pushes(draw: st.DrawFn) -> Push:
    """Rows that no check refuses: one target, or a user with whatever devices."""
    target = draw(st.sampled_from(["device_token", "fid", "topic", "condition", "user_id"]))
    data = st.dictionaries(_TEXT.map("k".__add__), JSON, max_size=4).map(json.dumps)
    content: dict[str, str | None] = draw(
        st.fixed_dictionaries(
            {"title": _TEXT.filter(bool), "body": st.none() | _TEXT, "data": st.none() | data}
        )
        | st.fixed_dictionaries({"title": st.none() | st.just(""), "body": st.none(), "data": data})
    )
    if not content["title"] and content["data"] == "{}":
        content["data"] = '{"k": null}'
    settings = st.fixed_dictionaries(
        {},
        optional={
            "android": st.fixed_dictionaries(
                {}, optional={"ttl": st.sampled_from(["0s", "3.5s", "3600s", "99999999s"]), "x": JSON}
            ),
            "apns": st.fixed_dictionaries({}, optional={"payload": st.dictionaries(_TEXT, JSON, max_size=3)}),
            "webpush": st.fixed_dictionaries(
                {}, optional={"headers": st.sampled_from([{"ttl": "60"}, {"Urgency": "low"}, {"X": "y"}])}
            ),
        },
    )
    return Push(
        id=draw(st.uuids()),
        attempt=draw(st.integers(1, 50)),
        retry_count=draw(st.integers(0, 50)),
        lost_claims=draw(st.integers(0, 5)),
        device_token=draw(_TOKEN) if target == "device_token" else None,
        fid=draw(_TOKEN) if target == "fid" else None,
        topic=draw(st.sampled_from(["news", "/topics/a-Z0_.~%"])) if target == "topic" else None,
        condition="'a' in topics && !('b' in topics)" if target == "condition" else None,
        user_id=draw(st.uuids()) if target == "user_id" else draw(st.none() | st.uuids()),
        recipients=draw(
            _RECIPIENTS.filter(lambda found: not found or any(re.fullmatch("[!-~]+", t) for t, _ in found))
        ),
        accepted_before=draw(st.integers(0, 3)),
        title=content["title"],
        body=content["body"],
        data=content["data"],
        channel=draw(st.none() | _TEXT),
        priority=draw(st.sampled_from([None, "normal", "high"])),
        image=draw(st.none() | _TEXT),
        options=draw(st.none() | settings.map(json.dumps)),
        collapse_key=draw(st.none() | st.text("abc019_-", max_size=70) | _TEXT),
        expires_at=draw(st.none() | _SECONDS),
        expires_in=draw(st.none() | _SECONDS),
        waited=draw(st.floats(0, 1e6)),
        oversized=None,
    )


def pushes() -> st.SearchStrategy[Push]:
    """Rows of every kind: fit to be sent, unfit in every way a check is made for, and not even possible."""
    return st.builds(
        Push,
        id=st.uuids(),
        attempt=st.integers(1, 50),
        retry_count=st.integers(0, 50),
        lost_claims=st.integers(0, 5),
        device_token=st.none() | _TOKEN | _secret(_ANY) | st.just(""),
        fid=st.none() | st.none() | _TOKEN | _secret(_ANY) | st.just(""),
        topic=st.none() | st.none() | st.sampled_from(["news", "/topics/news", "", "a b"]) | _ANY,
        condition=st.none() | st.none() | st.sampled_from(["'a' in topics", "'a' in topics || " * 6]) | _ANY,
        user_id=st.none() | st.uuids(),
        recipients=_RECIPIENTS,
        accepted_before=st.integers(0, 3),
        title=st.none() | st.just("") | _secret(_ANY) | _secret(st.text(min_size=2000, max_size=2100)),
        body=st.none() | st.just("") | _secret(_ANY),
        data=st.none() | _objects(_secret(_ANY), _ANY) | _objects(_SECRET_JSON, _KEYS) | _secret(_ANY) | _ANY,
        channel=st.none() | _ANY,
        priority=st.sampled_from([None, "normal", "high", "HIGH", ""]),
        image=st.none() | _secret(_ANY),
        options=st.none() | _OPTIONS | _secret(_ANY),
        collapse_key=st.none() | st.text("abc019_-", max_size=70) | _ANY,
        expires_at=st.none() | _SECONDS,
        expires_in=st.none() | _SECONDS,
        waited=st.floats(0, 1e6),
        oversized=st.sampled_from([None, None, None, None, "data", "title, body"]),
    )
