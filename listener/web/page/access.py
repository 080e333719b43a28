"""Who may see the page, and who may act: tokens, the cookie that a login sets, and headers that browsers send."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, urlsplit

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from itsdangerous import BadData, URLSafeTimedSerializer

from listener.config import Settings
from listener.web.page.forms import read_form

log = structlog.get_logger(__name__)

COOKIE = "push_listener_page"
_LIFE_S = 12 * 3600
_SALT = b"push-listener: the page's cookie"

_SAFE = ("GET", "HEAD")
_CLOSED = (
    "closed: set PAGE_TOKEN to let people read this page, and ACTION_TOKENS to let them act on it, "
    "or bind to loopback with HOST\n"
)
_FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who makes a request."""

    name: str
    """The name of the token in ACTION_TOKENS; "reader" for PAGE_TOKEN; "local" on a page that is open on loopback."""
    may_read: bool
    may_act: bool


VISITOR = web.RequestKey("visitor", Visitor)
"""The key under which each request keeps its visitor."""

NOBODY = Visitor("", may_read=False, may_act=False)
LOCAL = Visitor("local", may_read=True, may_act=True)
_READER = Visitor("reader", may_read=True, may_act=False)


class Keys:
    """The tokens, and the cookies that stand for them. Pure except for the clock in the cookies.

    A cookie is signed with a key derived only from its own token. So the cookie tells its holder nothing about other
    tokens, every process recognizes it, and replacing a token signs out everybody who used it.
    """

    def __init__(self, page_token: str | None, action_tokens: Mapping[str, str]) -> None:
        visitors = {token: Visitor(name, True, True) for name, token in action_tokens.items()}
        if page_token is not None:
            visitors[page_token] = _READER
        self._visitors = [(_bytes(token), visitor) for token, visitor in visitors.items()]
        self._signers = [(_signer(token), visitor) for token, visitor in self._visitors]

    @property
    def are_none(self) -> bool:
        """Whether no token is set at all."""
        return not self._visitors

    def visitor(self, token: str) -> Visitor | None:
        """The visitor with this token. It takes as long for a wrong token as for a right one."""
        given, found = _bytes(token), None
        for known, visitor in self._visitors:
            if hmac.compare_digest(given, known):
                found = visitor
        return found

    def cookie(self, visitor: Visitor) -> str:
        """The cookie that the browser keeps in place of the token. Raises KeyError for a visitor without a token."""
        for signer, known in self._signers:
            if known == visitor:
                return str(signer.dumps(visitor.name))
        raise KeyError(visitor.name)

    def holder(self, cookie: str) -> Visitor | None:
        """The visitor who got this cookie; None: the cookie is not ours, or too old."""
        for signer, visitor in self._signers:
            try:
                if signer.loads(cookie, max_age=_LIFE_S) == visitor.name:
                    return visitor
            except BadData:
                continue
        return None


def _signer(token: bytes) -> URLSafeTimedSerializer:
    key = hmac.digest(token, _SALT, hashlib.sha256)
    return URLSafeTimedSerializer(key, signer_kwargs={"digest_method": hashlib.sha256})


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# --- what browsers say of a request: pure -----------------------------------------------------------------------------


def foreign(method: str, headers: Mapping[str, str], *, has_bearer: bool) -> str | None:
    """Why a request is refused because another site may have made it; None: it is not refused.

    Browsers send Sec-Fetch-Site if the page comes by https or from localhost, and Origin with each POST. A program
    that sends a bearer token sends neither, and no other site can make a browser send that token. ``has_bearer`` must
    be false on a page that asks for no token, because there any bearer token would be accepted.
    """
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if method in _SAFE:
        is_link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if site in (None, "same-origin", "none") or is_link:
            return None
        return "this page answers no other site\n"
    if site is not None:
        is_own = site == "same-origin"
    elif origin is not None:
        is_own = bool(origin_host(origin)) and origin_host(origin) == headers.get("Host", "").lower()
    else:
        is_own = has_bearer
    return None if is_own else "only this page itself may do that: neither another site nor a link may\n"


def origin_host(origin: str) -> str:
    """The host of a web origin, with the port if it has one; '' if the text is not a web origin, such as "null"."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.lower() if parts.scheme in ("http", "https") else ""


def is_loopback_name(host: str) -> bool:
    """Whether a Host header, with or without a port, has a loopback name, which only this machine can use."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def not_local(headers: Mapping[str, str]) -> str | None:
    """Why a page that is open on loopback does not answer a request; None: it answers.

    If a site makes its own name lead to 127.0.0.1 (DNS rebinding), its requests have that name in Host. A proxy that
    other machines can reach names them in a header, or sends its own Host. A proxy that does neither looks like a
    browser on this machine.
    """
    if any(name in headers for name in _FORWARDING):
        return "a proxy leads other machines to this page: set PAGE_TOKEN, or ACTION_TOKENS\n"
    names = [headers.get("Host", "")]
    # With the referrer policy no-referrer, a browser sends the Origin "null" even for the page's own forms.
    is_own = headers.get("Sec-Fetch-Site") == "same-origin" and headers.get("Origin") == "null"
    if "Origin" in headers and not is_own:
        names.append(origin_host(headers["Origin"]))
    if all(map(is_loopback_name, names)):
        return None
    return "without a token this page answers as localhost, 127.0.0.1 and [::1] only\n"


def way_back(wanted: str, prefix: str) -> str:
    """The path to go to after the login: ``wanted`` if it is a path of this page, else the first screen."""
    is_path = wanted.startswith(f"{prefix}/") and not wanted.startswith("//")
    is_plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    return wanted if is_path and is_plain else f"{prefix}/"


# --- the shell -------------------------------------------------------------------------------------------------------


class Access:
    """Lets in the visitors who may see the page.

    Args:
        is_open: whether no token is set, and only this machine can reach the page.
        patience: seconds before a wrong token is answered.
        most: how many wrong tokens of one address may wait for their answer. More are refused at once.
        most_of_all: how many wrong tokens of all addresses may wait.

    A right token is never refused because of wrong tokens from the same address, which may be a proxy's. So these
    bounds only save memory and connections. The length of a token keeps it from being guessed.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        is_open: bool,
        prefix: str,
        patience: float = 1.0,
        most: int = 8,
        most_of_all: int = 200,
    ) -> None:
        self._keys = keys
        self._is_open = is_open
        self._is_closed = keys.are_none and not is_open
        self._prefix = prefix
        self._patience = patience
        self._most = most
        self._most_of_all = most_of_all
        self._waiting: Counter[str] = Counter()

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """The access that the settings describe."""
        page_token = settings.page_token
        keys = Keys(
            None if page_token is None else page_token.get_secret_value(),
            {name: token.get_secret_value() for name, token in settings.action_tokens.items()},
        )
        return cls(keys, is_open=keys.are_none and settings.is_on_loopback, prefix=settings.path_prefix)

    @property
    def kind(self) -> str:
        """How the page can be seen, for the log: closed, open (to this machine), or by token."""
        return "closed" if self._is_closed else "open" if self._is_open else "by token"

    def guarded(self, handler: Handler, *, is_public: bool = False) -> Handler:
        """Wraps a handler, so that it gets only allowed requests, each with its ``request[VISITOR]``.

        ``is_public``: visitors without a token are allowed too.
        """

        async def guard(request: web.Request) -> web.StreamResponse:
            token = _bearer(request)
            headers = request.headers
            refusal = foreign(request.method, headers, has_bearer=token is not None and not self._is_open)
            if refusal is None and self._is_open:
                refusal = not_local(headers)
            if refusal is None and self._is_closed:
                refusal = _CLOSED
            if refusal is not None:
                return web.Response(status=403, text=refusal)
            visitor = request[VISITOR] = await self._visitor(request, token)
            if is_public:
                return await handler(request)
            if not visitor.may_read:
                return self._turn_away(request)
            if request.method not in _SAFE and not visitor.may_act:
                return web.Response(status=403, text="your token only reads: ACTION_TOKENS act\n")
            return await handler(request)

        return guard

    def shown_once(self, show_login: Handler) -> Handler:
        """The handler of GET /login. It redirects visitors who are signed in already."""

        async def show(request: web.Request) -> web.StreamResponse:
            if request[VISITOR].may_read:
                raise web.HTTPSeeOther(way_back(request.query.get("next", ""), self._prefix))
            return await show_login(request)

        return show

    async def login(self, request: web.Request) -> NoReturn:
        """Answers POST /login, a form with the fields token and next."""
        form = await read_form(request)
        back = way_back(form.text("next"), self._prefix)
        try:
            visitor = await self._known(request, form.text("token"))
        except web.HTTPTooManyRequests:
            raise self._to_login(back, wrong="wait") from None
        if visitor is None:
            raise self._to_login(back, wrong="1")
        log.info("signed in to the page", who=visitor.name)
        answer = web.HTTPSeeOther(back)
        answer.set_cookie(
            COOKIE,
            self._keys.cookie(visitor),
            max_age=_LIFE_S,
            path=self._prefix or "/",
            secure=_is_https(request),
            httponly=True,
            samesite="Strict",
        )
        raise answer

    async def logout(self, request: web.Request) -> NoReturn:
        """Answers POST /logout."""
        answer = web.HTTPSeeOther(f"{self._prefix}/login")
        answer.del_cookie(
            COOKIE, path=self._prefix or "/", secure=_is_https(request), httponly=True, samesite="Strict"
        )
        raise answer

    async def _visitor(self, request: web.Request, token: str | None) -> Visitor:
        if self._is_open:
            return LOCAL
        if token is not None:
            return await self._known(request, token) or NOBODY
        return self._keys.holder(request.cookies.get(COOKIE, "")) or NOBODY

    async def _known(self, request: web.Request, token: str) -> Visitor | None:
        """The visitor with this token. A wrong token gets None after a pause, or raises HTTPTooManyRequests at once."""
        visitor = self._keys.visitor(token)
        if visitor is not None:
            return visitor
        where = request.remote or ""
        if self._waiting[where] >= self._most or self._waiting.total() >= self._most_of_all:
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"}, text="too many wrong tokens\n")
        log.warning("wrong token for the page")
        self._waiting[where] += 1
        try:
            await asyncio.sleep(self._patience)
        finally:
            self._waiting[where] -= 1
            if not self._waiting[where]:
                del self._waiting[where]
        return None

    def _turn_away(self, request: web.Request) -> web.StreamResponse:
        """Redirects a person to the login; answers a program with an error."""
        is_page = request.method in _SAFE and "text/html" in request.headers.get("Accept", "")
        if "HX-Request" in request.headers or not is_page:
            login = self._to_login(f"{self._prefix}/").headers["Location"]
            return web.Response(
                status=401 if request.method in _SAFE else 403,
                headers={"WWW-Authenticate": "Bearer", "HX-Redirect": login},
                text="send a token of PAGE_TOKEN or ACTION_TOKENS as a bearer token, or sign in on the page\n",
            )
        to_login = self._to_login(request.path_qs)
        if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            # The visitor followed a link on another site, so the browser did not send the SameSite=Strict cookie. It
            # sends the cookie for the next request, which this page itself makes.
            onward = to_login.headers["Location"]
            return web.Response(headers={"Refresh": f"0; url={onward}"}, text="", content_type="text/html")
        raise to_login

    def _to_login(self, back: str, **more: str) -> web.HTTPSeeOther:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in {"next": back, **more}.items())
        return web.HTTPSeeOther(f"{self._prefix}/login?{query}")


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_https(request: web.Request) -> bool:
    """Whether the browser's connection is encrypted. A proxy may tell so in a header, which anybody can send, but only
    the visitor's own cookie depends on it.
    """
    told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return request.secure or told == "https"
