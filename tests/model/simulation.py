"""One seed, one history: a few processes, a few jobs, everything that can happen to them, and then calm.

python -m tests.model SEED           replays it and prints every move
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from tests.model.fibers import Loop, Mortal
from tests.model.rows import Job, Refusal
from tests.model.store import Store
from tests.model.watch import Broken, Watch
from tests.model.weather import weather
from tests.model.worker import Hands, Pen, Worker
from worker.engine.kinds import Arg, Kind
from worker.engine.lease import Lease
from worker.engine.machine import (
    HOUR,
    NOTHING,
    Blocked,
    Child,
    Done,
    Effect,
    Facts,
    Machine,
    NotYet,
    Passage,
    Result,
    Retry,
    Spread,
    Step,
)
from worker.errors import Fatal, Retryable

#: Seconds during which things go wrong, and how long the calm may take until every job rests.
STORM_S = 6.0
CALM_S = 120.0
#: The step that waits for its subject's event, which comes once.
LISTENS = "listen"
SPREADS = "spread"
_RETRY = Retry(attempts=3, first=timedelta(seconds=0.1), ceiling=timedelta(seconds=1))
#: Subject → organisation. Who gathers has one of its own, because a child behind its own parent would wait for ever.
_ORGS = {"a": "x", "b": "x", "c": "y", "g": "y", "h": "x"}
_SUBJECTS = ("a", "b", "c")
_GATHERS = ("g", "h")
_HOSTS = ("here", "there")


def _act(passage: Passage, hands: Hands) -> Any:
    answer = hands.act(passage)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _step(name: str, undo: Effect) -> Step:
    return Step(name, do=_act, undo=undo, within=2 * HOUR if name == LISTENS else timedelta(seconds=15), retry=_RETRY)


def _kind(name: str, undos: str, *, supersedes: bool = False, widens: tuple[str, ...] = ()) -> Kind:
    """`undos` has a letter for each step: u is undone, n leaves nothing behind, l listens and leaves nothing behind.

    f only goes forward, c spreads over children.
    """
    names = [{"c": SPREADS, "l": LISTENS}.get(letter, f"s{at}") for at, letter in enumerate(undos, 1)]
    steps = [_step(step, _act if letter in "uc" else NOTHING) for step, letter in zip(names, undos, strict=True)]
    args = {"id": Arg("text"), **{arg: Arg("boolean", required=False, default=False) for arg in widens}}
    return Kind(
        Machine(name, steps, only_forward="f" in undos), "toy:", "id", args, "toy", supersedes, widens, skippable=names[1:2]
    )


KINDS = {
    kind.name: kind
    for kind in (
        _kind("make", "uunu"),
        _kind("mend", "nlu"),
        _kind("check", "ff"),
        _kind("gather", "ucl"),
        _kind("remove", "ffl", supersedes=True, widens=("deep",)),
    )
}


class Simulation:
    """Runs one seed. `did` counts what happened; `Broken` is raised when a promise is."""

    def __init__(
        self,
        seed: int,
        *,
        store: type[Store] = Store,
        lease: type[Lease] = Lease,
        pen: type[Pen] = Pen,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._rng = random.Random(seed)
        random.seed(seed)  # the engine's jitter
        self._say = say
        self.weather = weather(self._rng)
        self.store = store(KINDS)
        self.store.placements.update(_ORGS)
        self.watch = Watch(self.store)
        self.loop = Loop(self._rng)
        self.loop.on_time = self._tick
        self.kinds: Mapping[str, Kind] = KINDS
        self.lease_of = lease
        self.pen_of = pen
        self._ground = Mortal("outside")
        self._workers: list[Worker] = []
        self._told: set[str] = set()
        self._asked = 0
        self._facts = 0

    def _tick(self, now: float) -> None:
        self.store.now = now  # the store's clock and the processes' are one

    def run(self) -> Counter[str]:
        """Storm, then calm. Raises Broken."""
        for _ in range(self._rng.choice((1, 2, 3))):
            self._start()
        self._plan()
        try:
            self.loop.run(STORM_S + CALM_S, self._over)
        finally:
            self.loop.end()
        if not self._over():
            left = [f"{job.id} {job.state} at {job.position}" for job in self.store.jobs.values()]
            raise Broken(f"after {CALM_S:g} s of calm not all jobs rest: {', '.join(left)}")
        return self.watch.did

    # What a process needs.

    def chance(self, of: float) -> bool:
        return of > 0 and self._rng.random() < of and self.loop.now < STORM_S

    def latency(self) -> float:
        if self.chance(self.weather.slow):
            return self._rng.random() * 2
        return self._rng.random() * 0.02

    def between(self, least: float, most: float) -> float:
        return self._rng.uniform(least, most)

    def say(self, what: str) -> None:
        if self._say is not None:
            self._say(f"{self.loop.now:8.3f} {what}")

    def respawn(self) -> None:
        self.loop.spawn(self._ground, self._start, after=self.between(0.05, 0.5))

    def answer(self, passage: Passage) -> Result:  # noqa: PLR0911  because a table of chances reads best in a row
        odds, seconds = self.weather, timedelta(seconds=self.between(0.0, 2.0))
        if passage.key.endswith(":forward:" + LISTENS) and passage.subject not in self._told:
            return NotYet("the event", HOUR)
        if passage.stopping() and self._rng.random() < 0.5:
            return NotYet("stopping", timedelta())
        if passage.key.endswith(":forward:" + SPREADS) and passage.children is None and not self.chance(odds.busy):
            return self._spread()
        if self.chance(odds.early):
            return NotYet("early", seconds)
        if self.chance(odds.busy):
            return Retryable("act: busy", after=seconds.total_seconds() if self._rng.random() < 0.3 else None)
        if self.chance(odds.fatal):
            return Fatal("act: never")
        if self.chance(odds.blocked):
            return Blocked("act: ask a person")
        if self.chance(odds.bug):
            return ZeroDivisionError()  # type: ignore[return-value]
        self._facts += 1
        number = self._facts
        rows: Callable[[Any], Facts | None] | None = None
        if self._rng.random() < odds.rows:
            rows = self._rows(number)
        return Done({"n": number}, rows)

    def _spread(self) -> Spread:
        kinds = self._rng.choices(("mend", "check"), k=self._rng.randrange(1, 5))
        return Spread([Child(kind, {"id": self._rng.choice(_SUBJECTS)}) for kind in kinds], most=self._rng.randrange(1, 4))

    def _rows(self, number: int) -> Callable[[Any], Facts | None]:
        def rows(_connection: object) -> Facts:
            if self.chance(self.weather.busy):
                raise Retryable("write rows: busy")
            return {"rows": number}

        return rows

    # What happens around them.

    def _start(self) -> None:
        self._workers = [worker for worker in self._workers if not worker.dead]
        self._workers.append(Worker(self, self._rng.choice(_HOSTS[: self.weather.hosts])))
        self.say(f"{self._workers[-1].name} starts")

    def _over(self) -> bool:
        return self._asked == 0 and self.watch.busy == 0

    def _plan(self) -> None:
        for subject in _ORGS:
            self._at(self.between(0, STORM_S), partial(self._tell, f"toy:{subject}"))
        for _ in range(self._rng.randrange(2, 6)):
            self._at(self.between(0, STORM_S / 2), self._enqueue)
        # fmt: off
        things = (self._enqueue, self._cancel, self._cancel, self._retry, self._retry, self._skip, self._pause,
                  self._wake, self._bell, self._quit, self._restart)
        # fmt: on
        self._at(STORM_S, self._resume)
        for _ in range(self.weather.operators):
            self._at(self.between(0, STORM_S), self._rng.choice(things))

    def _at(self, seconds: float, do: Callable[[], object]) -> None:
        self._asked += 1

        def once() -> None:
            self._asked -= 1
            try:
                do()
            except Refusal as refusal:
                self.say(f"refused: {refusal.code}")
            self.watch.look()

        self.loop.spawn(self._ground, once, after=seconds)

    def _tell(self, subject: str) -> None:
        self.say(f"event on {subject}")
        self._told.add(subject)
        self.store.wake(subject)

    def _enqueue(self) -> None:
        kind = self._rng.choice(list(KINDS.values()))
        subject = self._rng.choice(_GATHERS if kind.name == "gather" else _SUBJECTS)
        args: dict[str, Any] = {"id": subject}
        if kind.widens and self._rng.random() < 0.5:
            args["deep"] = True
        ident, created = self.store.enqueue(kind, args, priority=self._rng.choice((50, 100)))
        self.say(f"enqueue {kind.name} {args}: {ident}, {'new' if created else 'live'}")
        if created:
            self.watch.wanted.add(ident)
        for _ in range(self._rng.randrange(3)):
            self._ring(ident)

    def _job(self, *states: str) -> Job | None:
        """Any job; rather one in such a state, where there is one."""
        jobs = [job for job in self.store.jobs.values() if job.state in states] or list(self.store.jobs.values())
        return self._rng.choice(jobs) if jobs else None

    def _cancel(self) -> None:
        if job := self._job():
            self.say(f"cancel {job.id} ({job.state})")
            self.watch.wanted.discard(job.id)
            self.store.cancel(job.id)
            self.watch.cancelled(job)

    def _retry(self) -> None:
        if job := self._job(*self._rng.choice((("blocked", "failed"), ("waiting",)))):
            before, step = job.state, None
            passed = sorted(self.store.passed(job, job.direction))
            if before != "failed" and passed and self._rng.random() < 0.5:
                step = job.names[self._rng.choice(passed)]
            self.say(f"retry {job.id} ({before}){f' from {step}' if step else ''}")
            self.store.retry(job.id, step)
            self.watch.retried(job, before, step)

    def _skip(self) -> None:
        if job := self._job("blocked", "waiting"):
            position = self.store.stands_at(job)
            step = job.names[position]
            self.store.skip(job.id, step)
            self.say(f"skip {step} of {job.id}")
            self.watch.skipped(job, position)

    def _pause(self) -> None:
        scopes = [("all", ""), ("kind", "make"), ("org", "x"), ("host", "here")]
        scope, what = self._rng.choice(scopes)
        self.say(f"pause {scope} {what}")
        self.store.pause(scope, what)

    def _resume(self) -> None:
        self.say("resume everything")
        for scope, what in sorted(self.store.pauses):
            self.store.resume(scope, what)

    def _wake(self) -> None:
        self.store.wake(f"toy:{self._rng.choice(_SUBJECTS)}")

    def _bell(self) -> None:
        """A message for a job that may be over, or that nobody knows."""
        job = self._job()
        self._ring(job.id if job and self._rng.random() < 0.9 else "nobody")

    def _ring(self, ident: str) -> None:
        if self._workers:
            worker = self._rng.choice(self._workers)
            self.loop.spawn(worker, lambda: worker.intake.answer(ident), after=self.between(0, 1))

    def _quit(self) -> None:
        if self._workers:
            worker = self._rng.choice(self._workers)
            self.loop.spawn(worker, worker.quit)

    def _restart(self) -> None:
        """Of the server: every session is gone, and every process learns it with its next beat."""
        self.say("the server restarts")
        self.watch.did["restarts"] += 1
        self.store.server += 1
        for process in self.store.processes.values():
            process.locked = False
        for worker in self._workers:
            worker.cut = True
