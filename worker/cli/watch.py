"""Watching a job happen: a line for each finished step, and what it does or waits for right now."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from worker.cli import words
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: Seconds between two looks of a person's eyes; the engine itself is never waited for in this way.
_LOOK_S: Final = 0.2
#: Seconds for which the same is happening before a line says so where there is no terminal to show it live.
_SILENCE_S: Final = 3.0
_MARKS: Final = {"done": "✓", "failed": "✗", "skipped": "↷"}
_BLAME: Final = {
    "tenant": "the request or the workspace's own program",
    "operator": "this installation's settings or its operator",
    "provider": "something outside that did not do its part",
    "internal": "a fault of the worker",
}


def watch(engine: "Engine", job_id: str) -> int:
    """Until the job rests or blocks; the exit code. Ctrl-C leaves the job as it is."""
    try:
        with shown() as display:
            job = _follow(engine, job_id, display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the job goes on: molecule-worker jobs watch {job_id}") from None
    return _end(job)


def blame_sentence(error: Mapping[str, Any]) -> str:
    """Whose fault it is, in words."""
    return _BLAME.get(str(error.get("blame")), "unknown")


class Display:
    """What a person sees: lines that stay, and where there is a terminal one that moves."""

    def __init__(self, live: Any = None) -> None:
        self._live = live  #: rich's status, None where there is no terminal
        self._told: set[tuple[str, ...]] = set()
        self._now = ""
        self._since = monotonic()

    def finished(self, job: Mapping[str, Any]) -> None:
        """A line for each step that ended since the last look."""
        for step in job["steps"]:
            if step["state"] in _MARKS and self._first(step["name"], step["state"], str(step["finished_at"])):
                tries = f"  ({step['attempts']} tries)" if step["attempts"] > 1 else ""
                self._say(f"  {_MARKS[step['state']]} {step['name']:<20} {words.duration(step['duration_ms']):>10}{tries}")

    def now(self, what: str, left: str = "") -> None:
        """What happens at this moment, and how long it will take: live on a terminal; elsewhere one line when it takes its time."""
        if what != self._now:
            self._now, self._since = what, monotonic()
        seconds = monotonic() - self._since
        if self._live is not None:
            self._live.update(words.printable(f"{what}  {seconds:.0f} s{f', {left}' if left else ''}"))
        elif seconds >= _SILENCE_S and self._first("now", what):
            self._say(f"  … {words.printable(what)}{f' ({left})' if left else ''}")

    def _say(self, line: str) -> None:
        """Above the line that moves, where there is one."""
        words.say(line) if self._live is None else self._live.console.print(line)

    def _first(self, *what: str) -> bool:
        new = what not in self._told
        self._told.add(what)
        return new


def _follow(engine: "Engine", job_id: str, display: Display) -> Mapping[str, Any]:
    from worker.engine.explain import waits_for
    from worker.store import standing as store
    from worker.store import status

    while True:
        with engine.connect() as connection:
            job = status.job(connection, job_id)
            standing = store.standing(connection, job_id)
        if job is None or standing is None:
            raise Refused("watch job: there is no such job", hint="molecule-worker jobs list", code="no_job")
        display.finished(job)
        if job["state"] in status.REST or job["state"] == "blocked":
            return job
        display.now(_doing(job, waits_for(standing)), _when(job))
        Event().wait(_LOOK_S)


@contextmanager
def shown() -> Iterator[Display]:
    """A display for as long as something is watched."""
    if not sys.stderr.isatty():
        yield Display()
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False).status("…") as live:
        yield Display(live)


def _doing(job: Mapping[str, Any], waits: str | None) -> str:
    progress = job["progress"]
    what = waits or job["waiting_for"]
    undo = "undo " if job["direction"] == "back" else ""
    return f"{progress['done']}/{progress['total']} {undo}{job['step']}{f': waits for {what}' if what else ''}"


def later(job: Mapping[str, Any]) -> str | None:
    """How long until the time of a queued or waiting job comes; None when it has come."""
    seconds = (job["run_at"] - datetime.now(UTC)).total_seconds()
    return words.duration(max(1.0, seconds) * 1000) if job["state"] in {"queued", "waiting"} and seconds > 0 else None


def _when(job: Mapping[str, Any]) -> str:
    """When it starts, where it has not, and how long it is until its end."""
    starts = later(job) if job["state"] == "queued" else None
    return ", ".join(filter(None, (starts and f"starts in {starts}", left(job["progress"]))))


def left(progress: Mapping[str, Any]) -> str:
    """How fast it goes and how long it will take, where that is known: `5.0/s, about 3 min 10 s left`."""
    rate, seconds = progress["rate_per_second"], progress["eta_seconds"]
    parts = [f"{float(rate):.1f}/s"] if rate else []
    if seconds is not None:
        parts.append(f"about {words.duration(max(1.0, float(seconds)) * 1000)} left")
    return ", ".join(parts)


def _end(job: Mapping[str, Any]) -> int:
    took = ""
    with suppress(TypeError):  # because a job that never started, or is blocked, lacks one of the two
        took = f" in {words.duration(_milliseconds(job['started_at'], job['finished_at']))}"
    words.say(f"{job['kind']} {job['state']}{took}")
    if job["state"] == "succeeded":
        return words.DONE
    tell_error(job)
    return words.FAILED


def tell_error(job: Mapping[str, Any]) -> None:
    """What went wrong, at which step, whose fault, what to do."""
    error = job["error"]
    if error is None:
        return
    words.say(f"error: {words.printable(error['message'])}")
    if error.get("step"):
        words.say(f"step:  {error['step']}")
    words.say(f"fault: {blame_sentence(error)}")
    if error.get("hint"):
        words.say(f"hint:  {words.printable(error['hint'])}")
    if job["state"] in {"blocked", "failed"}:
        words.say(f"then:  molecule-worker jobs retry {job['id']} --wait")
    if job["state"] == "blocked" and (step := _skipped(job)):
        words.say(f"or:    molecule-worker jobs retry {job['id']} --from {step} --wait, which does what was skipped, too")


def _skipped(job: Mapping[str, Any]) -> str | None:
    """The first step that was skipped on its present way."""
    back = job["direction"] == "back"
    skipped = [step["name"] for step in job["steps"] if step["state"] == "skipped" and step["name"].startswith("undo ") is back]
    return skipped[0].removeprefix("undo ") if skipped else None


def _milliseconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000
