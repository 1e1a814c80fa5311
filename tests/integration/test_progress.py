"""How far a job is and how long it will take, as the stable view says it."""

from collections.abc import Mapping
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, lacking, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, NotYet
from worker.store import requests

KIND = toy_kind()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def history(database: Database, seconds: Mapping[str, float], variant: str = "") -> None:
    with database.engine.begin() as connection:
        for step, p50 in seconds.items():
            connection.execute(
                text(
                    "INSERT INTO worker.durations (kind, step, variant, n, p50_ms, p95_ms) VALUES ('toy.make', :s, :v, 9, :p, :p)"
                ),
                {"s": step, "v": variant, "p": p50 * 1000},
            )


def progress(database: Database, job: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = status(database, job)["progress"]
    return found


def since(database: Database, job: str, ago: timedelta) -> None:
    """As if the step at which it waits had begun so long ago."""
    with database.engine.begin() as connection:
        begun = "UPDATE worker.steps SET started_at = clock_timestamp() - :ago WHERE job_id = :job AND status = 'waiting'"
        connection.execute(text(begun), {"ago": ago, "job": job})


def waiting(database: Database, stage: Stage, answer: NotYet) -> str:
    """A job that waits at its second of three steps."""
    stage.script["s2"] = lambda _: answer
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: state(database, job) == "waiting")
    return job


def test_a_queued_job_takes_what_its_steps_took_and_the_time_until_it_is_due(database: Database) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s2": 20, "s3": 300})
    now = ask(database)
    with database.engine.connect() as connection:
        later = ask(database, run_at=connection.execute(text("SELECT now() + interval '1000 seconds'")).scalar_one())

    assert progress(database, now) == {"done": 0, "total": 3, "fraction": 0, "eta_seconds": 321, "rate_per_second": None}
    assert 1300 < progress(database, later)["eta_seconds"] <= 1321


def test_without_history_of_each_step_nothing_is_foretold(database: Database) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s3": 300})

    assert progress(database, ask(database))["eta_seconds"] is None


def test_what_has_passed_in_the_current_step_counts(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1000, "s2": 100, "s3": 7})
    job = waiting(database, stage, NotYet("the kettle", timedelta(hours=1)))

    since(database, job, timedelta(seconds=60))
    assert 40 < progress(database, job)["eta_seconds"] <= 47
    since(database, job, timedelta(hours=3))
    assert progress(database, job)["eta_seconds"] == 7  # a step that takes longer than ever is never less than nothing
    assert progress(database, job)["done"] == 1


def test_a_step_that_takes_longer_than_any_cache_hit_is_a_miss(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s2": 2, "s3": 7})
    history(database, {"s2": 1}, "hit")
    history(database, {"s2": 500}, "miss")
    job = waiting(database, stage, NotYet("a build", timedelta(hours=1)))

    since(database, job, timedelta(seconds=0))
    assert progress(database, job)["eta_seconds"] <= 9
    since(database, job, timedelta(seconds=100))
    assert 400 < progress(database, job)["eta_seconds"] <= 407


def test_a_failed_attempt_begins_anew_when_its_time_comes(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s2": 100, "s3": 7})
    job = waiting(database, stage, NotYet("the kettle", timedelta(hours=1)))
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET attempt = 1, run_at = clock_timestamp() + interval '50 seconds'"))

    since(database, job, timedelta(hours=3))
    assert 140 < progress(database, job)["eta_seconds"] <= 157


def test_units_of_a_step_say_how_far_it_is_how_fast_it_goes_and_when_it_ends(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s2": 1, "s3": 7})
    job = waiting(database, stage, NotYet("rows", timedelta(hours=1), done=250, total=1000))
    since(database, job, timedelta(seconds=50))

    found = progress(database, job)

    assert (found["done"], found["total"]) == (250, 1000)
    assert found["fraction"] == pytest.approx((1 + 0.25) / 3, abs=0.001)
    assert found["rate_per_second"] == pytest.approx(5, rel=0.2)
    assert found["eta_seconds"] == pytest.approx(750 / 5 + 7, rel=0.2)


def test_units_end_with_their_step(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    go = Event()
    stage.script["s2"] = lambda _: Done() if go.is_set() else NotYet("rows", timedelta(milliseconds=20), done=5, total=9)
    stage.script["s3"] = lambda _: until(leave.is_set, within=30) and Done()
    leave = Event()
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: progress(database, job)["total"] == 9)
        go.set()
        until(lambda: status(database, job)["step"] == "s3")
        assert progress(database, job) == {"done": 2, "total": 3, "fraction": 0.667, "eta_seconds": None, "rate_per_second": None}
        leave.set()
        until(lambda: state(database, job) == "succeeded")

    assert progress(database, job)["fraction"] == 1


def test_a_running_step_counts_from_the_end_of_the_one_before_it(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1000, "s2": 100, "s3": 7})
    entered, leave = Event(), Event()

    def hold(_: object) -> Done:
        entered.set()
        until(leave.is_set, within=30)
        return Done()

    stage.script["s2"] = hold
    with process(database, stage, KIND):
        job = ask(database)
        entered.wait(10)
        first = progress(database, job)["eta_seconds"]
        until(lambda: progress(database, job)["eta_seconds"] < first)
        leave.set()
        until(lambda: state(database, job) == "succeeded")

    assert 90 < first <= 107
    assert progress(database, job)["eta_seconds"] is None


def test_a_skipped_step_counts_as_done(database: Database, stage: Stage) -> None:
    kind = toy_kind(only_forward=True, skippable=("s2",))
    remember(database, kind)
    history(database, {"s1": 1, "s2": 1, "s3": 7})
    stage.script["s2"] = lacking
    with process(database, stage, kind):
        job = ask(database)
        until(lambda: state(database, job) == "blocked")
        assert progress(database, job)["eta_seconds"] is None  # time will not help
    with database.engine.begin() as connection:
        requests.skip(connection, job, "s2", "the host is gone", requested_by="me")

    found = progress(database, job)

    assert (found["done"], found["eta_seconds"]) == (2, 7)
    assert status(database, job)["step"] == "s3"
    with process(database, stage, kind):
        until(lambda: state(database, job) == "succeeded")
    assert progress(database, job)["fraction"] == 1


def test_nothing_is_foretold_on_the_way_back(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    history(database, {"s1": 1, "s2": 1, "s3": 7})
    stage.script["s2"] = lacking
    stage.script["undo s1"] = lambda _: NotYet("the tide", timedelta(hours=1))
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: status(database, job)["direction"] == "back")

    assert progress(database, job)["eta_seconds"] is None
