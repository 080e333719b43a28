"""A wire between two ends of this machine on which every packet takes time, the first ones of a connection included.

    python -m tests.benchmarks.wire --rtt-ms 80

makes a network device and serves it until SIGTERM, or the end of the pipe that is its standard input. A connection to
``FAR`` comes back, after the delay, as one from ``FAR`` to ``NEAR``, where the sink listens. So both ends are this
machine's own TCP, with its slow start and its acknowledgements: a relay that ends TCP itself would hide both. This
needs Linux and the right to make network devices (root, or ``unshare -rn``).

The packets are only turned round: the two addresses change places, which leaves all checksums as they were.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque

import click

NEAR = "198.18.0.1"
"""Source: RFC 2544: 198.18.0.0/15 is for benchmarks."""
FAR = "198.18.0.2"

_DEVICE = b"push-bench"
_QUEUE = 10_000
"""Packets that the kernel keeps for this process."""
_MOST_READ = 64
"""Packets that are read before those are written that are due."""

# Source: linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def _open_device() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE, _IFF_TUN | _IFF_NO_PI))
    name = _DEVICE.decode()
    subprocess.run(["ip", "addr", "add", f"{NEAR}/30", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "txqueuelen", str(_QUEUE), "up"], check=True)
    return device


def turned(packet: bytes) -> bytes:
    """An IPv4 packet whose source and destination have changed places."""
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


def _serve(device: int, stdin: int, delay: float) -> None:
    """Returns at the end of standard input. A packet goes on ``delay`` seconds after it was read."""
    late: deque[tuple[float, bytes]] = deque()
    now = time.monotonic
    while True:
        ready, _, _ = select.select([device, stdin], [], [], max(0.0, late[0][0] - now()) if late else None)
        if stdin in ready:
            return
        if device in ready:
            due = now() + delay
            try:
                for _ in range(_MOST_READ):
                    late.append((due, os.read(device, 2048)))
            except BlockingIOError:
                pass
        soon = now()
        while late and late[0][0] <= soon:
            packet = late.popleft()[1]
            if packet[0] >> 4 == 4:  # The kernel also asks for IPv6 neighbours.
                os.write(device, turned(packet))


@click.command()
@click.option("--rtt-ms", default=20.0, show_default=True, type=click.FloatRange(0), help="There and back.")
def main(rtt_ms: float) -> None:
    """Delay all packets between two addresses of this machine, half of the time in each direction."""
    device = _open_device()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(FAR, flush=True)
    _serve(device, sys.stdin.fileno(), rtt_ms / 2000)


if __name__ == "__main__":
    main()
