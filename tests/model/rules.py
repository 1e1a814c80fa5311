"""What must hold of a store after every single move."""

from collections.abc import Iterable, Iterator

from tests.model.rows import LIVE, REST, Job
from tests.model.store import Store

#: Each state and where one move may take a job from it.
ALLOWED = {
    "queued": {"running", "cancelled"},
    "running": {"waiting", "blocked", "succeeded", "failed", "cancelled"},
    "waiting": {"running", "cancelled"},
    "blocked": {"waiting", "cancelled"},
    "failed": {"queued"},
    "succeeded": set(),
    "cancelled": set(),
}


def may_move(before: str, after: str) -> bool:
    """Whether one move may do that."""
    return before == after or after in ALLOWED[before]


def violations(store: Store, jobs: Iterable[Job]) -> list[str]:
    """The view `worker.violations`, in Python, over the jobs that may have changed: all that live, and who just ended."""
    wrong: list[str] = []
    holding: dict[str, str] = {}
    for job in jobs:
        if job.state in {"running", "waiting", "blocked"} and holding.setdefault(job.subject, job.id) != job.id:
            wrong.append(f"{job.id} and {holding[job.subject]} both hold {job.subject}")
        wrong += [f"{job.id}: {what}" for what in _wrong(store, job)]
    for key, subject in store.subjects.items():
        if subject.holder is not None and store.jobs[subject.holder].state in REST:
            wrong.append(f"{key} is held by {subject.holder}, which rests")
    for child in store.children:
        if child.job is not None and child.state is None and store.jobs[child.job].state in REST:
            wrong.append(f"{child.job} rests and counts as a live child of {child.parent}")
    return wrong


def _wrong(store: Store, job: Job) -> Iterator[str]:
    subject = store.subjects.get(job.subject)
    if job.state == "running" and job.process is None:
        yield "runs in no process"
    if job.state == "running" and (subject is None or subject.holder != job.id or subject.fence != job.fence):
        yield "runs and its fence is not the subject's"
    if job.state in REST and not job.finished:
        yield "rests without an end"
    if job.state in {"failed", "blocked"} and job.error is None:
        yield "failed or blocked without an error"
    passed = store.passed(job, "forward")
    if passed and passed != set(range(max(passed) + 1)):
        yield "a gap before a finished step"
    if job.state == "succeeded" and len(passed) != len(job.names):
        yield "succeeded before all steps were done"
    if job.parked and (job.state != "queued" or subject is None):
        yield "parked behind nobody"
    if job.paused and not store.is_paused(job):
        yield "paused without a pause"


def at_rest(store: Store, job: Job) -> bool:
    """Whether nothing will happen to it by itself: it ended or is blocked, or whom it waits for is."""
    if job.state not in LIVE or job.state == "blocked":
        return True
    if job.parked:
        holder = store.subjects[job.subject].holder
        return holder is not None and at_rest(store, store.jobs[holder])
    if job.state != "waiting":
        return False
    live = [store.jobs[child.job] for child in store.children if child.parent == job.id and child.job and child.state is None]
    return bool(live) and all(at_rest(store, child) for child in live)
