"""From the death of a worker process to the moment at which its job's step begins again elsewhere."""

import os
import signal
from dataclasses import dataclass
from random import Random
from threading import Event
from time import monotonic_ns
from typing import Final
from uuid import uuid4

from sqlalchemy import text

from config import settings as environment
from tests.bench.ground import Database, Ground, Teller, alive, ask, daemon
from tests.bench.table import Row, percentile, spread, times
from tests.bench.toys import STARTS
from tests.waiting import until
from worker.store import connect, requests

#: Deaths of one daemon: beyond these its supervisor starts processes later and later, as it should.
_EACH: Final = 4
_random: Final = Random(7)


@dataclass(frozen=True, slots=True)
class Death:
    """One way to lose a worker process, and how often it is tried."""

    name: str
    number: signal.Signals
    processes: int
    count: int
    limit_ms: int


_DEATHS: Final = (
    Death("kill -9, a neighbour lives", signal.SIGKILL, 2, 12, 1000),
    Death("kill -9 of the only process", signal.SIGKILL, 1, 6, 1000),
    Death("SIGSTOP, a neighbour lives", signal.SIGSTOP, 2, 3, 5000),
    Death("SIGSTOP of the only process", signal.SIGSTOP, 1, 2, 5000),
)


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """By SIGKILL and by SIGSTOP, where a neighbour lives and where the supervisor must start a new process."""
    lease_ms = environment.load({}).lease_s * 1000
    with ground.database() as database:
        with database.engine.begin() as connection:
            connection.execute(text(STARTS))
        seen = _session_seen(database)
        floors = {
            signal.SIGKILL: (
                percentile(seen, 50),
                f"{percentile(seen, 50):.1f} ms until Postgres shows a dead session, n {len(seen)}",
            ),
            signal.SIGSTOP: (lease_ms, f"{lease_ms:.0f} ms: the lease"),
        }
        return [_row(ground, database, death, *floors[death.number], tell) for death in _DEATHS]


def _row(ground: Ground, database: Database, death: Death, floor: float, said: str, tell: Teller) -> Row:
    tell.begin(f"takeover after {death.name}: {death.count} times")
    what, target = f"takeover after {death.name}", f"p95 ≤ {death.limit_ms / 1000:.0f} s"
    try:
        took = _takeovers(ground, database, death, tell)
    except AssertionError as error:
        return Row(what, f"never: {error}", said, target=target, met=False)
    met = percentile(took, 95) <= death.limit_ms
    return Row(what, f"{spread(took)}, max {max(took):.0f}", said, times(percentile(took, 50), floor), target, met=met)


def _takeovers(ground: Ground, database: Database, death: Death, tell: Teller) -> list[float]:
    """Milliseconds for each."""
    took: list[float] = []
    each = _EACH if death.processes > 1 and death.number == signal.SIGKILL else 1
    while len(took) < death.count:
        with daemon(ground, database, processes=death.processes):
            for _ in range(min(each, death.count - len(took))):
                until(lambda: alive(database) == death.processes, within=20.0, what="the process to be replaced")
                took.append(_takeover(database, death.number))
                tell.step(len(took), death.count)
    return took


def _takeover(database: Database, number: int) -> float:
    with database.engine.begin() as connection:
        job, _ = requests.enqueue(connection, "bench.held", {"id": str(uuid4())})
    pid = _start(database, job, 1)[0]
    Event().wait(_random.uniform(0.0, 0.5))  # at any moment between two beats
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
            rows = connection.execute(
                text("SELECT pid, at_ns FROM public.bench_starts WHERE job = :job ORDER BY at_ns"), {"job": job}
            ).all()
        return (rows[which - 1].pid, rows[which - 1].at_ns) if len(rows) >= which else None

    found = until(look, within=10.0, what=f"start {which} of the held job")
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
