"""Why a job is not running now, in sentences. Pure: what is true is read elsewhere, in one look.

Several things may stand in a job's way at once, and all of them are said: whoever mends one must not find the next an hour later.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.engine import serving

_REST: Final = frozenset({"succeeded", "failed", "cancelled"})
#: Crashes of one step before its job is taken for a suspect, and before it is blocked.
_SUSPECT: Final = 3
_COMMAND: Final = "molecule-worker"


@dataclass(frozen=True, slots=True)
class Other:
    """Another job that has to do with it."""

    id: str
    kind: str
    state: str
    step: str | None


@dataclass(frozen=True, slots=True)
class Pause:
    """What an operator does not want claimed."""

    scope: str  #: kind | org | host | all
    what: str
    reason: str | None
    requested_by: str | None
    at: datetime

    def __str__(self) -> str:
        """`kind toy.make by ada since …: the reason`."""
        who = f" by {self.requested_by}" if self.requested_by else ""
        return f"{self.target}{who} since {_moment(self.at)}{f', because {self.reason}' if self.reason else ''}"

    @property
    def target(self) -> str:
        """The words that a command takes."""
        return f"{'node' if self.scope == 'host' else self.scope} {self.what}".strip()

    @property
    def end(self) -> str:
        """The command that ends it."""
        return f"{_COMMAND} undrain {self.what}" if self.scope == "host" else f"{_COMMAND} jobs resume {self.target}"


@dataclass(frozen=True, slots=True)
class Crew:
    """How many processes live; of those how many serve its queue, of those know its steps, of those are on no drained host."""

    alive: int
    serving: int
    able: int
    free: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything that decides whether a job runs now."""

    id: str
    kind: str
    subject: str
    state: str
    direction: str
    org: str
    queue: str
    step: str | None
    number: int  #: of the step, from 1
    of: int
    run_at: datetime
    due_in_s: float
    due: bool
    attempt: int
    crashes: int
    parked: bool
    paused: bool
    cancelling: bool
    waiting_for: str | None
    error: Mapping[str, Any] | None
    finished_at: datetime | None
    since: datetime | None
    fault: Mapping[str, Any] | None  #: of the last attempt of the step at which it waits
    skippable: bool
    passed_undone: str | None  #: the first step that was skipped, where a retry from there does it after all
    superseded_by: Other | None
    holder: Other | None
    first: Other | None  #: an older job of the same subject that is about to be claimed
    process: tuple[str, str, bool] | None  #: name, host, whether it lives
    crew: Crew
    pauses: Sequence[Pause]
    before: int  #: jobs of its organisation that come first, at most a thousand
    children: tuple[int, int]  #: live, not started yet


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that stands in the way; `code` is for programs, `waits_for` completes "waits for …"."""

    code: str
    sentence: str
    hint: str = ""
    waits_for: str | None = None


def reasons(job: Standing) -> list[Reason]:
    """All of them, what must happen first at the top; never empty."""
    if job.state in _REST:
        return [_at_rest(job)]
    if job.state == "blocked":
        return [_blocked(job), *_stopping(job)]
    if job.state == "running":
        return [*_running(job), *_stopping(job)]
    found = [*_early(job), *_held(job), *_paused(job), *_unserved(job)]
    return [*(found or [_ready(job)]), *_stopping(job), *_suspect(job)]


def waits_for(job: Standing) -> str | None:
    """What a queued or waiting job waits for, as a noun. None when it simply will be run, or waits for what its step said."""
    if job.state not in {"queued", "waiting"}:
        return None
    return next((reason.waits_for for reason in reasons(job) if reason.waits_for), None)


def _at_rest(job: Standing) -> Reason:
    when = _moment(job.finished_at) if job.finished_at else "some time ago"
    if job.superseded_by is not None:
        other = job.superseded_by
        hint = f"{_COMMAND} jobs explain {other.id}"
        return Reason("at_rest", f"it is at rest: {job.state} {when}, because {_named(other)} took over", hint)
    why = f": {job.error['message']}" if job.error and job.state != "succeeded" else ""
    hint = f"{_COMMAND} jobs retry {job.id}" if job.state == "failed" else ""
    return Reason("at_rest", f"it is at rest: {job.state} {when}{why}", hint)


def _blocked(job: Standing) -> Reason:
    error = job.error or {}
    said = f"it is blocked at {_where(job)}: {error.get('message') or job.waiting_for or 'no reason is stored'}"
    hints = [str(error.get("hint") or ""), f"then {_COMMAND} jobs retry {job.id}"]
    if job.skippable:
        hints.append(f"or {_COMMAND} jobs skip {job.id} --step {job.step} --reason …")
    if job.passed_undone:
        hints.append(_from(job))
    return Reason("blocked", said, "; ".join(hint for hint in hints if hint))


def _running(job: Standing) -> Iterator[Reason]:
    since = f" since {_moment(job.since)}" if job.since else ""
    name, host, alive = job.process or ("a process that is gone", "", False)
    if not alive:
        looks = "" if job.crew.alive else f"{_COMMAND} run"
        yield Reason("lost_process", f"{name} held it at {_where(job)} and lives no more: whoever looks next takes it over", looks)
        return
    yield Reason("running", f"it runs: {_where(job)}{since}, on {name}")
    for pause in job.pauses:
        if pause.scope == "host" and pause.what == host:
            yield Reason("drained", f"its node is drained, so it is given back at its next boundary: {pause}", pause.end)


def _stopping(job: Standing) -> Iterator[Reason]:
    if job.superseded_by is not None:
        yield Reason("superseded", f"{_named(job.superseded_by)} takes over at its next boundary")
    elif job.cancelling:
        ends = "it undoes what it did and ends cancelled"
        yield Reason(
            "cancelling", f"a cancel was asked for: {ends}" + (" from its next boundary on" if job.state == "running" else "")
        )


def _early(job: Standing) -> Iterator[Reason]:
    later = not job.due and job.due_in_s > 0
    at = f"at {_moment(job.run_at)}"
    if job.state == "queued":
        if later:
            yield Reason("not_due", f"it is not due: it may start {at}", waits_for=f"its time, {_moment(job.run_at)}")
        return
    live, unstarted = job.children
    if live or unstarted:
        behind = f", and {unstarted} not started yet" if unstarted else ""
        hint = f"{_COMMAND} jobs list --state blocked"
        yield Reason("children", f"it waits for {live} live jobs that {_where(job)} spread over{behind}", hint)
    elif job.fault and job.attempt > 0:
        tries = f"attempt {job.attempt} of {_where(job)} failed: {job.fault.get('message')}"
        yield Reason(
            "backs_off",
            f"{tries}; it is tried again {at if later else 'now'}",
            f"{_COMMAND} jobs retry {job.id} tries it at once" + (f"; {_from(job)}" if job.passed_undone else ""),
        )
    elif job.waiting_for and later:
        yield Reason("waits", f"{_where(job)} waits for {job.waiting_for}; it looks again {at}, or as soon as it is called")
    elif later:
        yield Reason("not_due", f"it goes on with {_where(job)} {at}")


def _held(job: Standing) -> Iterator[Reason]:
    hint = "{command} jobs explain {id}"
    if job.holder is not None:
        held = f"its subject {job.subject} is held by {_named(job.holder)}, {job.holder.state} at {job.holder.step}"
        ends = f"{job.holder.kind} {job.holder.id} on the same subject to end"
        yield Reason("held", held, hint.format(command=_COMMAND, id=job.holder.id), waits_for=ends)
    elif job.first is not None:
        ends = f"{job.first.kind} {job.first.id} on the same subject to end"
        said = f"{_named(job.first)} on its subject {job.subject} comes first"
        yield Reason("behind", said, hint.format(command=_COMMAND, id=job.first.id), waits_for=ends)
    elif job.parked:
        said = f"it was parked behind another job of {job.subject} that has ended: the next claim calls it"
        yield Reason("parked", said, f"if it stays so: {_COMMAND} sweep mend")


def _paused(job: Standing) -> Iterator[Reason]:
    holding = [pause for pause in job.pauses if pause.scope != "host"]
    for pause in holding:
        yield Reason("paused", f"it is paused: {pause}", pause.end, waits_for=f"the pause of {pause.target} to end")
    if job.paused and not holding:
        yield Reason("paused", "it is marked as paused though no pause holds", f"{_COMMAND} sweep mend", waits_for="a pause to end")


def _unserved(job: Standing) -> Iterator[Reason]:
    crew = job.crew
    if not crew.serving:
        alive = f"{crew.alive} live processes serve other queues" if crew.alive else "no process is alive"
        wanted = f"a worker that serves the queue {job.queue}"
        hint = serving.RUN if not crew.alive and serving.host_of(job.queue) is None else serving.advice(job.queue)
        if crew.alive:
            hint += f"; where it runs already, its backend may be away: see {_COMMAND} doctor there"
        yield Reason("unserved", f"no live process serves its queue {job.queue}: {alive}", hint, waits_for=wanted)
    elif not crew.able:
        said = f"none of the {crew.serving} live processes that serve its queue knows its steps: they are of another release"
        yield Reason(
            "unable", said, "run the release that stored it, or a newer one", waits_for="a worker whose release knows its steps"
        )
    elif not crew.free:
        for pause in job.pauses:
            if pause.scope == "host":
                waits = f"the drain of {pause.what} to end"
                yield Reason("drained", f"whoever could run it is drained: {pause}", pause.end, waits_for=waits)


def _ready(job: Standing) -> Reason:
    first = f"at least {job.before}" if job.before >= 1000 else str(job.before)  # noqa: PLR2004  because the look counts so far
    order = f"{first} of its organisation's jobs come first" if job.before else "it is the next of its organisation"
    return Reason("ready", f"nothing is in its way: {order}, and {job.crew.free} processes serve its queue {job.queue}")


def _suspect(job: Standing) -> Iterator[Reason]:
    if job.crashes:
        alone = ", so no process runs it beside another suspect" if job.crashes >= _SUSPECT else ""
        yield Reason("crashes", f"its process died {job.crashes} times during {_where(job)}{alone}", "read the worker's log")


def _from(job: Standing) -> str:
    return f"or {_COMMAND} jobs retry {job.id} --from {job.passed_undone} does what was skipped, too"


def _where(job: Standing) -> str:
    undo = "undo of " if job.direction == "back" else ""
    return f"{undo}step {job.number} of {job.of} ({job.step})"


def _named(other: Other) -> str:
    return f"{other.kind} {other.id}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
