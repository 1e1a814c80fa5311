"""What comes round is done once, by whoever is first, and only the database's clock says when."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import ask, remember, toy_kind
from tests.waiting import until
from worker.domain import Secret
from worker.engine.clock import Enqueue, Outcome, Schedule, Sweep, keep_time, tick
from worker.errors import Refused, Unreachable
from worker.store import connect
from worker.store.clock import DatabaseSlots, last_slots

AGE = timedelta(days=1000)  #: so long that no test crosses into the next slot
SUBJECT = str(uuid4())


def sweep(answer: Callable[[], Outcome]) -> Schedule:
    def run(_world: Any, _stopping: Callable[[], bool]) -> Outcome:
        return answer()

    return Schedule("broom", AGE, run, "sweeps")


def counted(every: timedelta = AGE) -> tuple[list[int], Schedule]:
    """A schedule, and a list that grows by one each time that it is done."""
    swept: list[int] = []

    def run(_world: Any, _stopping: Callable[[], bool]) -> Outcome:
        swept.append(1)
        return {}

    return swept, Schedule("broom", every, run, "sweeps")


def refuse() -> Outcome:
    raise Refused("sweep floor: there is none", code="no_floor")


def go_away() -> Outcome:
    raise Unreachable("sweep floor: no answer")


def do_tick(database: Database, *schedules: Schedule) -> float:
    return tick(schedules, DatabaseSlots(database.engine), None, lambda: False)


def one(database: Database, statement: str) -> Any:
    with database.engine.connect() as connection:
        return connection.execute(text(statement)).one()


def run(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_a_slot_is_the_database_clock_by_the_length_and_its_outcome_is_kept(database: Database) -> None:
    pause = do_tick(database, sweep(lambda: {"swept": 3}))

    slot = one(
        database, "SELECT *, to_timestamp(floor(extract(epoch FROM now()) / 86400000) * 86400000) AS wanted FROM worker.slots"
    )
    assert (slot.schedule, slot.slot, slot.outcome) == ("broom", slot.wanted, {"swept": 3})
    assert slot.finished_at >= slot.started_at
    assert 0 < pause <= 10


def test_a_slot_is_done_once_however_often_clocks_tick(database: Database) -> None:
    swept, schedule = counted()
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(do_tick, database, schedule) for _ in range(32)]:
            done.result()

    assert swept == [1]
    assert one(database, "SELECT count(*) FROM worker.slots")[0] == 1


def test_the_next_slot_is_a_new_turn_and_missed_ones_are_not_made_up(database: Database) -> None:
    swept, schedule = counted()
    do_tick(database, schedule)
    run(database, "UPDATE worker.slots SET slot = slot - interval '5000 days'")

    do_tick(database, schedule)

    assert len(swept) == 2
    assert one(database, "SELECT count(*) FROM worker.slots")[0] == 2


def test_two_clocks_side_by_side_share_the_slots(database: Database) -> None:
    swept, schedule = counted(timedelta(seconds=1))
    stop = Event()
    clocks = [Thread(target=keep_time, args=([schedule], DatabaseSlots(database.engine), None, stop)) for _ in range(2)]
    for clock in clocks:
        clock.start()
    until(lambda: len(swept) >= 3)
    stop.set()
    for clock in clocks:
        clock.join(10)

    assert len(swept) == one(database, "SELECT count(*) FROM worker.slots WHERE finished_at IS NOT NULL")[0]


@pytest.mark.parametrize(("fault", "code"), [(refuse, "no_floor"), (lambda: {"x": 1 // 0}, "internal")])
def test_a_sweep_that_fails_says_so_and_the_next_schedule_is_done(
    database: Database, fault: Callable[[], Outcome], code: str
) -> None:
    after = Schedule("after", AGE, lambda *_: {"done": 1}, "comes after")

    do_tick(database, sweep(fault), after)

    with database.engine.connect() as connection:
        slots = last_slots(connection)
    assert slots["broom"]["outcome"] == {"error": code}
    assert slots["after"]["outcome"] == {"done": 1}


def test_a_sweep_that_died_half_way_is_not_finished_and_is_repeated_at_its_next_slot(database: Database) -> None:
    with pytest.raises(Unreachable):
        do_tick(database, sweep(go_away))
    assert one(database, "SELECT finished_at, outcome FROM worker.slots") == (None, None)
    do_tick(database, sweep(lambda: {"twice": 1}))
    assert one(database, "SELECT finished_at FROM worker.slots")[0] is None

    run(database, "UPDATE worker.slots SET slot = slot - interval '1000 days'")
    do_tick(database, sweep(lambda: {"again": 1}))

    with database.engine.connect() as connection:
        assert last_slots(connection)["broom"]["outcome"] == {"again": 1}


def test_an_enqueue_is_stored_with_its_slot_as_its_key(database: Database) -> None:
    remember(database, toy_kind())
    schedule = Schedule("nightly", AGE, Enqueue("toy.make", {"id": SUBJECT}), "makes toys")
    for _ in range(3):
        do_tick(database, schedule)

    job = one(database, "SELECT * FROM worker.jobs")
    slot = one(database, "SELECT *, to_char(slot AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') AS name FROM worker.slots")
    assert (job.id, job.requested_by) == (slot.job_id, "clock:nightly")
    assert job.idempotency_key == f"nightly:{slot.name}+00:00"
    assert slot.outcome == {"enqueued": 1}
    assert slot.finished_at is not None


def test_a_slot_and_its_job_are_stored_together_or_not_at_all(database: Database) -> None:
    remember(database, toy_kind())
    run(
        database,
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'",
        "CREATE TRIGGER fail BEFORE UPDATE ON worker.slots FOR EACH ROW EXECUTE FUNCTION public.fail()",
    )
    with pytest.raises(Exception, match="no"):
        do_tick(database, Schedule("nightly", AGE, Enqueue("toy.make", {"id": SUBJECT}), "makes toys"))

    assert one(database, "SELECT (SELECT count(*) FROM worker.jobs), (SELECT count(*) FROM worker.slots)") == (0, 0)


def test_a_job_that_is_live_already_is_the_slots_job(database: Database) -> None:
    remember(database, toy_kind())
    live = ask(database, subject=SUBJECT)
    do_tick(database, Schedule("nightly", AGE, Enqueue("toy.make", {"id": SUBJECT}), "makes toys"))

    slot = one(database, "SELECT job_id::text, outcome FROM worker.slots")
    assert slot == (live, {"enqueued": 0})


def test_a_refused_enqueue_takes_its_slot_and_says_why(database: Database) -> None:
    do_tick(database, Schedule("nightly", AGE, Enqueue("toy.unknown", {}), "makes nothing"))

    assert one(database, "SELECT outcome FROM worker.slots")[0] == {"error": "bad_args"}


def test_a_clock_that_is_cut_off_goes_on_when_the_database_is_back(database: Database) -> None:
    swept, schedule = counted(timedelta(seconds=1))
    engine = connect.open_engine(database.url, name="clock", size=1)
    stop = Event()
    clock = Thread(target=keep_time, args=([schedule], DatabaseSlots(engine), None, stop))
    clock.start()
    until(lambda: swept)
    run(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'molecule-worker clock'")
    seen = len(swept)
    until(lambda: len(swept) >= seen + 2)
    stop.set()
    clock.join(10)
    engine.dispose()

    assert not clock.is_alive()


def test_a_database_that_is_away_is_said_as_such() -> None:
    engine = connect.open_engine(Secret("postgresql://a:b@127.0.0.1:1/x"), name="clock", size=1)
    with pytest.raises(Unreachable):
        DatabaseSlots(engine).take(sweep(dict))


@pytest.mark.parametrize(("name", "every"), [("", AGE), ("Mend", AGE), ("mend", timedelta(milliseconds=999))])
def test_a_schedule_that_could_not_be_kept_is_refused(name: str, every: timedelta) -> None:
    nothing: Sequence[Sweep] = [lambda *_: {}]
    with pytest.raises(ValueError, match="read schedule"):
        Schedule(name, every, nothing[0], "")
