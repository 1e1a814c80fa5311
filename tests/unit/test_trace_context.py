from datetime import timedelta
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from worker import trace_context

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # pragma: allowlist secret
JOB = "b1f6d7a0-2f1d-4a39-9d7b-4a3c5d6e7f80"


@pytest.mark.parametrize(
    "malformed", [None, "", "00-x", THEIRS[:-1], f"{THEIRS} ", THEIRS.replace("00-4", "ff-4"), f"00-{'0' * 32}-00f067aa0ba902b7-01"]
)
def test_a_malformed_traceparent_is_ignored(malformed: str | None) -> None:
    assert trace_context.parse(malformed) is None


def test_a_step_continues_the_trace_of_whoever_enqueued_its_job() -> None:
    with trace_context.carrying(JOB, THEIRS, timedelta(minutes=59)) as origin:
        assert trace_context.current() == THEIRS
        assert f"{origin.trace:032x}" == THEIRS.split("-")[1]
    assert trace_context.current() is None


def test_a_job_claimed_long_after_its_enqueue_is_in_a_trace_of_its_own() -> None:
    with trace_context.carrying(JOB, THEIRS, timedelta(minutes=61)) as origin:
        assert origin.trace == UUID(JOB).int


def test_a_programs_own_span_comes_before_what_it_belongs_to() -> None:
    span = NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1)))
    with trace_context.carrying(JOB, THEIRS, timedelta()), trace.use_span(span):
        assert trace_context.current() == f"00-{0xA:032x}-{0xB:016x}-01"
