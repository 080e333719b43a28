"""The emulator's state: the rules in force, the access tokens that it issued, and what it received."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from listener.emulator import oauth
from listener.emulator.faults import Fault, Rule, Rules, fault_from, parse_fault
from listener.emulator.received import Journal, Predicate, Received
from listener.emulator.topics import Subscriptions


class State:
    """The emulator without HTTP. See ``Emulator`` for the arguments."""

    def __init__(
        self,
        project_id: str,
        *,
        latency: float,
        faults: Iterable[Fault | str],
        token_lifetime: float,
        seed: int | None,
        remember: int,
    ) -> None:
        if not (math.isfinite(latency) and latency >= 0):
            raise ValueError("latency must be a number of seconds, at least 0")
        self.project_id = project_id
        self.latency = latency
        """Seconds before every answer of messages:send. It may be changed while the emulator runs."""
        self.subscriptions = Subscriptions()
        """Topic subscriptions. Servers make them through the APIs, and tests make them here in place of an app."""
        self._rules = Rules(random.Random(seed))  # noqa: S311
        for fault in faults:
            self.add_fault(fault)
        self._account = oauth.ServiceAccount(project_id)
        self._tokens = oauth.IssuedTokens(token_lifetime)
        self._journal = Journal(remember)
        self._in_flight = 0
        self._max_in_flight = 0
        self._token_answers: Counter[str] = Counter()

    def service_account_at(self, origin: str) -> dict[str, str]:
        """The service account's key for a client that reaches the emulator at ``http://host:port``."""
        return self._account.key(origin)

    # --- faults ----------------------------------------------------------------------------------------

    def add_fault(self, fault: Fault | str, **parameters: Any) -> int:
        """Appends a rule to those in force and returns its id.

        ``fault`` is a rule, or its text (``"unavailable,times=2"``), or a fault's name with the other fields of
        :class:`Fault` as keywords. Raises ValueError.
        """
        if isinstance(fault, str):
            fault = fault_from({"fault": fault, **parameters}) if parameters else parse_fault(fault)
        elif parameters:
            raise ValueError("a Fault has its parameters already")
        return self._rules.add(fault).id

    @property
    def rules(self) -> list[Rule]:
        """The rules in force, in order, each with the number of requests to which it has applied."""
        return list(self._rules.rules)

    def remove_fault(self, rule_id: int) -> bool:
        """Removes one rule; False if no rule has that id."""
        return self._rules.remove(rule_id)

    def clear_faults(self) -> None:
        """Removes all rules."""
        self._rules.clear()

    def expire_access_tokens(self) -> None:
        """Expires every access token issued so far."""
        self._tokens.expire_all()

    # --- what was received -----------------------------------------------------------------------------

    @property
    def received(self) -> list[Received]:
        """A copy of the records of requests to messages:send, oldest first."""
        return list(self._journal)

    @property
    def accepted(self) -> list[Received]:
        """Those of :attr:`received` that were accepted."""
        return [record for record in self._journal if record.accepted]

    @property
    def forgotten(self) -> int:
        """How many records were dropped to make room."""
        return self._journal.forgotten

    def clear(self) -> None:
        """Forgets the records and the counts in :meth:`stats`. Rules, access tokens and subscriptions stay."""
        self._journal.clear()
        self._token_answers.clear()
        self._max_in_flight = self._in_flight

    async def wait_for(
        self,
        predicate: Predicate,
        *,
        count: int = 1,
        timeout: float = 30.0,  # noqa: ASYNC109
    ) -> list[Received]:
        """The first ``count`` records that satisfy ``predicate``, including those already received.

        Raises TimeoutError after ``timeout`` seconds. Its text says what was received instead.
        """
        return await self._journal.wait_for(predicate, count, timeout)

    async def wait_received(self, count: int = 1, *, timeout: float = 30.0) -> list[Received]:  # noqa: ASYNC109
        """The first ``count`` records of any outcome. Raises TimeoutError."""
        return await self._journal.wait_for(lambda _: True, count, timeout)

    async def wait_accepted(self, count: int = 1, *, timeout: float = 30.0) -> list[Received]:  # noqa: ASYNC109
        """The first ``count`` accepted records. Raises TimeoutError.

        A message counts as accepted when it is received. Its answer may still be on the way.
        """
        return await self._journal.wait_for(lambda record: record.accepted, count, timeout)

    def stats(self) -> dict[str, Any]:
        """Counts since the start or the last :meth:`clear`."""
        return {
            "received": len(self._journal) + self._journal.forgotten,
            "accepted": self._journal.accepted,
            "duplicates": self._journal.duplicates,
            "forgotten": self._journal.forgotten,
            "answers": dict(self._journal.answers),
            "token_answers": dict(self._token_answers),
            "access_tokens_issued": self._tokens.issued,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
        }
