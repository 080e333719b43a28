"""The server's side of HTTP/2, frame by frame, for servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, RequestReceived, StreamEnded, StreamReset
from hyperframe.frame import GoAwayFrame

from tests.support.servers import BODY


class Http2:
    """One connection of ``tests.support.servers.tcp_server``."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        acknowledges: bool = True,
        settings: Mapping[int, int] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._acknowledges = acknowledges
        self._requests: deque[int] = deque()
        self.given_up: list[int] = []
        """Streams that the client has reset."""
        self.fields: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        """Of the requests on each stream."""
        self.pongs = 0
        """PINGs of ours that the client has answered."""
        self._frames = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._frames.initiate_connection()
        if settings is not None:
            self._frames.update_settings(dict(settings))
        self._flush()

    async def request(self) -> int:
        """The stream of the next whole request. Raises IncompleteReadError at the end of the connection."""
        while not self._requests:
            data = await self._reader.read(65536)
            if not data:
                raise asyncio.IncompleteReadError(b"", None)
            for event in self._frames.receive_data(data):
                match event:
                    case RequestReceived(stream_id=stream, headers=fields):
                        self.fields[stream] = {str(name): str(value) for name, value in fields}
                        self.bodies[stream] = b""
                    case DataReceived(stream_id=stream, data=part, flow_controlled_length=size):
                        self.bodies[stream] += part
                        if self._acknowledges:
                            self._frames.acknowledge_received_data(size, stream)
                    case PingAckReceived():
                        self.pongs += 1
                    case StreamEnded(stream_id=stream):
                        self._requests.append(stream)
                    case StreamReset(stream_id=stream):
                        self.given_up.append(stream)
            if self._acknowledges:
                self._flush()
        return self._requests.popleft()

    def answer(self, stream: int, status: int = 200, body: bytes = BODY, *, whole: bool = True) -> None:
        """Answers a request; if not ``whole``, promises more of a body than there is."""
        length = len(body) if whole else len(body) + 1
        self._frames.send_headers(stream, [(":status", str(status)), ("content-length", str(length))])
        most = self._frames.max_outbound_frame_size
        for at in range(0, len(body), most):
            self._frames.send_data(stream, body[at : at + most])
        if whole:
            self._frames.end_stream(stream)
        self._flush()

    def change(self, settings: Mapping[int, int]) -> None:
        """Replaces some of the settings."""
        self._frames.update_settings(dict(settings))
        self._flush()

    def ping(self) -> None:
        """Asks whether the client is there."""
        self._frames.ping(b"are you?")
        self._flush()

    def reset(self, stream: int, why: ErrorCodes) -> None:
        """Ends one request without an answer."""
        self._frames.reset_stream(stream, why)
        self._flush()

    def go_away(self, last_stream: int) -> None:
        """Says that no request after ``last_stream`` has been looked at or will be."""
        # Not through h2, which takes the connection for closed then.
        self._writer.write(GoAwayFrame(last_stream_id=last_stream).serialize())

    def _flush(self) -> None:
        self._writer.write(self._frames.data_to_send())
