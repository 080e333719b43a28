"""One attempt at one target: an access token, a request, and what its answer means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import quote

from listener.fcm.auth import AccessTokens
from listener.fcm.fault import AuthFault, SendFault
from listener.fcm.outcome import Disposition, Outcome, classify, from_auth_fault, from_send_fault
from listener.fcm.transports.base import Outgoing, Transport


def messages_url(endpoint: str, project_id: str) -> str:
    """Where a Firebase project's messages go.

    Args:
        endpoint: FCM's base URL, "https://fcm.googleapis.com" or an emulator's.
        project_id: the Firebase project to send for.
    """
    return f"{endpoint.rstrip('/')}/v1/projects/{quote(project_id, safe=':')}/messages:send"


class Sender:
    """Sends request bodies to FCM.

    Args:
        transport: leads to ``messages_url``. The caller closes it, and ``tokens`` too.
        tokens: the access tokens.
        observe: called with the seconds that each HTTP exchange took, answered or not. A refused access token makes
            one ``send`` two exchanges; without an access token there is none.
    """

    def __init__(
        self, transport: Transport, tokens: AccessTokens, observe: Callable[[float], object] | None = None
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._observe = observe
        self._headers: Mapping[str, str] = {}
        self._headers_token: str | None = None

    async def send(self, outgoing: Outgoing) -> Outcome:
        """Make one attempt.

        If FCM refuses the access token, the sender replaces it and makes the request once more, at once. If FCM
        refuses that one too, the token is not the cause, and the outcome is ``Disposition.PAUSE``.

        Args:
            outgoing: its function makes the JSON of ``{"message": {...}}``, see ``listener.fcm.message``. The function
                is called for each request, as soon as there is an access token and a connection.

        Returns:
            The outcome of the attempt, never ``Disposition.REFRESH_AUTH``. Faults are outcomes too.

        Raises:
            TooLate: that function has raised it.
        """
        try:
            token = await self._tokens.get()
            outcome = await self._exchange(token, outgoing)
            if outcome.disposition is Disposition.REFRESH_AUTH:
                self._tokens.reject(token)
                outcome = await self._exchange(await self._tokens.get(), outgoing)
        except AuthFault as fault:
            return from_auth_fault(fault)
        if outcome.disposition is Disposition.REFRESH_AUTH:
            outcome = replace(outcome, disposition=Disposition.PAUSE)
        if outcome.disposition is Disposition.PAUSE:
            self._tokens.note_refusal()
        return outcome

    async def _exchange(self, token: str, outgoing: Outgoing) -> Outcome:
        began = time.perf_counter()
        try:
            answer = await self._transport.post(self._headers_with(token), outgoing)
        except SendFault as fault:
            outcome = from_send_fault(fault)
        else:
            outcome = classify(answer.status, answer.headers, answer.body, now=time.time())
        if self._observe is not None:
            self._observe(time.perf_counter() - began)
        return outcome

    def _headers_with(self, token: str) -> Mapping[str, str]:
        """The request's headers: one mapping for each token, so that the transport encodes them once."""
        if token != self._headers_token:
            headers = {
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
                # As the official SDKs do: it asks for errors in the form that outcome.py reads.
                "X-GOOG-API-FORMAT-VERSION": "2",
            }
            if self._tokens.quota_project_id is not None:
                headers["X-Goog-User-Project"] = self._tokens.quota_project_id
            self._headers, self._headers_token = headers, token
        return self._headers
