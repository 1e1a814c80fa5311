from threading import Event
from typing import Any, Self

import psycopg2
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, toy_kind
from tests.waiting import until

KIND = toy_kind()


class CutAfterCommit:
    """A connection that breaks between the commit of a claim and its answer."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.closed = 0
        self.rows: list[Any] = []

    def cursor(self) -> "CutAfterCommit":
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, values: Any) -> None:
        with self.real.cursor() as cursor:
            cursor.execute(statement, values)
            self.rows = cursor.fetchall()
        if self.rows:
            self.close()
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    def fetchall(self) -> list[Any]:
        return self.rows

    def close(self) -> None:
        self.real.close()
        self.closed = 2


def test_a_process_whose_claim_broke_after_the_commit_leaves_in_doubt(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    left = Event()
    with process(database, stage, KIND, left=left) as runtime:
        metered: Any = runtime._intake._claims
        claims = metered._own
        until(lambda: claims._connection is not None)
        with claims._guard:
            claims._connection = CutAfterCommit(claims._connection)
        job = ask(database)
        until(lambda: state(database, job) == "running")
        assert left.wait(2), "the row says running, and a process that lives on does not know"
        with database.engine.connect() as connection:
            said = "SELECT in_doubt FROM worker.jobs j JOIN worker.processes p ON p.id = j.process_id WHERE j.id = :job"
            assert connection.execute(text(said), {"job": job}).scalar_one(), "no step is to blame"
