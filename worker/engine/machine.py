"""A machine is a table of steps: in which order the world is changed, and how each change is undone.

Read a row as a sentence: *name* it, *do* this, *undo* it so, it may take *within* and be tried as *retry* says.
Nothing has a default, so `undo=NOTHING` is a decision that a reviewer sees.

A step ends in one of six ways:

    Done        the effect holds                 the next row
    NotYet      nothing is wrong, only early     look again later; costs no attempt
    Retryable   it failed, it may pass           back off as `retry` says; costs an attempt
    Fatal       it will never pass               undo, newest first (block, on a machine that only goes forward)
    Blocked     a person or a release must act   wait for them; costs nothing
    Spread      other jobs must do it            wait for all of them; costs nothing

`Retryable` and `Fatal` are raised (`worker.errors`), the other four are returned.
Any `do` or `undo` can run twice: a process may die between the effect and the commit.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from worker.errors import Fatal, Retryable

Facts = Mapping[str, Any]  #: JSON-able, stored with the step, never a secret

SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)


class Direction(StrEnum):
    """Which way a job walks through its machine."""

    FORWARD = "forward"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Done:
    """The effect holds.

    `rows` runs inside the checkpoint's own transaction, so what it writes happens exactly once;
    it may raise `Retryable` or `Fatal`, which then is the step's result and nothing is written.
    What it answers is merged into the facts.
    """

    facts: Facts = field(default_factory=dict)
    rows: Callable[[Any], Facts | None] | None = None


@dataclass(frozen=True, slots=True)
class NotYet:
    """Too early. `what` tells a person what it waits for; `after` is when to look again if nobody rings.

    `done` of `total` units, where the step can say how far it is.
    """

    what: str
    after: timedelta
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Time will not help: `who` must act."""

    reason: str
    who: str = "operator"
    code: str = "blocked"
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Child:
    """A job that a step wants done: a kind of the catalogue and its args."""

    kind: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Have other jobs do it, at most `most` of them at once.

    They are written in the checkpoint's own transaction. When none of them is open any more the step is acted again, and
    `passage.children` says how they ended; it may not spread once more, nor may its undo. A child about the parent's own subject
    waits behind it for ever: spread over others.

    On the way back they are cancelled first, so a step that spreads wants an undo. A job that was live already is joined and not
    made; such a one is let go instead, like one for which another parent waits as well, and lives on.
    """

    children: Sequence[Child]
    most: int

    def __post_init__(self) -> None:
        """Refuse what could never end."""
        if not self.children or self.most < 1:
            raise ValueError("spread over children: at least one, and at least one at a time")


@dataclass(frozen=True, slots=True)
class Children:
    """How the jobs stand that a step spread over.

    `open` are those not at rest, started or not. Those that were never started or were let go count as cancelled.
    """

    total: int
    open: int
    succeeded: int
    failed: int
    cancelled: int


Result = Done | NotYet | Retryable | Fatal | Blocked | Spread


@dataclass(frozen=True, slots=True)
class Passage:
    """What a step may know of the job it runs for."""

    id: str
    kind: str
    subject: str
    args: Mapping[str, Any]
    direction: Direction
    attempt: int  #: failed attempts of this step so far
    facts: Mapping[str, Facts]  #: step name → what it stored
    elapsed: timedelta  #: since this step was first entered
    stopping: Callable[[], bool]  #: true once the job must stop at its next boundary
    key: str  #: `{job}:{direction}:{step}`, stable across attempts: the idempotency key for peers
    requested_by: str | None = None
    error: Mapping[str, Any] | None = None  #: why it is going back
    children: Children | None = None  #: how they ended, when this step has spread


Effect = Callable[[Passage, Any], Done | NotYet | Blocked | Spread]


def nothing(_passage: Passage, _world: object) -> Done:
    """The undo of a step that left nothing behind."""
    return Done()


NOTHING: Final = nothing


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how far apart. Delays grow from `first` by doubling up to `ceiling`."""

    attempts: int
    first: timedelta
    ceiling: timedelta


QUICK: Final = Retry(attempts=6, first=timedelta(milliseconds=200), ceiling=5 * SECOND)
PATIENT: Final = Retry(attempts=10, first=SECOND, ceiling=MINUTE)
#: For deletion: giving up is not an option before a person has been told.
STUBBORN: Final = Retry(attempts=20, first=SECOND, ceiling=5 * MINUTE)


@dataclass(frozen=True, slots=True)
class Step:
    """One row of a machine."""

    name: str  # stored with every job; renaming it is a migration
    do: Effect
    undo: Effect
    within: timedelta
    retry: Retry


class BadMachine(ValueError):
    """A table that contradicts itself; it cannot be imported."""


_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}\Z")


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of job. Frozen, checks itself when it is made, draws itself."""

    kind: str  # stored with every job; renaming it is a migration
    steps: Sequence[Step]
    only_forward: bool  #: no undo at all: what cannot be done blocks until a person helps

    def __post_init__(self) -> None:
        """Refuse a table without rows, with a name twice, or with an undo that would never run."""
        names = [step.name for step in self.steps]
        if not names:
            raise BadMachine(f"{self.kind}: no steps")
        for name in names:
            if not _NAME.match(name):
                raise BadMachine(f"{self.kind}: {name!r} is not a step name")
            if names.count(name) > 1:
                raise BadMachine(f"{self.kind}: step {name} is entered twice")
        for step in self.steps:
            if step.within <= timedelta(0) or step.retry.attempts < 1:
                raise BadMachine(f"{self.kind}: step {step.name} could never run")
            if self.only_forward and step.undo is not NOTHING:
                raise BadMachine(f"{self.kind}: the undo of {step.name} would never run")

    @property
    def names(self) -> tuple[str, ...]:
        """Step names in order: frozen into a job when it is enqueued."""
        return tuple(step.name for step in self.steps)

    def mermaid(self) -> str:
        """The machine as a Mermaid state diagram; the README's copy is compared with it by a test."""
        lines = ["stateDiagram-v2", "    direction LR", f"    [*] --> {self.steps[0].name}"]
        lines += [f"    {a.name} --> {b.name}" for a, b in pairwise(self.steps)]
        lines.append(f"    {self.steps[-1].name} --> succeeded")
        if self.only_forward:
            lines += [f"    {step.name} --> blocked: a person must help" for step in self.steps]
            return "\n".join(lines)
        undone = [step for step in self.steps if step.undo is not NOTHING]
        lines += [f"    {step.name} --> {self._way_out(step)}" for step in self.steps]
        lines += [f"    undo_{b.name} --> undo_{a.name}" for a, b in pairwise(undone)]
        if undone:
            lines.append(f"    undo_{undone[0].name} --> failed")
        return "\n".join(lines)

    def _way_out(self, failed: Step) -> str:
        upto = list(self.steps)[: list(self.steps).index(failed) + 1]
        return next((f"undo_{step.name}" for step in reversed(upto) if step.undo is not NOTHING), "failed")
