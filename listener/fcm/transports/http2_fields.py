"""The header fields of HTTP/2 (HPACK, RFC 7541): those of our requests, which repeat, and those of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpack import Decoder
from hpack.exceptions import HPACKError

Fields = Sequence[tuple[bytes, bytes]]

TABLE_SIZE = 4096
"""Bytes of the table in which the server keeps fields of ours, if it does not want another size. Source: RFC 9113."""

_ENTRY = 32
"""Bytes that an entry of the table counts in addition to its name and value. Source: RFC 7541, section 4.1."""
_FIRST_INDEX = 62
"""The index of the newest entry; lower ones belong to the static table. Source: RFC 7541, section 2.3.3."""

_POST, _HTTPS = b"\x83", b"\x87"
_NAMES = {b":authority": 1, b":path": 4, b"accept-encoding": 16, b"authorization": 23, b"content-type": 31}
_NAMES[b"user-agent"] = 58
"""Where the static table has these names. Source: RFC 7541, appendix A."""

_EMPTY_TABLE = b"\x20\x3f\xe1\x1f"
"""The table shrinks to nothing and grows to ``TABLE_SIZE`` again."""
_NO_TABLE = b"\x20"


def request_blocks(fields: Fields, table_size: int) -> tuple[bytes, bytes]:
    """Encodes the fields of a POST over https twice: for the first request with these fields, and for all later ones.

    The first block fills the server's table. So the second has one byte for each field; an access token has a kilobyte.

    Args:
        fields: in addition to the method and the scheme, pseudo-fields first; names in lower case.
        table_size: bytes that the server allows for the table.
    """
    size = sum(len(name) + len(value) + _ENTRY for name, value in fields)
    if table_size < TABLE_SIZE or size > TABLE_SIZE:
        block = _NO_TABLE + _POST + _HTTPS + b"".join(_literal(0x00, 4, *each) for each in fields)
        return block, block[1:]
    first = _EMPTY_TABLE + _POST + _HTTPS + b"".join(_literal(0x40, 6, *each) for each in fields)
    newest = _FIRST_INDEX + len(fields) - 1
    return first, _POST + _HTTPS + bytes(0x80 | newest - at for at in range(len(fields)))


def _literal(kind: int, prefix: int, name: bytes, value: bytes) -> bytes:
    index = _NAMES.get(name, 0)
    return _integer(kind, prefix, index) + (b"" if index else _string(name)) + _string(value)


def _string(text: bytes) -> bytes:
    return _integer(0, 7, len(text)) + text


def _integer(kind: int, prefix: int, number: int) -> bytes:
    """Source: RFC 7541, section 5.1."""
    most = (1 << prefix) - 1
    if number < most:
        return bytes([kind | number])
    encoded, number = [kind | most], number - most
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


class Http2Headers(Mapping[str, str]):
    """The header fields of an answer. They are decoded on each access: nobody looks at those of a success.

    Each block can be decoded alone, because we allow the server no table.
    """

    __slots__ = ("_block",)

    def __init__(self, block: bytes) -> None:
        self._block = block

    @property
    def status(self) -> int | None:
        """None if the block cannot be decoded."""
        block = self._block
        if block[:1] == b"\x88" or block[:2] == b"\x20\x88":
            return 200
        status = self._fields().get(":status", "")
        return int(status) if len(status) == 3 and status.isascii() and status.isdigit() else None

    def _fields(self) -> dict[str, str]:
        decoder = Decoder()
        decoder.max_allowed_table_size = decoder.header_table_size = 0
        try:
            fields = decoder.decode(self._block, raw=True)
        except HPACKError:
            return {}
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in fields}

    def __getitem__(self, name: str) -> str:
        return self._fields()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._fields() if not name.startswith(":"))

    def __len__(self) -> int:
        return sum(1 for _ in self)
