"""`jobs explain`: why a job is not running now, every reason with what to do about it."""

import click

from worker.cli import context, names, terminal, words
from worker.errors import Refused


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def explain(job_id: str, *, as_json: bool) -> None:
    """Say why a job is not running: all that stands in its way, what must happen first at the top."""
    from worker.engine.explain import reasons
    from worker.store import standing as store

    ident = names.found_id(job_id, "job")
    with context.reading() as connection:
        job = store.standing(connection, ident)
    if job is None:
        raise Refused("explain job: there is no such job", hint="molecule-worker jobs list", code="no_job")
    found = reasons(job)
    if as_json:
        shown = [{"code": reason.code, "sentence": reason.sentence, "hint": reason.hint} for reason in found]
        words.data({"id": job.id, "kind": job.kind, "state": job.state, "reasons": shown})
        return
    click.echo(f"{job.kind} {job.id} is {job.state}")
    for reason in found:
        for line in [*terminal.wrapped(words.printable(reason.sentence), "- ", "  "), *_hint(words.printable(reason.hint))]:
            click.echo(line)


def _hint(hint: str) -> list[str]:
    """On a terminal each of its ways on a line of its own, so that a command can be copied."""
    ways = [hint] if terminal.room() is None else hint.split("; ")
    return [line for n, way in enumerate(ways) if way for line in terminal.wrapped(way, "    " if n else "  → ", "    ")]
