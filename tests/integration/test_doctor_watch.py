from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config import settings as environment
from tests.listening import platform
from tests.serving import served
from worker import embedded, meter_folder
from worker.admin import Answers, admin
from worker.cli.checks_watch import findings
from worker.cli.finding import Finding, Verdict


def found(folder: Path, **more: str) -> dict[str, Finding]:
    own = environment.load({"MOLECULE_WORKER_STATE_DIR": str(folder), **more})
    return {finding.name: finding for finding in findings(own)}


@contextmanager
def answering(checks: dict[str, str]) -> Iterator[dict[str, str]]:
    with served(admin(Answers(lambda: checks, lambda: b""), lambda _: False)) as client:
        yield {"MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{client.base_url.port}"}


def test_the_admin_address_is_known_by_its_answer(tmp_path: Path) -> None:
    with answering({"database": "ok"}) as address:
        assert found(tmp_path, **address)["admin"].verdict is Verdict.OK
    with answering({"database": "ok", "workers": "none"}) as address:
        unready = found(tmp_path, **address)["admin"]
        assert (unready.verdict, "workers: none" in unready.said) == (Verdict.WARNING, True)
    with platform() as other:
        taken = found(tmp_path, MOLECULE_WORKER_ADMIN_ADDR=f"127.0.0.1:{other.port}")["admin"]
        assert (taken.verdict, taken.said.partition(" at ")[0]) == (Verdict.WRONG, "another program answers")


def test_the_folder_of_the_metrics_is_named_with_who_counts_there(tmp_path: Path) -> None:
    assert found(tmp_path)["metrics"].said == f"{tmp_path}/metrics is free"
    with meter_folder.reserved(tmp_path):
        assert found(tmp_path)["metrics"].said.endswith("by 1 daemon")


@pytest.mark.parametrize("broken", ["collector", "http://", "ftp://h", "http://h:port"])
def test_an_endpoint_that_is_none_is_wrong(tmp_path: Path, broken: str) -> None:
    assert found(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=broken)["tracing"].verdict is Verdict.WRONG


def test_a_collector_is_reached_or_not_and_its_key_is_not_shown(tmp_path: Path) -> None:
    with platform() as collector:
        there = found(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://me:hunter2@127.0.0.1:{collector.port}/hunter2")["tracing"]
    away = found(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://me:hunter2@127.0.0.1:{embedded.free_port()}")["tracing"]

    assert there.said == f"spans go to 127.0.0.1:{collector.port}"
    assert (away.verdict, "hunter2" in away.said) == (Verdict.WARNING, False)
