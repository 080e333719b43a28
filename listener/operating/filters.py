"""Which pushes a person asks for, in the URL of the page or in the options of a command. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal, get_args
from uuid import UUID

Kind = Literal["token", "fid", "user", "topic", "condition"]
"""What a push is addressed to."""

STATUSES = ("pending", "processing", "sent", "delivered", "failed", "dead", "expired", "cancelled")
"""The values of push_notifications.status. Source: the check constraint in db/migrations/0003_queue.sql."""
KINDS: tuple[str, ...] = get_args(Kind)

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class FilterFault(ValueError):
    """A filter that cannot be used. ``faults`` names every wrong field, and says what it should be."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Filter:
    """A push matches if every given field applies to it. A filter without any field matches all pushes."""

    status: str | None = None
    user: UUID | None = None
    """The user_id of the push."""
    code: str | None = None
    """The error_code of the push."""
    since: datetime | None = None
    """The push last changed at this time or later. A time without a zone is in UTC."""
    until: datetime | None = None
    """The push last changed at this time or before."""
    kind: Kind | None = None

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Filter:
        """The filter that ``values`` describe, by field name. Empty texts and unknown names are ignored.

        Raises FilterFault.
        """
        given: dict[str, object] = {}
        faults: list[str] = []
        for name, parse in _PARSERS.items():
            text = values.get(name, "").strip()
            if text:
                try:
                    given[name] = parse(text)
                except ValueError as error:
                    faults.append(f"{name} {error}")
        if faults:
            raise FilterFault(faults)
        return cls(**given)  # type: ignore[arg-type]

    def as_values(self) -> dict[str, str]:
        """The values that ``parse`` reads, for a URL and for the record of an action."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else str(value)
            for name, value in found.items()
            if value is not None
        }

    @property
    def is_empty(self) -> bool:
        """Whether the filter matches all pushes."""
        return self == Filter()


def _one_of(known: tuple[str, ...], text: str) -> str:
    if text not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return text


def _status(text: str) -> str:
    return _one_of(STATUSES, text)


def _kind(text: str) -> str:
    return _one_of(KINDS, text)


def _user(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ValueError("must be the UUID of a user") from None


def _code(text: str) -> str:
    if not _CODE.fullmatch(text):
        raise ValueError("must be an error code such as UNREGISTERED")
    return text


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "must be a time such as 2026-01-31T12:00, or with a zone, 2026-01-31T12:00+01:00"
        ) from None
    try:
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("must be a time from the year 1 to 9999, in UTC") from None


_PARSERS = {"status": _status, "user": _user, "code": _code, "since": _time, "until": _time, "kind": _kind}
