"""Why a job is not running, for each state that it can be in: what `jobs explain` says is what is true."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, ask, lacking, process, remember, state, toy_kind
from tests.waiting import until
from worker.engine.explain import Reason, reasons, waits_for
from worker.engine.machine import Child, Done, NotYet, Spread
from worker.errors import Unreachable
from worker.store import requests
from worker.store.jobs import Claims, Register
from worker.store.standing import standing

KIND = toy_kind(skippable=("s2",))
OTHER = toy_kind("toy.other")
HOUR = timedelta(hours=1)


def told(database: Database, job: str) -> list[Reason]:
    with database.engine.connect() as connection:
        found = standing(connection, job)
    assert found is not None
    return reasons(found)


def codes(database: Database, job: str) -> list[str]:
    return [reason.code for reason in told(database, job)]


def only(database: Database, job: str) -> Reason:
    (reason,) = told(database, job)
    return reason


def run(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@contextmanager
def worker(database: Database, queues: Sequence[str] = ("toy",), knows: Sequence[str] = ("s1", "s2", "s3")) -> Iterator[Claims]:
    """A live process that serves these queues and runs what it claims only when it is told to."""
    register = Register(
        database.url, name="jobs@here:1", pid=1, lease_s=60, host="here", knows=dict.fromkeys(("toy.make", "toy.other"), knows)
    )
    claims = Claims(database.url, process_id=register.process_id, name="t")
    claims.claim(queues, 1, [])
    yield claims
    claims.close()
    register.close()


@pytest.fixture
def toys(database: Database) -> Database:
    remember(database, KIND, OTHER)
    return database


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_there_is_no_standing_of_no_job(database: Database) -> None:
    with database.engine.connect() as connection:
        assert standing(connection, str(uuid4())) is None


def test_a_job_that_nothing_stands_in_the_way_of_is_ready(toys: Database) -> None:
    with worker(toys):
        first, second = ask(toys), ask(toys)

        assert only(toys, first).sentence.startswith("nothing is in its way: it is the next of its organisation, and 1 processes")
        assert "1 of its organisation's jobs come first" in only(toys, second).sentence


def test_a_job_of_tomorrow_is_not_due(toys: Database) -> None:
    with worker(toys):
        job = ask(toys, run_at="2999-01-31T18:00:00Z")

        reason = only(toys, job)
        assert reason.code == "not_due"
        assert "it is not due: it may start at 2999-" in reason.sentence


def test_no_process_at_all_and_none_that_serves_its_queue_are_told_apart(toys: Database) -> None:
    job = ask(toys)
    nobody = only(toys, job)
    assert (nobody.code, nobody.hint) == ("unserved", "molecule-worker run")
    assert "no process is alive" in nobody.sentence
    with worker(toys, queues=["else"]):
        others = only(toys, job)
        assert others.code == "unserved"
        assert "1 live processes serve other queues" in others.sentence
        assert others.hint.startswith("molecule-worker run --queues toy; ")
        run(toys, "UPDATE worker.jobs SET queue = 'docker.reviewhost'")
        command = "MOLECULE_WORKER_DOCKER_HOST_NAME=reviewhost molecule-worker run"
        assert only(toys, job).hint.startswith(f"on the host reviewhost: {command}; ")
    assert only(toys, job).hint == f"on the host reviewhost: {command}"


def test_a_job_that_no_live_release_knows_waits_for_one_that_does(toys: Database) -> None:
    job = ask(toys)
    with worker(toys, knows=["s1"]):
        assert only(toys, job).code == "unable"
        assert "none of the 1 live processes that serve its queue knows its steps" in only(toys, job).sentence


def test_a_job_whose_subject_is_held_says_by_whom(toys: Database) -> None:
    subject = str(uuid4())
    holder = ask(toys, subject=subject)
    with worker(toys) as claims:
        assert claims.claim(["toy"], 1)
        job = ask(toys, "toy.other", subject)
        reason = only(toys, job)
        claims.claim(["toy"], 1)  # finds it, and parks it
        parked = only(toys, job)

    assert reason == parked
    assert reason.code == "held"
    assert reason.sentence == f"its subject toy:{subject} is held by toy.make {holder}, running at s1"
    assert reason.hint == f"molecule-worker jobs explain {holder}"


def test_a_job_behind_an_older_one_of_its_subject_says_so(toys: Database) -> None:
    subject = str(uuid4())
    with worker(toys):
        first, second = ask(toys, subject=subject), ask(toys, "toy.other", subject)

        assert codes(toys, first) == ["ready"]
        assert only(toys, second).sentence == f"toy.make {first} on its subject toy:{subject} comes first"


def test_a_job_parked_behind_one_that_has_ended_is_about_to_be_called(toys: Database) -> None:
    job = ask(toys)
    run(
        toys,
        "UPDATE worker.jobs SET parked = true",
        "INSERT INTO worker.subjects (key, awaited) SELECT subject, true FROM worker.jobs",
    )
    with worker(toys, queues=["else"]):
        pass
    run(toys, "UPDATE worker.jobs SET parked = true", "UPDATE worker.subjects SET awaited = true")

    assert codes(toys, job) == ["parked", "unserved"]


@pytest.mark.parametrize(("scope", "what"), [("kind", "toy.make"), ("org", "acme"), ("all", "")])
@pytest.mark.parametrize("found", [False, True], ids=["not looked at yet", "found by a claim"])
def test_a_pause_says_who_paused_it_and_why(toys: Database, scope: str, what: str, *, found: bool) -> None:
    job = ask(toys)
    run(toys, "UPDATE worker.jobs SET org = 'acme'")
    with toys.engine.begin() as connection:
        requests.pause(connection, scope, what, "audit", requested_by="ada")
        requests.pause(connection, "kind", "toy.other", "another", requested_by="bob")
    with worker(toys) as claims:
        if found:
            assert claims.claim(["toy"], 1) == []
        reason = only(toys, job)
    with toys.engine.begin() as connection:
        requests.resume(connection, scope, what, requested_by="ada")

    assert reason.code == "paused"
    assert reason.sentence.startswith(f"it is paused: {scope} {what}".strip() + " by ada since ")
    assert reason.sentence.endswith(", because audit")
    assert reason.hint == f"molecule-worker jobs resume {scope} {what}".strip()


def test_a_job_whose_every_worker_is_drained_says_which_node(toys: Database) -> None:
    job = ask(toys)
    with worker(toys):
        with toys.engine.begin() as connection:
            requests.pause(connection, "host", "here", "new disk", requested_by="ada")
        reason = only(toys, job)

    assert reason.code == "drained"
    assert "node here by ada since" in reason.sentence
    assert reason.hint == "molecule-worker undrain here"


def test_all_that_stands_in_the_way_is_said_at_once(toys: Database) -> None:
    subject = str(uuid4())
    ask(toys, subject=subject)
    with worker(toys) as claims:
        claims.claim(["toy"], 1)
    job = ask(toys, "toy.other", subject, run_at="2999-01-31T18:00:00Z")
    with toys.engine.begin() as connection:
        requests.pause(connection, "all", "", None, requested_by="ada")

    assert codes(toys, job) == ["not_due", "held", "paused", "unserved"]


def test_a_running_job_says_where_it_runs_and_at_which_step(toys: Database) -> None:
    job = ask(toys)
    with worker(toys) as claims:
        claims.claim(["toy"], 1)
        running = only(toys, job)
        with toys.engine.begin() as connection:
            requests.pause(connection, "host", "here", None, requested_by="ada")
            requests.cancel(connection, job, "enough", requested_by="ada")
        drained = codes(toys, job)
    lost = told(toys, job)[0]

    assert running.code == "running"
    assert running.sentence.startswith("it runs: step 1 of 3 (s1) since ")
    assert running.sentence.endswith("on jobs@here:1")
    assert drained == ["running", "drained", "cancelling"]
    assert (lost.code, lost.hint) == ("lost_process", "molecule-worker run")
    assert lost.sentence.startswith("jobs@here:1 held it at step 1 of 3 (s1)")


def unreachable(_: object) -> Done:
    raise Unreachable("ask peer: no answer", after=3600)


@pytest.mark.parametrize(
    ("does", "code", "said"),
    [
        (lambda _: NotYet("the kettle", HOUR), "waits", "step 2 of 3 (s2) waits for the kettle; it looks again at "),
        (unreachable, "backs_off", "attempt 1 of step 2 of 3 (s2) failed: ask peer: no answer; it is tried again at "),
        (
            lambda _: Spread([Child("toy.other", {"id": str(uuid4())}) for _ in range(3)], most=2),
            "children",
            "it waits for 2 live jobs that step 2 of 3 (s2) spread over, and 1 not started yet",
        ),
    ],
)
def test_a_waiting_job_says_what_for(toys: Database, stage: Stage, does: Callable[..., object], code: str, said: str) -> None:
    stage.script["s2"] = does
    with process(toys, stage, toy_kind(skippable=("s2",))):
        job = ask(toys)
        until(lambda: state(toys, job) == "waiting")
        until(lambda: told(toys, job)[0].code == code)

        assert told(toys, job)[0].sentence.startswith(said)
        with toys.engine.connect() as connection:
            found = standing(connection, job)
        assert found is not None
        assert waits_for(found) is None  # the view has that already


def test_a_blocked_job_says_at_what_and_both_ways_out(toys: Database, stage: Stage) -> None:
    kind = toy_kind(only_forward=True, skippable=("s2",))
    remember(toys, kind)
    stage.script["s2"] = lacking
    with process(toys, stage, kind):
        job = ask(toys)
        until(lambda: state(toys, job) == "blocked")
        reason = only(toys, job)

    assert reason.code == "blocked"
    assert reason.sentence == "it is blocked at step 2 of 3 (s2): missing required env: OPENAI_API_KEY"
    assert reason.hint.startswith("add them under Config")
    assert f"then molecule-worker jobs retry {job}" in reason.hint
    assert f"or molecule-worker jobs skip {job} --step s2 --reason …" in reason.hint


def test_what_cannot_be_skipped_is_not_said_to_be(toys: Database, stage: Stage) -> None:
    kind = toy_kind(only_forward=True)
    remember(toys, kind)
    stage.script["s2"] = lacking
    with process(toys, stage, kind):
        job = ask(toys)
        until(lambda: state(toys, job) == "blocked")

    assert "skip" not in only(toys, job).hint


def test_a_job_at_rest_says_how_it_ended(toys: Database, stage: Stage) -> None:
    with process(toys, stage, KIND, OTHER):
        done = ask(toys)
        until(lambda: state(toys, done) == "succeeded")
        stage.script["s1"] = lacking
        failed = ask(toys)
        until(lambda: state(toys, failed) == "failed")
    cancelled = ask(toys)
    with toys.engine.begin() as connection:
        requests.cancel(connection, cancelled, "enough", requested_by="ada")

    assert only(toys, done).sentence.startswith("it is at rest: succeeded 2")
    assert only(toys, done).hint == ""
    assert only(toys, failed).sentence.endswith(": missing required env: OPENAI_API_KEY")
    assert only(toys, failed).hint == f"molecule-worker jobs retry {failed}"
    assert only(toys, cancelled).sentence.endswith(": cancelled: enough")


def test_a_job_that_was_superseded_says_by_whom(toys: Database) -> None:
    remember(toys, toy_kind("toy.remove", supersedes=True))
    subject = str(uuid4())
    job = ask(toys, subject=subject)
    by = ask(toys, "toy.remove", subject)

    assert only(toys, job).sentence.endswith(f"because toy.remove {by} took over")


def test_a_step_that_kills_its_process_makes_its_job_a_suspect(toys: Database) -> None:
    job = ask(toys)
    run(toys, "UPDATE worker.jobs SET crashes = 3")
    with worker(toys):
        assert codes(toys, job) == ["ready", "crashes"]
        assert "died 3 times during step 1 of 3 (s1), so no process runs it beside another" in told(toys, job)[1].sentence
