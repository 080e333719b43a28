"""The benchmarks' wire: what it does to a packet."""

from __future__ import annotations

import ipaddress
import struct

from tests.benchmarks.wire import FAR, NEAR, turned


def test_a_packet_that_is_turned_comes_from_where_it_went_and_keeps_its_checksums() -> None:
    near, far = (ipaddress.IPv4Address(each).packed for each in (NEAR, FAR))
    rest = b"\x45\0\0\x18\0\0\0\0\x40\x06\0\0"
    packet = rest + near + far + b"data"
    back = turned(packet)
    assert back == rest + far + near + b"data"
    assert sum(struct.unpack(">12H", packet)) == sum(struct.unpack(">12H", back))
