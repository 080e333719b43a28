"""The part of ``listener.tracing`` that imports OpenTelemetry.

The spans of an attempt are made when its result is written, because only then is it known whether the attempt failed.
Failures are always sampled; successes as OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say, by default one in a
hundred.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from uuid import UUID

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from listener import __version__
from listener.log import should_log
from listener.push import Push, Settlement, Status
from listener.tracing import Answer, Tracing

log = structlog.get_logger(__name__)

_FAILED = "push.failed"
_CLOSE_PATIENCE_S = 1.0

_RATIO = "0.01"
"""The part of the successes that is sampled by default. The spans of a push take the event loop half a millisecond."""

_MOST_OPEN = 200_000
"""Attempts that are remembered at once: twice the highest MAX_IN_FLIGHT."""


@dataclass(slots=True)
class _Attempt:
    """What spans need of an attempt whose result is not written yet. The push, with its payload, is not kept."""

    is_high: bool
    worker: int
    began: float
    claimed: float
    answers: list[Answer] = field(default_factory=list)


class OtelTracing(Tracing):
    """Makes the spans of attempts; a thread of OpenTelemetry exports them in batches.

    Args:
        exporter: takes the spans.

    Raises ValueError, and whatever else OpenTelemetry raises, for a variable that cannot be used.
    """

    is_on = True

    def __init__(self, exporter: SpanExporter) -> None:
        self._ids = _PushIds()
        self._provider = TracerProvider(
            sampler=_FailuresToo(_of_successes()),
            resource=Resource.create(_name()),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(_Told(exporter)))
        self._tracer = self._provider.get_tracer("push-listener", __version__)
        self._open: dict[tuple[UUID, int], _Attempt] = {}

    def claimed(self, pushes: Sequence[Push], worker: int, began: float, ended: float) -> None:
        for push in pushes:
            self._open[push.id, push.attempt] = _Attempt(push.priority == "high", worker, began, ended)
        while len(self._open) > _MOST_OPEN:  # the oldest have never got a result
            del self._open[next(iter(self._open))]

    def answered(self, push: Push, answer: Answer) -> None:
        if (attempt := self._open.get((push.id, push.attempt))) is not None:
            attempt.answers.append(answer)

    def settled(self, settlement: Settlement, fate: str, ended: float) -> None:
        attempt = self._open.pop((settlement.push_id, settlement.attempt), None)
        if attempt is None:
            return
        decision = settlement.decision
        failed = (
            decision.status is not Status.SENT
            or fate != "written"
            or any(answer.disposition != "accepted" for answer in attempt.answers)
        )
        epoch = time.time() - time.monotonic()

        def at(monotonic: float) -> int:
            return int((epoch + monotonic) * 1e9)

        common: dict[str, str | int | bool] = {_FAILED: failed}
        self._ids.trace_id = settlement.push_id.int
        root = self._tracer.start_span(
            "push",
            kind=SpanKind.CONSUMER,
            start_time=at(attempt.began),
            attributes=common
            | {
                "push.id": str(settlement.push_id),
                "push.attempt": settlement.attempt,
                "push.priority": "high" if attempt.is_high else "normal",
                "push.status": decision.status.value,
                "push.code": decision.code or "",
                "push.worker": attempt.worker,
            },
        )
        if root.is_recording():
            within = trace.set_span_in_context(root)
            self._span("claim", within, at(attempt.began), at(attempt.claimed), common)
            for answer in attempt.answers:
                self._span("send", within, at(answer.began), at(answer.ended), common | _facts(answer))
            written_from = max((answer.ended for answer in attempt.answers), default=attempt.claimed)
            self._span("settle", within, at(written_from), at(ended), common | {"push.fate": fate})
            if failed:
                root.set_status(StatusCode.ERROR, decision.code or fate)
        root.end(at(ended))

    def _span(
        self, name: str, within: Context, began: int, ended: int, attributes: dict[str, str | int | bool]
    ) -> None:
        kind = SpanKind.CLIENT if name == "send" else SpanKind.INTERNAL
        span = self._tracer.start_span(name, within, kind=kind, start_time=began, attributes=attributes)
        if name == "send" and attributes["push.disposition"] != "accepted":
            span.set_status(StatusCode.ERROR, str(attributes["push.code"]))
        span.end(ended)

    async def close(self) -> None:
        """Waits a second at most. If the collector does not answer by then, the thread is left behind."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSE_PATIENCE_S):
                await done.wait()
        except TimeoutError:
            log.warning("the last traces are lost: the collector does not answer in time")


def _facts(answer: Answer) -> dict[str, str | int | bool]:
    facts: dict[str, str | int | bool] = {
        "push.target": answer.target_kind,
        "push.disposition": answer.disposition,
        "push.code": answer.code,
    }
    if answer.platform is not None:
        facts["push.platform"] = answer.platform
    if answer.http_status is not None:
        facts["http.response.status_code"] = answer.http_status
    return facts


def _name() -> dict[str, str]:
    """The name of the service, unless the environment gives one."""
    is_named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {} if is_named or os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "push-listener"}


def _of_successes() -> Sampler:
    """The sampler that the environment names. If it names no ratio, ours counts. Raises ValueError for a bad ratio."""
    if os.environ.get("OTEL_TRACES_SAMPLER", "").lower() in ("", "traceidratio", "parentbased_traceidratio"):
        return TraceIdRatioBased(float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or _RATIO))
    return TracerProvider(shutdown_on_exit=False).sampler


class _PushIds(IdGenerator):
    """Gives a trace the id of its push."""

    def __init__(self) -> None:
        self.trace_id = 0
        """Of the next trace."""
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        return self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return self.trace_id or self._random.generate_trace_id()  # 0 is no trace id


class _FailuresToo(Sampler):
    """Samples all failures, and the successes that another sampler selects.

    Args:
        successes: the other sampler. It gets a hash of the trace id: a sampler by ratio compares the lower half of the
            id with a bound, and the first two bits of that half are the same in every UUID.
    """

    def __init__(self, successes: Sampler) -> None:
        self._successes = successes

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if parent.is_valid:
            is_sampled = parent.trace_flags.sampled
            return SamplingResult(Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP, attributes)
        if attributes and attributes.get(_FAILED):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        mixed = int.from_bytes(blake2b(trace_id.to_bytes(16), digest_size=16).digest())
        return self._successes.should_sample(None, mixed, name, kind, attributes, links)

    def get_description(self) -> str:
        return f"FailuresToo({self._successes.get_description()})"


class _Told(SpanExporter):
    """Exports, and logs when that fails."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failures = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self._failures = 0 if result is SpanExportResult.SUCCESS else self._failures + 1
        if self._failures and should_log(self._failures):
            log.warning("traces cannot be exported", spans=len(spans), times=self._failures)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
