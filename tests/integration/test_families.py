"""A step that spreads over other jobs, and an operator who skips a step."""

from datetime import timedelta
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.engine.machine import Blocked, Child, Done, NotYet, Passage, Spread
from worker.errors import Fatal

PARENT = toy_kind("toy.parent")
CHILD = Kind(toy_kind("toy.child", steps=1).machine, "toy:", "id", PARENT.args, "toy")
BOTH = (PARENT, CHILD)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def spread(n: int, most: int) -> Any:
    children = [Child("toy.child", {"id": str(uuid4())}) for _ in range(n)]

    def do(passage: Passage) -> Any:
        if passage.children is None:
            return Spread(children, most=most)
        ended = passage.children
        return Done({"succeeded": ended.succeeded, "failed": ended.failed, "cancelled": ended.cancelled})

    return do


def over(*subjects: str) -> Any:
    children = [Child("toy.child", {"id": subject}) for subject in subjects]
    return lambda passage: Spread(children, most=len(children)) if passage.children is None else Done()


def live(database: Database) -> int:
    with database.engine.connect() as connection:
        query = "SELECT count(*) FROM worker.jobs WHERE kind = 'toy.child' AND state NOT IN ('succeeded', 'failed', 'cancelled')"
        return int(connection.execute(text(query)).scalar_one())


def only_children(stage: Stage, do: Any) -> None:
    """Parent and child both have a step s1: `do` is the child's."""
    parent = stage.script.pop("s1", None)
    stage.script["s1"] = lambda passage: do(passage) if passage.kind == "toy.child" else (parent(passage) if parent else Done())


def test_a_parent_goes_on_when_its_last_child_has_ended(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    most_seen: list[int] = []
    stage.script["s2"] = spread(12, 3)

    def watch(_: Passage) -> Any:
        most_seen.append(live(database))
        return Done()

    only_children(stage, watch)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "succeeded", what="the parent ends")

    assert len(most_seen) == 12
    assert max(most_seen) <= 3
    assert status(database, job)["steps"][1]["facts"] == {"succeeded": 12, "failed": 0, "cancelled": 0}
    assert database_is_sound(database)


def database_is_sound(database: Database) -> bool:
    with database.engine.connect() as connection:
        return connection.execute(text("SELECT * FROM worker.violations")).all() == []


def test_a_parent_is_told_which_children_failed(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    stage.script["s2"] = spread(4, 4)
    failed: list[str] = []

    def first_fails(passage: Passage) -> Any:
        with stage.guard:
            failed.append(passage.subject)
        if len(failed) == 1:
            raise Fatal("make thing: no")
        return Done()

    only_children(stage, first_fails)
    with process(database, stage, *BOTH, slots=1):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "succeeded", what="the parent ends")

    assert status(database, job)["steps"][1]["facts"] == {"succeeded": 3, "failed": 1, "cancelled": 0}


def test_a_cancelled_parent_starts_no_further_child_and_waits_for_those_that_live(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    stage.script["s2"] = spread(10, 2)
    only_children(stage, lambda _: NotYet("the world", timedelta(seconds=60)))
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: live(database) == 2, what="two children live")
        cancel(database, job)
        until(lambda: state(database, job) == "cancelled", what="the parent is undone")
        until(lambda: live(database) == 0, what="no child lives")

    with database.engine.connect() as connection:
        ends = connection.execute(
            text("SELECT state, count(job_id) AS begun, count(*) AS n FROM worker.children GROUP BY state")
        ).all()
    assert ends == [("cancelled", 2, 10)]
    assert stage.calls.index("undo s2") < stage.calls.index("undo s1", stage.calls.index("undo s2"))
    assert database_is_sound(database)


def test_a_child_that_is_live_already_is_waited_for_and_not_made_twice(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    mine = str(uuid4())
    stage.script["s2"] = over(mine)
    running = ask(database, "toy.child", mine)

    def after_the_parent(_: Passage) -> Any:
        with database.engine.connect() as connection:
            spread_over_it = connection.execute(text("SELECT count(*) FROM worker.children")).scalar_one()
        return Done() if spread_over_it else NotYet("the parent", timedelta(milliseconds=20))

    only_children(stage, after_the_parent)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "succeeded", what="the parent ends")

    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT id::text FROM worker.jobs WHERE kind = 'toy.child'")).scalars().all() == [running]


def of_children(database: Database) -> list[tuple[Any, ...]]:
    """In the order of their parents: made for it, and how it ended."""
    query = "SELECT c.made, c.state FROM worker.children c JOIN worker.jobs j ON j.id = c.parent ORDER BY j.seq"
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def cancel(database: Database, job: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("SELECT worker.cancel(CAST(:job AS uuid), 'enough')"), {"job": job})


def test_a_child_that_was_live_already_outlives_the_undo_of_a_parent_that_joined_it(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    mine, free = str(uuid4()), Event()
    stage.script["s2"] = over(mine)
    only_children(stage, lambda _: Done() if free.is_set() else NotYet("the world", timedelta(milliseconds=20)))
    running = ask(database, "toy.child", mine)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: of_children(database) == [(False, None)], what="the child is joined")
        cancel(database, job)
        until(lambda: state(database, job) == "cancelled", what="the parent is undone")
        assert live(database) == 1
        free.set()
        until(lambda: state(database, running) == "succeeded", what="the child goes on to its end")

    assert of_children(database) == [(False, "cancelled")]
    assert database_is_sound(database)


def test_a_child_that_two_parents_wait_for_outlives_the_undo_of_the_one_that_had_it_made(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    mine, free = str(uuid4()), Event()
    stage.script["s2"] = over(mine)
    only_children(stage, lambda _: Done() if free.is_set() else NotYet("the world", timedelta(milliseconds=20)))
    with process(database, stage, *BOTH):
        maker = ask(database, "toy.parent")
        until(lambda: of_children(database) == [(True, None)], what="the child is made")
        other = ask(database, "toy.parent")
        until(lambda: of_children(database) == [(True, None), (False, None)], what="the child is joined")
        cancel(database, maker)
        until(lambda: state(database, maker) == "cancelled", what="the parent is undone")
        assert live(database) == 1
        free.set()
        until(lambda: state(database, other) == "succeeded", what="the other parent ends")

    assert of_children(database) == [(True, "cancelled"), (False, "succeeded")]
    assert database_is_sound(database)


def test_a_child_that_its_parent_let_go_is_not_its_own_again_when_it_is_retried(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    mine, free = str(uuid4()), Event()
    stage.script["s2"] = over(mine)

    def fails_in_the_end(_: Passage) -> Any:
        if free.is_set():
            raise Fatal("make thing: no")
        return NotYet("the world", timedelta(milliseconds=20))

    only_children(stage, fails_in_the_end)
    running = ask(database, "toy.child", mine)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: of_children(database) == [(False, None)], what="the child is joined")
        cancel(database, job)
        until(lambda: state(database, job) == "cancelled", what="the parent is undone")
        free.set()
        until(lambda: state(database, running) == "failed", what="the child fails")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT worker.retry(CAST(:job AS uuid))"), {"job": running})

    assert of_children(database) == [(False, "cancelled")]


def test_a_parent_is_undone_with_the_reason_when_a_child_is_refused(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    stage.script["s2"] = lambda _: Spread([Child("toy.none", {})], most=1)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "failed", what="the parent is given up")

    assert status(database, job)["error"]["step"] == "s2"


def test_a_child_that_is_refused_later_costs_the_parent_attempts_and_not_its_process(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    children = [Child("toy.child", {"id": str(uuid4())}), Child("toy.none", {})]
    stage.script["s2"] = lambda p: Spread(children, most=1) if p.children is None else Done()
    left = Event()
    with process(database, stage, *BOTH, left=left):
        job = ask(database, "toy.parent")
        until(lambda: left.is_set() or state(database, job) == "failed", what="the parent is given up")
        assert not left.is_set()

    assert status(database, job)["error"]["code"] == "decision_refused"
    assert database_is_sound(database)


def test_an_undo_that_spreads_is_a_bug_and_says_so(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)

    def refuse(_: Passage) -> Any:
        raise Fatal("make thing: no")

    stage.script["s2"] = refuse
    stage.script["undo s2"] = lambda _: Spread([Child("toy.child", {"id": str(uuid4())})], most=1)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: stage.calls.count("undo s2") > 1, what="the undo is tried again")
        assert live(database) == 0
        stage.script["undo s2"] = lambda _: Done()
        until(lambda: state(database, job) == "failed", what="the parent is undone")


def test_a_step_that_spreads_twice_is_a_bug_and_is_given_up(database: Database, stage: Stage) -> None:
    remember(database, *BOTH)
    stage.script["s2"] = lambda _: Spread([Child("toy.child", {"id": str(uuid4())})], most=1)
    with process(database, stage, *BOTH):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "failed", what="the parent is given up")

    assert status(database, job)["error"]["code"] == "internal"
    assert of_children(database) == [(True, "succeeded")]
    assert database_is_sound(database)


def skip(database: Database, job: str, step: str, reason: str = "it is gone") -> Any:
    with database.engine.begin() as connection:
        query = text("SELECT worker.skip(CAST(:job AS uuid), :step, :reason, 'me')")
        return connection.execute(query, {"job": job, "step": step, "reason": reason}).scalar_one()


@pytest.mark.parametrize("last", [False, True])
def test_a_skipped_step_is_passed_undone_and_owed(database: Database, stage: Stage, last: bool) -> None:
    machine = toy_kind("toy.parent", only_forward=True).machine
    name = "s3" if last else "s2"
    kind = Kind(machine, "toy:", "id", PARENT.args, "toy", skippable=(name,))
    remember(database, kind)
    stage.script[name] = lambda _: Blocked("no way")
    with process(database, stage, kind):
        job = ask(database, "toy.parent")
        until(lambda: state(database, job) == "blocked", what="the job is blocked")
        calls = list(stage.calls)
        skip(database, job, name)
        until(lambda: state(database, job) == "succeeded", what="the job goes on")

    assert stage.calls == [*calls, *([] if last else ["s3"])]
    assert (
        [row["state"] for row in status(database, job)["steps"]] == ["done", "done", "skipped"]
        if last
        else ["done", "skipped", "done"]
    )
    with database.engine.connect() as connection:
        debts = connection.execute(text("SELECT step, reason, requested_by FROM worker.debts")).all()
    assert debts == [(name, "it is gone", "me")]
    assert database_is_sound(database)


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_an_undo_that_cannot_be_done_can_be_skipped(database: Database, stage: Stage, name: str) -> None:
    kind = toy_kind()
    remember(database, kind)

    def refuse(_: Passage) -> Any:
        raise Fatal("make thing: no", code="refused")

    stage.script["s2"] = refuse
    stage.script[f"undo {name}"] = lambda _: Blocked("no way")
    with process(database, stage, kind):
        job = ask(database)
        until(lambda: state(database, job) == "blocked", what="the undo is blocked")
        skip(database, job, name)
        until(lambda: state(database, job) == "failed", what="the rest is undone")

    assert stage.calls[-1] == "undo s1"
    assert status(database, job)["error"]["code"] == "refused"
    assert database_is_sound(database)


@pytest.mark.parametrize(("step", "reason", "code"), [("s2", "x", "MW005"), ("s1", "x", "MW005"), ("s2", "  ", "22023")])
def test_a_skip_that_would_do_harm_is_refused(database: Database, stage: Stage, step: str, reason: str, code: str) -> None:
    kind = toy_kind()
    remember(database, kind)
    stage.script["s2"] = lambda _: Blocked("no way")
    with process(database, stage, kind):
        job = ask(database)
        until(lambda: state(database, job) == "blocked", what="the job is blocked")
        with pytest.raises(DBAPIError) as refusal:
            skip(database, job, step, reason)

    assert getattr(refusal.value.orig, "pgcode", None) == code


def test_a_key_that_joined_a_live_job_means_that_job_from_then_on(database: Database, stage: Stage) -> None:
    kind = toy_kind()
    remember(database, kind)
    subject = str(uuid4())
    first = ask(database, subject=subject)
    assert ask(database, subject=subject, idempotency_key="k") == first
    with process(database, stage, kind):
        until(lambda: state(database, first) == "succeeded", what="it ends")

    assert ask(database, subject=subject, idempotency_key="k") == first
    assert ask(database, subject=subject) != first
