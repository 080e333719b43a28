"""Reads a request body as Google's JSON front end does. Pure: no I/O.

The front end knows only names and types, and reports all violations at once. :mod:`listener.emulator.checks` checks the
content of the message.

Sources: the protobuf JSON mapping (both spellings of a name, null is unset); google.protobuf.Duration and Timestamp;
Firebase, "FCM error codes".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from listener.emulator import answers
from listener.emulator.answers import Answer
from listener.emulator.schema import (
    BOOL,
    DURATION,
    FLOAT,
    INT32,
    REQUEST,
    STRING,
    STRING_MAP,
    STRUCT,
    Enum,
    Message,
    Repeated,
    Scalar,
    Type,
)

Violation = tuple[str | None, str]
"""The path of a field (None for the request itself), and what is wrong with it."""

_DURATION = re.compile(r"-?(\d{1,12})(?:\.\d{1,9})?s", re.ASCII)
MAX_DURATION = 315_576_000_000
"""Seconds in 10,000 years. Source: google.protobuf.Duration."""

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(slots=True)
class SendRequest:
    """A request to ``messages:send``, as far as it can be read."""

    body: bytes = b""
    """The body as it was sent; empty if it contains no message."""
    message: dict[str, Any] = field(default_factory=dict)
    """The message, with protobuf names."""
    validate_only: bool = False
    refusal: Answer | None = None
    """The answer of the front end if it does not pass the request on; else None."""


def read_request(raw: bytes, content_type: str | None) -> SendRequest:
    """Reads the body of a request to ``messages:send``. ``content_type``: None if the request has no such header."""
    if content_type not in (None, "application/json"):
        text = (
            'Invalid JSON payload received. Unknown name "": Cannot bind query parameter. '
            f"The Content-Type must be application/json, not {content_type}."
        )
        return SendRequest(refusal=answers.malformed([(None, text)]))
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return SendRequest(refusal=answers.malformed([(None, _syntax_error(raw, error))]))
    request, violations = normalise(body)
    has_message = isinstance(body, dict) and isinstance(body.get("message"), dict)
    message = request.get("message")
    return SendRequest(
        body=raw if has_message else b"",
        message=message if isinstance(message, dict) else {},
        validate_only=request.get("validate_only") is True,
        refusal=answers.malformed(violations) if violations else None,
    )


def _syntax_error(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """The front end's text, with an arrow to the place of the error."""
    if error.pos >= len(raw):
        return "Invalid JSON payload received. Unexpected end of string."
    before, after = raw[max(0, error.pos - 20) : error.pos], raw[error.pos : error.pos + 20]
    line = (before + after).decode("utf-8", "replace").replace("\n", " ")
    pointer = " " * len(before.decode("utf-8", "replace")) + "^"
    return f"Invalid JSON payload received. Unexpected token.\n{line}\n{pointer}"


def normalise(body: object) -> tuple[dict[str, Any], list[Violation]]:
    """The request with protobuf names and without nulls, and its violations.

    Use the request only if there are no violations.
    """
    violations: list[Violation] = []
    if not isinstance(body, dict):
        text = 'Invalid JSON payload received. Unknown name "": Root element must be a message.'
        return {}, [(None, text)]
    return _read_message(REQUEST, body, "", violations), violations


def _read_message(
    message: Message, value: dict[str, Any], path: str, violations: list[Violation]
) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, item in value.items():
        found = message.fields.get(name)
        if found is None:
            at = f" at '{path}'" if path else ""
            text = f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
            violations.append((path or None, text))
            continue
        if item is None:
            continue
        field, field_type = found
        if message.oneof is not None and field in message.oneof[1]:
            for other in message.oneof[1]:
                if other in read:
                    text = (
                        f"Invalid value at '{path}' (oneof), oneof field '{message.oneof[0]}' is already set. "
                        f"Cannot set '{name}'"
                    )
                    violations.append((path, text))
        read[field] = _read(field_type, item, f"{path}.{field}" if path else field, name, violations)
    return read


def _read(field_type: Type, value: Any, path: str, name: str, violations: list[Violation]) -> Any:
    if isinstance(field_type, Scalar):
        if field_type is STRING_MAP:
            return _read_map(value, path, violations)
        wrong = _wrong_scalar(field_type, value, name)
    elif isinstance(field_type, Enum):
        wrong = _wrong_enum(field_type, value)
    elif isinstance(field_type, Repeated):
        if isinstance(value, list):
            return [
                _read(field_type.of, item, f"{path}[{i}]", name, violations) for i, item in enumerate(value)
            ]
        violations.append((path, f"Invalid value at '{path}' ({field_type.of.label}), {_show(value)}"))
        return value
    elif isinstance(value, dict):
        return _read_message(field_type, value, path, violations)
    else:
        wrong = _show(value)
    if wrong is not None:
        if isinstance(value, list) and field_type is not STRUCT:
            parent = path.rpartition(".")[0]
            text = (
                f"Invalid JSON payload received. Unknown name \"{name}\" at '{parent}': "
                "Proto field is not repeating, cannot start list."
            )
            violations.append((parent, text))
        else:
            violations.append((path, f"Invalid value at '{path}' ({field_type.label}), {wrong}"))
    return value


def _read_map(value: Any, path: str, violations: list[Violation]) -> Any:
    if not isinstance(value, dict):
        violations.append((path, f"Invalid value at '{path}' (map), {_show(value)}"))
        return value
    for i, item in enumerate(value.values()):
        if not isinstance(item, str):
            at = f"{path}[{i}].value"
            text = f"Invalid value at '{at}' ({STRING.label}), {_show(item)}"
            violations.append((at, text))
    return value


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "Starting an object on a scalar field"
    return orjson.dumps(value).decode()


def _wrong_scalar(field_type: Scalar, value: Any, name: str) -> str | None:
    """The text after the comma in "Invalid value at 'x' (TYPE), ..."; None if the value is valid."""
    if field_type is STRING:
        valid = isinstance(value, str)
    elif field_type is BOOL:
        valid = isinstance(value, bool)
    elif field_type is INT32:
        valid = _whole(value)
    elif field_type is FLOAT:
        valid = _number(value) is not None
    elif field_type is STRUCT:
        valid = isinstance(value, dict)
    elif field_type is DURATION:
        return _wrong_duration(value, name)
    else:
        valid = isinstance(value, str) and _is_timestamp(value)
    return None if valid else _show(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> bool:
    number = _number(value)
    return number is not None and number.is_integer() and -(2**31) <= number < 2**31


def _is_timestamp(text: str) -> bool:
    """Whether it is a time of RFC 3339, as google.protobuf.Timestamp demands. Not every form of ISO 8601 is one."""
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        return False
    try:
        # Python cannot parse a fraction finer than a microsecond, so the fraction is left out.
        datetime.fromisoformat(found[1] + (text[-6:] if text[-1] != "Z" else "Z"))
    except ValueError:
        return False
    return True


def _wrong_duration(value: Any, name: str) -> str | None:
    if not isinstance(value, str):
        return _show(value)
    if not value.endswith("s"):
        return f"Field '{name}', Illegal duration format; duration must end with 's'"
    found = _DURATION.fullmatch(value)
    if found is None:
        return f"Field '{name}', Illegal duration format; \"{value[:-1]}\" is not a number"
    if int(found[1]) > MAX_DURATION:
        return f"Field '{name}', Duration value exceeds limits"
    return None


def _wrong_enum(enum: Enum, value: Any) -> str | None:
    if isinstance(value, str) and value.upper() in enum.names:
        return None
    if _whole(value) and 0 <= float(value) < len(enum.names):
        return None
    return _show(value)
