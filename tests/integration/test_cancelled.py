"""Why a job was asked to end is what it says when it has ended, whatever its steps and its undos met meanwhile."""

from datetime import timedelta
from threading import Event
from typing import Any

import pytest

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, status, step, toy_kind
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.engine.machine import Blocked, Done, Machine, NotYet, Passage
from worker.errors import Fatal, Retryable
from worker.store import requests

KIND = toy_kind(skippable=("s2",))
FOREVER = NotYet("the world", timedelta(seconds=60))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def cancel(database: Database, job: str, reason: str = "never mind") -> None:
    with database.engine.begin() as connection:
        assert requests.cancel(connection, job, reason, requested_by="ada")


def ends(database: Database, job: str, wanted: str) -> Any:
    """Its status in the moment in which it was as wanted."""
    return until(lambda: [now] if (now := status(database, job))["state"] == wanted else [], what=wanted)[0]


@pytest.mark.parametrize("answer", ["fatal", "retryable", "blocked"])
@pytest.mark.parametrize("undo", [True, False])
def test_a_step_that_breaks_off_because_it_was_told_to_leaves_the_cancel_its_reason(
    database: Database, stage: Stage, answer: str, undo: bool
) -> None:
    kind = Kind(Machine("toy.make", [step("s1", undo=undo)], False), "toy:", "id", KIND.args, "toy")
    remember(database, kind)
    began, told, seen = Event(), Event(), []

    def breaks_off(_: Passage) -> Any:
        began.set()
        assert told.wait(10)
        if answer == "blocked":
            return Blocked("it was asked to stop")
        raise {"fatal": Fatal, "retryable": Retryable}[answer]("make thing: it was asked to stop")

    def undoes(passage: Passage) -> Done:
        seen.append(passage.error)
        return Done()

    stage.script.update({"s1": breaks_off, "undo s1": undoes})
    with process(database, stage, kind):
        job = ask(database)
        assert began.wait(10)
        cancel(database, job)
        told.set()
        ended = ends(database, job, "cancelled")

    assert (ended["error"]["message"], ended["error"]["blame"]) == ("cancelled: never mind", "operator")
    assert seen == ([ended["error"]] if undo else [])


def test_a_job_that_is_cancelled_while_its_undo_is_blocked_ends_with_why_it_undoes(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script.update({"s3": lambda _: FOREVER, "undo s2": lambda _: Blocked("a person must sign")})
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: status(database, job)["waiting_for"] == "the world")
        cancel(database, job)
        ends(database, job, "blocked")
        stage.script.pop("undo s2")
        cancel(database, job, "at last")
        ended = ends(database, job, "cancelled")

    assert ended["error"]["message"] == "cancelled: never mind"


def test_a_cancelled_job_whose_waiting_step_is_skipped_still_says_why_it_ends(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = lambda _: FOREVER
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: status(database, job)["waiting_for"] == "the world")
    cancel(database, job)
    with database.engine.begin() as connection:
        requests.skip(connection, job, "s2", "it is gone", requested_by="ada")
    with process(database, stage, KIND):
        ended = ends(database, job, "cancelled")

    assert ended["error"]["message"] == "cancelled: never mind"
