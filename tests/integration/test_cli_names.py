"""Names that people type: refused, or taken and said; and how much of an id is enough."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.commands import Shell
from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, toy_kind(), toy_kind("toy.remove"))
    return Shell(
        {"DATABASE_URL": database.url.reveal(), "MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")}
    )


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["jobs", "list", "--kind", "toy.makes"], 'list jobs: unknown kind "toy.makes"', "did you mean toy.make?"),
        (["jobs", "list", "--kind", "x"], 'list jobs: unknown kind "x"', "known kinds: toy.make, toy.remove"),
        (["jobs", "list", "--kind", "x", "--json"], 'list jobs: unknown kind "x"', "known kinds: toy.make, toy.remove"),
        (["jobs", "retry", "--failed", "--kind", "toy.remov"], 'retry jobs: unknown kind "toy.remov"', "did you mean toy.remove?"),
        (["jobs", "pause", "kind", "x"], 'pause: unknown kind "x"', "known kinds: toy.make, toy.remove"),
        (["jobs", "resume", "kind", "x"], 'resume: unknown kind "x"', "known kinds: toy.make, toy.remove"),
        (["sweep", "retentoin"], 'sweep: unknown schedule "retentoin"', "did you mean retention?"),
        (["sweep", "x"], 'sweep: unknown schedule "x"', "known schedules: durations, mend, retention"),
    ],
)
def test_an_unknown_name_of_a_closed_set_is_refused_with_the_nearest_or_all(
    shell: Shell, arguments: list[str], error: str, hint: str
) -> None:
    ran = shell(*arguments)

    assert (ran.code, ran.out, ran.error, ran.hint) == (2, "", error, hint)


def test_a_kind_of_which_only_old_jobs_are_left_is_known(shell: Shell, database: Database) -> None:
    job = ask(database, "toy.remove")
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.kinds WHERE kind = 'toy.remove'"))

    assert [row["id"] for row in json.loads(shell("jobs", "list", "--kind", "toy.remove", "--json").out)] == [job]


def test_a_subject_that_nobody_knows_is_said_and_one_without_such_jobs_is_not(shell: Shell, database: Database) -> None:
    subject = shell("jobs", "show", ask(database)).out.split("subject")[1].split()[0]
    said = "no job about org:x is kept; a subject is written workspace:<id> or org:<id>\n"
    strange, as_json = shell("jobs", "list", "--subject", "org:x"), shell("jobs", "list", "--subject", "org:x", "--json")

    assert (strange.code, strange.out, strange.err) == (0, "", said)
    assert (as_json.code, as_json.out, as_json.err) == (0, "[]\n", said)
    assert shell("jobs", "list", "--subject", subject, "--state", "failed").err == "no jobs\n"


def test_an_organisation_that_nobody_knows_is_taken_and_said(shell: Shell) -> None:
    said = "nothing belongs to the organisation acme yet\n"
    resumed, paused = shell("jobs", "resume", "org", "acme"), shell("jobs", "pause", "org", "acme")
    shell("jobs", "resume", "org", "acme")
    remembered = shell("workspaces", "create", "--name", "a", "--org", "")

    assert (resumed.code, resumed.err) == (0, said + "org acme was not paused\n")
    assert paused.code == 0
    assert paused.err.startswith(said)
    assert "organisation" not in remembered.err


def test_the_digits_that_a_narrow_table_shows_are_enough(shell: Shell, database: Database) -> None:
    job = ask(database)

    assert json.loads(shell("jobs", "show", job[:8].upper(), "--json").out)["id"] == job
    assert shell("jobs", "explain", job[:13]).out.startswith(f"toy.make {job} is queued")
    assert shell("jobs", "cancel", job[:8], "--reason", "enough").code == 0
    assert state(database, job) == "cancelled"


def test_digits_that_fit_no_job_or_several_are_refused(shell: Shell, database: Database) -> None:
    first, other = ask(database), ask(database)
    with database.engine.begin() as connection:
        twin = f"{first[:9]}{'1' if first[9] != '1' else '2'}{first[10:]}"
        connection.execute(text("UPDATE worker.jobs SET id = :twin WHERE id = :other"), {"twin": twin, "other": other})

    several = shell("jobs", "retry", first[:8])
    none = shell("jobs", "show", "00000000")
    short = shell("jobs", "show", first[:7])

    assert (several.code, several.error) == (2, "find job: several ids begin so")
    assert (none.code, none.error) == (2, "find job: there is no such job")
    assert (short.code, short.error) == (2, "read job id: it is not a UUID")
