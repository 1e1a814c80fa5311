"""Worker processes of the real engine with nothing around it, on a backlog that is there before the first of them begins."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Final
from uuid import uuid4

from sqlalchemy import text

from tests.bench.engine import GO
from tests.bench.ground import Database, Ground, ask, running, vacuum
from tests.bench.toys import FIVE, ONE
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.store import kinds

_BACKLOG: Final = """
SELECT count(e.job_id) FROM generate_series(1, :n) AS n,
    LATERAL worker.enqueue(:kind, jsonb_build_object('id', md5(n::text)::uuid)) AS e
"""
#: Seconds between two looks around before the start, so that all processes begin within as much of each other.
_POLL: Final = "0.05"


def store(database: Database, kind: Kind, jobs: int) -> None:
    """A backlog, and statistics that know of it."""
    with database.engine.begin() as connection:
        kinds.write(connection, [FIVE, ONE], backend="memory", host="local")
        connection.execute(text(_BACKLOG), {"n": jobs, "kind": kind.name})
    vacuum(database)


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
