"""What the clock sweeps in our own tables. Each transaction is small and bounded, so that nobody ever waits for a sweep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, Row, text

from worker.engine.clock import Outcome
from worker.store.clock import answered

log = structlog.get_logger()

#: Rows that one transaction looks at.
_BATCH: Final = 500
#: Transactions of one sweep of one kind: what is left then is found by the next slot.
_MOST: Final = 200
_KEEP_SLOTS: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Ground:
    """What sweeps can reach. With `pretend` they do everything and then take it back, so that their counts are true."""

    engine: Engine
    keep: timedelta  #: of jobs that succeeded or were cancelled
    keep_failed: timedelta
    pretend: bool = False

    @contextmanager
    def batch(self) -> Iterator[Connection]:
        """One transaction. Raises Unreachable."""
        with answered("sweep"), self.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            if self.pretend:
                transaction.rollback()


def retention(ground: Ground, stopping: Callable[[], bool]) -> Outcome:
    """Forget jobs that came to rest long ago, with their steps and events. What exists outside keeps the job that made it."""
    counts = {"jobs": 0, "steps": 0, "events": 0, "kept": 0, "slots": 0}
    with ground.batch() as connection:
        kinds: list[str] = connection.execute(text("SELECT worker.rested_kinds()")).scalar_one()
        counts["slots"] = connection.execute(
            text("SELECT worker.forget_slots(:keep, :most)"), {"keep": _KEEP_SLOTS, "most": _BATCH * 10}
        ).scalar_one()
    for kind in kinds:
        for row in _forgotten(ground, kind, stopping):
            for name in ("jobs", "steps", "events", "kept"):
                counts[name] += getattr(row, name)
    return counts


def durations(ground: Ground, stopping: Callable[[], bool]) -> Outcome:
    """Measure how long steps took lately: where an ETA comes from."""
    measured = 0
    with ground.batch() as connection:
        kinds: list[str] = connection.execute(text("SELECT worker.rested_kinds()")).scalar_one()
    for kind in kinds:
        if stopping():
            break
        with ground.batch() as connection:
            measured += connection.execute(text("SELECT worker.measure_durations(:kind)"), {"kind": kind}).scalar_one()
    return {"kinds": len(kinds), "measured": measured}


def mend(ground: Ground, stopping: Callable[[], bool]) -> Outcome:
    """Free jobs that wait for nothing. It should never find one: each is a fault of ours, and is said."""
    parked = [job for jobs in _unparked(ground, stopping) for job in jobs]
    with ground.batch() as connection:
        paused = connection.execute(text("SELECT worker.mend_paused(:most)::text[]"), {"most": _BATCH}).scalar_one()
    with ground.batch() as connection:
        undefined = connection.execute(text("SELECT worker.mend_undefined(:most)::text[]"), {"most": _BATCH}).scalar_one()
    found = (("parked behind nobody", parked), ("paused without a pause", paused), ("without a definition", undefined))
    for was, jobs in found:
        for job in jobs:
            log.warning("job mended", job=job, was=was, pretended=ground.pretend)
    return {"parked": len(parked), "paused": len(paused), "undefined": len(undefined)}


def _forgotten(ground: Ground, kind: str, stopping: Callable[[], bool]) -> Iterator[Row[Any]]:
    place: tuple[object, object] = (None, None)
    for _ in range(_MOST):
        if stopping():
            return
        with ground.batch() as connection:
            row = connection.execute(
                text("SELECT * FROM worker.forget_jobs(:kind, :keep, :keep_failed, :most, :place, CAST(:id AS uuid))"),
                {
                    "kind": kind,
                    "keep": ground.keep,
                    "keep_failed": ground.keep_failed,
                    "most": _BATCH,
                    "place": place[0],
                    "id": place[1],
                },
            ).one()
        yield row
        place = (row.place, row.place_id)
        if row.place is None:
            return


def _unparked(ground: Ground, stopping: Callable[[], bool]) -> Iterator[list[str]]:
    place = None
    for _ in range(_MOST):
        if stopping():
            return
        with ground.batch() as connection:
            row = connection.execute(
                text("SELECT place, healed::text[] AS healed FROM worker.mend_parked(:most, :place)"),
                {"most": _BATCH, "place": place},
            ).one()
        yield row.healed
        place = row.place
        if place is None:
            return
