"""Worker processes of the real engine with nothing around it, on a backlog that is there before the first of them begins."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Connection, text

from tests.bench.engine import GO
from tests.bench.ground import Database, Ground, ask, running, vacuum
from tests.bench.toys import FIVE, ONE
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.store import kinds, requests

_BACKLOG: Final = """
SELECT count(e.job_id) FROM generate_series(1, :n) AS n,
    LATERAL worker.enqueue(:kind, jsonb_build_object('id', md5(n::text)::uuid)) AS e
"""
#: Copies of the one job that `worker.enqueue` has stored; what must differ is said, whatever else a job has is taken over.
_COPIES: Final = """
INSERT INTO worker.jobs (subject, args, {columns})
SELECT 'bench:' || u.id, jsonb_build_object('id', u.id), {columns}
FROM worker.jobs j, (SELECT gen_random_uuid() AS id FROM generate_series(1, :n)) AS u WHERE j.id = :job
"""
_COLUMNS: Final = """
SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns
WHERE table_schema = 'worker' AND table_name = 'jobs' AND is_identity = 'NO' AND column_name NOT IN ('id', 'subject', 'args')
"""
#: Seconds between two looks around before the start, so that all processes begin within as much of each other.
_POLL: Final = "0.05"


def store(database: Database, kind: Kind, jobs: int, *, copied: bool = False) -> None:
    """A backlog, each job by an enqueue of its own unless they are copied, and statistics that know of it."""
    with database.engine.begin() as connection:
        kinds.write(connection, [FIVE, ONE], backend="memory", host="local")
        if copied:
            copies(connection, kind, jobs)
        else:
            connection.execute(text(_BACKLOG), {"n": jobs, "kind": kind.name})
    vacuum(database)


def copies(connection: Connection, kind: Kind, count: int, change: str = "state = state", **when: Any) -> None:
    """One job by `worker.enqueue`, rung for and changed if need be, and all the others just like it: 100,000 in seconds."""
    job, _ = requests.enqueue(connection, kind.name, {"id": str(uuid4())}, **when)
    connection.execute(text(f"UPDATE worker.jobs SET rung_at = clock_timestamp(), {change} WHERE id = :job"), {"job": job})
    columns = connection.execute(text(_COLUMNS)).scalar_one()
    connection.execute(text(_COPIES.format(columns=columns)), {"n": count - 1, "job": job})


@contextmanager
def begun(ground: Ground, database: Database, processes: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """So many processes, all ready; inside the block they work."""
    go = ground.folder / f"go-{uuid4().hex}"
    around = {**ground.environment(database, MOLECULE_WORKER_POLL_S=_POLL), GO: str(go)}
    with ExitStack() as running_all:
        started = [
            running_all.enter_context(running([sys.executable, "-m", "tests.bench.engine"], around, ground.folder))
            for _ in range(processes)
        ]
        ready = "SELECT count(*) FROM worker.processes"
        until(lambda: ask(database, ready) == processes, within=30.0, what="the engine to start")
        go.touch()
        yield started


def ended(database: Database) -> bool:
    """Whether every job has succeeded. Asked seldom, because the asking is work for the same two cores."""
    Event().wait(0.2)
    return bool(ask(database, "SELECT NOT EXISTS (SELECT FROM worker.jobs WHERE state <> 'succeeded')"))
