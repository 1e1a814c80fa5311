from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.toys import Stage, ask, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.machine import Blocked, Done, NotYet, Passage
from worker.errors import Fatal, Refused, Retryable
from worker.store import requests
from worker.store.jobs import Claims, Register

KIND = toy_kind()
GONE = toy_kind("toy.remove", steps=2, only_forward=True, supersedes=True, widens=("deep",))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ends(database: Database, job: str, wanted: str) -> Any:
    until(lambda: state(database, job) == wanted, what=f"{job} {wanted}")
    return status(database, job)


def refuse(_passage: Passage) -> Any:
    raise Refused("make thing: no", hint="ask for another")


def test_a_job_does_its_steps_in_order_and_succeeds(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    with process(database, stage, KIND):
        job = ask(database)
        ended = ends(database, job, "succeeded")

    assert stage.calls == ["s1", "s2", "s3"]
    assert [step["state"] for step in ended["steps"]] == ["done"] * 3
    assert ended["progress"]["fraction"] == 1
    assert ended["error"] is None


def test_facts_of_a_step_reach_the_later_ones(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    seen: list[Any] = []
    stage.script["s1"] = lambda _: Done({"digest": "abc"})

    def look(passage: Passage) -> Done:
        seen.append(passage.facts["s1"])
        return Done()

    stage.script["s3"] = look
    with process(database, stage, KIND):
        ends(database, ask(database), "succeeded")

    assert seen == [{"digest": "abc"}]


def test_facts_that_rows_learned_reach_the_later_steps(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    seen: list[Any] = []
    stage.script["s1"] = lambda _: Done({"own": 1}, rows=lambda _connection: {"learned": 2})

    def look(passage: Passage) -> Done:
        seen.append(passage.facts["s1"])
        return Done()

    stage.script["s2"] = look
    with process(database, stage, KIND):
        ends(database, ask(database), "succeeded")

    assert seen == [{"own": 1, "learned": 2}]


def test_a_fatal_step_undoes_newest_first_itself_included(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = refuse
    with process(database, stage, KIND):
        ended = ends(database, ask(database), "failed")

    assert stage.calls == ["s1", "s2", "undo s2", "undo s1"]
    assert ended["error"] == {
        "code": "refused",
        "message": "make thing: no",
        "hint": "ask for another",
        "blame": "tenant",
        "step": "s2",
    }


def test_a_retryable_step_is_tried_as_often_as_its_row_says(database: Database, stage: Stage) -> None:
    remember(database, KIND)

    def busy(_: Passage) -> Any:
        raise Retryable("make thing: busy")

    stage.script["s2"] = busy
    with process(database, stage, KIND):
        ends(database, ask(database), "failed")

    assert stage.calls.count("s2") == 3


def test_a_bug_in_a_step_costs_an_attempt_and_not_the_process(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s1"] = lambda _: 1 / 0
    with process(database, stage, KIND) as runtime:
        ended = ends(database, ask(database), "failed")
        assert runtime.answer(ask(database, args={})) in {True, False}

    assert ended["error"]["code"] == "internal"
    assert "ZeroDivision" not in str(ended["error"])


def test_a_fresh_process_looks_at_once(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    job = ask(database)
    with process(database, stage, KIND, poll_s=60):
        ends(database, job, "succeeded")


def test_a_world_that_takes_longer_than_a_lease_costs_no_identity(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    left = Event()
    with process(database, stage, KIND, lease_s=1.2, left=left, assembly_s=2.0):
        ends(database, ask(database), "succeeded")

    assert not left.is_set()


def test_a_short_wait_is_over_in_time_though_nobody_rings(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    early = iter([NotYet("the kettle", timedelta(milliseconds=300))])
    stage.script["s2"] = lambda _: next(early, Done())
    job = ask(database)
    with process(database, stage, KIND, poll_s=60):
        ends(database, job, "succeeded")


def test_a_call_that_comes_while_the_step_runs_ends_its_wait_at_once(database: Database, stage: Stage) -> None:
    remember(database, KIND)

    def called(passage: Passage) -> NotYet | Done:
        if stage.calls.count("s2") > 1:
            return Done()
        with database.engine.begin() as connection:
            connection.execute(text("SELECT worker.wake(:subject)"), {"subject": passage.subject})
        return NotYet("a call", timedelta(hours=1))

    stage.script["s2"] = called
    job = ask(database)
    with process(database, stage, KIND, poll_s=60):
        ends(database, job, "succeeded")


def test_not_yet_costs_no_attempt_and_frees_the_slot(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    early = iter([NotYet("the kettle", timedelta(milliseconds=30))] * 5)
    stage.script["s1"] = lambda _: next(early, Done())
    with process(database, stage, KIND, slots=1):
        job = ask(database)
        ends(database, ask(database), "succeeded")
        ended = ends(database, job, "succeeded")

    assert ended["steps"][0]["attempts"] == 1


def test_an_event_wakes_a_wait_at_once(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    ready = Event()
    stage.script["s2"] = lambda _: Done() if ready.is_set() else NotYet("the agent", timedelta(hours=1))
    with process(database, stage, KIND):
        job = ask(database, subject="00000000-0000-0000-0000-000000000001")
        assert ends(database, job, "waiting")["waiting_for"] == "the agent"
        ready.set()
        with database.engine.begin() as connection:
            connection.execute(text("SELECT worker.wake('toy:00000000-0000-0000-0000-000000000001')"))
        ends(database, job, "succeeded")


def test_an_event_during_the_look_is_not_lost(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    subject = "00000000-0000-0000-0000-000000000002"
    looks: list[int] = []

    def look(_: Passage) -> Any:
        looks.append(1)
        if len(looks) > 1:
            return Done()
        with database.engine.begin() as connection:
            connection.execute(text("SELECT worker.wake(:s)"), {"s": f"toy:{subject}"})
        return NotYet("what has just happened", timedelta(hours=1))

    stage.script["s1"] = look
    with process(database, stage, KIND):
        ends(database, ask(database, subject=subject), "succeeded")


def test_two_jobs_on_one_subject_never_overlap(database: Database, stage: Stage) -> None:
    other = toy_kind("toy.paint")
    remember(database, KIND, other)
    inside: list[str] = []
    overlaps: list[str] = []

    def enter(passage: Passage) -> Done:
        overlaps.extend(inside)
        inside.append(passage.kind)
        Event().wait(0.05)
        inside.remove(passage.kind)
        return Done()

    stage.script |= {"s1": enter, "s2": enter, "s3": enter}
    subject = "00000000-0000-0000-0000-000000000003"
    with process(database, stage, KIND, other), process(database, stage, KIND, other):
        jobs = [ask(database, "toy.make", subject), ask(database, "toy.paint", subject)]
        for job in jobs:
            ends(database, job, "succeeded")

    assert overlaps == []


def test_the_fence_of_a_subject_only_grows(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    subject = "00000000-0000-0000-0000-000000000004"
    with process(database, stage, KIND):
        for _ in range(3):
            ends(database, ask(database, subject=subject), "succeeded")
    with database.engine.connect() as connection:
        fences = connection.execute(text("SELECT fence FROM worker.jobs ORDER BY seq")).scalars().all()

    assert fences == [1, 2, 3]


def test_a_delete_ends_a_waiting_job_without_undoing_it(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    stage.script["s2"] = lambda passage: NotYet("long", timedelta(hours=1)) if passage.kind == "toy.make" else Done()
    subject = "00000000-0000-0000-0000-000000000005"
    with process(database, stage, KIND, GONE):
        made = ask(database, subject=subject)
        ends(database, made, "waiting")
        gone = ask(database, "toy.remove", subject)
        ends(database, gone, "succeeded")
        ended = ends(database, made, "cancelled")

    assert not [call for call in stage.calls if call.startswith("undo")]
    assert ended["error"]["code"] == "superseded"


def test_a_delete_ends_a_running_job_at_its_next_boundary(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    entered, leave = Event(), Event()

    def hold(passage: Passage) -> Done:
        if passage.kind == "toy.make":
            entered.set()
            leave.wait(10)
        return Done()

    stage.script["s2"] = hold
    subject = "00000000-0000-0000-0000-000000000006"
    with process(database, stage, KIND, GONE):
        made = ask(database, subject=subject)
        entered.wait(10)
        gone = ask(database, "toy.remove", subject)
        leave.set()
        ends(database, made, "cancelled")
        ends(database, gone, "succeeded")

    assert "s3" not in stage.calls


def test_a_delete_ends_a_job_that_is_undoing(database: Database, stage: Stage) -> None:
    remember(database, KIND, GONE)
    stage.script["s2"] = lambda passage: refuse(passage) if passage.kind == "toy.make" else Done()

    def stuck(_: Passage) -> Any:
        raise Retryable("undo thing: busy")

    stage.script["undo s2"] = stuck
    subject = "00000000-0000-0000-0000-000000000007"
    with process(database, stage, KIND, GONE):
        made = ask(database, subject=subject)
        until(lambda: status(database, made)["direction"] == "back")
        ends(database, ask(database, "toy.remove", subject), "succeeded")
        ends(database, made, "cancelled")

    assert "undo s1" not in stage.calls


def test_an_undo_is_never_given_up(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s1"] = refuse
    failures = iter(range(8))

    def stubborn(_: Passage) -> Any:
        if next(failures, None) is not None:
            raise Retryable("undo thing: busy")
        return Done()

    stage.script["undo s1"] = stubborn
    with process(database, stage, KIND):
        ended = ends(database, ask(database), "failed")

    assert stage.calls.count("undo s1") == 9
    assert ended["error"]["message"] == "make thing: no"


def test_cancel_undoes_and_rests_in_cancelled(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = lambda _: NotYet("long", timedelta(hours=1))
    with process(database, stage, KIND):
        job = ask(database)
        ends(database, job, "waiting")
        with database.engine.begin() as connection:
            assert requests.cancel(connection, job, "wrong one", requested_by="test")
        ended = ends(database, job, "cancelled")

    assert stage.calls == ["s1", "s2", "undo s2", "undo s1"]
    assert "wrong one" in ended["error"]["message"]


def test_a_queued_job_is_cancelled_without_a_trace(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    job = ask(database)
    with database.engine.begin() as connection:
        assert requests.cancel(connection, job, "never mind", requested_by="test")
    with process(database, stage, KIND):
        assert state(database, job) == "cancelled"

    assert stage.calls == []


def test_a_deletion_that_has_begun_cannot_be_cancelled(database: Database, stage: Stage) -> None:
    remember(database, GONE)
    stage.script["s1"] = lambda _: NotYet("long", timedelta(hours=1))
    with process(database, stage, GONE):
        job = ask(database, "toy.remove")
        ends(database, job, "waiting")
        with database.engine.begin() as connection, pytest.raises(Refused, match="only goes forward"):
            requests.cancel(connection, job, "oh no", requested_by="test")


def test_what_cannot_be_done_forward_blocks_and_retry_goes_on_from_there(database: Database, stage: Stage) -> None:
    remember(database, GONE)
    stage.script["s2"] = refuse
    with process(database, stage, GONE):
        job = ask(database, "toy.remove")
        assert ends(database, job, "blocked")["error"]["message"] == "make thing: no"
        del stage.script["s2"]
        with database.engine.begin() as connection:
            requests.retry(connection, job, requested_by="test")
        ends(database, job, "succeeded")

    assert stage.calls == ["s1", "s2", "s2"]


def test_blocked_says_why_and_keeps_the_subject(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s1"] = lambda _: Blocked("a person must sign", hint="sign it")
    with process(database, stage, KIND):
        job = ask(database)
        ended = ends(database, job, "blocked")

    assert ended["error"]["hint"] == "sign it"
    assert ended["waiting_for"] == "a person must sign"


def test_a_retried_job_that_is_cancelled_before_it_begins_undoes_nothing(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = refuse
    with process(database, stage, KIND):
        job = ask(database)
        ends(database, job, "failed")
    calls = list(stage.calls)
    with database.engine.begin() as connection:
        requests.retry(connection, job, requested_by="me")
        requests.cancel(connection, job, "never mind", requested_by="me")
    assert status(database, job)["state"] == "cancelled"
    assert stage.calls == calls


def test_a_failed_job_is_retried_from_its_first_step(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = refuse
    with process(database, stage, KIND):
        job = ask(database)
        ends(database, job, "failed")
        del stage.script["s2"]
        with database.engine.begin() as connection:
            requests.retry(connection, job, requested_by="test")
        ends(database, job, "succeeded")

    assert stage.calls[-3:] == ["s1", "s2", "s3"]


def test_rows_of_a_step_commit_with_its_checkpoint_or_not_at_all(database: Database, stage: Stage) -> None:
    remember(database, KIND)

    def write(connection: Any) -> dict[str, Any]:
        connection.execute(text("INSERT INTO structure_events (event_type) VALUES ('ONCE')"))
        return {"wrote": 1}

    def write_and_refuse(connection: Any) -> None:
        write(connection)
        raise Refused("write rows: no")

    stage.script["s1"] = lambda _: Done({"own": 2}, rows=write)
    stage.script["s2"] = lambda _: Done(rows=write_and_refuse)
    with process(database, stage, KIND):
        ended = ends(database, ask(database), "failed")
    with database.engine.connect() as connection:
        events = connection.execute(text("SELECT count(*) FROM structure_events")).scalar_one()

    assert events == 1
    assert ended["steps"][0]["facts"] == {"own": 2, "wrote": 1}
    assert ended["error"]["message"] == "write rows: no"


def test_a_step_that_this_release_does_not_know_blocks_and_costs_nothing(database: Database, stage: Stage) -> None:
    newer, older = toy_kind(steps=3), toy_kind(steps=2)
    remember(database, newer)
    job = ask(database)
    remember(database, older)
    with process(database, stage, older):
        ended = ends(database, job, "blocked")

    assert ended["error"]["code"] == "unknown_step"
    assert stage.calls == []


def test_a_step_past_its_deadline_is_given_up(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    stage.script["s1"] = lambda passage: NotYet("godot", timedelta(milliseconds=20)) if passage.elapsed < timedelta(0.2) else Done()

    def late(passage: Passage) -> Any:
        if passage.elapsed > timedelta(milliseconds=200):
            raise Fatal("wait for godot: he did not come", code="deadline")
        return NotYet("godot", timedelta(milliseconds=20))

    stage.script["s1"] = late
    with process(database, stage, KIND):
        ended = ends(database, ask(database), "failed")

    assert ended["error"]["code"] == "deadline"


def test_a_job_is_not_overtaken_on_its_subject_while_somebody_has_its_row_locked(database: Database) -> None:
    other = toy_kind("toy.paint")
    remember(database, KIND, other)
    subject = "00000000-0000-0000-0000-000000000007"
    first, second = ask(database, "toy.make", subject), ask(database, "toy.paint", subject)
    register = Register(database.url, name="test", pid=1, lease_s=30.0)
    claims = Claims(database.url, process_id=register.process_id, name="test")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM worker.jobs WHERE id = :id FOR UPDATE"), {"id": first})
        assert claims.claim(["toy"], 10) == []
        assert claims.claim(["toy"], 10, [second]) == []

    assert [job.id for job in claims.claim(["toy"], 10)] == [first]
    claims.close()
    register.close()


def test_a_bug_in_the_rows_of_a_step_costs_an_attempt_and_not_the_process(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    left = Event()

    def wrong_statement(connection: Any) -> None:
        connection.execute(text("INSERT INTO structure_events (event_type) VALUES (NULL)"))

    stage.script["s1"] = lambda _: Done(rows=lambda _connection: {"never": 1 / 0})
    stage.script["s2"] = lambda _: Done(rows=wrong_statement)
    with process(database, stage, KIND, left=left):
        broken = ends(database, ask(database), "failed")
        del stage.script["s1"]
        refused = ends(database, ask(database), "failed")

    assert (broken["error"]["code"], broken["error"]["step"]) == ("internal", "s1")
    assert (refused["error"]["code"], refused["error"]["step"]) == ("internal", "s2")
    assert stage.calls.count("s1") == 3 + 1
    assert not left.is_set()


def test_a_retried_undo_of_a_cancelled_job_still_ends_cancelled_and_knows_why(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    told: list[Any] = []
    stage.script["s1"] = lambda _: NotYet("long", timedelta(hours=1))

    def undo(passage: Passage) -> Any:
        told.append(passage.error)
        if len(told) == 1:
            return Blocked("a person must look")
        return Done()

    stage.script["undo s1"] = undo
    with process(database, stage, KIND):
        job = ask(database)
        ends(database, job, "waiting")
        with database.engine.begin() as connection:
            requests.cancel(connection, job, "wrong one", requested_by="test")
        ends(database, job, "blocked")
        with database.engine.begin() as connection:
            requests.retry(connection, job, requested_by="test")
        ends(database, job, "cancelled")

    assert told[0]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("asked", "words"),
    [("run_at => 'infinity'", "run_at must be a moment"), ("traceparent => 'junk'", "traceparent is not one of W3C Trace Context")],
)
def test_what_could_never_run_or_be_traced_is_refused_before_it_is_stored(database: Database, asked: str, words: str) -> None:
    remember(database, KIND)
    enqueue = f"SELECT worker.enqueue('toy.make', jsonb_build_object('id', gen_random_uuid()), {asked})"
    with pytest.raises(DBAPIError, match=words) as refused, database.engine.begin() as connection:
        connection.execute(text(enqueue))

    assert getattr(refused.value.orig, "pgcode", None) == "22023"


def test_a_failed_job_shows_the_step_that_failed_and_not_the_last_undone(database: Database, stage: Stage) -> None:
    remember(database, KIND)
    stage.script["s2"] = refuse
    with process(database, stage, KIND):
        ended = ends(database, ask(database), "failed")

    assert ended["step"] == "s2"


@pytest.mark.parametrize("reason", [None, "", " \n"])
def test_a_cancel_without_a_reason_is_refused(database: Database, reason: str | None) -> None:
    remember(database, toy_kind())
    job = ask(database)
    with database.engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text("SELECT worker.cancel(CAST(:id AS uuid), :reason, NULL)"), {"id": job, "reason": reason})

    assert getattr(caught.value.orig, "pgcode", None) == "22023"
    assert state(database, job) == "queued"
