"""What the HTTP modules of ``listener.fcm`` raise when a request brings no answer."""

from __future__ import annotations


class SendFault(Exception):
    """A request to FCM brought no HTTP answer.

    Args:
        code: one of a bounded vocabulary, for ``error_code`` and metric labels: "DNS", "CONNECT", "TLS" and "PROXY"
            before the request was written; "TIMEOUT", "RESET" and "PROTOCOL" after.
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


class TooLate(Exception):
    """The message must not be sent any more. The function that makes its body raises this, and no body is sent."""


class AuthFault(Exception):
    """There is no access token, so nothing was sent.

    Args:
        code: one of a bounded vocabulary, "OAUTH_...", for ``error_code`` and metric labels.
        reason: what happened and what to do, for a person; without credentials.
        permanent: True if another try cannot help until a person corrects the configuration.
    """

    def __init__(self, code: str, reason: str, *, permanent: bool) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.permanent = permanent

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


def refresh_timed_out() -> AuthFault:
    """The fault of a refresh that took too long."""
    return AuthFault("OAUTH_TIMEOUT", "the token endpoint did not answer in time", permanent=False)
