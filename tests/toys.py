"""A toy machine and a worker process in miniature, for tests of the engine on a real Postgres."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Lock
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from config import settings as environment
from tests.conftest import Database
from worker.engine.drive import Journal
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import NOTHING, Done, Effect, Machine, NotYet, Passage, Retry, Step
from worker.errors import Refused
from worker.runtime import Runtime
from worker.store import kinds as catalogue
from worker.store import requests

SECOND = timedelta(seconds=1)
EAGER = Retry(attempts=3, first=timedelta(milliseconds=10), ceiling=timedelta(milliseconds=50))


@dataclass
class Stage:
    """The toy world: what effects did, in order, and what they were told to answer."""

    calls: list[str] = field(default_factory=list)
    script: dict[str, Callable[[Passage], Any]] = field(default_factory=dict)
    guard: Lock = field(default_factory=Lock)

    def queues(self) -> Sequence[str]:
        return ["toy"]

    def play(self, passage: Passage, name: str) -> Any:
        with self.guard:
            self.calls.append(name)
        scripted = self.script.get(name)
        return scripted(passage) if scripted else Done({"by": name})


def effect(name: str) -> Effect:
    def do(passage: Passage, world: Any) -> Done | NotYet:
        answer: Done | NotYet = world.play(passage, name)
        return answer

    return do


def step(name: str, *, undo: bool = True, within: timedelta = 60 * SECOND, retry: Retry = EAGER) -> Step:
    return Step(name, do=effect(name), undo=effect(f"undo {name}") if undo else NOTHING, within=within, retry=retry)


def toy_kind(
    kind: str = "toy.make",
    *,
    steps: int = 3,
    only_forward: bool = False,
    supersedes: bool = False,
    widens: Sequence[str] = (),
    skippable: Sequence[str] = (),
) -> Kind:
    rows = tuple(step(f"s{n}", undo=not only_forward) for n in range(1, steps + 1))
    args = {"id": Arg("uuid"), **{name: Arg("boolean", required=False, default=False) for name in widens}}
    return Kind(Machine(kind, rows, only_forward), "toy:", "id", args, "toy", supersedes, widens, skippable)


def lacking(_: Passage) -> Any:
    """What a step raises whose tenant has not set a secret."""
    hint = "add them under Config → Env Vars or as Global secrets, then retry"
    raise Refused("missing required env: OPENAI_API_KEY", hint=hint, code="missing_env", detail={"missing": ["OPENAI_API_KEY"]})


def remember(database: Database, *kinds: Kind) -> None:
    with database.engine.begin() as connection:
        catalogue.write(connection, kinds, backend="memory", host="local")


def ask(database: Database, kind: str = "toy.make", subject: str | None = None, **more: Any) -> str:
    args = {"id": subject or str(uuid4()), **more.pop("args", {})}
    with database.engine.begin() as connection:
        return requests.enqueue(connection, kind, args, **more)[0]


def status(database: Database, job_id: str) -> Mapping[str, Any]:
    with database.engine.connect() as connection:
        return dict(connection.execute(text("SELECT * FROM worker.job_status WHERE id = :id"), {"id": job_id}).mappings().one())


def state(database: Database, job_id: str) -> str:
    return str(status(database, job_id)["state"])


@contextmanager
def process(
    database: Database,
    stage: Any,
    *kinds: Kind,
    slots: int = 8,
    lease_s: float = 3.0,
    poll_s: float = 0.1,
    journal_of: Callable[[Journal], Journal] = lambda journal: journal,
    left: Event | None = None,
    assembly_s: float = 0.0,
    traced: bool = False,
    backend: str = "memory",
) -> Iterator[Runtime]:
    """A worker process's runtime inside this one. Its world takes `assembly_s` seconds to be put together.

    `traced`: its spans go where OTEL_EXPORTER_OTLP_ENDPOINT says.
    """
    settings = environment.load(
        {
            "DATABASE_URL": database.url.reveal(),
            "MOLECULE_BACKEND": backend,
            "MOLECULE_WORKER_SLOTS": str(slots),
            "MOLECULE_WORKER_LEASE_S": str(lease_s),
            "MOLECULE_WORKER_POLL_S": str(poll_s),
            **({"OTEL_EXPORTER_OTLP_ENDPOINT": os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]} if traced else {}),
        }
    )

    def assemble(_settings: object, _engine: object, _process: int, _closing: ExitStack) -> Any:
        Event().wait(assembly_s)
        return stage

    gone = left or Event()
    runtime = Runtime.start(settings, {kind.name: kind for kind in kinds}, assemble, journal_of=journal_of, leave=gone.set)
    try:
        yield runtime
    finally:
        runtime.close()
