"""Every block of docs/clients.md runs, in its order, and does what the page says."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from supabase import acreate_client

from listener.client import Push, PushClient
from listener.emulator import Emulator
from tests.support import rest
from tests.support.documents import shape
from tests.support.postgres import Database
from tests.support.rest import RestServer
from tests.support.servers import forget_proxies
from tests.support.service import PROJECT, Rows, python, serving, settings_for

ANN = UUID("a0000000-0000-4000-8000-00000000000a")
PAGE = (PROJECT / "docs/clients.md").read_text()


def blocks() -> list[tuple[str, str]]:
    """Each block of Python with the heading that it stands under."""
    found, heading = [], ""
    for part in re.finditer(r"^## ([^\n]+)$|^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if part[1]:
            heading = part[1]
        else:
            found.append((heading, part[2]))
    return found


async def run(code: str, names: dict[str, Any]) -> None:
    """Runs a block whose ``await`` may stand at the top."""
    compiled = compile(
        code, "docs/clients.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    running = eval(compiled, names)
    if running is not None:
        await running


async def first(code: str, database: Database) -> list[str]:
    """What the script of the first section prints, run as a reader runs it."""
    async with python("-c", code, env={**os.environ, "DATABASE_URL": database.dsn}, forked=True) as script:
        assert await script.ended() == 0
        return script.out.splitlines()


@pytest.fixture
async def server(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RestServer]:
    forget_proxies(monkeypatch)
    with rest.serving(database) as running:
        yield running


async def test_the_page_runs(database: Database, server: RestServer, rows: Rows, emulator: Emulator) -> None:
    lines: list[str] = []
    names: dict[str, Any] = {
        "print": lambda *values: lines.append(" ".join(map(str, values))),
        "DATABASE_URL": database.dsn,
        "SUPABASE_URL": server.url,
        "SUPABASE_SECRET_KEY": rest.SECRET_KEY,
    }
    await rows.device("a-registration-token", ANN)
    await rows.query("create table orders (id int, status text); insert into orders values (17, 'new')")
    printed: dict[str, list[str]] = {}
    for heading, code in blocks():
        if heading == "A first push":
            async with serving(settings_for(database.dsn, emulator)):
                lines += await first(code, database)
            names["push_id"] = UUID(lines[0].split()[0])
        else:
            if heading == "A worker of your own":
                await rows.add(device_token="a-lost-phone", title="t")
            await run(code, names)
        printed.setdefault(heading, []).extend(lines)
        lines.clear()
    assert shape(printed["A first push"][0]) == shape(re.findall(r"^[0-9a-f-]{36} .*$", PAGE, re.M)[0])
    assert printed["Many pushes"] == ["2500 0"]
    assert printed["What became of it"] == ["sent 0 ['sent']"]
    assert printed["Receipts"] == ["opened True None"]
    assert printed["Telemetry"] == re.findall(r"^print\(telemetry.*  # (.*)$", PAGE, re.M)
    assert printed["A worker of your own"][0] == "0 1 0"
    assert [
        row["last_error"] for row in (await rows.all()).values() if row["device_token"] == "a-lost-phone"
    ] == ["no such phone"]
    await names["client"].close()
    topics = [row["topic"] for row in (await rows.all()).values()]
    assert (topics.count("news"), topics.count("kitchen")) == (1, 2)
    assert await rows.query("select status from orders") == [{"status": "ready"}]


async def test_the_transport_over_supabase_py(server: RestServer, rows: Rows) -> None:
    names: dict[str, Any] = {}
    (code,) = [code for _, code in blocks() if "class Supabase" in code]
    await run(code, names)
    supabase = await acreate_client(server.url, rest.SERVICE_KEY)
    async with PushClient(names["Supabase"](supabase)) as client:
        push_id = await client.enqueue(Push(topic="news", data={"a": "b"}))
        answer = await client.enqueue_each([Push(topic="news", data={"a": "b"}), Push(topic="news")])
        assert (await client.get(push_id)).status == "pending"
    assert [each.success for each in answer.responses] == [True, False]
    assert len(await rows.all()) == 2
