"""Topic subscriptions, and the two APIs through which a server makes them. Pure: no I/O.

Sources: Firebase, REST reference "projects.registrations.topicSubscriptions"; Google, "Instance ID server reference";
Firebase, "Send messages to topics" (how a condition is evaluated); what firebase-admin 7.7 sends. Texts are inferred.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import orjson

from listener.emulator import answers
from listener.emulator.answers import Answer
from listener.emulator.checks import good_topic, possible_token

MAX_BATCH = 1000
"""The most registration tokens in one request to the Instance ID API."""

IID_PATHS = {"/iid/v1:batchAdd": True, "/iid/v1:batchRemove": False}
"""The paths of the Instance ID API; True if the path subscribes, False if it unsubscribes."""

_V1_PATH = re.compile(r"/v1/projects/([^/]+)/registrations/([^/]+)/topicSubscriptions(?:/([^/]+))?")
_CONDITION_PART = re.compile(r"""(?:'([^']*)'|"([^"]*)")\s+in\s+topics|(&&|\|\||[!()])""")


class Subscriptions:
    """Which registration tokens are subscribed to which topics."""

    def __init__(self) -> None:
        self._topics: dict[str, set[str]] = {}
        self._known: set[str] = set()
        self._recipients: dict[tuple[str, str], tuple[str, ...]] = {}

    def add(self, token: str, topic: str) -> bool:
        """Subscribes; returns False if the token was subscribed already."""
        subscribers = self._topics.setdefault(topic, set())
        if token in subscribers:
            return False
        subscribers.add(token)
        self._known.add(token)
        self._recipients.clear()
        return True

    def remove(self, token: str, topic: str) -> bool:
        """Unsubscribes; returns False if the token was not subscribed."""
        subscribers = self._topics.get(topic, set())
        if token not in subscribers:
            return False
        subscribers.remove(token)
        if not subscribers:
            del self._topics[topic]
        self._recipients.clear()
        return True

    def clear(self) -> None:
        """Forgets all subscriptions."""
        self._topics.clear()
        self._known.clear()
        self._recipients.clear()

    def as_dict(self) -> dict[str, list[str]]:
        """The registration tokens of each topic, sorted."""
        return {topic: sorted(tokens) for topic, tokens in sorted(self._topics.items())}

    def recipients(self, kind: str, value: str) -> tuple[str, ...]:
        """The registration tokens that a message to this target reaches, sorted; none for a message to a device.

        A condition such as ``!('news' in topics)`` reaches only tokens that were once subscribed to some topic. FCM
        itself also knows other tokens.
        """
        if kind not in ("topic", "condition"):
            return ()
        # All records of messages to one target share the tuple, because the emulator keeps a hundred thousand records.
        found = self._recipients.get((kind, value))
        if found is None:
            if kind == "topic":
                reached = self._topics.get(value, set())
            else:
                reached = {token for token in self._known if self._satisfies(token, value)}
            found = self._recipients[kind, value] = tuple(sorted(reached))
        return found

    def _satisfies(self, token: str, condition: str) -> bool:
        parts = _CONDITION_PART.findall(condition)
        return _evaluate(
            iter([sign or token in self._topics.get(one or two, ()) for one, two, sign in parts] + [")"])
        )


def _evaluate(parts: Iterator[str | bool]) -> bool:
    """Evaluates the parts up to the closing parenthesis.

    ``&&`` and ``||`` have the same precedence: FCM evaluates parentheses first, then from left to right.
    """
    value = _operand(parts)
    while (sign := next(parts)) != ")":
        other = _operand(parts)
        value = value and other if sign == "&&" else value or other
    return value


def _operand(parts: Iterator[str | bool]) -> bool:
    part = next(parts)
    if part == "!":
        return not _operand(parts)
    return _evaluate(parts) if part == "(" else part is True


# --- FCM's own API -------------------------------------------------------------------------------------


def v1_path(raw_path: str) -> tuple[str, str, str | None] | None:
    """The project, the registration token and the topic of a path without its query, decoded; None for another path."""
    found = _V1_PATH.fullmatch(raw_path)
    if found is None:
        return None
    project, token, topic = found.groups()
    return unquote(project), unquote(token), None if topic is None else unquote(topic)


def create(subscriptions: Subscriptions, project: str, token: str, query: Mapping[str, str]) -> Answer:
    """Answers ``POST .../registrations/TOKEN/topicSubscriptions?topic_name=TOPIC``."""
    topic = query.get("topic_name", query.get("topicName", ""))
    refusal = _refusal(token, topic)
    if refusal is not None:
        return refusal
    if not subscriptions.add(token, topic):
        return answers.error(409, "ALREADY_EXISTS", "Requested entity already exists")
    return Answer(
        200,
        orjson.dumps(
            {
                "name": f"projects/{project}/registrations/{token}/topicSubscriptions/{topic}",
                "topic_name": topic,
                "create_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            }
        ),
    )


def delete(subscriptions: Subscriptions, token: str, topic: str, query: Mapping[str, str]) -> Answer:
    """Answers ``DELETE .../registrations/TOKEN/topicSubscriptions/TOPIC``."""
    refusal = _refusal(token, topic)
    if refusal is not None:
        return refusal
    allow_missing = query.get("allow_missing", query.get("allowMissing")) == "true"
    if not subscriptions.remove(token, topic) and not allow_missing:
        return answers.error(404, "NOT_FOUND", "Requested entity was not found.")
    return Answer(200, b"{}")


def _refusal(token: str, topic: str) -> Answer | None:
    if not possible_token(token):
        return answers.invalid("parent", "Invalid registration token")
    if not good_topic(topic):
        return answers.invalid("topic_name", "Topic name contains invalid characters.")
    return answers.unregistered() if token.startswith(answers.DEAD_PREFIX) else None


# --- the Instance ID API, which older SDKs use ---------------------------------------------------------


def batch(subscriptions: Subscriptions, path: str, raw: bytes) -> Answer:
    """Answers a request to one of :data:`IID_PATHS`."""
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    to, tokens = (body.get("to"), body.get("registration_tokens")) if isinstance(body, dict) else (None, None)
    if not isinstance(to, str) or not good_topic(to.removeprefix("/topics/")):
        return iid_error(400, "InvalidTopicName")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= MAX_BATCH:
        return iid_error(400, "InvalidArgument")
    change = subscriptions.add if IID_PATHS[path] else subscriptions.remove
    results = []
    for token in tokens:
        if not isinstance(token, str) or not possible_token(token):
            results.append({"error": "INVALID_ARGUMENT"})
        elif token.startswith(answers.DEAD_PREFIX):
            results.append({"error": "NOT_FOUND"})
        else:
            change(token, to.removeprefix("/topics/"))
            results.append({})
    return Answer(200, orjson.dumps({"results": results}))


def iid_error(status: int, code: str) -> Answer:
    """An error of the Instance ID API."""
    return Answer(status, orjson.dumps({"error": code}), code)
