"""Celery's own tools on a running daemon: `celery inspect` over both brokers, and what Flower answers to a browser."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tasks.catalogue import KINDS
from tests.conftest import Database, fresh_database
from tests.rabbit import Rabbit
from tests.system import outages
from tests.system.house import PATIENCE, ROOT, House, house, settings_around
from tests.waiting import until
from worker import embedded

HELD = "forward.storage.before"
QUEUES = {"jobs", "memory.local"}


@pytest.fixture(scope="module")
def over_redis(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("inspected")
    with (
        fresh_database(postgres) as database,
        outages.redis(folder / "redis") as redis,
        daemon(database, folder, redis.url.reveal()) as running,
    ):
        yield running


@contextmanager
def daemon(database: Database, folder: Path, broker: str) -> Iterator[House]:
    """Two processes that never look by themselves, so that each job is a task that Celery knows of."""
    around = settings_around(database, folder, CELERY_BROKER_URL=broker, MOLECULE_WORKER_POLL_S="600")
    with house(database, folder, around) as built:
        # The one look that each takes when it starts writes its queues: a job that it finds is claimed, and is no task of Celery's.
        looked = "SELECT bool_and(queues <> '{}') FROM worker.processes WHERE lease_until > clock_timestamp()"
        until(lambda: built.value(looked), within=PATIENCE, what="both have looked")
        yield built


def names(under: House) -> set[str]:
    """What the workers call themselves in our own table."""
    return {name for (name,) in under.rows("SELECT name FROM worker.processes WHERE lease_until > clock_timestamp()")}


@contextmanager
def held(under: House) -> Iterator[str]:
    """A job that stands in a step."""
    _, job = under.create((HELD, "hold"))
    until(lambda: under.granted(job, HELD, "hold"), within=PATIENCE, what="held")
    yield job
    under.release(job, HELD)
    assert under.ends(job) == {job: "succeeded"}


def inspect(under: House, question: str) -> dict[str, Any]:
    """Every worker's answer, by its name; the command as an operator types it, in the daemon's environment."""
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "inspect", question, "--json", "--timeout", "3"]
    done = subprocess.run(argv, env=dict(under.around), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    assert set(answers) == names(under)
    return answers


def active(under: House) -> list[tuple[str, dict[str, str]]]:
    """Kind and arguments of every task that runs."""
    return [(task["name"], task["kwargs"]) for tasks in inspect(under, "active").values() for task in tasks]


def test_inspect_shows_the_kinds_the_queues_and_what_runs(over_redis: House) -> None:
    with held(over_redis) as job:
        assert active(over_redis) == [("workspace.provision", {"job": job})]
    for tasks in inspect(over_redis, "registered").values():
        assert {kind.name for kind in KINDS} <= set(tasks)
    for queues in inspect(over_redis, "active_queues").values():
        assert {(queue["name"], queue["exchange"]["name"], queue["durable"]) for queue in queues} == {
            (name, "molecule-worker", True) for name in QUEUES
        }


def test_workers_answer_a_ping_also_after_redis_was_wiped(over_redis: House) -> None:
    with Redis.from_url(over_redis.around["CELERY_BROKER_URL"]) as client:
        client.flushall()

    assert inspect(over_redis, "ping") == {name: {"ok": "pong"} for name in names(over_redis)}


def test_inspect_shows_what_runs_over_rabbitmq(database: Database, tmp_path: Path, rabbit: Rabbit) -> None:
    with daemon(database, tmp_path, rabbit.url.reveal()) as running, held(running) as job:
        assert active(running) == [("workspace.provision", {"job": job})]


@contextmanager
def flower(under: House) -> Iterator[httpx.Client]:
    """Flower beside the daemon; its API is open, because only this test can reach its port."""
    port = embedded.free_port()
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", f"--port={port}"]
    around = {**under.around, "FLOWER_UNAUTHENTICATED_API": "true"}
    with (under.folder / "flower.log").open("ab") as log:
        program = subprocess.Popen(argv, env=around, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20.0, trust_env=False) as client:
            until(lambda: _is_up(client), within=PATIENCE, what=f"Flower answers; see {under.folder / 'flower.log'}")
            yield client
    finally:
        program.kill()
        program.wait()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/healthcheck").is_success
    except httpx.TransportError:
        return False


def test_flower_shows_the_workers_with_their_queues_and_the_jobs_as_tasks(over_redis: House) -> None:
    with flower(over_redis) as client:

        def workers() -> dict[str, Any]:
            found: dict[str, Any] = client.get("/api/workers", params={"refresh": "true"}).raise_for_status().json()
            return found if set(found) >= names(over_redis) else {}

        seen = until(workers, within=PATIENCE, what="Flower found both workers")
        for worker in seen.values():
            assert {queue["name"] for queue in worker["active_queues"]} == QUEUES
            assert {kind.name for kind in KINDS} <= set(worker["registered"])
        jobs: list[str] = []

        def told() -> bool:
            # Flower asks the workers for their events every few seconds: what ran before, nobody told it.
            jobs.append(over_redis.create()[1])
            assert over_redis.ends(jobs[-1]) == {jobs[-1]: "succeeded"}
            tasks = client.get("/api/tasks").raise_for_status().json().values()
            return any(task["name"] == "workspace.provision" and job in task["kwargs"] for task in tasks for job in jobs)

        until(told, within=PATIENCE, what="Flower heard of a job's task")

        def alive() -> bool:
            # Known by their signs of life, which it hears every few seconds.
            heard = client.get("/api/workers", params={"status": "true"}).raise_for_status().json()
            return {name: heard.get(name) for name in seen} == dict.fromkeys(seen, True)

        until(alive, within=PATIENCE, what="Flower counts both as alive")
