"""A simulated worker process: the engine's own Lease, Intake and drive, on the model and in the simulation's time."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from tests.model.fibers import FiberPool, Loop, Mortal, Stop
from tests.model.held import Held, held
from tests.model.store import Store
from tests.model.watch import Broken, Watch
from tests.model.weather import Weather
from worker.engine.drive import Record, drive
from worker.engine.intake import Intake
from worker.engine.kinds import Kind
from worker.engine.lease import _STRAYED, Beat, Lease
from worker.engine.machine import Done, Facts, NotYet, Passage, Result, Spread
from worker.engine.walk import Claimed, Reply
from worker.errors import JournalLost, Unreachable

LEASE_S = 6.0
POLL_S = 2.0
T = TypeVar("T")


class Lost(Exception):
    """The connection broke: the store took it or not."""


class Sim(Protocol):
    """What a process needs of the simulation."""

    loop: Loop
    store: Store
    watch: Watch
    weather: Weather
    kinds: Mapping[str, Kind]
    lease_of: type[Lease]
    pen_of: "type[Pen]"

    def chance(self, of: float) -> bool:
        """Whether this fault happens now."""
        ...

    def latency(self) -> float:
        """Seconds that a message takes."""
        ...

    def between(self, least: float, most: float) -> float:
        """A number of seconds."""
        ...

    def say(self, what: str) -> None:
        """A line of the trace."""
        ...

    def answer(self, passage: Passage) -> Result:
        """What this effect comes to."""
        ...

    def respawn(self) -> None:
        """The parent starts a fresh process."""
        ...


class Worker(Mortal):
    """One start of a worker process. It is its own register and its own claims."""

    def __init__(self, sim: Sim, host: str) -> None:
        self.process_id = sim.store.register(LEASE_S, host)
        super().__init__(f"p{self.process_id}")
        self.sim = sim
        self.cut = False  #: its connections are gone
        self.driven: Counter[str] = Counter()
        self._after = ""
        loop = sim.loop
        self.intake = Intake(
            self,
            self._run,
            list,
            slots=2,
            poll_s=POLL_S,
            on_lost=self.leave_for,
            clock=loop.clock,
            event=loop.event,
            pool=FiberPool(loop, self),
        )
        self.lease = sim.lease_of(
            self, LEASE_S, self.lose, self.intake.wake, self.intake.driving, clock=loop.clock, event=loop.event
        )
        loop.spawn(self, self.lease._run)
        loop.spawn(self, self.lease._watch)
        loop.spawn(self, self.intake._look_around)
        self.intake.wake()

    # What happens to it.

    def die(self, why: str) -> None:
        """From here on it does nothing more. Its session is gone, unless its host vanished with it."""
        if self.dead:
            return
        self.dead = True
        self.sim.say(f"{self.name} dies: {why}")
        self.sim.store.processes[self.process_id].locked = why == "its host vanished"
        self.sim.respawn()

    def leave(self) -> None:
        """What `os._exit` is."""
        self.die("it leaves")
        raise Stop

    def leave_for(self, cause: Exception) -> None:
        """What the runtime does when a claim or a drive ended in an unforeseen way."""
        if isinstance(cause, JournalLost):
            self.lease.resign()
        self.leave()

    def lose(self) -> None:
        """The lease is lost. A job that is driven here is no reason."""
        astray = [ident for ident in self.lease._strays if self.driven[ident]]
        if astray and self.lease._strayed > _STRAYED:
            raise Broken(f"{self.name} leaves because nobody drives {astray}, and it does")
        self.leave()

    def quit(self) -> None:
        """SIGTERM: claim no more, give back what runs at its next boundary, leave."""
        self.sim.say(f"{self.name} is asked to leave")
        self.intake.drain()
        self.lease.drain()
        while self.driven.total():
            self.sim.loop.sleep(0.1)
        self.sim.store.close(self.process_id)
        self.die("it left in good order")
        raise Stop

    def moment(self, where: str) -> None:
        """Time passes, and anything may happen to this process."""
        sim = self.sim
        if sim.chance(sim.weather.kill):
            sim.watch.did["kills"] += 1
            self.die("its host vanished" if sim.chance(0.3) else f"killed {where}")
            raise Stop
        if sim.chance(sim.weather.freeze):
            sim.watch.did["freezes"] += 1
            self.frozen_until = sim.loop.now + sim.between(0.5, 2 * LEASE_S)
            sim.say(f"{self.name} freezes {where} until {self.frozen_until:.3f}")
        sim.loop.sleep(sim.latency())

    def call(self, what: str, do: Callable[[], T]) -> T:
        """One round trip to the store. Raises Lost when the request or the answer got lost."""
        sim = self.sim
        self.moment(f"before {what}")
        if sim.chance(sim.weather.lost_request):
            sim.say(f"{self.name} {what}: the request is lost")
            raise Lost
        answer = do()
        sim.watch.look()
        self.moment(f"after {what}")
        if sim.chance(sim.weather.lost_reply):
            sim.watch.did["lost replies"] += 1
            sim.say(f"{self.name} {what}: the reply is lost")
            raise Lost
        return answer

    # The engine's ports.

    def beat(self) -> Beat:
        """`worker.engine.lease.Register`."""
        if not self.cut:
            self.moment("before beat")
        if self.cut or self.sim.chance(self.sim.weather.lost_request):
            raise Unreachable("renew lease: lost")
        return self._beat()

    def _beat(self) -> Beat:
        store, me = self.sim.store, self.process_id
        running = frozenset(job.id for job in store.jobs.values() if job.state == "running" and job.process == me)
        alive = store.beat(me, LEASE_S)
        return Beat(alive, store.stops(me), ("host", store.processes[me].host) in store.pauses, running)

    def reap(self) -> Mapping[str, int]:
        """`worker.engine.lease.Register`."""
        try:
            return self.call("reap", self._take_back) if self.sim.store.orphans() else {}
        except Lost as error:
            raise Unreachable("reap: lost") from error

    def resign(self) -> None:
        """`worker.engine.lease.Register`."""
        if self.cut:
            raise Unreachable("resign: lost")
        try:
            self.call("resign", lambda: self.sim.store.resign(self.process_id))
        except Lost as error:
            raise Unreachable("resign: lost") from error
        self.sim.watch.did["resignations"] += 1

    def close(self) -> None:
        """`worker.engine.lease.Register`."""
        self.sim.store.close(self.process_id)

    def claim(self, queues: Sequence[str], most: int, ids: Iterable[str] | None = None) -> list[Claimed]:
        """`worker.engine.intake.Claims`."""
        if self.sim.store.is_idle():
            self.sim.loop.sleep(self.sim.latency())  # an idle look, short because there are so many
            return []
        try:
            return self.call("claim", lambda: self._take(most, ids))
        except Lost as error:
            raise JournalLost("claim jobs: lost") from error

    def _take(self, most: int, ids: Iterable[str] | None) -> list[Claimed]:
        taken = self.sim.store.claim(self.process_id, most, ids, self._after)
        if taken and ids is None:
            self._after = taken[-1].org
        for job in taken:
            self.sim.say(f"{self.name} claims {job.id} with fence {job.fence} at {job.direction} {job.position}")
        store, watch = self.sim.store, self.sim.watch
        return [held(job, store.past(job), store.family(job), watch.claimed(job), store.now) for job in taken]

    def _take_back(self) -> Mapping[str, int]:
        back = self.sim.store.reap()
        for ident, by_lease in back:
            self.sim.say(f"{self.name} takes {ident} from the dead")
            self.sim.watch.taken_back(self.sim.store.jobs[ident], by_lease=by_lease)
        return Counter("lease" if by_lease else "session" for _, by_lease in back)

    def _run(self, job: Claimed) -> None:
        assert isinstance(job, Held)
        self.driven[job.id] += 1
        try:
            machine = self.sim.kinds[job.kind].machine
            after = drive(
                job, machine, Hands(self, job.number), self.sim.pen_of(self, job.number), self.lease, clock=self.sim.loop.clock
            )
        except JournalLost as error:
            self.leave_for(error)
        else:
            if after is not None:
                self.intake.expect(after)
        finally:
            self.driven[job.id] -= 1


class Hands:
    """What a step may reach: the simulation decides what it comes to."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    def act(self, passage: Passage) -> Result:
        """An effect that takes its time. A long one asks whether it should stop."""
        worker, sim = self._worker, self._worker.sim
        if sim.store.processes[worker.process_id].lease_until <= sim.loop.now:
            raise Broken(f"{passage.key} is begun by {worker.name}, whose lease has ended")
        sim.watch.begins(self._number, passage)
        answer = sim.answer(passage)
        sim.say(f"{worker.name} does {passage.key}: {spell(answer)}")
        worker.moment(f"in {passage.key}")
        sim.loop.sleep(sim.between(0.0, sim.weather.pace))
        return answer


def spell(answer: Result) -> str:
    """A result for the trace: the same in each replay."""
    match answer:
        case Done(facts=facts, rows=rows):
            return f"done {facts}{' and rows' if rows else ''}"
        case Spread(children=children, most=most):
            return f"spread over {len(children)}, {most} at once"
        case NotYet(what=what, after=after):
            return f"not yet, {what}, {after.total_seconds():.3f}"
        case _:
            return f"{type(answer).__name__} {answer}"


class Pen:
    """`worker.engine.drive.Journal`: one claim's writes, sent again once when the connection breaks, as the real one does."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    def apply(self, record: Record) -> Reply | None:
        """One decision."""
        for _ in range(2):
            try:
                return self._worker.call("apply", lambda: self._write(record))
            except Lost:
                continue
        raise JournalLost("apply decisions: lost")

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """One decision and rows of ours. After a lost answer what is written decides whether the rows are written again."""
        try:
            return self._worker.call("commit", lambda: self._commit(record, rows))
        except Lost:
            pass
        try:
            return self._worker.call("look again", lambda: self._written(record) or self._commit(record, rows))
        except Lost as error:
            raise JournalLost("apply decision: lost") from error

    def _write(self, record: Record, *, rows: bool = False) -> Reply | None:
        sim = self._worker.sim
        reply = sim.store.apply(record)
        sim.say(f"{self._worker.name} writes {record['job']} {record['name']} {record['status']} {record['next']}: {reply}")
        if reply is None:
            sim.watch.refused()
        else:
            sim.watch.wrote(self._number, record, rows=rows)
        return reply

    def _commit(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        more = rows(None) or {}
        reply = self._write({**record, "facts": {**(record.get("facts") or {}), **more}}, rows=True)
        return replace(reply, facts=more) if reply else None

    def _written(self, record: Record) -> Reply | None:
        job = self._worker.sim.store.jobs[record["job"]]
        row = job.steps.get((record["direction"], record["position"]))
        if row is None or row.status != "done" or row.fence != record["fence"]:
            return None
        return Reply(job.stop, job.args, row.facts, error=job.error if job.cancel else None)
