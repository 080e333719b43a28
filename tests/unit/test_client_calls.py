"""Calls of the client that need no database: what it does with wrong arguments, silence, and odd addresses."""

from __future__ import annotations

import asyncio
import base64
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from listener.client import (
    AndroidConfig,
    ClientError,
    DeliveryReceipts,
    Direct,
    InvalidArgument,
    NotAllowed,
    PendingPush,
    Push,
    PushClient,
    PushWorkerClient,
    Receipt,
    Rest,
    Unavailable,
)
from listener.client.errors import from_sqlstate
from tests.support.servers import answer, answering, forget_proxies, read_request, tcp_server

PATIENCE = 30.0


class Queue:
    """Takes every push and every receipt."""

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        if function == "record_delivery_receipts":
            return [{"place": n, "recorded": True, "error": None} for n, _ in enumerate(args["p_receipts"])]
        return [
            {"place": n, "id": str(uuid4()), "is_new": True, "error": None}
            for n, _ in enumerate(args["p_pushes"])
        ]

    async def close(self) -> None:
        pass


GOOD = Push(topic="a", data={"k": "v"})


@pytest.mark.parametrize(
    "bad",
    [
        Push(topic="a", data=["no object"]),  # type: ignore[arg-type]
        Push(topic="a", notification={"title": "t"}),  # type: ignore[arg-type]
        Push(topic="a", android=AndroidConfig(ttl="5")),  # type: ignore[arg-type]
        Push(topic="a", android=AndroidConfig(ttl=1e300)),
        Push(topic="a", android="high"),  # type: ignore[arg-type]
        Push(topic="a", idempotency_key=17),  # type: ignore[arg-type]
        {"topic": "a"},
        None,
    ],
    ids=["data", "notification", "ttl", "huge-ttl", "android", "key", "mapping", "none"],
)
async def test_a_push_of_wrong_types_does_not_keep_the_others_out(bad: Any) -> None:
    answer = await PushClient(Queue()).enqueue_each([GOOD] * 1000 + [bad, GOOD])
    assert (answer.success_count, answer.failure_count) == (1001, 1)
    assert isinstance(answer.responses[1000].exception, InvalidArgument)


async def test_nor_does_a_receipt() -> None:
    good = Receipt(push_id=uuid4(), device_token="t", status="opened")
    odd: list[Any] = [
        Receipt(push_id=uuid4(), device_token="t", status="opened", details=["no object"]),  # type: ignore[arg-type]
        Receipt(push_id=uuid4(), device_token="t", status="opened", at="now"),  # type: ignore[arg-type]
        Receipt(push_id=uuid4(), device_token=17, status="opened"),  # type: ignore[arg-type]
        None,
    ]
    done = await DeliveryReceipts(Queue()).record_each([good, *odd, good])
    assert [each.recorded for each in done] == [True, False, False, False, False, True]
    assert all(isinstance(each.exception, InvalidArgument) for each in done[1:-1])


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
        async with asyncio.timeout(PATIENCE):
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
        async with asyncio.timeout(PATIENCE):
            await tried.acquire()
            await tried.acquire()  # the polling goes on
    finally:
        await asyncio.wait({asyncio.ensure_future(worker.stop_polling())})


@pytest.mark.parametrize("code", ["25P02", "25P03", "25P04", "26000", "72000", "F0000"])
def test_what_says_nothing_of_the_arguments_is_no_wrong_argument(code: str) -> None:
    """25P04: ``transaction_timeout`` of a role (PostgreSQL 17). Telemetry would drop the records for good."""
    assert not isinstance(
        from_sqlstate(code, "terminating connection due to transaction timeout"), InvalidArgument
    )


def test_a_value_that_postgres_repeats_is_left_out() -> None:
    """An adopted table may have a column of type uuid for tokens."""
    error = from_sqlstate("22P02", 'invalid input syntax for type uuid: "a-token "of" a phone"')
    assert str(error) == "invalid input syntax for type uuid: ..."


@pytest.mark.parametrize(
    "dsn",
    [
        "postgres//app:s3cret@db.example/app",
        "postgresql://app:100%s3cret@127.0.0.1:1/app",
        "postgresql://app:p@s3cret@127.0.0.1:1/app",
        "postgresql://app:s3cret/x@127.0.0.1:1/app",
        "postgresql://app:x?s3cret@127.0.0.1:1/app",
        "postgresql://app:s3cret#@127.0.0.1:1/app",
        "host=127.0.0.1 port=1 password=x s3cret",
    ],
    ids=["no-colon", "percent", "at", "slash", "question-mark", "hash", "blank"],
)
async def test_a_mistake_in_the_address_does_not_show_the_password(dsn: str) -> None:
    async with PushClient(Direct(dsn, connect_timeout=0.3)) as client:
        with pytest.raises(ClientError) as caught:
            await client.enqueue(Push(topic="a", data={"a": "b"}))
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, ClientError)


@pytest.mark.parametrize("key", ["sb_secret_x", "eyJa.eyJb.c"], ids=["new-key", "jwt"])
async def test_a_netrc_of_the_machine_says_nothing_to_supabase(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password for-another-server\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    forget_proxies(monkeypatch)
    async with answering(answer(200, b"true")) as (url, heads), Rest(url, key) as rest:
        await rest.call("cancel_push", {})
    sent = [each for each in heads[0].decode().split("\r\n") if each.lower().startswith("authorization:")]
    assert sent == ([] if key.startswith("sb_") else [f"Authorization: Bearer {key}"])


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    async with answering(answer(200, b"true")) as (url, heads):
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:secret@"))
        async with Rest("http://database.example", "sb_secret_x") as rest:
            assert await rest.call("cancel_push", {}) is True
        assert heads[0].startswith(b"POST http://database.example/rest/v1/rpc/cancel_push ")
        assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:secret") in heads[0]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with Rest(url, "sb_secret_x") as rest:
            await rest.call("cancel_push", {})
        assert heads[1].startswith(b"POST /rest/v1/rpc/cancel_push ")


async def test_what_is_no_access_token_is_told() -> None:
    async def token() -> str:
        return "eyJ\nX-Other: 1"

    async with Rest("http://127.0.0.1:1", "sb_publishable_x", user_token=token) as rest:
        with pytest.raises(NotAllowed, match="no access token"):
            await rest.call("cancel_push", {})


def test_ended_event_loops_leave_no_connection_to_the_rest_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loop for each call, as in Django and Celery."""
    forget_proxies(monkeypatch)
    rest_open: set[object] = set()

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            rest_open.add(writer)
            with suppress(asyncio.IncompleteReadError):
                while True:
                    await read_request(reader)
                    writer.write(answer(200, b"true"))
            rest_open.discard(writer)
            changed.set()

        changed = asyncio.Event()
        async with tcp_server(serve) as port, asyncio.timeout(PATIENCE):
            rest = Rest(f"http://127.0.0.1:{port}", "sb_secret_x")
            for _ in range(6):
                await asyncio.to_thread(lambda: asyncio.run(rest.call("cancel_push", {})))
            while len(rest_open) > 1:
                changed.clear()
                await changed.wait()

    asyncio.run(main())
