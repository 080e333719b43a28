"""``push-listener healthcheck``: what Docker and systemd ask whether the service is well."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from listener import config
from listener.emulator import Emulator
from tests.support.postgres import Database
from tests.support.servers import answer, closed_port, read_request, tcp_server
from tests.support.service import PATIENCE, environment, program, run


async def ask(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``healthcheck``."""
    env = {"PATH": os.environ.get("PATH", ""), **variables}
    return await run("healthcheck", *arguments, env=env, forked=True)


async def test_a_service_that_works(database: Database, emulator: Emulator) -> None:
    async with program("run", env=environment(database.dsn, emulator), forked=True) as running:
        await running.said("ready")
        port = str(await running.port())
        by_hand = await run("healthcheck", env={"PATH": os.environ.get("PATH", ""), "PORT": port})
        assert by_hand == (0, f"http://127.0.0.1:{port}/healthz answers 200: ok\n", "")
        assert await ask("--ready", PORT=port) == (0, f"http://127.0.0.1:{port}/readyz answers 200: ok\n", "")


async def test_a_service_that_lives_and_cannot_work(emulator: Emulator) -> None:
    env = environment(f"postgresql://nobody:S3cr3t@127.0.0.1:{closed_port()}/none", emulator)
    async with program("run", env=env, forked=True) as running:
        port = str(await running.port())
        assert (await ask(PORT=port))[0] == 0
        code, out, err = await ask("--ready", PORT=port)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: http://127.0.0.1:{port}/readyz answers 503: ")
    assert "database" in err
    assert "S3cr3t" not in err


@pytest.mark.parametrize(
    ("host", "binds", "shown"),
    [
        ("", "", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("localhost", "localhost", "localhost"),
        ("::", "::", "[::1]"),
        ("::1", "::1", "[::1]"),
    ],
)
async def test_it_asks_where_the_service_listens(
    emulator: Emulator, host: str, binds: str, shown: str
) -> None:
    if ":" in binds and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    env = environment(f"postgresql://nobody@127.0.0.1:{closed_port()}/none", emulator, host=binds)
    async with program("run", env=env, forked=True) as running:
        port = str(await running.port())
        for written in (host, f'"{host}"'):
            assert await ask(PORT=f'"{port}"', HOST=written) == (
                0,
                f"http://{shown}:{port}/healthz answers 200: ok\n",
                "",
            )


async def test_nothing_listens() -> None:
    port = str(closed_port())
    code, out, err = await ask(PORT=port)
    assert (code, out) == (1, "")
    assert err == f"Error: http://127.0.0.1:{port}/healthz does not answer: Connection refused\n"


async def test_no_answer_in_time() -> None:
    asked = asyncio.Event()

    async def keep_waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    async with tcp_server(keep_waiting) as port:
        code, out, err = await ask("--timeout", "0.1", PORT=str(port))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
    assert (code, out) == (1, "")
    assert err == f"Error: http://127.0.0.1:{port}/healthz does not answer: no answer in time\n"


async def test_an_answer_that_comes_in_drops_does_not_exceed_the_time() -> None:
    """Each byte comes in time for the socket; the whole never ends."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with tcp_server(drip) as port:
        code, out, err = await ask("--timeout", "0.5", PORT=str(port))
    assert (code, out) == (1, "")
    assert err == f"Error: http://127.0.0.1:{port}/healthz does not answer: no answer in time\n"


@pytest.mark.parametrize("host", ["a..b", "no name", "x" * 64, "[::1]", "a/b", "127.0.0.1\n\nx"])
async def test_a_host_that_is_no_address(host: str) -> None:
    code, out, err = await ask(HOST=host, PORT="8080")
    assert (code, out) == (1, "")
    assert err == "Error: HOST does not say where the service listens: it is no address and no name\n"


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "1e300", "soon"])
async def test_a_time_that_is_none(seconds: str) -> None:
    code, out, err = await ask("--timeout", seconds)
    assert (code, out) == (2, "")
    assert "Invalid value for '--timeout'" in err


@pytest.mark.parametrize("form", ["{}", " {}\n", "'{}'", "+{}", "{}.0", "0{}"])
@pytest.mark.parametrize("name", ["PORT", "port"])
async def test_a_port_is_read_as_the_settings_read_it(name: str, form: str) -> None:
    async def fine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(200, b"ok\n"))
        await writer.drain()

    async with tcp_server(fine) as port:
        given = form.format(port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, given)
            assert config.load(database_url="dbname=x").port == port
        assert (await ask(**{name: given, "HOST": "127.0.0.1\n"}))[0] == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(500, b"oh\nno"), "answers 500: oh; no"),
        (b"SSH-2.0-nothing\r\n\r\n", "does not answer: BadStatusLine"),
        (b"", "does not answer: RemoteDisconnected"),
    ],
    ids=["500", "no HTTP", "nothing"],
)
async def test_something_else_listens(said: bytes, reason: str) -> None:
    async def answer_wrongly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        await writer.drain()

    async with tcp_server(answer_wrongly) as port:
        code, out, err = await ask(PORT=str(port))
    assert (code, out) == (1, "")
    assert err == f"Error: http://127.0.0.1:{port}/healthz {reason}\n"


@pytest.mark.parametrize("port", ["0", "-1", "65536", "http", "\uff18\uff10"])
async def test_a_port_that_cannot_be_asked(port: str) -> None:
    code, out, err = await ask(PORT=port)
    assert (code, out) == (1, "")
    assert err == "Error: PORT does not say where the service listens: set it to a number from 1 to 65535\n"


async def test_it_asks_no_proxy() -> None:
    async def fine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(200, b"ok\n"))
        await writer.drain()

    async with tcp_server(fine) as port:
        proxy = f"http://127.0.0.1:{closed_port()}"
        code, _, err = await ask(PORT=str(port), http_proxy=proxy, HTTP_PROXY=proxy, ALL_PROXY=proxy)
    assert (code, err) == (0, "")
