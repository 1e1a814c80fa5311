"""`enqueue` and `jobs` against a real engine in miniature: what people and programs are told."""

import json
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.commands import Shell, end
from tests.conftest import Database
from tests.toys import Stage, ask, lacking, process, remember, state, toy_kind
from tests.waiting import until
from worker.engine.machine import Done, NotYet

KIND = toy_kind()
SHOWN = [
    *("id", "kind", "subject", "state", "step", "direction", "attempt", "requested_by", "priority", "run_at", "progress"),
    *("created_at", "started_at", "finished_at", "error", "steps"),
]


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, KIND)
    return Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")})


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_an_enqueued_job_has_its_time_its_priority_and_whoever_asked(shell: Shell, database: Database) -> None:
    subject = str(uuid4())
    ran = shell("enqueue", "toy.make", f"id={subject.upper()}", "--at", "2030-01-31T18:00:00+02:00", "--priority", "7")

    assert ran.code == 0, ran.err
    with database.engine.connect() as connection:
        job = connection.execute(text("SELECT * FROM worker.jobs")).one()
    assert ran.out.strip() == str(job.id)
    assert job.subject == f"toy:{subject}"
    assert (job.run_at, job.priority) == (datetime(2030, 1, 31, 16, tzinfo=UTC), 7)
    assert job.requested_by.startswith("cli:")
    assert re.search("^waits for +its time, 2030-01-31 16:00:00$", shell("jobs", "show", str(job.id), TZ="UTC").out, re.MULTILINE)


def test_a_repeated_idempotency_key_gives_the_same_job_and_other_args_are_refused(shell: Shell) -> None:
    first = shell("enqueue", "toy.make", f"id={uuid4()}", "--idempotency-key", "k")
    other = shell("enqueue", "toy.make", f"id={uuid4()}", "--idempotency-key", "k")

    assert (first.code, other.code) == (0, 2)
    assert "idempotency key was used with other args" in other.error
    assert other.out == ""


def test_the_live_job_is_returned_and_said_to_be_joined(shell: Shell) -> None:
    subject = uuid4()
    first, again = shell("enqueue", "toy.make", f"id={subject}"), shell("enqueue", "toy.make", f"id={subject}")
    late = shell("enqueue", "toy.make", f"id={subject}", "--at", "2030-01-31T18:00", "--idempotency-key", "k")
    urgent = shell("enqueue", "toy.make", f"id={subject}", "--priority", "1", "--idempotency-key", "k")
    both = shell("enqueue", "toy.make", f"id={subject}", "--priority", "100", "--at", "2030-01-31T18:00")
    joined = f"joined live job {first.out.strip()} (queued)"

    assert first.out == again.out == late.out == urgent.out == both.out
    assert (first.err, again.err) == ("", f"{joined}\n")
    assert late.err == f"{joined}: it keeps its time\n"
    assert urgent.err == f"{joined}: it keeps its priority\n"
    assert both.err == f"{joined}: it keeps its time and priority\n"


def test_what_a_key_stands_for_is_said_also_when_it_has_ended(shell: Shell, database: Database, stage: Stage) -> None:
    asked = ("enqueue", "toy.make", f"id={uuid4()}", "--idempotency-key", "k", "--wait")
    with process(database, stage, KIND):
        first = shell(*asked)
    again = shell(*asked, "--at", "2030-01-31T18:00")

    assert first.code == again.code == 0
    said = f"the key stands for job {first.out.strip()} at rest (succeeded): it keeps its time"
    assert again.err.splitlines()[0] == said
    assert said.partition(" ")[0] not in first.err


def test_a_job_that_is_not_due_says_in_how_long_it_starts(shell: Shell, database: Database) -> None:
    job = ask(database, run_at=(datetime.now(UTC) + timedelta(days=3, hours=1)).isoformat())
    held = ask(database)

    assert re.search(r"^starts +in 3 d [01] h$", shell("jobs", "show", job).out, re.MULTILINE)
    assert re.search(r"  starts in 3 d [01] h$", shell("jobs", "list").out, re.MULTILINE)
    assert "starts" not in shell("jobs", "show", held).out
    watching = shell.start("jobs", "watch", job)
    assert watching.stderr is not None
    assert re.search(r"\(starts in 3 d [01] h\)$", watching.stderr.readline().strip())
    assert end(watching, signal.SIGINT)[0] == 130


def test_the_newest_of_every_kind_and_state_come_first_and_a_cut_is_said(shell: Shell, database: Database, stage: Stage) -> None:
    remember(database, toy_kind("toy.remove"))
    stage.script["s2"] = lacking
    with process(database, stage, KIND, toy_kind("toy.remove")):
        failed = ask(database, "toy.remove")
        until(lambda: state(database, failed) == "failed")
        stage.script["s2"] = lambda _: NotYet("the kettle", timedelta(hours=1))
        waiting = ask(database)
        until(lambda: state(database, waiting) == "waiting")
    queued, last = ask(database), ask(database, "toy.remove")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET state = 'running' WHERE id = :id"), {"id": queued})

    whole, cut, exact = (shell("jobs", "list", "--json", "--most", most) for most in ("50", "3", "4"))
    shown = [[row["id"] for row in json.loads(ran.out)] for ran in (whole, cut, exact)]
    of_kind = json.loads(shell("jobs", "list", "--json", "--kind", "toy.make").out)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET state = 'queued' WHERE id = :id"), {"id": queued})

    assert shown == [[last, queued, waiting, failed], [last, queued, waiting], [last, queued, waiting, failed]]
    assert (whole.err, cut.err, exact.err) == ("", "the newest 3 of more: --most 12\n", "")
    assert [row["id"] for row in of_kind] == [queued, waiting]


def test_waiting_shows_every_step_and_ends_with_zero(shell: Shell, database: Database, stage: Stage) -> None:
    with process(database, stage, KIND):
        ran = shell("enqueue", "toy.make", f"id={uuid4()}", "--wait")

    assert ran.code == 0
    assert ran.out.count("\n") == 1
    lines = [line.split()[:2] for line in ran.err.splitlines()]
    assert lines == [["✓", "s1"], ["✓", "s2"], ["✓", "s3"], ["toy.make", "succeeded"]]


def test_a_failing_job_shows_its_step_the_undoing_whose_fault_it_is_and_what_to_do(
    shell: Shell, database: Database, stage: Stage
) -> None:
    stage.script["s2"] = lacking
    with process(database, stage, KIND):
        ran = shell("enqueue", "toy.make", f"id={uuid4()}", "--wait")
    job = ran.out.strip()

    assert ran.code == 1
    assert [line.split()[:3] for line in ran.err.splitlines()[:4]] == [
        ["✓", "s1", *ran.err.splitlines()[0].split()[2:3]],
        ["✗", "s2", *ran.err.splitlines()[1].split()[2:3]],
        ["✓", "undo", "s2"],
        ["✓", "undo", "s1"],
    ]
    assert "toy.make failed" in ran.err
    assert ran.err.splitlines()[-5:] == [
        "error: missing required env: OPENAI_API_KEY",
        "step:  s2",
        "fault: the request or the workspace's own program",
        "hint:  add them under Config → Env Vars or as Global secrets, then retry",
        f"then:  molecule-worker jobs retry {job} --wait",
    ]
    assert shell("jobs", "watch", job.upper()).err == ran.err
    assert shell("jobs", "show", job).err.splitlines() == ran.err.splitlines()[-5:]


def test_show_prints_the_json_of_the_contract(shell: Shell, database: Database, stage: Stage) -> None:
    stage.script["s2"] = lacking
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: state(database, job) == "failed")

    ran = shell("jobs", "show", job, "--json")
    shown = json.loads(ran.out)

    assert (ran.code, ran.err) == (0, "")
    assert list(shown) == [*SHOWN, "debts"]
    assert list(shown["error"]) == ["code", "message", "hint", "blame", "step"]
    assert set(shown["progress"]) == {"done", "total", "fraction", "eta_seconds", "rate_per_second"}
    assert [step["name"] for step in shown["steps"]] == ["s1", "s2", "undo s2", "undo s1"]
    assert {*shown["steps"][0]} == {"name", "state", "attempts", "started_at", "finished_at", "duration_ms", "facts"}
    assert datetime.fromisoformat(shown["created_at"]) <= datetime.fromisoformat(shown["finished_at"])


def test_the_list_is_filtered_and_says_why(shell: Shell, database: Database, stage: Stage) -> None:
    stage.script["s2"] = lacking
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: state(database, job) == "failed")
    waiting = ask(database)

    assert [row["id"] for row in json.loads(shell("jobs", "list", "--json").out)] == [waiting, job]
    failed = shell("jobs", "list", "--failed").out
    assert job in failed
    assert waiting not in failed
    assert "missing required env" in failed
    assert shell("jobs", "list", "--state", "succeeded").err == "no jobs\n"


def test_a_list_fits_a_terminal_of_eighty_columns(shell: Shell, database: Database) -> None:
    job = ask(database)
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE worker.jobs SET state = 'waiting', waiting_for = 'the kettle', run_at = run_at + interval '1 h'")
        )

    code, shown = shell.on_terminal("jobs", "list")
    _, wide = shell.on_terminal("jobs", "list", columns=200)

    heading, line, why = shown.splitlines()
    assert code == 0
    assert heading.split() == ["id", "kind", "subject", "state", "age", "step"]
    assert line.split()[:2] == [job[:8], "toy.make"]
    assert line.split()[-1] == "s1"
    assert why.strip() == "the kettle"
    assert max(map(len, shown.splitlines())) <= 80
    assert job in wide


def test_a_job_that_nobody_can_run_says_what_it_waits_for(shell: Shell, database: Database) -> None:
    watching = shell.start("jobs", "watch", ask(database))
    assert watching.stderr is not None

    said = watching.stderr.readline()

    assert said.strip() == "… 0/3 s1: waits for a worker that serves the queue toy"
    assert end(watching, signal.SIGINT)[0] == 130


def test_what_a_step_waits_for_is_said(shell: Shell, database: Database, stage: Stage) -> None:
    stage.script["s2"] = lambda _: NotYet("the kettle", timedelta(seconds=30))
    with process(database, stage, KIND):
        job = ask(database)
        until(lambda: state(database, job) == "waiting")
        assert re.search("^waits for +the kettle$", shell("jobs", "show", job).out, re.MULTILINE)
        assert shell("jobs", "cancel", job, "--reason", "enough", "--wait").code == 0

    assert state(database, job) == "cancelled"


def test_an_interrupted_watch_leaves_the_job_running(shell: Shell, database: Database, stage: Stage) -> None:
    go = Event()
    stage.script["s2"] = lambda _: Done() if go.is_set() else NotYet("the kettle", timedelta(milliseconds=100))
    with process(database, stage, KIND):
        job = ask(database)
        watching = shell.start("jobs", "watch", job)
        assert watching.stderr is not None
        assert "s1" in watching.stderr.readline()
        code, _, said = end(watching, signal.SIGINT)

        assert code == 130
        assert said == f"interrupted: the job goes on: molecule-worker jobs watch {job}\n"
        go.set()
        until(lambda: state(database, job) == "succeeded")


def test_a_blocked_job_ends_the_watch_with_one_and_says_how_to_go_on(shell: Shell, database: Database, stage: Stage) -> None:
    remember(database, toy_kind("toy.remove", only_forward=True))
    stage.script["s1"] = lacking
    with process(database, stage, toy_kind("toy.remove", only_forward=True)):
        job = ask(database, "toy.remove")
        ran = shell("jobs", "watch", job)
        assert ran.code == 1
        assert "toy.remove blocked" in ran.err
        assert f"then:  molecule-worker jobs retry {job}" in ran.err
        del stage.script["s1"]
        assert shell("jobs", "retry", job, "--wait").code == 0


def test_a_retry_is_all_or_nothing(shell: Shell, database: Database, stage: Stage) -> None:
    stage.script["s1"] = lacking
    with process(database, stage, KIND):
        failed = ask(database)
        until(lambda: state(database, failed) == "failed")
    fresh = ask(database)

    ran = shell("jobs", "retry", failed, fresh)

    assert (ran.code, ran.error) == (2, f"retry job {fresh}: it is queued")
    assert state(database, failed) == "failed"


def test_a_reader_that_has_enough_is_no_error(shell: Shell, database: Database) -> None:
    for _ in range(3):
        ask(database)
    listing = shell.start("jobs", "list", "--json")
    assert listing.stdout is not None
    assert listing.stderr is not None

    listing.stdout.close()

    assert listing.wait(30) == 141
    assert listing.stderr.read() == ""
    listing.stderr.close()
