"""The witness of a simulation: it keeps its own record of who holds what, and says at once when a promise is broken."""

from collections import Counter

from tests.model.rows import REST, Child, Job
from tests.model.rules import at_rest, may_move, violations
from tests.model.store import Store
from worker.engine.drive import Record
from worker.engine.machine import NOTHING, Direction, Passage

_Place = tuple[str, int, str, int]  #: job, its run (a retry from the first step begins a new one), direction, position


class Broken(BaseException):
    """A promise of the engine does not hold. No `except Exception` of the engine swallows it."""


class Watch:
    """Told of every claim, write, effect and loss. Claims have numbers of its own, so that it need not believe in fences."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.did: Counter[str] = Counter()
        self.wanted: set[str] = set()  #: jobs that somebody outside asked for, and that nobody there cancelled
        self.busy = 0  #: jobs that something will still happen to
        self._claims = 0
        self._holder: dict[str, int | None] = {}
        self._run: Counter[str] = Counter()
        self._done: dict[_Place, int] = {}
        self._rows: Counter[_Place] = Counter()
        self._reached: dict[tuple[str, int], int] = {}
        self._states: dict[str, str] = {}
        self._excused: set[str] = set()  #: a person retried or skipped: a family of theirs may be left alone
        self._cancelled: set[str] = set()  #: asked to end while they went forward
        self._told: dict[str, str | None] = {}  #: by subject, why its holder was told to stop, when it last heard from the store

    def claimed(self, job: Job) -> int:
        """A claim was answered with this job; the claim's number."""
        if self.store.is_paused(job):
            raise Broken(f"{job.id} is claimed while it is paused")
        self._claims += 1
        self.did["claims"] += 1
        self._holder[job.subject] = self._claims
        self._told[job.subject] = job.stop
        # A claim enters the first step that is neither done nor skipped; nobody can know whether its effect half happened.
        passed = self.store.passed(job, "forward")
        self._reach(job, next(at for at in range(job.position, len(job.names) + 1) if at not in passed))
        return self._claims

    def taken_back(self, job: Job, *, by_lease: bool) -> None:
        """The job was taken from a process that is dead or counts as dead."""
        self._holder[job.subject] = None
        self.did["takeovers by lease" if by_lease else "takeovers by session"] += 1

    def retried(self, job: Job, before: str, step: str | None = None) -> None:
        """A person retried it, from this step on."""
        if before == "failed":
            self._run[job.id] += 1
        if step is not None:
            self.did["retries from a step"] += 1
            run, to = self._run[job.id], list(job.names).index(step)
            for at in range(to, len(job.names)) if job.direction == "forward" else range(to + 1):
                self._done.pop((job.id, run, str(job.direction), at), None)
                del self._rows[job.id, run, str(job.direction), at]
        if job.direction == "forward":
            self._cancelled.discard(job.id)
        self._excused.add(job.id)

    def cancelled(self, job: Job) -> None:
        """Somebody asks it to end."""
        if job.direction == "forward" and job.state not in REST:
            self._cancelled.add(job.id)

    def skipped(self, job: Job, position: int) -> None:
        """A person skipped the step at which it stands."""
        self.did["skips"] += 1
        self._done[self._place(job, job.direction, position)] = self._claims
        self._excused.add(job.id)

    def begins(self, number: int, passage: Passage) -> None:
        """An effect is about to be made under that claim."""
        job = self.store.jobs[passage.id]
        position = list(job.names).index(passage.key.rpartition(":")[2])
        self.did["effects"] += 1
        mine = self._holder.get(job.subject) == number
        done = self._done.get(self._place(job, passage.direction, position))
        if done is not None and (done < number or mine):
            raise Broken(f"{passage.key} is done since claim {done} and is done again by claim {number}")
        if not mine:
            self.did["effects of a zombie"] += 1
            return
        if passage.direction is Direction.FORWARD:
            self._reach(job, position)
        else:
            self._backwards(job, position)
        told = self._told[job.subject]
        if told == "superseded" or (told and passage.direction is Direction.FORWARD and not job.kind.machine.only_forward):
            raise Broken(f"{passage.key} is begun by a job that was {told}")
        if passage.direction != job.direction:
            raise Broken(f"{passage.key}: the row says {job.direction}")
        stored = {row.name: row.facts for (way, _), row in job.steps.items() if way == "forward" and row.status == "done"}
        if {name: dict(facts) for name, facts in passage.facts.items() if facts} != {n: f for n, f in stored.items() if f}:
            raise Broken(f"{passage.key} was told {passage.facts}, stored is {stored}")

    def wrote(self, number: int, record: Record, *, rows: bool) -> None:
        """A decision of that claim was accepted."""
        job = self.store.jobs[record["job"]]
        if self._holder.get(job.subject) != number:
            raise Broken(f"{job.id}: claim {number} wrote {record['name']} and holds {job.subject} no more")
        place = self._place(job, record["direction"], record["position"])
        self.did["decisions"] += 1
        if record["status"] == "done":
            self._done.setdefault(place, number)
        if rows:
            self._rows[place] += 1
            if self._rows[place] > 1:
                raise Broken(f"{job.id}: the rows of {record['name']} were written twice")
        self._told[job.subject] = job.stop
        if record["next"] == "go" and record["to_direction"] == "forward":
            self._reach(job, record["to_position"])
        if record["next"] != "go":
            self._holder[job.subject] = None
        mine = [child for child in self.store.children if child.parent == job.id]
        for child in mine:
            self._is_within(child, mine)
        if job.state in REST:
            self._ended(job, mine)

    def refused(self) -> None:
        """A decision was not accepted."""
        self.did["stale writes refused"] += 1

    def look(self) -> None:
        """After every move: only allowed transitions, and no violation."""
        self.busy = 0
        changed = []
        for job in self.store.jobs.values():
            before, after = self._states.get(job.id, "queued"), job.state
            if before == after and after in REST:
                continue
            if not may_move(before, after):
                raise Broken(f"{job.id} went from {before} to {after}")
            self._states[job.id] = after
            if job.id in self.wanted and (job.cancel or (job.error or {}).get("code") == "cancelled"):
                raise Broken(f"{job.id} is cancelled, and nobody who asked for it said so")
            changed.append(job)
            self.busy += not at_rest(self.store, job)
        wrong = violations(self.store, changed)
        if wrong:
            raise Broken("; ".join(wrong))

    def _is_within(self, child: Child, family: list[Child]) -> None:
        live = [other.job for other in family if other.position == child.position and other.job and other.state is None]
        if len(live) > child.most and not self._excused & set(live):
            raise Broken(f"{child.parent} has {len(live)} children at once, {child.most} may live")

    def _ended(self, job: Job, family: list[Child]) -> None:
        self.did[str(job.state)] += 1
        left = [child.job for child in family if child.state is None]
        if left and not job.superseded_by and not self._excused & {job.id, *left}:
            raise Broken(f"{job.id} ended {job.state} before its children {left}")
        run = self._run[job.id]
        undone = {at for (ident, of, way, at) in self._done if (ident, of, way) == (job.id, run, "back")}
        if job.state == "succeeded":
            if undone or job.superseded_by:
                raise Broken(f"{job.id} succeeded and was undone or superseded")
            return
        if job.superseded_by:
            return
        if job.id in self._cancelled and (job.state != "cancelled" or (job.error or {}).get("code") != "cancelled"):
            raise Broken(f"{job.id} was asked to end, and ended {job.state} with {job.error}")
        if job.kind.machine.only_forward:
            raise Broken(f"{job.id} only goes forward and ended {job.state}")
        todo = self._undoable(job, 0) - undone
        if todo:
            raise Broken(f"{job.id} ended {job.state} and left {sorted(todo)}")

    def _backwards(self, job: Job, position: int) -> None:
        reached = self._reached[job.id, self._run[job.id]]
        if position > reached:
            raise Broken(f"{job.id}: step {position} is undone, only {reached} was reached")
        above = {at for at in self._undoable(job, position + 1) if self._place(job, "back", at) not in self._done}
        if above:
            raise Broken(f"{job.id}: step {position} is undone before {sorted(above)}")

    def _undoable(self, job: Job, least: int) -> set[int]:
        reached = self._reached.get((job.id, self._run[job.id]), -1)
        steps = job.kind.machine.steps
        return {at for at in range(least, reached + 1) if steps[at].undo is not NOTHING}

    def _reach(self, job: Job, position: int) -> None:
        if job.direction == "forward":
            key = (job.id, self._run[job.id])
            position = min(position, len(job.names) - 1)
            self._reached[key] = max(position, self._reached.get(key, -1))

    def _place(self, job: Job, direction: str, position: int) -> _Place:
        return job.id, self._run[job.id], str(direction), position
