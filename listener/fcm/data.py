"""The strings that a message carries to the app, from the column ``data``. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Never

import orjson

from listener.push import BadPush

# FCM refuses the whole message if it has one of these keys. Source: the ErrorCode reference ("from", "gcm", or any
# value prefixed by "google") and the REST reference ("message_type", and words that start with "gcm.notification.").
# No other key is refused here: FCM itself decides about those that it may accept.
_RESERVED = frozenset({"from", "message_type", "gcm"})
_RESERVED_PREFIXES = ("google", "gcm.notification.")


def _no_constant(name: str) -> Never:
    raise ValueError(name)


# Numbers stay as the sender wrote them: neither cut to 64 bits nor converted to floats and back.
_EXACT = json.JSONDecoder(parse_int=orjson.Fragment, parse_float=orjson.Fragment, parse_constant=_no_constant)


def exact_json(text: str, column: str) -> Any:
    """Parses a JSON column; its numbers keep the sender's digits. Raises BadPush if it is not JSON."""
    try:
        return _EXACT.decode(text)
    except (ValueError, RecursionError):
        raise BadPush(f"{column} is not JSON that can be read", code=f"INVALID_{column.upper()}") from None


def read_data(text: str | None) -> dict[str, str]:
    """The strings of the column ``data``, in a new dictionary. Raises BadPush."""
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = exact_json(
            text, "data"
        )  # For 1e400 and the like, which Postgres accepts and orjson does not.
    if value is None:
        return {}
    if not isinstance(value, dict):
        hint = " (it is a string: was it encoded twice?)" if isinstance(value, str) else ""
        raise BadPush(f"data must be a JSON object{hint}", code="INVALID_DATA")
    if not set(map(type, value.values())) <= {str}:
        value = as_texts(exact_json(text, "data"), "data")
    data: dict[str, str] = value
    refuse_reserved(data)
    return data


def as_texts(value: dict[str, Any], column: str) -> dict[str, str]:
    """An object in which every value that is not a string is replaced by its JSON. Raises BadPush."""
    try:
        return {
            key: each if isinstance(each, str) else orjson.dumps(each).decode() for key, each in value.items()
        }
    except TypeError:
        raise BadPush(
            f"{column} has text that is not valid Unicode, or is nested too deeply",
            code=f"INVALID_{column.upper()}",
        ) from None


def refuse_reserved(keys: Iterable[str]) -> None:
    """Raises BadPush if FCM reserves one of the data keys."""
    for key in keys:
        if key in _RESERVED or key.startswith(_RESERVED_PREFIXES):
            raise BadPush(f"FCM reserves the data key {key[:60]!a}: rename it", code="INVALID_DATA")
