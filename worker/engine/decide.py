"""The whole policy of the engine: one step's result, weighed. Pure: no clock, no randomness, no I/O.

The caller draws `jitter` and measures `elapsed` (the database's clock at the claim plus a monotonic
difference); handing in two numbers instead of a clock lets one property test run thousands of histories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from worker.engine.machine import NOTHING, Blocked, Direction, Done, Facts, NotYet, Result, Spread, Step
from worker.errors import Blame, Fatal, Retryable, WorkerError

#: When a job that waits for its children looks for itself; they call it before that.
CALL: Final = timedelta(seconds=30)


class Rest(StrEnum):
    """The states in which a job takes no further step by itself."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a job stands."""

    steps: Sequence[Step]
    only_forward: bool
    position: int
    direction: Direction
    attempt: int  #: failed attempts of this step so far
    elapsed: timedelta  #: since this step was first entered
    cancelled: bool = False  #: going back because somebody asked: rests in `cancelled`


@dataclass(frozen=True, slots=True)
class Move:
    """Leave this step. `to` is the next position, or None when the job comes to `rest`."""

    done: bool  #: whether this step's effect holds; otherwise it is stored as failed
    direction: Direction
    to: int | None
    rest: Rest | None = None
    facts: Facts | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Stay at this step and give the thread back. `after` is None for "until somebody acts"."""

    after: timedelta | None
    attempt: int
    what: str
    error: Mapping[str, Any] | None = None
    done: int | None = None  #: of `total` units, where the step can say
    total: int | None = None


Decision = Move | Wait


def decide(now: Situation, result: Result, *, jitter: float) -> Decision:  # noqa: PLR0911  because each result has its own answer
    """Weigh one step's result. `jitter` is a number in [0, 1)."""
    match result:
        case Done(facts=facts):
            return _onward(now, facts)
        case Blocked():
            return Wait(None, now.attempt, result.reason, _blocked_error(now, result))
        case Fatal():
            return _give_up(now, describe(result, now))
        case NotYet():
            if _late(now):
                return _give_up(now, _too_late(now, result.what))
            return Wait(result.after, now.attempt, result.what, done=result.done, total=result.total)
        case Spread(children=children):
            what = f"{len(children)} {'job' if len(children) == 1 else 'jobs'}"
            return Wait(CALL, now.attempt, what, done=0, total=len(children))
        case Retryable():
            return _again(now, result, jitter)


def describe(error: WorkerError, now: Situation) -> dict[str, Any]:
    """The error as `jobs show` prints it: what happened, whose fault, what to do, where."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "blame": str(error.blame),
        "step": now.steps[now.position].name,
        **error.detail,
    }


def turn_back(now: Situation, error: Mapping[str, Any] | None, *, done: bool, facts: Facts | None = None) -> Move:
    """Undo from this row up, newest first; the row itself too, because its effect may have half happened."""
    to = _below(now, now.position + 1)
    rest = (Rest.CANCELLED if now.cancelled else Rest.FAILED) if to is None else None
    return Move(done, Direction.BACK, to, rest, facts, error)


def _onward(now: Situation, facts: Facts) -> Move:
    if now.direction is Direction.BACK:
        to = _below(now, now.position)
        rest = (Rest.CANCELLED if now.cancelled else Rest.FAILED) if to is None else None
        return Move(True, Direction.BACK, to, rest, facts)
    if now.position + 1 < len(now.steps):
        return Move(True, Direction.FORWARD, now.position + 1, None, facts)
    return Move(True, Direction.FORWARD, None, Rest.SUCCEEDED, facts)


def _below(now: Situation, position: int) -> int | None:
    """The next row upwards that has something to undo."""
    return next((i for i in range(position - 1, -1, -1) if now.steps[i].undo is not NOTHING), None)


def _again(now: Situation, result: Retryable, jitter: float) -> Decision:
    error = describe(result, now)
    attempt = now.attempt + 1
    retry = now.steps[now.position].retry
    if now.direction is Direction.FORWARD and (_late(now) or attempt >= retry.attempts):
        return _give_up(now, error)
    # 2**30 times any delay is far above every ceiling; without the bound the power overflows.
    grown = min(retry.ceiling, retry.first * 2 ** min(now.attempt, 30))
    delay = grown * (0.5 + jitter / 2)
    if result.after is not None:
        delay = max(delay, timedelta(seconds=result.after))
    return Wait(delay, attempt, _another(result.message), error)


def _another(message: str) -> str:
    """What it waits for, as a noun, with what went wrong."""
    return f"another attempt ({message})"


def _give_up(now: Situation, error: Mapping[str, Any]) -> Decision:
    if now.direction is Direction.BACK:
        # An undo is never given up: it waits at its ceiling, and the alarm is the error on the job.
        ceiling = now.steps[now.position].retry.ceiling
        return Wait(ceiling, now.attempt + 1, _another(str(error["message"])), error)
    if now.only_forward:
        return Wait(None, now.attempt, str(error["message"]), error)
    return turn_back(now, error, done=False)


def _late(now: Situation) -> bool:
    return now.direction is Direction.FORWARD and now.elapsed >= now.steps[now.position].within


def _too_late(now: Situation, what: str) -> dict[str, Any]:
    step = now.steps[now.position]
    return {
        "code": "deadline",
        "message": f"{step.name}: took longer than {step.within.total_seconds():g} s, was waiting for {what}",
        "hint": "",
        "blame": str(Blame.PROVIDER),
        "step": step.name,
    }


def _blocked_error(now: Situation, result: Blocked) -> dict[str, Any]:
    blame = Blame(result.who) if result.who in set(Blame) else Blame.OPERATOR
    return {
        "code": result.code,
        "message": result.reason,
        "hint": result.hint,
        "blame": str(blame),
        "step": now.steps[now.position].name,
    }
