"""People and programs who do at random whatever the engine's functions allow, each on a connection of their own."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg2
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, step
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import Blocked, Child, Done, Machine, NotYet, Passage, Retry, Spread
from worker.errors import Fatal, Retryable
from worker.store import connect
from worker.store.jobs import MAX_CRASHES, NAMESPACE, Claims, Register

#: What the functions refuse on purpose.
REFUSALS = {"MW001", "MW002", "MW003", "MW004", "MW005", "22023"}
PATIENT = Retry(attempts=50, first=timedelta(milliseconds=5), ceiling=timedelta(milliseconds=20))
ORGS = ("", "a", "b", "c")


def kind(name: str, *, only_forward: bool = False, supersedes: bool = False) -> Kind:
    steps = [step(f"s{n}", undo=not only_forward, retry=PATIENT) for n in (1, 2, 3)]
    args = {
        "id": Arg("uuid"),
        "note": Arg("text", required=False, default="x"),
        "deep": Arg("boolean", required=False, default=False),
    }
    return Kind(
        Machine(f"lock.{name}", steps, only_forward),
        "workspace:",
        "id",
        args,
        "toy",
        supersedes=supersedes,
        widens=("deep",),
        skippable=("s2",),
    )


MAKE, OTHER, PARENT = kind("make"), kind("other"), kind("parent")
REMOVE, PURGE = kind("remove", only_forward=True, supersedes=True), kind("purge", supersedes=True)
KINDS = (MAKE, OTHER, PARENT, REMOVE, PURGE)


class Places:
    """Few subjects, and now and then a fresh one that nobody has claimed yet. Parents have their own: one that spread over its
    own subject would wait for itself."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = Lock()
        self._known = [self._place(uuid4(), n) for n in range(5)]
        self.parents = [self._place(uuid4(), n) for n in range(3)]

    def one(self, dice: random.Random) -> str:
        with self._guard:
            if dice.random() < 0.05:
                self._known[dice.randrange(len(self._known))] = self._place(uuid4(), dice.randrange(100))
            return dice.choice(self._known)

    def _place(self, ident: Any, n: int) -> str:
        with self._database.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO worker.placements (workspace_id, org, backend, host) VALUES (:id, :org, 'memory', 'local')"),
                {"id": ident, "org": ORGS[n % len(ORGS)]},
            )
        return str(ident)


@dataclass
class World(Stage):
    """Steps that end in every way there is, until calm is wanted."""

    places: Places | None = None
    calm: Event = field(default_factory=Event)
    dice: random.Random = field(default_factory=random.Random)

    def play(self, passage: Passage, name: str) -> Any:
        with self.guard:
            fate = 1.0 if self.calm.is_set() else self.dice.random()
        if name == "s2" and passage.kind == PARENT.name and passage.children is None and self.places:
            with self.guard:
                picked = [(self.dice.choice([MAKE, MAKE, REMOVE]), self.places.one(self.dice)) for _ in range(4)]
            return Spread([Child(kind.name, {"id": subject}) for kind, subject in picked], most=2)
        if fate < 0.05:
            raise Fatal("play step: no")
        if fate < 0.15:
            raise Retryable("play step: busy")
        if fate < 0.25:
            return Blocked("a person must sign")
        return NotYet("the world", timedelta(milliseconds=10)) if fate < 0.4 else Done({"by": name})


@dataclass
class Crowd:
    """Threads that act until the time is over. What was done, refused and broken is counted by name."""

    database: Database
    places: Places
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    expected: frozenset[str] = frozenset(REFUSALS)
    _over: Event = field(default_factory=Event)

    def act(
        self, seconds: float, roles: Sequence["Callable[[Crowd, random.Random], None]"], *, until: Callable[[], bool] = lambda: True
    ) -> None:
        """All roles at once, each in a thread of its own; and on, ten times as long at most, until what is waited for came."""
        threads = [Thread(target=self._run, args=(role, n)) for n, role in enumerate(roles)]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        end = monotonic() + 9 * seconds
        while not until() and monotonic() < end:
            self._over.wait(0.1)
        self._over.set()
        for thread in threads:
            thread.join()

    def over(self) -> bool:
        return self._over.is_set()

    def pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    def attempt(self, what: str, statement: Callable[[], object]) -> str | None:
        """Do it; the SQLSTATE with which it was refused."""
        try:
            statement()
        except psycopg2.Error as error:
            code = error.pgcode or type(error).__name__
            self.refused[f"{what} {code}"] += 1
            return code
        self.done[what] += 1
        return None

    def _run(self, role: "Callable[[Crowd, random.Random], None]", n: int) -> None:
        try:
            role(self, random.Random(f"{self.seed}-{n}"))
        except BaseException as error:  # noqa: BLE001  because a thread that died silently would prove nothing
            self.broken.append(f"{type(error).__name__}: {error}")


def somebody(crowd: Crowd, dice: random.Random) -> None:
    """Asks for one thing at a time, of whatever job."""
    with closing(connect.open_raw(crowd.database.url, name="somebody")) as connection, connection.cursor() as cursor:
        while not crowd.over():
            what, statement, values = _wish(crowd, dice, _a_job(cursor, dice))
            code = crowd.attempt(what, lambda: cursor.execute(statement, values))  # noqa: B023  because it is called at once
            if code is not None and code not in crowd.expected:
                crowd.broken.append(f"{what}: {code}")
            crowd.pause(dice.random() * 0.004)


def _a_job(cursor: Any, dice: random.Random) -> tuple[str | None, str | None]:
    """A recent job, rather one that lives, and a step of it."""
    live = "state IN ('queued', 'running', 'waiting', 'blocked')" if dice.random() < 0.8 else "true"
    cursor.execute(
        "SELECT id::text, steps[position + 1] FROM (SELECT * FROM worker.jobs WHERE " + live + " ORDER BY seq DESC LIMIT 30) AS j "
        "ORDER BY random() LIMIT 1"
    )
    return cursor.fetchone() or (None, None)


def enqueue_of(crowd: Crowd, dice: random.Random) -> tuple[str, tuple[Any, ...]]:
    """A statement that stores some job, or joins, widens or supersedes one."""
    kind = dice.choices(KINDS, weights=[6, 6, 2, 1, 1])[0]
    subject = dice.choice(crowd.places.parents) if kind is PARENT else crowd.places.one(dice)
    # No child is of a kind that is asked for in two ways, so that a worker is never refused.
    args = {
        "id": subject,
        "deep": dice.random() < 0.3,
        "note": "y" if kind.name in {OTHER.name, PURGE.name} and dice.random() < 0.1 else "x",
    }
    # A key is of one request, hence of one subject: whoever uses one for two is refused at best.
    key = f"{subject} {dice.randrange(3)}" if dice.random() < 0.2 else None
    at = datetime.now(UTC) + timedelta(milliseconds=dice.randrange(300)) if dice.random() < 0.2 else None
    return "SELECT * FROM worker.enqueue(%s, %s, %s, %s, %s)", (kind.name, json.dumps(args), key, at, dice.choice([1, 100, 900]))


def _wish(crowd: Crowd, dice: random.Random, job: tuple[str | None, str | None]) -> tuple[str, str, tuple[Any, ...]]:
    ident, step_name = job
    subject = f"workspace:{crowd.places.one(dice)}"
    scope, scoped = dice.choice([("kind", MAKE.name), ("org", "a"), ("all", ""), ("kind", OTHER.name), ("org", "b")])
    wishes: list[tuple[int, str, str, tuple[Any, ...]]] = [
        (8, "enqueue", *enqueue_of(crowd, dice)),
        (2, "cancel", "SELECT worker.cancel(%s, 'why not')", (ident,)),
        (4, "retry", "SELECT worker.retry(%s)", (ident,)),
        (2, "skip", "SELECT worker.skip(%s, %s, 'it is gone')", (ident, step_name)),
        (1, "pause", "SELECT worker.pause(%s, %s)", (scope, scoped)),
        (2, "resume", "SELECT worker.resume(%s, %s)", (scope, scoped)),
        (2, "wake", "SELECT worker.wake(%s)", (subject,)),
        (2, "ring", "SELECT * FROM worker.to_ring(20, 50)", ()),
        (1, "reap", "SELECT * FROM worker.reap(%s, %s)", (NAMESPACE, MAX_CRASHES)),
    ]
    _, what, statement, values = dice.choices(wishes, weights=[wish[0] for wish in wishes])[0]
    return what, statement, values


def mortal(crowd: Crowd, dice: random.Random) -> None:
    """A process that claims, gives some jobs back, dies with the others, and comes back from the dead with its decisions."""
    while not crowd.over():
        register = Register(crowd.database.url, name="mortal", pid=1, lease_s=30)
        with closing(Claims(crowd.database.url, process_id=register.process_id, name="mortal")) as claims:
            records = [
                {
                    "job": job.id,
                    "fence": job.fence,
                    "direction": str(job.direction),
                    "to_direction": str(job.direction),
                    "position": job.position,
                    "to_position": job.position,
                    "attempt": job.attempt,
                    "to_attempt": job.attempt,
                    "next": "wait",
                    "after_ms": 0,
                }
                for job in claims.claim(["toy"], 6)
            ]
            crowd.pause(dice.random() * 0.05)
            register.beat()
        crowd.done["death"] += 1
        kept = dice.randrange(len(records) + 1)
        _apply(crowd, records[:kept])
        register.close()
        crowd.pause(0.05 + dice.random() * 0.1)
        _apply(crowd, records)


def _apply(crowd: Crowd, records: Sequence[dict[str, Any]]) -> None:
    """As the journal does: briefly as one batch, and each by itself when somebody holds a row."""
    with closing(connect.open_raw(crowd.database.url, name="mortal")) as connection, connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = 20")
        batches = [list(records)]
        while batches:
            batch = batches.pop()
            code = crowd.attempt("apply", lambda: cursor.execute("SELECT worker.apply(%s)", (json.dumps(batch),)))  # noqa: B023
            if code == "55P03" and len(batch) > 1:
                cursor.execute("SET lock_timeout = 0")
                batches += [[record] for record in batch]
            elif code is not None:
                crowd.broken.append(f"apply: {code}")


def holds_open(*, in_order: bool) -> Callable[[Crowd, random.Random], None]:
    """A program that enqueues several jobs in one transaction and takes its time."""

    def role(crowd: Crowd, dice: random.Random) -> None:
        with closing(connect.open_raw(crowd.database.url, name="program")) as connection, connection.cursor() as cursor:
            connection.autocommit = False
            while not crowd.over():
                wanted = [enqueue_of(crowd, dice) for _ in range(dice.choice([2, 3]))]
                if in_order:
                    by_subject = {json.loads(values[1])["id"]: (statement, values) for statement, values in wanted}
                    wanted = [by_subject[subject] for subject in sorted(by_subject)]
                for statement, values in wanted:
                    code = crowd.attempt("held enqueue", lambda: cursor.execute(statement, values))  # noqa: B023
                    if code is not None and code not in crowd.expected:
                        crowd.broken.append(f"held enqueue: {code}")
                    if code is not None:
                        break
                    crowd.pause(dice.random() * 0.15)
                connection.commit()
                crowd.pause(dice.random() * 0.05)

    return role


def ended(database: Database) -> bool:
    """Whether all jobs are at rest; what is blocked is asked for once more, as people do."""
    with closing(connect.open_raw(database.url, name="people")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT worker.retry(id) FROM worker.jobs WHERE state = 'blocked'")
        cursor.execute("SELECT count(*) FROM worker.jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')")
        return cursor.fetchone() == (0,)


def resume_all(database: Database) -> None:
    with closing(connect.open_raw(database.url, name="people")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT worker.resume(scope, what) FROM worker.pauses")


def deadlocks(database: Database) -> int:
    """How many the server saw in this database, whoever was the victim."""
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        found = connection.execute(text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
        return int(found.scalar_one())
