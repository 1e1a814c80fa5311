"""`sweep`: what comes round by itself, how it went, and doing it now."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from worker.cli import context, names, words

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from config.settings import Settings
    from worker.engine.clock import Schedule


@click.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Say what it would do, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def sweep(name: str | None, *, dry_run: bool, as_json: bool) -> int:
    """List what comes round by itself with its last time and outcome; with NAME, do it now.

    \b
    Examples:
      molecule-worker sweep
      molecule-worker sweep retention --dry-run
    """
    context.log_to_stderr()
    own = context.settings()
    known = {schedule.name: schedule for schedule in _schedules()}
    if name is not None:
        names.known("sweep", "schedule", name, known)
    engine = context.open_database(own)
    if name is None:
        _list(engine, known, as_json=as_json)
        return words.DONE
    outcome = _do(own, engine, known[name], dry_run=dry_run)
    words.data(outcome) if as_json else words.pairs(outcome)
    if dry_run:
        words.say("nothing was changed: this is what it would have done")
    return words.DONE


def _schedules() -> "tuple[Schedule, ...]":
    from worker.app import app

    app.loader.import_default_modules()
    return tuple(app.schedules)


def _do(own: "Settings", engine: "Engine", schedule: "Schedule", *, dry_run: bool) -> Mapping[str, Any]:
    from worker.assembly import ground
    from worker.engine.clock import Enqueue
    from worker.store import requests

    what = schedule.what
    if not isinstance(what, Enqueue):
        return what(ground(own, engine, pretend=dry_run), lambda: False)
    with engine.connect() as connection, connection.begin() as transaction:
        job, created = requests.enqueue(connection, what.kind, what.args, requested_by=context.requested_by())
        if dry_run:
            transaction.rollback()
            return {"kind": what.kind, "enqueued": int(created)}
    return {"job": job, "enqueued": int(created)}


def _list(engine: "Engine", known: "Mapping[str, Schedule]", *, as_json: bool) -> None:
    from worker.store import clock

    with engine.connect() as connection:
        last = clock.last_slots(connection)
    if as_json:
        words.data(
            [
                {
                    "name": name,
                    "every_s": schedule.every.total_seconds(),
                    "sentence": schedule.sentence,
                    **{key: last.get(name, {}).get(key) for key in ("slot", "started_at", "finished_at", "job_id", "outcome")},
                }
                for name, schedule in known.items()
            ]
        )
        return
    rows = [
        (
            name,
            _length(schedule.every),
            words.age(last[name]["started_at"]) if name in last else "never",
            _outcome(last.get(name)),
            schedule.sentence,
        )
        for name, schedule in known.items()
    ]
    columns = ("schedule", "every", "last", "outcome", "what")
    words.table(columns, rows, empty="nothing comes round", narrow=(("below", "what"), ("cut", "outcome")))


def _outcome(slot: Mapping[str, Any] | None) -> str | None:
    if slot is None:
        return None
    if slot["finished_at"] is None:
        return "did not finish"
    return ", ".join(f"{name} {value}" for name, value in slot["outcome"].items()) or "done"


def _length(every: timedelta) -> str:
    minutes = every.total_seconds() / 60
    return f"{minutes / 60:g} h" if minutes >= 60 else f"{minutes:g} min"  # noqa: PLR2004  because an hour has sixty of them
