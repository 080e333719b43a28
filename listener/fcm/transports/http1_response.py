"""The header fields and the body of an HTTP/1.1 answer."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping

from listener.fcm.transports.base import ANSWER_LIMIT

_INFORMATIONAL = re.compile(rb"HTTP/1\.[01] 1")


class Headers(Mapping[str, str]):
    """The header fields of an answer. They are parsed on each access: nobody looks at those of a success."""

    __slots__ = ("_received",)

    def __init__(self, received: bytes) -> None:
        """``received``: the head of the answer, perhaps with that of a 1xx before it and a part of the body after."""
        self._received = received

    def _fields(self) -> dict[str, str]:
        heads = self._received.lstrip(b"\r\n").split(b"\r\n\r\n")
        final = next((head for head in heads if not _INFORMATIONAL.match(head)), b"")
        lines = (line.partition(":") for line in final.decode("latin-1").split("\r\n")[1:])
        return {name.strip().lower(): value.strip() for name, _, value in lines}

    def __getitem__(self, name: str) -> str:
        return self._fields()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self._fields())


def decoded(body: bytes, encoding: str) -> bytes | None:
    """A body that the server compressed although the request forbids it, at most ``ANSWER_LIMIT`` bytes of it.

    None if it cannot be decoded.
    """
    if encoding == "identity":
        return body
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        content = decompressor.decompress(body, ANSWER_LIMIT)
    except zlib.error:
        return None
    return content if decompressor.eof or len(content) == ANSWER_LIMIT else None
