from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import text

from tests.conftest import Database
from tests.integration.races.conftest import ends
from tests.toys import Stage, ask, process, remember, state, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, NotYet, Passage
from worker.store import requests
from worker.store.jobs import Claims, Register

KIND = toy_kind()
GONE = toy_kind("toy.remove", steps=2, only_forward=True, supersedes=True)


def wait_long(passage: Passage) -> Done | NotYet:
    return NotYet("the agent", timedelta(hours=1)) if passage.kind == "toy.make" else Done()


def test_a_deletion_that_was_stored_at_the_same_moment_ends_the_job_that_came_first(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    stage.script["s2"] = wait_long
    subject = str(uuid4())
    with database.engine.begin() as caller:
        made = requests.enqueue(caller, "toy.make", {"id": subject})[0]
        gone = ask(database, "toy.remove", subject)
    with process(database, stage, KIND, GONE):
        ends(database, gone, "succeeded", within=5)
        ends(database, made, "cancelled")


def test_a_deletion_ends_a_running_job_that_was_stored_after_it(database: Database) -> None:
    remember(database, KIND, GONE)
    subject = str(uuid4())
    later = datetime.now(UTC) + timedelta(hours=1)
    gone, made = ask(database, "toy.remove", subject, run_at=later), ask(database, "toy.make", subject)
    register = Register(database.url, name="test", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="test")
    assert [job.id for job in claims.claim(["toy"], 8, [made])] == [made]
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET run_at = now() WHERE id = :gone"), {"gone": gone})
    with database.engine.begin() as caller:
        caller.execute(text("SELECT FROM worker.jobs WHERE id = :made FOR UPDATE"), {"made": made})
        assert claims.claim(["toy"], 8) == []
    assert claims.claim(["toy"], 8) == []
    claims.close()
    with database.engine.connect() as connection:
        superseded = connection.execute(
            text("SELECT superseded_by::text FROM worker.jobs WHERE id = :made"), {"made": made}
        ).scalar()
    register.close()

    assert superseded == gone
    until(lambda: state(database, gone) == "queued")
