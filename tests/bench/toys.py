"""Kinds of jobs whose effects do nothing but say when they began; registered beside the real ones by the bench's daemon."""

import os
from datetime import timedelta
from threading import Event
from time import monotonic_ns
from typing import Any, Final

from sqlalchemy import text

from worker.engine.kinds import Arg, Kind
from worker.engine.machine import NOTHING, SECOND, Done, Effect, Machine, NotYet, Passage, Retry, Step

_RETRY: Final = Retry(attempts=3, first=timedelta(milliseconds=10), ceiling=SECOND)
#: Where `held` says that it began, because a step that dies with its process stores nothing by itself.
STARTS: Final = "CREATE TABLE public.bench_starts (job uuid NOT NULL, pid int NOT NULL, at_ns bigint NOT NULL)"


def no_op(_passage: Passage, _world: object) -> Done:
    """Nothing at all."""
    return Done()


def stamped(_passage: Passage, _world: object) -> Done:
    """When it began, on the clock that all processes of a machine share."""
    return Done({"at_ns": monotonic_ns()})


def held(passage: Passage, world: Any) -> Done | NotYet:
    """The first time it stays until its process is stopped; the second time it says when it began."""
    at_ns = monotonic_ns()
    with world.engine.begin() as connection:
        before = connection.execute(
            text("SELECT count(*) FROM public.bench_starts WHERE job = :job"), {"job": passage.id}
        ).scalar_one()
        connection.execute(
            text("INSERT INTO public.bench_starts VALUES (:job, :pid, :at)"), {"job": passage.id, "pid": os.getpid(), "at": at_ns}
        )
    if before:
        return Done()
    while not passage.stopping():
        Event().wait(0.02)
    return NotYet("another process", SECOND)


def _kind(name: str, *effects: Effect, queue: str | None = None) -> Kind:
    rows = tuple(Step(f"s{n}", do=do, undo=NOTHING, within=60 * SECOND, retry=_RETRY) for n, do in enumerate(effects, 1))
    return Kind(Machine(name, rows, only_forward=False), "bench:", "id", {"id": Arg("uuid")}, queue)


FIVE: Final = _kind("bench.five", *[no_op] * 5, queue="bench")
ONE: Final = _kind("bench.one", no_op, queue="bench")


def numbered(number: int) -> Kind:
    """One of many kinds, because a subject has at most one live job of each."""
    return _kind(f"bench.one{number}", no_op, queue="bench")


STAMPED: Final = _kind("bench.stamped", stamped)
HELD: Final = _kind("bench.held", held)
