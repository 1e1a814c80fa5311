from concurrent.futures import ThreadPoolExecutor
from threading import Event
from uuid import uuid4

from sqlalchemy import text

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.proxy import JOURNAL, between
from tests.toys import Stage, ask, process, remember, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, Passage
from worker.store import requests
from worker.store.jobs import Claims, Register
from worker.store.journal import Journal

KIND = toy_kind()
DECISION = {
    "direction": "forward",
    "position": 0,
    "name": "s1",
    "attempt": 0,
    "took_ms": 1,
    "status": "done",
    "next": "go",
    "to_direction": "forward",
    "to_position": 1,
    "to_attempt": 0,
}
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


def test_a_decision_that_meets_a_lock_when_it_is_sent_again_waits_for_it(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)
    register = Register(database.url, name="test", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="test")
    [claimed] = claims.claim(["toy"], 1)
    with between(database) as (proxy, url), ThreadPoolExecutor(1) as thread:
        journal = Journal(url, database.engine, name="test")
        with database.engine.begin() as caller:
            caller.execute(text("SELECT FROM worker.jobs WHERE id = :job FOR UPDATE"), {"job": job})
            proxy.refuse(JOURNAL, times=1)
            reply = thread.submit(journal.apply, {"job": job, "fence": claimed.fence, **DECISION})
            until(lambda: waits_for_a_lock(database), what="a transaction that waits")
        assert reply.result(10) is not None
        journal.close()
    claims.close()
    register.close()


def waits_for_a_lock(database: Database) -> bool:
    with database.engine.connect() as connection:
        # In the pool and not in the journal, whose own connection waits for a moment only.
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND application_name = 'molecule-worker tests'"
        )
        return bool(connection.execute(text(waiting)).scalar_one())
