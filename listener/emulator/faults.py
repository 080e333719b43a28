"""Faults on demand: what fails, for which requests, and how often. Pure: no I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from email.utils import parsedate_to_datetime
from typing import Any

from listener.emulator import answers

SILENT = frozenset({"reset", "reset_after_accept", "timeout", "timeout_after_accept"})
"""Faults without an answer: the connection is reset, or stays open until the client gives up."""

ACCEPTING = frozenset({"ok_without_body", "reset_after_accept", "timeout_after_accept", "slow"})
"""Faults after which the message counts as accepted, although the client may not know that FCM accepted it."""

SEND_FAULTS = frozenset(answers.ERRORS) | SILENT | ACCEPTING | {"unknown_code", "apns_error"}
OAUTH_FAULTS = frozenset(answers.OAUTH_ERRORS) | {"oauth_timeout"}
FAULTS = SEND_FAULTS | OAUTH_FAULTS

SLOW_MS = 5000.0
"""The latency of the fault ``slow`` if the rule has no ``latency_ms``."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Fault:
    """A rule: which requests fail, and how. Raises ValueError if its parameters contradict each other.

    A rule without ``token``, ``token_prefix``, ``topic`` and ``share`` applies to every request. A rule with some of
    these fields applies to the requests that match all of them.
    """

    fault: str
    """One of :data:`FAULTS`."""
    token: str | None = None
    """Only messages to exactly this registration token (or installation id)."""
    token_prefix: str | None = None
    """Only messages to registration tokens (or installation ids) with this prefix."""
    topic: str | None = None
    """Only messages to this topic."""
    share: float | None = None
    """Only this share of the requests that match, chosen at random: 0 to 1."""
    times: int | None = None
    """To how many requests the rule applies before it is spent; None: without limit."""
    retry_after: str | None = None
    """The ``Retry-After`` header of the answer: whole seconds or an HTTP date."""
    latency_ms: float | None = None
    """Milliseconds before the answer, instead of the emulator's latency."""
    status: int | None = None
    """HTTP status of ``unknown_code`` (400 to 599, default 500)."""
    reason: str | None = None
    """Apple's reason, a name in :data:`answers.APPLE_STATUS`. The fault ``apns_error`` must have one."""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"unknown fault {self.fault!r}; known are: {', '.join(sorted(FAULTS))}")
        if self.fault in OAUTH_FAULTS and (self.token, self.token_prefix, self.topic) != (None, None, None):
            raise ValueError(f"{self.fault} is about the token endpoint: it cannot have a token or a topic")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError("share must be between 0 and 1")
        if self.times is not None and self.times < 1:
            raise ValueError("times must be at least 1")
        if self.latency_ms is not None and not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise ValueError("latency_ms must be a number of milliseconds, at least 0")
        if self.retry_after is not None:
            if self.fault in SILENT | ACCEPTING | OAUTH_FAULTS:
                raise ValueError(f"{self.fault} has no answer that could carry retry_after")
            _check_retry_after(self.retry_after)
        if self.status is not None and (self.fault != "unknown_code" or not 400 <= self.status <= 599):
            raise ValueError("status is for unknown_code only, and must be between 400 and 599")
        if self.reason is not None and self.fault != "apns_error":
            raise ValueError("reason is for apns_error only")
        if self.fault == "apns_error" and self.reason not in answers.APPLE_STATUS:
            raise ValueError(f"apns_error must have a reason; known are: {', '.join(answers.APPLE_STATUS)}")

    def answer(self, project: str) -> answers.Answer:
        """The error answer of this fault. Only for faults that have one."""
        if self.fault == "unknown_code":
            answer = answers.unknown_code(self.status or 500)
        elif self.reason is not None:
            answer = answers.refused_by_apple(self.reason)
        else:
            answer = answers.ERRORS[self.fault](project)
        return answer.with_retry_after(self.retry_after)


def _check_retry_after(value: str) -> None:
    if value.isascii() and value.isdigit():
        return
    try:
        parsedate_to_datetime(value)
    except ValueError:
        raise ValueError("retry_after must be whole seconds or an HTTP date") from None


_NUMBERS: Mapping[str, type[int] | type[float]] = {
    "share": float,
    "times": int,
    "latency_ms": float,
    "status": int,
}
_PARAMETERS = tuple(f.name for f in fields(Fault) if f.name != "fault")


def parse_fault(text: str) -> Fault:
    """Reads a rule such as ``unavailable,token=abc,times=2,retry_after=1``.

    The fault comes first, then ``name=value`` pairs, separated by commas. An HTTP date may contain a comma, a token may
    not. Raises ValueError with a text that says what is wrong.
    """
    name, *parts = (part.strip() for part in text.split(","))
    values: dict[str, str] = {}
    last = ""
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals and last == "retry_after":
            values[last] += f", {part}"
            continue
        if not equals:
            raise ValueError(f"{part!r} is not name=value in fault {name!r}")
        if key in values:
            raise ValueError(f"{key} is given twice in fault {name!r}")
        values[key] = value.strip()
        last = key
    return fault_from({"fault": name, **values})


def fault_from(values: Mapping[str, Any]) -> Fault:
    """A rule from the names and values of JSON or text. Raises ValueError."""
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key != "fault" and key not in _PARAMETERS:
            raise ValueError(f"unknown parameter {key!r}; known are: {', '.join(_PARAMETERS)}")
        if value is None:
            continue
        known[key] = _number(key, value) if key in _NUMBERS else _text(key, value)
    if "fault" not in known:
        raise ValueError("a rule needs a fault")
    return Fault(**known)


def _number(key: str, value: Any) -> int | float:
    wanted = _NUMBERS[key]
    if isinstance(value, bool) or (wanted is int and isinstance(value, float)):
        raise ValueError(f"{key} must be a {'whole ' if wanted is int else ''}number")
    try:
        return wanted(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a {'whole ' if wanted is int else ''}number") from None


def _text(key: str, value: Any) -> str:
    if key == "retry_after" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be text, and not empty")
    return value


@dataclass(slots=True)
class Rule:
    """A fault in force."""

    id: int
    fault: Fault
    fired: int = 0

    @property
    def spent(self) -> bool:
        """True after the rule has applied to ``times`` requests."""
        return self.fault.times is not None and self.fired >= self.fault.times

    def as_dict(self) -> dict[str, Any]:
        """For the control API: the parameters that are set, and how often the rule has applied."""
        given = {f.name: getattr(self.fault, f.name) for f in fields(Fault)}
        return {
            "id": self.id,
            **{name: value for name, value in given.items() if value is not None},
            "fired": self.fired,
            "spent": self.spent,
        }


@dataclass(slots=True)
class Rules:
    """The rules in force, in order. The first rule that matches and is not spent applies."""

    chance: random.Random
    rules: list[Rule] = field(default_factory=list)
    _last_id: int = 0

    def add(self, fault: Fault) -> Rule:
        """Appends a rule."""
        self._last_id += 1
        rule = Rule(self._last_id, fault)
        self.rules.append(rule)
        return rule

    def remove(self, rule_id: int) -> bool:
        """Removes one rule; False if no rule has that id."""
        kept = [rule for rule in self.rules if rule.id != rule_id]
        found = len(kept) < len(self.rules)
        self.rules = kept
        return found

    def clear(self) -> None:
        """Removes all rules."""
        self.rules = []

    def for_message(self, kind: str, value: str) -> Fault | None:
        """The fault that applies to a message to this target; counts the request."""
        for rule in self.rules:
            fault = rule.fault
            if fault.fault in OAUTH_FAULTS:
                continue
            is_device = kind in ("token", "fid")
            if fault.token is not None and not (is_device and value == fault.token):
                continue
            if fault.token_prefix is not None and not (is_device and value.startswith(fault.token_prefix)):
                continue
            if fault.topic is not None and not (kind == "topic" and value == fault.topic):
                continue
            if self._applies(rule):
                return fault
        return None

    def for_grant(self) -> Fault | None:
        """The fault that applies to a request for an access token; counts the request."""
        for rule in self.rules:
            if rule.fault.fault in OAUTH_FAULTS and self._applies(rule):
                return rule.fault
        return None

    def _applies(self, rule: Rule) -> bool:
        if rule.spent:
            return False
        share = rule.fault.share
        # A rule that does not match or is spent draws no random number, so such rules do not change what a seed gives.
        if share is not None and self.chance.random() >= share:
            return False
        rule.fired += 1
        return True
