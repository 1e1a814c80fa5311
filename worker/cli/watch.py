"""Watching a job happen: a line for each finished step, and on a terminal what it does right now."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from typing import Any

import click
from sqlalchemy import Engine

from worker.cli import words
from worker.errors import Refused
from worker.store import status

#: Seconds between two looks of a person's eyes; the engine itself is never waited for in this way.
_LOOK_S = 0.2
_MARKS = {"done": "✓", "failed": "✗"}


def watch(engine: Engine, job_id: str) -> int:
    """Until the job rests or blocks; the exit code. Ctrl-C leaves the job as it is."""
    told: set[tuple[str, str]] = set()
    with _spinner() as spinner:
        while True:
            with engine.connect() as connection:
                job = status.job(connection, job_id)
                waits = status.why_waiting(connection, job_id)
            if job is None:
                raise Refused("watch job: there is no such job", hint="molecule-worker jobs list", code="no_job")
            for line in _news(job, told):
                words.say(line)
            if job["state"] in status.REST or job["state"] == "blocked":
                break
            if spinner is not None:
                spinner.update(_now(job, waits))
            elif waits and ("waits", waits) not in told:
                told.add(("waits", waits))
                words.say(f"  … waits for {waits}")
            Event().wait(_LOOK_S)
    return _end(job)


def duration(milliseconds: float) -> str:
    """`840 ms`, `3.2 s`, `4 min 10 s`."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def blame_sentence(error: Mapping[str, Any]) -> str:
    """Whose fault it is, in words."""
    return {
        "tenant": "the request or the workspace's own program",
        "operator": "this installation's settings or its operator",
        "provider": "something outside that did not do its part",
        "internal": "a fault of the worker",
    }.get(str(error.get("blame")), "unknown")


def _spinner() -> AbstractContextManager[Any]:
    if not sys.stderr.isatty():
        return nullcontext(None)
    from rich.console import Console  # noqa: PLC0415  because a pipe does not need it

    return Console(stderr=True, highlight=False, markup=False).status("…")


def _news(job: Mapping[str, Any], told: set[tuple[str, str]]) -> list[str]:
    lines = []
    for step in job["steps"]:
        key = (step["name"], step["state"])
        if step["state"] in _MARKS and key not in told:
            told.add(key)
            tries = f"  ({step['attempts']} tries)" if step["attempts"] > 1 else ""
            lines.append(f"  {_MARKS[step['state']]} {step['name']:<20} {duration(step['duration_ms']):>10}{tries}")
    return lines


def _now(job: Mapping[str, Any], waits: str | None) -> str:
    progress = job["progress"]
    what = f" – waits for {waits or job['waiting_for']}" if waits or job["waiting_for"] else ""
    undo = "undo " if job["direction"] == "back" else ""
    return f"{progress['done']}/{progress['total']} {undo}{job['step']}{what}"


def _end(job: Mapping[str, Any]) -> int:
    words.say(f"{job['kind']} {job['state']}")
    error = job["error"]
    if job["state"] == "succeeded" or error is None:
        return words.DONE if job["state"] == "succeeded" else words.FAILED
    click.echo(f"error: {error['message']}", err=True)
    if error.get("step"):
        words.say(f"step:  {error['step']}")
    words.say(f"fault: {blame_sentence(error)}")
    if error.get("hint"):
        words.say(f"hint:  {error['hint']}")
    if job["state"] == "blocked":
        words.say(f"then:  molecule-worker jobs retry {job['id']}")
    return words.FAILED
