"""Requests that brought no answer: what the HTTP rooms of ``listener.fcm`` raise."""

from __future__ import annotations


class SendFault(Exception):
    """A request to FCM brought no HTTP answer.

    Args:
        code: one of a fixed vocabulary, for ``error_code`` and metric labels. "DNS", "CONNECT", "TLS" and
            "PROXY" before the request went out; "TIMEOUT", "RESET" and "PROTOCOL" after it did.
        reason: what happened, for a person; without token and payload.
        ambiguous: False if the message was certainly not sent; True if FCM may have accepted it.
    """

    def __init__(self, code: str, reason: str, *, ambiguous: bool) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.ambiguous = ambiguous

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class AuthFault(Exception):
    """No access token could be had, so nothing was sent.

    Args:
        code: a short upper-case word of a fixed vocabulary, for ``error_code`` and metric labels.
        reason: what happened and what to do, for a person; without credentials.
        permanent: True if trying again cannot help until the configuration is put right.
    """

    def __init__(self, code: str, reason: str, *, permanent: bool) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.permanent = permanent

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"
