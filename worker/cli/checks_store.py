"""What `doctor` asks of Postgres: its version, our schema in it, who works on it, and whether our key fits what is stored."""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from config.settings import Settings
from worker.cli import checks_operations, context, words
from worker.cli.daemon import catalogue
from worker.cli.finding import Finding, Verdict, faulty, ok, warning, wrong
from worker.crypto import keyring
from worker.engine import serving
from worker.errors import WorkerError
from worker.queues import host_queue
from worker.store import connect, gauges, kinds, migrate
from worker.store import secrets as sealed

_OLDEST: Final = 140000  #: as server_version_num has it
_MIGRATE: Final = "molecule-worker migrate"
#: Seconds in which a worker that was stopped is there again.
_LASTING_S: Final = 60.0


def findings(own: Settings) -> Iterator[Finding]:
    """Everything that the database can answer, or why it cannot."""
    try:
        engine = connect.open_engine(context.database_url(own), name="doctor", size=1)
        with connect.reached():
            connection = engine.connect()
    except WorkerError as error:
        yield faulty("postgres", error)
        yield _key(own, None)
        return
    with connection:
        yield _version(connection)
        schema = _schema(connection)
        yield schema
        if not schema.mend:
            yield from _inside(connection, own)
        yield _key(own, None if schema.mend else connection)
    engine.dispose()


def _version(connection: Connection) -> Finding:
    number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    version = str(connection.execute(text("SHOW server_version")).scalar_one()).partition(" ")[0]
    if number < _OLDEST:
        return wrong("postgres", f"version {version} is too old", "upgrade the server to 14 or newer")
    return ok("postgres", f"version {version}")


def _schema(connection: Connection) -> Finding:
    try:
        return ok("schema", f"at revision {migrate.refuse_other(connection)}")
    except WorkerError as error:
        return faulty("schema", error)


def _inside(connection: Connection, own: Settings) -> Iterator[Finding]:
    stale = kinds.differing(connection, catalogue().values())
    if stale:
        yield wrong("catalogue", f"the database does not know {', '.join(stale)} as this release does", _MIGRATE)
    else:
        yield ok("catalogue", f"{len(catalogue())} kinds of jobs, as in this release")
    yield _invariants(connection)
    yield _workers(connection, host_queue(own))
    yield from _queues(connection, host_queue(own))
    yield _jobs(connection)
    yield from checks_operations.findings(connection)


def _invariants(connection: Connection) -> Finding:
    broken = connection.execute(text("SELECT what, which FROM worker.violations")).all()
    if not broken:
        return ok("invariants", "no violation")
    said = f"{words.count(len(broken), 'violation')}, the first: {broken[0].what} ({broken[0].which})"
    return wrong("invariants", said, "this is a fault of the worker: report it with `SELECT * FROM worker.violations`")


def _workers(connection: Connection, queue: str) -> Finding:
    living = text("SELECT host, queues FROM worker.processes WHERE lease_until > clock_timestamp()")
    alive = connection.execute(living).all()
    served, nodes = sorted({name for row in alive for name in row.queues}), sorted({row.host for row in alive})
    if not alive:
        return warning("workers", "no process is alive, so jobs wait", "molecule-worker run")
    said = f"{len(alive)} alive on {words.count(len(nodes), 'node')}: {', '.join(nodes)}; queues: {', '.join(served) or 'none'}"
    if queue not in served:
        return warning("workers", f"{said}; jobs for {queue} wait", "see the backend's own line below; it may have just started")
    return ok("workers", said)


def _queues(connection: Connection, here: str) -> Iterator[Finding]:
    """A line for each queue whose jobs nobody takes.

    Wrong and not a warning once that has lasted, because they would wait for ever and nothing else says so: the worker that they
    need does not answer. Before, it may be about to be started, or to start again.
    """
    for found in gauges.unserved(connection):
        count = f"{'at least ' if found.more else ''}{words.count(found.jobs, 'due job')}"
        wait = "wait" if found.jobs > 1 else "waits"
        said = (
            f"{count} {wait} for a worker that serves {found.queue}, the oldest for {words.duration(found.age * 1000)}; none lives"
        )
        mend = serving.RUN if found.queue == here else serving.advice(found.queue)
        lasting = found.age > _LASTING_S
        yield Finding("queue", Verdict.WRONG if lasting else Verdict.WARNING, said, mend, unreachable=lasting)


def _jobs(connection: Connection) -> Finding:
    live = "SELECT state, count(*) AS n FROM worker.jobs WHERE state NOT IN ('succeeded', 'cancelled', 'failed') GROUP BY state"
    counts = {row.state: row.n for row in connection.execute(text(live))}
    said = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none is live"
    if counts.get("blocked"):
        return warning("jobs", said, "blocked ones need a person: molecule-worker jobs list --state blocked")
    return ok("jobs", said)


def _key(own: Settings, connection: Connection | None) -> Finding:
    """Which key, where from, and whether it opens what is stored. Makes none: that is for whoever needs one first."""
    path = own.state_dir / keyring.KEY_FILE
    unset = own.secrets_encryption_key is None and not own.production and not path.exists()
    try:
        key = None if unset else context.load_key(own)
        looked, closed = sealed.sealed_otherwise(connection, key) if connection is not None else (0, 0)
    except WorkerError as error:
        return faulty("key", error)
    if closed:
        said = f"{closed} of {looked} stored secrets do not open with {key.fingerprint() if key else 'no key'}"
        return wrong("key", said, "set SECRETS_ENCRYPTION_KEY to the key that sealed them, or set them again")
    if key is None:
        return ok("key", f"none yet: one is made in {own.state_dir} when it is first needed")
    origin = "SECRETS_ENCRYPTION_KEY" if own.secrets_encryption_key else str(path)
    return ok("key", f"{key.fingerprint()} from {origin}" + (f"; it opens all of {looked} secrets" if looked else ""))
