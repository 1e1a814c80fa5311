"""`drain` and `undrain`: a node is where worker processes run, and no host of workspaces is taken for one."""

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.commands import Shell, end
from tests.conftest import Database
from tests.rows import add_workspace
from tests.toys import Stage, ask, process, remember, state, toy_kind
from tests.waiting import until
from worker.runtime import host_name
from worker.store.jobs import Claims, Register

KIND = toy_kind()


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, KIND)
    return Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")})


@contextmanager
def living(database: Database, *queues: str) -> Iterator[tuple[Register, Claims]]:
    """A worker process on node `far` that serves these queues."""
    register = Register(database.url, name="jobs@far:1", pid=1, lease_s=60, host="far", knows={"toy.make": ("s1", "s2", "s3")})
    with closing(register), closing(Claims(database.url, process_id=register.process_id, name="t")) as claims:
        claims.claim(queues or ["toy"], 1)
        yield register, claims


def run(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))


def drained(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        return list(connection.execute(text("SELECT what FROM worker.pauses")).scalars())


def test_a_name_of_which_no_process_is_known_is_refused_with_the_nodes_there_are(shell: Shell, database: Database) -> None:
    with living(database):
        ran = shell("drain", "nosuchhost", "--wait")

    assert (ran.code, ran.error) == (2, 'drain: no process is known on node "nosuchhost"')
    assert ran.hint == "worker processes run on: far"
    assert drained(database) == []


@pytest.mark.parametrize("name", ["reviewhost", "docker.reviewhost"])
@pytest.mark.parametrize("served", [True, False])
def test_a_host_of_workspaces_is_no_node_and_the_nodes_that_serve_it_are_named(
    shell: Shell, database: Database, name: str, served: bool
) -> None:
    workspace = add_workspace(database)
    run(database, f"UPDATE worker.placements SET backend = 'docker', host = 'reviewhost' WHERE workspace_id = '{workspace}'")
    with living(database, "docker.reviewhost" if served else "docker.other"):
        ran = shell("drain", name, "--wait")

    assert (ran.code, ran.error) == (2, f'drain: "{name}" is a host of workspaces, and a node is where worker processes run')
    assert ran.hint == f"its queue is served from: {'far' if served else 'nowhere'}"
    assert drained(database) == []


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_no_name_at_all_has_a_hint_of_its_own(shell: Shell, verb: str) -> None:
    ran = shell(verb, "")

    assert (ran.code, ran.error) == (2, f"{verb}: a node has a name")
    assert ran.hint.startswith(f"molecule-worker {verb} NODE")


def test_what_is_drained_may_be_drained_again_though_no_process_is_left_there(shell: Shell, database: Database) -> None:
    with living(database):
        assert shell("drain", "far").code == 0
    run(database, "DELETE FROM worker.processes")

    again = shell("drain", "far", "--wait")

    assert again.code == 0
    assert again.err.startswith("drained already: node far by cli:")


def test_a_drain_waits_until_nothing_runs_there(shell: Shell, database: Database) -> None:
    job = ask(database)
    with living(database) as (register, _):
        draining = shell.start("drain", "far", "--reason", "new disk", "--wait")
        until(lambda: register.beat().draining)
        assert draining.poll() is None
    run(database, f"UPDATE worker.jobs SET state = 'waiting', process_id = NULL WHERE id = '{job}'")
    _, said = draining.communicate(timeout=30)

    assert draining.returncode == 0
    assert "drained: node far by cli:" in said
    assert "because new disk" in said
    assert said.endswith("nothing runs there\n")
    assert shell("jobs", "list").err.startswith("drained: node far")
    assert shell("undrain", "far").err == "node far works again\n"
    assert shell("undrain", "far").err == "node far was not drained\n"


def test_an_interrupted_drain_says_that_the_node_stays_drained(shell: Shell, database: Database) -> None:
    ask(database)
    with living(database) as (register, _):
        draining = shell.start("drain", "far", "--wait")
        until(lambda: register.beat().draining)
        assert draining.stderr is not None
        assert "drained" in draining.stderr.readline()
        assert "undrain" in draining.stderr.readline()
        code, _, said = end(draining, signal.SIGINT)
    run(database, "UPDATE worker.jobs SET state = 'waiting', process_id = NULL")

    assert code == 130
    assert said == "interrupted: the node stays drained: molecule-worker undrain far\n"


def test_a_drained_node_gives_its_work_back_and_takes_it_up_again(shell: Shell, database: Database, stage: Stage) -> None:
    with process(database, stage, KIND):
        assert shell("drain", host_name(), "--wait").code == 0
        job = ask(database)
        explained = json.loads(shell("jobs", "explain", job, "--json").out)
        assert [reason["code"] for reason in explained["reasons"]] == ["drained"]
        shell("undrain", host_name())
        until(lambda: state(database, job) == "succeeded")


@pytest.fixture
def stage() -> Stage:
    return Stage()
