"""`run`, `migrate`, and what they say where they cannot begin."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from tasks.catalogue import KINDS
from tests.commands import Shell, end
from tests.conftest import Database
from tests.toys import remember
from tests.waiting import until
from worker import embedded


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    return Shell(
        {
            "DATABASE_URL": database.url.reveal(),
            "MOLECULE_BACKEND": "memory",
            "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state"),
            "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
            "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
        }
    )


@pytest.fixture
def empty(postgres: str) -> Iterator[str]:
    """A database that nobody has migrated."""
    admin = create_engine(postgres.format("postgres").replace("postgresql:", "postgresql+psycopg2:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE untouched"))
        yield postgres.format("untouched")
        connection.execute(text("DROP DATABASE untouched WITH (FORCE)"))
    admin.dispose()


@pytest.mark.parametrize("command", [["run"], ["migrate"], ["jobs", "list"], ["workspaces", "create", "--name", "a"]], ids=" ".join)
def test_no_postgres_is_three_and_what_to_do(shell: Shell, command: list[str]) -> None:
    given = [{"DATABASE_URL": ""}, {"DATABASE_URL": "postgresql://ada:hunter2@127.0.0.1:1/worker"}]
    unset, away = shell.each(*command, given=given)

    assert (unset.code, unset.error) == (3, "open database: DATABASE_URL is not set and no embedded stack runs")
    assert "molecule-worker up" in unset.hint
    assert (away.code, away.error) == (3, "open database: nothing listens at its host and port")
    assert away.hint == "start Postgres, or mend DATABASE_URL"
    assert "hunter2" not in away.err


def test_why_postgres_does_not_answer_is_said(shell: Shell, postgres: str) -> None:
    assert (
        shell("jobs", "list", DATABASE_URL=postgres.format("nowhere")).error
        == "open database: the server has no such database or user"
    )
    assert shell("jobs", "list", DATABASE_URL="postgresql://h.invalid/x").error == "open database: its host name is not known"


def test_a_socket_on_which_nothing_listens_is_said_to_be_one_whether_it_is_there_or_not(shell: Shell, tmp_path: Path) -> None:
    url = f"postgresql:///x?host={tmp_path}"
    absent = shell("jobs", "list", DATABASE_URL=url)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / ".s.PGSQL.5432"))
    refused = shell("jobs", "list", DATABASE_URL=url)

    assert absent == refused
    assert (absent.code, absent.error) == (3, "open database: nothing listens at its socket")
    assert absent.hint == "start Postgres, or mend DATABASE_URL; `up` starts its own again by itself"


@pytest.mark.parametrize("url", ["mysql://ada:hunter2@h/x", "not a url hunter2", "postgresql://ada:hunter2@h:port/x"])
def test_an_address_that_is_none_is_refused_and_not_shown(shell: Shell, url: str) -> None:
    ran = shell("run", DATABASE_URL=url)

    assert ran.code == 2
    assert ran.error.startswith("read DATABASE_URL: ")
    assert "hunter2" not in ran.err


def test_an_unmigrated_database_is_refused_until_it_is_migrated(shell: Shell, empty: str) -> None:
    for command in (["run"], ["jobs", "list"]):
        refused = shell(*command, DATABASE_URL=empty)
        assert (refused.code, refused.hint) == (2, "molecule-worker migrate")

    for _ in range(2):
        done = shell("migrate", DATABASE_URL=empty)
        assert (done.code, done.out, done.err) == (0, "", "schema and catalogue are at head\n")

    assert shell("jobs", "list", DATABASE_URL=empty).err == "no jobs\n"


def test_a_database_that_does_not_know_our_kinds_is_refused_before_anything_starts(shell: Shell, database: Database) -> None:
    ran = shell("run")

    assert (ran.code, ran.hint) == (2, "molecule-worker migrate")
    assert "does not know workspace.provision" in ran.error
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM worker.processes")).scalar_one() == 0


def test_production_without_a_key_does_not_start(shell: Shell, database: Database, tmp_path: Path) -> None:
    remember(database, *KINDS)

    ran = shell("run", MOLECULE_ENV="production")

    assert ran.code == 2
    assert "SECRETS_ENCRYPTION_KEY is not set" in ran.error
    assert not (tmp_path / "state").exists()


def test_without_docker_and_without_redis_it_runs_and_its_jobs_wait_for_their_queue(
    shell: Shell, database: Database, tmp_path: Path
) -> None:
    remember(database, *KINDS)
    docker = {"MOLECULE_BACKEND": "docker", "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    daemon = shell.start("run", "--concurrency", "2", **docker)
    job = json.loads(shell("workspaces", "create", "--name", "a", "--json", **docker).out)["job_id"]
    until(lambda: alive(database) == 1, within=20, what="a process is alive")

    assert "waits for     a worker that serves the queue docker.local" in shell("jobs", "show", job).out
    # The whole group, as systemd does: the worker hears it from here and from its parent.
    code, out, log = end(daemon)

    assert (code, out) == (0, "")
    events = {entry["event"]: entry for entry in map(json.loads, log.splitlines())}
    assert events["doorbells off"]["effect"] == "jobs start up to a second later"
    assert events["backend away"]["effect"] == "its jobs wait for it"
    assert events["ready"]["slots"] == 2
    assert alive(database) == 0


def test_the_clock_ticks_without_a_broker_and_a_second_one_disturbs_nobody(shell: Shell, database: Database) -> None:
    remember(database, *KINDS)
    clocks = [shell.start("run", "--only", "clock", SECRETS_ENCRYPTION_KEY="ab" * 32) for _ in range(2)]
    # Both, because one alone does what comes round, and a daemon that is still starting knows no signal yet.
    until(lambda: len(ticking(database)) == len(clocks), within=30, what="both clocks tick")
    until(lambda: finished_slots(database) >= {"mend", "durations", "retention"}, within=30, what="each schedule came round")
    ended = [end(clock) for clock in clocks]

    assert [(code, out) for code, out, _ in ended] == [(0, ""), (0, "")]
    assert not [
        entry for _, _, log in ended for entry in map(json.loads, log.splitlines()) if entry["level"] in {"warning", "error"}
    ]


def ticking(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        query = (
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE '%clock@%' AND datname = current_database()"
        )
        return set(connection.execute(text(query)).scalars())


def finished_slots(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(connection.execute(text("SELECT schedule FROM worker.slots WHERE finished_at IS NOT NULL")).scalars())


def test_whatever_a_daemon_runs_it_faces_operators_and_a_second_one_stands_by_for_the_address(
    shell: Shell, database: Database
) -> None:
    remember(database, *KINDS)
    first = shell.start("run", "--only", "jobs")
    until(lambda: checks(shell) == {"database": "ok", "schema": "ok", "workers": "ok"}, within=30, what="ready")
    receiver = f"http://{shell.variables['MOLECULE_WORKER_RECEIVER_ADDR']}"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{receiver}/healthz", trust_env=False)

    second = shell.start("run", "--only", "receiver")
    until(lambda: answers(f"{receiver}/healthz"), within=30, what="the second daemon's receiver")
    _, _, log = end(first)
    until(lambda: checks(shell) == {"database": "ok", "schema": "ok"}, within=30, what="the second daemon's admin address")
    _, _, other = end(second)

    assert "admin listens" in log
    assert "receiver listens" not in log
    assert "admin stands by" in other


def checks(shell: Shell) -> dict[str, str]:
    try:
        answer = httpx.get(f"http://{shell.variables['MOLECULE_WORKER_ADMIN_ADDR']}/readyz", timeout=10, trust_env=False)
    except httpx.TransportError:
        return {}
    return dict(answer.json()["checks"])


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


def alive(database: Database) -> int:
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp()"))
        return int(found.scalar_one())


def test_a_queue_that_does_not_exist_and_a_broker_that_is_none_are_refused_before_anything_starts(
    shell: Shell, database: Database
) -> None:
    remember(database, *KINDS)
    queue = shell("run", "--queues", "memory.elsewhere,jobs")
    broker = shell("run", CELERY_BROKER_URL="nonsense://ada:hunter2@h/0")

    assert (queue.code, broker.code) == (2, 2)
    assert queue.error == "read MOLECULE_WORKER_QUEUES: no queue is named memory.elsewhere"
    assert queue.hint == "this host has jobs, memory.local"
    assert broker.error == "read CELERY_BROKER_URL: it is not a broker's URL"
    assert "hunter2" not in broker.err
