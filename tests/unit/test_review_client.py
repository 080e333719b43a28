"""Faults of listener.client that need no database to be seen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import web

from listener.client import (
    AsyncTelemetryService,
    ClientError,
    Direct,
    PendingPush,
    Push,
    PushClient,
    PushWorkerClient,
    Rest,
    Unavailable,
)
from listener.client.errors import InvalidArgument, from_sqlstate

PATIENCE = 10.0


class Store:
    """Stores each batch of telemetry once; ``on_call`` runs during each call."""

    def __init__(self, on_call: Callable[[], object] = lambda: None) -> None:
        self.on_call = on_call
        self.came = threading.Event()
        self.stored: dict[str, int] = {}

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        self.on_call()
        self.stored.setdefault(args["p_batch_id"], len(args["p_payloads"]))
        self.came.set()
        return {"batch_id": args["p_batch_id"], "accepted": len(args["p_payloads"]), "rejected": []}

    async def close(self) -> None:
        pass


class Queue:
    """Takes every push."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        self.calls += 1
        return [
            {"place": n, "id": str(uuid4()), "is_new": True, "error": None}
            for n, _ in enumerate(args["p_pushes"])
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def answering(*answers: tuple[int, str, str]) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server that gives these answers (status, type, text), and the last one for ever."""
    left, seen = list(answers), []

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        seen.append(request)
        status, kind, text = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, content_type=kind, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", seen
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


# --- telemetry --------------------------------------------------------------------------------------------


async def test_records_of_threads_are_sent_by_the_service_of_the_loop() -> None:
    """FastAPI runs a plain ``def`` handler in a thread; the service was entered in the loop."""
    store = Store()
    async with AsyncTelemetryService(store, flush_interval=0.05, flush_at=1) as service:
        await asyncio.to_thread(service.batch_log, "order", "ready")
        assert await asyncio.to_thread(store.came.wait, 3.0)


def test_a_second_event_loop_sends_too() -> None:
    store = Store()
    service = AsyncTelemetryService(store)

    async def main() -> bool:
        service.batch_log("tick")
        return await service.flush(3.0)

    assert asyncio.run(main())
    assert asyncio.run(main())
    assert sum(store.stored.values()) == 2


async def test_a_page_of_html_is_no_reason_to_throw_records_away() -> None:
    """A maintenance page, or a proxy's, with status 200."""
    good = '{"batch_id": null, "accepted": 1, "rejected": []}'
    async with (
        answering((200, "text/html", "<html>back soon</html>"), (200, "application/json", good)) as (url, _),
        AsyncTelemetryService(Rest(url, "sb_secret_x"), first_pause=0.01, longest_pause=0.02) as service,
    ):
        service.batch_log("order", "paid")
        assert await service.flush(PATIENCE)
        counts = service.counts()
    assert (counts.accepted, counts.rejected) == (1, 0)


async def test_an_unreadable_answer_after_the_commit_stores_nothing_twice() -> None:
    import json

    class Garbled(Rest):
        stored: list[str] = []  # noqa: RUF012
        ids: set[str] = set()  # noqa: RUF012

        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            if args["p_batch_id"] not in self.ids:
                self.ids.add(args["p_batch_id"])
                self.stored.extend(json.dumps(each) for each in args["p_payloads"])
            await super().call(function, args)  # the answer of the proxy
            return {"batch_id": args["p_batch_id"], "accepted": 2, "rejected": []}

    async with answering((200, "text/html", "<html>oops</html>"), (200, "application/json", "{}")) as (
        url,
        _,
    ):
        transport = Garbled(url, "sb_secret_x")
        async with AsyncTelemetryService(transport, first_pause=0.01, longest_pause=0.02) as service:
            service.batch_log("a", "1")
            service.batch_log("a", "2")
            assert await service.flush(PATIENCE)
        await transport.close()
    assert len(transport.stored) == 2


@pytest.mark.parametrize(
    "metadata",
    [{"ratio": float("nan")}, {"by_user": {UUID(int=1): 3}}, {("a", "b"): 1}],
    ids=["nan", "uuid-key", "tuple-key"],
)
def test_what_is_no_json_is_written_as_text(metadata: dict[Any, Any]) -> None:
    """``batch_log``: "what is no JSON in it is written as text"."""
    service = AsyncTelemetryService(Store())
    assert service.batch_log("a", metadata=metadata)


def test_a_record_in_another_script_may_be_as_large_as_the_database_takes() -> None:
    """3000 characters are 9000 bytes of UTF-8; the limit is 16 KiB."""
    assert AsyncTelemetryService(Store()).batch_log("note", "語" * 3000)


async def test_flush_is_true_only_if_nothing_waits() -> None:
    def refuse() -> None:
        if not store.stored:
            for _ in range(5):
                service.batch_log("")  # of another thread: too short, and refused

    store = Store(refuse)
    service = AsyncTelemetryService(store, flush_at=5, flush_interval=60)
    for number in range(9):
        service.batch_log("a", str(number))
    assert await service.flush(PATIENCE)
    assert service.counts().pending == 0
    await service.close()


# --- pushes -----------------------------------------------------------------------------------------------


async def test_a_push_of_wrong_types_does_not_keep_the_others_out() -> None:
    good, bad = Push(topic="a", data={"k": "v"}), Push(topic="a", data=["no object"])  # type: ignore[arg-type]
    answer = await PushClient(Queue()).enqueue_each([good] * 1000 + [bad, good])
    assert (answer.success_count, answer.failure_count) == (1001, 1)


async def test_a_user_id_is_written_as_enqueue_pushes_reads_it() -> None:
    text = "a000000000004000800000000000000a"
    assert Push(user_id=text, data={"a": "b"}).columns()["user_id"] == str(UUID(text))


async def test_wait_keeps_its_time_though_nothing_answers() -> None:
    class Silent:
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    with pytest.raises(Unavailable):
        async with asyncio.timeout(3):
            await PushClient(Silent()).wait(uuid4(), timeout=0.05)


async def test_a_send_whose_inner_task_was_cancelled_does_not_end_the_polling() -> None:
    row = dict.fromkeys(("user_id", "device_token", "title", "body", "data", "created_at"))
    tried = asyncio.Semaphore(0)

    class One:
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            if function != "fetch_pending_pushes":
                return "failed"
            tried.release()
            return [
                {**row, "id": str(uuid4()), "status": "processing", "retry_count": 0, "delivery_attempts": 1}
            ]

        async def close(self) -> None:
            pass

    async def send(push: PendingPush) -> None:
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    worker = PushWorkerClient(One())
    await worker.start_polling(send, interval=0.01)
    try:
        async with asyncio.timeout(3):
            await tried.acquire()
            await tried.acquire()  # the polling goes on
    finally:
        await asyncio.wait({asyncio.ensure_future(worker.stop_polling())})


# --- errors and addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["25P02", "25P03", "25P04"])
def test_a_transaction_that_was_ended_is_no_wrong_argument(code: str) -> None:
    """25P04: ``transaction_timeout`` of a role (PostgreSQL 17). Telemetry would drop the records for good."""
    assert not isinstance(
        from_sqlstate(code, "terminating connection due to transaction timeout"), InvalidArgument
    )


@pytest.mark.parametrize(
    "dsn",
    ["postgres//app:s3cret@db.example/app", "postgresql://app:100%s3cret@127.0.0.1:1/app"],
    ids=["no-colon", "percent"],
)
async def test_a_mistake_in_the_address_does_not_show_the_password(dsn: str) -> None:
    async with PushClient(Direct(dsn, connect_timeout=0.3)) as client:
        with pytest.raises(ClientError) as caught:
            await client.enqueue(Push(topic="a", data={"a": "b"}))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sb_secret_x", "eyJa.eyJb.c"], ids=["new-key", "jwt"])
async def test_a_netrc_of_the_machine_says_nothing_to_supabase(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password for-another-server\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with answering((200, "application/json", "true")) as (url, seen), Rest(url, key) as rest:
        await rest.call("cancel_push", {})
    expected = None if key.startswith("sb_") else f"Bearer {key}"
    assert seen[0].headers.get("Authorization") == expected
