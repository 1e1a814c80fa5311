"""The rows of the model: what the engine's tables hold, as far as the rules speak of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.engine.kinds import Kind

LIVE = ("queued", "running", "waiting", "blocked")
REST = ("succeeded", "failed", "cancelled")
#: A step that has seen this many processes die is a suspect: no process holds two of them.
SUSPECT = 3
PASSED = ("done", "skipped")


class Refusal(Exception):
    """The store said no. `code` is the SQLSTATE."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class StepRow:
    """What is written of one step in one direction."""

    name: str
    status: str
    attempt: int
    fence: int
    facts: Mapping[str, Any]
    entered: float


@dataclass(slots=True)
class Job:
    """A row of `worker.jobs`. `number` is its place in the order of enqueueing."""

    id: str
    number: int
    kind: Kind
    subject: str
    org: str
    names: Sequence[str]  #: its steps, frozen when it was enqueued
    args: Mapping[str, Any]
    key: str | None
    priority: int
    run_at: float
    requested_by: str | None = None
    state: str = "queued"
    direction: str = "forward"
    position: int = 0
    attempt: int = 0
    parked: bool = False
    paused: bool = False
    woken: bool = False
    process: int | None = None
    fence: int | None = None
    claims: int = 0
    crashes: int = 0
    cancel: bool = False
    superseded_by: str | None = None
    error: Mapping[str, Any] | None = None
    started: bool = False
    finished: bool = False
    steps: dict[tuple[str, int], StepRow] = field(default_factory=dict)

    @property
    def stop(self) -> str | None:
        """What its holder is told at the next boundary."""
        return "superseded" if self.superseded_by else "cancelled" if self.cancel else None


@dataclass(slots=True)
class Subject:
    """Who holds it, and how often it was ever claimed or taken away."""

    fence: int = 0
    holder: str | None = None


@dataclass(slots=True)
class Process:
    """A start of a worker process. `locked`: its session still holds its lock; `server`: the one where it entered.

    `in_doubt`: it left because it could not know what it held.
    """

    id: int
    host: str
    server: int
    lease_until: float
    locked: bool = True
    in_doubt: bool = False


@dataclass(slots=True)
class Child:
    """What a step spread: no job yet (`job` None), live (`state` None), or at rest.

    `made`: not live already when the parent asked for it. `told`: its parent knows.
    """

    parent: str
    position: int
    kind: str
    args: Mapping[str, Any]
    most: int
    job: str | None = None
    made: bool = False
    state: str | None = None
    told: bool = False

    @property
    def unstarted(self) -> bool:
        """Wanted, and no job yet."""
        return self.state is None and self.job is None
