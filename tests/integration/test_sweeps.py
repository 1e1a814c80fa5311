"""What the clock sweeps: old jobs are forgotten, durations measured, and whatever waits for nothing is freed."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.clock import Outcome
from worker.engine.machine import Done
from worker.store import sweeps
from worker.store.sweeps import Ground

KIND = toy_kind()
DAY = timedelta(days=1)


def ground(database: Database, *, pretend: bool = False) -> Ground:
    return Ground(database.engine, keep=30 * DAY, keep_failed=180 * DAY, pretend=pretend)


def go_on() -> bool:
    return False


def forget(database: Database, *, pretend: bool = False) -> Outcome:
    return sweeps.retention(ground(database, pretend=pretend), go_on)


def run(database: Database, statement: str, **values: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement), values)


def ids(database: Database, statement: str = "SELECT id::text FROM worker.jobs") -> set[str]:
    with database.engine.connect() as connection:
        return set(connection.execute(text(statement)).scalars())


def at_rest(database: Database, how: str, days: float) -> str:
    """A job that came to rest so many days ago, with a step, an event, an alias and a child of its own."""
    job = ask(database, idempotency_key=str(uuid4()))
    for statement in (
        (
            "UPDATE worker.jobs SET state = :how, finished_at = now() - make_interval(secs => :days * 86400), parked = false, "
            "error = CASE WHEN :how = 'failed' THEN CAST('{}' AS jsonb) END WHERE id = :id"
        ),
        (
            "INSERT INTO worker.steps (job_id, direction, position, name, status, attempt, fence, started_at, finished_at) "
            "SELECT :id, 'forward', p, 's' || p + 1, 'done', 0, 1, now(), now() FROM generate_series(0, 2) AS p"
        ),
        "INSERT INTO worker.job_events (job_id, what) VALUES (:id, 'noted')",
        "INSERT INTO worker.aliases (kind, idempotency_key, job_id, args) VALUES ('toy.make', CAST(:id AS text), :id, '{}')",
        "INSERT INTO worker.children (parent, position, number, kind, args, most, state) VALUES (:id, 0, 1, 'toy.make', '{}', 1, 'succeeded')",
    ):
        run(database, statement, id=job, **({"how": how, "days": days} if ":how" in statement else {}))
    return job


@pytest.mark.parametrize(
    ("how", "days", "kept"),
    [
        ("succeeded", 29.9, True),
        ("succeeded", 30.1, False),
        ("cancelled", 30.1, False),
        ("failed", 30.1, True),
        ("failed", 179.9, True),
        ("failed", 180.1, False),
    ],
)
def test_a_job_is_kept_as_long_as_its_state_says(database: Database, how: str, days: float, *, kept: bool) -> None:
    remember(database, KIND)
    job = at_rest(database, how, days)

    outcome = forget(database)

    assert (ids(database) == {job}) is kept
    assert outcome == {"jobs": int(not kept), "steps": 3 * (not kept), "events": int(not kept), "kept": 0, "slots": 0}


def test_nothing_of_a_forgotten_job_stays_but_what_is_owed(database: Database) -> None:
    remember(database, KIND)
    job = at_rest(database, "succeeded", 31)
    run(
        database,
        "INSERT INTO worker.debts (job_id, subject, direction, step, reason) VALUES (:id, 's', 'forward', 's1', 'r')",
        id=job,
    )

    forget(database)

    for table, column in (("steps", "job_id"), ("job_events", "job_id"), ("aliases", "job_id"), ("children", "parent")):
        assert ids(database, f"SELECT {column}::text FROM worker.{table}") == set()
    assert ids(database, "SELECT job_id::text FROM worker.debts") == {job}


def test_a_live_job_is_never_forgotten(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)
    run(database, "UPDATE worker.jobs SET created_at = now() - interval '1000 days', run_at = now() - interval '1000 days'")

    forget(database)

    assert ids(database) == {job}


@pytest.mark.parametrize(("ledger", "kept"), [("intended", 1), ("exists", 1), ("gone", 0)])
def test_what_exists_outside_keeps_the_job_that_made_it(database: Database, ledger: str, kept: int) -> None:
    remember(database, KIND)
    job = at_rest(database, "succeeded", 400)
    run(
        database,
        "INSERT INTO worker.ledger (backend, host, kind, name, subject, job_id, state) "
        "SELECT 'docker', 'local', 'container', 'c', subject, id, :state FROM worker.jobs",
        state=ledger,
    )

    assert forget(database)["kept"] == kept
    assert len(ids(database) & {job}) == kept


def test_a_child_is_kept_while_its_parent_lives(database: Database) -> None:
    remember(database, KIND)
    child, parent = at_rest(database, "succeeded", 31), ask(database)
    run(
        database,
        "INSERT INTO worker.children (parent, position, number, kind, args, most, job_id, state, told) "
        "VALUES (:p, 0, 1, 'toy.make', '{}', 1, :c, 'succeeded', true)",
        p=parent,
        c=child,
    )

    forget(database)

    assert ids(database) == {child, parent}


def test_many_are_forgotten_in_small_transactions_behind_those_that_are_kept(database: Database) -> None:
    remember(database, KIND)
    run(
        database,
        "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, finished_at, error) "
        "SELECT 'toy.make', 'toy:' || n, 'toy', '{}', '{s1}', false, CASE WHEN n <= 700 THEN 'failed' ELSE 'cancelled' END, "
        "now() - interval '100 days' + n * interval '1 second', '{}' FROM generate_series(1, 2000) AS n",
    )
    run(database, "INSERT INTO worker.slots (schedule, slot) VALUES ('old', now() - interval '31 days'), ('new', now())")

    assert forget(database) == {"jobs": 1300, "steps": 0, "events": 0, "kept": 0, "slots": 1}
    assert ids(database, "SELECT DISTINCT state FROM worker.jobs") == {"failed"}
    assert ids(database, "SELECT schedule FROM worker.slots") == {"new"}


def test_a_sweep_stops_where_it_is_told_to(database: Database) -> None:
    remember(database, KIND)
    at_rest(database, "succeeded", 31)

    assert sweeps.retention(ground(database), lambda: True)["jobs"] == 0


def test_a_pretended_sweep_counts_and_changes_nothing(database: Database) -> None:
    remember(database, KIND)
    job = at_rest(database, "succeeded", 31)

    assert forget(database, pretend=True)["jobs"] == 1
    assert ids(database) == {job}


def test_a_job_that_somebody_retries_at_this_moment_is_left(database: Database) -> None:
    remember(database, KIND)
    job = at_rest(database, "failed", 181)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT worker.retry(:id)"), {"id": job})
        assert forget(database)["jobs"] == 0

    assert state(database, job) == "queued"


def test_durations_are_those_of_the_last_hundred_successes_with_and_without_a_cache_hit(database: Database) -> None:
    remember(database, KIND)
    run(
        database,
        "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, finished_at, error) "
        "SELECT 'toy.make', 'toy:' || n, 'toy', '{}', '{s1}', false, CASE WHEN n % 2 = 0 THEN 'succeeded' ELSE 'failed' END, "
        "now() + n * interval '1 second', '{}' FROM generate_series(1, 800) AS n",
    )
    # The newer half took 2 s where the cache was missed and 1 s where it was hit; the older half took an hour.
    run(
        database,
        "INSERT INTO worker.steps (job_id, direction, position, name, status, attempt, fence, facts, started_at, finished_at) "
        "SELECT j.id, 'forward', 0, 's1', 'done', 0, 1, jsonb_build_object('cache', CASE WHEN n % 4 = 0 THEN 'hit' ELSE 'miss' END), "
        "j.finished_at - CASE WHEN n <= 400 THEN interval '1 hour' WHEN n % 4 = 0 THEN interval '1 second' ELSE interval '2 seconds' END, "
        "j.finished_at FROM (SELECT *, substr(subject, 5)::int AS n FROM worker.jobs) AS j",
    )

    assert sweeps.durations(ground(database), go_on) == {"kinds": 1, "measured": 3}

    with database.engine.connect() as connection:
        found = connection.execute(
            text("SELECT variant, n, round(p50_ms), round(p95_ms) FROM worker.durations ORDER BY variant")
        ).all()
    assert found == [("", 100, 1500, 2000), ("hit", 100, 1000, 1000), ("miss", 100, 2000, 2000)]


def test_measuring_again_replaces_what_was_known(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s1"] = lambda _: Done({"cache": "hit"})
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: state(database, job) == "succeeded")
    for _ in range(2):
        sweeps.durations(ground(database), go_on)

    assert ids(database, "SELECT step || variant FROM worker.durations") == {"s1", "s1hit", "s2", "s3"}


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_job_parked_behind_nobody_is_freed_and_so_are_those_behind_it(database: Database, stage: Stage) -> None:
    other = toy_kind("toy.other")
    remember(database, KIND, other)
    subject = str(uuid4())
    jobs = [ask(database, subject=subject), ask(database, "toy.other", subject=subject)]
    run(database, "UPDATE worker.jobs SET parked = true")

    assert sweeps.mend(ground(database, pretend=True), go_on) == {"parked": 1, "paused": 0, "undefined": 0}
    assert status(database, jobs[0])["parked"]
    assert sweeps.mend(ground(database), go_on) == {"parked": 1, "paused": 0, "undefined": 0}
    assert sweeps.mend(ground(database), go_on) == {"parked": 0, "paused": 0, "undefined": 0}
    assert ids(database, "SELECT job_id::text || what FROM worker.job_events") == {f"{jobs[0]}mended"}
    with process(database, stage, KIND, other):
        until(lambda: {state(database, job) for job in jobs} == {"succeeded"})


def test_a_job_parked_behind_somebody_is_left_there(database: Database) -> None:
    other = toy_kind("toy.other")
    remember(database, KIND, other)
    subject = str(uuid4())
    ask(database, subject=subject)
    second = ask(database, "toy.other", subject=subject)
    run(database, "UPDATE worker.jobs SET parked = true WHERE id = :id", id=second)

    assert sweeps.mend(ground(database), go_on)["parked"] == 0
    assert status(database, second)["parked"]


def test_a_job_that_the_next_claim_calls_is_left_to_it(database: Database) -> None:
    remember(database, KIND)
    ask(database)
    run(database, "UPDATE worker.jobs SET parked = true")
    run(database, "INSERT INTO worker.subjects (key, awaited) SELECT subject, true FROM worker.jobs")

    assert sweeps.mend(ground(database), go_on)["parked"] == 0


@pytest.mark.parametrize(
    ("scope", "what", "freed"),
    [("kind", "toy.make", 1), ("kind", "toy.none", 2), ("org", "acme", 1), ("org", "none", 2), ("all", "", 0)],
)
def test_a_job_marked_as_paused_is_freed_where_no_pause_holds(database: Database, scope: str, what: str, freed: int) -> None:
    remember(database, KIND, toy_kind("toy.other"))
    ask(database)
    ask(database, "toy.other")
    run(database, "UPDATE worker.jobs SET paused = true, org = CASE kind WHEN 'toy.make' THEN 'acme' ELSE 'other' END")
    run(database, "INSERT INTO worker.pauses (scope, what) VALUES (:scope, :what)", scope=scope, what=what)

    assert sweeps.mend(ground(database), go_on) == {"parked": 0, "paused": freed, "undefined": 0}
    assert len(ids(database, "SELECT id::text FROM worker.jobs WHERE NOT paused")) == freed


def test_a_mended_job_is_said_as_a_warning(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    remember(database, KIND)
    job = ask(database)
    run(database, "UPDATE worker.jobs SET parked = true")

    sweeps.mend(ground(database), go_on)

    said = capsys.readouterr().out
    assert "job mended" in said
    assert "warning" in said
    assert job in said


def test_a_live_job_without_a_definition_gets_that_of_its_steps_and_one_at_rest_is_left(database: Database) -> None:
    remember(database, KIND, toy_kind("toy.remove", supersedes=True))
    older, newer, rested = ask(database), ask(database, "toy.remove"), at_rest(database, "failed", 1)
    run(database, "UPDATE worker.jobs SET definition = NULL, supersedes = false")
    run(database, "UPDATE worker.jobs SET steps = '{s1,s9}' WHERE id = :id", id=older)

    assert sweeps.mend(ground(database), go_on)["undefined"] == 2
    assert sweeps.mend(ground(database), go_on)["undefined"] == 0
    wrong = "SELECT j.id::text FROM worker.jobs j LEFT JOIN worker.definitions d ON d.id = j.definition WHERE d.steps IS DISTINCT FROM j.steps"
    assert ids(database, wrong) == {rested}
    assert ids(database, "SELECT id::text FROM worker.jobs WHERE supersedes") == {newer}
    assert ids(database, "SELECT job_id::text FROM worker.job_events WHERE what = 'mended'") == {older, newer}
