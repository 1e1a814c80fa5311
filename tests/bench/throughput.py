"""Durable jobs per second through the real engine, beside the bare statements in a loop."""

import sys
from statistics import median
from time import monotonic
from typing import Final

from sqlalchemy import text

from config import settings as environment
from tests.bench import procs
from tests.bench.ground import Database, Ground, Teller, ask, running
from tests.bench.table import Row, times
from tests.bench.toys import FIVE
from tests.waiting import until
from worker.store import connect, kinds

_ROUNDS: Final = 3
_JOBS: Final = 2000
_BARE: Final = 400
_TARGET: Final = 500

_TABLES: Final = """
CREATE TABLE public.bare_jobs (id int PRIMARY KEY, position int NOT NULL) WITH (fillfactor = 50);
CREATE TABLE public.bare_steps (job int, position int, facts jsonb NOT NULL, PRIMARY KEY (job, position));
"""
_STEP: Final = """
WITH moved AS (UPDATE public.bare_jobs SET position = %(to)s WHERE id = %(job)s RETURNING id)
INSERT INTO public.bare_steps SELECT id, %(to)s, '{}' FROM moved
"""
_BACKLOG: Final = """
SELECT count(e.job_id) FROM generate_series(1, :n) AS n,
    LATERAL worker.enqueue('bench.five', jsonb_build_object('id', md5(n::text)::uuid)) AS e
"""


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """The median of some rounds, each beside its own floor, because a machine is not equally fast for long."""
    tell.begin(f"durable jobs of five steps: {_ROUNDS} rounds of {_JOBS}")
    bare, ours, cpu = [], [], []
    for number in range(_ROUNDS):
        with ground.database() as database:
            bare.append(_bare(database))
            rate, milliseconds = _engine(ground, database)
            ours.append(rate)
            cpu.append(milliseconds)
        tell.step(number + 1, _ROUNDS)
    rate, floor = median(ours), median(bare)
    used = f"; {median(cpu):.2f} ms of the process's CPU per job" if procs.known() else ""
    slots = environment.load({}).slots
    return [
        Row(
            f"durable jobs of 5 no-op steps: a backlog, 1 process, {slots} slots",
            f"{rate:.0f} jobs/s ({', '.join(f'{one:.0f}' for one in ours)}; {_JOBS} each){used}",
            f"{floor:.0f} jobs/s: 5 × UPDATE+INSERT in a loop, 1 connection",
            times(rate, floor),
            f"≥ {_TARGET} jobs/s",
            met=rate >= _TARGET,
        )
    ]


def _bare(database: Database) -> float:
    """Jobs per second of one UPDATE and INSERT for each step, one by one."""
    connection = connect.open_raw(database.url, name="bare")
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        cursor.execute("INSERT INTO public.bare_jobs SELECT n, 0 FROM generate_series(1, %s) AS n", (_BARE,))
        began = monotonic()
        for job in range(1, _BARE + 1):
            for position in range(1, 6):
                cursor.execute(_STEP, {"job": job, "to": position})
        took = monotonic() - began
    connection.close()
    return _BARE / took


def _engine(ground: Ground, database: Database) -> tuple[float, float]:
    """Jobs per second from the first claim to the last end, and milliseconds of CPU for each."""
    with database.engine.begin() as connection:
        kinds.write(connection, [FIVE], backend="memory", host="local")
        connection.execute(text(_BACKLOG), {"n": _JOBS})
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    ended = "SELECT NOT EXISTS (SELECT FROM worker.jobs WHERE state <> 'succeeded')"
    with running([sys.executable, "-m", "tests.bench.engine"], ground.environment(database), ground.folder) as process:
        until(lambda: ask(database, "SELECT count(*) FROM worker.processes"), within=30.0, what="the engine to start")
        before = procs.cpu_s(process.pid) if procs.known() else 0.0
        until(lambda: ask(database, ended), within=120.0, what="every job to succeed")
        used = procs.cpu_s(process.pid) - before if procs.known() else 0.0
    took = ask(database, "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM worker.jobs")
    return _JOBS / float(took), used * 1000 / _JOBS
