"""A retry from a step that was passed or skipped, and what is owed for as long as nobody takes a skip back."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.commands import Shell
from tests.conftest import Database
from tests.toys import Stage, ask, lacking, process, remember, state, status, toy_kind
from tests.waiting import until
from worker.engine.explain import reasons
from worker.engine.kinds import Kind
from worker.engine.machine import Blocked, Child, Done, Passage, Spread
from worker.errors import Refused
from worker.store import requests
from worker.store.standing import standing

KIND = toy_kind(steps=4, only_forward=True, skippable=("s2", "s3"))
BACK = toy_kind("toy.back", skippable=("s2",))
CHILD = Kind(toy_kind("toy.child", steps=1).machine, "toy:", "id", KIND.args, "toy")
ALL = (KIND, BACK, CHILD)


@pytest.fixture
def stage(database: Database) -> Stage:
    remember(database, *ALL)
    return Stage()


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")})


def never(_: Passage) -> Blocked:
    return Blocked("the engine refuses")


def retry(database: Database, job: str, step: str | None) -> None:
    with database.engine.begin() as connection:
        requests.retry(connection, job, requested_by="ada", from_step=step)


def skip(database: Database, job: str, step: str) -> None:
    with database.engine.begin() as connection:
        requests.skip(connection, job, step, "the host burnt down", requested_by="ada")


def column(database: Database, statement: str) -> Sequence[Any]:
    with database.engine.connect() as connection:
        return connection.execute(text(statement)).scalars().all()


def blocked_at(database: Database, job: str, step: str) -> bool:
    now = status(database, job)
    return (now["state"], now["step"]) == ("blocked", step)


def stuck(database: Database, stage: Stage) -> str:
    """At its last step, and what that needs was skipped."""
    stage.script.update(dict.fromkeys(("s2", "s3", "s4"), never))
    with process(database, stage, *ALL):
        job = ask(database)
        until(lambda: blocked_at(database, job, "s2"))
        skip(database, job, "s2")
        until(lambda: blocked_at(database, job, "s3"))
        skip(database, job, "s3")
        until(lambda: blocked_at(database, job, "s4"))
    stage.script.clear()
    stage.calls.clear()
    return job


def test_what_was_skipped_is_done_after_all_and_what_comes_after_it_too(database: Database, stage: Stage) -> None:
    job = stuck(database, stage)
    retry(database, job, "s2")
    here = status(database, job)
    with process(database, stage, *ALL):
        until(lambda: state(database, job) == "succeeded")

    assert (here["state"], here["step"], here["progress"]["done"]) == ("waiting", "s2", 1)
    assert stage.calls == ["s2", "s3", "s4"]
    assert {step["state"] for step in status(database, job)["steps"]} == {"done"}
    assert column(database, "SELECT settled_by FROM worker.debts WHERE settled_at IS NOT NULL") == ["ada", "ada"]
    assert column(database, "SELECT detail ->> 'from' FROM worker.job_events WHERE what = 'retried'") == ["s2"]


def test_a_skip_before_that_step_stays_owed(database: Database, stage: Stage) -> None:
    job = stuck(database, stage)
    retry(database, job, "s3")

    assert status(database, job)["step"] == "s3"
    assert column(database, "SELECT step FROM worker.debts WHERE settled_at IS NULL") == ["s2"]


def test_a_step_that_was_done_forgets_its_facts_and_learns_them_anew(database: Database, stage: Stage) -> None:
    job = stuck(database, stage)
    stage.script["s1"] = lambda _: Done({"by": "another"})
    stage.script["s2"] = lambda passage: Done(passage.facts["s1"])
    retry(database, job, "s1")
    with process(database, stage, *ALL):
        until(lambda: state(database, job) == "succeeded")

    assert [step["facts"] for step in status(database, job)["steps"]][:2] == [{"by": "another"}] * 2


@pytest.mark.parametrize("step", ["s9", "s4"])
def test_a_step_that_it_has_not_come_past_is_refused_and_nothing_changes(database: Database, stage: Stage, step: str) -> None:
    stage.script["s3"] = never
    with process(database, stage, *ALL):
        job = ask(database)
        until(lambda: state(database, job) == "blocked")
    with pytest.raises(Refused, match=f'it has not come past "{step}"') as refused:
        retry(database, job, step)

    assert refused.value.code == "nothing_to_retry"
    assert refused.value.hint == "it stands at s3 and has passed s1, s2"
    assert (state(database, job), status(database, job)["step"]) == ("blocked", "s3")


def test_what_can_be_undone_steps_back_only_by_undoing(database: Database, stage: Stage) -> None:
    stage.script["s2"] = never
    with process(database, stage, *ALL):
        job = ask(database, "toy.back")
        until(lambda: state(database, job) == "blocked")
    with pytest.raises(Refused, match="what was done after s1 can only be undone from where it stands") as refused:
        retry(database, job, "s1")
    retry(database, job, "s2")

    assert refused.value.hint.startswith("cancel it")
    assert state(database, job) == "waiting"


def test_an_undo_that_was_skipped_is_done_after_all(database: Database, stage: Stage) -> None:
    stage.script.update({"s3": lacking, "undo s3": never, "undo s1": never})
    with process(database, stage, *ALL):
        job = ask(database, "toy.back")
        until(lambda: state(database, job) == "blocked")
        skip(database, job, "s3")
        until(lambda: blocked_at(database, job, "s1"))
        stage.script = {}
        stage.calls.clear()
        retry(database, job, "s3")
        until(lambda: state(database, job) == "failed")

    assert stage.calls == ["undo s3", "undo s2", "undo s1"]
    assert column(database, "SELECT step FROM worker.debts WHERE settled_at IS NULL") == []


def test_a_failed_job_begins_at_its_first_step_and_owes_nothing_that_it_does_again(database: Database, stage: Stage) -> None:
    stage.script.update({"s2": never, "s3": lacking, "undo s1": never})
    with process(database, stage, *ALL):
        job = ask(database, "toy.back")
        until(lambda: state(database, job) == "blocked")
        skip(database, job, "s2")
        until(lambda: status(database, job)["direction"] == "back" and state(database, job) == "blocked")
        skip(database, job, "s1")
        until(lambda: state(database, job) == "failed")
    with pytest.raises(Refused, match="it begins at its first step"):
        retry(database, job, "s2")
    retry(database, job, None)

    assert state(database, job) == "queued"
    assert column(database, "SELECT direction || ' ' || step FROM worker.debts WHERE settled_at IS NULL") == ["back s1"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_step_whose_children_all_rest_spreads_anew_and_another_waits_for_those_it_has(
    database: Database, stage: Stage, *, ended: bool
) -> None:
    wanted = {"id": str(uuid4())}

    def spread(passage: Passage) -> Any:
        return Done() if passage.children else Spread([Child("toy.child", wanted)], most=1)

    def first(passage: Passage) -> Any:
        return Done() if ended or passage.kind != "toy.child" else never(passage)

    stage.script.update({"s1": first, "s2": spread, "s3": never})
    with process(database, stage, *ALL):
        job = ask(database)
        if not ended:
            until(lambda: "blocked" in column(database, "SELECT state FROM worker.jobs WHERE kind = 'toy.child'"))
            skip(database, job, "s2")
        until(lambda: blocked_at(database, job, "s3"))
        retry(database, job, "s2")
        if ended:
            until(lambda: len(column(database, "SELECT id FROM worker.jobs WHERE kind = 'toy.child'")) > 1)
            until(lambda: state(database, job) == "blocked")
        else:
            until(lambda: status(database, job)["waiting_for"] == "1 of 1 job")

    assert len(column(database, "SELECT id FROM worker.jobs WHERE kind = 'toy.child'")) == (2 if ended else 1)
    assert len(column(database, "SELECT number FROM worker.children")) == 1
    assert column(database, "SELECT which FROM worker.violations") == []


def test_a_job_that_was_skipped_into_a_dead_end_says_the_way_out(database: Database, stage: Stage, shell: Shell) -> None:
    job = stuck(database, stage)
    command = f"molecule-worker jobs retry {job} --from s2"
    with database.engine.connect() as connection:
        found = standing(connection, job)
    assert found is not None

    tried = replace(found, state="waiting", attempt=1, fault={"message": "it is still there"})
    for hint in (reasons(found)[0].hint, reasons(tried)[0].hint):
        assert hint.endswith(f"; or {command} does what was skipped, too")
    assert f"or:    {command} --wait, which does what was skipped, too" in shell("jobs", "show", job).err


def test_a_dry_run_says_which_steps_run_again_and_changes_nothing(database: Database, stage: Stage, shell: Shell) -> None:
    stage.script["s3"] = never
    with process(database, stage, *ALL):
        job = ask(database)
        until(lambda: state(database, job) == "blocked")
    dry = shell("jobs", "retry", job, "--from", "s2", "--dry-run")
    before = state(database, job)
    wet = shell("jobs", "retry", job, "--from", "s2")

    assert (dry.code, dry.err, before) == (0, "would run again: s2, s3\n", "blocked")
    assert wet.err == f"done once more: s2, s3\nruns again: molecule-worker jobs watch {job}\n"
    assert (state(database, job), status(database, job)["step"]) == ("waiting", "s2")


@pytest.mark.parametrize("more", [["--failed"], [str(uuid4()), str(uuid4())], []])
def test_a_step_is_named_for_one_job(database: Database, stage: Stage, shell: Shell, more: list[str]) -> None:
    ran = shell("jobs", "retry", "--from", "s2", *more)

    assert (ran.code, ran.error) == (2, "read command line: --from takes one job")


def test_what_is_owed_is_seen_with_its_job_in_a_list_and_by_doctor(database: Database, stage: Stage, shell: Shell) -> None:
    job = stuck(database, stage)
    shown, shown_json = shell("jobs", "show", job), shell("jobs", "show", job, "--json")
    listed, listed_json, narrowed = shell("jobs", "debts"), shell("jobs", "debts", "--json"), shell("jobs", "debts", "--most", "1")
    doctor = {check["name"]: check for check in json.loads(shell("doctor", "--json").out)["checks"]}["debts"]
    retry(database, job, "s3")
    after = shell("jobs", "debts", "--json")
    retry(database, job, "s2")
    none = shell("jobs", "debts")

    assert [(debt["step"], debt["reason"], debt["requested_by"]) for debt in json.loads(shown_json.out)["debts"]] == [
        ("s2", "the host burnt down", "ada"),
        ("s3", "the host burnt down", "ada"),
    ]
    assert all(ran.out.count("the host burnt down") == 2 and "ada" in ran.out for ran in (shown, listed))
    assert [(debt["job"], debt["step"]) for debt in json.loads(listed_json.out)] == [(job, "s3"), (job, "s2")]
    assert narrowed.err == "the newest 1 of more: --most 4\n"
    assert (doctor["verdict"], doctor["said"], doctor["mend"]) == (
        "ok",
        "2 steps were skipped and are owed",
        "molecule-worker jobs debts",
    )
    assert [debt["step"] for debt in json.loads(after.out)] == ["s2"]
    assert (none.out, none.err) == ("", "nothing is owed\n")
