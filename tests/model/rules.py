"""What must hold of a store after every single move."""

from collections.abc import Iterable, Iterator

from tests.model.store import LIVE, REST, Job, Store

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
    done = {at for (direction, at), row in job.steps.items() if direction == "forward" and row.status in {"done", "skipped"}}
    if done and done != set(range(max(done) + 1)):
        yield "a gap before a finished step"
    if job.state == "succeeded" and len(done) != len(job.names):
        yield "succeeded before all steps were done"
    if job.state == "queued" and job.parked and (subject is None or subject.holder is None):
        others = [other for other in store.jobs.values() if other.subject == job.subject]
        if not any(other.state == "queued" and not other.parked for other in others):
            yield "parked behind nobody"


def at_rest(store: Store, job: Job) -> bool:
    """Whether nothing will happen to it by itself: it ended, it is blocked, or it is parked behind one that is."""
    if job.state not in LIVE or job.state == "blocked":
        return True
    subject = store.subjects.get(job.subject)
    holder = store.jobs[subject.holder] if subject and subject.holder else None
    return job.parked and holder is not None and holder.state == "blocked"
