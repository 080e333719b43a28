"""Servers of HTTP/2 that others have written: nginx and Node (nghttp2). Each says what has arrived."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.servers import BODY, Tls, answer, closed_port, read_request, tcp_server
from tests.support.service import PATIENCE
from tests.support.tools import tool

Arrived = list[tuple[str, bytes]]
"""The access token and the body of each request."""

_NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr warn;
events {{ worker_connections 2000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    gzip on;
    gzip_types application/json;
    gzip_min_length 1;
    upstream sink {{
        server 127.0.0.1:{sink};
        keepalive 100;
    }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {chain};
        ssl_certificate_key {chain};
        {settings}
        location / {{
            proxy_pass http://sink;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@asynccontextmanager
async def nginx(tls: Tls, settings: str) -> AsyncIterator[tuple[int, Arrived]]:
    """Debian's nginx as a proxy; yields its port and what has come through it.

    Args:
        tls: the certificate.
        settings: directives of its server, such as "keepalive_requests 50;".
    """
    program = tool("nginx")
    arrived: Arrived = []

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            token = head.partition(b"Bearer ")[2].partition(b"\r\n")[0]
            arrived.append((token.decode(), body))
            writer.write(answer())

    with tempfile.TemporaryDirectory(prefix="push-listener-") as name:
        async with tcp_server(sink) as sink_port:
            port = closed_port()
            conf = Path(name) / "nginx.conf"
            conf.write_text(
                _NGINX.format(
                    directory=name, port=port, sink=sink_port, chain=tls.chain_file, settings=settings
                )
            )
            process = await asyncio.create_subprocess_exec(program, "-e", "stderr", "-p", name, "-c", conf)
            try:
                async with asyncio.timeout(PATIENCE):
                    await _listens(process, port)
                yield port, arrived
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int) -> None:
    while True:
        assert process.returncode is None, "nginx has ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


_NODE = """
const { readFileSync } = require("node:fs");
const [chain, settings, leaveAfter] = JSON.parse(process.argv[1]);
const pem = readFileSync(chain);
const server = require("node:http2").createSecureServer({ key: pem, cert: pem, settings });
server.on("session", (session) => {
  let streams = 0;
  session.on("stream", (stream, headers) => {
    if (++streams === leaveAfter) session.close(); // GOAWAY
    const parts = [];
    stream.on("data", (part) => parts.push(part));
    stream.on("error", () => {});
    stream.on("end", () => {
      console.log(JSON.stringify([headers.authorization.slice(7), Buffer.concat(parts).toString()]));
      stream.respond({ ":status": 200, "content-type": "application/json" });
      stream.end(ANSWER);
    });
  });
  session.on("error", () => {});
});
process.stdin.resume().on("end", () => server.close());
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
""".replace("ANSWER", json.dumps(BODY.decode()))


@asynccontextmanager
async def node(
    tls: Tls, settings: dict[str, int], leave_after: int | None = None
) -> AsyncIterator[tuple[int, Arrived]]:
    """Node's server; yields its port and what has arrived.

    Args:
        tls: the certificate.
        settings: those of HTTP/2, by Node's names.
        leave_after: how many requests a connection takes before GOAWAY.
    """
    program = tool("node")
    arguments = json.dumps([str(tls.chain_file), settings, leave_after])
    process = await asyncio.create_subprocess_exec(
        program, "-e", _NODE, arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    arrived: Arrived = []

    async def read(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            token, body = json.loads(line)
            arrived.append((token, body.encode()))

    try:
        async with asyncio.timeout(PATIENCE):
            port = int(await process.stdout.readline())
        reading = asyncio.create_task(read(process.stdout))
        yield port, arrived
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
