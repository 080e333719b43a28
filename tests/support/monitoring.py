"""Prometheus and Alertmanager as processes of their own, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.servers import closed_port
from tests.support.tools import tool

START_PATIENCE = 60.0
"""Seconds in which a server must be ready."""


class Server:
    """A server with an HTTP API."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def get(self, path: str, **parameters: str) -> Any:
        """The JSON that the server answers."""
        async with self._http.get(self.url + path, params=parameters) as answer:
            assert answer.status == 200, f"{path}: {answer.status} {await answer.text()}"
            return await answer.json()

    async def post(self, path: str, body: object) -> None:
        """Posts JSON, which the server must take."""
        async with self._http.post(self.url + path, json=body) as answer:
            assert answer.status == 200, f"{path}: {answer.status} {await answer.text()}"


@asynccontextmanager
async def alertmanager(configuration: Path, storage: Path) -> AsyncIterator[Server]:
    """Alertmanager with this configuration, ready."""
    port = closed_port()
    async with _running(
        tool("prometheus-alertmanager"),
        f"--config.file={configuration}",
        f"--storage.path={storage}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        url=f"http://127.0.0.1:{port}",
    ) as server:
        yield server


@asynccontextmanager
async def prometheus(configuration: Path, storage: Path) -> AsyncIterator[Server]:
    """Prometheus with this configuration, ready."""
    port = closed_port()
    async with _running(
        tool("prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={storage}",
        f"--web.listen-address=127.0.0.1:{port}",
        url=f"http://127.0.0.1:{port}",
    ) as server:
        yield server


@asynccontextmanager
async def _running(*command: str, url: str) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.read())
    try:
        async with aiohttp.ClientSession() as http:
            try:
                async with asyncio.timeout(START_PATIENCE):
                    while not await _is_ready(http, url):
                        if process.returncode is not None:
                            pytest.fail(f"{command[0]} ended:\n{(await reading).decode()[-3000:]}")
                        await asyncio.sleep(0.05)  # it gives no sign of its own
            except TimeoutError:
                process.kill()
                pytest.fail(f"{command[0]} did not start:\n{(await reading).decode()[-3000:]}")
            yield Server(url, http)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await reading


async def _is_ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/-/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
