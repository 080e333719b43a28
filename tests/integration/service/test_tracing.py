"""Traces over OTLP, as a collector gets them from ``push-listener run``; and nothing of it where nobody asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import orjson
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from listener.emulator import Emulator
from tests.support.servers import closed_port
from tests.support.service import PATIENCE, Place, environment, program, python

SECRET = "S3cr3t"
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


@dataclass
class Collector:
    """What a collector has received."""

    endpoint: str
    bodies: list[bytes] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self._changed.set()
        return web.Response(content_type="application/x-protobuf")

    def spans(self, push_id: UUID) -> list[Span]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += [span for span in scope.spans if span.trace_id == push_id.bytes]
        return found

    async def until(self, push_id: UUID, roots: int) -> list[Span]:
        """The spans of a push, once so many attempts of it have come."""
        async with asyncio.timeout(PATIENCE):
            while sum(span.name == "push" for span in self.spans(push_id)) < roots:
                self._changed.clear()
                await self._changed.wait()
        return self.spans(push_id)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """An OTLP receiver over HTTP."""
    app = web.Application()
    runner = web.AppRunner(app)
    collector = Collector("")
    app.router.add_post("/v1/traces", collector.receive)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    collector.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_collector_finds_a_push_by_its_id(place: Place) -> None:
    database, rows, emulator = place
    emulator.add_fault(f"unavailable,token={SECRET}-busy,times=1")
    async with collecting() as collector:
        env = environment(
            database.dsn,
            emulator,
            retry_min_delay="0.1",
            otel_exporter_otlp_endpoint=collector.endpoint,
            otel_bsp_schedule_delay="50",
            otel_traces_sampler="traceidratio",
            otel_traces_sampler_arg="0",
        )
        async with program("run", env=env, forked=True) as running:
            await running.said("traces are exported over OTLP")
            sent = await rows.add(device_token=f"{SECRET}-good", title=SECRET)
            retried = await rows.add(device_token=f"{SECRET}-busy", title=SECRET)
            dead = await rows.add(device_token=f"dead-{SECRET}", title=SECRET)
            await rows.over()
            spans = await collector.until(retried, 1)
            assert {span.name for span in spans} == {"push", "claim", "send", "settle"}
            (send,) = [span for span in spans if span.name == "send"]
            facts = {each.key: each.value.string_value or each.value.int_value for each in send.attributes}
            assert facts["push.code"] == "UNAVAILABLE"
            assert facts["http.response.status_code"] == 503
            await collector.until(dead, 1)
            running.terminate()
            assert await running.ended() == 0
        assert collector.spans(sent) == []  # a success, of which none is asked for
        assert SECRET.encode() not in b"".join(collector.bodies)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_collector_that_is_away_is_told_and_stops_nothing(place: Place) -> None:
    database, rows, emulator = place
    env = environment(
        database.dsn,
        emulator,
        otel_exporter_otlp_endpoint=f"http://user:{SECRET}@127.0.0.1:{closed_port()}",
        otel_exporter_otlp_timeout="1",
        otel_traces_sampler="always_on",
        otel_bsp_schedule_delay="50",
        otel_bsp_export_timeout="100",
    )
    async with program("run", env=env, forked=True) as running:
        await running.said("ready")
        await rows.add(device_token="t", title="t")
        await rows.over()
        await running.said("traces cannot be exported")
        running.terminate()
        assert await running.ended() == 0
    assert SECRET not in running.output


async def test_headers_that_cannot_be_read_are_not_logged(emulator: Emulator) -> None:
    """They hold the key of the collector. With a blank in place of the = OpenTelemetry quotes them."""
    address = f"http://127.0.0.1:{closed_port()}"
    env = environment(
        NOWHERE,
        emulator,
        otel_exporter_otlp_endpoint=address,
        otel_exporter_otlp_headers=f"Authorization {SECRET}",
    )
    async with program("run", env=env, forked=True) as running:
        await running.said("web server listening")
        running.terminate()
        assert await running.ended() == 0
    assert SECRET not in running.output


@pytest.mark.asyncio(loop_scope="module")
async def test_variables_that_opentelemetry_refuses_stop_no_push(place: Place) -> None:
    """The queue of spans has 2048 places, and OpenTelemetry raises an error for a batch that is larger."""
    database, rows, emulator = place
    env = environment(
        database.dsn,
        emulator,
        otel_exporter_otlp_endpoint=f"http://127.0.0.1:{closed_port()}",
        otel_bsp_max_export_batch_size="4096",
    )
    async with program("run", env=env, forked=True) as running:
        await running.said("ready")
        await rows.add(device_token="t", title="t")
        await rows.over()
        running.terminate()
        assert await running.ended() == 0


_IMPORTS = """
import json, sys
from listener.cli import serve
from listener import tracing
assert not tracing.from_environment().is_on
print(json.dumps(sorted(sys.modules)))
"""

_WITHOUT_PACKAGE = """
import sys
sys.modules["opentelemetry.sdk"] = None
from listener import log
from listener.cli import serve
from listener import tracing
log.configure("json", "info")
assert not tracing.from_environment().is_on
"""


async def test_nothing_of_it_is_imported_where_nobody_asks(emulator: Emulator) -> None:
    async with python("-c", _IMPORTS, env=environment(NOWHERE, emulator)) as running:
        assert await running.ended() == 0, running.output
    modules = orjson.loads(running.out.splitlines()[-1])
    assert "listener.service" in modules
    assert [module for module in modules if module.startswith(("opentelemetry", "google.protobuf"))] == []
    assert "listener.tracing_otel" not in modules


async def test_a_missing_package_is_told(emulator: Emulator) -> None:
    env = environment(NOWHERE, emulator, otel_exporter_otlp_endpoint="http://127.0.0.1:1")
    async with python("-c", _WITHOUT_PACKAGE, env=env, forked=True) as running:
        assert await running.ended() == 0, running.output
    (record,) = running.records
    assert record["event"] == "no traces: a package is missing"
    assert record["remedy"] == "in the checkout: pip install '.[otel]'"
