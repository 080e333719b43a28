"""Calls over Supabase's REST interface, PostgREST."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import aiohttp
from yarl import URL

from listener.client.errors import (
    SQLSTATE,
    ClientError,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotInstalled,
    TooMany,
    Unavailable,
    from_sqlstate,
)
from listener.client.loops import PerLoop
from listener.client.transport import TIMEOUT, to_json

_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
_LATER = frozenset({408, 425, 429})


class Rest:
    """Calls functions as ``POST {url}/rest/v1/rpc/{function}``.

    Every event loop that uses it gets its own connections, so one ``Rest`` may serve an application, its
    telemetry thread and the processes that it forks.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        user_token: Callable[[], Awaitable[str]] | None = None,
        session: aiohttp.ClientSession | None = None,
        timeout: float = TIMEOUT,  # of each call
        path: str = "/rest/v1",
    ) -> None:
        """Connects nowhere yet.

        Args:
            url: of the project, such as ``https://<ref>.supabase.co``.
            key: the secret or service key for a server; the publishable or anon key beside ``user_token``.
            user_token: returns the access token of the signed-in user, fresh for each call.
            session: a session of the application, which belongs to one event loop and stays open.
            timeout: seconds for each call.
            path: where PostgREST is below ``url``; ``""`` for a PostgREST without Supabase's gateway.

        Raises:
            ValueError: the URL has no scheme, or the key is empty or cannot stand in a header.
        """
        if not re.match(r"https?://[^/]", url):
            raise ValueError("url must begin with https:// (or http:// for a local one) and name a host")
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("key is empty or has characters that no key has: copy it again")
        self._url = url.rstrip("/").removesuffix(path) + path + "/rpc/"
        self._key = key
        self._user_token = user_token
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._sessions = PerLoop(lambda: _Connections(self._url), _Connections.let_go)

    @property
    def belongs_to_one_loop(self) -> bool:
        """Whether only the event loop of the application's session can use it."""
        return self._session is not None

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        """See ``Transport.call``."""
        body = to_json(dict(args)).encode()
        headers = {"apikey": self._key, "Content-Type": "application/json", "Accept": "application/json"}
        # Authorization may only hold a JWT: Supabase refuses the newer keys there (supabase/supabase-py#1230).
        token = self._key if _JWT.fullmatch(self._key) else None
        if self._user_token is not None:
            token = await self._user_token()
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise NotAllowed("user_token has returned something that is no access token")
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        text, problem = "", None
        try:
            async with self._own_session().post(
                self._url + function,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                text = await answer.text(errors="replace")
                if answer.status >= 300:
                    problem = _refusal(function, answer.status, answer.headers.get("Retry-After"), text)
        except aiohttp.ClientConnectorError as error:
            problem = Unavailable(f"cannot connect to the REST interface: {error.os_error}")
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = Unavailable(
                f"the REST interface did not answer: {_reason(error)}", may_have_happened=True
            )
        # Raised outside the except clauses, so that the error has no context: its text may hold anything.
        if problem is not None:
            raise problem
        with suppress(ValueError):
            return json.loads(text) if text else None
        # A gateway has answered, for example with a maintenance page. PostgREST may still have carried out the call.
        raise Unavailable(
            "the answer is not JSON",
            hint="does the URL lead to a Supabase project or to PostgREST?",
            may_have_happened=True,
        )

    async def close(self) -> None:
        """Closes the connections of the running event loop. A session of the application stays open."""
        connections = self._sessions.pop()
        if connections is not None:
            await connections.session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _own_session(self) -> aiohttp.ClientSession:
        if self._session is not None:
            return self._session
        return self._sessions.get().session


class _Connections:
    """A session of one event loop, and its sockets, which can be closed even after the loop is closed."""

    def __init__(self, url: str) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        # Not trust_env=True: aiohttp would then also send the credentials that a .netrc has for this or for every host.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._open), proxy=_proxy_for(URL(url))
        )

    def _open(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    def let_go(self) -> None:
        """Closes the connections without their event loop, which is closed already."""
        connector = self.session.connector
        self.session.detach()
        for each in list(self._sockets):
            each.close()
        if connector is not None:
            # Its loop is closed, so the connector only marks itself as closed, and waits for nothing.
            with suppress(StopIteration, RuntimeError):
                connector.close().__await__().__next__()


def _proxy_for(url: URL) -> URL | None:
    """The proxy that the environment names for this address."""
    proxy = getproxies().get(url.scheme)
    if proxy is None or url.host is None or proxy_bypass(url.host):
        return None
    return URL(proxy)


def _reason(error: aiohttp.ClientError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return type(error).__name__  # its text quotes the URL, which may contain a password
    return str(error) or type(error).__name__


def _refusal(function: str, status: int, retry_after: str | None, text: str) -> ClientError:
    """The error for an answer that is not a success.

    PostgREST answers with ``{code, message, details, hint}``. A gateway before it may answer with anything.
    """
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    code = body.get("code") if isinstance(body.get("code"), str) else None
    message = body.get("message") if isinstance(body.get("message"), str) else None
    hint = body.get("hint") if isinstance(body.get("hint"), str) else None
    wait = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None
    if code and SQLSTATE.fullmatch(code) and message:
        error = from_sqlstate(code, message, hint)
        if isinstance(error, Unavailable) and wait is not None:
            error.retry_after = wait
        return error
    message = message or f"the REST interface answered {status}"
    if code in ("PGRST202", "PGRST203"):
        return NotInstalled(
            message, code=code, hint="run `push-listener migrate`, then reload PostgREST's schema"
        )
    if status in (401, 403):
        return NotAllowed(
            message, code=code, hint=hint or "check the key, and whether the user's token has expired"
        )
    if status == 429:
        return TooMany(message, code=code, hint=hint, retry_after=wait)
    if status in _LATER or status >= 500 or status < 400:
        # A gateway that gives up does not know whether PostgREST goes on.
        return Unavailable(
            message if status >= 400 else f"{message}, a redirect: check the URL",
            code=code,
            hint=hint,
            may_have_happened=status in (408, 502, 504) and code is None,
            retry_after=wait,
        )
    if status == 404:
        return NotFound(
            f"{message}: is there a PostgREST at this URL, with {function}?", code=code, hint=hint
        )
    return InvalidArgument(message, code=code, hint=hint)
