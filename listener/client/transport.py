"""A transport, a way to the database. It does one thing: it calls a function with named arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from listener.client.errors import InvalidArgument

TIMEOUT = 30.0
"""The default number of seconds after which a transport gives up a call."""


class Transport(Protocol):
    """A way to call functions of schema ``public``: ``Direct``, ``Rest``, or five lines of your own."""

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        """Calls ``public.function`` with named arguments.

        Args:
            args: values that JSON can hold; ids and times as text. An argument that is left out has its default.

        Returns:
            What PostgREST returns: the value of the function as JSON, or a list of objects if the function returns a
            set of rows.

        Raises:
            ClientError: see ``listener.client.errors``.
        """
        ...

    async def close(self) -> None:
        """Closes the connections that belong to the running event loop."""
        ...


def to_json(value: Any) -> str:
    """A value as JSON that Postgres can store.

    Raises:
        InvalidArgument: the value contains something that JSON, or Postgres's jsonb, cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            "a text has half of a surrogate pair, which is no character: remove it"
        ) from None
    except RecursionError:
        raise InvalidArgument("a value is nested too deeply, or contains itself") from None
    except (TypeError, ValueError) as error:
        # The error of json names the type of a value, or says that a number is out of range. It never quotes the value.
        reason = "a number is NaN or infinite" if "JSON compliant" in str(error) else str(error)
        raise InvalidArgument(f"a value cannot be written as JSON: {reason}") from None
    if "\\u0000" in text and _has_nul(value):
        raise InvalidArgument("a text contains the character U+0000, which Postgres cannot store: remove it")
    return text


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, Mapping):
        return any(_has_nul(key) or _has_nul(each) for key, each in value.items())
    return isinstance(value, list | tuple) and any(map(_has_nul, value))


def uuid_text(name: str, value: UUID | str) -> str:
    """A UUID as text. Raises InvalidArgument."""
    try:
        return str(value if isinstance(value, UUID) else UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise InvalidArgument(f"{name} is no UUID") from None


def object_of(name: str, value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A copy of a mapping that becomes a JSON object. Raises InvalidArgument if it is not a mapping."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name} must be an object with names, not {type(value).__name__}")
    return dict(value)


def text_of(name: str, value: str | None) -> str | None:
    """Raises InvalidArgument if the value is not a text, because Postgres and PostgREST treat a number differently."""
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{name} must be text, not {type(value).__name__}")
    return value


def time_text(name: str, value: datetime) -> str:
    """A time as text. Raises InvalidArgument if the value is not a time, or has no zone."""
    if not isinstance(value, datetime):
        raise InvalidArgument(f"{name} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidArgument(f"{name} has no time zone: write datetime.now(UTC), for example")
    return value.astimezone(UTC).isoformat()
