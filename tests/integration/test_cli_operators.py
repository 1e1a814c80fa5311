"""What operators have in hand: retry in bulk, skip, pause, drain, explain, sweep."""

import json
import re
import signal
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.commands import Shell, end
from tests.conftest import Database
from tests.toys import Stage, ask, lacking, process, remember, state, toy_kind
from tests.waiting import until

KIND = toy_kind()
CAREFUL = toy_kind("toy.remove", only_forward=True, skippable=("s2",))


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, KIND, CAREFUL)
    return Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")})


@pytest.fixture
def stage() -> Stage:
    return Stage()


def run(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))


def column(database: Database, statement: str) -> list[object]:
    with database.engine.connect() as connection:
        return list(connection.execute(text(statement)).scalars())


def broken(database: Database, stage: Stage, n: int, kind: str = "toy.make") -> list[str]:
    """Jobs that failed; those of a kind that only goes forward are blocked."""
    stage.script["s2"] = lacking
    with process(database, stage, KIND, CAREFUL):
        jobs = [ask(database, kind) for _ in range(n)]
        until(lambda: {state(database, job) for job in jobs} <= {"failed", "blocked"})
    del stage.script["s2"]
    return jobs


def test_all_that_need_a_person_are_retried_each_by_itself(shell: Shell, database: Database, stage: Stage) -> None:
    failed, blocked = broken(database, stage, 2), broken(database, stage, 1, "toy.remove")
    ran = shell("jobs", "retry", "--failed")

    assert (ran.code, ran.err) == (0, "3 of 3 jobs run again\n")
    assert [state(database, job) for job in (*failed, *blocked)] == ["queued", "queued", "waiting"]


def test_a_dry_run_shows_the_table_and_changes_nothing(shell: Shell, database: Database, stage: Stage) -> None:
    jobs = broken(database, stage, 2)
    ran = shell("jobs", "retry", "--failed", "--dry-run")
    named = shell("jobs", "retry", *jobs, "--dry-run")

    assert ran.code == named.code == 0
    assert all(job in ran.out for job in jobs)
    assert "missing required env" in ran.out
    assert ran.err == named.err == "would retry 2 jobs\n"
    assert {state(database, job) for job in jobs} == {"failed"}


def test_a_dry_run_promises_no_more_than_happens(shell: Shell, database: Database, stage: Stage) -> None:
    (first, second) = broken(database, stage, 2)
    run(database, f"UPDATE worker.jobs SET subject = (SELECT subject FROM worker.jobs WHERE id = '{first}') WHERE id = '{second}'")
    dry = shell("jobs", "retry", "--failed", "--dry-run", "--json")
    states = {state(database, job) for job in (first, second)}
    real = shell("jobs", "retry", "--failed", "--json")

    assert (dry.code, dry.err) == (0, "would retry 1 of 2 jobs\n")
    assert states == {"failed"}
    assert (real.code, real.err) == (1, "1 of 2 jobs run again\n")
    assert [(job["id"], job["retried"]) for job in json.loads(real.out)] == [(first, True), (second, False)]
    assert [(job["id"], job["retried"], job["why"]) for job in json.loads(dry.out)] == [
        (job["id"], job["retried"], job["why"]) for job in json.loads(real.out)
    ]
    assert "is live" in json.loads(dry.out)[1]["why"]


def test_refused_ones_are_listed_and_leave_the_others_retried(shell: Shell, database: Database, stage: Stage) -> None:
    (first, second) = broken(database, stage, 2)
    subject = str(column(database, f"SELECT subject FROM worker.jobs WHERE id = '{first}'")[0])
    ask(database, subject=subject.removeprefix("toy:"))

    ran = shell("jobs", "retry", "--failed")

    assert ran.code == 1
    assert "1 of 2 jobs run again" in ran.err
    assert first in ran.out
    assert "is live" in ran.out
    assert second not in ran.out
    assert (state(database, first), state(database, second)) == ("failed", "queued")


def test_bulk_is_narrowed_by_kind_and_age(shell: Shell, database: Database, stage: Stage) -> None:
    old, fresh = broken(database, stage, 2)
    (other,) = broken(database, stage, 1, "toy.remove")
    run(database, f"UPDATE worker.jobs SET finished_at = now() - interval '3 hours' WHERE id = '{old}'")

    assert shell("jobs", "retry", "--failed", "--kind", "toy.make", "--since", "2h").code == 0

    assert [state(database, job) for job in (old, fresh, other)] == ["failed", "queued", "blocked"]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["jobs", "retry"], 2, "read command line: name jobs, or say --failed"),
        (["jobs", "retry", str(uuid4()), "--failed"], 2, "read command line: name jobs, or say --failed"),
        (["jobs", "retry", str(uuid4()), "--kind", "toy.make"], 2, "read command line: name jobs, or say --failed"),
        (["jobs", "retry", "--failed", "--since", "soon"], 2, "read --since: it is not an age"),
        (["jobs", "cancel", str(uuid4())], 4, "cancel job: a reason is needed, because a cancel cannot be taken back"),
        (["jobs", "cancel", str(uuid4()), "--reason", " "], 4, "cancel job: a reason is needed"),
        (["jobs", "skip", str(uuid4()), "--step", "s2"], 4, "skip step: a reason is needed, because what is skipped is owed"),
        (["jobs", "skip", str(uuid4()), "--step", "s2", "--reason", " "], 4, "skip step: a reason is needed"),
        (["jobs", "skip", str(uuid4()), "--step", "s2", "--reason", "r"], 2, "skip step of job"),
        (["jobs", "pause", "kind", "toy.none"], 2, 'pause: unknown kind "toy.none"'),
        (["jobs", "pause", "kind"], 2, "read command line: kind takes a name"),
        (["jobs", "pause", "all", "x"], 2, "read command line: all takes no name"),
        (["jobs", "pause", "org", "x" * 201], 2, "pause: a name holds at most 200 characters, a reason at most 500"),
        (["jobs", "pause", "all", "--reason", "x" * 501], 2, "pause: a name holds at most 200 characters, a reason at most 500"),
        (["jobs", "explain", str(uuid4())], 2, "explain job: there is no such job"),
        (["sweep", "floor"], 2, 'sweep: unknown schedule "floor"'),
    ],
)
def test_what_cannot_be_asked_is_refused(shell: Shell, arguments: list[str], code: int, error: str) -> None:
    ran = shell(*arguments)

    assert (ran.code, ran.out) == (code, "")
    assert ran.error.startswith(error)


def test_a_skipped_step_is_owed_and_the_job_goes_on(shell: Shell, database: Database, stage: Stage) -> None:
    (job,) = broken(database, stage, 1, "toy.remove")
    wrong = shell("jobs", "skip", job, "--step", "s1", "--reason", "the host is gone")
    assert (wrong.code, wrong.error) == (2, f'skip step of job {job}: it is at s2, not at "s1"')

    with process(database, stage, KIND, CAREFUL):
        ran = shell("jobs", "skip", job, "--step", "s2", "--reason", "the host is gone", "--wait")

    assert ran.code == 0
    assert re.search("↷ s2", ran.err)
    with database.engine.connect() as connection:
        debt = connection.execute(text("SELECT job_id::text, step, reason, requested_by FROM worker.debts")).one()
    assert debt[:3] == (job, "s2", "the host is gone")
    assert debt.requested_by.startswith("cli:")
    assert stage.calls.count("s2") == 1


def test_a_pause_is_seen_by_everybody_who_lists_jobs_until_it_is_ended(shell: Shell, database: Database, stage: Stage) -> None:
    said = shell("jobs", "pause", "kind", "toy.make", "--reason", "audit")
    again = shell("jobs", "pause", "kind", "toy.make", "--reason", "other")
    job = ask(database)
    with process(database, stage, KIND, CAREFUL):
        until(lambda: column(database, "SELECT paused FROM worker.jobs") == [True])
        listed = shell("jobs", "list", "--json")
        ended = shell("jobs", "resume", "kind", "toy.make")
        until(lambda: state(database, job) == "succeeded")

    assert re.match(r"paused: kind toy.make by cli:\S+ since .+, because audit\n", said.err)
    assert again.err.startswith("paused already: kind toy.make")
    assert "because audit" in again.err
    assert re.match(r"paused: kind toy.make by cli:\S+ since .+, because audit\n$", listed.err)
    assert json.loads(listed.out)[0]["id"] == job
    assert ended.err == "kind toy.make goes on: 1 job was held back\n"
    assert shell("jobs", "list").err == ""
    assert shell("jobs", "resume", "kind", "toy.make").err == "kind toy.make was not paused\n"


def test_everything_is_paused_and_goes_on(shell: Shell, database: Database, stage: Stage) -> None:
    assert shell("jobs", "pause", "all").code == 0
    with process(database, stage, KIND, CAREFUL):
        job = ask(database)
        until(lambda: column(database, "SELECT paused FROM worker.jobs") == [True])
        assert shell("jobs", "resume", "all").code == 0
        until(lambda: state(database, job) == "succeeded")


def test_explain_says_each_reason_and_what_to_do(shell: Shell, database: Database) -> None:
    job = ask(database, run_at="2999-01-31T18:00:00Z")
    ran = shell("jobs", "explain", job, TZ="UTC")

    assert ran.out.splitlines() == [
        f"toy.make {job} is queued",
        "- it is not due: it may start at 2999-01-31 18:00:00",
        "- no live process serves its queue toy: no process is alive",
        "  → molecule-worker run",
    ]


@pytest.mark.parametrize("verb", ["explain", "show"])
def test_on_a_terminal_a_sentence_is_broken_between_words_and_each_way_out_has_a_line(
    shell: Shell, database: Database, stage: Stage, verb: str
) -> None:
    (job,) = broken(database, stage, 1, "toy.remove")
    said = "the volume of the workspace is still attached to a container that nobody here has made"
    run(database, f"UPDATE worker.jobs SET error = error || jsonb_build_object('message', '{said}') WHERE id = '{job}'")

    code, shown = shell.on_terminal("jobs", verb, job)
    lines = [line.strip(" →") for line in shown.splitlines()]

    assert code == 0
    assert said in " ".join(lines)
    if verb == "explain":
        assert max(map(len, shown.splitlines())) <= 80
        assert f"then molecule-worker jobs retry {job}" in lines
        assert len(shell("jobs", verb, job).out.splitlines()) == 3


def test_schedules_fit_eighty_columns_with_what_they_do(shell: Shell, database: Database) -> None:
    run(
        database,
        "INSERT INTO worker.slots (schedule, slot, finished_at, outcome) VALUES "
        '(\'retention\', now(), now(), \'{"jobs": 1200, "kept": 3, "slots": 4, "steps": 80000, "events": 90000}\')',
    )

    _, shown = shell.on_terminal("sweep")

    assert max(map(len, shown.splitlines())) <= 80
    assert "jobs 1200, kept 3, slots 4, steps 80000, events 90000" in shown
    assert "forget jobs that came to rest long ago" in shown


def test_what_comes_round_is_listed_and_done_at_once(shell: Shell, database: Database, stage: Stage) -> None:
    (job,) = broken(database, stage, 1)
    run(database, f"UPDATE worker.jobs SET finished_at = now() - interval '200 days' WHERE id = '{job}'")
    before = shell("sweep")
    pretended = shell("sweep", "retention", "--dry-run")
    kept = shell("sweep", "retention", "--json", MOLECULE_WORKER_KEEP_FAILED_DAYS="300")
    assert state(database, job) == "failed"
    done = shell("sweep", "retention", "--json")

    assert before.out.count("never") == 3
    assert re.search(r"^jobs +1$", pretended.out, re.MULTILINE)
    assert pretended.err == "nothing was changed: this is what it would have done\n"
    assert json.loads(kept.out)["jobs"] == 0
    assert json.loads(done.out)["jobs"] == 1
    assert column(database, "SELECT id FROM worker.jobs") == []


def test_the_last_slot_of_each_schedule_is_shown_with_its_outcome(shell: Shell, database: Database) -> None:
    run(
        database,
        "INSERT INTO worker.slots (schedule, slot, finished_at, outcome) VALUES ('mend', now(), now(), '{\"parked\": 2}'), "
        "('durations', now(), NULL, NULL)",
    )

    listed = shell("sweep").out
    shown = {row["name"]: row for row in json.loads(shell("sweep", "--json").out)}

    assert re.search(r"^mend +5 min +\d+ s +parked 2 ", listed, re.MULTILINE)
    assert re.search(r"^durations +10 min +\d+ s +did not finish ", listed, re.MULTILINE)
    assert shown["mend"]["outcome"] == {"parked": 2}
    assert shown["retention"]["slot"] is None


def test_a_watch_says_how_long_it_will_take(shell: Shell, database: Database) -> None:
    for step in ("s1", "s2", "s3"):
        run(
            database,
            f"INSERT INTO worker.durations (kind, step, variant, n, p50_ms, p95_ms) VALUES ('toy.make', '{step}', '', 9, 60000, 60000)",
        )
    watching = shell.start("jobs", "watch", ask(database))
    assert watching.stderr is not None

    said = watching.stderr.readline()

    assert said.strip() == "… 0/3 s1: waits for a worker that serves the queue toy (about 3 min 0 s left)"
    assert end(watching, signal.SIGINT)[0] == 130


def test_cancelling_a_job_that_has_ended_says_how_it_ended(shell: Shell, database: Database, stage: Stage) -> None:
    with process(database, stage, KIND, CAREFUL):
        job = ask(database)
        until(lambda: state(database, job) == "succeeded")
    ran = shell("jobs", "cancel", job, "--reason", "r")

    assert (ran.code, ran.error) == (2, "cancel job: it has ended: succeeded")
