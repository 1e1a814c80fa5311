"""The store of the engine in plain Python: what the contract and the design say, in dicts, with a clock that is only a number.

Written from the rules and not from the SQL, so that the two can disagree. Nothing here is concurrent: each method is what
one transaction of the real store does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.engine.drive import Record, Reply
from worker.engine.kinds import Kind

LIVE = ("queued", "running", "waiting", "blocked")
REST = ("succeeded", "failed", "cancelled")
#: A step that has seen this many processes die is a suspect: no process holds two of them.
SUSPECT = 3


class Refusal(Exception):  # noqa: N818  because the product calls it so
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
    """A start of a worker process. `locked`: its session still holds its lock."""

    id: int
    started: float
    lease_until: float
    locked: bool = True


class Store:
    """All rows. `now` moves only when somebody moves it."""

    def __init__(self, *, max_crashes: int = 5) -> None:
        self.now = 0.0
        self.restarted = -1.0
        self.max_crashes = max_crashes
        self.jobs: dict[str, Job] = {}
        self.subjects: dict[str, Subject] = {}
        self.processes: dict[int, Process] = {}

    # What people and programs ask for.

    def enqueue(
        self,
        kind: Kind,
        args: Mapping[str, Any],
        *,
        key: str | None = None,
        run_at: float | None = None,
        priority: int = 100,
        ident: str | None = None,
    ) -> tuple[str, bool]:
        """(job, whether it is new). `ident` is the id that a new one gets."""
        full = {**{name: False for name in kind.widens}, **args}
        subject = kind.subject_prefix + str(args[kind.subject_arg])
        for job in self.jobs.values():
            if key is not None and (job.kind.name, job.key) == (kind.name, key):
                if job.args != full:
                    raise Refusal("MW002")
                return job.id, False
        for job in self._on(subject):
            if job.kind.name == kind.name:
                self._join(job, full)
                return job.id, False
        number = len(self.jobs) + 1
        at = self.now if run_at is None else run_at
        job = Job(ident or f"j{number}", number, kind, subject, kind.machine.names, full, key, priority, at)
        self.jobs[job.id] = job
        if kind.supersedes:
            for other in self._on(subject):
                if other is not job:
                    self._supersede(other, job)
        return job.id, True

    def _join(self, live: Job, args: Mapping[str, Any]) -> None:
        """The same kind is live on that subject: it may be widened, and nothing else may differ."""
        widens = live.kind.widens
        if any(live.args[name] != args[name] for name in args if name not in widens):
            raise Refusal("MW001")
        wide = {**live.args, **{name: live.args[name] or args[name] for name in widens}}
        if wide != live.args:
            live.args = wide
            self._call(live, also_blocked=True)

    def cancel(self, ident: str) -> bool:
        """Ask a job to undo and end; whether there was anything to ask."""
        job = self.jobs[ident]
        if job.state in REST:
            return False
        if job.kind.machine.only_forward and job.started:
            raise Refusal("MW003")
        if not job.started:
            self._end(job, "cancelled", {"code": "cancelled"})
            return True
        job.cancel = True
        job.error = {"code": "cancelled"}
        self._call(job, also_blocked=True)
        return True

    def retry(self, ident: str) -> None:
        """A failed job from its first step, a blocked or waiting one from its own."""
        job = self.jobs[ident]
        if job.state not in {"failed", "blocked", "waiting"}:
            raise Refusal("MW004")
        if job.state == "failed":
            if any(other.kind.name == job.kind.name for other in self._on(job.subject)):
                raise Refusal("MW001")
            job.steps.clear()
            job.state, job.direction, job.position, job.finished = "queued", "forward", 0, False
        else:
            job.steps = {at: row for at, row in job.steps.items() if row.status != "waiting"}
            job.state = "waiting"
        if job.direction == "forward":
            job.cancel, job.error = False, None
        job.attempt, job.crashes, job.run_at = 0, 0, self.now

    def wake(self, subject: str) -> None:
        """Something happened outside: whoever waits here looks again, and whoever runs here does not wait next time."""
        for job in self._on(subject):
            if job.state in {"waiting", "running"}:
                self._call(job, also_blocked=False)

    def _call(self, job: Job, *, also_blocked: bool) -> None:
        job.woken = True
        if job.state == "blocked" and also_blocked:
            job.state = "waiting"
        if job.state == "waiting":
            job.run_at = self.now

    # What processes ask for.

    def register(self, lease_s: float) -> int:
        """A new identity, never used before."""
        number = len(self.processes) + 1
        self.processes[number] = Process(number, self.now, self.now + lease_s)
        return number

    def beat(self, process: int, lease_s: float) -> tuple[bool, frozenset[str]]:
        """Renew a lease that has not ended. Also the running jobs of this process that must stop."""
        me = self.processes[process]
        alive = me.lease_until > self.now
        if alive:
            me.lease_until = self.now + lease_s
        return alive, frozenset(job.id for job in self._run_by(process) if job.stop)

    def close(self, process: int) -> None:
        """A process leaves in good order."""
        self.processes[process].lease_until = self.now
        self.processes[process].locked = False

    def claim(self, process: int, most: int, ids: Iterable[str] | None = None) -> list[Job]:
        """Up to `most` jobs whose time it is, their subjects held from now on."""
        found = self._found(process, most, ids)
        taken = []
        for subject in dict.fromkeys(job.subject for job in found):
            head = self._head([job for job in found if job.subject == subject])
            if self._overtakes(head):
                continue
            row = self.subjects.setdefault(subject, Subject())
            if row.holder in {None, head.id}:
                self._take(head, row, process)
                taken.append(head)
        for job in found:
            self._end_holder_for(job)
        for job in found:
            if job not in taken and job.state == "queued" and self._must_park(job):
                job.parked = True
        return sorted(taken, key=_turn)

    def _found(self, process: int, most: int, ids: Iterable[str] | None) -> list[Job]:
        jobs = self.jobs.values() if ids is None else [self.jobs[ident] for ident in ids if ident in self.jobs]
        busy = any(job.crashes >= SUSPECT for job in self._run_by(process))
        ready = [job for job in jobs if self.ready(job) and not (busy and job.crashes >= SUSPECT)]
        ready = sorted(ready, key=_turn)[:most]
        suspects = [job for job in ready if job.crashes >= SUSPECT]
        return [job for job in ready if job.crashes < SUSPECT] + suspects[:1]

    def ready(self, job: Job) -> bool:
        """Whether a claim may look at it."""
        return job.state in {"queued", "waiting"} and not job.parked and job.run_at <= self.now

    def _head(self, jobs: Sequence[Job]) -> Job:
        """Who holds the subject already, then by priority, then by age."""
        return min(jobs, key=lambda job: (job.state != "waiting", job.priority, job.number))

    def _overtakes(self, job: Job) -> bool:
        """Whether an older one of its subject is ready, too, and only did not fit into this claim."""
        older = [other for other in self._on(job.subject) if other.state == "queued" and self.ready(other)]
        return job.state == "queued" and any((other.priority, other.number) < (job.priority, job.number) for other in older)

    def _take(self, job: Job, subject: Subject, process: int) -> None:
        subject.holder = job.id
        subject.fence += 1
        job.state, job.process, job.fence, job.woken, job.started = "running", process, subject.fence, False, True
        job.claims += 1
        if job.direction == "forward" and not job.cancel:
            job.error = None

    def _end_holder_for(self, job: Job) -> None:
        """A delete that finds its subject held by something else ends that, whenever that was enqueued."""
        holder = self._holder(job.subject)
        if job.kind.supersedes and holder and holder.kind.name != job.kind.name and not holder.superseded_by:
            self._supersede(holder, job)

    def _must_park(self, job: Job) -> bool:
        holder = self._holder(job.subject)
        if holder is None or holder is job:
            return False
        return bool(holder.superseded_by) or not (job.kind.supersedes and holder.kind.name != job.kind.name)

    def apply(self, record: Record) -> Reply | None:
        """Write one decision of whoever holds the subject; None for anybody else."""
        job = self.jobs[record["job"]]
        if job.state != "running" or job.fence != record["fence"]:
            return None
        self._note(job, record)
        return Reply(job.stop, job.args, again=self._move(job, record))

    def _note(self, job: Job, record: Record) -> None:
        if record["status"] is None:
            return
        at = (record["direction"], record["position"])
        entered = job.steps[at].entered if at in job.steps else self.now - record["took_ms"] / 1000
        facts = record.get("facts") or {}
        job.steps[at] = StepRow(record["name"], record["status"], record["attempt"], record["fence"], facts, entered)

    def _move(self, job: Job, record: Record) -> bool:
        """Answers whether it waits and is due already."""
        following = record["next"]
        if following == "go" and record["to_direction"] == job.direction:
            return False  # the row of a running job lies behind; its steps tell how far it is
        job.direction, job.position, job.attempt = record["to_direction"], record["to_position"], record["to_attempt"]
        job.error = record["job_error"] if record.get("rest") == "succeeded" else record["job_error"] or job.error
        job.crashes = 0
        called, job.woken = job.woken or bool(job.superseded_by), False
        if following == "go":
            return False
        job.process = None
        if following == "rest":
            superseded = bool(job.superseded_by)
            self._end(job, "cancelled" if superseded else record["rest"], {"code": "superseded"} if superseded else job.error)
            return False
        if following == "block" and not called:
            job.state = "blocked"
            return False
        job.state = "waiting"
        job.run_at = self.now if called else self.now + record["after_ms"] / 1000
        return following == "wait" and job.run_at <= self.now

    def reap(self) -> list[tuple[str, bool]]:
        """Take work back from the dead: (job, whether the lease had ended)."""
        back = []
        for job in self.orphans():
            back.append((job.id, self._lease_over(job)))
            self._take_back(job)
        return back

    def orphans(self) -> list[Job]:
        """Running jobs whose process is dead: its lease ended, or its session is gone."""
        return [job for job in self.jobs.values() if job.state == "running" and (self._lease_over(job) or self._session_gone(job))]

    def _lease_over(self, job: Job) -> bool:
        return job.process is None or self.processes[job.process].lease_until < self.now

    def _session_gone(self, job: Job) -> bool:
        """After a restart of the server no session is left, which then means nothing."""
        assert job.process is not None
        process = self.processes[job.process]
        return process.started > self.restarted and not process.locked

    def _take_back(self, job: Job) -> None:
        wrote = any(row.fence == job.fence for row in job.steps.values())
        job.crashes = 1 if wrote else job.crashes + 1
        subject = self.subjects[job.subject]
        subject.fence += 1
        job.fence, job.process = subject.fence, None
        job.run_at = self.now + min(job.crashes - 1, 6)
        job.state = "waiting"
        if job.crashes >= self.max_crashes and not job.woken and not job.superseded_by:
            job.state, job.error = "blocked", {"code": "crash_loop"}

    def past(self, job: Job) -> Mapping[tuple[str, int], StepRow]:
        """What a claim answers of earlier ones."""
        return job.steps

    # What several of them share.

    def _supersede(self, job: Job, by: Job) -> None:
        if job.state == "running":
            job.superseded_by = by.id
        else:
            self._end(job, "cancelled", {"code": "superseded"})
            job.superseded_by = by.id

    def _end(self, job: Job, state: str, error: Mapping[str, Any] | None) -> None:
        job.state, job.error, job.process, job.parked, job.finished = state, error, None, False, True
        subject = self.subjects.get(job.subject)
        if subject and subject.holder == job.id:
            subject.holder = None
        self._next(job.subject)

    def _next(self, subject: str) -> None:
        """The first of those parked here may be claimed again."""
        parked = [job for job in self._on(subject) if job.parked]
        if parked:
            self._head(parked).parked = False

    def _on(self, subject: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.subject == subject and job.state in LIVE]

    def _run_by(self, process: int) -> list[Job]:
        return [job for job in self.jobs.values() if job.process == process and job.state == "running"]

    def _holder(self, subject: str) -> Job | None:
        row = self.subjects.get(subject)
        return self.jobs[row.holder] if row and row.holder else None


def _turn(job: Job) -> tuple[int, float, int]:
    return job.priority, job.run_at, job.number
