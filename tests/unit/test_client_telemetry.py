"""Telemetry without a database: what is retried, isolated, dropped and counted."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from postgrest.exceptions import APIError

from listener.client import (
    AsyncTelemetryService,
    ClientError,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotInstalled,
    Rest,
    TelemetryService,
    TooMany,
    Unavailable,
)
from listener.client.telemetry_buffer import Buffer, encode
from listener.client.telemetry_shipper import Options, Shipper
from tests.support.servers import answer, answering, forget_proxies

PATIENCE = 30.0


class Store:
    """A database: stores each batch once, unless ``fault`` has an error for a call."""

    def __init__(
        self, fault: Callable[[int, list[Any]], Exception | None] = lambda call, payloads: None
    ) -> None:
        self._fault = fault
        self.calls: list[tuple[str, str]] = []
        self.stored: dict[str, list[Any]] = {}
        self.closed = False

    @property
    def messages(self) -> list[str]:
        return [each["message"] for batch in self.stored.values() for each in batch]

    async def call(self, function: str, args: Mapping[str, Any]) -> Any:
        assert function == "flush_telemetry"
        payloads = args["p_payloads"]
        self.calls.append((args["p_batch_id"], json.dumps(payloads)))
        error = self._fault(len(self.calls), payloads)
        if error is not None:
            raise error
        self.stored.setdefault(args["p_batch_id"], payloads)
        return {"batch_id": args["p_batch_id"], "accepted": len(payloads), "rejected": []}

    async def close(self) -> None:
        self.closed = True


class NoPause(Shipper):
    """Notes the pauses in place of making them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pauses: list[float] = []

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


async def ship(store: Store, count: int, **options: Any) -> tuple[Buffer, NoPause]:
    """Sends so many records until nothing is left."""
    chosen = Options(**options)
    buffer = Buffer(chosen.max_buffer)
    for number in range(count):
        text = encode("t", str(number), None, None, None)
        assert text is not None
        buffer.put(text)
    shipper = NoPause(buffer, store, chosen)
    shipper.close()
    async with asyncio.timeout(PATIENCE):
        await shipper.run()
    return buffer, shipper


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("gone"),
        TooMany("slow"),
        NotAllowed("key"),
        NotInstalled("none"),
        OSError("odd"),
        TimeoutError(),
    ],
)
async def test_a_batch_keeps_its_id_and_bytes_through_retries(error: Exception) -> None:
    store = Store(lambda call, payloads: error if call < 5 else None)
    buffer, shipper = await ship(store, 50)
    assert len(store.calls) == 5
    assert len(set(store.calls)) == 1
    assert buffer.counts().accepted == 50
    assert len(shipper.pauses) == 4


async def test_pauses_grow_to_a_limit_with_full_jitter() -> None:
    _, shipper = await ship(Store(lambda call, payloads: Unavailable("gone") if call < 200 else None), 1)
    limits = [min(60.0, 2.0**number) for number in range(199)]
    assert all(0 <= pause <= limit for pause, limit in zip(shipper.pauses, limits, strict=True))
    assert max(shipper.pauses) > 30
    assert min(shipper.pauses[20:]) < 30


async def test_the_other_side_may_name_the_pause() -> None:
    _, shipper = await ship(
        Store(lambda call, payloads: TooMany("slow", retry_after=120.0) if call < 3 else None), 1
    )
    assert all(pause >= 120 for pause in shipper.pauses)


async def test_a_refused_caller_is_slow() -> None:
    _, shipper = await ship(Store(lambda call, payloads: NotAllowed("key") if call < 3 else None), 1)
    assert shipper.pauses == [60.0, 60.0]


@given(st.integers(1, 300), st.sets(st.integers(0, 299)), st.integers(1, 100))
def test_what_is_refused_for_good_is_isolated(count: int, bad: set[int], flush_at: int) -> None:
    told = []

    def fault(call: int, payloads: list[Any]) -> ClientError | None:
        return InvalidArgument("bad") if any(int(each["message"]) in bad for each in payloads) else None

    store = Store(fault)
    options = {"flush_at": flush_at, "on_reject": lambda record, reason: told.append(int(record["message"]))}
    buffer, _ = asyncio.run(ship(store, count, **options))
    good = [number for number in range(count) if number not in bad]
    assert [int(each) for each in store.messages] == good
    assert told == sorted(number for number in bad if number < count)
    counts = buffer.counts()
    assert (counts.accepted, counts.rejected, counts.pending) == (len(good), count - len(good), 0)


async def test_an_error_of_on_reject_does_no_harm() -> None:
    def angry(record: Mapping[str, Any], reason: str) -> None:
        raise RuntimeError

    buffer, _ = await ship(Store(lambda call, payloads: InvalidArgument("bad")), 3, on_reject=angry)
    assert buffer.counts().rejected == 3


async def test_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "listener.client"):
        await ship(Store(lambda call, payloads: Unavailable("gone") if call < 50 else None), 1)
    # Not what a thread or a task of another test logs meanwhile.
    own = [each for each in caplog.records if each.name.startswith("listener.client")]
    assert len([each for each in own if each.thread == threading.get_ident()]) == 1


def test_a_thread_that_hangs_blocks_nobody() -> None:
    entered = threading.Event()
    let_go = threading.Event()

    class Hangs(Store):
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            entered.set()
            let_go.wait(PATIENCE)  # blocks the loop of the thread, as a lookup of a name may
            return await super().call(function, args)

    store = Hangs()
    service = TelemetryService(store, flush_at=10, max_buffer=100)
    for number in range(5000):
        assert service.batch_log("t", str(number))
    assert entered.wait(PATIENCE)
    assert service.flush(0.01) is False
    counts = service.close(0.01)
    assert counts.pending <= 110
    assert counts.dropped + counts.pending == 5000
    let_go.set()
    assert service._ended.wait(PATIENCE)


def test_many_threads_and_no_record_is_lost() -> None:
    store = Store()
    service = TelemetryService(store)
    threads = [
        threading.Thread(target=lambda: [service.batch_log("t", "m") for _ in range(1000)]) for _ in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    counts = service.close(PATIENCE)
    assert (counts.accepted, counts.pending) == (8000, 0)
    assert len(store.messages) == 8000
    assert store.closed


class _Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_nothing_is_raised_whatever_is_logged() -> None:
    store = Store()
    service = TelemetryService(store)
    odd: list[Any] = [
        ("", "m", None),
        ("t" * 101, "m", None),
        ("t", _Rude(), None),
        ("t", "m", {"a": _Rude()}),
        ("t", "m", {"a": "x" * 20_000}),
        ("t", "m", 17),
    ]
    circle: dict[str, Any] = {}
    circle["self"] = circle
    assert [
        service.batch_log(type, message, metadata=data) for type, message, data in [*odd, ("t", "m", circle)]
    ] == [False] * (len(odd) + 1)
    assert service.batch_log("t", timestamp="yesterday") is False  # type: ignore[arg-type]
    assert service.close(PATIENCE).rejected == len(odd) + 2
    assert store.calls == []


def test_a_record_may_be_logged_while_one_is_logged() -> None:
    store = Store()
    service = TelemetryService(store)

    class Logs:
        def __str__(self) -> str:
            service.batch_log("inner", "inner")
            return "text"

    assert service.batch_log("outer", "outer", metadata={"a": Logs()})
    assert service.close(PATIENCE).accepted == 2
    assert store.messages == ["inner", "outer"]


def test_metadata_is_copied_at_once() -> None:
    store = Store()
    service = TelemetryService(store)
    data = {"a": 1}
    service.batch_log("t", metadata=data)
    data["a"] = 2
    service.close(PATIENCE)
    assert [each["meta"] for batch in store.stored.values() for each in batch] == [{"a": 1}]


def test_a_service_that_was_never_used_has_no_thread() -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    service = TelemetryService(Store())
    assert service.flush() is True
    assert not {each for each in threading.enumerate() if each.name == "push-telemetry"} - before
    assert service.close().pending == 0
    assert service.batch_log("t") is False
    assert service.counts().dropped == 1


def test_a_thread_that_cannot_start_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = Store()
    service = TelemetryService(store)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        assert service.batch_log("t", "m")
        assert service.flush() is False
        counts = service.close(PATIENCE)
    assert counts.accepted == 1


async def test_a_transport_of_another_loop_is_refused() -> None:
    class Bound(Store):
        belongs_to_one_loop = True

    with pytest.raises(ValueError, match="the telemetry thread has another"):
        TelemetryService(Bound())
    AsyncTelemetryService(Bound())


@pytest.mark.parametrize(
    "wrong",
    [
        {"flush_at": 0},
        {"flush_at": 1001},
        {"max_buffer": 0},
        {"flush_interval": 0},
        {"timeout": 0},
        {"first_pause": 2, "longest_pause": 1},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(wrong)).partition("_")[0]):
        TelemetryService(Store(), **wrong)


async def test_a_loop_may_begin_after_the_first_record() -> None:
    store = Store()
    service = AsyncTelemetryService(store)
    await asyncio.to_thread(service.batch_log, "t", "from a thread")
    assert store.calls == []
    service.batch_log("t", "in the loop")
    assert await service.flush(PATIENCE)
    assert (await service.close()).accepted == 2
    assert store.messages == ["from a thread", "in the loop"]
    assert not store.closed


async def test_a_batch_goes_as_soon_as_it_is_full() -> None:
    stored = asyncio.Event()

    class Tells(Store):
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            answer = await super().call(function, args)
            stored.set()
            return answer

    store = Tells()
    service = AsyncTelemetryService(store, flush_at=5, flush_interval=3600)
    for number in range(7):
        service.batch_log("t", str(number))
    async with asyncio.timeout(PATIENCE):
        await stored.wait()
    await service.close()
    assert [len(batch) for batch in store.stored.values()] == [5, 2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.text(min_size=1, max_size=100),
    st.text(st.characters(), max_size=50),
    st.dictionaries(st.text(st.characters()), json_values, max_size=4),
)
@example("t", "", {"\x00": None})
def test_what_is_encoded_can_be_stored(kind: str, message: str, metadata: dict[str, Any]) -> None:
    text = encode(kind, message, metadata, None, None)
    assert text is not None
    stored = json.loads(text)
    assert _can_be_stored(stored)
    if _can_be_stored(metadata):
        assert stored.get("meta", {}) == metadata


def _can_be_stored(value: object) -> bool:
    """Whether no text in it has a character that Postgres does not take: NUL, or half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False).replace("\\\\", "")  # a backslash of the text's own
    return "\\u0000" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


def test_a_time_without_a_zone_is_local() -> None:
    text = encode("t", "", None, datetime(2026, 1, 2), None)
    assert text is not None
    assert json.loads(text)["timestamp"].endswith("+00:00")
    assert datetime.fromisoformat(json.loads(text)["timestamp"]) == datetime(2026, 1, 2).astimezone(UTC)


async def test_records_of_threads_are_sent_by_the_service_of_the_loop() -> None:
    """FastAPI runs a plain ``def`` handler in a thread; the service was entered in the loop."""
    came = threading.Event()

    def arrived(call: int, payloads: list[Any]) -> None:
        came.set()

    store = Store(arrived)
    async with AsyncTelemetryService(store, flush_interval=0.05, flush_at=1) as service:
        await asyncio.to_thread(service.batch_log, "order", "ready")
        assert await asyncio.to_thread(came.wait, PATIENCE)


def test_a_second_event_loop_sends_too() -> None:
    store = Store()
    service = AsyncTelemetryService(store)

    async def main() -> bool:
        service.batch_log("tick")
        return await service.flush(PATIENCE)

    assert asyncio.run(main())
    assert asyncio.run(main())
    assert store.messages == ["", ""]


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


async def test_a_page_of_html_is_no_reason_to_throw_records_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A maintenance page, or a proxy's, with status 200."""
    forget_proxies(monkeypatch)
    good = b'{"batch_id": null, "accepted": 1, "rejected": []}'
    async with (
        answering(answer(200, b"<html>back soon</html>"), answer(200, good)) as (url, _),
        AsyncTelemetryService(Rest(url, "sb_secret_x"), first_pause=0.01, longest_pause=0.02) as service,
    ):
        service.batch_log("order", "paid")
        assert await service.flush(PATIENCE)
        counts = service.counts()
    assert (counts.accepted, counts.rejected) == (1, 0)


async def test_an_answer_that_cannot_be_read_stores_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    database = Store()

    class BehindAProxy(Rest):
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            stored = await database.call(function, args)
            await super().call(function, args)  # what the proxy answers
            return stored

    async with answering(answer(200, b"<html>oops</html>"), answer(200, b"{}")) as (url, _):
        transport = BehindAProxy(url, "sb_secret_x")
        async with AsyncTelemetryService(transport, first_pause=0.01, longest_pause=0.02) as service:
            service.batch_log("a", "1")
            service.batch_log("a", "2")
            assert await service.flush(PATIENCE)
        await transport.close()
    assert database.messages == ["1", "2"]


@pytest.mark.parametrize(
    "lost", [Unavailable("lost", may_have_happened=True), TimeoutError(), KeyError("odd")]
)
async def test_a_gateways_refusal_after_a_lost_answer_stores_nothing_twice(lost: Exception) -> None:
    """The first try was carried out. A gateway that refuses the second one knows nothing of that."""

    class Lost(Store):
        refusals = 0

        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            stored = await super().call(function, args)
            if len(self.calls) == 1:
                raise lost
            if len(self.calls) <= self.refusals + 1:
                raise InvalidArgument("too large for this gateway")
            return stored

    for refusals, expected in ((3, (4, 0)), (1000, (0, 4))):
        store = Lost()
        store.refusals = refusals
        buffer, _ = await ship(store, 4)
        assert len(store.messages) == 4
        counts = buffer.counts()
        assert (counts.accepted, counts.rejected) == expected


async def test_a_refusal_of_the_database_after_a_lost_answer_is_isolated() -> None:
    """The database says so to every try with these records, so it has stored none of them."""

    def fault(call: int, payloads: list[Any]) -> ClientError | None:
        if call == 1:
            return Unavailable("lost", may_have_happened=True)
        bad = any(each["message"] == "2" for each in payloads)
        return InvalidArgument("bad", code="22P05") if bad else None

    store = Store(fault)
    buffer, _ = await ship(store, 4)
    assert store.messages == ["0", "1", "3"]
    assert (buffer.counts().accepted, buffer.counts().rejected) == (3, 1)


async def test_an_address_without_postgrest_is_waited_out() -> None:
    """A gateway answers 404 while a project is restored."""
    buffer, shipper = await ship(Store(lambda call, payloads: NotFound("404") if call < 3 else None), 2)
    assert buffer.counts().accepted == 2
    assert shipper.pauses == [60.0, 60.0]


async def test_a_cancelled_task_of_a_transport_does_not_end_the_sending() -> None:
    class Cancelled(Store):
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            if not self.calls:
                self.calls.append(("", ""))
                raise asyncio.CancelledError
            return await super().call(function, args)

    buffer, _ = await ship(Cancelled(), 2)
    assert buffer.counts().accepted == 2


def test_another_loop_goes_on_with_a_batch_under_its_id() -> None:
    """The answer of the first try was lost with its loop."""

    class Hangs(Store):
        async def call(self, function: str, args: Mapping[str, Any]) -> Any:
            stored = await super().call(function, args)
            if len(self.calls) == 1:
                started.set()
                await asyncio.Event().wait()
            return stored

    async def first() -> None:
        service.batch_log("a", "1")
        await started.wait()

    started = asyncio.Event()
    store = Hangs()
    service = AsyncTelemetryService(store, flush_at=1)
    asyncio.run(first())
    assert asyncio.run(service.flush(PATIENCE))
    assert len(set(store.calls)) == 1
    assert len(store.calls) == 2
    assert asyncio.run(service.close()).accepted == 1


async def test_a_loop_of_another_thread_may_flush_and_close() -> None:
    store = Store()
    service = AsyncTelemetryService(store, flush_interval=3600)
    async with asyncio.timeout(PATIENCE):
        service.batch_log("a", "of the first loop")
        assert await asyncio.to_thread(lambda: asyncio.run(service.flush(PATIENCE)))
        await asyncio.to_thread(service.batch_log, "a", "of a thread")
        counts = await asyncio.to_thread(lambda: asyncio.run(service.close(PATIENCE)))
    assert (counts.accepted, counts.pending) == (2, 0)


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
    flushed = await service.flush(PATIENCE)
    await service.close()
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
        answers.wait(2 * PATIENCE)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert service.batch_log("last", "words")
    closing.start()
    try:
        assert closed.wait(PATIENCE)
    finally:
        answers.set()
        closed.wait(PATIENCE)


@pytest.mark.parametrize(
    "metadata",
    [
        {"ratio": float("nan")},
        {"by_user": {UUID(int=1): 3}},
        {("a", "b"): 1},
        {"odd": {float("inf"): [float("-inf")]}},
    ],
    ids=["nan", "uuid-key", "tuple-key", "infinite-key"],
)
def test_what_is_no_json_is_written_as_text(metadata: dict[Any, Any]) -> None:
    """``batch_log``: "what is no JSON in it is written as text"."""
    service = AsyncTelemetryService(Store())
    assert service.batch_log("a", metadata=metadata)
    text = encode("a", "", metadata, None, None)
    assert text is not None
    json.loads(text, parse_constant=pytest.fail)


def test_a_record_in_another_script_may_be_as_large_as_the_database_takes() -> None:
    """3000 characters are 9000 bytes of UTF-8; the limit is 16 KiB."""
    assert AsyncTelemetryService(Store()).batch_log("note", "語" * 3000)
    assert not AsyncTelemetryService(Store()).batch_log("note", "語" * 5500)


def test_a_user_id_is_written_as_the_database_reads_it() -> None:
    text = encode("a", "", None, None, "A000000000004000800000000000000A")
    assert text is not None
    assert json.loads(text)["user_id"] == "a0000000-0000-4000-8000-00000000000a"


async def test_flush_is_true_only_if_nothing_waits() -> None:
    def refuse(call: int, payloads: list[Any]) -> None:
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
