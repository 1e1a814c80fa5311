"""A database of the first release is brought to head while it is in use: nobody is harmed by it, and nothing is left half."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from tests.conftest import Database
from tests.integration.locks.operators import deadlocks
from tests.integration.releases.first import FirstWorker, database_of_the_first_release
from tests.toys import ask, remember, toy_kind
from tests.waiting import until
from worker.domain import Secret
from worker.errors import Unreachable
from worker.store import connect, requests
from worker.store.in_use import mend
from worker.store.migrate import migrate

MAKE, OTHER = toy_kind(), toy_kind("toy.other")
REMOVE = toy_kind("toy.remove", steps=2, supersedes=True)
ERROR = {"code": "refused", "message": "make thing: no", "hint": "", "blame": "tenant", "step": "s1"}
#: Any number: of the lock at which a migration stands still where a test wants it to.
GATE = 4711


@pytest.fixture
def first(postgres: str) -> Iterator[Database]:
    with database_of_the_first_release(postgres, MAKE, OTHER, REMOVE) as database:
        yield database


def rows(database: Database, query: str, **values: Any) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


@contextmanager
def transaction(url: Secret, name: str, *statements: str) -> Iterator[Any]:
    """A caller's, open to the end."""
    with closing(connect.open_raw(url, name=name)) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        for statement in statements:
            cursor.execute(statement)
        yield cursor
        connection.rollback()


def waiting(database: Database) -> int:
    return len(rows(database, "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'"))


def test_a_migration_that_somebody_stands_in_the_way_of_says_who_and_changes_nothing(first: Database) -> None:
    with transaction(first.url, "platform", "SELECT count(*) FROM worker.jobs"), pytest.raises(Unreachable) as raised:
        migrate(first.engine, patience_s=0.1)

    assert "molecule-worker platform (pid " in raised.value.message
    assert "held worker.jobs in a transaction for" in raised.value.message
    assert raised.value.hint
    assert rows(first, "SELECT version_num FROM worker.alembic_version") == [("0001",)]
    assert rows(first, "SELECT to_regclass('worker.definitions')::text") == [(None,)]
    assert len(rows(first, "SELECT what FROM worker.violations")) == 0


def test_a_migration_that_somebody_stands_in_the_way_of_is_tried_again_and_says_so_each_time(first: Database) -> None:
    with ThreadPoolExecutor() as threads, capture_logs() as said:
        with transaction(first.url, "platform", "SELECT count(*) FROM worker.jobs"):
            migrating = threads.submit(migrate, first.engine)
            until(lambda: len(said) >= 2, what="two tries")
        migrating.result(timeout=20)

    assert [entry["tries"] for entry in said] == list(range(1, len(said) + 1))
    assert {entry["event"] for entry in said} == {"the schema is in use, migrating again"}
    assert rows(first, "SELECT version_num FROM worker.alembic_version") == [("0002",)]


#: What holds tables of ours and wants others next: a claim, an enqueue, a beat.
ORDERS = {
    "claim": ("jobs", "subjects", "kinds", "steps"),
    "enqueue": ("kinds", "jobs"),
    "beat": ("processes", "jobs"),
}


@pytest.mark.parametrize("tables", ORDERS.values(), ids=ORDERS.keys())
def test_nobody_who_is_at_work_meets_a_deadlock_with_the_migration(first: Database, tables: tuple[str, ...]) -> None:
    held, *wanted = [f"SELECT count(*) FROM worker.{table}" for table in tables]
    with ThreadPoolExecutor() as threads:
        with transaction(first.url, "at work", held) as cursor:
            migrating = threads.submit(migrate, first.engine)
            for query in wanted:
                until(lambda: waiting(first) > 0, what="the migration waits")
                cursor.execute(query)
        migrating.result(timeout=20)

    assert deadlocks(first) == 0


def test_whoever_reads_the_view_while_the_migration_waits_meets_no_deadlock_either(first: Database) -> None:
    with ThreadPoolExecutor() as threads:
        with transaction(first.url, "at work", "SELECT count(*) FROM worker.jobs"):
            migrating = threads.submit(migrate, first.engine)
            until(lambda: waiting(first) > 0, what="the migration waits")
            reading = threads.submit(rows, first, "SELECT count(*) FROM worker.job_status")
            until(lambda: waiting(first) > 1 or reading.done(), what="the reader waits behind it")
        migrating.result(timeout=20)

    assert reading.result(timeout=20) == [(0,)]
    assert deadlocks(first) == 0


def test_a_job_at_rest_is_not_written_anew_and_one_that_is_retried_has_the_definition_of_its_own_steps(first: Database) -> None:
    worker = FirstWorker(first)
    jobs = [ask(first), ask(first, "toy.remove")]
    for claimed in worker.claim(5):
        worker.apply(claimed, 0, status="failed", next="rest", rest="failed", job_error=ERROR, error=ERROR)
    live = ask(first)
    before = rows(first, "SELECT id::text, xmin::text FROM worker.jobs WHERE state = 'failed' ORDER BY seq")
    migrate(first.engine)
    remember(first, toy_kind(steps=4), OTHER, REMOVE)

    assert rows(first, "SELECT id::text, xmin::text FROM worker.jobs WHERE state = 'failed' ORDER BY seq") == before
    with first.engine.begin() as connection:
        for job in jobs:
            requests.retry(connection, job, requested_by="test")
    own = "SELECT j.id::text, d.kind, d.steps = j.steps, d.first, j.supersedes FROM worker.jobs j JOIN worker.definitions d ON d.id = j.definition"
    assert rows(first, f"{own} ORDER BY j.seq") == [
        (jobs[0], "toy.make", True, True, False),
        (jobs[1], "toy.remove", True, True, True),
        (live, "toy.make", True, True, False),
    ]
    worker.leave()


@contextmanager
def stands_still(database: Database) -> Iterator[None]:
    """The next migration stands still with all its locks held, until the block is left."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION public.wait_at_the_gate() RETURNS event_trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$"
            f"BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); END $$;"
            "CREATE EVENT TRIGGER gate ON ddl_command_start WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION public.wait_at_the_gate()"
        )
    with closing(connect.open_raw(database.url, name="gate")) as gate, gate.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP EVENT TRIGGER gate; DROP FUNCTION public.wait_at_the_gate()")


def test_what_calls_of_the_first_release_left_that_were_under_way_is_mended(first: Database) -> None:
    worker, other, third = (FirstWorker(first) for _ in range(3))
    shared = str(uuid4())
    held, behind = ask(first, subject=shared), ask(first, "toy.other", subject=shared)
    (claimed,) = worker.claim(1, held)
    ended = ask(first)
    (last,) = other.claim(1, ended)
    late = "2999-01-01T00:00:00Z"
    calls: list[Future[Any]] = []
    with ThreadPoolExecutor() as threads:
        with stands_still(first):
            migrating = threads.submit(migrate, first.engine)
            until(lambda: rows(first, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"), what="at the gate")
            calls = [
                threads.submit(ask, first, "toy.remove", run_at=late),
                threads.submit(third.claim, 1, behind),
                threads.submit(other.apply, last, 0, status="failed", next="rest", rest="failed", job_error=ERROR, error=ERROR),
            ]
            until(lambda: waiting(first) >= len(calls), what="they wait for it")
        migrating.result(timeout=20)
        delayed, parked, replies = [call.result(timeout=20) for call in calls]
    assert (len(parked), len(replies)) == (0, 1)
    remember(first, MAKE, OTHER, REMOVE)
    query = (
        "SELECT j.definition IS NULL, j.due, j.supersedes, j.parked, coalesce(s.awaited, false) "
        "FROM worker.jobs j LEFT JOIN worker.subjects s ON s.key = j.subject WHERE j.id = CAST(:id AS uuid)"
    )
    assert rows(first, query, id=delayed) == [(True, True, False, False, False)], "what is to be mended"
    assert rows(first, query, id=behind) == [(False, True, False, True, False)], "what is to be mended"

    mend(first.engine)

    assert rows(first, query, id=delayed) == [(False, False, True, False, False)]
    assert rows(first, query, id=behind) == [(False, True, False, True, True)]
    assert rows(first, "SELECT state FROM worker.jobs WHERE id = CAST(:id AS uuid)", id=ended) == [("failed",)]
    for position in range(3):
        worker.done(claimed, position)
    assert [job["id"] for job in other.claim(5)] == [behind]
    for one in (worker, other, third):
        one.leave()


def test_a_call_that_is_still_under_way_is_waited_for_and_then_mended(first: Database) -> None:
    migrate(first.engine)
    looks = (
        "SELECT DISTINCT query_start FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%virtualtransaction%'"
    )
    job = (
        "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward) "
        "VALUES ('toy.make', 'toy:x', 'toy', '{}', '{s1,s2,s3}', false)"
    )
    seen: set[Any] = set()

    def looked() -> bool:
        seen.update(rows(first, looks))
        return mending.done() or len(seen) > 3

    with ThreadPoolExecutor() as threads:
        with transaction(first.url, "platform", job) as caller:
            mending = threads.submit(mend, first.engine)
            until(looked, what="it looks again and again")
            caller.execute("COMMIT")
        mending.result(timeout=20)

    assert rows(first, "SELECT definition IS NULL FROM worker.jobs") == [(False,)]
