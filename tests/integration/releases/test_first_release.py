"""What the first release stored ends under this one, and a worker of it that is still at work finds all that it calls."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.integration.releases.first import FirstWorker, database_of_the_first_release
from tests.toys import Stage, ask, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.store import requests
from worker.store.jobs import Claims, Register
from worker.store.migrate import migrate

MAKE, OTHER, GONE = toy_kind(), toy_kind("toy.other"), toy_kind("toy.gone")
REMOVE = toy_kind("toy.remove", steps=2, only_forward=True, supersedes=True, widens=("deep",))
ALL = (MAKE, OTHER, REMOVE, GONE)
ERROR = {"code": "refused", "message": "make thing: no", "hint": "", "blame": "tenant", "step": "s2"}


@pytest.fixture
def first(postgres: str) -> Iterator[Database]:
    with database_of_the_first_release(postgres, *ALL) as database:
        yield database


def test_a_worker_of_the_first_release_claims_checkpoints_and_finishes_on_this_ones_functions(first: Database) -> None:
    migrate(first.engine)
    remember(first, *ALL)
    worker = FirstWorker(first)
    job = ask(first)
    assert worker.ring() == [(job, "toy.make", "toy", False)]
    (claimed,) = worker.claim(5)
    assert worker.beat() == (True, [])
    assert [reply["job"] for reply in worker.done(claimed, 0)] == [job]
    assert worker.apply(claimed, 1, status="waiting", next="wait", after_ms=0, what="the world")[0]["again"]
    (again,) = worker.claim(1, job)
    assert [(past["name"], past["status"]) for past in again["past"]] == [("s1", "done"), ("s2", "waiting")]
    assert worker.done(claimed, 1) == [], "its earlier claim is fenced"
    worker.done(again, 1)
    assert [(reply["stop"], reply["args"]) for reply in worker.done(again, 2)] == [(None, again["args"])]
    assert worker.reap() == 0
    worker.leave()

    assert state(first, job) == "succeeded"
    assert [row["facts"] for row in status(first, job)["steps"]] == [{"by": 0}, {"by": 1}, {"by": 2}]


def test_a_worker_of_the_first_release_goes_on_through_the_migration(first: Database) -> None:
    worker, dead = FirstWorker(first), FirstWorker(first)
    job, lost = ask(first), ask(first)
    (claimed,) = worker.claim(5, job)
    worker.done(claimed, 0)
    assert len(dead.claim(5)) == 1
    migrate(first.engine)
    dead.die()
    worker.done(claimed, 1)
    with first.engine.begin() as connection:
        requests.cancel(connection, job, "enough", requested_by="test")
    assert worker.beat() == (True, [job])
    assert worker.reap() == 1
    assert worker.done(claimed, 2)[0]["stop"] == "cancelled"
    taken = worker.claim(5)
    assert [again["id"] for again in taken] == [lost]
    for position in range(3):
        worker.done(taken[0], position)
    worker.leave()

    assert (state(first, job), state(first, lost)) == ("succeeded", "succeeded")


def test_a_worker_of_the_first_release_is_never_offered_what_a_newer_one_defines(first: Database) -> None:
    worker = FirstWorker(first)
    old = ask(first)
    migrate(first.engine)
    newer = toy_kind(steps=4)
    remember(first, newer)
    new = ask(first)
    register = Register(first.url, name="new", pid=2, lease_s=30, knows={newer.name: newer.machine.names})
    claims = Claims(first.url, process_id=register.process_id, name="new")
    assert [job["id"] for job in worker.claim(5)] == [old]
    assert worker.claim(5, new) == []
    assert [job.id for job in claims.claim(["toy"], 5)] == [new]
    for closing in (claims.close, register.close, worker.leave):
        closing()


def begun(worker: FirstWorker, database: Database, kind: str = "toy.make", **more: Any) -> dict[str, Any]:
    """A job whose first step is done, and which the worker holds."""
    job = ask(database, kind, **more)
    (claimed,) = worker.claim(1, job)
    worker.done(claimed, 0)
    return claimed


def test_jobs_in_every_state_as_the_first_release_stored_them_end_as_they_should(first: Database) -> None:
    worker, dead = FirstWorker(first), FirstWorker(first)

    shared, doomed = str(uuid4()), str(uuid4())
    waiting = begun(worker, first, subject=shared)
    worker.apply(waiting, 1, status="waiting", next="wait", after_ms=700, to_attempt=2, what="the world")
    parked = ask(first, "toy.other", shared)
    assert worker.claim(1, parked) == []
    blocked = begun(worker, first)
    worker.apply(blocked, 1, status="waiting", next="block", what="a person", job_error={**ERROR, "code": "blocked"})
    undoing = begun(worker, first)
    worker.apply(undoing, 1, status="failed", next="go", error=ERROR, job_error=ERROR, to_direction="back", to_position=1)
    worker.apply(undoing, 1, direction="back", status="waiting", next="wait", after_ms=300, what="busy")
    failed = begun(worker, first)
    worker.apply(failed, 1, status="failed", next="rest", rest="failed", job_error=ERROR, error=ERROR)
    done = begun(worker, first)
    worker.done(done, 1)
    worker.done(done, 2)
    held, cancelled = begun(dead, first), begun(dead, first)
    superseded = begun(dead, first, subject=doomed)
    removal = ask(first, "toy.remove", doomed)
    never = ask(first)
    with first.engine.begin() as connection:
        requests.cancel(connection, never, "never mind", requested_by="test")
        requests.cancel(connection, cancelled["id"], "never mind", requested_by="test")
    unknown = ask(first, "toy.gone")
    wanted: tuple[tuple[Any, str], ...] = (
        *[(ask(first), "succeeded"), (ask(first, run_at=datetime.now(UTC) + timedelta(seconds=1)), "succeeded")],
        *[(waiting, "succeeded"), (parked, "succeeded"), (blocked, "blocked"), (undoing, "failed"), (failed, "failed")],
        *[(done, "succeeded"), (held, "succeeded"), (cancelled, "cancelled"), (superseded, "cancelled"), (removal, "succeeded")],
        *[(never, "cancelled"), (unknown, "blocked")],
    )
    ends = {job if isinstance(job, str) else str(job["id"]): end for job, end in wanted}
    worker.leave()
    with first.engine.begin() as connection:
        connection.execute(
            text("UPDATE worker.processes SET lease_until = now() - interval '1 minute' WHERE id = :id"), {"id": dead.id}
        )
    dead.die()

    migrate(first.engine)
    kinds, stage = (MAKE, OTHER, REMOVE), Stage()
    remember(first, *kinds)
    with process(first, stage, *kinds):
        until(lambda: {job: state(first, job) for job in ends} == ends, within=20, what="each at its end")
        assert status(first, undoing["id"])["error"] == ERROR
        assert status(first, unknown)["error"]["code"] == "unknown_step"
        assert status(first, superseded["id"])["error"]["code"] == "superseded"
        assert [row["attempts"] for row in status(first, waiting["id"])["steps"]] == [1, 3, 1]
        with first.engine.begin() as connection:
            requests.retry(connection, blocked["id"], requested_by="test")
            # As a program of that release calls it, which must not find two functions of that name.
            connection.execute(text("SELECT worker.retry(CAST(:id AS uuid), 'test')"), {"id": failed["id"]})
        until(lambda: (state(first, blocked["id"]), state(first, failed["id"])) == ("succeeded", "succeeded"), what="retried")
    # The one that was on its way back, and the one that was cancelled in its second step.
    assert stage.calls.count("undo s2") == 2
