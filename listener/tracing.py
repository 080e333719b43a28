"""Traces of pushes for OpenTelemetry: one trace for each push, whose id is that of the push.

The extra ``otel`` installs what this needs, and OTEL_EXPORTER_OTLP_ENDPOINT switches it on. While it is off, nothing of
OpenTelemetry is imported, and each step of a push only reads one attribute. Source: OpenTelemetry, "Environment
Variable Specification".
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from listener.push import Push, Settlement

log = structlog.get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
"""The first that is set counts."""
_OUR_PROTOCOL = "http/protobuf"


@dataclass(slots=True)
class Answer:
    """What became of one request to FCM. It has neither the token of its target nor the name of its topic."""

    began: float
    """In monotonic seconds, as ``ended``."""
    ended: float
    target_kind: str
    platform: str | None
    disposition: str
    code: str
    http_status: int | None


class Tracing:
    """Has no effect; a subclass exports traces. Times are monotonic seconds."""

    is_on = False
    """Whether the methods have an effect. Code that every push runs through checks this before it calls them."""

    def claimed(self, pushes: Sequence[Push], worker: int, began: float, ended: float) -> None:
        """A claim of this worker has brought these pushes."""

    def answered(self, push: Push, answer: Answer) -> None:
        """A request for one target has ended."""

    def settled(self, settlement: Settlement, fate: str, ended: float) -> None:
        """The result of an attempt is written, or will never be; ``fate`` says which."""

    async def close(self) -> None:
        """Exports the spans that wait, for a second at most."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Tracing:
    """The tracing that the variables ask for; one without effect if they ask for none, or it cannot be set up."""
    if not any(environment.get(name) for name in _ENDPOINTS):
        return Tracing()
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    if (environment.get("OTEL_TRACES_EXPORTER") or "otlp").lower() != "otlp":
        return Tracing()
    protocols = (environment.get(name) for name in _PROTOCOLS)
    if next(filter(None, protocols), _OUR_PROTOCOL) != _OUR_PROTOCOL:
        log.warning("no traces: only OTLP over HTTP is supported", remedy=f"{_PROTOCOLS[1]}={_OUR_PROTOCOL}")
        return Tracing()
    variables = sorted(name for name, value in environment.items() if name.startswith("OTEL_") and value)
    try:
        with _without_its_texts(variables):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            from listener.tracing_otel import OtelTracing

            made = OtelTracing(OTLPSpanExporter())
    except ImportError:
        log.warning("no traces: a package is missing", remedy="in the checkout: pip install '.[otel]'")
        return Tracing()
    except Exception as error:
        # The type differs from version to version, and the text may quote a value. Pushes are sent even without traces.
        log.warning(
            "no traces: OpenTelemetry refuses a variable", error=type(error).__name__, variables=variables
        )
        return Tracing()
    log.info("traces are exported over OTLP")
    return made


@contextmanager
def _without_its_texts(variables: list[str]) -> Iterator[None]:
    """Silences OpenTelemetry for good: its records quote headers, which hold the key of the collector, and endpoints.

    If OpenTelemetry complains within the block, this logs the names of ``variables``.
    """
    theirs = logging.getLogger("opentelemetry")
    complaints = _Complaints()
    theirs.setLevel(logging.WARNING)
    theirs.addHandler(complaints)
    theirs.propagate = False
    try:
        yield
    finally:
        theirs.setLevel(logging.CRITICAL)
        theirs.removeHandler(complaints)
        theirs.addHandler(logging.NullHandler())
    if complaints.sources:
        log.warning(
            "OpenTelemetry ignores a variable that it cannot read",
            source=sorted(complaints.sources),
            variables=variables,
        )


class _Complaints(logging.Handler):
    """Remembers which loggers have warned, and not what they said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sources: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.sources.add(record.name)
