from collections.abc import Callable
from threading import Thread

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind
from tests.waiting import until
from worker.store.jobs import MAX_CRASHES, Applier, Claims, Register

KIND = toy_kind()
_EARLY = {"direction": "forward", "position": 0, "name": "s1", "attempt": 0, "took_ms": 1, "status": "waiting", "what": "a kettle"}
_AGAIN = {"next": "wait", "after_ms": 0, "to_direction": "forward", "to_position": 0, "to_attempt": 0}
_GO = {"next": "go", "to_direction": "forward", "to_position": 1, "to_attempt": 0}


def dies(database: Database, last: Callable[[Database, Register], None] = lambda *_: None, *, writes: bool = False) -> None:
    """A process claims the job, perhaps writes a step, and its work is taken back. `last` is what it does, or what happens to it."""
    register = Register(database.url, name="test", pid=1, lease_s=60, knows={KIND.name: KIND.machine.names})
    claims = Claims(database.url, process_id=register.process_id, name="test")
    [claimed] = claims.claim(["toy"], 1)
    if writes:
        applier = Applier(database.url, name="test")
        applier.send([{"job": claimed.id, "fence": claimed.fence, **_EARLY, "status": "done", **_GO}])
        applier.close()
        run(database, f"UPDATE worker.jobs SET crashes = {MAX_CRASHES - 1}")  # which the write has forgotten, and reap must as well
    last(database, register)
    claims.close()
    register.close()
    reaper = Register(database.url, name="test", pid=1, lease_s=60)
    assert sum(reaper.reap().values()) == 1
    reaper.close()


def run(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def crashes(database: Database, job: str) -> int:
    with database.engine.connect() as connection:
        return int(connection.execute(text("SELECT crashes FROM worker.jobs WHERE id = :job"), {"job": job}).scalar_one())


def due(database: Database, job: str) -> bool:
    with database.engine.connect() as connection:
        query = text("SELECT due AND run_at <= clock_timestamp() FROM worker.jobs WHERE id = :job")
        return bool(connection.execute(query, {"job": job}).scalar_one())


def leaves_in_doubt(_: Database, register: Register) -> None:
    register.resign()


def loses_its_server(database: Database, register: Register) -> None:
    older = "server_started_at = server_started_at - interval '1 day'"
    run(database, f"UPDATE worker.processes SET {older} WHERE id = {register.process_id}")


def freezes(database: Database, register: Register) -> None:
    """Its lease ends, and it wakes up in doubt."""
    run(database, f"UPDATE worker.processes SET lease_until = clock_timestamp() WHERE id = {register.process_id}")
    register.resign()


blameless = pytest.mark.parametrize("last", [leaves_in_doubt, loses_its_server])


def test_only_crashes_without_a_decision_between_them_block_a_job(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)
    applier = Applier(database.url, name="test")
    for _ in range(MAX_CRASHES):
        register = Register(database.url, name="test", pid=1, lease_s=60)
        claims = Claims(database.url, process_id=register.process_id, name="test")
        [claimed] = claims.claim(["toy"], 1)
        applier.send([{"job": job, "fence": claimed.fence, **_EARLY, **_AGAIN}])
        claims.claim(["toy"], 1)
        claims.close()
        register.close()
        reaper = Register(database.url, name="test", pid=1, lease_s=60)
        assert sum(reaper.reap().values()) == 1
        reaper.close()
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE worker.jobs SET run_at = now()")
    applier.close()

    assert state(database, job) == "waiting"


@blameless
def test_a_step_is_not_blamed_for_a_process_that_left_in_doubt_or_with_its_server(
    database: Database, last: Callable[[Database, Register], None]
) -> None:
    remember(database, KIND)
    job = ask(database)
    for _ in range(MAX_CRASHES):
        dies(database, last)

    assert (state(database, job), crashes(database, job)) == ("waiting", 0)


@blameless
def test_what_a_step_was_blamed_for_stays_and_its_job_is_due_at_once(
    database: Database, last: Callable[[Database, Register], None]
) -> None:
    remember(database, KIND)
    job = ask(database)
    run(database, f"UPDATE worker.jobs SET crashes = {MAX_CRASHES}")  # called meanwhile, it is not blocked by its crashes

    dies(database, last)
    assert (state(database, job), crashes(database, job)) == ("waiting", MAX_CRASHES)
    assert due(database, job)
    dies(database)
    assert state(database, job) == "blocked"


@blameless
def test_a_step_that_was_written_since_is_not_blamed_for_those_before_it(
    database: Database, last: Callable[[Database, Register], None]
) -> None:
    remember(database, KIND)
    job = ask(database)

    dies(database, last, writes=True)
    assert (state(database, job), crashes(database, job)) == ("waiting", 0)


def test_a_process_that_froze_cannot_say_afterwards_that_it_is_in_doubt(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)

    dies(database, freezes)
    assert crashes(database, job) == 1


def test_what_a_process_says_while_somebody_looks_for_the_dead_is_heard(database: Database) -> None:
    remember(database, KIND)
    first, second = (ask(database, subject=f"00000000-0000-0000-0000-00000000000{n}") for n in (1, 2))
    register, reaper = (Register(database.url, name=name, pid=1, lease_s=60) for name in ("leaves", "reaper"))
    claims = Claims(database.url, process_id=register.process_id, name="leaves")
    assert len(claims.claim(["toy"], 2)) == 2
    claims.close()
    register.close()
    reap = Thread(target=reaper.reap)
    with database.engine.begin() as connection:
        # The look is over and the first job is at hand: what follows is as if the process had been about to say it.
        connection.execute(text("SELECT FROM worker.subjects ORDER BY key LIMIT 1 FOR UPDATE"))
        reap.start()
        until(lambda: waits(database, reaper), what="the look has found the dead")
        run(database, f"UPDATE worker.processes SET in_doubt = true WHERE id = {register.process_id}")
    reap.join()
    reaper.close()

    assert (crashes(database, first), crashes(database, second)) == (1, 0)


def waits(database: Database, register: Register) -> bool:
    with database.engine.connect() as connection:
        query = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")
        return bool(connection.execute(query, {"pid": register._connection.info.backend_pid}).scalar_one())
