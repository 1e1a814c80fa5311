"""From the death of a worker process to the moment at which its job's step begins again elsewhere."""

import os
import signal
from collections.abc import Callable
from time import monotonic_ns
from typing import Final
from uuid import uuid4

from sqlalchemy import text
from tests.bench.ground import Database, Ground, Teller, alive, ask, daemon
from tests.bench.table import Row, percentile, spread, times
from tests.bench.toys import STARTS
from tests.waiting import until

from config import settings as environment
from worker.store import connect, requests

#: Deaths of one daemon: beyond these its supervisor starts processes later and later, as it should.
_EACH: Final = 4


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """By SIGKILL and by SIGSTOP, where a neighbour lives and where the supervisor must start a new process."""
    lease_ms = environment.load({}).lease_s * 1000
    with ground.database() as database:
        with database.engine.begin() as connection:
            connection.execute(text(STARTS))
        seen = _session_seen(database)
        killed = f"{percentile(seen, 50):.1f} ms until Postgres shows a dead session, n {len(seen)}"
        frozen = f"{lease_ms:.0f} ms: the lease"
        rows = []
        for name, number, processes, count, floor, least, limit in (
            ("kill -9, a neighbour lives", signal.SIGKILL, 2, 12, killed, percentile(seen, 50), 1000),
            ("kill -9 of the only process", signal.SIGKILL, 1, 6, killed, percentile(seen, 50), 1000),
            ("SIGSTOP, a neighbour lives", signal.SIGSTOP, 2, 3, frozen, lease_ms, 5000),
            ("SIGSTOP of the only process", signal.SIGSTOP, 1, 2, frozen, lease_ms, 5000),
        ):
            tell.begin(f"takeover after {name}: {count} times")
            took = _takeovers(ground, database, number, processes, count, tell)
            rows.append(
                Row(
                    f"takeover after {name}",
                    f"{spread(took)}, max {max(took):.0f}",
                    floor,
                    times(percentile(took, 50), least),
                    f"p95 ≤ {limit / 1000:.0f} s",
                    met=percentile(took, 95) <= limit,
                )
            )
    return rows


def _takeovers(ground: Ground, database: Database, number: int, processes: int, count: int, tell: Teller) -> list[float]:
    """Milliseconds for each."""
    took: list[float] = []
    each = _EACH if processes > 1 and number == signal.SIGKILL else 1
    while len(took) < count:
        with daemon(ground, database, processes=processes):
            for _ in range(min(each, count - len(took))):
                took.append(_takeover(database, number))
                tell.step(len(took), count)
                until(lambda: alive(database) == processes, within=20.0, what="the process to be replaced")
    return took


def _takeover(database: Database, number: int) -> float:
    with database.engine.begin() as connection:
        job, _ = requests.enqueue(connection, "bench.held", {"id": str(uuid4())})
    pid = _start(database, job, 1)[0]
    struck = monotonic_ns()
    os.kill(pid, number)
    began = _start(database, job, 2)[1]
    if number == signal.SIGSTOP:
        _resume(pid)
    until(lambda: ask(database, "SELECT state = 'succeeded' FROM worker.jobs WHERE id = :job", job=job), what="the job to end")
    return (began - struck) / 1e6


def _resume(pid: int) -> None:
    """It finds its lease lost and leaves by itself; it may have been replaced already."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def _start(database: Database, job: str, which: int) -> tuple[int, int]:
    """Pid and monotonic nanoseconds of the job's first or second start."""

    def look() -> tuple[int, int] | None:
        with database.engine.connect() as connection:
            rows = connection.execute(text("SELECT pid, at_ns FROM public.bench_starts WHERE job = :job ORDER BY at_ns"), {"job": job}).all()
        return (rows[which - 1].pid, rows[which - 1].at_ns) if len(rows) >= which else None

    found = until(look, within=15.0, what=f"start {which} of the held job")
    if found is None:
        raise AssertionError
    return found


def _session_seen(database: Database) -> list[float]:
    """Milliseconds from the death of a process that holds a session lock to the moment at which the lock is free."""
    took = []
    for _ in range(10):
        pid = _holder(database)
        struck = monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        while not ask(database, "SELECT pg_try_advisory_xact_lock(1, 1)"):
            continue
        took.append((monotonic_ns() - struck) / 1e6)
        os.waitpid(pid, 0)
    return took


def _holder(database: Database) -> int:
    """The pid of a child that has taken the lock."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection = connect.open_raw(database.url, name="bare lock")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1, 1)")
        os.write(tell, b".")
        signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid
