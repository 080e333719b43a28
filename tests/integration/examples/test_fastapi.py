"""examples/fastapi_app.py behind uvicorn: the order and its push are committed together, or neither is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from examples.fastapi_app import app
from listener.emulator import Emulator
from tests.support.examples import ANN, BOB, example_sql
from tests.support.postgres import Database
from tests.support.servers import forget_proxies
from tests.support.service import Rows, serving, settings_for, until

KITCHEN = {"Authorization": "Bearer of-the-kitchen"}


@pytest.fixture
async def shop(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """The kitchen before the application, with one order that is cooking and one free courier."""
    forget_proxies(monkeypatch)
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    monkeypatch.setenv("KITCHEN_TOKEN", "of-the-kitchen")
    await rows.connection.execute(example_sql("orders.sql"))
    await rows.query("insert into orders (customer_id) values (%(ann)s)", ann=ANN)
    await rows.query("insert into couriers (id) values (%(bob)s)", bob=BOB)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started or running.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KITCHEN) as client:
        yield client
    server.should_exit = True
    await running


async def orders(rows: Rows) -> list[tuple[str, object]]:
    return [
        (row["status"], row["courier_id"])
        for row in await rows.query("select status, courier_id from orders")
    ]


async def test_the_customer_gets_a_push(
    shop: httpx.AsyncClient, database: Database, rows: Rows, emulator: Emulator
) -> None:
    await rows.device("anns-phone", ANN)
    async with serving(settings_for(database.dsn, emulator)):
        answer = await shop.post("/orders/1/ready")
        (received,) = await emulator.wait_accepted(1)
    assert answer.status_code == 200, answer.text
    assert received.message is not None
    assert received.message["token"] == "anns-phone"
    assert received.message["data"] == {"order": "1", "push_id": answer.json()["push"]}
    assert await orders(rows) == [("ready", BOB)]
    assert (await shop.post("/orders/1/ready")).status_code == 404
    assert len(await rows.all()) == 1


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer of-the-Kitchen", "Bearer \xe9", "Basic of-the-kitchen"]
)
async def test_nobody_but_the_kitchen_causes_a_push(shop: httpx.AsyncClient, rows: Rows, sent: str) -> None:
    answer = await shop.post("/orders/1/ready", headers=[(b"Authorization", sent.encode("latin-1"))])
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert await rows.all() == {}
    assert await orders(rows) == [("cooking", None)]


async def test_a_handler_that_fails_leaves_no_push(shop: httpx.AsyncClient, rows: Rows) -> None:
    await rows.query("update couriers set is_free = false")
    answer = await shop.post("/orders/1/ready")
    assert (answer.status_code, answer.json()) == (503, {"detail": "no courier is free"})
    assert await rows.all() == {}
    assert await orders(rows) == [("cooking", None)]


async def test_a_commit_that_fails_is_told(shop: httpx.AsyncClient, rows: Rows) -> None:
    """The dependency ends before the answer is sent."""
    await rows.query(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$;"
        "create constraint trigger refuse after update on orders deferrable initially deferred"
        "  for each row execute function refuse()"
    )
    assert (await shop.post("/orders/1/ready")).status_code == 500
    assert await rows.all() == {}
    assert await orders(rows) == [("cooking", None)]


async def test_telemetry_is_stored_when_the_application_ends(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    monkeypatch.setenv("KITCHEN_TOKEN", "of-the-kitchen")
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        state["telemetry"].batch_log("order", "ready", metadata={"order": 1})
    assert await rows.query("select type, message, meta from telemetry_logs") == [
        {"type": "order", "message": "ready", "meta": {"order": 1}}
    ]
