"""Who must not wait does not, and two who come at the same moment leave nothing behind."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.engine.machine import HOUR, Child, Done, NotYet, Passage, Spread
from worker.errors import Fatal
from worker.store import connect
from worker.store.jobs import Register

KIND, OTHER = toy_kind(), toy_kind("toy.other")
PARENT = toy_kind("toy.parent")
CHILD = Kind(toy_kind("toy.child", steps=1).machine, "toy:", "id", PARENT.args, "toy")
#: Milliseconds after which whoever should not wait is said to have waited.
NEVER_MS = 2000


@contextmanager
def session(database: Database, name: str, *, held_open: bool = False) -> Iterator[Any]:
    """A connection of its own; one that is held open commits when it is told to."""
    with closing(connect.open_raw(database.url, name=name)) as connection:
        connection.autocommit = not held_open
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {NEVER_MS}")
            yield cursor


def asked(cursor: Any, query: str) -> list[tuple[Any, ...]]:
    cursor.execute(query)
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def claim(cursor: Any, register: Register) -> list[str]:
    cursor.execute("SELECT id::text FROM worker.claim(%s, ARRAY['toy'], 10)", (register.process_id,))
    return [row[0] for row in cursor.fetchall()]


@pytest.fixture
def registers(database: Database) -> Iterator[list[Register]]:
    entered = [Register(database.url, name="t", pid=n, lease_s=30) for n in range(2)]
    yield entered
    for register in entered:
        register.close()


def waits(database: Database) -> bool:
    with database.engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(connection.execute(text(query)).scalar_one())


def test_a_claim_does_not_wait_for_another_that_takes_a_subject_for_the_first_time(
    database: Database, registers: list[Register]
) -> None:
    remember(database, KIND, OTHER)
    subject = str(uuid4())
    first = ask(database, subject=subject)
    with session(database, "one", held_open=True) as one, session(database, "two") as two:
        assert claim(one, registers[0]) == [first]
        second, free = ask(database, "toy.other", subject, priority=1), ask(database)
        assert claim(two, registers[1]) == [free]
        one.connection.commit()
        assert claim(two, registers[1]) == []
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT parked FROM worker.jobs WHERE id = :id"), {"id": second}).scalar_one()


def test_a_claim_does_not_wait_for_a_child_that_is_being_retried(database: Database, registers: list[Register]) -> None:
    remember(database, PARENT, CHILD)
    subject, stage = str(uuid4()), Stage()

    def spread(passage: Passage) -> Any:
        return Spread([Child("toy.child", {"id": subject})], most=1) if passage.children is None else Done()

    def refuse(_: Passage) -> Any:
        raise Fatal("make thing: no")

    stage.script["s2"] = spread
    stage.script["s1"] = lambda passage: refuse(passage) if passage.kind == "toy.child" else Done()
    with process(database, stage, PARENT, CHILD):
        parent = ask(database, "toy.parent")
        until(lambda: state(database, parent) == "succeeded")
    with session(database, "person", held_open=True) as person, session(database, "two") as two:
        two.execute("UPDATE worker.children SET told = false")
        person.execute("SELECT worker.retry(job_id) FROM worker.children")
        claim(two, registers[0])
        person.connection.rollback()


def test_two_pauses_that_are_lifted_at_once_leave_nothing_paused(database: Database, registers: list[Register]) -> None:
    remember(database, KIND)
    job = ask(database)
    with (
        session(database, "one", held_open=True) as one,
        session(database, "two") as two,
        ThreadPoolExecutor(1) as pool,
    ):
        two.execute("SELECT worker.pause('kind', 'toy.make'), worker.pause('all', '')")
        assert claim(two, registers[0]) == []
        one.execute("SELECT worker.resume('kind', 'toy.make')")
        lifted: Future[Any] = pool.submit(two.execute, "SELECT worker.resume('all', '')")
        until(lambda: lifted.done() or waits(database))
        one.connection.commit()
        lifted.result()
        assert claim(two, registers[0]) == [job]


def test_a_key_that_two_use_at_once_for_different_things_is_refused_to_the_second(database: Database) -> None:
    remember(database, KIND)
    subjects = [str(uuid4()) for _ in range(2)]
    for subject in subjects:
        ask(database, subject=subject)
    query = "SELECT * FROM worker.enqueue('toy.make', json_build_object('id', %s)::jsonb, 'k')"
    with session(database, "one", held_open=True) as one, session(database, "two") as two, ThreadPoolExecutor(1) as pool:
        one.execute(query, (subjects[0],))
        second: Future[Any] = pool.submit(two.execute, query, (subjects[1],))
        until(lambda: waits(database))
        one.connection.commit()
        with pytest.raises(psycopg2.Error) as refusal:
            second.result()

    assert refusal.value.pgcode == "MW002"


def test_a_parent_does_not_wait_for_a_program_that_holds_its_childs_subject(database: Database) -> None:
    remember(database, PARENT, CHILD)
    subject, stage = str(uuid4()), Stage()
    stage.script["s2"] = lambda p: Spread([Child("toy.child", {"id": subject})], most=1) if p.children is None else Done()
    with session(database, "program", held_open=True) as program:
        program.execute("SELECT job_id::text FROM worker.enqueue('toy.child', json_build_object('id', %s)::jsonb)", (subject,))
        (joined,) = program.fetchone()
        with process(database, stage, PARENT, CHILD):
            parent = ask(database, "toy.parent")
            until(lambda: state(database, parent) == "waiting")
            # What would be a deadlock, if the parent's row were held by somebody who waits for the child's.
            program.execute("SELECT worker.cancel(%s, 'enough')", (parent,))
            program.connection.rollback()
            until(lambda: state(database, parent) == "succeeded", what="the child is started a second later")

    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM worker.jobs WHERE id = :id"), {"id": joined}).scalar_one() == 0


def test_a_child_that_another_parent_is_joining_is_not_cancelled(database: Database) -> None:
    remember(database, PARENT, CHILD)
    subject, stage = str(uuid4()), Stage()
    stage.script["s2"] = lambda p: Spread([Child("toy.child", {"id": subject})], most=1) if p.children is None else Done()
    stage.script["s1"] = lambda p: NotYet("the world", HOUR) if p.kind == "toy.child" else Done()
    with (
        process(database, stage, PARENT, CHILD),
        session(database, "other", held_open=True) as other,
        session(database, "person") as person,
    ):
        # Long enough to be seen waiting.
        person.execute("ALTER FUNCTION worker.drop_children(uuid, int) SET lock_timeout = '20s'")
        parent = ask(database, "toy.parent")
        child = until(lambda: asked(person, "SELECT id::text FROM worker.jobs WHERE kind = 'toy.child' AND state = 'waiting'"))[0][
            0
        ]
        later = ask(database, "toy.parent", run_at=datetime.now(UTC) + HOUR)
        other.execute("SELECT FROM worker.enqueue('toy.child', json_build_object('id', %s)::jsonb)", (subject,))
        join = "INSERT INTO worker.children (parent, position, number, kind, args, most, job_id) VALUES (%s, 1, 1, 'toy.child', '{}', 1, %s)"
        other.execute(join, (later, child))
        person.execute("SELECT worker.cancel(%s, 'enough')", (parent,))
        until(lambda: waits(database), what="the parent wants to drop it")
        other.connection.commit()
        until(lambda: state(database, parent) == "cancelled", what="the parent lets it go")

    assert state(database, child) == "waiting"
    assert status(database, child)["cancel_requested_at"] is None


def test_a_retried_parent_has_its_children_done_anew(database: Database) -> None:
    remember(database, PARENT, CHILD)
    subject, stage, broken = str(uuid4()), Stage(), [True]

    def spread(passage: Passage) -> Any:
        if passage.children is None:
            return Spread([Child("toy.child", {"id": subject})], most=1)
        if passage.children.failed:
            raise Fatal("make things: one failed")
        return Done()

    def fail_once(passage: Passage) -> Any:
        if passage.kind == "toy.child" and broken.pop():
            broken.append(False)
            raise Fatal("make thing: no")
        return Done()

    stage.script["s2"] = spread
    stage.script["s1"] = fail_once
    with process(database, stage, PARENT, CHILD), session(database, "person") as person:
        parent = ask(database, "toy.parent")
        until(lambda: state(database, parent) == "failed")
        person.execute("SELECT worker.retry(%s)", (parent,))
        until(lambda: status(database, parent)["finished_at"] is not None, what="the parent ends")

    assert state(database, parent) == "succeeded"
