from threading import Event
from time import monotonic

from sqlalchemy import text

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.toys import Stage, ask, process, remember, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, Passage

KIND = toy_kind()


def test_a_job_that_meets_a_boundary_while_a_beat_is_late_goes_on(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    left, entered, leave = Event(), Event(), Event()

    def hold(_: Passage) -> Done:
        entered.set()
        leave.wait(10)
        return Done()

    stage.script["s1"] = hold
    with process(database, stage, KIND, left=left) as runtime:
        job = ask(database)
        entered.wait(5)
        # A statement on the process's row makes the next beat late, yet not so late that the lease is over.
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM worker.processes FOR UPDATE"))
            until(lambda: monotonic() > runtime._lease._sent + 2.55)
            leave.set()
            Event().wait(0.1)
        ends(database, job, "succeeded")

    assert not left.is_set()
