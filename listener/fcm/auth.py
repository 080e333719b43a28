"""Access tokens for FCM: google-auth's credentials, refreshed off the event loop, once for all callers.

google-auth knows every kind of credentials (service-account keys, workload identity, metadata
servers) but refreshes them with blocking calls, by the wall clock, and on the caller's time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import google.auth
import requests
import structlog
import urllib3
from google.auth import exceptions
from google.auth.credentials import Credentials
from google.auth.transport import Response as AuthResponse
from google.auth.transport.requests import Request as RequestsRequest
from google.oauth2 import service_account

from listener.fcm.fault import AuthFault
from listener.fcm.outcome import without_tokens

log = structlog.get_logger(__name__)

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"

AHEAD = 300.0
"""Seconds before its end, the most, that the refresh of a token starts."""

AHEAD_SHARE = 0.1
"""The same as a share of its life, for tokens that live shorter than an hour."""

LONGEST_BACKOFF = 60.0
"""Seconds, the most, between two failed refreshes."""

UNKNOWN_LIFE = 3600.0
"""Seconds that a token is taken to live when its answer does not say. Source: Google, access tokens."""

DOUBTFUL_LIFE = 60.0
"""Seconds that a token is used which seems to have expired when it comes."""

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
"""Source: RFC 6749, 4.1.2.1 and 5.2. Others are not made into codes, so that codes stay few."""

REFRESH_TIMEOUT = 15.0
"""Seconds that one refresh of the access token may take."""

T = TypeVar("T")


def load_credentials(service_account_info: Mapping[str, Any] | None) -> tuple[Credentials, str | None]:
    """Credentials for FCM, and the id of the project they belong to, where they tell.

    Blocks (files, and where there are none the metadata server of the machine): call it before the
    event loop starts or in a thread.

    Args:
        service_account_info: a service-account key, parsed; None to search where google-auth does:
            GOOGLE_APPLICATION_CREDENTIALS (a key, or a workload identity configuration), gcloud's
            own, the metadata server.

    Raises:
        ValueError: the key, or what was found, cannot be used. The message says what is wrong with
            it and quotes nothing of it.
    """
    key = _key_file() if service_account_info is None else service_account_info
    if key is not None:
        return _from_key(key)
    try:
        credentials, project_id = google.auth.default(scopes=[SCOPE])
    except Exception as exc:  # Many kinds, for configurations that are not as they should be.
        known = isinstance(exc, exceptions.GoogleAuthError) and exc.args
        reason = without_tokens(str(exc.args[0])) if known else type(exc).__name__
        raise ValueError(
            "no usable credentials (in FCM_SERVICE_ACCOUNT_JSON, GOOGLE_APPLICATION_CREDENTIALS or this "
            f"machine's metadata server): {reason}"
        ) from None
    return credentials, project_id


def _key_file() -> Mapping[str, Any] | None:
    """The service-account key that GOOGLE_APPLICATION_CREDENTIALS points at, if it is one.

    google-auth would read it too, but notice less, and quote the key in some of its errors.
    """
    try:
        info = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_bytes())
    except (KeyError, OSError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("type") == "service_account" else None


def _from_key(info: Mapping[str, Any]) -> tuple[Credentials, str | None]:
    needed = ("client_email", "private_key", "token_uri")
    missing = [name for name in needed if not (isinstance(info.get(name), str) and info[name].strip())]
    if missing:
        raise ValueError(
            f"not a service-account key: {', '.join(missing)} missing or empty "
            "(Firebase console, Project settings, Service accounts, Generate new private key)"
        )
    if info.get("type") != "service_account":
        raise ValueError(
            'not a service-account key: type is not "service_account" '
            "(point GOOGLE_APPLICATION_CREDENTIALS at a file for other kinds of credentials)"
        )
    if not info["token_uri"].startswith(("https://", "http://")):
        raise ValueError("service-account key: token_uri is not an http(s) URL")
    # A key that went through a shell or a .env file often has its line breaks escaped twice. PEM has no
    # backslashes of its own.
    pem = info["private_key"].replace("\\n", "\n")
    if "-----BEGIN" not in pem:
        raise ValueError(
            "service-account key: private_key is not PEM (it has to begin with -----BEGIN PRIVATE KEY-----)"
        )
    try:
        credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            {**info, "private_key": pem}, scopes=[SCOPE]
        )
        credentials.sign_bytes(b"probe")  # A key that is not RSA is noticed only here.
    except Exception:
        raise ValueError("service-account key: private_key is damaged or not an RSA key") from None
    return credentials.with_quota_project_from_environment(), info.get("project_id") or None


class AccessTokens:
    """The current access token, kept fresh. Use it in one event loop.

    One refresh at a time, for all callers, in a thread of its own. It starts ahead of expiry, by a
    timer, so that the first push after a quiet hour finds a token; until it is done, callers go on
    with the token they have. A token's life is counted on the monotonic clock from its arrival, so
    setting the clock changes nothing.

    A failed refresh is not repeated before a back-off (exponential, with jitter) is over. Meanwhile,
    callers without a token get its fault at once.

    Args:
        credentials: what ``load_credentials`` gives.
        backoff: seconds of back-off, the most, after the first failure in a row.
        timeout: seconds that a refresh may take, whatever it is doing.
    """

    def __init__(
        self, credentials: Credentials, *, backoff: float = 2.0, timeout: float = REFRESH_TIMEOUT
    ) -> None:
        self._credentials = credentials
        self._backoff = backoff
        self._timeout = timeout
        self._token: str | None = None
        self._expires = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fault: AuthFault | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._closed = False

    @property
    def quota_project_id(self) -> str | None:
        """The project to charge, where the credentials name one: goes into ``X-Goog-User-Project``."""
        project: str | None = self._credentials.quota_project_id
        return project

    async def get(self) -> str:
        """A valid access token. Waits only if there is none.

        Raises:
            AuthFault: there is none, and none could be had just now.
        """
        while (token := self._valid()) is None:
            if self._refreshing is None:
                if self._closed:
                    raise RuntimeError("AccessTokens is closed")
                if self._fault is not None and time.monotonic() < self._retry_at:
                    raise _again(self._fault)
                self._begin()
            assert self._refreshing is not None
            # Not a plain await: a caller that is cancelled must not take the refresh with it.
            await asyncio.wait([self._refreshing])
            if self._fault is not None and self._valid() is None:
                raise _again(self._fault)
        return token

    def reject(self, token: str) -> None:
        """FCM has refused this token: the next ``get`` brings another one.

        Does nothing if it is no longer the current one, so that many callers with the same refused
        token cause one refresh.
        """
        if token == self._token:
            self._token = None
            log.warning("access token refused")

    async def close(self) -> None:
        """End refreshing. Callers still waiting get a RuntimeError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    def _valid(self) -> str | None:
        return self._token if time.monotonic() < self._expires else None

    def _begin(self) -> None:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(), name="access token refresh")

    def _begin_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    async def _refresh(self) -> None:
        """One refresh, its result kept in ``self``; never raises, but for cancellation."""
        try:
            async with asyncio.timeout(self._timeout):
                token, life = await _in_thread(partial(_fetch, self._credentials, self._timeout))
        except TimeoutError:
            # The thread is left to itself; it cannot be stopped while it resolves a name, say.
            self._failed(_timed_out())
        except AuthFault as fault:
            self._failed(fault)
        else:
            self._renewed(token, life)
        finally:
            self._refreshing = None

    def _renewed(self, token: str, life: float) -> None:
        self._token = token
        self._expires = time.monotonic() + life
        self._fault = None
        self._failures = 0
        # Jitter, so that processes started together do not ask together.
        ahead = min(AHEAD, life * AHEAD_SHARE) * random.uniform(0.75, 1.0)  # noqa: S311
        self._begin_in(life - ahead)
        log.info("access token refreshed", expires_in_s=round(life))

    def _failed(self, fault: AuthFault) -> None:
        longest = min(LONGEST_BACKOFF, self._backoff * 2 ** min(self._failures, 16))
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311
        self._fault = fault
        self._failures += 1
        self._retry_at = time.monotonic() + pause
        if self._valid() is not None:
            self._begin_in(pause)
        log.log(
            logging.ERROR if fault.permanent else logging.WARNING,
            "access token refresh failed",
            code=fault.code,
            reason=fault.reason,
            permanent=fault.permanent,
            retry_in_s=round(pause, 1),
            token_left_s=max(0, round(self._expires - time.monotonic())) if self._token else 0,
        )


class _Unavailable(exceptions.TransportError):
    """The token endpoint answered that it cannot do its work now."""


class _Request(RequestsRequest):
    """google-auth's HTTP client (which honours HTTPS_PROXY), with a deadline, and remembering the status."""

    def __init__(self, session: requests.Session, deadline: float) -> None:
        super().__init__(session)
        self._deadline = deadline
        self.status: int | None = None
        """Of the last exchange, if it brought an answer, and not one that says "try again"."""

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
        if answer.status >= 500 or answer.status in (408, 429):
            # google-auth would try again by itself, sleeping, and not for all of these. The back-off of
            # AccessTokens is for all.
            raise _Unavailable(f"the token endpoint answered {answer.status}")  # type: ignore[no-untyped-call]
        self.status = answer.status
        return answer


def _fetch(credentials: Credentials, timeout: float) -> tuple[str, float]:
    """A new token and its life in seconds. Blocks.

    Raises:
        AuthFault: there is none.
    """
    with requests.Session() as session:
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
    # Some kinds of credentials give a date, which a clock that is off takes for past: let FCM be the judge.
    return token, life if life > 0 else DOUBTFUL_LIFE


def _fault(exc: Exception, status: int | None) -> AuthFault:
    """What a failed refresh means. ``status`` is that of its last HTTP exchange, see ``_Request``."""
    if status is not None:
        if 400 <= status < 500:
            return _refused(exc, status)
        return AuthFault(
            "OAUTH_PROTOCOL", f"odd answer from the token endpoint ({type(exc).__name__})", permanent=False
        )
    unreachable: str | None = None
    cause: BaseException | None = exc
    while cause is not None:
        match cause:
            case _Unavailable():
                return AuthFault("OAUTH_UNAVAILABLE", str(cause), permanent=False)
            case requests.Timeout():
                return _timed_out()
            case requests.ConnectionError():
                unreachable = _unreachable(getattr(cause.args[0], "reason", cause) if cause.args else cause)
            case requests.RequestException() | exceptions.TransportError():
                unreachable = type(cause).__name__
        cause = cause.__cause__
    if unreachable is not None:
        text = f"no answer from the token endpoint: {unreachable}"
        return AuthFault("OAUTH_CONNECT", text, permanent=False)
    # Nothing was asked of anybody: a file of the credentials is missing, for instance.
    text = without_tokens(str(exc))[:200] if isinstance(exc, exceptions.RefreshError) else type(exc).__name__
    return AuthFault("OAUTH_CREDENTIALS", f"the credentials cannot be used: {text}", permanent=True)


def _unreachable(reason: object) -> str:
    """Why urllib3 got no connection, without its words: of a proxy whose password has a delimiter in it they would
    show a part as the name of its host."""
    match reason:
        case urllib3.exceptions.ProxyError():
            return "no way through the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names"
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
    """The token endpoint will have none of these credentials. Source: RFC 6749, 5.2."""
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


def _timed_out() -> AuthFault:
    return AuthFault("OAUTH_TIMEOUT", "the token endpoint did not answer in time", permanent=False)


def _again(fault: AuthFault) -> AuthFault:
    """The same fault to raise for another caller: one exception raised many times keeps every traceback."""
    return AuthFault(fault.code, fault.reason, permanent=fault.permanent)


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call in a daemon thread: an executor's would hold up the end of the process."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as exc:
            done.set_exception(exc)

    threading.Thread(target=run, name="access-token", daemon=True).start()
    return asyncio.wrap_future(done)
