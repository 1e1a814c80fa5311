"""Durable jobs per second through the real engine, beside the bare statements in a loop and beside others."""

from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic
from typing import Final

from config import settings as environment
from tests.bench import engines, procs
from tests.bench.ground import Database, Ground, Teller, ask
from tests.bench.peers import runs
from tests.bench.peers.runs import Setting
from tests.bench.table import Row, times
from tests.bench.toys import FIVE
from tests.waiting import until
from worker.store import connect

_ROUNDS: Final = 3
_JOBS: Final = 2000
_BARE: Final = 300
#: Processes → jobs per second that are wanted.
_TARGETS: Final = {1: 500, 2: 800}
_STRETCH: Final = 1500
_AHEAD: Final = 4.0

_TABLES: Final = """
CREATE TABLE public.bare_jobs (id int PRIMARY KEY, position int NOT NULL) WITH (fillfactor = 50);
CREATE TABLE public.bare_steps (job int, position int, facts jsonb NOT NULL, PRIMARY KEY (job, position));
"""
_STEP: Final = """
WITH moved AS (UPDATE public.bare_jobs SET position = %(to)s WHERE id = %(job)s RETURNING id)
INSERT INTO public.bare_steps SELECT id, %(to)s, '{}' FROM moved
"""

Rates = dict[Setting, list[float]]


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """The median of some rounds, and in each round everybody, because a machine is not equally fast for long."""
    tell.begin(f"durable jobs of five steps: {_ROUNDS} rounds of {_JOBS} by 1 and by {max(_TARGETS)} processes, and by others")
    bare, cpu = [], []
    ours: dict[int, list[float]] = {processes: [] for processes in _TARGETS}
    others: Rates = {}
    for number in range(_ROUNDS):
        with ground.database() as database:
            bare.append(_bare(database))
        for processes in _TARGETS:
            with ground.database() as database:
                rate, milliseconds = _engine(ground, database, processes)
            ours[processes].append(rate)
            cpu.append(milliseconds)
        _others(ground, others, tell.step)
        tell.step(number + 1, _ROUNDS)
    return [*_our_rows(ours, bare, cpu), *_other_rows(ours, others)]


def _our_rows(ours: dict[int, list[float]], bare: list[float], cpu: list[float]) -> list[Row]:
    slots, floor = environment.load({}).slots, median(bare)
    used = f"; {median(cpu):.2f} ms of the processes' CPU per job" if procs.known() else ""
    return [
        Row(
            f"durable jobs of 5 no-op steps: a backlog, {_processes(processes)}, {slots} slots each",
            f"{_range(rates)}, {_JOBS} each{used}",
            f"{_range(bare)}: 5 × UPDATE+INSERT in a loop, 1 connection",
            times(median(rates), floor),
            f"≥ {_TARGETS[processes]} jobs/s" + (f", stretch {_STRETCH}" if processes > 1 else ""),
            met=median(rates) >= _TARGETS[processes],
        )
        for processes, rates in ours.items()
    ]


def _other_rows(ours: dict[int, list[float]], others: Rates) -> list[Row]:
    """The same five steps by each of the others at its best, and how often ours does as many."""
    target = f"≥ {_AHEAD:g} × the best"
    if not others:
        return [Row("the same five steps by others", "not measured: `make bench` installs them", target=target)]
    best = _best(others)
    first = max(best, key=lambda one: median(others[one]))
    mine = max(ours.values(), key=median)
    return [
        Row(
            f"the same by {one.peer}, {_processes(one.processes)}, {one.how}",
            f"{_range(others[one])}, {runs.JOBS} each",
            f"{_range(mine)}: ours, 2 processes",
            times(median(mine), median(others[one])),
            target if one is first else "",
            met=median(mine) >= _AHEAD * median(others[one]) if one is first else None,
        )
        for one in best
    ]


def _others(ground: Ground, known: Rates, step: Callable[[int, int], None]) -> None:
    """One round: the first tries every setting, the later ones repeat the best of each peer."""
    if not runs.PYTHON.exists() or ground.redis is None:
        return
    settings: Sequence[Setting] = runs.SETTINGS
    if known:
        settings = _best(known)
    for number, setting in enumerate(settings):
        known.setdefault(setting, []).append(runs.rate(ground, setting))
        step(number + 1, len(settings))


def _best(rates: Rates) -> list[Setting]:
    """Of each peer the setting that the first round found best; the later rounds repeat only that."""
    peers = dict.fromkeys(one.peer for one in rates)
    return [max((one for one in rates if one.peer == peer), key=lambda one: rates[one][0]) for peer in peers]


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _range(rates: Sequence[float]) -> str:
    return f"{median(rates):.0f} jobs/s ({min(rates):.0f}–{max(rates):.0f}, n {len(rates)})"


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


def _engine(ground: Ground, database: Database, processes: int) -> tuple[float, float]:
    """Jobs per second from the first claim to the last end, and milliseconds of CPU for each."""
    engines.store(database, FIVE, _JOBS)
    with engines.begun(ground, database, processes) as started:
        before = [procs.cpu_s(process.pid) for process in started] if procs.known() else []
        until(lambda: engines.ended(database), within=120.0, what="every job to succeed")
        after = [procs.cpu_s(process.pid) for process in started] if procs.known() else []
    took = ask(database, "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM worker.jobs")
    return _JOBS / float(took), (sum(after) - sum(before)) * 1000 / _JOBS
