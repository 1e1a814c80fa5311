"""What a claim answers of the model's rows, as the engine wants it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.model.rows import Job, StepRow
from worker.engine.machine import Children, Direction
from worker.engine.walk import Claimed, PastStep, Reply


@dataclass(frozen=True, slots=True)
class Held(Claimed):
    """A claim with the witness's number."""

    number: int = 0


def held(job: Job, past: Mapping[tuple[str, int], StepRow], family: Mapping[int, Children], number: int, now: float) -> Held:
    """What a claim answers of this job."""
    rows = [
        PastStep(Direction(way), position, row.name, row.status, row.facts, timedelta(seconds=now - row.entered))
        for (way, position), row in sorted(past.items())
    ]
    assert job.fence is not None
    return Held(
        id=job.id,
        kind=job.kind.name,
        subject=job.subject,
        args=job.args,
        steps=job.names,
        only_forward=job.kind.machine.only_forward,
        direction=Direction(job.direction),
        position=job.position,
        attempt=job.attempt,
        fence=job.fence,
        stop=job.stop,
        error=job.error,
        requested_by=job.requested_by,
        past=rows,
        org=job.org,
        family=family,
        number=number,
    )


def comparable(claim: Claimed) -> dict[str, Any]:
    """A claim without what only one side knows: the witness's number, and by how much the real clock runs ahead."""
    past = [(row.direction, row.position, row.name, row.status, dict(row.facts)) for row in claim.past]
    error = claim.error["code"] if claim.error else None
    names = ("id", "kind", "subject", "args", "only_forward", "direction", "position", "attempt", "fence", "stop", "org")
    return {**{name: getattr(claim, name) for name in names}, "family": dict(claim.family), "past": past, "error": error}


def heard(reply: Reply | None) -> tuple[Any, ...] | None:
    """What the answer to a decision says of the job."""
    return (reply.stop, reply.args, reply.error["code"] if reply.error else None) if reply else None
