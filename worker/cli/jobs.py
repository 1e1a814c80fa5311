"""`jobs` and `enqueue`: what the engine does, and what people may ask of it."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from worker.cli import context, watch, words
from worker.errors import Refused
from worker.store import requests, status


@click.group()
def jobs() -> None:
    """List, show, watch, cancel and retry jobs."""


@jobs.command("list")
@click.option("--state", type=click.Choice(status.STATES), help="Only jobs in this state.")
@click.option("--failed", is_flag=True, help="Only jobs that need a person: failed or blocked.")
@click.option("--kind", help="Only this kind, e.g. workspace.provision.")
@click.option("--subject", help="Only this subject, e.g. workspace:<id>.")
@click.option("--most", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_jobs(*, state: str | None, failed: bool, kind: str | None, subject: str | None, most: int, as_json: bool) -> None:
    """The newest jobs first."""
    with context.reading() as connection:
        found = status.jobs(connection, state=state, failed=failed, kind=kind, subject=subject, most=most)
    if as_json:
        words.data(found)
        return
    rows = [(j["id"], j["kind"], j["subject"], j["state"], j["step"], j["created_at"], _why(j)) for j in found]
    words.table(("id", "kind", "subject", "state", "step", "created", "why"), rows, empty="no jobs")


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(job_id: str, *, as_json: bool) -> None:
    """One job with its steps."""
    ident = context.checked_id(job_id, "job")
    with context.reading() as connection:
        job = status.job(connection, ident)
        waits = status.why_waiting(connection, ident)
    if job is None:
        raise Refused("show job: there is no such job", hint="molecule-worker jobs list", code="no_job")
    if as_json:
        words.data({name: value for name, value in job.items() if name not in {"waiting_for", "queue"}})
        return
    words.pairs(
        {
            **{
                name: job[name]
                for name in ("id", "kind", "subject", "state", "step", "direction", "requested_by", "created_at", "finished_at")
            },
            "waits for": waits or job["waiting_for"],
        }
    )
    rows = [(s["name"], s["state"], s["attempts"], watch.duration(s["duration_ms"]), _facts(s["facts"])) for s in job["steps"]]
    words.table(("step", "state", "tries", "took", "facts"), rows, empty="no step has ended yet")
    if job["error"]:
        error = job["error"]
        words.pairs({"error": error["message"], "fault": watch.blame_sentence(error), "hint": error.get("hint") or None})


@jobs.command("watch")
@click.argument("job_id", metavar="ID")
def watch_job(job_id: str) -> int:
    """Follow a job until it ends; Ctrl-C leaves it running."""
    engine = context.open_database(context.settings())
    return watch.watch(engine, context.checked_id(job_id, "job"))


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--reason", required=True, help="Why; kept with the job.")
def cancel(job_id: str, *, reason: str) -> None:
    """Undo what a job has done so far and end it."""
    ident = context.checked_id(job_id, "job")
    with context.writing() as connection:
        asked = requests.cancel(connection, ident, reason, requested_by=context.requested_by())
    if not asked:
        raise Refused("cancel job: it has ended, or there is none", hint="molecule-worker jobs list", code="ended")
    words.say(f"cancel asked for: molecule-worker jobs watch {ident}")


@jobs.command()
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
@click.option("--wait", is_flag=True, help="Watch the last of them.")
def retry(job_ids: Sequence[str], *, wait: bool) -> int:
    """Run failed jobs again, blocked and waiting ones from where they are."""
    idents = [context.checked_id(given, "job") for given in job_ids]
    with context.writing() as connection:
        for ident in idents:
            requests.retry(connection, ident, requested_by=context.requested_by())
    for ident in idents:
        words.say(f"runs again: molecule-worker jobs watch {ident}")
    return watch.watch(context.open_database(context.settings()), idents[-1]) if wait else words.DONE


@click.command()
@click.argument("kind")
@click.argument("pairs", metavar="key=value…", nargs=-1)
@click.option("--idempotency-key", help="The same key again returns the same job.")
@click.option(
    "--at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M"]), help="Not before this time."
)
@click.option("--priority", type=click.IntRange(0, 1000), default=100, show_default=True, help="Lower runs first.")
@click.option("--wait", is_flag=True, help="Watch it until it ends.")
def enqueue(kind: str, pairs: Sequence[str], *, idempotency_key: str | None, at: datetime | None, priority: int, wait: bool) -> int:
    """Store a job; its id on stdout."""
    args = dict(map(_pair, pairs))
    with context.writing() as connection:
        job_id, created = requests.enqueue(
            connection,
            kind,
            args,
            idempotency_key=idempotency_key,
            run_at=_aware(at),
            priority=priority,
            requested_by=context.requested_by(),
        )
    click.echo(job_id)
    if not created:
        words.say("this job exists already")
    return watch.watch(context.open_database(context.settings()), job_id) if wait else words.DONE


def _pair(given: str) -> tuple[str, Any]:
    name, mark, value = given.partition("=")
    if not mark or not name:
        raise click.UsageError("an argument is written key=value")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return name, parsed if isinstance(parsed, bool) else value


def _aware(at: datetime | None) -> datetime | None:
    return at.astimezone() if at is not None and at.tzinfo is None else at


def _why(job: Any) -> str | None:
    why: str | None = job["error"]["message"] if job["error"] else job["waiting_for"]
    return why


def _facts(facts: Any) -> str:
    """Short facts only: a template's whole config would bury the rest."""
    return ", ".join(f"{name}={value}" for name, value in facts.items() if value is not None and len(str(value)) <= 80)
