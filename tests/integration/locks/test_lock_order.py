"""Everybody at once on few subjects: no deadlock, no stray SQLSTATE, and when they stop everything ends."""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import structlog
from sqlalchemy import text

from tests.conftest import Database
from tests.integration.locks.operators import (
    KINDS,
    REFUSALS,
    Crowd,
    Places,
    World,
    deadlocks,
    ended,
    holds_open,
    mortal,
    resume_all,
    somebody,
)
from tests.system.size import full
from tests.toys import process, remember
from tests.waiting import until
from worker.engine.drive import Journal, Record
from worker.engine.machine import Facts
from worker.engine.walk import Reply

SECONDS = 60.0 if full() else 3.0
#: When the server looks for deadlocks, milliseconds: clear of the 50 for which a worker's batch waits before it gives up by itself, as
#: it is by twenty times where nobody set it. A circle that lasts is found all the same.
CLEAR_MS = 500


class Noted:
    """The journal of a worker process; what it could not write is noted."""

    def __init__(self, own: Journal, broken: list[str]) -> None:
        self._own = own
        self._broken = broken

    def apply(self, record: Record) -> Reply | None:
        return self._noted(lambda: self._own.apply(record))

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        return self._noted(lambda: self._own.apply_with(record, rows))

    def _noted(self, call: Callable[[], Reply | None]) -> Reply | None:
        try:
            return call()
        except BaseException as error:
            self._broken.append(f"worker: {getattr(error, 'code', error)}")
            raise


@contextmanager
def scene(database: Database, deadlock_ms: int) -> Iterator[tuple[Crowd, World, Event]]:
    """Two worker processes at work, and a crowd that has not begun."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET deadlock_timeout = {deadlock_ms}"))
    database.engine.dispose()
    remember(database, *KINDS)
    places = Places(database)
    seed = int(os.environ.get("MOLECULE_TEST_SEED") or random.randrange(10**6))
    print(f"\nseed {seed} (MOLECULE_TEST_SEED)")  # noqa: T201  because pytest shows it on failure
    crowd = Crowd(database, places, seed)
    world, left = World(places=places, dice=random.Random(seed)), Event()
    with ExitStack() as opened:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        opened.callback(structlog.reset_defaults)
        for _ in range(2):
            opened.enter_context(
                process(database, world, *KINDS, slots=6, poll_s=0.05, left=left, journal_of=lambda own: Noted(own, crowd.broken))
            )
        yield crowd, world, left


def everything_ends(crowd: Crowd, world: World, left: Event) -> None:
    world.calm.set()
    resume_all(crowd.database)
    until(lambda: ended(crowd.database), within=30, what="all jobs at rest")
    assert not left.is_set(), "a worker process gave up"
    with crowd.database.engine.connect() as connection:
        states = Counter(dict(map(tuple, connection.execute(text("SELECT state, count(*) FROM worker.jobs GROUP BY 1")))))
    print(f"done {dict(crowd.done)}; refused {dict(crowd.refused)}; ends {dict(states)}")  # noqa: T201  see above
    assert sum(states.values()) > 20


def refused_for_a_reason(crowd: Crowd) -> bool:
    return {what.split()[-1] for what in crowd.refused} <= REFUSALS | {"55P03"}


def test_whoever_asks_for_one_thing_at_a_time_never_meets_a_deadlock(database: Database) -> None:
    with scene(database, CLEAR_MS) as (crowd, world, left):
        crowd.act(SECONDS, [*[somebody] * 8, mortal, mortal])
        everything_ends(crowd, world, left)

    assert crowd.broken == []
    assert refused_for_a_reason(crowd)
    assert deadlocks(database) == 0


def test_programs_that_ask_for_several_things_in_order_of_subject_never_meet_a_deadlock(database: Database) -> None:
    with scene(database, CLEAR_MS) as (crowd, world, left):
        crowd.act(SECONDS, [*[holds_open(in_order=True)] * 6, *[somebody] * 3, mortal])
        everything_ends(crowd, world, left)

    assert crowd.broken == []
    assert refused_for_a_reason(crowd)
    assert deadlocks(database) == 0


def test_programs_that_ask_in_any_order_may_meet_a_deadlock_and_nothing_is_lost_by_it(database: Database) -> None:
    with scene(database, 200) as (crowd, world, left):
        # Theirs, and whoever stands in the same queue can be its victim. A worker that is tries again by itself.
        crowd.expected |= {"40P01"}
        crowd.act(SECONDS, [*[holds_open(in_order=False)] * 6, *[somebody] * 2], until=lambda: deadlocks(database) > 0)
        everything_ends(crowd, world, left)

    # A step whose rows were the victim's is tried again, as the ends show.
    assert [what for what in crowd.broken if what != "worker: database_busy"] == []
    assert deadlocks(database) > 0
