"""The only loop: load, act, decide, apply.

Act runs one effect outside any transaction; decide is pure; apply is one fenced statement. A process may die
between any two lines here: whoever claims the job next starts from what is written, and nothing else counts.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, Protocol

import structlog

from worker.engine.decide import CALL, Decision, Move, Rest, Wait, decide, turn_back
from worker.engine.machine import Direction, Done, Facts, Machine, NotYet, Result, Spread
from worker.engine.walk import Claimed, Clock, Reply, Tenure, Walk, start
from worker.errors import Blame, CryptoError, Fatal, JournalLost, Retryable, WorkerError

log = structlog.get_logger()

Record = Mapping[str, Any]  #: one decision as `worker.apply` takes it


class Journal(Protocol):
    """Where decisions are applied. None means fenced: somebody else holds the subject."""

    def apply(self, record: Record) -> Reply | None:
        """Write one decision. Raises Unreachable when the database did not take it in time."""
        ...

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """Run `rows` and write the decision in one transaction; facts that `rows` answers are merged in."""
        ...


def drive(
    job: Claimed, machine: Machine | None, world: object, journal: Journal, tenure: Tenure, *, clock: Clock = monotonic
) -> float | None:
    """Take a claimed job as far as it goes now: to its rest, a wait, or a block.

    Answers in how many seconds it wants to be looked at again, None when nobody has to. Raises JournalLost when the job
    cannot be taken on and not be given back either: then the process has to leave.
    """
    bound = log.bind(job=job.id, kind=job.kind, subject=job.subject)
    walk = start(job, machine, clock)
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
            return 0.0 if reply.again else None
        walk = walk.onward(decision, decision.to, reply)
    # The row says that it runs here: a process that only dropped it, and then renewed its lease after all, would hold it for ever.
    raise JournalLost("begin step: the lease may end before it has begun")


def _seconds(wait: Wait, reply: Reply) -> float | None:
    if reply.again:
        return 0.0
    return wait.after.total_seconds() if wait.after is not None else None


def _act(walk: Walk, world: object, tenure: Tenure, bound: Any) -> Result:
    """Run one effect. The only place where any error at all is caught, because a bug must cost an attempt and not a process."""
    step = walk.steps[walk.position]
    if walk.is_skipped:
        return Done()
    if walk.children is not None and walk.children.open:
        children = walk.children
        ended = children.total - children.open
        what = f"{children.open} of {children.total} {'job' if children.total == 1 else 'jobs'}"
        return NotYet(what, CALL, done=ended, total=children.total)
    effect = step.do if walk.direction is Direction.FORWARD else step.undo
    try:
        result = _checked(walk, effect(walk.passage(tenure), world))
    except (Retryable, Fatal) as error:
        bound.info("step failed", step=step.name, code=error.code, reason=error.message, cause=_cause(error))
        return error
    except CryptoError as error:
        bound.error("step failed", step=step.name, code=error.code, reason=error.message)
        return _as_fatal(error)
    except Exception:  # noqa: BLE001  because this is the outermost frame of an effect
        bound.exception("step broke", step=step.name)
        return Retryable(f"run {step.name}: internal error", hint="the worker's log has the cause", code="internal")
    return result


def _checked(walk: Walk, result: Result) -> Result:
    """Refuse a spread that nobody would start, and that its step would wait for without an end."""
    if isinstance(result, Spread) and (walk.direction is Direction.BACK or walk.children is not None):
        raise TypeError("a step spreads once, and its undo not at all: further children would bear the same numbers")
    return result


def _cause(error: BaseException) -> str | None:
    """The class of what is behind an error; its text may quote a peer and stays out of the log."""
    return type(error.__cause__).__name__ if error.__cause__ is not None else None


def _as_fatal(error: WorkerError) -> Fatal:
    fatal = Fatal(error.message, hint=error.hint, code=error.code)
    fatal.blame = error.blame
    return fatal


def _superseded(walk: Walk) -> Move:
    """Leave at once and undo nothing: what was made is in the ledger, and the job that took over goes by it."""
    error = {"code": "superseded", "message": "another job took over", "hint": "", "blame": str(Blame.TENANT), "step": walk.name}
    return Move(False, walk.direction, None, Rest.CANCELLED, error=error)


def _apply(walk: Walk, decision: Decision, result: Result | None, journal: Journal, *, leaving: bool) -> Reply | None:
    record = _record(walk, decision, result, leaving=leaving)
    if not isinstance(result, Done) or result.rows is None:
        return journal.apply(record)
    rows = result.rows

    def timed(connection: Any) -> Facts | None:
        more = rows(connection)
        record["took_ms"] = walk.elapsed.total_seconds() * 1000  # because the rows are part of the step
        return more

    return journal.apply_with(record, timed)


def _record(walk: Walk, decision: Decision, result: Result | None, *, leaving: bool) -> dict[str, Any]:
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
            "job_error": _shown(walk, decision),
            "units_done": decision.done,
            "units_total": decision.total,
            **_family(walk, result),
        }
    go = {"next": "wait", "after_ms": 0.0, "what": "another process to go on"} if leaving else {"next": "go"}
    return {
        **record,
        **(go if decision.to is not None else {"next": "rest"}),
        "status": None if result is None else _status(walk, decision),
        "facts": decision.facts,
        "error": decision.error,
        "rest": decision.rest,
        "to_direction": str(decision.direction),
        "to_position": walk.position if decision.to is None else decision.to,
        "to_attempt": 0,
        "job_error": decision.error,
    }


def _shown(walk: Walk, wait: Wait) -> dict[str, Any] | None:
    """The job's error while it waits. An undo must not forget why it undoes: what blocks it is shown around that reason.

    Nor must a job that was cancelled and could not turn back yet.
    """
    if wait.error is None or (walk.direction is Direction.FORWARD and walk.stop is None):
        return dict(wait.error) if wait.error is not None else None
    return {**wait.error, "undoing": walk.error} if wait.after is None else None


def _status(walk: Walk, move: Move) -> str:
    if walk.is_skipped:
        return "skipped"
    return "done" if move.done else "failed"


def _family(walk: Walk, result: Result | None) -> dict[str, Any]:
    """What becomes of the step's children together with this decision: spread, started, or dropped on the way back."""
    if isinstance(result, Spread):
        return {
            "spread": [{"kind": child.kind, "args": dict(child.args)} for child in result.children],
            "most": result.most,
            "family": "start",
        }
    # Not after a refusal: it was for one of them, and asking again would be refused again.
    if walk.children is not None and walk.children.open and isinstance(result, NotYet):
        return {"family": "start" if walk.direction is Direction.FORWARD else "drop"}
    return {}


def _say(bound: Any, walk: Walk, decision: Decision) -> None:
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
