from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.proxy import JOURNAL, between
from tests.toys import Stage, ask, process, remember, status, toy_kind
from tests.waiting import until
from worker.engine.machine import Done
from worker.runtime import Runtime
from worker.store.journal import Journal

KIND = toy_kind()


def broken_rows(_connection: Any) -> None:
    raise KeyError("a bug")


def refused_rows(connection: Any) -> None:
    connection.exec_driver_sql("INSERT INTO worker.jobs (kind) VALUES ('half a row')")


def slow_rows(connection: Any) -> None:
    connection.exec_driver_sql("SET LOCAL statement_timeout = 20")
    connection.exec_driver_sql("SELECT pg_sleep(5)")


@contextmanager
def watched(database: Database, stage: Stage) -> Iterator[Runtime]:
    left = Event()
    remember(database, KIND)
    with process(database, stage, KIND, left=left) as runtime:
        yield runtime
    assert not left.is_set(), "one bad record took the whole process along"


@pytest.mark.parametrize(
    "answer",
    [
        lambda: Done({"config": "a NUL\0byte"}),
        lambda: Done({"things": {1, 2}}),
        lambda: Done(rows=broken_rows),
        lambda: Done(rows=refused_rows),
        lambda: Done(rows=slow_rows),
        lambda: Done(rows=lambda _: {"things": {1, 2}}),
    ],
    ids=[
        "refused facts",
        "facts that are no JSON",
        "bug in rows",
        "rows refused",
        "rows out of time",
        "facts of rows that are no JSON",
    ],
)
def test_a_decision_that_cannot_be_written_fails_its_step_and_nothing_else(
    database: Database, stage: Stage, answer: Callable[[], Done]
) -> None:
    bad = str(uuid4())
    stage.script["s1"] = lambda passage: answer() if passage.args["id"] == bad else Done()
    with watched(database, stage):
        job = ask(database, subject=bad)
        ends(database, ask(database), "succeeded", within=5)
        ends(database, job, "failed", within=5)


def test_rows_that_find_no_free_connection_cost_an_attempt_and_not_the_process(database: Database, stage: Stage) -> None:
    stage.script["s1"] = lambda _: Done(rows=lambda _connection: None)
    with watched(database, stage) as runtime:
        pool: Any = runtime._engine.pool
        pool._timeout = 0.5
        held = [runtime._engine.connect() for _ in range(16)]
        job = ask(database)
        until(lambda: status(database, job)["attempt"] >= 1, what="an attempt that found no connection")
        for connection in held:
            connection.close()
        ends(database, job, "succeeded", within=5)


def test_the_journal_outlives_a_connection_that_could_not_be_opened(database: Database) -> None:
    with between(database) as (proxy, url):
        proxy.refuse(JOURNAL, times=1)
        journal = Journal(url, database.engine, name="test", answer_s=3)
        assert journal.apply({"job": str(uuid4()), "fence": 1, "name": "s1"}) is None
        journal.close()
