"""`jobs cancel|retry|skip`: what a person decides about jobs that exist."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import click

from worker.cli import context, names, terminal, words
from worker.errors import Refused

_AGE: Final = re.compile(r"(\d{1,6})(s|min|m|h|d)")
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--reason", default="", help="Why; kept with the job.")
@click.option("--wait", is_flag=True, help="Watch until it has ended.")
def cancel(job_id: str, *, reason: str, wait: bool) -> int:
    """Undo what a job has done so far and end it."""
    from worker.store import requests, status

    ident = names.found_id(job_id, "job")
    _insist(reason, "cancel job: a reason is needed, because a cancel cannot be taken back")
    with context.writing() as connection:
        asked = requests.cancel(connection, ident, reason, requested_by=context.requested_by())
        ended = None if asked else status.job(connection, ident)
    if not asked:
        why = f"it has ended: {ended['state']}" if ended else "there is no such job"
        raise Refused(f"cancel job: {why}", hint="molecule-worker jobs list", code="ended" if ended else "no_job")
    if wait:
        _watch(ident)
    else:
        words.say(f"cancel asked for: molecule-worker jobs watch {ident}")
    return words.DONE


@click.command()
@click.argument("job_ids", metavar="[ID]…", nargs=-1)
@click.option("--failed", is_flag=True, help="All jobs that need a person: failed or blocked.")
@click.option("--kind", help="With --failed: only this kind.")
@click.option("--since", metavar="AGE", help="With --failed: only since then, e.g. 30min, 2h, 7d.")
@click.option("--from", "step", metavar="STEP", help="With one ID: a step that it has passed; skips from there on are taken back.")
@click.option("--dry-run", is_flag=True, help="Say what would run again, and do nothing.")
@click.option("--wait", is_flag=True, help="Watch the last of them.")
@click.option("--json", "as_json", is_flag=True, help="With --failed: the table as JSON on stdout.")
def retry(
    job_ids: Sequence[str],
    *,
    failed: bool,
    kind: str | None,
    since: str | None,
    step: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Run jobs again: failed ones from the start, blocked and waiting ones from where they are, or from a step before.

    Named ones are all retried or none. With --failed each is retried by itself: those that are refused are listed, and the
    exit code is 1. --from is for a job that only goes forward, or undoes: the steps from there on are done once more.

    \b
    Examples:
      molecule-worker jobs retry <id> --wait
      molecule-worker jobs retry <id> --from compute --dry-run
      molecule-worker jobs retry --failed --since 2h --dry-run
    """
    if step is not None and (failed or len(job_ids) != 1):
        raise Refused("read command line: --from takes one job", hint="molecule-worker jobs retry --help", code="usage")
    if bool(job_ids) is failed or (not failed and (kind or since or as_json)):
        raise Refused("read command line: name jobs, or say --failed", hint="molecule-worker jobs retry --help", code="usage")
    if failed:
        return _retry_failed(kind, _age(since), dry_run=dry_run, wait=wait, as_json=as_json)
    return _retry_named([names.found_id(given, "job") for given in job_ids], step, dry_run=dry_run, wait=wait)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--step", required=True, help="At which the job stands.")
@click.option("--reason", default="", help="Why it need not be done; kept as a debt.")
@click.option("--wait", is_flag=True, help="Watch what follows.")
def skip(job_id: str, *, step: str, reason: str, wait: bool) -> int:
    """Pass a step that cannot be done, and owe it from now on.

    Only where its job is blocked or waits, and where the kind allows it; an undo may always be skipped.
    """
    from worker.store import requests

    ident = names.found_id(job_id, "job")
    _insist(reason, "skip step: a reason is needed, because what is skipped is owed")
    with context.writing() as connection:
        requests.skip(connection, ident, step, reason, requested_by=context.requested_by())
    if wait:
        return _watch(ident)
    words.say(f"{step} is skipped and owed: molecule-worker jobs watch {ident}")
    return words.DONE


def _insist(reason: str, said: str) -> None:
    if not reason.strip():
        raise words.Unsafe(said, hint="--reason '…'")


def _retry_named(idents: Sequence[str], step: str | None, *, dry_run: bool, wait: bool) -> int:
    from worker.store import requests, status

    engine = context.open_database(context.settings())
    with engine.connect() as connection, connection.begin() as transaction:
        before = status.ahead(connection, idents[0])
        for ident in idents:
            requests.retry(connection, ident, requested_by=context.requested_by(), from_step=step)
        after = status.ahead(connection, idents[0])
        again = ", ".join(after[: len(after) - len(before) + 1])  # up to the one at which it stood
        if dry_run:
            transaction.rollback()
            words.say(f"would run again: {again}" if step else f"would retry {words.count(len(idents), 'job')}")
            return words.DONE
    if step:
        words.say(f"done once more: {again}")
    for ident in idents:
        words.say(f"runs again: molecule-worker jobs watch {ident}")
    return _watch(idents[-1]) if wait else words.DONE


def _retry_failed(kind: str | None, since: timedelta | None, *, dry_run: bool, wait: bool, as_json: bool) -> int:
    from worker.store import status

    engine = context.open_database(context.settings(), size=1)
    with engine.connect() as connection:
        names.known_kind(connection, "retry jobs", kind)
        found = status.to_retry(connection, kind=kind, since=since)
    if dry_run:
        with engine.connect() as connection, connection.begin() as trial:
            refused = _retry_each(lambda: _savepoint(connection), found)
            trial.rollback()
        _list(_with_refusals(found, refused), as_json=as_json)
        n = words.count(len(found) - len(refused), "job")
        words.say(f"would retry {f'{len(found) - len(refused)} of {len(found)} jobs' if refused else n}")
        return words.DONE
    refused = _retry_each(engine.begin, found)
    words.say(f"{len(found) - len(refused)} of {words.count(len(found), 'job')} {'runs' if len(found) == 1 else 'run'} again")
    if refused or as_json:
        # A person is shown what is left to do, a program the same table as by --dry-run.
        _list(_with_refusals(found, refused) if as_json else refused, as_json=as_json)
    done = [job for job in found if job["id"] not in {other["id"] for other in refused}]
    watched = _watch(done[-1]["id"]) if wait and done else words.DONE
    return words.FAILED if refused else watched


def _with_refusals(found: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    why = {job["id"]: job["why"] for job in refused}
    return [{**job, "why": why.get(job["id"], job["why"]), "retried": job["id"] not in why} for job in found]


@contextmanager
def _savepoint(connection: Any) -> Iterator[Any]:
    with connection.begin_nested():
        yield connection


def _retry_each(begin: Callable[[], Any], found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each in what `begin` begins, so that a refusal or Ctrl-C leaves the others retried. Those refused, with why."""
    from worker.store import requests

    refused: list[Mapping[str, Any]] = []
    for done, job in enumerate(found):
        try:
            with begin() as connection:
                requests.retry(connection, job["id"], requested_by=context.requested_by())
        except Refused as error:
            refused.append({**job, "why": error.message})
        except KeyboardInterrupt:
            said = f"{done - len(refused)} of {len(found)} jobs run again; the others are as they were"
            raise KeyboardInterrupt(said) from None
    return refused


def _list(jobs: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        words.data([{key: job[key] for key in ("id", "kind", "state", "at", "subject", "why", "retried")} for job in jobs])
        return
    rows = [(job["id"], job["kind"], job["state"], words.age(job["at"]), job["subject"], job["why"]) for job in jobs]
    words.table(("id", "kind", "state", "age", "subject", "why"), rows, empty="no jobs", narrow=terminal.JOBS)


def _age(given: str | None) -> timedelta | None:
    if given is None:
        return None
    found = _AGE.fullmatch(given.strip())
    if found is None:
        raise Refused("read --since: it is not an age", hint="30s, 15min, 2h or 7d", code="bad_age")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _watch(job_id: str) -> int:
    from worker.cli import watch

    return watch.watch(context.open_database(context.settings()), job_id)
