"""Faults of telemetry: over the documented transport of supabase-py, and without a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from postgrest.exceptions import APIError

from listener.client import AsyncTelemetryService, Rest, TelemetryService


async def test_over_supabase_py_a_record_that_is_refused_for_good_does_not_stop_the_others() -> None:
    """docs/clients.md offers this transport; its errors are APIError, with the SQLSTATE as ``code``."""
    stored: list[str] = []

    class Supabase:
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            messages = [each["message"] for each in args["p_payloads"]]
            if "bad" in messages:
                raise APIError(
                    {"code": "22P05", "message": "unsupported Unicode", "details": None, "hint": None}
                )
            stored.extend(messages)
            return {"accepted": len(messages), "rejected": []}

        async def close(self) -> None:
            pass

    service = AsyncTelemetryService(Supabase(), first_pause=0.01, longest_pause=0.02)
    for message in ("one", "bad", "two"):
        service.batch_log("a", message)
    flushed = await service.flush(3.0)
    await service.close(0.1)
    assert flushed
    assert sorted(stored) == ["one", "two"]


def test_close_keeps_its_time_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of Python 3.12 and later, with a resolver that does not answer."""
    answers, closed = threading.Event(), threading.Event()
    service = TelemetryService(Rest("http://database.example", "sb_secret_x"))

    def close() -> None:
        service.close(0.1)
        closed.set()

    closing = threading.Thread(target=close, daemon=True)
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self is not closing:
            raise RuntimeError("can't create new thread at interpreter shutdown")
        real(self)

    def resolve(*_: object, **__: object) -> Any:
        answers.wait(30)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert service.batch_log("last", "words")
    closing.start()
    try:
        assert closed.wait(5)
    finally:
        answers.set()
        closed.wait(5)


def test_close_in_another_loop_than_the_first_tells_what_is_left() -> None:
    """``asyncio.run`` twice, or a loop for each test."""

    class Down:
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    service = AsyncTelemetryService(Down(), flush_at=1)

    async def first() -> None:
        service.batch_log("a")
        await asyncio.sleep(0.01)

    asyncio.run(first())
    counts = asyncio.run(service.close(0.1))
    assert counts.pending == 1
