"""The store of the engine in plain Python: what the contract and the design say, in dicts, with a clock that is only a number.

Written from the rules and not from the SQL, so that the two can disagree. Nothing here is concurrent: each method is what
one transaction of the real store does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.model.claims import Claiming
from tests.model.rows import LIVE, PASSED, REST, Child, Job, Process, Refusal, StepRow
from worker.engine.drive import Record
from worker.engine.kinds import Kind
from worker.engine.walk import Reply


class Store(Claiming):
    """All rows and every verb. `now` moves only when somebody moves it."""

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
        full = {**dict.fromkeys(kind.widens, False), **args}
        known = self.keys.get((kind.name, key)) if key is not None else None
        if known is not None:
            job, asked = self.jobs[known[0]], known[1]
            had = job.args if job.key == key else asked
            if any(full[name] != had[name] and (name not in kind.widens or full[name]) for name in full):
                raise Refusal("MW002")
            return job.id, False
        subject = kind.subject_prefix + str(args[kind.subject_arg])
        for job in self._on(subject):
            if job.kind.name == kind.name:
                self._join(job, full)
                self._remember(job, key, full)
                return job.id, False
        number = len(self.jobs) + 1
        org = self.placements.get(str(args[kind.subject_arg]), "")
        at = self.now if run_at is None else run_at
        job = Job(ident or f"j{number}", number, kind, subject, org, kind.machine.names, full, key, priority, at)
        self.jobs[job.id] = job
        self._remember(job, key, full)
        if kind.supersedes:
            for other in self._on(subject):
                if other is not job:
                    self._supersede(other, job)
        return job.id, True

    def _remember(self, job: Job, key: str | None, args: Mapping[str, Any]) -> None:
        if key is not None:
            self.keys[job.kind.name, key] = (job.id, args)

    def _join(self, live: Job, args: Mapping[str, Any]) -> None:
        """The same kind is live on that subject: it may be widened, and nothing else may differ."""
        widens = live.kind.widens
        if any(live.args[name] != args[name] for name in args if name not in widens):
            raise Refusal("MW001")
        wide = {**live.args, **{name: live.args[name] or args[name] for name in widens}}
        if wide != live.args:
            live.args = wide
            self._call_for(live, also_blocked=True)

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
        if job.direction == "forward":
            job.error = {"code": "cancelled"}
        self._call_for(job, also_blocked=True)
        return True

    def retry(self, ident: str, from_step: str | None = None) -> None:
        """A failed job from its first step, a blocked or waiting one from its own, or from one that it has passed."""
        job = self.jobs[ident]
        if job.state not in {"failed", "blocked", "waiting"} or (job.state == "failed" and from_step is not None):
            raise Refusal("MW004")
        if job.state == "failed":
            if any(other.kind.name == job.kind.name for other in self._on(job.subject)):
                raise Refusal("MW001")
            job.steps.clear()
            self.children = [child for child in self.children if child.parent != ident]
            for child in self.children:
                if child.job == ident:
                    child.state, child.told = None, False
            job.state, job.direction, job.position, job.finished, job.superseded_by = "queued", "forward", 0, False, None
            job.started = False
        else:
            if from_step is not None:
                self._step_back(job, from_step)
            job.steps = {at: row for at, row in job.steps.items() if row.status != "waiting"}
            job.state = "waiting"
        if job.direction == "forward":
            job.cancel = False
        self._anew(job)

    def _step_back(self, job: Job, step: str) -> None:
        """It stands there again: what it wrote of the steps from there on is forgotten, and those may spread anew."""
        to = job.names.index(step) if step in job.names else -1
        if to != self.stands_at(job) and to not in self.passed(job, job.direction):
            raise Refusal("MW004")
        forward = job.direction == "forward"
        if to != self.stands_at(job) and forward and not job.kind.machine.only_forward:
            raise Refusal("MW004")
        job.steps = {
            (way, at): row for (way, at), row in job.steps.items() if way != job.direction or (at < to if forward else at > to)
        }
        job.position = to
        if forward:
            ended = self._ended_families(job.id)
            self.children = [one for one in self.children if one.parent != job.id or one.position < to or one.position not in ended]

    def _ended_families(self, parent: str) -> set[int]:
        """Positions at which none of its children is open."""
        mine = self._children(parent)
        return {child.position for child in mine} - {child.position for child in mine if child.state is None}

    def skip(self, ident: str, step: str) -> None:
        """The step at which a job stands counts as done: an undo always, on the way forward where its kind allows it."""
        job = self.jobs[ident]
        position = self.stands_at(job)
        if job.state not in {"blocked", "waiting"} or job.names[position] != step:
            raise Refusal("MW005")
        if job.direction == "forward" and step not in job.kind.skippable:
            raise Refusal("MW005")
        at = (job.direction, position)
        if at in job.steps and job.steps[at].status in PASSED:
            raise Refusal("MW005")
        if at in job.steps:
            job.steps[at].status = "skipped"
        else:
            job.steps[at] = StepRow(step, "skipped", job.attempt, job.fence or 0, {}, self.now)
        job.state = "waiting"
        self._anew(job)

    def stands_at(self, job: Job) -> int:
        """Beyond every step that is done or skipped, the last of the way when all are."""
        passed = self.passed(job, job.direction)
        if job.direction == "forward":
            return min(max({job.position} | {at + 1 for at in passed}), len(job.names) - 1)
        return max(min({job.position} | {at - 1 for at in passed}), 0)

    def _anew(self, job: Job) -> None:
        """A person has seen to it: it goes on at once, and an undo still says why it undoes."""
        why = job.error if job.direction == "back" or job.cancel else None
        job.error = (why.get("undoing") or why) if why else None
        job.attempt, job.crashes, job.run_at = 0, 0, self.now

    def pause(self, scope: str, what: str) -> bool:
        """Nothing of that kind, organisation, host, or at all is claimed any more. Whether that is new."""
        new = (scope, what) not in self.pauses
        self.pauses.add((scope, what))
        return new

    def resume(self, scope: str, what: str) -> int | None:
        """How many jobs are free again, None where there was no such pause."""
        if (scope, what) not in self.pauses:
            return None
        self.pauses.discard((scope, what))
        freed = [job for job in self.jobs.values() if job.paused and not self.is_paused(job)]
        for job in freed:
            job.paused = False
        return len(freed)

    def wake(self, subject: str) -> None:
        """Something happened outside: whoever waits here looks again, and whoever runs here does not wait next time."""
        for job in self._on(subject):
            if job.state in {"waiting", "running"}:
                self._call_for(job, also_blocked=False)

    # What processes ask for, besides claims.

    def register(self, lease_s: float, host: str = "", ident: int | None = None) -> int:
        """A new identity, never used before."""
        number = ident or len(self.processes) + 1
        self.processes[number] = Process(number, host, self.server, self.now + lease_s)
        return number

    def beat(self, process: int, lease_s: float) -> bool:
        """Renew a lease that has not ended; whether it had not."""
        me = self.processes[process]
        alive = me.lease_until > self.now
        if alive:
            me.lease_until = self.now + lease_s
        return alive

    def resign(self, process: int) -> None:
        """A process says that it leaves in doubt of what it holds; too late once its lease is over."""
        me = self.processes[process]
        me.in_doubt = me.in_doubt or me.lease_until > self.now

    def close(self, process: int) -> None:
        """A process leaves in good order."""
        self.processes[process].lease_until = self.now
        self.processes[process].locked = False

    def apply(self, record: Record) -> Reply | None:
        """Write one decision of whoever holds the subject; None for anybody else."""
        return self.apply_all([record])[0]

    def apply_all(self, records: Sequence[Record]) -> list[Reply | None]:
        """Several decisions in one transaction: first what becomes of each job, then of their children."""
        held = [(record, self.jobs[record["job"]]) for record in records]
        mine = [job.state == "running" and job.fence == record["fence"] for record, job in held]
        replies: list[Reply | None] = []
        for (record, job), is_mine in zip(held, mine, strict=True):
            if is_mine:
                self._note(job, record)
            why = job.error if job.cancel else None
            replies.append(Reply(job.stop, job.args, again=self._move(job, record), error=why) if is_mine else None)
        for (record, job), is_mine in zip(held, mine, strict=True):
            if is_mine:
                self._family(job, record)
        return replies

    def _note(self, job: Job, record: Record) -> None:
        if record["status"] is None:
            return
        at = (record["direction"], record["position"])
        entered = job.steps[at].entered if at in job.steps else self.now - record["took_ms"] / 1000
        facts = record.get("facts") or {}
        job.steps[at] = StepRow(record["name"], record["status"], record["attempt"], record["fence"], facts, entered)

    def _move(self, job: Job, record: Record) -> bool:
        """Answers whether another claim had better come at once."""
        following = record["next"]
        if following == "go" and record["to_direction"] == job.direction:
            return False  # the row of a running job lies behind; its steps tell how far it is
        job.direction, job.position, job.attempt = record["to_direction"], record["to_position"], record["to_attempt"]
        breaks_off = job.cancel and record["direction"] == "forward"  # whatever its step made of it
        if record.get("rest") == "succeeded":
            job.error = record["job_error"]
        elif not breaks_off or (following == "block" and not job.woken):
            job.error = record["job_error"] or job.error
        job.crashes = 0
        called, job.woken = job.woken or bool(job.superseded_by), False
        if following == "go":
            return False
        job.process = None
        if following == "rest":
            superseded = bool(job.superseded_by)
            cancelled = superseded or (breaks_off and record["rest"] == "failed")
            self._end(job, "cancelled" if cancelled else record["rest"], {"code": "superseded"} if superseded else job.error)
            return self._awaited(job)
        if following == "block" and not called:
            job.state = "blocked"
            return False
        job.state = "waiting"
        job.run_at = self.now if called else self.now + record["after_ms"] / 1000
        return following == "wait" and job.run_at <= self.now

    def _awaited(self, job: Job) -> bool:
        return any(other.parked for other in self._on(job.subject)) or any(child.job == job.id for child in self.children)

    def _family(self, job: Job, record: Record) -> None:
        """The step's children, in the same transaction: written once, started within their window, or dropped."""
        position, mine = record["position"], self._children(job.id)
        if record.get("spread") and not any(child.position == position for child in mine):
            new = [Child(job.id, position, one["kind"], one["args"], record["most"]) for one in record["spread"]]
            self.children += new
            mine += new
        here = [child for child in mine if child.position == position]
        if record.get("family") == "start":
            self._start_children(job, here)
        elif record.get("family") == "drop":
            self._drop_children(here)

    def _start_children(self, parent: Job, children: list[Child]) -> None:
        live = sum(child.state is None and child.job is not None for child in children)
        waiting = [child for child in children if child.unstarted]
        for child in waiting[: max(0, children[0].most - live)] if children else []:
            child.job, child.made = self.enqueue(self.kinds[child.kind], child.args, priority=parent.priority)

    def _drop_children(self, children: list[Child]) -> None:
        for child in children:
            if child.unstarted:
                child.state = "cancelled"
            elif child.state is None and child.job is not None:
                job = self.jobs[child.job]
                if not child.made or self._has_other_parent(child):
                    child.state, child.job = "cancelled", None
                elif not (job.kind.machine.only_forward and job.started):
                    self.cancel(job.id)

    def _has_other_parent(self, child: Child) -> bool:
        """Whether another live job waits for it as well."""
        others = [other for other in self.children if other.job == child.job and other.parent != child.parent]
        return any(other.state is None and self.jobs[other.parent].state in LIVE for other in others)

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
        """On another server than the one where it entered no session is left, which then means nothing."""
        assert job.process is not None
        process = self.processes[job.process]
        return process.server == self.server and not process.locked

    def blameless(self, job: Job) -> bool:
        """Whether its process left in doubt or lost its server, so that no step is to blame."""
        assert job.process is not None
        process = self.processes[job.process]
        return process.in_doubt or process.server != self.server

    def _take_back(self, job: Job) -> None:
        blameless = self.blameless(job)
        if any(row.fence == job.fence for row in job.steps.values()):
            job.crashes = 0
        job.crashes += not blameless
        subject = self.subjects[job.subject]
        subject.fence += 1
        job.fence, job.process = subject.fence, None
        job.run_at = self.now if blameless else self.now + min(job.crashes - 1, 6)
        job.state = "waiting"
        if not blameless and job.crashes >= self.max_crashes and not job.woken and not job.superseded_by:
            why = {"undoing": job.error} if job.direction == "back" else {}
            job.state, job.error = "blocked", {"code": "crash_loop", **why}

    def past(self, job: Job) -> Mapping[tuple[str, int], StepRow]:
        """What a claim answers of earlier ones."""
        return job.steps
