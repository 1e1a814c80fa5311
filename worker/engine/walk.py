"""Where a job stands while it is driven: what the claim answered, and what has been learned since."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from worker.engine.decide import Move, Situation
from worker.engine.machine import Children, Direction, Facts, Machine, Passage, Step
from worker.errors import Blame

Clock = Callable[[], float]  #: monotonic seconds


@dataclass(frozen=True, slots=True)
class PastStep:
    """A step row of an earlier claim."""

    direction: Direction
    position: int
    name: str
    status: str  #: waiting | done | failed | skipped
    facts: Facts
    ago: timedelta  #: since it was entered, by the database's clock at the claim


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this process holds, as the claim answered it."""

    id: str
    kind: str
    subject: str
    args: Mapping[str, Any]
    steps: Sequence[str]
    only_forward: bool
    direction: Direction
    position: int
    attempt: int
    fence: int
    stop: str | None  #: superseded | cancelled
    error: Mapping[str, Any] | None = None
    requested_by: str | None = None
    traceparent: str | None = None
    org: str = ""
    past: Sequence[PastStep] = ()
    family: Mapping[int, Children] = field(default_factory=dict)  #: by the position of the step that spread
    waited: timedelta = timedelta()  #: from the moment when it was due until the claim
    age: timedelta = timedelta()  #: since it was enqueued, at the claim


@dataclass(frozen=True, slots=True)
class Reply:
    """What the database answered to a decision that it took."""

    stop: str | None
    args: Mapping[str, Any]
    facts: Facts = field(default_factory=dict)  #: what `rows` learned inside the transaction
    again: bool = False  #: another claim had better come at once: this job is due already, or somebody waited for its rest
    error: Mapping[str, Any] | None = None  #: why it was asked to end, where it was


class Tenure(Protocol):
    """A process's right to work."""

    def valid(self) -> bool:
        """Whether an effect may still be started."""
        ...

    def stopping(self, job_id: str) -> bool:
        """Whether this job must come to its next boundary soon."""
        ...

    def leaving(self) -> bool:
        """Whether this process gives its jobs back at their next boundary."""
        ...


@dataclass(frozen=True, slots=True)
class Walk:
    """Where the drive stands between two steps. `stored` facts are by step name."""

    job: Claimed
    steps: Sequence[Step]
    position: int
    direction: Direction
    attempt: int
    entered: float  #: monotonic seconds; may lie before this process's own start
    stored: Mapping[str, Facts]
    stop: str | None
    cancelled: bool
    error: Mapping[str, Any] | None
    clock: Clock
    unknown: dict[str, Any] | None = None
    skipped: frozenset[int] = frozenset()  #: positions in this direction that an operator decided to pass

    @property
    def name(self) -> str:
        """The step where it stands."""
        return self.job.steps[self.position]

    @property
    def elapsed(self) -> timedelta:
        """Since that step was entered, by whichever process."""
        return timedelta(seconds=max(0.0, self.clock() - self.entered))

    @property
    def is_skipped(self) -> bool:
        """Whether an operator decided to pass this step undone."""
        return self.position in self.skipped and self.direction is self.job.direction

    def turns(self) -> bool:
        """A cancelled job turns back once, and then goes on undoing."""
        return self.direction is Direction.FORWARD and not self.job.only_forward

    def situation(self) -> Situation:
        """What the policy weighs."""
        return Situation(
            self.steps, self.job.only_forward, self.position, self.direction, self.attempt, self.elapsed, self.cancelled
        )

    def passage(self, tenure: Tenure) -> Passage:
        """What the step may know."""
        job = self.job
        return Passage(
            id=job.id,
            kind=job.kind,
            subject=job.subject,
            args=job.args,
            direction=self.direction,
            attempt=self.attempt,
            elapsed=self.elapsed,
            facts=self.stored,
            stopping=lambda: tenure.stopping(job.id),
            key=f"{job.id}:{self.direction}:{self.name}",
            requested_by=job.requested_by,
            error=self.error,
            children=self.children,
        )

    @property
    def children(self) -> Children | None:
        """The jobs that this step spread over, as they stood at the claim."""
        return self.job.family.get(self.position)

    def onward(self, move: Move, to: int, reply: Reply) -> "Walk":
        """At the next step, with what this one learned."""
        learned = {**(move.facts or {}), **reply.facts} if move.done and self.direction is Direction.FORWARD else {}
        return replace(
            self,
            job=replace(self.job, args=reply.args),
            position=to,
            direction=move.direction,
            attempt=0,
            entered=self.clock(),
            stored={**self.stored, self.name: learned} if learned else self.stored,
            stop=reply.stop,
            cancelled=self.cancelled or reply.stop == "cancelled",
            error=reply.error or move.error or self.error,
        )


def start(job: Claimed, machine: Machine | None, clock: Clock) -> Walk:
    """Where the rows say that the job stands."""
    here = [past for past in job.past if past.direction is job.direction]
    passed = {past.position for past in here if past.status in {"done", "skipped"}}
    position = _beyond(job, passed)
    entered = next((past.ago for past in here if past.position == position), timedelta())
    known = {step.name: step for step in machine.steps} if machine is not None else {}
    missing = [name for name in job.steps if name not in known]
    return Walk(
        job=job,
        steps=[known[name] for name in job.steps] if not missing else [],
        position=position,
        direction=job.direction,
        attempt=job.attempt if position == job.position else 0,
        entered=clock() - entered.total_seconds(),
        stored={past.name: past.facts for past in job.past if past.direction is Direction.FORWARD and past.status == "done"},
        stop=job.stop,
        cancelled=job.stop == "cancelled",
        error=job.error,
        clock=clock,
        skipped=frozenset(past.position for past in here if past.status == "skipped"),
        unknown=_unknown(job, missing) if missing else None,
    )


def _beyond(job: Claimed, passed: Collection[int]) -> int:
    """Beyond all that was passed, and not row by row: on the way back one that left nothing behind is passed over unwritten.

    Not past the end, where only a skipped step can stand: the decision that passes it is still to be made.
    """
    if job.direction is Direction.FORWARD:
        return min(max(job.position, max(passed, default=-1) + 1), len(job.steps) - 1)
    return max(min(job.position, min(passed, default=len(job.steps)) - 1), 0)


def _unknown(job: Claimed, missing: Sequence[str]) -> dict[str, Any]:
    return {
        "code": "unknown_step",
        "message": f"run {job.kind}: this release does not know its step {missing[0]}",
        "hint": "run a release that does",
        "blame": str(Blame.OPERATOR),
        "step": missing[0],
    }
