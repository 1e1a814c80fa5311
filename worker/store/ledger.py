"""What exists outside: written before it is made, closed when a fresh listing shows it absent."""

from collections.abc import Collection, Iterable

from sqlalchemy import ColumnElement, Connection, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from worker.domain import Thing, ThingKind
from worker.store.tables import ledger


def intend(connection: Connection, things: Iterable[Thing], *, backend: str, host: str, subject: str, job_id: str) -> None:
    """Record what is about to be made. A thing that is recorded already keeps its row."""
    same = {"backend": backend, "host": host, "subject": subject, "job_id": job_id, "state": "intended"}
    rows = [{**same, "kind": str(thing.kind), "name": thing.name} for thing in things]
    if rows:
        connection.execute(insert(ledger).values(rows).on_conflict_do_nothing())


def found(connection: Connection, things: Collection[Thing], *, subject: str) -> None:
    """Mark what a listing shows as existing."""
    shown = tuple_(ledger.c.kind, ledger.c.name).in_([(str(thing.kind), thing.name) for thing in things])
    connection.execute(update(ledger).where(_present(subject), shown).values(state="exists"))


def close(connection: Connection, present: Collection[Thing], *, backend: str, host: str, subject: str) -> int:
    """Close the subject's rows of this host that a fresh listing of it (`present`) does not show.

    Answers how many rows are still open, other hosts' among them: what those have is not for this listing to say.
    """
    there = {(str(thing.kind), thing.name) for thing in present}
    here = _present(subject) & (ledger.c.backend == backend) & (ledger.c.host == host)
    found(connection, present, subject=subject)
    for row in connection.execute(select(ledger.c.id, ledger.c.kind, ledger.c.name).where(here)).all():
        if (row.kind, row.name) not in there:
            connection.execute(update(ledger).where(ledger.c.id == row.id).values(state="gone", gone_at=func.clock_timestamp()))
    return connection.execute(select(func.count()).select_from(ledger).where(_present(subject))).scalar_one()


def forget(connection: Connection, *, subject: str, job_id: str) -> None:
    """Close what this job intended and no listing has shown: it gave up before it came to it."""
    mine = _present(subject) & (ledger.c.job_id == job_id) & (ledger.c.state == "intended")
    connection.execute(update(ledger).where(mine).values(state="gone", gone_at=func.clock_timestamp()))


def present(connection: Connection, subject: str) -> list[Thing]:
    """What the ledger says may exist for the subject."""
    rows = connection.execute(select(ledger.c.kind, ledger.c.name, ledger.c.job_id).where(_present(subject)).order_by(ledger.c.id))
    return [Thing(ThingKind(row.kind), row.name, subject.partition(":")[2], row.job_id) for row in rows]


def seen(connection: Connection, subject: str) -> list[str]:
    """Names of what a listing has shown for the subject, and none has shown absent since: of a mere intention nothing may exist."""
    names = select(ledger.c.name).where(_present(subject), ledger.c.state == "exists").order_by(ledger.c.id)
    return list(connection.execute(names).scalars())


def _present(subject: str) -> ColumnElement[bool]:
    return (ledger.c.subject == subject) & (ledger.c.state != "gone")
