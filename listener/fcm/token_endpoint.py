"""One refresh of an access token: google-auth asks the token endpoint, and each failure becomes an ``AuthFault``."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import requests
import urllib3
from google.auth import exceptions
from google.auth.credentials import Credentials
from google.auth.transport import Response as AuthResponse
from google.auth.transport.requests import Request as RequestsRequest
from requests.adapters import HTTPAdapter

from listener.fcm.fault import AuthFault, refresh_timed_out
from listener.fcm.redaction import without_tokens

UNKNOWN_LIFE = 3600.0
"""Seconds that a token is assumed to live if its answer does not say. Source: Google, access tokens."""

DOUBTFUL_LIFE = 60.0
"""Seconds for which a token is used if its expiry is already past when it arrives."""

OAUTH_ERRORS = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "access_denied",
    }
)
"""Source: RFC 6749, 4.1.2.1 and 5.2. Only these become codes, so that the codes are bounded."""

_PASSING = re.compile(
    r"temporarily_unavailable|server_error|internal_failure|(user_?)?rate_?limit_?exceeded|quota_?exceeded",
    re.IGNORECASE,
)
"""Errors that pass by themselves although their HTTP status is 400 or 403.

Source: RFC 6749, 4.1.2.1; google-auth-library-python, pull requests 368 and 1113; Google's error reasons.
"""


class _Unavailable(exceptions.TransportError):
    """The token endpoint answered that it cannot serve the request now."""


class _OneTrustStore(HTTPAdapter):
    """Trusts what the transports to FCM trust: the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR.

    By default, requests uses a list of its own or one that other variables name. Without a list from requests, urllib3
    reads the system's list when it first connects over TLS.
    """

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        return super().build_connection_pool_key_attributes(request, True, cert)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leaves the connection without a list of authorities."""


class _Request(RequestsRequest):
    """google-auth's HTTP client, which honours HTTPS_PROXY, with a deadline for all its exchanges."""

    def __init__(self, session: requests.Session, deadline: float) -> None:
        super().__init__(session)
        self._deadline = deadline
        self.status: int | None = None
        """The HTTP status of the last exchange; None if there was no answer, or one that says to try again."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> AuthResponse:
        self.status = None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise exceptions.TransportError from requests.Timeout()
        answer: AuthResponse = super().__call__(  # type: ignore[no-untyped-call]
            url, method, body, headers, min(timeout or left, left), **kwargs
        )
        if answer.status >= 500 or answer.status in (408, 429) or _is_passing(answer.status, answer.data):
            # For some of these google-auth would sleep and try again. The backoff of AccessTokens covers all of them.
            raise _Unavailable(f"the token endpoint answered {answer.status}")  # type: ignore[no-untyped-call]
        self.status = answer.status
        return answer


def _is_passing(status: int, body: bytes) -> bool:
    """Whether an answer says that the fault passes."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return status == 403  # an HTML page: too many requests. Source: google-oauth-java-client, issue 57
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):  # the form of Google's other services
        lists = (error.get("errors"), error.get("details"))
        said = [
            each.get("reason")
            for some in lists
            if isinstance(some, list)
            for each in some
            if isinstance(each, dict)
        ]
    elif error in OAUTH_ERRORS:
        return False
    else:
        said = [error, answer.get("error_description")] if isinstance(answer, dict) else []
    return any(isinstance(each, str) and _PASSING.fullmatch(each) for each in said)


def fetch_token(credentials: Credentials, timeout: float) -> tuple[str, float]:
    """A new access token and the seconds that it lives. Blocks.

    Args:
        credentials: what ``load_credentials`` gives.
        timeout: seconds for all exchanges together. Resolving a name may take longer.

    Raises:
        AuthFault: there is no new token.
    """
    with requests.Session() as session:
        session.mount("https://", _OneTrustStore())
        request = _Request(session, time.monotonic() + timeout)
        try:
            credentials.refresh(request)  # type: ignore[no-untyped-call]
            return _token(credentials)
        except Exception as exc:  # Odd answers make google-auth raise KeyError, TypeError and the like.
            raise _fault(exc, request.status) from None


def _token(credentials: Credentials) -> tuple[str, float]:
    token, expiry = credentials.token, credentials.expiry
    if not isinstance(token, str) or not token:
        raise TypeError("no access token")
    if expiry is None:
        return token, UNKNOWN_LIFE
    life = (expiry - datetime.now(UTC).replace(tzinfo=None)).total_seconds()
    # Some credentials give a date, which seems past if our clock is wrong: FCM decides whether the token is valid.
    return token, life if life > 0 else DOUBTFUL_LIFE


def _fault(exc: Exception, status: int | None) -> AuthFault:
    """The fault of a failed refresh. ``status``: that of its last HTTP exchange, see ``_Request``."""
    if status is not None:
        if 400 <= status < 500:
            return _refused(exc, status)
        return AuthFault(
            "OAUTH_PROTOCOL",
            f"unreadable answer from the token endpoint ({type(exc).__name__})",
            permanent=False,
        )
    unreachable: str | None = None
    cause: BaseException | None = exc
    while cause is not None:
        match cause:
            case _Unavailable():
                return AuthFault("OAUTH_UNAVAILABLE", str(cause), permanent=False)
            case requests.Timeout():
                return refresh_timed_out()
            case requests.ConnectionError():
                unreachable = _unreachable(getattr(cause.args[0], "reason", cause) if cause.args else cause)
            case requests.RequestException() | exceptions.TransportError():
                unreachable = type(cause).__name__
        cause = cause.__cause__
    if unreachable is not None:
        text = f"no answer from the token endpoint: {unreachable}"
        return AuthFault("OAUTH_CONNECT", text, permanent=False)
    # No request was made: a file of the credentials is missing, for instance.
    text = without_tokens(str(exc))[:200] if isinstance(exc, exceptions.RefreshError) else type(exc).__name__
    return AuthFault("OAUTH_CREDENTIALS", f"the credentials cannot be used: {text}", permanent=True)


def _unreachable(reason: object) -> str:
    """Why urllib3 got no connection, in our words.

    If the password of a proxy has a delimiter in it, urllib3's words show a part of the password as a host name.
    """
    match reason:
        case urllib3.exceptions.ProxyError():
            return "cannot connect through the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names"
        case urllib3.exceptions.NewConnectionError() if isinstance(why := reason.__cause__, OSError):
            return why.strerror or type(why).__name__
        case urllib3.exceptions.SSLError() if reason.args and isinstance(
            why := reason.args[0], ssl.SSLCertVerificationError
        ):
            return f"its certificate is not valid ({why.verify_message.partition(',')[0]})"
        case urllib3.exceptions.SSLError():
            return "no TLS with it"
        case _:
            return type(reason).__name__


def _refused(exc: Exception, status: int) -> AuthFault:
    """The token endpoint refuses the credentials. Source: RFC 6749, 5.2."""
    details = exc.args[1] if len(exc.args) > 1 else None
    error = details.get("error") if isinstance(details, Mapping) else None
    description = details.get("error_description") if isinstance(details, Mapping) else None
    if not isinstance(error, str) or error not in OAUTH_ERRORS:
        return AuthFault("OAUTH_REFUSED", f"the token endpoint answered {status}", permanent=True)
    reason = f"the token endpoint refused the credentials: {error}"
    if isinstance(description, str):
        reason += f" ({without_tokens(description)[:200]})"
    if error == "invalid_grant":
        reason += "; has the key been revoked, or is this machine's clock wrong?"
    return AuthFault(f"OAUTH_{error.upper()}", reason, permanent=True)
