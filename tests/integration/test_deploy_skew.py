"""Two releases on one database: each does what it knows, and what nobody knows waits for a release that does."""

from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, status, step
from tests.waiting import until
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import Done, Machine, NotYet, Passage
from worker.errors import Refused, Retryable
from worker.store import requests
from worker.store.jobs import Register


def release(*names: str, kind: str = "toy.make") -> Kind:
    return Kind(Machine(kind, [step(name) for name in names], only_forward=False), "toy:", "id", {"id": Arg("uuid")}, "toy")


OLD = release("s1", "s2", "s3")
ADDED, REMOVED, RENAMED = release("s1", "s2", "s4", "s3"), release("s1", "s3"), release("s1", "two", "s3")
#: Steps that the older release lacks, steps that it knows all of, and a kind that it has never heard of.
NEWER = {"added": ADDED, "removed": REMOVED, "renamed": RENAMED, "new kind": release("s1", "s2", kind="toy.new")}


def costs(database: Database) -> list[tuple[int, int]]:
    """Attempts and crashes, each different pair once."""
    with database.engine.connect() as connection:
        return [(a, c) for a, c in connection.execute(text("SELECT DISTINCT attempt, crashes FROM worker.jobs"))]


def in_the_middle(database: Database, old: Stage) -> tuple[str, str]:
    """A job of the older release that waits at its second step after a failure, and one that waits in the undo of it."""
    gates: dict[str, Event] = {}

    def fail_once_then_wait(passage: Passage) -> Any:
        if passage.attempt == 0:
            raise Retryable("make thing: busy")
        return NotYet("the world", timedelta(milliseconds=50))

    def second(passage: Passage) -> Any:
        return fail_once_then_wait(passage) if passage.id not in gates else Done()

    def third(_: Passage) -> Any:
        raise Refused("make thing: no")

    old.script.update({"s2": second, "s3": third, "undo s2": fail_once_then_wait})
    forward = ask(database)
    until(lambda: status(database, forward)["waiting_for"] == "the world", what="it waits on its way forward")
    with database.engine.begin() as connection:
        back = requests.enqueue(connection, "toy.make", {"id": "00000000-0000-4000-8000-000000000001"})[0]
        gates[back] = Event()
    until(
        lambda: status(database, back)["direction"] == "back" and status(database, back)["waiting_for"] == "the world",
        what="it waits on its way back",
    )
    return forward, back


@pytest.mark.parametrize("newer", NEWER.values(), ids=NEWER.keys())
def test_an_older_release_does_no_step_of_a_newer_ones_jobs(database: Database, newer: Kind) -> None:
    old, new = Stage(), Stage()
    remember(database, OLD)
    with process(database, old, OLD, poll_s=0.02) as bell:
        remember(database, newer)
        with process(database, new, newer):
            jobs = [ask(database, newer.name) for _ in range(20)]
            for job in jobs:
                bell.answer(job)
            until(lambda: all(state(database, job) == "succeeded" for job in jobs), what="all done")

    assert old.calls == []
    assert sorted(new.calls) == sorted([*newer.machine.names] * 20)
    assert costs(database) == [(0, 0)]


@pytest.mark.parametrize("newer", [ADDED, RENAMED], ids=["added", "renamed"])
def test_both_at_once_each_job_is_done_by_who_knows_its_steps(database: Database, newer: Kind) -> None:
    old, new, moved = Stage(), Stage(), Event()
    old.script["s2"] = lambda _: Done() if moved.is_set() else NotYet("the world", timedelta(milliseconds=20))
    remember(database, OLD)
    with process(database, old, OLD):
        before = [ask(database) for _ in range(5)]
        until(lambda: old.calls.count("s2") >= 5, what="in the middle")
        remember(database, newer)
        with process(database, new, newer):
            after = [ask(database) for _ in range(5)]
            moved.set()
            until(lambda: all(state(database, job) == "succeeded" for job in before + after), what="all done")

    own = set(newer.machine.names) - set(OLD.machine.names)
    assert own
    assert not own & set(old.calls)
    assert all(new.calls.count(name) == 5 for name in own)
    assert newer is ADDED or "s2" not in new.calls


def test_a_newer_release_that_knows_their_steps_finishes_and_undoes_what_an_older_one_began(database: Database) -> None:
    old, new = Stage(), Stage()
    remember(database, OLD)
    with process(database, old, OLD):
        forward, back = in_the_middle(database, old)
    remember(database, ADDED)
    with process(database, new, ADDED):
        until(lambda: (state(database, forward), state(database, back)) == ("succeeded", "failed"), what="both end")

    assert sorted(new.calls) == ["s2", "s3", "undo s1", "undo s2"]
    assert status(database, back)["error"]["code"] == "refused"
    assert [row["attempts"] for row in status(database, forward)["steps"]] == [1, 2, 1]


def test_jobs_whose_steps_nobody_knows_block_with_the_reason_and_go_on_at_the_same_attempt(database: Database) -> None:
    old, new = Stage(), Stage()
    remember(database, OLD)
    with process(database, old, OLD):
        forward, back = in_the_middle(database, old)
    remember(database, RENAMED)
    with process(database, new, RENAMED):
        until(lambda: {state(database, forward), state(database, back)} == {"blocked"}, what="both blocked")
    errors = [status(database, job)["error"] for job in (forward, back)]
    assert [error["code"] for error in errors] == ["unknown_step"] * 2
    assert all("does not know its step s2" in error["message"] and error["hint"] for error in errors)
    assert (new.calls, costs(database)) == ([], [(1, 0)])

    again = Stage()
    attempts: list[int] = []
    again.script["s2"] = again.script["undo s2"] = lambda passage: attempts.append(passage.attempt) or Done()
    remember(database, OLD)
    with process(database, again, OLD):
        until(lambda: (state(database, forward), state(database, back)) == ("succeeded", "failed"), what="both end")
    assert attempts == [1, 1]
    assert sorted(again.calls) == ["s2", "s3", "undo s1", "undo s2"]
    assert status(database, back)["error"]["code"] == "refused"


def test_a_job_of_an_unknown_kind_blocks_and_goes_on_when_its_release_starts(database: Database) -> None:
    newer = NEWER["new kind"]
    old, new = Stage(), Stage()
    remember(database, OLD, newer)
    job = ask(database, newer.name)
    with process(database, old, OLD):
        until(lambda: state(database, job) == "blocked", what="nobody knows it")
        with process(database, new, newer):
            until(lambda: state(database, job) == "succeeded", what="it goes on")

    assert (old.calls, new.calls) == ([], ["s1", "s2"])


def test_a_job_that_was_cancelled_while_nobody_knew_its_steps_ends_cancelled_with_that_reason(database: Database) -> None:
    remember(database, OLD)
    held = Stage()
    held.script["s2"] = lambda _: NotYet("the world", timedelta(seconds=60))
    with process(database, held, OLD):
        job = ask(database)
        until(lambda: status(database, job)["waiting_for"] == "the world")
    remember(database, RENAMED)
    with process(database, Stage(), RENAMED):
        with database.engine.begin() as connection:
            requests.cancel(connection, job, "never mind", requested_by="test")
        until(lambda: state(database, job) == "blocked", what="nobody can undo it")
    remember(database, OLD)
    with process(database, held, OLD):
        until(lambda: state(database, job) == "cancelled", what="undone")

    assert status(database, job)["error"]["message"] == "cancelled: never mind"
    assert held.calls[-2:] == ["undo s2", "undo s1"]


def test_a_job_that_an_older_process_blocks_after_a_newer_one_came_goes_on_at_its_next_beat(database: Database) -> None:
    remember(database, OLD)
    job = ask(database)
    register = Register(database.url, name="new", pid=1, lease_s=30, knows={OLD.name: OLD.machine.names})
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET state = 'blocked', error = '{\"code\": \"unknown_step\"}'"))
    register.beat()
    assert state(database, job) == "waiting"
    register.close()
