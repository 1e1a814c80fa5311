"""The only loop: load, act, decide, apply.

Act runs one effect outside any transaction; decide is pure; apply is one fenced statement. A process may die
between any two lines here: whoever claims the job next starts from what is written, and nothing else counts.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any, Protocol

import structlog

from worker.engine.decide import Decision, Move, Rest, Situation, Wait, decide, turn_back
from worker.engine.machine import Direction, Done, Facts, Machine, Passage, Result, Step
from worker.errors import Blame, CryptoError, Fatal, JournalLost, Retryable, WorkerError

log = structlog.get_logger()

Record = Mapping[str, Any]  #: one decision as `worker.apply` takes it


@dataclass(frozen=True, slots=True)
class PastStep:
    """A step row of an earlier claim."""

    direction: Direction
    position: int
    name: str
    status: str  #: waiting | done | failed
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
    past: Sequence[PastStep] = ()
    traceparent: str | None = None  #: W3C, of whoever enqueued it
    waited: timedelta = timedelta()  #: from the moment when it was due until the claim
    age: timedelta = timedelta()  #: since it was enqueued, at the claim


@dataclass(frozen=True, slots=True)
class Reply:
    """What the database answered to a decision that it took."""

    stop: str | None
    args: Mapping[str, Any]
    facts: Facts = field(default_factory=dict)  #: what `rows` learned inside the transaction
    again: bool = False  #: it waits, and is due already: somebody called while it ran


class Journal(Protocol):
    """Where decisions are applied. None means fenced: somebody else holds the subject."""

    def apply(self, record: Record) -> Reply | None:
        """Write one decision. Raises Unreachable when the database did not take it in time."""
        ...

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """Run `rows` and write the decision in one transaction; facts that `rows` answers are merged in."""
        ...


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


def drive(job: Claimed, machine: Machine | None, world: object, journal: Journal, tenure: Tenure) -> float | None:
    """Take a claimed job as far as it goes now: to its rest, a wait, or a block.

    Answers in how many seconds it wants to be looked at again, None when nobody has to. Raises JournalLost when the job
    cannot be taken on and not be given back either: then the process has to leave.
    """
    bound = log.bind(job=job.id, kind=job.kind, subject=job.subject)
    walk = _start(job, machine)
    while tenure.valid():
        result: Result | None = None
        if walk.stop == "superseded":
            decision: Decision = _superseded(walk)
        elif walk.unknown is not None:
            decision = Wait(None, walk.attempt, walk.unknown["message"], walk.unknown)
        elif walk.stop == "cancelled" and walk.turns():
            # The row has the reason already; what undoes is told that there is one.
            walk = replace(walk, error=walk.error or {"code": "cancelled", "message": "cancelled"})
            decision = turn_back(replace(walk.situation(), cancelled=True), None, done=False)
        else:
            result = _act(walk, world, tenure, bound)
            decision = decide(walk.situation(), result, jitter=random.random())  # noqa: S311  because jitter guards nothing
        leaving = tenure.leaving()
        try:
            reply = _apply(walk, decision, result, journal, leaving=leaving)
        except (Retryable, Fatal) as error:
            # `rows` refused: nothing was written, and its refusal is the step's result.
            decision = decide(walk.situation(), error, jitter=random.random())  # noqa: S311
            reply = _apply(walk, decision, error, journal, leaving=leaving)
        if reply is None:
            bound.info("fenced", step=walk.name, fence=job.fence)
            return None
        _say(bound, walk, decision)
        if isinstance(decision, Wait):
            return _seconds(decision, reply)
        if leaving or decision.to is None:
            return None
        walk = walk.onward(decision, decision.to, reply)
    # The row says that it runs here: a process that only dropped it, and then renewed its lease after all, would hold it for ever.
    raise JournalLost("begin step: the lease may end before it has begun")


def _seconds(wait: Wait, reply: Reply) -> float | None:
    if reply.again:
        return 0.0
    return wait.after.total_seconds() if wait.after is not None else None


@dataclass(frozen=True, slots=True)
class _Walk:
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
    unknown: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.job.steps[self.position]

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=max(0.0, monotonic() - self.entered))

    def turns(self) -> bool:
        """A cancelled job turns back once, and then goes on undoing."""
        return self.direction is Direction.FORWARD and not self.job.only_forward

    def situation(self) -> Situation:
        return Situation(
            self.steps, self.job.only_forward, self.position, self.direction, self.attempt, self.elapsed, self.cancelled
        )

    def passage(self, tenure: Tenure) -> Passage:
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
        )

    def onward(self, move: Move, to: int, reply: Reply) -> "_Walk":
        learned = {**(move.facts or {}), **reply.facts} if move.done and self.direction is Direction.FORWARD else {}
        return replace(
            self,
            job=replace(self.job, args=reply.args),
            position=to,
            direction=move.direction,
            attempt=0,
            entered=monotonic(),
            stored={**self.stored, self.name: learned} if learned else self.stored,
            stop=reply.stop,
            cancelled=self.cancelled or reply.stop == "cancelled",
            error=move.error or self.error,
        )


def _start(job: Claimed, machine: Machine | None) -> _Walk:
    """Where the rows say that the job stands."""
    here = [past for past in job.past if past.direction is job.direction]
    done = {past.position for past in here if past.status == "done"}
    position = job.position
    while position in done and job.direction is Direction.FORWARD:
        position += 1
    while position in done and job.direction is Direction.BACK:
        position -= 1
    entered = next((past.ago for past in here if past.position == position), timedelta())
    known = {step.name: step for step in machine.steps} if machine is not None else {}
    missing = [name for name in job.steps if name not in known]
    return _Walk(
        job=job,
        steps=[known[name] for name in job.steps] if not missing else [],
        position=position,
        direction=job.direction,
        attempt=job.attempt if position == job.position else 0,
        entered=monotonic() - entered.total_seconds(),
        stored={past.name: past.facts for past in job.past if past.direction is Direction.FORWARD and past.status == "done"},
        stop=job.stop,
        cancelled=job.stop == "cancelled",
        error=job.error,
        unknown=_unknown(job, missing) if missing else None,
    )


def _unknown(job: Claimed, missing: Sequence[str]) -> dict[str, Any]:
    return {
        "code": "unknown_step",
        "message": f"run {job.kind}: this release does not know its step {missing[0]}",
        "hint": "run a release that does",
        "blame": str(Blame.OPERATOR),
        "step": missing[0],
    }


def _act(walk: _Walk, world: object, tenure: Tenure, bound: Any) -> Result:
    """Run one effect. The only place where any error at all is caught, because a bug must cost an attempt and not a process."""
    step = walk.steps[walk.position]
    effect = step.do if walk.direction is Direction.FORWARD else step.undo
    try:
        return effect(walk.passage(tenure), world)
    except (Retryable, Fatal) as error:
        bound.info("step failed", step=step.name, code=error.code, reason=error.message, cause=_cause(error))
        return error
    except CryptoError as error:
        bound.error("step failed", step=step.name, code=error.code, reason=error.message)
        return _as_fatal(error)
    except Exception:  # noqa: BLE001  because this is the outermost frame of an effect
        bound.exception("step broke", step=step.name)
        return Retryable(f"run {step.name}: internal error", hint="the worker's log has the cause", code="internal")


def _cause(error: BaseException) -> str | None:
    """The class of what is behind an error; its text may quote a peer and stays out of the log."""
    return type(error.__cause__).__name__ if error.__cause__ is not None else None


def _as_fatal(error: WorkerError) -> Fatal:
    fatal = Fatal(error.message, hint=error.hint, code=error.code)
    fatal.blame = error.blame
    return fatal


def _superseded(walk: _Walk) -> Move:
    """Leave at once and undo nothing: what was made is in the ledger, and the job that took over goes by it."""
    error = {"code": "superseded", "message": "another job took over", "hint": "", "blame": str(Blame.TENANT), "step": walk.name}
    return Move(False, walk.direction, None, Rest.CANCELLED, error=error)


def _apply(walk: _Walk, decision: Decision, result: Result | None, journal: Journal, *, leaving: bool) -> Reply | None:
    record = _record(walk, decision, result, leaving=leaving)
    if not isinstance(result, Done) or result.rows is None:
        return journal.apply(record)
    rows = result.rows

    def timed(connection: Any) -> Facts | None:
        more = rows(connection)
        record["took_ms"] = walk.elapsed.total_seconds() * 1000  # because the rows are part of the step
        return more

    return journal.apply_with(record, timed)


def _record(walk: _Walk, decision: Decision, result: Result | None, *, leaving: bool) -> dict[str, Any]:
    """A decision in the shape of `worker.apply`. Without a result there was no step, hence no step row.

    A process that is leaving gives the job back at the step that comes next, for whoever claims it first.
    """
    record: dict[str, Any] = {
        "job": walk.job.id,
        "fence": walk.job.fence,
        "direction": str(walk.direction),
        "position": walk.position,
        "name": walk.name,
        "attempt": walk.attempt,
        "took_ms": walk.elapsed.total_seconds() * 1000,
    }
    if isinstance(decision, Wait):
        stays = {"to_direction": str(walk.direction), "to_position": walk.position, "to_attempt": decision.attempt}
        wait = {"next": "block"} if decision.after is None else {"next": "wait", "after_ms": decision.after.total_seconds() * 1000}
        # A wait without an error keeps the job's own error, because an undo must not forget why it undoes.
        return {
            **record,
            **stays,
            **wait,
            "status": "waiting" if result is not None else None,
            "what": decision.what[:500],
            "error": decision.error,
            "job_error": decision.error if decision.after is None or walk.direction is Direction.FORWARD else None,
        }
    go = {"next": "wait", "after_ms": 0.0, "what": "another process to go on"} if leaving else {"next": "go"}
    return {
        **record,
        **(go if decision.to is not None else {"next": "rest"}),
        "status": None if result is None else ("done" if decision.done else "failed"),
        "facts": decision.facts,
        "error": decision.error,
        "rest": decision.rest,
        "to_direction": str(decision.direction),
        "to_position": walk.position if decision.to is None else decision.to,
        "to_attempt": 0,
        "job_error": decision.error,
    }


def _say(bound: Any, walk: _Walk, decision: Decision) -> None:
    took = round(walk.elapsed.total_seconds() * 1000)
    match decision:
        case Wait(after=None, what=what):
            bound.warning("blocked", step=walk.name, reason=what)
        case Wait(after=after, what=what):
            bound.debug("waiting", step=walk.name, what=what, seconds=after.total_seconds() if after else None)
        case Move(to=None, rest=rest):
            bound.info("ended", state=str(rest), step=walk.name, ms=took)
        case Move(direction=direction):
            bound.debug("step done", step=walk.name, direction=str(direction), ms=took)
