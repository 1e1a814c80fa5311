"""What the engineer who is woken sees of a real daemon: its numbers, its readiness, its spans, its log."""

import json
import re
from pathlib import Path

import httpx

from tests.collecting import collecting
from tests.conftest import Database
from tests.system import outages
from tests.system.house import House, house, settings_around, stop
from tests.waiting import until
from worker.store import requests

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # pragma: allowlist secret
SPOT = "forward.storage.before"
#: More than one process has slots, so that two have to share them.
JOBS = 20


def asked(house: House, path: str) -> httpx.Response:
    return httpx.get(f"http://{house.around['MOLECULE_WORKER_ADMIN_ADDR']}{path}", timeout=10, trust_env=False)


def number(house: House, name: str) -> float:
    """The sum over all series whose name and labels begin so."""
    found = re.findall(rf"^molecule_worker_{re.escape(name)}\S* (\S+)$", asked(house, "/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_counts_of_all_processes_add_up_and_outlive_a_kill_that_they_count(database: Database, tmp_path: Path) -> None:
    ended = 'job_seconds_count{kind="workspace.provision",state="succeeded"}'
    with house(database, tmp_path, settings_around(database, tmp_path)) as under:
        made = [under.create((SPOT, "hold")) for _ in range(JOBS)]
        until(lambda: all(under.granted(job, SPOT, "hold") for _, job in made), what="all held")
        sharing = under.holders()
        assert number(under, 'jobs{state="running"') == JOBS
        for _, job in made:
            under.release(job, SPOT)
        under.ends(*(job for _, job in made))
        until(lambda: number(under, ended) == JOBS, what="all counted")
        assert number(under, 'step_seconds_count{kind="workspace.provision",step="start"') == JOBS
        assert (number(under, "takeovers_total"), number(under, "crashes_total")) == (0, 0)

        _, job = under.create((SPOT, "hold"))
        until(lambda: under.granted(job, SPOT, "hold"), what="held")
        stop(under.holder(job))
        assert under.ends(job) == {job: "succeeded"}
        until(lambda: number(under, "crashes_total") == 1, what="the crash counted")
        until(lambda: number(under, ended) == JOBS + 1, what="the job counted")

        assert len(sharing) == 2
        assert number(under, 'takeovers_total{by="session"') == 1
        assert number(under, 'takeovers_total{by="lease"') == 0
        assert number(under, "processes_alive") >= 1
        assert 0 < number(under, 'heartbeat_margin_seconds{process="jobs-1"') <= under.settings.lease_s
        until(lambda: "invariant_violations 0.0" in asked(under, "/metrics").text, what="invariants counted")
        under.tell(f"{JOBS} jobs over {len(sharing)} processes and one kill -9: {JOBS + 1} counted, one takeover by session")


def test_a_host_is_not_ready_while_postgres_is_away_and_ready_again_by_itself(tmp_path: Path) -> None:
    with outages.postgres() as own, house(own.database, tmp_path, settings_around(own.database, tmp_path)) as under:
        until(lambda: asked(under, "/readyz").status_code == 200, what="ready")
        with own.stopped():
            away = until(lambda: [answer for answer in [asked(under, "/readyz")] if answer.status_code == 503], what="not ready")[0]
            lives = asked(under, "/healthz")
            scrape = asked(under, "/metrics").text
        until(lambda: asked(under, "/readyz").status_code == 200, within=60, what="ready again")
        assert away.json() == {"ready": False, "checks": {"database": "the database does not answer"}}
        assert lives.status_code == 200
        assert "molecule_worker_database_up 0.0" in scrape
        assert "molecule_worker_claim_seconds_count" in scrape


def test_a_daemons_spans_and_its_log_lines_carry_the_trace_of_the_enqueuer(database: Database, tmp_path: Path) -> None:
    with collecting() as collector:
        around = settings_around(database, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}")
        with house(database, tmp_path, around) as under:
            workspace, job = under.create()
            under.ends(job)
            with database.engine.begin() as connection:
                args = {"workspace_id": workspace}
                delete = requests.enqueue(connection, "workspace.delete", args, requested_by="test", traceparent=THEIRS)[0]
            under.ends(delete)
            trace = THEIRS.split("-")[1]
            steps = {"tombstone", "compute", "absence", "volumes", "proof"}
            until(lambda: {span["name"] for span in collector.spans if span["trace"] == trace} == steps, what="the spans")
            said = [json.loads(line) for line in under.said() if line.startswith("{")]

    assert {span["job.id"] for span in collector.spans if span["trace"] == trace} == {delete}
    assert {span["trace"] for span in collector.spans if span["job.id"] == job} == {job.replace("-", "")}
    assert {line.get("trace_id") for line in said if line.get("job") == delete} == {trace}
