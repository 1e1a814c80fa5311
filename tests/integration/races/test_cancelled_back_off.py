from datetime import timedelta
from threading import Event
from typing import Any

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.toys import SECOND, Stage, ask, process, remember, step
from tests.waiting import until
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import Machine, NotYet, Passage, Retry
from worker.errors import Retryable
from worker.store import requests

SLOW = Retry(attempts=3, first=10 * SECOND, ceiling=60 * SECOND)
KIND = Kind(Machine("toy.slow", (step("s1", retry=SLOW), step("s2")), only_forward=False), "toy:", "id", {"id": Arg("uuid")}, "toy")


def away(_: Passage) -> Any:
    raise Retryable("undo thing: away")


def test_the_undo_of_a_cancelled_job_backs_off(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script |= {"s2": lambda _: NotYet("long", timedelta(hours=1)), "undo s1": away}
    with process(database, stage, KIND):
        job = ask(database, "toy.slow")
        ends(database, job, "waiting")
        with database.engine.begin() as connection:
            requests.cancel(connection, job, "never mind", requested_by="test")
        until(lambda: "undo s1" in stage.calls)
        Event().wait(1)

    assert stage.calls.count("undo s1") == 1
