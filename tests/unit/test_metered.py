from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from worker.engine.doorbell import Ring
from worker.engine.drive import Record
from worker.engine.lease import Beat
from worker.engine.machine import Direction, Facts
from worker.engine.walk import Claimed, Reply
from worker.metered import MeteredClaims, MeteredJournal, MeteredPublisher, MeteredRegister
from worker.metrics import Meters

JOB = Claimed(
    id="b1f6d7a0-2f1d-4a39-9d7b-4a3c5d6e7f80",
    kind="toy.make",
    subject="toy:1",
    args={},
    steps=["s1"],
    only_forward=False,
    direction=Direction.FORWARD,
    position=0,
    attempt=0,
    fence=1,
    stop=None,
    waited=timedelta(seconds=2),
    age=timedelta(seconds=30),
)
DONE = {"direction": "forward", "name": "s1", "status": "done", "next": "go", "took_ms": 1500.0, "error": None, "rest": None}


class Fixed:
    """A journal that answers alike."""

    def __init__(self, reply: Reply | None) -> None:
        self.reply = reply

    def apply(self, record: Record) -> Reply | None:
        return self.reply

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        rows(None)
        return self.reply


def value(meters: Meters, name: str, **labels: str) -> float:
    return meters.registry.get_sample_value(f"molecule_worker_{name}", labels) or 0.0


GO_ON = Reply(None, {})


def decided(reply: Reply | None = GO_ON, **changed: Any) -> Meters:
    meters = Meters()
    MeteredJournal(Fixed(reply), JOB, meters).apply({**DONE, **changed})
    return meters


def test_a_step_counts_once_with_its_duration() -> None:
    meters = decided()

    assert value(meters, "step_seconds_sum", kind="toy.make", step="s1") == 1.5
    assert value(meters, "step_seconds_count", kind="toy.make", step="s1") == 1


def test_an_undo_is_a_step_of_its_own_name_and_so_are_rows_that_commit_with_it() -> None:
    meters = Meters()
    MeteredJournal(Fixed(Reply(None, {})), JOB, meters).apply_with({**DONE, "direction": "back"}, lambda _: None)

    assert value(meters, "step_seconds_count", kind="toy.make", step="undo s1") == 1


def test_a_wait_is_no_step_and_with_an_error_it_is_a_retry_of_that_class() -> None:
    meters = decided(status="waiting", next="wait", error={"code": "backend_busy"})

    assert value(meters, "step_seconds_count", kind="toy.make", step="s1") == 0
    assert value(meters, "retries_total", **{"kind": "toy.make", "class": "backend_busy"}) == 1


@pytest.mark.parametrize(
    "how", [{"status": "waiting", "next": "wait"}, {"status": "waiting", "next": "block", "error": {"code": "x"}}]
)
def test_neither_patience_nor_a_block_is_a_retry(how: Mapping[str, Any]) -> None:
    assert not [s for m in decided(**how).registry.collect() for s in m.samples if s.name == "molecule_worker_retries_total"]


def test_a_job_that_rests_counts_from_its_enqueue() -> None:
    meters = decided(next="rest", rest="succeeded")

    assert value(meters, "job_seconds_count", kind="toy.make", state="succeeded") == 1
    assert 30 <= value(meters, "job_seconds_sum", kind="toy.make", state="succeeded") < 60


def test_a_job_that_was_superseded_in_its_last_step_counts_as_cancelled() -> None:
    meters = decided(Reply("superseded", {}), next="rest", rest="succeeded")

    assert value(meters, "job_seconds_count", kind="toy.make", state="cancelled") == 1


def test_a_late_write_counts_as_refused_and_as_nothing_else() -> None:
    meters = decided(None, next="rest", rest="succeeded")

    assert value(meters, "stale_writes_rejected_total") == 1
    assert value(meters, "step_seconds_count", kind="toy.make", step="s1") == 0
    assert value(meters, "job_seconds_count", kind="toy.make", state="succeeded") == 0


class OneJob:
    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        return [JOB]


def test_a_claim_counts_how_long_the_job_was_due() -> None:
    meters = Meters()
    MeteredClaims(OneJob(), meters).claim(["toy"], 1)

    assert value(meters, "claim_wait_seconds_sum", kind="toy.make") == 2
    assert value(meters, "claim_seconds_count") == 1


class Dead:
    process_id = 7
    resigned = False

    def beat(self) -> Beat:
        return Beat(True, frozenset())

    def reap(self) -> Mapping[str, int]:
        return {"session": 2, "lease": 1}

    def resign(self) -> None:
        self.resigned = True

    def close(self) -> None:
        pass


def test_takeovers_count_by_what_showed_the_death_and_a_beat_shows_its_margin() -> None:
    meters = Meters("jobs-1")
    register = MeteredRegister(Dead(), meters, length_s=3.0)

    assert (register.beat(), register.process_id) == (Beat(True, frozenset()), 7)
    assert dict(register.reap()) == {"session": 2, "lease": 1}
    assert value(meters, "takeovers_total", by="session") == 2
    assert value(meters, "takeovers_total", by="lease") == 1
    assert 2 < value(meters, "heartbeat_margin_seconds", process="jobs-1") <= 3


def test_who_resigns_is_heard() -> None:
    own = Dead()
    MeteredRegister(own, Meters(), length_s=3.0).resign()
    assert own.resigned


def test_the_kinds_of_a_takeover_are_there_before_the_first_one() -> None:
    assert Meters().registry.get_sample_value("molecule_worker_takeovers_total", {"by": "lease"}) == 0.0


def rung(*answers: bool) -> Meters:
    meters = Meters()
    coming = iter(answers)
    publish = MeteredPublisher(lambda _: next(coming), meters)
    for _ in answers:
        publish(Ring(JOB.id, "toy.make", "toy", lost=True))
    return meters


def test_a_job_that_was_rung_for_and_still_waits_is_a_lost_dispatch() -> None:
    meters = rung(True, True)

    assert value(meters, "doorbells_sent_total", kind="toy.make") == 2
    assert value(meters, "dispatch_lost_total", kind="toy.make") == 2


def test_what_could_not_be_sent_while_the_broker_was_away_was_not_lost() -> None:
    meters = rung(False, True)

    assert value(meters, "doorbells_sent_total", kind="toy.make") == 1
    assert value(meters, "dispatch_lost_total", kind="toy.make") == 0
