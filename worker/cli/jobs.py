"""`jobs` and `enqueue`: what the engine does, and what people may ask of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from worker.cli import context, debts, explain, interventions, names, pauses, terminal, words
from worker.domain import JOB_STATES
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: The keys of an error that are an interface; a job's row may hold more.
_ERROR: Final = ("code", "message", "hint", "blame", "step")
#: What only people are told: the contract's JSON has no such keys.
_INNER: Final = frozenset({"waiting_for", "queue", "parked", "paused", "served"})
_LONGEST_FACT: Final = 80
_MOST_LISTED: Final = 1000
_FIRST_YEAR, _LAST_YEAR = 1970, 9998


@click.group()
def jobs() -> None:
    """List, show, watch and explain jobs; cancel, retry, skip; pause and resume; what is owed."""


@jobs.command("list")
@click.option("--state", type=click.Choice(JOB_STATES), help="Only jobs in this state.")
@click.option("--failed", is_flag=True, help="Only jobs that need a person: failed or blocked.")
@click.option("--kind", help="Only this kind, e.g. workspace.provision.")
@click.option("--subject", help="Only this subject, e.g. workspace:<id>.")
@click.option("--most", type=click.IntRange(1, _MOST_LISTED), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_jobs(*, state: str | None, failed: bool, kind: str | None, subject: str | None, most: int, as_json: bool) -> None:
    """List the newest jobs first. On a narrow terminal an id is its first eight digits; the other commands take these.

    \b
    Examples:
      molecule-worker jobs list --failed
      molecule-worker jobs list --kind workspace.delete --state waiting
    """
    from worker.store import status

    with context.reading() as connection:
        names.known_kind(connection, "list jobs", kind)
        pauses.tell(connection)
        found = status.jobs(connection, state=state, failed=failed, kind=kind, subject=subject, most=most + 1)
        strange = subject is not None and not found and not status.has_subject(connection, subject)
    if strange:
        words.say(f"no job about {words.printable(str(subject))} is kept; a subject is written workspace:<id> or org:<id>")
    if len(found) > most:
        found = found[:most]
        words.say(f"the newest {most} of more{f': --most {min(most * 4, _MOST_LISTED)}' if most < _MOST_LISTED else ''}")
    if as_json:
        words.data([_public(job) for job in found])
    if as_json or strange:
        return
    rows = [(j["id"], j["kind"], j["subject"], j["state"], words.age(j["created_at"]), j["step"], _why(j)) for j in found]
    words.table(("id", "kind", "subject", "state", "age", "step", "why"), rows, empty="no jobs", narrow=terminal.JOBS)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(job_id: str, *, as_json: bool) -> None:
    """Show one job with its steps, what it owes, its fault and what to do."""
    from worker.cli import watch
    from worker.engine.explain import waits_for
    from worker.store import debts as owing
    from worker.store import standing as store
    from worker.store import status

    ident = names.found_id(job_id, "job")
    with context.reading() as connection:
        job = status.job(connection, ident)
        standing = store.standing(connection, ident)
        owed = owing.of_job(connection, ident)
    if job is None or standing is None:
        raise Refused("show job: there is no such job", hint="molecule-worker jobs list", code="no_job")
    if as_json:
        words.data({**_public(job), "debts": debts.public(owed)})
        return
    shown = ("id", "kind", "subject", "state", "step", "direction", "requested_by", "priority")
    times = ("run_at", "created_at", "started_at", "finished_at")
    later = watch.later(job) if job["state"] == "queued" else None
    waits = {"starts": later and f"in {later}", "waits for": waits_for(standing) or job["waiting_for"]}
    words.pairs({**{name: job[name] for name in (*shown, *times)}, **waits})
    click.echo()
    rows = [(s["name"], s["state"], s["attempts"], words.duration(s["duration_ms"]), _facts(s["facts"])) for s in job["steps"]]
    words.table(("step", "state", "tries", "took", "facts"), rows, empty="no step has ended yet", narrow=(("below", "facts"),))
    debts.show(owed)
    watch.tell_error(job)


@jobs.command("watch")
@click.argument("job_id", metavar="ID")
def watch_job(job_id: str) -> int:
    """Follow a job until it ends; Ctrl-C leaves it running.

    The exit code is 0 when it succeeded and 1 when it failed, was cancelled or needs a person.
    """
    return _watch(names.found_id(job_id, "job"))


for _command in (
    *(interventions.cancel, interventions.retry, interventions.skip, pauses.pause, pauses.resume),
    *(explain.explain, debts.debts),
):
    jobs.add_command(_command)


@click.command()
@click.argument("kind")
@click.argument("pairs", metavar="[key=value]…", nargs=-1)
@click.option("--idempotency-key", metavar="KEY", help="The same key again returns the same job.")
@click.option("--at", metavar="TIME", help="Not before then, ISO 8601; without an offset it is local time.")
@click.option("--priority", type=click.IntRange(0, 1000), help="Lower runs first; 100 without it.")
@click.option("--wait", is_flag=True, help="Watch it until it ends.")
def enqueue(
    kind: str, pairs: Sequence[str], *, idempotency_key: str | None, at: str | None, priority: int | None, wait: bool
) -> int:
    """Store a job; its id goes to stdout.

    \b
    Examples:
      molecule-worker enqueue workspace.provision workspace_id=<id> --wait
      molecule-worker enqueue workspace.delete workspace_id=<id> \\
          --at 2030-01-31T18:00
    """
    from worker.store import requests

    args, run_at = _args(pairs), _time(at)
    with context.writing() as connection:
        job_id, created = requests.enqueue(
            connection,
            kind,
            args,
            idempotency_key=idempotency_key,
            run_at=run_at,
            priority=100 if priority is None else priority,
            requested_by=context.requested_by(),
        )
        joined = None if created else _joined(connection, job_id)
    click.echo(job_id)
    if joined is not None:
        kept = [name for name, given in (("time", at), ("priority", priority)) if given is not None]
        words.say(f"{joined}: it keeps its {' and '.join(kept)}" if kept else joined)
    return _watch(job_id) if wait else words.DONE


def _watch(job_id: str) -> int:
    from worker.cli import watch

    return watch.watch(context.open_database(context.settings()), job_id)


def _joined(connection: "Connection", job_id: str) -> str:
    """What an enqueue that stored nothing has found."""
    from worker.store import status

    job = status.job(connection, job_id)
    state = job["state"] if job else "gone"
    return f"the key stands for job {job_id} at rest ({state})" if state in status.REST else f"joined live job {job_id} ({state})"


def _args(pairs: Sequence[str]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for name, value in map(_pair, pairs):
        if name in args:
            raise Refused(f"read args: {name} is given twice", hint="molecule-worker enqueue --help", code="bad_args")
        args[name] = value
    return args


def _pair(given: str) -> tuple[str, Any]:
    """`true` and `false` are booleans, everything else is text: the kind's own list says what it must be."""
    name, mark, value = given.partition("=")
    if not mark or not name:
        raise Refused("read args: an argument is not written key=value", hint="molecule-worker enqueue --help", code="bad_args")
    return name, {"true": True, "false": False}.get(value, value)


def _time(given: str | None) -> datetime | None:
    if given is None:
        return None
    hint = "2030-01-31T18:00, 2030-01-31T18:00:00Z or …+02:00"
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise Refused("read --at: it is not a time", hint=hint, code="bad_time") from None
    # At either end of the calendar a time has no other zone, and there is no work.
    if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
        raise Refused(f"read --at: its year is not one from {_FIRST_YEAR} to {_LAST_YEAR}", hint=hint, code="bad_time")
    return at.astimezone()


def _public(job: Mapping[str, Any]) -> dict[str, Any]:
    error = job["error"]
    shown = {name: value for name, value in job.items() if name not in _INNER}
    return {**shown, "error": error and {name: error.get(name) for name in _ERROR}}


def _why(job: Mapping[str, Any]) -> str | None:
    if job["error"]:
        return str(job["error"]["message"])
    from worker.cli import watch

    later = watch.later(job)
    if job["state"] == "queued" and (job["paused"] or job["parked"]):
        return "paused" if job["paused"] else "behind another job on its subject"
    if later is None and not job["served"] and job["state"] in {"queued", "waiting"}:
        return f"no worker serves {job['queue']}"
    if job["state"] == "queued":
        return later and f"starts in {later}"
    why: str | None = job["waiting_for"] or (later and f"goes on in {later}")
    return why


def _facts(facts: Mapping[str, Any]) -> str:
    """Short facts only: a template's whole config would bury the rest."""
    return ", ".join(f"{name}={value}" for name, value in facts.items() if value is not None and len(str(value)) <= _LONGEST_FACT)
