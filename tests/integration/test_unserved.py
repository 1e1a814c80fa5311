"""Jobs that no living process would ever take: where an operator looks, that is said, with a command that mends it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tasks.catalogue import KINDS
from tests.commands import Ran, Shell, end
from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind
from tests.waiting import until
from worker import embedded
from worker.store import gauges
from worker.store.jobs import Claims, Register


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, *KINDS, toy_kind())
    return Shell(
        {
            "DATABASE_URL": database.url.reveal(),
            "MOLECULE_BACKEND": "memory",
            "MOLECULE_WORKER_DOCKER_HOST_NAME": "otherhost",
            "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state"),
            "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
            "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
        }
    )


@contextmanager
def serving(database: Database, *queues: str) -> Iterator[Claims]:
    register = Register(database.url, name="jobs@here:1", pid=1, lease_s=60, host="here", knows={"toy.make": ("s1", "s2", "s3")})
    claims = Claims(database.url, process_id=register.process_id, name="t")
    claims.claim(list(queues), 1, [])
    yield claims
    claims.close()
    register.close()


@contextmanager
def running(shell: Shell, **variables: str) -> Iterator[None]:
    worker = shell.start("run", **variables)
    try:
        yield
    finally:
        end(worker)


def run(database: Database, statement: str, **values: object) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement), values)


def column(database: Database, statement: str) -> list[str]:
    with database.engine.connect() as connection:
        return list(connection.execute(text(statement)).scalars())


def ledger(database: Database) -> list[str]:
    return column(database, "SELECT DISTINCT state FROM worker.ledger")


def on(database: Database, queue: str, ago_s: int) -> str:
    job = ask(database)
    run(
        database,
        "UPDATE worker.jobs SET queue = :queue, run_at = clock_timestamp() - make_interval(secs => :ago) WHERE id = :id",
        queue=queue,
        ago=ago_s,
        id=job,
    )
    return job


def queues(ran: Ran) -> list[dict[str, Any]]:
    return [check for check in json.loads(ran.out)["checks"] if check["name"] == "queue"]


def test_doctor_has_a_line_for_each_queue_that_nobody_serves_with_the_command_that_mends_it(
    shell: Shell, database: Database
) -> None:
    for ago_s in (90, 7200):
        on(database, "memory.reviewhost", ago_s)
    on(database, "tenants", 90)
    on(database, "toy", 90)
    later = on(database, "docker.tomorrow", 90)
    run(database, "UPDATE worker.jobs SET due = false, run_at = now() + interval '1 day' WHERE id = :id", id=later)
    with serving(database, "toy"):
        ran = shell("doctor", "--json")
    far, tenants = queues(ran)

    assert ran.code == 3
    assert far["said"] == "2 due jobs wait for a worker that serves memory.reviewhost, the oldest for 2 h 0 min; none lives"
    assert far["mend"] == (
        "on the host reviewhost: MOLECULE_BACKEND=memory MOLECULE_WORKER_DOCKER_HOST_NAME=reviewhost molecule-worker run"
    )
    assert (far["verdict"], far["unreachable"]) == ("wrong", True)
    assert tenants["said"].startswith("1 due job waits for a worker that serves tenants, the oldest for ")
    assert tenants["mend"] == "molecule-worker run --queues tenants"


def test_what_has_just_become_due_is_a_warning_because_its_worker_may_be_about_to_start(shell: Shell, database: Database) -> None:
    on(database, "memory.otherhost", 5)
    ran = shell("doctor", "--json")
    (found,) = queues(ran)

    assert ran.code == 0
    assert (found["verdict"], found["mend"]) == ("warning", "molecule-worker run")


def test_where_no_process_lives_a_job_whose_time_came_unseen_counts_as_well(database: Database) -> None:
    remember(database, toy_kind())
    job = on(database, "docker.far", 90)
    run(database, "UPDATE worker.jobs SET due = false WHERE id = :id", id=job)

    with database.engine.connect() as connection:
        (found,) = gauges.unserved(connection)

    assert (found.queue, found.jobs, found.more) == ("docker.far", 1, False)
    assert found.age >= 90


def test_a_list_says_which_worker_a_job_waits_for(shell: Shell, database: Database) -> None:
    on(database, "docker.reviewhost", 90)
    on(database, "toy", 90)
    with serving(database, "toy"):
        listed = shell("jobs", "list")

    assert listed.out.count("no worker serves") == 1
    assert "no worker serves docker.reviewhost" in listed.out


def test_a_host_that_is_gone_for_ever_is_replaced_by_an_empty_one_of_its_name(
    shell: Shell, database: Database, tmp_path: Path
) -> None:
    """By the very command that doctor tells: its engine has nothing, and the deletion ends with proof."""
    first = {"MOLECULE_WORKER_DOCKER_HOST_NAME": "reviewhost"}
    with running(shell, **first):
        made = shell("workspaces", "create", "--name", "Ada", "--wait", "--json", **first)
    assert made.code == 0, made.err
    assert ledger(database) == ["exists"]

    (workspace,) = column(database, "SELECT id::text FROM public.workspaces")
    assert shell("workspaces", "delete", workspace).code == 0
    (job,) = column(database, "SELECT id::text FROM worker.jobs WHERE kind = 'workspace.delete'")
    run(database, "UPDATE worker.jobs SET run_at = run_at - interval '2 min' WHERE id = :id", id=job)
    told = queues(shell("doctor", "--json"))[0]["mend"].partition(": ")[2].split()
    assert told[-2:] == ["molecule-worker", "run"]
    empty = {"MOLECULE_WORKER_STATE_DIR": str(tmp_path / "another")}
    with running(shell, **dict(word.split("=") for word in told[:-2]), **empty):
        until(lambda: state(database, job) == "succeeded", within=30, what="the deletion ends")

    assert ledger(database) == ["gone"]
    assert queues(shell("doctor", "--json")) == []
