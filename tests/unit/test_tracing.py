"""The spans that OpenTelemetry gets of a push."""

from __future__ import annotations

import asyncio
import gc
import threading
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from structlog.testing import capture_logs

from listener import tracing, tracing_otel
from listener.push import Decision, Push, Settlement, Status
from listener.tracing import Answer, Tracing
from listener.tracing_otel import OtelTracing
from tests.support.pushes import push

PATIENCE = 30.0

SENT = Decision(Status.SENT)
RETRY = Decision(Status.FAILED, delay=10.0, uses_try=True, code="UNAVAILABLE")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setattr(tracing_otel, "_CLOSE_PATIENCE_S", PATIENCE)
    return monkeypatch


def answer(code: str = "OK", disposition: str = "accepted", at: float = 2.0) -> Answer:
    return Answer(at, at + 1.0, "token", "ios", disposition, code, 200)


def trace_one(
    to: Tracing, one: Push, *answers: Answer, decision: Decision = SENT, fate: str = "written"
) -> None:
    to.claimed([one], 7, 1.0, 1.5)
    for each in answers:
        to.answered(one, each)
    to.settled(Settlement(one.id, one.attempt, decision), fate, 4.0)


async def spans_of(to: OtelTracing, exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    await to.close()
    return list(exporter.get_finished_spans())


def by_name(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def seconds(span: ReadableSpan, since: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    assert since.start_time is not None
    return round((span.start_time - since.start_time) / 1e9, 3), round(
        (span.end_time - since.start_time) / 1e9, 3
    )


async def test_a_push_is_a_trace_with_its_id() -> None:
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    one = push(id=uuid4(), attempt=2)
    trace_one(to, one, answer(), answer(at=2.5))
    spans = await spans_of(to, exporter)
    assert sorted(span.name for span in spans) == ["claim", "push", "send", "send", "settle"]
    assert {span.context.trace_id for span in spans if span.context} == {one.id.int}
    root = by_name(spans)["push"]
    assert root.parent is None
    assert root.context is not None
    assert {span.parent.span_id for span in spans if span.parent} == {root.context.span_id}
    assert seconds(root, root) == (0.0, 3.0)
    assert seconds(by_name(spans)["claim"], root) == (0.0, 0.5)
    assert seconds(by_name(spans)["settle"], root) == (2.5, 3.0)
    assert root.attributes is not None
    assert dict(root.attributes) == {
        "push.failed": False,
        "push.id": str(one.id),
        "push.attempt": 2,
        "push.priority": "normal",
        "push.status": "sent",
        "push.code": "",
        "push.worker": 7,
    }
    assert root.resource.attributes["service.name"] == "push-listener"
    assert not root.status.description


async def test_nothing_of_the_push_itself_is_in_a_span() -> None:
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    secret = "S3cr3t"
    one = push(
        id=uuid4(),
        device_token=secret,
        title=secret,
        body=secret,
        data=f'{{"k": "{secret}"}}',
        priority=secret,
    )
    trace_one(
        to,
        one,
        answer("INVALID_ARGUMENT", "drop_target"),
        decision=Decision(Status.DEAD, code="X", reason=secret),
    )
    for span in await spans_of(to, exporter):
        assert secret not in span.to_json()


async def test_two_attempts_are_two_roots_in_one_trace() -> None:
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    one = uuid4()
    trace_one(to, push(id=one, attempt=1), answer("UNAVAILABLE", "retry"), decision=RETRY)
    trace_one(to, push(id=one, attempt=2), answer())
    roots = [span for span in await spans_of(to, exporter) if span.parent is None]
    assert [span.context.trace_id for span in roots if span.context] == [one.int, one.int]
    assert [span.status.status_code for span in roots] == [StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.parametrize(
    ("sampler", "ratio", "least", "most"),
    [
        (None, None, 0, 40),
        (None, "0.1", 40, 180),
        (None, "1", 1000, 1000),
        ("always_on", None, 1000, 1000),
        ("traceidratio", None, 0, 40),
        ("traceidratio", "0.1", 40, 180),
        ("parentbased_traceidratio", "0.1", 40, 180),
        ("always_off", None, 0, 0),
    ],
)
async def test_successes_are_sampled_by_ratio_and_failures_always(
    variables: pytest.MonkeyPatch, sampler: str | None, ratio: str | None, least: int, most: int
) -> None:
    """The ids are random, and the bounds are six standard deviations away. A UUID fixes two bits of the lower half."""
    variables.setenv("OTEL_TRACES_SAMPLER", sampler or "")
    if ratio:
        variables.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    for number in range(1000):
        trace_one(to, push(id=uuid4()))
        if number % 100 == 0:
            to._provider.force_flush()  # more than its queue holds would be dropped
    failures = [
        (RETRY, [], "written"),
        (SENT, [answer("UNREGISTERED", "drop_target"), answer()], "written"),
        (SENT, [answer()], "taken"),
        (Decision(Status.DEAD, code="X"), [], "written"),
    ]
    ids = [uuid4() for _ in failures]
    for id_, (decision, answers, fate) in zip(ids, failures, strict=True):
        trace_one(to, push(id=id_), *answers, decision=decision, fate=fate)
    roots = [span for span in await spans_of(to, exporter) if span.name == "push"]
    sampled = {span.context.trace_id for span in roots if span.context}
    assert sampled >= {id_.int for id_ in ids}
    assert least <= len(sampled) - len(ids) <= most


async def test_a_sampled_trace_is_whole(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    variables.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    for _ in range(100):
        trace_one(to, push(id=uuid4()), answer())
    spans = await spans_of(to, exporter)
    assert len(spans) == 4 * len({span.context.trace_id for span in spans if span.context})


async def test_a_name_from_the_environment(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=pushes,deployment.environment=test")
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    trace_one(to, push(id=uuid4()))
    (root, *_) = await spans_of(to, exporter)
    assert root.resource.attributes["service.name"] == "pushes"


async def test_a_push_is_not_kept_with_its_payload() -> None:
    to = OtelTracing(InMemorySpanExporter())
    one = push(id=uuid4())
    to.claimed([one], 7, 1.0, 1.5)
    assert one not in gc.get_referents(*to._open.values())
    await to.close()


async def test_a_result_without_a_claim_makes_no_span() -> None:
    exporter = InMemorySpanExporter()
    to = OtelTracing(exporter)
    to.settled(Settlement(UUID(int=1), 1, SENT), "written", 1.0)
    assert await spans_of(to, exporter) == []


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    variables: pytest.MonkeyPatch,
) -> None:
    variables.setattr(tracing_otel, "_CLOSE_PATIENCE_S", 1.0)
    never, began = threading.Event(), threading.Event()

    class Hangs(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            began.set()
            never.wait()
            return SpanExportResult.SUCCESS

    to = OtelTracing(Hangs())
    trace_one(to, push(id=uuid4()))
    await to.close()
    assert await asyncio.to_thread(began.wait, PATIENCE)
    never.set()


@pytest.mark.parametrize(
    ("given", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        # An empty variable is one that is not set, and the variable of the traces goes before that of all signals.
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": ""}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": ""}, True),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            True,
        ),
    ],
)
async def test_what_switches_it_on(given: dict[str, str], is_on: bool) -> None:
    made = tracing.from_environment(given)
    assert made.is_on is is_on
    await made.close()


@pytest.mark.parametrize(
    ("name", "value", "is_on", "event"),
    [
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", False, "no traces: OpenTelemetry refuses a variable"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", False, "no traces: OpenTelemetry refuses a variable"),
        ("OTEL_TRACES_SAMPLER_ARG", "7", False, "no traces: OpenTelemetry refuses a variable"),
        ("OTEL_TRACES_SAMPLER_ARG", "much", False, "no traces: OpenTelemetry refuses a variable"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", False, "no traces: OpenTelemetry refuses a variable"),
        (
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "S3cr3t",
            True,
            "OpenTelemetry ignores a variable that it cannot read",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Authorization S3cr3t",
            True,
            "OpenTelemetry ignores a variable that it cannot read",
        ),
    ],
)
async def test_a_variable_that_cannot_be_used_is_named_without_its_value(
    variables: pytest.MonkeyPatch, name: str, value: str, is_on: bool, event: str
) -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER": "traceidratio"}
    given[name] = value
    for each, text in given.items():
        variables.setenv(each, text)
    with capture_logs() as records:
        made = tracing.from_environment(given)
    await made.close()
    assert made.is_on is is_on
    (told,) = [record for record in records if record["log_level"] == "warning"]
    assert told["event"] == event
    assert name in told["variables"]
    assert "S3cr3t" not in str(records)
