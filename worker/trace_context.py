"""Which trace the running code belongs to: W3C Trace Context, carried from whoever enqueued a job to whatever it does.

OpenTelemetry's own context is looked at where a program uses it, and is not loaded for that.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

_FORM: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
#: What is claimed later after the enqueue is in the job's own trace and only linked, because no trace stays open for days.
_SAME_TRACE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Parent:
    """A parsed traceparent."""

    trace_id: int
    span_id: int
    flags: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a claimed job came from."""

    job_id: str
    traceparent: str | None
    late: bool  #: claimed long after the enqueue

    @property
    def parent(self) -> Parent | None:
        """The enqueuer's span."""
        return parse(self.traceparent)

    @property
    def own_trace(self) -> int:
        """The job's own trace has the job's id: all attempts, in whatever process, are found by it."""
        return UUID(self.job_id).int

    @property
    def trace(self) -> int:
        """The trace of this job's spans."""
        parent = self.parent
        return self.own_trace if parent is None or self.late else parent.trace_id


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)
_inherited: ContextVar[str | None] = ContextVar("inherited", default=None)


def parse(traceparent: str | None) -> Parent | None:
    """Pure: None for what is not one; W3C has such a header ignored."""
    found = _FORM.fullmatch(traceparent or "")
    return Parent(int(found[1], 16), int(found[2], 16), int(found[3], 16)) if found else None


def current() -> str | None:
    """The traceparent of the code that runs: its span's, else that of the job or the command that it belongs to."""
    if (api := sys.modules.get("opentelemetry.trace")) is not None and (found := _of_span(api)) is not None:
        return found
    origin = _origin.get()
    return origin.traceparent if origin is not None else _inherited.get()


def inherit(traceparent: str | None) -> None:
    """What this program does from here on belongs to that trace; one that is malformed is ignored."""
    _inherited.set(traceparent if parse(traceparent) else None)


def origin() -> Origin | None:
    """The job that the running code belongs to."""
    return _origin.get()


@contextmanager
def carrying(job_id: str, traceparent: str | None, age: timedelta) -> Iterator[Origin]:
    """Whatever happens within belongs to this job, which was enqueued `age` ago."""
    found = Origin(job_id, traceparent, late=age > _SAME_TRACE)
    token = _origin.set(found)
    try:
        yield found
    finally:
        _origin.reset(token)


def _of_span(api: Any) -> str | None:
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
