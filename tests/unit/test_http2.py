"""HTTP/2: the header fields both ways, and what a connection makes of anything that may come."""

from __future__ import annotations

import asyncio
from typing import cast

from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.fcm.fault import SendFault
from listener.fcm.transports.base import Response
from listener.fcm.transports.connection import Connection, Head, NotTaken
from listener.fcm.transports.http2_connection import PING_AFTER, Http2Connection, frame
from listener.fcm.transports.http2_fields import Http2Headers, request_blocks

NAMES = st.sampled_from([b":authority", b":path", b"authorization", b"content-type", b"x-goog-user-project"])
VALUES = st.binary(max_size=40) | st.integers(100, 3000).map(lambda size: b"t" * size)
FIELDS = st.lists(st.tuples(NAMES, VALUES), unique_by=lambda field: field[0], max_size=5)
TABLE_SIZES = st.sampled_from([0, 1000, 4096, 10_000])


@given(st.lists(FIELDS, min_size=1, max_size=4), TABLE_SIZES)
def test_the_server_reads_the_fields_of_all_requests(
    requests: list[list[tuple[bytes, bytes]]], size: int
) -> None:
    decoder = Decoder()
    decoder.max_allowed_table_size = max(size, 4096)
    for fields in requests:
        first, later = request_blocks(fields, size)
        for block in (first, later, later):
            expected = [(b":method", b"POST"), (b":scheme", b"https"), *fields]
            assert [tuple(each) for each in decoder.decode(block, raw=True)] == expected


@given(
    st.sampled_from([200, 204, 404, 429, 599]),
    st.dictionaries(st.from_regex("[a-z-]{1,12}", fullmatch=True), st.text("abc 123;", max_size=20)),
)
def test_the_fields_of_an_answer_are_read_alone(status: int, fields: dict[str, str]) -> None:
    encoder = Encoder()
    encoder.header_table_size = 0
    for _ in range(2):  # The first block also says that there is no table.
        headers = Http2Headers(encoder.encode([(":status", str(status)), *fields.items()]))
        assert headers.status == status
        assert {name: headers[name.upper()] for name in headers} == fields


class Wire(asyncio.Transport):
    """Takes what a connection writes."""

    is_cut = False
    unread = 0
    """Bytes that the server has not read."""

    def __init__(self, *, is_read: bool = True) -> None:
        self._is_read = is_read

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_cut
        if not self._is_read:
            self.unread += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.is_cut

    def abort(self) -> None:
        self.is_cut = True

    close = abort


class Pool:
    """Counts the requests that have ended."""

    request_timeout = 15.0
    streams = 100

    def __init__(self) -> None:
        self.released = self.offered = 0

    def add(self, connection: Connection) -> None: ...

    def release(self, connection: Connection) -> None:
        self.released += 1

    def offer(self, connection: Connection) -> None:
        self.offered += 1

    def resize(self, connection: Connection) -> None: ...

    def discard(self, connection: Connection) -> None: ...


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255) | st.sampled_from([0, 1, 4, 5]),
    st.sampled_from([0, 1, 1, 3, 5, 2, 99]),
    st.binary(max_size=20)
    | st.sampled_from([b"\x88", b"\x8d", b"\0\0\0\x07", b"\0\x04\0\0\0\x05", b"\0\x03\0\0\0\x01", b"{}"]),
)
SENT = st.lists(FRAMES | st.binary(max_size=30), max_size=12).map(b"".join)


@settings(max_examples=400)
@given(SENT, st.lists(st.integers(1, 40), max_size=30), st.integers(0, 70_000))
async def test_each_request_ends_once_whatever_comes(sent: bytes, cuts: list[int], size: int) -> None:
    """And all the same wherever the packets begin and end."""
    head = Head(b"", [(b":path", b"/")])
    outcomes = []
    for pieces in ([len(sent)], cuts):
        pool, wire = Pool(), Wire()
        connection = Http2Connection(pool, asyncio.get_running_loop())
        connection.connection_made(wire)
        answers = [connection.send(head, bytes(size), 1e9) for _ in range(3)]
        at = 0
        for piece in [*pieces, len(sent)]:
            if not wire.is_cut and at < len(sent):
                connection.data_received(sent[at : at + piece])
            at += piece
            await asyncio.sleep(0)
        ended = sum(answer.done() for answer in answers)
        assert pool.released == ended
        connection.connection_lost(None)
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert pool.released == 3
        outcomes.append([_seen(cast(Response | Exception, each)) for each in found])
    assert outcomes[0] == outcomes[1]


@settings(max_examples=5)
@given(st.sampled_from([frame(6, 0, 0, bytes(8)), frame(4, 0, 0)]))
async def test_what_a_server_does_not_read_is_bounded(asks: bytes) -> None:
    """Each PING and each SETTINGS wants an answer."""
    wire = Wire(is_read=False)
    connection = Http2Connection(Pool(), asyncio.get_running_loop())
    connection.connection_made(wire)
    answer = connection.send(Head(b"", [(b":path", b"/")]), b"{}", 1e9)
    while not wire.is_cut:
        connection.data_received(asks * 1000)
        await asyncio.sleep(0)
        assert wire.unread < 8 << 20
    assert _seen(cast(Response | Exception, (await asyncio.gather(answer, return_exceptions=True))[0])) == (
        "RESET",
    )


async def test_a_connection_gets_no_requests_while_a_ping_is_unanswered() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool()
    connection = Http2Connection(pool, loop)
    wire, began = Wire(), loop.time()
    connection.connection_made(wire)
    answer = connection.send(Head(b"", [(b":path", b"/")]), b"{}", 1e9)
    connection.expire(began + PING_AFTER - 1)
    assert connection.is_usable
    connection.expire(loop.time() + PING_AFTER + 1)
    assert not connection.is_usable
    connection.data_received(frame(6, 1, 0, bytes(8)))
    assert connection.is_usable
    assert pool.offered == 1
    connection.data_received(frame(6, 1, 0, bytes(8)))
    assert pool.offered == 1
    connection.expire(loop.time() + PING_AFTER + 1)
    connection.abandon(answer)
    connection.expire(loop.time() + 2 * PING_AFTER + 2)
    assert wire.is_cut


def _seen(result: Response | Exception) -> tuple[object, ...]:
    match result:
        case Response(status=status, body=body):
            return status, body
        case SendFault(code=code, ambiguous=ambiguous):
            assert ambiguous
            return (code,)
        case NotTaken():
            return ("not taken",)
        case _:
            raise result
