"""The model's rows, and who may claim what: fair turns, one job a subject, nothing that is paused, parked or of tomorrow."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.model.rows import LIVE, PASSED, REST, SUSPECT, Child, Job, Process, Subject
from worker.engine.kinds import Kind
from worker.engine.machine import Children

#: A claim looks so often, and from the second time on at so many jobs, as long as it finds only such as must stand aside.
_LOOKS = 6
_MANY = 100


class Claiming:
    """All rows. `now` moves only when somebody moves it."""

    def __init__(self, kinds: Mapping[str, Kind] | None = None, *, max_crashes: int = 5) -> None:
        self.kinds = kinds or {}
        self.now = 0.0
        self.server = 1  #: which one answers: another after each restart and each failover
        self.max_crashes = max_crashes
        self.jobs: dict[str, Job] = {}
        self.subjects: dict[str, Subject] = {}
        self.processes: dict[int, Process] = {}
        self.children: list[Child] = []
        self.placements: dict[str, str] = {}  #: what a subject's id is placed in: its organisation
        self.pauses: set[tuple[str, str]] = set()
        self.keys: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}  #: kind and key → job and the args asked for

    def claim(self, process: int, most: int, ids: Iterable[str] | None = None, after: str = "") -> list[Job]:
        """Up to `most` jobs whose time it is, their subjects held from now on. Turns begin behind organisation `after`."""
        me = self.processes[process]
        if me.lease_until <= self.now or ("host", me.host) in self.pauses:
            return []
        self._call()
        taken: list[Job] = []
        for look in range(_LOOKS):
            found = self._found(process, most if look == 0 else max(most, _MANY), ids, after)
            for job in found:
                job.paused = self.is_paused(job)
            ready = [job for job in found if not job.paused]
            if not found:
                break
            if not ready:
                continue
            got, moved = self._take(process, ready, most - len(taken))
            taken += got
            if len(taken) >= most or not moved or ids is not None:
                break
        return taken

    def ready(self, job: Job) -> bool:
        """Whether a claim may look at it."""
        return job.state in {"queued", "waiting"} and not job.parked and not job.paused and job.run_at <= self.now

    def is_idle(self) -> bool:
        """Whether a claim would find nobody and call nobody."""
        due = any(job.state in {"queued", "waiting"} and job.run_at <= self.now for job in self.jobs.values())
        return not due and all(child.told or child.state is None for child in self.children)

    def stops(self, process: int) -> frozenset[str]:
        """The running jobs of a process that must come to their boundary."""
        return frozenset(job.id for job in self._run_by(process) if job.stop)

    def live(self) -> list[Job]:
        """Jobs that have not ended."""
        return [job for job in self.jobs.values() if job.state in LIVE]

    def passed(self, job: Job, direction: str) -> set[int]:
        """Positions that are done or skipped."""
        return {at for (way, at), row in job.steps.items() if way == direction and row.status in PASSED}

    def is_paused(self, job: Job) -> bool:
        """Whether a pause holds it."""
        return any(what in {("all", ""), ("kind", job.kind.name), ("org", job.org)} for what in self.pauses)

    def family(self, job: Job) -> dict[int, Children]:
        """How the children of each of its steps stand."""
        mine = self._children(job.id)
        return {at: _counted([child for child in mine if child.position == at]) for at in {child.position for child in mine}}

    def _call(self) -> None:
        """Whoever waited for a subject that is free, or for children that have ended, may be claimed again."""
        for key, subject in self.subjects.items():
            parked = [job for job in self._on(key) if job.parked]
            if subject.holder is None and parked:
                min(parked, key=_turn).parked = False
        for parent in sorted({child.parent for child in self.children if child.state is not None and not child.told}):
            self._tell(parent)

    def _tell(self, parent: str) -> None:
        mine, job = self._children(parent), self.jobs[parent]
        for child in mine:
            child.told = child.told or child.state is not None
        to_do = any(child.unstarted for child in mine) or all(child.state is not None for child in mine)
        if job.state in {"waiting", "running"} and to_do:
            self._call_for(job, also_blocked=False)

    def _found(self, process: int, most: int, ids: Iterable[str] | None, after: str) -> list[Job]:
        jobs = self.jobs.values() if ids is None else [self.jobs[ident] for ident in ids if ident in self.jobs]
        busy = any(job.crashes >= SUSPECT for job in self._run_by(process))
        ready = [job for job in jobs if self.ready(job)]
        orgs = sorted({job.org for job in ready}, key=lambda org: (org <= after, org))
        share = -(-most // max(1, len(orgs)))
        turns = []
        for turn, org in enumerate(orgs[:most]):
            mine = sorted((job for job in ready if job.org == org and not (busy and job.crashes >= SUSPECT)), key=_turn)
            turns += [(rank, turn, job) for rank, job in enumerate(mine[:share])]
        inorder = [job for _, _, job in sorted(turns, key=lambda one: one[:2])]
        suspects = [job for job in inorder if job.crashes >= SUSPECT]
        return [job for job in inorder if job not in suspects[1:]][:most]

    def _take(self, process: int, found: Sequence[Job], most: int) -> tuple[list[Job], bool]:
        """Those taken, and whether anything became of the others, so that another look finds other jobs."""
        heads = {job.subject: head for job in found if (head := self._head(job.subject, found)) is not None}
        taken = [job for job in found if job is heads.get(job.subject) and self._holder(job.subject) in {None, job.id}][:most]
        for job in taken:
            self._hold(job, process)
        moved = bool(taken)
        # A subject whose first job is not among those found is left alone: that one is looked at before the others are.
        others = [job for job in found if job not in taken and job.subject in heads]
        for job in others:
            moved = self._end_holder_for(job) or moved
        for job in others:
            if job.state == "queued" and self._must_park(job):
                job.parked = moved = True
        return taken, moved

    def _head(self, subject: str, found: Sequence[Job]) -> Job | None:
        """Who holds it already; else the first of all that are queued and ready, if it is among those found."""
        for job in found:
            if job.subject == subject and job.state == "waiting":
                return job
        queued = [job for job in self._on(subject) if job.state == "queued" and self.ready(job)]
        first = min(queued, key=_turn, default=None)
        return first if first in found else None

    def _hold(self, job: Job, process: int) -> None:
        subject = self.subjects.setdefault(job.subject, Subject())
        subject.holder = job.id
        subject.fence += 1
        job.state, job.process, job.fence, job.woken, job.started = "running", process, subject.fence, False, True
        job.claims += 1
        why = job.error if job.direction == "back" or job.cancel else None
        job.error = (why.get("undoing") or why) if why else None

    def _end_holder_for(self, job: Job) -> bool:
        """A delete that finds its subject held by something else ends that, whenever that was enqueued."""
        holder = self._holder_of(job)
        if holder is None or holder.superseded_by or not job.kind.supersedes or holder.kind.name == job.kind.name:
            return False
        self._supersede(holder, job)
        return True

    def _must_park(self, job: Job) -> bool:
        holder = self._holder_of(job)
        return holder is not None and (bool(holder.superseded_by) or not job.kind.supersedes or holder.kind.name == job.kind.name)

    # What several verbs share.

    def _supersede(self, job: Job, by: Job) -> None:
        if job.state != "running":
            self._end(job, "cancelled", {"code": "superseded"})
        job.superseded_by = by.id

    def _end(self, job: Job, state: str, error: Mapping[str, Any] | None) -> None:
        job.state, job.error, job.process, job.finished = state, error, None, True
        job.parked = job.paused = False
        subject = self.subjects.get(job.subject)
        if subject and subject.holder == job.id:
            subject.holder = None
        for child in self.children:
            if child.job == job.id:
                child.state, child.told = state, False
            elif child.parent == job.id and child.unstarted:
                child.state, child.told = "cancelled", True

    def _call_for(self, job: Job, *, also_blocked: bool) -> None:
        job.woken = True
        if job.state == "blocked" and also_blocked:
            job.state = "waiting"
        if job.state == "waiting":
            job.run_at = self.now

    def _on(self, subject: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.subject == subject and job.state in LIVE]

    def _run_by(self, process: int) -> list[Job]:
        return [job for job in self.jobs.values() if job.process == process and job.state == "running"]

    def _children(self, parent: str) -> list[Child]:
        return [child for child in self.children if child.parent == parent]

    def _holder(self, subject: str) -> str | None:
        row = self.subjects.get(subject)
        return row.holder if row else None

    def _holder_of(self, job: Job) -> Job | None:
        """The other job that holds this one's subject."""
        holder = self._holder(job.subject)
        return self.jobs[holder] if holder is not None and holder != job.id else None


def _turn(job: Job) -> tuple[int, int]:
    return job.priority, job.number


def _counted(children: Sequence[Child]) -> Children:
    states = [child.state for child in children]
    return Children(len(states), states.count(None), *(states.count(state) for state in REST))
