"""What becomes of a request to ``messages:send``: first FCM's checks, then a fault on demand, else acceptance."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from listener.emulator import answers, checks
from listener.emulator.answers import Answer
from listener.emulator.faults import ACCEPTING, Fault, Rules
from listener.emulator.front_end import SendRequest
from listener.emulator.oauth import IssuedTokens
from listener.emulator.received import Received


@dataclass(slots=True)
class Verdict:
    """What becomes of one request."""

    answer: Answer | None
    """None: the emulator never answers the request."""
    name: str | None = None
    """The message's name, if it has one."""
    accepted: bool = False
    fault: Fault | None = None
    """The rule that was applied to the request."""


class Judge:
    """Decides what becomes of each request, as FCM would for one project."""

    def __init__(self, project_id: str, tokens: IssuedTokens, rules: Rules) -> None:
        self._project_id = project_id
        self._tokens = tokens
        self._rules = rules
        self._numbers = itertools.count(1)

    def verdict(self, sent: SendRequest, authorization: str | None, project: str) -> Verdict:
        """A rule applies only to a request that passes all of FCM's own checks.

        Args:
            sent: the body.
            authorization: the Authorization header.
            project: the project in the URL.
        """
        refusal = self._tokens.check(authorization)
        if refusal is None and project != self._project_id:
            refusal = answers.permission_denied(project)
        refusal = refusal or sent.refusal or checks.check(sent.message)
        if refusal is not None:
            return Verdict(refusal)
        target = checks.target_of(sent.message)
        assert target is not None  # checks.check refuses a message without one
        fault = self._rules.for_message(*target)
        if fault is not None and fault.fault not in ACCEPTING:
            is_silent = fault.fault in ("reset", "timeout")
            return Verdict(None if is_silent else fault.answer(project), fault=fault)
        kind, value = target
        if kind in ("token", "fid") and value.startswith(answers.DEAD_PREFIX):
            return Verdict(answers.unregistered(), fault=fault)
        return self._accepted(sent, kind, fault)

    def _accepted(self, sent: SendRequest, kind: str, fault: Fault | None) -> Verdict:
        name = self._message_name(sent, kind)
        answer: Answer | None = answers.sent(name)
        if fault is not None and fault.fault == "ok_without_body":
            answer = Answer(200, b"")
        elif fault is not None and fault.fault != "slow":
            answer = None
        return Verdict(answer, name, accepted=not sent.validate_only, fault=fault)

    def _message_name(self, sent: SendRequest, kind: str) -> str:
        if sent.validate_only:
            message_id = "fake_message_id"
        else:
            number = next(self._numbers)
            micros = time.time_ns() // 1000
            message_id = f"0:{micros}%{number:016x}" if kind in ("token", "fid") else f"{micros}{number:06d}"
        return f"projects/{self._project_id}/messages/{message_id}"


def record_of(sent: SendRequest, verdict: Verdict, received_at: float, at: float) -> Received:
    """The record of a request. ``received_at``: Unix time; ``at``: monotonic time; both in seconds."""
    kind, target = checks.target_of(sent.message) or (None, None)
    data = sent.message.get("data")
    push_id = data.get("push_id") if isinstance(data, dict) else None
    return Received(
        number=0,
        received_at=received_at,
        at=at,
        kind=kind,
        target=target,
        body=sent.body,
        push_id=push_id if isinstance(push_id, str) else None,
        validate_only=sent.validate_only,
        status=verdict.answer.status if verdict.answer else None,
        error_code=verdict.answer.code if verdict.answer else None,
        name=verdict.name if verdict.accepted else None,
        accepted=verdict.accepted,
        fault=verdict.fault.fault if verdict.fault else None,
        duplicate_of=0,
    )
