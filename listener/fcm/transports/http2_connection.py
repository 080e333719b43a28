"""One connection of HTTP/2, as RFC 9113 has it: it writes requests, and cuts the bytes that come back into answers."""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import cast

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import ANSWER_LIMIT, KEEPALIVE, Response
from listener.fcm.transports.connection import Head, NotTaken, Owner
from listener.fcm.transports.http1_response import decoded
from listener.fcm.transports.http2_fields import TABLE_SIZE, Http2Headers, request_blocks

STREAMS = 100
"""Requests at once on one connection, at most. Servers, Google's among them, allow at least as many."""

PING_AFTER = 5.0
"""Seconds of silence after which a connection with requests in flight is sent a PING, and seconds it has to answer.
Without it a dead connection would be used until TCP gives up, a quarter of an hour later."""

_MASK = (1 << 31) - 1
"""The first bit of stream numbers and windows is reserved."""
LAST_STREAM = _MASK
"""The highest number of a stream. After it a connection has no numbers left."""
_WINDOW = (1 << 16) - 1
"""Bytes that may be sent before the receiver allows more, on a stream and on a connection, by default."""
_ANSWERS = 1 << 20
"""Bytes of all answers on a connection that the server may send before we allow more."""
_FRAME = 1 << 14
"""Bytes of the largest frame."""
_UNREAD = 1 << 22
"""The connection ends when the server has left more bytes than this unread. All requests on a connection have fewer.
The rest can only be answers to PINGs and SETTINGS that the server sends without end."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 5, 6, 7, 8
CONTINUATION = 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20
REFUSED_STREAM, CANCEL = 7, 8
_TABLE_SIZE_ID, _PUSH_ID, _STREAMS_ID, _WINDOW_ID = 1, 2, 3, 4

_HEAD_SIZE = 9
_HEAD = Struct(">BHBBL")
_SETTING = Struct(">HL")
_NUMBER = Struct(">L")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as it goes over the wire."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


_HELLO = (
    PREFACE
    # No table, so that each answer's fields can be decoded alone; nothing pushed; no answer beyond what is read.
    + frame(
        SETTINGS,
        0,
        0,
        _SETTING.pack(_TABLE_SIZE_ID, 0)
        + _SETTING.pack(_PUSH_ID, 0)
        + _SETTING.pack(_WINDOW_ID, ANSWER_LIMIT),
    )
    + frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(_ANSWERS - _WINDOW))
)


class _Stream:
    """A request and what has come of its answer."""

    __slots__ = ("answer", "body", "deadline", "headers", "status", "unsent", "window")

    def __init__(self, answer: asyncio.Future[Response], deadline: float) -> None:
        self.answer = answer
        self.deadline = deadline
        self.status: int | None = None
        self.headers: Http2Headers | None = None
        self.body = b""
        self.unsent = b""
        """The rest of the request's body, which waits until the server allows more."""
        self.window = 0
        """Bytes of it that the server allows on this stream."""


class Http2Connection(asyncio.Protocol):
    """One connection, and the requests that are in flight on it. See ``Connection``.

    The transport refers to the connection, so the connection drops it when it ends: see ``Http1Connection``.
    """

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_blocks",
        "_fields",
        "_frames",
        "_head",
        "_heard",
        "_is_closed",
        "_is_leaving",
        "_loop",
        "_next_stream",
        "_out",
        "_owner",
        "_pinged",
        "_server_streams",
        "_server_window",
        "_streams",
        "_table_size",
        "_taken",
        "_transport",
        "_unread",
        "_unsent",
        "_window",
        "capacity",
        "idle_since",
        "in_use",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self.capacity = owner.streams
        self._allowed = STREAMS
        self.in_use = 0
        self.idle_since = self._heard = loop.time()
        self._transport: asyncio.Transport | None = None
        self._is_closed = False
        self._is_leaving = False
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._unsent: dict[int, _Stream] = {}
        self._window = self._server_window = _WINDOW
        self._table_size = TABLE_SIZE
        self._head: Head | None = None
        self._blocks = (b"", b"")
        self._out: list[bytes] = []
        self._unread = b""
        self._fields: tuple[int, int, bytes] | None = None
        self._taken = 0
        self._pinged: float | None = None

    # --- called by the transport and the pool ----------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether a request may be written, as far as this side knows."""
        return not (
            self._is_closed
            or self._is_leaving
            or self._pinged is not None  # It may be dead. The requests on it wait for the answer.
            or self._transport is None
            or self._transport.is_closing()
        )

    def send(self, head: Head, body: bytes, deadline: float) -> asyncio.Future[Response]:
        """See ``Connection.send``."""
        number = self._next_stream
        self._next_stream = number + 2
        if self._next_stream > LAST_STREAM:
            self._is_leaving = True
        answer = self._loop.create_future()
        if not self._streams:
            self._heard = self._loop.time()
        self._streams[number] = stream = _Stream(answer, deadline)
        if head is self._head:
            block = self._blocks[1]
        else:
            self._head = head
            self._blocks = request_blocks(head.fields, self._table_size)
            block = self._blocks[0]
        if not self._out:
            self._loop.call_soon(self._flush)
        self._put_fields(number, block)
        size = len(body)
        if size <= self._window and size <= self._server_window and size <= _FRAME and not self._unsent:
            self._window -= size
            self._out.append(frame(DATA, END_STREAM, number, body))
        else:
            stream.unsent, stream.window = body, self._server_window
            self._unsent[number] = stream
            self._send_rest()
        return answer

    def abandon(self, answer: asyncio.Future[Response]) -> None:
        """See ``Connection.abandon``."""
        for number, stream in self._streams.items():
            if stream.answer is answer:
                self._give_up(number)
                return

    def expire(self, now: float) -> None:
        """See ``Connection.expire``."""
        if not self._streams and self._pinged is None:
            if now - self.idle_since >= KEEPALIVE and self._transport is not None:
                self._transport.close()
            return
        late = [number for number, stream in self._streams.items() if stream.deadline <= now]
        for number in late:
            self._fail(number, "TIMEOUT", f"no answer within {self._owner.request_timeout:g} s")
        if self._pinged is not None:
            if now - self._pinged >= PING_AFTER:
                self._break_off("RESET", "the connection is dead: it does not answer a PING")
        elif self._streams and now - self._heard >= PING_AFTER:
            self._pinged = now
            self._write(frame(PING, 0, 0, bytes(8)))

    def abort(self) -> None:
        """See ``Connection.abort``."""
        self._is_closed = True  # also if it is not open yet
        self._break_off("RESET", "the connections are being closed")

    # --- called by asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_closed:  # Nobody waits for it any more.
            self._cut()
            return
        self._transport.write(_HELLO)
        self._owner.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        self._heard = self._loop.time()
        if self._pinged is not None:
            self._pinged = None
            self._owner.offer(self)
        data = self._unread + data if self._unread else data
        at, have = 0, len(data)
        while have - at >= _HEAD_SIZE:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            size = high << 16 | low
            if size > _FRAME:
                self._break_off("PROTOCOL", "the answer is not HTTP/2")
                break
            start = at + _HEAD_SIZE
            if have - start < size:
                break
            at = start + size
            if not self._take(kind, flags, stream & _MASK, data[start:at]):
                self._break_off("PROTOCOL", "the answer is not HTTP/2")
                break
        self._unread = data[at:]

    def eof_received(self) -> None:
        self._is_closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._owner.discard(self)
        how = "closed" if exc is None else "lost"
        self._break_off("RESET", f"the connection was {how} before the end of the answer")
        self._transport = None

    # --- frames ----------------------------------------------------------------------------------------

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> bool:
        """Handles a frame; returns False if the frame is not allowed there."""
        if self._fields is not None and kind != CONTINUATION:
            return False
        match kind:
            case 0:  # DATA
                return self._take_data(flags, number, payload)
            case 1:  # HEADERS
                unpadded = _unpadded(flags, payload)
                if unpadded is None or not number & 1:
                    return False
                return self._take_fields(
                    flags, number, unpadded[5:] if flags & HAS_PRIORITY else unpadded, flags & END_STREAM
                )
            case 9:  # CONTINUATION
                if self._fields is None or self._fields[0] != number:
                    return False
                (_, ends, before), self._fields = self._fields, None
                return self._take_fields(flags, number, before + payload, ends)
            case 3:  # RST_STREAM
                if len(payload) != 4:
                    return False
                self._take_reset(number, *_NUMBER.unpack(payload))
            case 4:  # SETTINGS
                if not flags & ACK:
                    return self._take_settings(payload)
            case 6:  # PING
                if not flags & ACK:
                    self._write(frame(PING, ACK, 0, payload))
            case 7:  # GOAWAY
                if len(payload) < 8:
                    return False
                self._take_leave(_NUMBER.unpack_from(payload)[0] & _MASK)
            case 8:  # WINDOW_UPDATE
                if len(payload) != 4:
                    return False
                more = _NUMBER.unpack(payload)[0] & _MASK
                if not number:
                    self._window += more
                elif (stream := self._unsent.get(number)) is not None:
                    stream.window += more
                self._send_rest()
            case 5:  # PUSH_PROMISE
                return False
        return True

    def _take_data(self, flags: int, number: int, payload: bytes) -> bool:
        self._taken += len(payload)
        if self._taken >= _ANSWERS // 2:
            self._write(frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._taken)))
            self._taken = 0
        if flags & PADDED:
            if (unpadded := _unpadded(flags, payload)) is None:
                return False
            payload = unpadded
        if (stream := self._streams.get(number)) is not None:
            if stream.status is None:
                return False
            stream.body = stream.body + payload if stream.body else payload
            if flags & END_STREAM or len(stream.body) >= ANSWER_LIMIT:
                self._finish(number, stream, is_whole=flags & END_STREAM != 0)
        return True

    def _take_fields(self, flags: int, number: int, block: bytes, ends: int) -> bool:
        if not flags & END_HEADERS:
            self._fields = number, ends, block
            return len(block) <= ANSWER_LIMIT
        if (stream := self._streams.get(number)) is None:
            return True
        if stream.status is None:  # else these are trailers
            headers = Http2Headers(block)
            if (status := headers.status) is None:
                return False
            if 100 <= status < 200:
                return not ends
            stream.status, stream.headers = status, headers
        if ends:
            self._finish(number, stream, is_whole=True)
        return True

    def _take_reset(self, number: int, why: int) -> None:
        if (stream := self._streams.get(number)) is None:
            return
        if why == REFUSED_STREAM and stream.status is None:
            self._not_taken(number)
        else:
            self._fail(number, "RESET", "the server has reset the request", tell=False)

    def _take_settings(self, payload: bytes) -> bool:
        if len(payload) % _SETTING.size:
            return False
        for name, value in _SETTING.iter_unpack(payload):
            if name == _STREAMS_ID:
                self._allowed = min(value, STREAMS)
            elif name == _WINDOW_ID:
                for stream in self._unsent.values():
                    stream.window += value - self._server_window
                self._server_window = value
            elif name == _TABLE_SIZE_ID:
                self._table_size = value
                self._head = None
        self._write(frame(SETTINGS, ACK, 0))
        self._send_rest()
        self.capacity = self._allowed
        if not self.capacity:
            self._is_leaving = True  # Nobody can tell whether it will ever take requests.
            self._close_if_done()
        self._owner.resize(self)
        return True

    def _take_leave(self, last: int) -> None:
        """The server takes no new requests, and has not taken those after ``last``."""
        self._is_leaving = True
        for number, stream in list(self._streams.items()):
            if number > last and stream.status is None:  # A request that is being answered was taken.
                self._not_taken(number)
        self._close_if_done()

    # --- writing ---------------------------------------------------------------------------------------

    def _put_fields(self, number: int, block: bytes) -> None:
        kind = HEADERS
        while len(block) > _FRAME:
            self._out.append(frame(kind, 0, number, block[:_FRAME]))
            kind, block = CONTINUATION, block[_FRAME:]
        self._out.append(frame(kind, END_HEADERS, number, block))

    def _send_rest(self) -> None:
        """Sends as much of the waiting bodies as the server allows."""
        for number, stream in list(self._unsent.items()):
            while (
                size := max(0, min(len(stream.unsent), _FRAME, self._window, stream.window))
            ) > 0 or not stream.unsent:
                part, stream.unsent = stream.unsent[:size], stream.unsent[size:]
                self._window -= size
                stream.window -= size
                self._write(frame(DATA, 0 if stream.unsent else END_STREAM, number, part))
                if not stream.unsent:
                    del self._unsent[number]
                    break

    def _write(self, data: bytes) -> None:
        """Writes at the end of this turn of the event loop, together with everything else from this turn."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(b"".join(out))
        if self._transport.get_write_buffer_size() > _UNREAD:
            self._break_off("RESET", "the server does not read what it is sent")

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- the end of a request --------------------------------------------------------------------------

    def _finish(self, number: int, stream: _Stream, *, is_whole: bool) -> None:
        """The answer is complete, or as complete as it will be."""
        assert stream.status is not None
        assert stream.headers is not None
        body: bytes | None = stream.body[:ANSWER_LIMIT]
        if body and body[:1] != b"{":  # otherwise it is plain JSON, and nobody needs to read the headers
            body = decoded(body, stream.headers.get("content-encoding", "identity"))
        if body is None:
            self._fail(number, "RESET", "the answer's body cannot be read", tell=False)
            return
        if not stream.answer.done():
            stream.answer.set_result(Response(stream.status, stream.headers, body))
        if is_whole and number not in self._unsent:
            self._forget(number)
        else:
            self._give_up(number)

    def _fail(self, number: int, code: str, reason: str, *, tell: bool = True) -> None:
        """There is no answer, or only a part of one. ``tell``: whether to tell the server that the request ends."""
        stream = self._streams[number]
        if stream.status is not None and 200 <= stream.status < 300:
            assert stream.headers is not None
            if not stream.answer.done():
                # FCM has accepted the message; only the message id is lost.
                stream.answer.set_result(Response(stream.status, stream.headers, b""))
        elif not stream.answer.done():
            # Half an error body would be misread: a dead token as a wrong project.
            stream.answer.set_exception(SendFault(code, reason, ambiguous=True))
        if tell:
            self._give_up(number)
        else:
            self._forget(number)

    def _not_taken(self, number: int) -> None:
        """The server has said that it did not carry out a request."""
        answer = self._streams[number].answer
        if not answer.done():
            answer.set_exception(NotTaken())
        self._forget(number)

    def _give_up(self, number: int) -> None:
        self._write(frame(RST_STREAM, 0, number, _NUMBER.pack(CANCEL)))
        self._forget(number)

    def _forget(self, number: int) -> None:
        del self._streams[number]
        self._unsent.pop(number, None)
        self._owner.release(self)
        self._close_if_done()

    def _break_off(self, code: str, reason: str) -> None:
        """Ends the connection and all requests on it."""
        self._is_closed = True
        for number in list(self._streams):
            self._fail(number, code, reason, tell=False)
        self._cut()

    def _close_if_done(self) -> None:
        if self._is_leaving and not self._streams and self._transport is not None:
            self._transport.close()


def _unpadded(flags: int, payload: bytes) -> bytes | None:
    """None if there is more padding than payload."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        return None
    return payload[1 : len(payload) - payload[0]]
