"""The emulator itself: an HTTP server that stands in for FCM and for Google's token endpoint."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from listener.emulator import answers, control, front_end, oauth, topics, verdict
from listener.emulator.answers import Answer
from listener.emulator.faults import SLOW_MS, Fault
from listener.emulator.front_end import SendRequest
from listener.emulator.received import Received
from listener.emulator.state import State
from listener.emulator.verdict import Judge, Verdict

MAX_REQUEST_BYTES = 10 * 2**20
"""The longest request body that Google's front end accepts."""

_STOP_GRACE = 0.1
"""When the emulator stops, requests in flight have this many seconds to end by themselves."""


class Emulator(State):
    """A local FCM HTTP v1 and OAuth token server, as an async context manager.

    ``latency`` is the time in seconds before every answer of ``messages:send``; ``token_lifetime`` is in seconds too.
    ``faults`` are rules or their text (see :func:`listener.emulator.faults.parse_fault`). ``seed`` makes rules with a
    ``share`` repeatable. At most ``remember`` requests are kept.

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
        super().__init__(
            project_id,
            latency=latency,
            faults=faults,
            token_lifetime=token_lifetime,
            seed=seed,
            remember=remember,
        )
        self._host = host
        self._port = port
        self._judge = Judge(project_id, self._tokens, self._rules)
        self._send_path = f"/v1/projects/{project_id}/messages:send"
        self._connections = 0
        self._stopping = asyncio.Event()
        self._handler: web.Server | None = None
        self._listener: asyncio.Server | None = None

    # --- start and stop --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Binds the port and serves.

        After :meth:`stop` the emulator starts again on the same port, with the same state.
        """
        self._stopping.clear()
        # With cancellation, a handler that never answers ends when its client goes away.
        self._handler = web.Server(
            self._serve, request_factory=_request, handler_cancellation=True, access_log=None
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._connect, self._host, self._port, backlog=1024
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port and every connection, so that FCM is down for the clients. Does nothing if not started."""
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
        error_type: type[BaseException] | None,
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
        """``http://host:port``; valid only after the start."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def service_account(self) -> dict[str, str]:
        """The service account's key, with this emulator as its token server."""
        return self.service_account_at(self.endpoint)

    def stats(self) -> dict[str, Any]:
        """Counts since the start or the last :meth:`clear`; connections since the start."""
        return {
            **super().stats(),
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
        if request.method == "POST" and path in topics.IID_PATHS:
            return _response(await self._batch(request, path))
        subscription = topics.v1_path(raw_path.partition("?")[0])
        if subscription is not None:
            return _response(self._subscription(request, *subscription))
        return await control.serve(self, request, path) or _response(answers.not_found_html())

    async def _send(self, request: web.BaseRequest, project: str) -> web.StreamResponse:
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            received_at, at = time.time(), time.monotonic()
            sent = await _read_send(request)
            decided = self._judge.verdict(sent, request.headers.get("Authorization"), project)
            self._journal.add(self._record(sent, decided, received_at, at))
            await self._delay(decided.fault)
            if decided.answer is None:
                return await self._silence(request, decided.fault)
            return _response(decided.answer)
        finally:
            self._in_flight -= 1

    def _record(self, sent: SendRequest, decided: Verdict, received_at: float, at: float) -> Received:
        """See ``verdict.record_of``. The chaos tests override it."""
        record = verdict.record_of(sent, decided, received_at, at)
        if record.accepted and record.kind is not None and record.target is not None:
            record.recipients = self.subscriptions.recipients(record.kind, record.target)
        return record

    async def _delay(self, fault: Fault | None) -> None:
        seconds = self.latency
        if fault is not None and fault.latency_ms is not None:
            seconds = fault.latency_ms / 1000
        elif fault is not None and fault.fault == "slow":
            seconds = SLOW_MS / 1000
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _silence(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        """Ends a request without an answer, by a reset: at once, or for a timeout when the emulator stops."""
        if fault is not None and "timeout" in fault.fault:
            await self._stopping.wait()
        transport = request.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                # With a linger of zero the kernel sends RST instead of FIN.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response(status=503)  # Never written: the connection is closed.

    def _subscription(self, request: web.BaseRequest, project: str, token: str, topic: str | None) -> Answer:
        action = {"POST": "create", "DELETE": "delete"}.get(request.method)
        if action is None or (action == "create") is not (topic is None):
            return answers.not_found_html()
        refusal = self._tokens.check(request.headers.get("Authorization"))
        if refusal is None and project != self.project_id:
            refusal = answers.permission_denied(project, f"cloudmessaging.topicSubscriptions.{action}")
        if refusal is not None:
            return refusal
        if topic is None:
            return topics.create(self.subscriptions, project, token, request.query)
        return topics.delete(self.subscriptions, token, topic, request.query)

    async def _batch(self, request: web.BaseRequest, path: str) -> Answer:
        # Without access_token_auth the Instance ID API reads Authorization as a server key. Those no longer exist.
        if (
            self._tokens.check(request.headers.get("Authorization")) is not None
            or request.headers.get("access_token_auth") != "true"
        ):
            return topics.iid_error(401, "Unauthorized")
        return topics.batch(self.subscriptions, path, await request.read())

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
            self._token_answers["no answer"] += 1
            return await self._silence(request, fault)
        else:
            answer = answers.OAUTH_ERRORS[fault.fault]
        self._token_answers[f"{answer.status} {answer.code}" if answer.code else str(answer.status)] += 1
        if fault is not None and fault.latency_ms:
            await asyncio.sleep(fault.latency_ms / 1000)
        return _response(answer)


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


async def _read_send(request: web.BaseRequest) -> SendRequest:
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        return SendRequest(refusal=answers.request_too_large(MAX_REQUEST_BYTES))
    content_type = request.content_type if "Content-Type" in request.headers else None
    return front_end.read_request(raw, content_type)


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)
