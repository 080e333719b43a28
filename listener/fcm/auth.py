"""Access tokens for FCM: google-auth's credentials, refreshed off the event loop, once for all callers.

google-auth handles every type of credentials (service-account keys, workload identity, metadata servers), but its
refresh blocks, goes by the wall clock, and happens while a caller waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from listener.fcm.fault import AuthFault, refresh_timed_out

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from listener.fcm.credentials import KeyFile
    from listener.metrics.own import Metrics

log = structlog.get_logger(__name__)

REFRESH_TIMEOUT = 15.0
"""Seconds that one refresh of the access token may take."""

AHEAD = 300.0
"""The refresh of a token starts at most this number of seconds before the token expires."""

AHEAD_SHARE = 0.1
"""The same as a share of the token's life, for tokens that live less than 50 minutes."""

LONGEST_BACKOFF = 60.0
"""Seconds, at most, between two failed refreshes."""

T = TypeVar("T")


class AccessTokens:
    """The current access token, kept fresh. Use it in one event loop.

    One refresh at a time serves all callers, in its own thread. A timer starts it before the token expires, so that
    the first push after a quiet hour finds a token; meanwhile callers get the old token. The life of a token is
    counted on the monotonic clock from its arrival, so setting the clock changes nothing.

    After a failed refresh there is a backoff (exponential, with jitter) until the next one. Meanwhile callers without a
    token get the fault at once.

    Args:
        credentials: what ``load_credentials`` gives.
        key_file: where the credentials come from, if they come from a file. When it has changed, it is read again at
            the next refresh, and after a refusal.
        backoff: seconds of backoff, at most, after the first failure in a row.
        timeout: seconds that a refresh may take, whatever it is doing.
        metrics: count refreshes, and tell when the token expires.
    """

    def __init__(
        self,
        credentials: Credentials,
        key_file: KeyFile | None = None,
        *,
        backoff: float = 2.0,
        timeout: float = REFRESH_TIMEOUT,
        metrics: Metrics | None = None,
    ) -> None:
        self._credentials = credentials
        self._key_file = key_file
        self._backoff = backoff
        self._timeout = timeout
        self._metrics = metrics
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
        """The project to charge, for ``X-Goog-User-Project``; None if the credentials name none."""
        project: str | None = self._credentials.quota_project_id
        return project

    async def get(self) -> str:
        """A valid access token. Waits only if there is none.

        Raises:
            AuthFault: there is none, and the last refresh failed.
        """
        while (token := self._valid()) is None:
            if self._refreshing is None:
                if self._closed:
                    raise RuntimeError("AccessTokens is closed")
                if self._fault is not None and time.monotonic() < self._retry_at and not self._has_new_key():
                    raise _copy(self._fault)
                self._begin()
            assert self._refreshing is not None
            # Not a plain await: the cancellation of one caller must not cancel the refresh.
            await asyncio.wait([self._refreshing])
            if self._fault is not None and self._valid() is None:
                raise _copy(self._fault)
        return token

    def reject(self, token: str) -> None:
        """FCM has refused this token: the next ``get`` returns another one.

        Does nothing if the token is no longer the current one, so that many callers with the same refused token
        cause one refresh.
        """
        if token == self._token:
            self._token = None
            log.warning("access token refused")

    def note_refusal(self) -> None:
        """FCM has refused to work with these credentials: if their file has changed, the next ``get`` reads it."""
        if self._has_new_key():
            self._token = None

    @property
    def fault(self) -> AuthFault | None:
        """Why there is no access token; None while there is one, or before the first refresh has ended."""
        return self._fault if self._valid() is None else None

    async def close(self) -> None:
        """Stop refreshing. Callers that still wait get a RuntimeError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    def _valid(self) -> str | None:
        return self._token if time.monotonic() < self._expires else None

    def _has_new_key(self) -> bool:
        return self._key_file is not None and self._key_file.has_changed

    def _fetch(self) -> tuple[str, float]:
        """A new access token and its life in seconds. Blocks; called in a thread."""
        # Slow to import, with requests, and needed for no setting.
        from listener.fcm.token_endpoint import fetch_token

        if self._key_file is not None and self._key_file.has_changed:
            try:
                self._credentials, _ = self._key_file.read()
            except ValueError as error:  # the old key may still be good
                log.error("the new key file cannot be used", reason=str(error))
            else:
                log.info("key file read again")
        return fetch_token(self._credentials, self._timeout)

    def _begin(self) -> None:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(), name="access token refresh")

    def _begin_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    async def _refresh(self) -> None:
        """One refresh; its result is in ``self``. Only cancellation raises."""
        try:
            async with asyncio.timeout(self._timeout):
                token, life = await _in_thread(self._fetch)
        except TimeoutError:
            # The thread goes on: nothing can stop it while it resolves a name, for instance.
            self._failed(refresh_timed_out())
        except AuthFault as fault:
            self._failed(fault)
        except Exception as error:
            # For example, no thread can be started. Without a fault, callers would try again at once, for ever.
            reason = f"the credentials cannot be used now: {type(error).__name__}"
            self._failed(AuthFault("OAUTH_CREDENTIALS", reason, permanent=False))
        else:
            self._renewed(token, life)
        finally:
            self._refreshing = None

    def _renewed(self, token: str, life: float) -> None:
        self._token = token
        self._expires = time.monotonic() + life
        self._fault = None
        self._failures = 0
        if self._metrics is not None:
            self._metrics.token_refreshes.labels("ok").inc()
            self._metrics.token_expiry.set(time.time() + life)
        # Jitter, so that processes that started together do not refresh together.
        ahead = min(AHEAD, life * AHEAD_SHARE) * random.uniform(0.75, 1.0)  # noqa: S311
        self._begin_in(life - ahead)
        log.info("access token refreshed", expires_in_s=round(life))

    @property
    def _remedy(self) -> str:
        if self._key_file is not None:
            return "replace the key file: it is read again when it has changed"
        return "correct the credentials, and restart the process if they are in its environment"

    def _failed(self, fault: AuthFault) -> None:
        longest = min(LONGEST_BACKOFF, self._backoff * 2 ** min(self._failures, 16))
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311
        self._fault = fault
        self._failures += 1
        if self._metrics is not None:
            self._metrics.token_refreshes.labels("failed").inc()
        self._retry_at = time.monotonic() + pause
        if self._valid() is not None:
            self._begin_in(pause)
        log.log(
            logging.ERROR if fault.permanent else logging.WARNING,
            "access token refresh failed",
            code=fault.code,
            reason=fault.reason,
            permanent=fault.permanent,
            **({"remedy": self._remedy} if fault.permanent else {}),
            retry_in_s=round(pause, 1),
            token_left_s=max(0, round(self._expires - time.monotonic())) if self._token else 0,
        )


def _copy(fault: AuthFault) -> AuthFault:
    """The same fault for another caller: an exception that is raised many times keeps every traceback."""
    return AuthFault(fault.code, fault.reason, permanent=fault.permanent)


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call in a daemon thread. For the thread of an executor, the process would wait at its end."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as exc:
            done.set_exception(exc)

    threading.Thread(target=run, name="access-token", daemon=True).start()
    return asyncio.wrap_future(done)
