import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text

from tests.agents import assert_dressed
from tests.conftest import Database
from tests.serving import served
from tests.toys import ask, remember, toy_kind
from tests.waiting import until
from worker.admin import Answers, admin
from worker.domain import Secret
from worker.errors import Unreachable
from worker.store import connect, gauges
from worker.store.jobs import Claims, Register
from worker.watch import Network, Readiness, Scrape

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # pragma: allowlist secret
NOBODY = Secret("postgresql://ada:hunter2@127.0.0.1:1/worker")
ALIVE = "INSERT INTO worker.processes (name, pid, queues, lease_until) VALUES ('x', 1, '{toy}', clock_timestamp() + :left * interval '1 s')"


@pytest.fixture
def nobody() -> Iterator[Engine]:
    engine = connect.open_engine(NOBODY, name="tests", size=1)
    yield engine
    engine.dispose()


def answers(engine: Engine, queue: str | None = "toy", folder: Path | None = None) -> Answers:
    return Answers(Readiness(engine, queue), Scrape(engine, folder))


def run(database: Database, statement: str, **values: object) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement), values)


def numbers(client: httpx.Client) -> dict[str, float]:
    answer = client.get("/metrics")
    assert_dressed(answer, 200)
    return {name: float(value) for name, value in re.findall(r"^molecule_worker_(\S+) (\S+)$", answer.text, re.MULTILINE)}


def test_a_host_is_ready_when_a_living_process_serves_its_queue(database: Database) -> None:
    with served(admin(answers(database.engine), lambda _: False)) as client:
        without = client.get("/readyz")
        run(database, ALIVE, left=-1)
        dead = client.get("/readyz")
        run(database, ALIVE, left=60)
        alive = client.get("/readyz")

    for answer in (without, dead):
        assert_dressed(answer, 503)
        assert answer.json()["checks"] == {"database": "ok", "schema": "ok", "workers": "no living process serves the queue toy"}
    assert_dressed(alive, 200)
    assert alive.json() == {"ready": True, "checks": {"database": "ok", "schema": "ok", "workers": "ok"}}


def test_a_daemon_that_runs_no_jobs_is_ready_without_workers(database: Database) -> None:
    with served(admin(answers(database.engine, None), lambda _: False)) as client:
        assert client.get("/readyz").json() == {"ready": True, "checks": {"database": "ok", "schema": "ok"}}


def test_an_older_schema_and_a_missing_one_are_not_ready(database: Database) -> None:
    with served(admin(answers(database.engine), lambda _: False)) as client:
        run(database, "UPDATE worker.alembic_version SET version_num = '0001'")
        older = client.get("/readyz")
        run(database, "DELETE FROM worker.alembic_version")
        none = client.get("/readyz")

    assert (older.status_code, none.status_code) == (503, 503)
    assert older.json()["checks"]["schema"].startswith("compare schema: it is at revision 0001")
    assert none.json()["checks"]["schema"].startswith("compare schema: it is at revision none")


def test_without_a_database_it_lives_is_not_ready_and_shows_no_address(nobody: Engine) -> None:
    with served(admin(answers(nobody), lambda _: False)) as client:
        lives, ready, scrape = client.get("/healthz"), client.get("/readyz"), client.get("/metrics")

    assert_dressed(lives, 200)
    assert_dressed(ready, 503)
    assert ready.json() == {"ready": False, "checks": {"database": "the database does not answer"}}
    assert "molecule_worker_database_up 0.0" in scrape.text
    assert "molecule_worker_jobs" not in scrape.text
    assert "hunter2" not in ready.text + scrape.text


def test_there_is_nothing_else_and_nothing_can_be_changed(database: Database) -> None:
    with served(admin(answers(database.engine), lambda _: False)) as client:
        for answer, status in ((client.get("/"), 404), (client.get("/readyz/"), 404), (client.post("/metrics"), 405)):
            assert_dressed(answer, status)


def test_whoever_calls_from_where_workspaces_are_is_refused(database: Database) -> None:
    app = admin(answers(database.engine), Network(lambda: ["172.18.0.0/16"]))

    def asked(caller: str) -> httpx.Response:
        async def ask_from() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, client=(caller, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
                return await client.get("/healthz")

        return asyncio.run(ask_from())

    assert_dressed(asked("172.18.3.4"), 403)
    assert_dressed(asked("10.0.0.9"), 200)
    assert_dressed(asked("127.0.0.1"), 200)


def test_while_nobody_knows_the_workspaces_network_every_caller_may_be_one() -> None:
    def away() -> list[str]:
        raise Unreachable("list networks: no Docker engine answers")

    assert Network(away)("10.0.0.9")
    assert not Network(list)("10.0.0.9")
    assert Network(list)("not an address")


def test_the_database_is_asked_for_ages_and_states(database: Database) -> None:
    remember(database, toy_kind())
    jobs = [ask(database) for _ in range(3)]
    ask(database, run_at=None, priority=1)
    run(database, "UPDATE worker.jobs SET run_at = clock_timestamp() - interval '90 s' WHERE id = :id", id=jobs[0])
    run(database, "UPDATE worker.jobs SET rung_at = clock_timestamp() WHERE id = :id", id=jobs[0])
    run(database, "UPDATE worker.jobs SET state = 'blocked', error = '{}' WHERE id = :id", id=jobs[1])
    run(database, "UPDATE worker.jobs SET due = false, run_at = clock_timestamp() + interval '1 h' WHERE id = :id", id=jobs[2])
    with served(admin(answers(database.engine), lambda _: False)) as client:
        found = numbers(client)
        until(lambda: "invariant_violations" in numbers(client), what="invariants counted")
        assert numbers(client)["invariant_violations"] == 0

    assert 90 <= found['ready_age_seconds{kind="toy.make"}'] < 120
    assert found["relay_lag_seconds"] < 60
    assert {name: found[f'jobs{{state="{name}"}}'] for name in ("queued", "blocked", "delayed", "running")} == {
        "queued": 2,
        "blocked": 1,
        "delayed": 1,
        "running": 0,
    }
    assert found['entities_blocked{kind="toy.make"}'] == 1
    assert found["processes_alive"] == 0
    assert found['unserved_jobs{queue="toy"}'] == 2
    assert "invariant_violations" not in found


def test_a_violated_invariant_is_counted(database: Database) -> None:
    remember(database, toy_kind())
    job = ask(database)
    run(database, "UPDATE worker.jobs SET state = 'failed', finished_at = now() WHERE id = :id", id=job)
    with served(admin(answers(database.engine), lambda _: False)) as client:
        until(lambda: numbers(client).get("invariant_violations") == 1, what="the violation")
    run(database, "DELETE FROM worker.jobs")


def test_no_question_reads_what_is_at_rest_and_none_looks_at_more_than_its_limit(database: Database) -> None:
    remember(database, toy_kind())
    many = (
        "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, finished_at, org) "
        "SELECT 'toy.make', 'toy:' || n, 'toy', '{}', '{s1}', false, :state, CASE :state WHEN 'succeeded' THEN now() END, '' "
        "FROM generate_series(CAST(:first AS int), CAST(:last AS int)) n"
    )
    run(database, many, state="succeeded", first=1, last=30_000)
    run(database, many, state="queued", first=30_001, last=30_001 + gauges.MOST + 500)
    asked: list[str] = []
    with database.engine.begin() as connection:
        connection.execute(text("ANALYZE worker.jobs"))
        standing = gauges.look(connection)
        for statement in (gauges._READY_NOW, gauges._OTHERS, gauges._BLOCKED, gauges._UNSERVED):
            plan = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}"), {"most": gauges.MOST}).scalar_one()
            asked += [
                f"{node['Node Type']}: {node['Actual Rows']}"
                for node in _nodes(plan[0]["Plan"])
                if node.get("Relation Name") != "processes"
            ]
    run(database, "DELETE FROM worker.jobs")

    assert standing.states["queued"] == standing.unserved["toy"] == gauges.MOST
    assert not [node for node in asked if node.startswith("Seq Scan")]
    assert max(float(node.rpartition(": ")[2]) for node in asked) <= 3 * gauges.MOST


def _nodes(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    inner = plan.get("Plans", [])
    assert isinstance(inner, list)
    for node in inner:
        yield from _nodes(node)


def test_a_claimed_job_knows_how_long_it_was_due_and_since_when_it_is_there(database: Database) -> None:
    remember(database, toy_kind())
    job = ask(database, traceparent=THEIRS)
    run(
        database,
        "UPDATE worker.jobs SET created_at = created_at - interval '1 h', run_at = run_at - interval '60 s' WHERE id = :id",
        id=job,
    )
    register = Register(database.url, name="tests", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="tests")
    (claimed,) = claims.claim(["toy"], 1)
    claims.close()
    register.close()

    assert 60 <= claimed.waited.total_seconds() < 120
    assert 3600 <= claimed.age.total_seconds() < 3700
    assert claimed.traceparent == THEIRS
    run(database, "DELETE FROM worker.subjects")
    run(database, "DELETE FROM worker.jobs")
