"""examples/edge_function, type-checked and run by Deno, before a stand-in for Supabase's REST interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from deno import find_deno_bin

from tests.support import rest
from tests.support.examples import ANN, BOB, DIRECTORY
from tests.support.postgres import Database
from tests.support.rest import RestServer
from tests.support.servers import forget_proxies
from tests.support.service import PATIENCE, Rows

FUNCTION = DIRECTORY / "edge_function" / "index.ts"
SECRET = {"x-till-secret": "of the till"}


@pytest.fixture
async def server(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RestServer]:
    forget_proxies(monkeypatch)
    with rest.serving(database) as running:
        yield running


@asynccontextmanager
async def deployed(server: RestServer, **keys: str) -> AsyncIterator[httpx.AsyncClient]:
    """The function as it stands in the file, with a key in its environment."""
    process = await asyncio.create_subprocess_exec(
        find_deno_bin(),
        "run",
        "--no-remote",
        "--allow-env",
        "--allow-net=127.0.0.1",
        FUNCTION,
        env={
            "HOME": os.environ["HOME"],
            "NO_COLOR": "1",
            "DENO_NO_UPDATE_CHECK": "1",
            "DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0",
            "SUPABASE_URL": server.url,
            "TILL_SECRET": SECRET["x-till-secret"],
            **keys,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                line = await process.stdout.readline()
                assert line, f"Deno has ended: {said}"
                said += line.decode()
        async with httpx.AsyncClient(base_url=found[0], timeout=PATIENCE) as client:
            yield client
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_its_types_are_right() -> None:
    done = subprocess.run([find_deno_bin(), "check", "--no-remote", FUNCTION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_orders_become_pushes(server: RestServer, rows: Rows) -> None:
    ann, bob = {"id": 1, "customer": str(ANN)}, {"id": 2, "customer": str(BOB)}
    async with deployed(server, SUPABASE_SECRET_KEYS=f'{{"default": "{rest.SECRET_KEY}"}}') as function:
        assert (await function.post("/", json=[ann])).status_code == 401
        assert await rows.all() == {}

        one = await function.post("/", json=[ann], headers=SECRET)
        assert one.status_code == 200, one.text
        again = await function.post("/", json=[ann, bob, {"id": 3, "customer": "nobody"}], headers=SECRET)
        assert again.json()["pushes"][0] == one.json()["pushes"][0]
        (refused,) = again.json()["refused"]
        assert refused["order"] == 3
        assert "user_id" in refused["error"]
        found = await rows.all()
        assert {(row["user_id"], row["title"], row["body"], row["priority"]) for row in found.values()} == {
            (ANN, "Your order is ready", "Order 1", "high"),
            (BOB, "Your order is ready", "Order 2", "high"),
        }

        wrong = await function.post("/", json=[{"id": 4, "customer": "nobody"}], headers=SECRET)
        assert wrong.status_code == 400  # the till need not try again
        server.faults.append(503)
        assert (await function.post("/", json=[bob], headers=SECRET)).status_code == 503
        assert (await function.post("/", content="{", headers=SECRET)).status_code == 400
        assert len(await rows.all()) == 2
    assert {request.function for request in server.requests} == {"enqueue_push", "enqueue_pushes"}


async def test_an_older_key_is_a_token_too(server: RestServer, rows: Rows) -> None:
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        answer = await function.post("/", json=[{"id": 1, "customer": str(ANN)}], headers=SECRET)
    assert answer.status_code == 200, answer.text
    assert len(await rows.all()) == 1


@pytest.mark.parametrize("secret", ["", "of the tilL", "of the tiller", "of the till\xe9"])
async def test_nobody_but_the_till_causes_a_push(server: RestServer, secret: str) -> None:
    headers = [(b"x-till-secret", secret.encode("latin-1"))]
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        answer = await function.post("/", json=[{"id": 1, "customer": str(ANN)}], headers=headers)
    assert answer.status_code == 401
    assert server.requests == []


async def test_what_is_no_list_of_orders_is_refused_for_good_and_as_a_whole(server: RestServer) -> None:
    """Without their numbers two orders would be one push: they would share the key of idempotency."""
    good: dict[str, Any] = {"id": 1, "customer": str(ANN)}
    wrong: dict[str, list[Any]] = {
        "the body is no list of orders": [{}, None, 1, good],
        "order 0 of the list: id is no whole number": [[None], [1], [{}], [{"customer": str(ANN)}]],
        "order 1 of the list: id is no whole number": [
            [good, {**good, "id": number}] for number in (None, "1", 1.5, 2**60, [1], True)
        ],
        "order 1 of the list: customer is no text": [[good, {"id": 2}], [good, {"id": 2, "customer": 3}]],
    }
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        for error, bodies in wrong.items():
            for body in bodies:
                answer = await function.post("/", content=json.dumps(body), headers=SECRET)
                assert (answer.status_code, answer.json()) == (400, {"error": error}), body
        empty = await function.post("/", json=[], headers=SECRET)
        assert (empty.status_code, empty.json()) == (200, {"pushes": [], "refused": []})
    assert [request.function for request in server.requests] == ["enqueue_pushes"]


async def test_the_till_learns_what_to_repeat(server: RestServer, rows: Rows) -> None:
    """A constraint and too much are refused for good; what the database could not do may work later."""
    await rows.query(
        "create table customers (id uuid primary key);"
        "alter table push_notifications add foreign key (user_id) references customers"
    )
    ann = [{"id": 1, "customer": str(ANN)}]
    async with deployed(server, SUPABASE_SERVICE_ROLE_KEY=rest.SERVICE_KEY) as function:
        constraint = await function.post("/", json=ann, headers=SECRET)
        assert constraint.status_code == 422
        assert "foreign key" in constraint.json()["error"]
        for fault, status in [(413, 413), (401, 503), (404, 503), (500, 503)]:
            server.faults.append(fault)
            assert (await function.post("/", json=ann, headers=SECRET)).status_code == status
        server.away = True
        assert (await function.post("/", json=ann, headers=SECRET)).status_code == 503
        server.away = False
        await rows.query("insert into customers values (%(ann)s)", ann=ANN)
        assert (await function.post("/", json=ann, headers=SECRET)).status_code == 200
