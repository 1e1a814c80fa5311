"""The way back: newest first, over what was begun and nothing else, and never given up without a person."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.integration.releases.first import FirstWorker
from tests.toys import Stage, ask, process, remember, state, status, step, toy_kind
from tests.waiting import until
from worker.engine.kinds import Kind
from worker.engine.machine import Blocked, Child, Done, Machine, NotYet, Passage, Spread
from worker.errors import Fatal, Refused, Retryable
from worker.store import requests
from worker.store.jobs import MAX_CRASHES

KIND = toy_kind(steps=4)
CHILD = Kind(toy_kind("toy.child", steps=1).machine, "toy:", "id", KIND.args, "toy")
SKIPPABLE = Kind(KIND.machine, "toy:", "id", KIND.args, "toy", skippable=("s2", "s3"))
#: Its s3 leaves nothing behind.
GAPPED = Kind(Machine("toy.make", [step(f"s{n}", undo=n != 3) for n in (1, 2, 3, 4)], False), "toy:", "id", KIND.args, "toy")
FOREVER = NotYet("the world", timedelta(seconds=60))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def refuse(_: Passage) -> Any:
    raise Refused("make thing: no")


def call(database: Database, function: str, job: str, *more: str) -> Any:
    """What an operator does to a job."""
    marks = "".join(f", :p{n}" for n in range(len(more)))
    with database.engine.begin() as connection:
        query = text(f"SELECT worker.{function}(CAST(:job AS uuid){marks})")
        return connection.execute(query, {"job": job, **{f"p{n}": value for n, value in enumerate(more)}}).scalar_one()


def insist(database: Database, function: str, job: str, *more: str) -> None:
    """Until it is not refused any more: between two attempts the job runs, and then nothing can be done to it."""

    def done() -> bool:
        try:
            return bool(call(database, function, job, *more))
        except DBAPIError as error:
            assert getattr(error.orig, "pgcode", "") in {"MW004", "MW005"}
            return False

    until(done, what=function)


def ends(database: Database, job: str, wanted: str) -> Any:
    """Its status in the moment in which it was as wanted."""
    return until(lambda: [now] if (now := status(database, job))["state"] == wanted else [], what=wanted)[0]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_whichever_step_fails_what_was_begun_is_undone_newest_first_however_often_an_undo_fails(
    database: Database, stage: Stage, at: int, end: str
) -> None:
    remember(database, KIND)

    def fails_at_first(passage: Passage) -> Any:
        if passage.attempt == 0:
            raise Retryable("remove thing: busy")
        if passage.attempt == 1:
            raise Fatal("remove thing: broken")
        return Done()

    stage.script[f"s{at}"] = refuse if end == "failed" else lambda _: FOREVER
    stage.script.update({f"undo s{n}": fails_at_first for n in (1, 2, 3, 4)})
    with process(database, stage, KIND):
        job = ask(database)
        if end == "cancelled":
            until(lambda: status(database, job)["waiting_for"] == "the world")
            call(database, "cancel", job, "never mind")
        ended = ends(database, job, end)

    back = [name for name in stage.calls if name.startswith("undo")]
    assert back == [f"undo s{n}" for n in range(at, 0, -1) for _ in range(3)]
    assert ended["error"]["code"] == ("refused" if end == "failed" else "cancelled")
    assert ended["error"]["step"] == f"s{at}"


def test_while_an_undo_fails_the_operator_sees_which_why_and_what_for(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    broken = [True]

    def busy(_: Passage) -> Any:
        if broken:
            raise Retryable("remove thing: busy")
        return Done()

    stage.script.update({"s3": refuse, "undo s2": busy})
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: stage.calls.count("undo s2") > 5, what="the undo is tried again and again")
        seen = ends(database, job, "waiting")
        insist(database, "retry", job)
        assert ends(database, job, "waiting")["direction"] == "back"
        broken.clear()
        ended = ends(database, job, "failed")

    assert (seen["step"], seen["direction"], seen["waiting_for"]) == ("s2", "back", "another attempt (remove thing: busy)")
    assert seen["error"]["code"] == "refused"
    assert [(row["name"], row["state"]) for row in seen["steps"]][-1] == ("undo s2", "waiting")
    assert seen["steps"][-1]["attempts"] > 3
    assert ended["error"] == seen["error"]


def test_a_blocked_undo_says_why_it_undoes_and_goes_on_when_it_is_retried(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script.update({"s3": refuse, "undo s2": lambda _: Blocked("a person must sign")})
    with process(database, stage, KIND):
        job = ask(database)
        blocked = ends(database, job, "blocked")
        stage.script.pop("undo s2")
        call(database, "retry", job)
        ended = ends(database, job, "failed")

    assert (blocked["step"], blocked["direction"], blocked["error"]["message"]) == ("s2", "back", "a person must sign")
    assert blocked["error"]["undoing"] == ended["error"]
    assert ended["error"]["code"] == "refused"
    assert stage.calls[-2:] == ["undo s2", "undo s1"]


def test_a_step_that_was_begun_and_then_skipped_is_undone_like_the_others(database: Database, stage: Stage) -> None:
    remember(database, SKIPPABLE)
    stage.script.update({"s2": lambda _: Blocked("no way"), "s3": refuse})
    with process(database, stage, SKIPPABLE):
        job = ask(database)
        ends(database, job, "blocked")
        call(database, "skip", job, "s2", "it is gone")
        ended = ends(database, job, "failed")

    assert stage.calls == ["s1", "s2", "s3", "undo s3", "undo s2", "undo s1"]
    assert ended["error"]["step"] == "s3"


@pytest.mark.parametrize("blocked", [True, False])
def test_an_undo_that_is_skipped_while_it_is_blocked_or_tried_again_is_owed_and_the_rest_is_undone(
    database: Database, stage: Stage, blocked: bool
) -> None:
    remember(database, KIND)

    def never(_: Passage) -> Any:
        if blocked:
            return Blocked("no way")
        raise Retryable("remove thing: busy")

    stage.script.update({"s4": refuse, "undo s3": never})
    with process(database, stage, KIND, slots=1):
        job = ask(database)
        until(lambda: stage.calls.count("undo s3") >= 1 and state(database, job) in {"blocked", "waiting"})

        insist(database, "skip", job, "s3", "it is gone")
        ended = ends(database, job, "failed")

    assert list(dict.fromkeys(stage.calls[4:])) == ["undo s4", "undo s3", "undo s2", "undo s1"]
    assert ended["error"]["code"] == "refused"
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT direction, step FROM worker.debts")).all() == [("back", "s3")]


def test_an_undo_of_a_step_that_spread_runs_when_no_child_lives_any_more(database: Database, stage: Stage) -> None:
    remember(database, KIND, CHILD)
    subjects = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)]
    live: list[int] = []

    def spread(passage: Passage) -> Any:
        return Spread([Child("toy.child", {"id": subject}) for subject in subjects], most=2) if passage.children is None else Done()

    def look(_: Passage) -> Any:
        with database.engine.connect() as connection:
            query = "SELECT count(*) FROM worker.jobs WHERE kind = 'toy.child' AND finished_at IS NULL"
            live.append(connection.execute(text(query)).scalar_one())
        return Done()

    stage.script.update({"s2": spread, "undo s2": look})
    stage.script["s1"] = lambda passage: FOREVER if passage.kind == "toy.child" else Done()
    undone: list[str] = []

    def whose(passage: Passage) -> Done:
        undone.append(passage.kind)
        return Done()

    stage.script["undo s1"] = whose
    with process(database, stage, KIND, CHILD):
        job = ask(database)
        until(lambda: stage.calls.count("s1") == 3, what="two children live")
        call(database, "cancel", job, "never mind")
        ended = ends(database, job, "cancelled")

    assert live == [0]
    assert undone == ["toy.child", "toy.child", "toy.make"]
    assert ended["error"]["message"] == "cancelled: never mind"


def crash_once_too_often(database: Database, worker: FirstWorker) -> None:
    """The worker dies with what it holds, which has seen that before."""
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.job_events"))
        connection.execute(
            text("UPDATE worker.jobs SET crashes = :n WHERE process_id = :id"), {"n": MAX_CRASHES - 1, "id": worker.id}
        )
    worker.die()
    other = FirstWorker(database)
    assert other.reap() == 1
    other.leave()


def test_an_undo_that_kills_its_process_again_and_again_blocks_and_does_not_forget_why_it_undoes(
    database: Database, stage: Stage
) -> None:
    remember(database, KIND)
    worker, error = FirstWorker(database), {"code": "refused", "message": "no", "step": "s3"}
    job = ask(database)
    (held,) = worker.claim(1)
    worker.apply(held, 2, status="failed", next="go", job_error=error, error=error, to_direction="back", to_position=2)
    worker.apply(held, 2, direction="back", status="done", next="wait", after_ms=0, to_position=1)
    (held,) = worker.claim(1)
    crash_once_too_often(database, worker)
    blocked = status(database, job)
    call(database, "retry", job)
    with process(database, stage, KIND):
        ended = ends(database, job, "failed")

    assert (blocked["state"], blocked["error"]["code"], blocked["error"]["step"]) == ("blocked", "crash_loop", "s2")
    assert ended["error"] == blocked["error"]["undoing"] == error
    assert stage.calls == ["undo s2", "undo s1"]


def killed_above_its_last_undo(database: Database) -> str:
    """Its s4 failed, s4 and s2 are undone, and of s3 nothing is written on the way back."""
    remember(database, GAPPED)
    worker, error = FirstWorker(database), {"code": "refused", "message": "no", "step": "s4"}
    job = ask(database)
    (held,) = worker.claim(1)
    for position in range(3):
        worker.done(held, position)
    worker.apply(held, 3, status="failed", next="go", job_error=error, error=error, to_direction="back", to_position=3)
    worker.apply(held, 3, direction="back", status="done", next="go", to_position=1)
    worker.apply(held, 1, direction="back", status="done", next="go", to_position=0)
    worker.die()
    other = FirstWorker(database)
    assert other.reap() == 1
    other.leave()
    return job


def test_an_undo_is_not_repeated_after_a_crash_though_a_step_above_it_left_nothing_behind(database: Database, stage: Stage) -> None:
    job = killed_above_its_last_undo(database)
    with process(database, stage, GAPPED):
        ended = ends(database, job, "failed")

    assert stage.calls == ["undo s1"]
    assert ended["error"]["step"] == "s4"


def test_the_undo_at_which_a_job_stands_is_the_one_that_is_shown_and_skipped(database: Database, stage: Stage) -> None:
    job = killed_above_its_last_undo(database)
    assert status(database, job)["step"] == "s1"
    with pytest.raises(DBAPIError, match="it is at s1"):
        call(database, "skip", job, "s3", "it is gone")
    call(database, "skip", job, "s1", "it is gone")
    with process(database, stage, GAPPED):
        ends(database, job, "failed")

    assert stage.calls == []


def test_a_job_is_skipped_where_it_stands_and_not_where_it_was_claimed(database: Database, stage: Stage) -> None:
    remember(database, SKIPPABLE)
    worker = FirstWorker(database)
    job = ask(database)
    (held,) = worker.claim(1)
    worker.done(held, 0)
    worker.done(held, 1)
    worker.die()
    worker = FirstWorker(database)
    assert worker.reap() == 1
    worker.claim(1)
    crash_once_too_often(database, worker)
    blocked = status(database, job)
    assert (blocked["step"], blocked["error"]["step"]) == ("s3", "s3")
    with pytest.raises(DBAPIError, match="it is at s3"):
        call(database, "skip", job, "s2", "it is gone")
    call(database, "skip", job, "s3", "it is gone")
    with process(database, stage, SKIPPABLE):
        ended = ends(database, job, "succeeded")

    assert stage.calls == ["s4"]
    assert [row["state"] for row in ended["steps"]] == ["done", "done", "skipped", "done"]


def test_the_last_step_is_skipped_and_owed_once(database: Database) -> None:
    only = Kind(toy_kind(steps=1).machine, "toy:", "id", KIND.args, "toy", skippable=("s1",))
    remember(database, only)
    worker = FirstWorker(database)
    job = ask(database)
    (held,) = worker.claim(1)
    worker.apply(held, 0, status="waiting", next="wait", after_ms=60_000, what="the world")
    worker.leave()
    call(database, "skip", job, "s1", "it is gone")
    with pytest.raises(DBAPIError, match="s1 is passed already"):
        call(database, "skip", job, "s1", "it is gone")
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM worker.debts")).scalar_one() == 1
    with database.engine.begin() as connection:
        requests.cancel(connection, job, "enough", requested_by="test")
