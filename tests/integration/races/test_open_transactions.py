from threading import Event
from uuid import uuid4

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.toys import Stage, ask, process, remember, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, Passage
from worker.store import requests

KIND = toy_kind()
GONE = toy_kind("toy.remove", steps=2, only_forward=True, supersedes=True)


def test_a_caller_that_does_not_commit_holds_up_its_own_subject_and_no_other(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    left, entered, leave = Event(), Event(), Event()
    mine = str(uuid4())

    def hold(passage: Passage) -> Done:
        if passage.args["id"] == mine and passage.kind == "toy.make":
            entered.set()
            leave.wait(20)
        return Done()

    stage.script["s1"] = hold
    with process(database, stage, KIND, GONE, left=left):
        made = ask(database, subject=mine)
        entered.wait(5)
        with database.engine.begin() as caller:
            gone = requests.enqueue(caller, "toy.remove", {"id": mine})[0]
            leave.set()
            until(lambda: "s1" in stage.calls)
            Event().wait(0.3)
            for _ in range(3):
                ends(database, ask(database), "succeeded", within=3)
        ends(database, gone, "succeeded")
        ends(database, made, "cancelled")

    assert not left.is_set()
