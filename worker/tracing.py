"""OpenTelemetry: one span for each attempt of a step, named after it. The SDK is loaded only where spans are sent somewhere.

An attempt is a child of the enqueuer's span; when it begins more than an hour after the enqueue, or when the enqueuer had no
span, it is in a trace of the job's own, whose id is the job's, and linked to the enqueuer's. A span says which job, which
attempt and how it ended; never an argument, a fact or the text of an error.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Thread
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from worker import trace_context
from worker.engine.kinds import Kind
from worker.engine.machine import NOTHING, Blocked, Direction, Done, Effect, NotYet, Passage, Spread, Step
from worker.errors import WorkerError

log = structlog.get_logger()

_NAME: Final = "molecule-worker"
#: Seconds that a leaving process may take to send what it has.
_LAST_S: Final = 3.0
_OUTCOMES: Final = {Done: "done", NotYet: "not_yet", Blocked: "blocked", Spread: "spread"}


class Tracing:
    """The spans of one process. Settings are the standard OTEL_* variables, which the SDK reads itself.

    `collector`: OTEL_EXPORTER_OTLP_ENDPOINT where the SDK cannot read it, because a file holds it.
    """

    def __init__(self, *, process: str, collector: str | None = None) -> None:
        # What they have to say is said once, below, and not at each try.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._provider = TracerProvider(resource=_resource(process), id_generator=_TraceOfJob(), shutdown_on_exit=False)
        # Its queue is bounded and its thread its own: a collector that is away costs spans, never a job's time.
        self._provider.add_span_processor(BatchSpanProcessor(_ToldOnce(OTLPSpanExporter(endpoint=_traces_at(collector)))))
        self._tracer = self._provider.get_tracer(_NAME)

    def follow(self, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
        """The same kinds, each effect within its span."""
        return {name: replace(kind, machine=replace(kind.machine, steps=self._steps(kind))) for name, kind in kinds.items()}

    def close(self) -> None:
        """Send what is left, for a short while at most."""
        ending = Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        ending.start()
        ending.join(_LAST_S)

    def _steps(self, kind: Kind) -> tuple[Step, ...]:
        return tuple(
            replace(step, do=self._within(step.name, step.do), undo=self._within(step.name, step.undo))
            for step in kind.machine.steps
        )

    def _within(self, step: str, effect: Effect) -> Effect:
        if effect is NOTHING:
            return NOTHING

        def followed(passage: Passage, world: Any) -> Any:
            with self._begun(step, passage) as span:
                try:
                    result = effect(passage, world)
                except BaseException as error:
                    _fail(span, error)
                    raise
                span.set_attribute("job.outcome", _OUTCOMES.get(type(result), "unknown"))
                return result

        return followed

    def _begun(self, step: str, passage: Passage) -> Any:
        origin = trace_context.origin()
        parent = origin.parent if origin is not None else None
        context, links = Context(), []
        if origin is not None and parent is not None:
            theirs = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
            if origin.late:
                links = [Link(theirs)]
            else:
                context = trace.set_span_in_context(NonRecordingSpan(theirs), context)
        return self._tracer.start_as_current_span(
            step if passage.direction is Direction.FORWARD else f"undo {step}",
            context=context,
            kind=SpanKind.CONSUMER,
            links=links,
            attributes={
                "job.id": passage.id,
                "job.kind": passage.kind,
                "job.subject": passage.subject,
                "job.attempt": passage.attempt + 1,
            },
            record_exception=False,
            set_status_on_exception=False,
        )


def _fail(span: Span, error: BaseException) -> None:
    """By class and code: the text of an error may quote a peer."""
    span.set_attribute("job.outcome", "failed")
    span.set_attribute("error.type", error.code if isinstance(error, WorkerError) else type(error).__name__)
    span.set_status(StatusCode.ERROR)


def _traces_at(collector: str | None) -> str | None:
    """Where the collector takes spans; None where the SDK knows by itself."""
    if not collector or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT in os.environ:
        return None
    return f"{collector.removesuffix('/')}/v1/traces"


def _resource(process: str) -> Resource:
    found = Resource.create()
    unnamed = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    own = {SERVICE_INSTANCE_ID: process, **({SERVICE_NAME: _NAME} if unnamed else {})}
    return found.merge(Resource(own))


class _TraceOfJob(RandomIdGenerator):
    """A job's own trace has the job's id."""

    def generate_trace_id(self) -> int:
        """128 bits, as a UUID has."""
        origin = trace_context.origin()
        return origin.own_trace if origin is not None else super().generate_trace_id()


class _ToldOnce(SpanExporter):
    """Says once that the collector is away, and once that it is back."""

    def __init__(self, own: SpanExporter) -> None:
        self._own = own
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; one that the collector does not take is dropped."""
        try:
            result = self._own.export(spans)
        except Exception as error:  # noqa: BLE001  because this is the outermost frame of the sender's thread
            log.debug("spans not sent", reason=type(error).__name__)
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._away:
            log.warning("tracing away", effect="spans are dropped, jobs are not held up", hint="OTEL_EXPORTER_OTLP_ENDPOINT")
        elif self._away and not failed:
            log.info("tracing back")
        self._away = failed
        return result

    def shutdown(self) -> None:
        """Close the exporter."""
        self._own.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._own.force_flush(timeout_millis)
