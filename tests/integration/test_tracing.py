"""Spans as a real collector receives them over OTLP/HTTP."""

import logging
import socket
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import text

from tests.collecting import Collector, collecting
from tests.commands import Shell
from tests.conftest import Database
from tests.toys import EAGER, SECOND, Stage, ask, process, remember, state, toy_kind
from tests.waiting import until
from worker import embedded
from worker.engine.machine import Direction, Done, NotYet, Passage
from worker.errors import Fatal, Retryable
from worker.store import requests
from worker.tracing import Tracing

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # pragma: allowlist secret
TRACE, SPAN = THEIRS.split("-")[1:3]
CANARY = "canary-7d31"
PASSAGE = Passage(
    id=str(UUID(int=7)),
    kind="toy.make",
    subject="toy:7",
    args={},
    direction=Direction.FORWARD,
    attempt=0,
    facts={},
    elapsed=SECOND,
    stopping=lambda: False,
    key="k",
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{found.port}")
        yield found


def driven(database: Database, stage: Stage, jobs: Sequence[str]) -> None:
    with process(database, stage, toy_kind(), traced=True):
        until(lambda: all(state(database, job) in {"succeeded", "failed"} for job in jobs), what="all at rest")


def test_each_attempt_of_a_step_is_a_span_in_the_trace_of_whoever_enqueued(database: Database, collector: Collector) -> None:
    remember(database, toy_kind())
    stage, tries = Stage(), [Retryable("s2: not now", code="backend_busy"), NotYet("a sign", EAGER.first), Done({"secret": CANARY})]

    def second(_: Passage) -> Any:
        result = tries.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    stage.script["s2"] = second
    job = ask(database, subject="6f1d8f1e-6d0e-4b38-8f0a-8d9d3f1f2c11", traceparent=THEIRS)
    driven(database, stage, [job])

    assert [span["name"] for span in collector.spans] == ["s1", "s2", "s2", "s2", "s3"]
    assert {(span["trace"], span["parent"]) for span in collector.spans} == {(TRACE, SPAN)}
    assert {span["job.id"] for span in collector.spans} == {job}
    assert {span["job.kind"] for span in collector.spans} == {"toy.make"}
    assert {span["job.subject"] for span in collector.spans} == {"toy:6f1d8f1e-6d0e-4b38-8f0a-8d9d3f1f2c11"}
    assert [(span["job.attempt"], span["job.outcome"], span["failed"]) for span in collector.named("s2")] == [
        (1, "failed", True),
        (2, "not_yet", False),
        (2, "done", False),
    ]
    assert collector.named("s2")[0]["error.type"] == "backend_busy"
    assert collector.services == {"molecule-worker"}
    assert CANARY.encode() not in collector.raw


def test_a_job_claimed_long_after_its_enqueue_has_a_trace_of_its_own_linked_to_the_enqueuers(
    database: Database, collector: Collector
) -> None:
    remember(database, toy_kind())
    later, traceless = ask(database, traceparent=THEIRS, run_at=None), ask(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET created_at = created_at - interval '2 h' WHERE id = :id"), {"id": later})
    driven(database, Stage(), [later, traceless])

    spans = {job: [span for span in collector.spans if span["job.id"] == job] for job in (later, traceless)}
    assert {span["trace"] for span in spans[later]} == {UUID(later).hex}
    assert {tuple(span["links"]) for span in spans[later]} == {((TRACE, SPAN),)}
    assert {(span["trace"], span["parent"], len(span["links"])) for span in spans[traceless]} == {(UUID(traceless).hex, "", 0)}


def test_an_undo_is_a_span_and_a_fatal_error_is_its_code_alone(database: Database, collector: Collector) -> None:
    remember(database, toy_kind())
    stage = Stage()

    def refuse(_: Passage) -> Any:
        raise Fatal(f"s2: {CANARY}", code="never")

    stage.script["s2"] = refuse
    driven(database, stage, [ask(database, traceparent=THEIRS)])

    assert [span["name"] for span in collector.spans] == ["s1", "s2", "undo s2", "undo s1"]
    assert (collector.spans[1]["error.type"], collector.spans[1]["job.outcome"]) == ("never", "failed")
    assert CANARY.encode() not in collector.raw


def test_an_enqueuer_that_is_not_sampled_is_not_sampled_here(database: Database, collector: Collector) -> None:
    remember(database, toy_kind())
    driven(database, Stage(), [ask(database, traceparent=f"{THEIRS[:-2]}00"), ask(database)])

    assert {span["trace"] == TRACE for span in collector.spans} == {False}


def test_what_a_step_enqueues_continues_its_span(database: Database, collector: Collector) -> None:
    remember(database, toy_kind())
    stage, children = Stage(), list[str]()

    def spread(_: Passage) -> Any:
        if not children:
            children.append(ask(database))
        return Done({})

    stage.script["s1"] = spread
    job = ask(database, traceparent=THEIRS)
    driven(database, stage, [job])
    with database.engine.connect() as connection:
        stored = connection.execute(text("SELECT traceparent FROM worker.jobs WHERE id = :id"), {"id": children[0]}).scalar_one()

    assert stored.startswith(f"00-{TRACE}-")
    assert stored != THEIRS


def test_a_programs_current_span_is_stored_with_what_it_enqueues(database: Database) -> None:
    remember(database, toy_kind())
    span = NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span), database.engine.begin() as connection:
        job = requests.enqueue(connection, "toy.make", {"id": str(UUID(int=7))})[0]
    with database.engine.connect() as connection:
        stored = connection.execute(text("SELECT traceparent FROM worker.jobs WHERE id = :id"), {"id": job}).scalar_one()

    assert stored == THEIRS


@pytest.mark.parametrize(("given", "stored"), [(THEIRS, THEIRS), ("not one", None), ("", None)])
def test_a_command_stores_the_trace_that_it_was_called_in(database: Database, given: str, stored: str | None) -> None:
    remember(database, toy_kind())
    shell = Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_BACKEND": "memory", "TRACEPARENT": given})
    ran = shell("enqueue", "toy.make", f"id={UUID(int=7)}")
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT traceparent FROM worker.jobs WHERE id = :id"), {"id": ran.out.strip()}).scalar_one()

    assert found == stored


def test_a_collector_that_is_away_holds_nothing_up_and_is_said_once_and_once_that_it_is_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = embedded.free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    remember(database, toy_kind())
    said = ""

    def says(event: str) -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return event in said

    with process(database, Stage(), toy_kind(), traced=True):
        for _ in range(3):
            jobs = [ask(database) for _ in range(4)]
            until(lambda jobs=jobs: all(state(database, job) == "succeeded" for job in jobs), what="all at rest")  # type: ignore[misc]
        until(lambda: says("tracing away"), what="said that it is away")
        with collecting(port) as back:
            back.status = 400
            for number in range(3):
                ask(database)
                until(lambda number=number: back.calls > number, what="refused again")  # type: ignore[misc]
            back.status = 200
            last = ask(database)
            until(lambda: any(span["job.id"] == last for span in back.spans), what="spans again")
            until(lambda: says("tracing back"), what="said that it is back")

    assert said.count("tracing away") == 1
    assert logging.getLogger("opentelemetry").level == logging.CRITICAL


def test_a_process_that_leaves_waits_only_briefly_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        tracing = Tracing(process="tests")
        kind = tracing.follow({"toy.make": toy_kind()})["toy.make"]
        kind.machine.steps[0].do(PASSAGE, Stage())
        leaving = Thread(target=tracing.close, daemon=True)
        leaving.start()
        leaving.join(15)  # the SDK itself would wait for half a minute

        assert not leaving.is_alive()


def test_spans_go_to_a_collector_whose_address_was_in_a_file() -> None:
    with collecting() as found:
        tracing = Tracing(process="tests", collector=f"http://127.0.0.1:{found.port}/")
        tracing.follow({"toy.make": toy_kind()})["toy.make"].machine.steps[0].do(PASSAGE, Stage())
        tracing.close()

    assert found.calls == 1


def test_logs_of_a_job_carry_its_trace(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    remember(database, toy_kind())
    with process(database, Stage(), toy_kind()):
        job = ask(database, traceparent=THEIRS)
        until(lambda: state(database, job) == "succeeded")
        ended = until(lambda: [line for line in capsys.readouterr().out.splitlines() if "ended" in line])

    assert TRACE in ended[0]
