from threading import Event
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.toys import Stage, ask, process, remember, toy_kind
from worker.engine.machine import Blocked, Done, Passage
from worker.errors import Refused
from worker.store import requests
from worker.store.jobs import MAX_CRASHES, Claims, Register

KIND = toy_kind()
GONE = toy_kind("toy.remove", steps=2, only_forward=True, supersedes=True, widens=("deep",))


def held(stage: Stage, answer: Any) -> tuple[Event, Event]:
    """The first s1 waits for the second event and then answers."""
    entered, leave = Event(), Event()

    def hold(passage: Passage) -> Any:
        if entered.is_set():
            return Done()
        entered.set()
        leave.wait(10)
        return answer(passage)

    stage.script["s1"] = hold
    return entered, leave


def refuse(_: Passage) -> Any:
    raise Refused("remove thing: it has children")


def test_a_job_that_blocks_after_it_was_superseded_does_not_hold_up_its_deletion(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    entered, leave = held(stage, lambda _: Blocked("a person must sign"))
    subject = str(uuid4())
    with process(database, stage, KIND, GONE):
        made = ask(database, subject=subject)
        entered.wait(10)
        gone = ask(database, "toy.remove", subject)
        leave.set()
        ends(database, gone, "succeeded", within=5)
        ends(database, made, "cancelled")


def test_a_job_that_blocks_after_it_was_cancelled_is_undone(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    entered, leave = held(stage, lambda _: Blocked("a person must sign"))
    with process(database, stage, KIND):
        job = ask(database)
        entered.wait(10)
        with database.engine.begin() as connection:
            requests.cancel(connection, job, "never mind", requested_by="test")
        leave.set()
        ends(database, job, "cancelled", within=5)


def test_a_job_that_blocks_after_it_was_widened_looks_again(database: Database, stage: Stage) -> None:
    remember(database, GONE)
    entered, leave = held(stage, refuse)
    subject = str(uuid4())
    with process(database, stage, GONE):
        job = ask(database, "toy.remove", subject)
        entered.wait(10)
        assert ask(database, "toy.remove", subject, args={"deep": True}) == job
        leave.set()
        ends(database, job, "succeeded", within=5)


def test_a_superseded_job_whose_process_died_once_too_often_ends(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    subject = str(uuid4())
    made = ask(database, subject=subject)
    register = Register(database.url, name="dead", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="dead")
    assert claims.claim(["toy"], 1)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET crashes = :n"), {"n": MAX_CRASHES - 1})
    gone = ask(database, "toy.remove", subject)
    claims.close()
    register.close()
    with process(database, stage, KIND, GONE):
        ends(database, gone, "succeeded", within=8)
        ends(database, made, "cancelled")
