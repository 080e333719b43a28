"""Servers that misbehave on purpose, written on bare sockets, and what TLS needs to be tried out."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BODY = b'{"name": "projects/p/messages/1"}'


def answer(status: int = 200, body: bytes = BODY, *headers: str) -> bytes:
    """A whole HTTP answer, keep-alive."""
    lines = [
        f"HTTP/1.1 {status} X",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def tcp_server(
    handle: Handler, tls: ssl.SSLContext | None = None, *, port: int = 0
) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that hands each connection to ``handle``; yields its port, by default any free one.

    Connections still open at the end are cut.
    """
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            # Cancelled only below; asyncio's streams would report it as an error.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handle(reader, writer)
        finally:
            handlers.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, and the last one for ever; yields its URL, and the heads of the requests."""
    left, heads = list(answers), []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            heads.append(head)
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    async with tcp_server(handle) as port:
        yield f"http://127.0.0.1:{port}", heads


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of one HTTP request.

    Raises IncompleteReadError if the client has closed the connection.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)


def reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection with RST in place of FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


_RESERVED = 64
_reserved: deque[socket.socket] = deque()


def closed_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, until the test starts a server there.

    On Linux it stays bound, so that the kernel gives it to nobody who asks for any free port: other tests do that all
    the time. A server that asks for it by its number gets it all the same, because both sockets have SO_REUSEADDR.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    _reserved.append(sock)
    if sys.platform != "linux" or len(_reserved) > _RESERVED:
        _reserved.popleft().close()
    return port


def forget_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the proxies of whoever runs the tests out of them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass
class Proxy:
    """What a forward proxy for tests was asked, and how it behaves."""

    port: int
    heads: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def tunnelling_proxy() -> AsyncIterator[Proxy]:
    """A proxy that does what CONNECT asks for, to 127.0.0.1 whatever the host."""
    proxy = Proxy(0)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        proxy.heads.append(head)
        port = int(head.split()[1].rpartition(b":")[2])
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    async with tcp_server(handle) as proxy.port:
        yield proxy


@dataclass(frozen=True)
class Tls:
    """A certificate for one host, by an authority that nobody knows."""

    server: ssl.SSLContext
    ca_file: Path
    """The authority's certificate, for a client that is to trust it."""
    chain_file: Path
    """The server's key and certificate."""


def make_tls(directory: Path, protocol: str | None = None, *, host: str = "localhost") -> Tls:
    """Makes an authority, its certificate for a host, and a server's context.

    Args:
        directory: where the files go.
        protocol: the one that the server names when it is asked (ALPN); None to name none.
        host: a name or an address.
    """
    ca_key, ca = _certificate("authority.invalid", None)
    key, certificate = _certificate(host, (ca_key, ca))
    ca_file = directory / "authority.pem"
    ca_file.write_bytes(_pem(ca))
    chain_file = directory / "server.pem"
    chain_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + _pem(certificate)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain_file)
    if protocol is not None:
        server.set_alpn_protocols([protocol])
    return Tls(server, ca_file, chain_file)


_Signer = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def _certificate(name: str, by: _Signer | None) -> _Signer:
    """A key and its certificate, for a host; or, signed by itself, for an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[1].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        # Python 3.13 and later insist on these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((by[0] if by else key).public_key()),
            critical=False,
        )
        .add_extension(_usage(signs=by is None), critical=True)
        .sign(by[0] if by else key, hashes.SHA256())
    )
    return key, certificate


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
