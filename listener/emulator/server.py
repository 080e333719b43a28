"""The emulator itself: an HTTP server that plays FCM and Google's token endpoint."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import orjson
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from listener.emulator import answers, checks, control, oauth, schema
from listener.emulator.answers import Answer
from listener.emulator.faults import ACCEPTING, SLOW_MS, Fault, Rule, Rules, fault_from, parse_fault
from listener.emulator.received import Journal, Predicate, Received

MAX_REQUEST_BYTES = 10 * 2**20
"""What Google's front end takes of a request body."""

DEAD_PREFIX = "dead-"
"""Registration tokens that start so are answered UNREGISTERED, without any rule."""

_STOP_GRACE = 0.1
"""Seconds a request under way has to end by itself when the emulator stops."""


@dataclass(slots=True)
class _Verdict:
    """What is to become of a request to messages:send."""

    answer: Answer | None
    """None: it is never answered."""
    name: str | None = None
    accepted: bool = False
    fault: Fault | None = None


@dataclass(slots=True)
class _Send:
    """A request to messages:send as far as it could be read."""

    body: bytes = b""
    """As sent, if there is a message in it."""
    read: dict[str, Any] = field(default_factory=dict)
    """The message under the protobuf's names."""
    validate_only: bool = False
    problem: Answer | None = None


class Emulator:
    """A local FCM HTTP v1 and OAuth token server, as an async context manager.

    ``latency`` is in seconds, before every answer of ``messages:send``; ``token_lifetime`` in seconds.
    ``faults`` are rules or their text (see :func:`listener.emulator.faults.parse_fault`). ``seed``
    makes rules with a ``share`` repeatable. At most ``remember`` requests are kept.

    Raises ValueError for a bad rule, OSError if the port cannot be bound.
    """

    def __init__(
        self,
        project_id: str = "demo-project",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        latency: float = 0.0,
        faults: Iterable[Fault | str] = (),
        token_lifetime: float = 3600.0,
        seed: int | None = None,
        remember: int = 100_000,
    ) -> None:
        if not (math.isfinite(latency) and latency >= 0):
            raise ValueError("latency must be a number of seconds, at least 0")
        self.project_id = project_id
        self.latency = latency
        """Seconds before every answer of messages:send. May be changed while running."""
        self._host = host
        self._port = port
        self._rules = Rules(random.Random(seed))  # noqa: S311
        for fault in faults:
            self.add_fault(fault)
        self._account = oauth.ServiceAccount(project_id)
        self._tokens = oauth.AccessTokens(token_lifetime)
        self._journal = Journal(remember)
        self._send_path = f"/v1/projects/{project_id}/messages:send"
        self._numbers = itertools.count(1)
        self._in_flight = 0
        self._max_in_flight = 0
        self._connections = 0
        self._grants: dict[str, int] = {}
        self._stopping = asyncio.Event()
        self._handler: web.Server | None = None
        self._listener: asyncio.Server | None = None

    # --- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the port and serves.

        After :meth:`stop` the emulator comes back on the same port, and knows what it knew.
        """
        self._stopping.clear()
        # A handler must end when its client goes away: that is what ends one that never answers.
        self._handler = web.Server(
            self._serve, request_factory=_request, handler_cancellation=True, access_log=None
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._connect, self._host, self._port, backlog=1024
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port and every connection: clients see FCM go down. Does nothing if not started."""
        if self._listener is None or self._handler is None:
            return
        self._stopping.set()
        self._listener.close()
        await self._handler.shutdown(_STOP_GRACE)
        await self._listener.wait_closed()
        self._listener = self._handler = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _connect(self) -> web.RequestHandler:
        assert self._handler is not None
        self._connections += 1
        return self._handler()

    @property
    def endpoint(self) -> str:
        """``http://host:port``, once started."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def service_account(self) -> dict[str, str]:
        """The service account's key, with this emulator as its token server."""
        return self.service_account_at(self.endpoint)

    def service_account_at(self, origin: str) -> dict[str, str]:
        """The key for a client that reaches the emulator at another ``http://host:port``."""
        return self._account.key(origin)

    # --- faults ----------------------------------------------------------------------------------------

    def add_fault(self, fault: Fault | str, **parameters: Any) -> int:
        """Puts a rule behind those in force and returns its id.

        ``fault`` is a rule, or its text (``"unavailable,times=2"``), or a fault's name with the other
        fields of :class:`Fault` as keywords. Raises ValueError.
        """
        if isinstance(fault, str):
            fault = fault_from({"fault": fault, **parameters}) if parameters else parse_fault(fault)
        elif parameters:
            raise ValueError("a Fault has its parameters already")
        return self._rules.add(fault).id

    @property
    def rules(self) -> list[Rule]:
        """The rules in force, in order, with how often each has happened."""
        return list(self._rules.rules)

    def remove_fault(self, rule_id: int) -> bool:
        """Drops one rule; False if there is none of that id."""
        return self._rules.remove(rule_id)

    def clear_faults(self) -> None:
        """Drops all rules."""
        self._rules.clear()

    def expire_access_tokens(self) -> None:
        """Makes every access token issued so far an expired one."""
        self._tokens.expire_all()

    # --- what was received -----------------------------------------------------------------------------

    @property
    def received(self) -> list[Received]:
        """The requests to messages:send, oldest first: a copy."""
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
        """Forgets what was received, and the counts in :meth:`stats`. Rules and access tokens stay."""
        self._journal.clear()
        self._grants.clear()
        self._max_in_flight = self._in_flight

    async def wait_for(
        self,
        predicate: Predicate,
        *,
        count: int = 1,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> list[Received]:
        """The first ``count`` records that satisfy ``predicate``, those already received included.

        Raises TimeoutError after ``timeout`` seconds, saying what was received instead.
        """
        return await self._journal.wait_for(predicate, count, timeout)

    async def wait_received(self, count: int = 1, *, timeout: float = 10.0) -> list[Received]:  # noqa: ASYNC109
        """The first ``count`` records of any outcome. Raises TimeoutError."""
        return await self._journal.wait_for(lambda _: True, count, timeout)

    async def wait_accepted(self, count: int = 1, *, timeout: float = 10.0) -> list[Received]:  # noqa: ASYNC109
        """The first ``count`` accepted records. Raises TimeoutError.

        A message is accepted the moment it is received; its answer may still be on the way.
        """
        return await self._journal.wait_for(lambda record: record.accepted, count, timeout)

    def stats(self) -> dict[str, Any]:
        """Counts since the start or the last :meth:`clear`; connections since the start."""
        return {
            "received": len(self._journal) + self._journal.forgotten,
            "accepted": self._journal.accepted,
            "duplicates": self._journal.duplicates,
            "forgotten": self._journal.forgotten,
            "answers": dict(self._journal.answers),
            "token_answers": dict(self._grants),
            "access_tokens_issued": self._tokens.issued,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "connections_open": len(self._handler.connections) if self._handler else 0,
            "connections_total": self._connections,
        }

    # --- HTTP ------------------------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        raw_path = request.raw_path
        if request.method == "POST" and raw_path == self._send_path:
            return await self._send(request, self.project_id)
        path = unquote(raw_path.partition("?")[0])
        if request.method == "POST" and path.startswith("/v1/projects/") and path.endswith("/messages:send"):
            return await self._send(
                request, path.removeprefix("/v1/projects/").removesuffix("/messages:send")
            )
        if request.method == "POST" and path == "/token":
            return await self._token(request)
        return await control.serve(self, request, path) or _response(answers.not_found_html())

    async def _send(self, request: web.BaseRequest, project: str) -> web.StreamResponse:
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            received_at, at = time.time(), time.monotonic()
            sent = await _read_send(request)
            verdict = self._judge(sent, request.headers.get("Authorization"), project)
            self._journal.add(self._record(sent, verdict, received_at, at))
            await self._delay(verdict.fault)
            if verdict.answer is None:
                return await self._silence(request, verdict.fault)
            return _response(verdict.answer)
        finally:
            self._in_flight -= 1

    def _judge(self, sent: _Send, authorization: str | None, project: str) -> _Verdict:
        """A fault on demand befalls only a request that passes all of FCM's own checks."""
        refusal = self._tokens.check(authorization)
        if refusal is None and project != self.project_id:
            refusal = answers.permission_denied(project)
        refusal = refusal or sent.problem or checks.check(sent.read)
        if refusal is not None:
            return _Verdict(refusal)
        target = checks.target_of(sent.read)
        assert target is not None  # checks.check refuses a message without one
        fault = self._rules.for_message(*target)
        if fault is not None and fault.fault not in ACCEPTING:
            silent = fault.fault in ("reset", "timeout")
            return _Verdict(None if silent else fault.answer(project), fault=fault)
        if target[0] in ("token", "fid") and target[1].startswith(DEAD_PREFIX):
            return _Verdict(answers.unregistered(), fault=fault)
        return self._accept(sent, target[0], fault)

    def _accept(self, sent: _Send, kind: str, fault: Fault | None) -> _Verdict:
        if sent.validate_only:
            name = f"projects/{self.project_id}/messages/fake_message_id"
        else:
            number = next(self._numbers)
            micros = time.time_ns() // 1000
            message_id = f"0:{micros}%{number:016x}" if kind in ("token", "fid") else f"{micros}{number:06d}"
            name = f"projects/{self.project_id}/messages/{message_id}"
        answer: Answer | None = answers.sent(name)
        if fault is not None and fault.fault == "ok_without_body":
            answer = Answer(200, b"")
        elif fault is not None and fault.fault != "slow":
            answer = None
        return _Verdict(answer, name, accepted=not sent.validate_only, fault=fault)

    def _record(self, sent: _Send, verdict: _Verdict, received_at: float, at: float) -> Received:
        kind, target = checks.target_of(sent.read) or (None, None)
        data = sent.read.get("data")
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

    async def _delay(self, fault: Fault | None) -> None:
        seconds = self.latency
        if fault is not None and fault.latency_ms is not None:
            seconds = fault.latency_ms / 1000
        elif fault is not None and fault.fault == "slow":
            seconds = SLOW_MS / 1000
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _silence(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        """Ends a request without an answer: at once by a reset, or when the client or we go away."""
        if fault is not None and "timeout" in fault.fault:
            await self._stopping.wait()
        transport = request.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                # Linger of zero: the kernel sends RST instead of FIN.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response(status=503)  # never written: the connection is gone

    async def _token(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            form = dict(parse_qsl((await request.read()).decode("utf-8", "replace")))
        except web.HTTPRequestEntityTooLarge:
            form = {}
        fault = self._rules.for_grant()
        if fault is None:
            answer = oauth.grant(
                form, self._account, self._tokens, f"http://{request.host}/token", time.time()
            )
        elif fault.fault == "oauth_timeout":
            self._count_grant("no answer")
            return await self._silence(request, fault)
        elif fault.fault == "oauth_invalid_grant":
            answer = answers.oauth_error("invalid_grant", "Invalid JWT Signature.")
        else:
            answer = answers.oauth_error("internal_failure", "Backend Error", 500)
        self._count_grant(f"{answer.status} {answer.code}" if answer.code else str(answer.status))
        if fault is not None and fault.latency_ms:
            await asyncio.sleep(fault.latency_ms / 1000)
        return _response(answer)

    def _count_grant(self, answer: str) -> None:
        self._grants[answer] = self._grants.get(answer, 0) + 1


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    return web.BaseRequest(
        message, payload, protocol, writer, task, task.get_loop(), client_max_size=MAX_REQUEST_BYTES
    )


async def _read_send(request: web.BaseRequest) -> _Send:
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        return _Send(problem=answers.request_too_large(MAX_REQUEST_BYTES))
    if request.content_type != "application/json" and "Content-Type" in request.headers:
        text = (
            f'Invalid JSON payload received. Unknown name "": Cannot bind query parameter. '
            f"The Content-Type must be application/json, not {request.content_type}."
        )
        return _Send(problem=answers.malformed([(None, text)]))
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _Send(problem=answers.malformed([(None, _syntax_error(raw, error))]))
    read, violations = schema.normalise(body)
    message = body.get("message") if isinstance(body, dict) else None
    read_message = read.get("message")
    return _Send(
        body=raw if isinstance(message, dict) else b"",
        read=read_message if isinstance(read_message, dict) else {},
        validate_only=read.get("validate_only") is True,
        problem=answers.malformed(violations) if violations else None,
    )


def _syntax_error(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """The text the front end gives, with the place pointed at."""
    if error.pos >= len(raw):
        return "Invalid JSON payload received. Unexpected end of string."
    before, after = raw[max(0, error.pos - 20) : error.pos], raw[error.pos : error.pos + 20]
    line = (before + after).decode("utf-8", "replace").replace("\n", " ")
    pointer = " " * len(before.decode("utf-8", "replace")) + "^"
    return f"Invalid JSON payload received. Unexpected token.\n{line}\n{pointer}"


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)
