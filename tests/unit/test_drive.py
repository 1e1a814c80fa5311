"""The loop at the edge of a lease, where a job must neither be taken on nor be forgotten; and over a step that spread."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from worker.engine.drive import Record, drive
from worker.engine.machine import HOUR, NOTHING, QUICK, Child, Children, Direction, Done, Facts, Machine, Passage, Spread, Step
from worker.engine.walk import Claimed, PastStep, Reply
from worker.errors import JournalLost

STEPS = ("s1", "s2", "s3")


class Tenure:
    """A right to work for so many steps, and whether its owner is leaving."""

    def __init__(self, steps: int, *, leaving: bool = False) -> None:
        self._left = steps
        self._leaving = leaving

    def valid(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def stopping(self, _job_id: str) -> bool:
        return False

    def leaving(self) -> bool:
        return self._leaving


class Pages:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def apply(self, record: Record) -> Reply | None:
        self.records.append(record)
        return Reply(None, {})

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        raise AssertionError("no step of these tests writes rows")


def done(_passage: Passage, _world: object) -> Done:
    return Done()


MACHINE = Machine("toy.make", [Step(name, do=done, undo=NOTHING, within=HOUR, retry=QUICK) for name in STEPS], only_forward=False)
JOB = Claimed(
    "j", "toy.make", "toy:1", {}, STEPS, only_forward=False, direction=Direction.FORWARD, position=0, attempt=0, fence=1, stop=None
)


def test_a_process_whose_lease_may_end_takes_no_further_step_and_must_leave() -> None:
    pages = Pages()
    with pytest.raises(JournalLost):
        drive(JOB, MACHINE, None, pages, Tenure(1))

    assert [(record["name"], record["next"]) for record in pages.records] == [("s1", "go")]


def test_a_process_that_leaves_gives_its_job_back_at_the_next_step() -> None:
    pages = Pages()
    drive(JOB, MACHINE, None, pages, Tenure(9, leaving=True))

    (record,) = pages.records
    assert (record["status"], record["next"], record["after_ms"]) == ("done", "wait", 0)
    assert (record["to_position"], record["to_direction"], record["to_attempt"]) == (1, "forward", 0)


def test_a_process_that_stays_goes_on_to_the_end() -> None:
    pages = Pages()
    drive(JOB, MACHINE, None, pages, Tenure(9))

    assert [(record["name"], record["next"]) for record in pages.records] == [("s1", "go"), ("s2", "go"), ("s3", "rest")]
    assert timedelta(milliseconds=pages.records[0]["took_ms"]) < HOUR


def spread(_passage: Passage, _world: object) -> Spread:
    return Spread([Child("toy.child", {})], most=1)


def undo(_passage: Passage, _world: object) -> Done:
    return Done()


def waits_for_children(*, open_: int, ago: timedelta) -> Claimed:
    """It spread at its second step, so long ago."""
    past = [
        PastStep(Direction.FORWARD, 0, "s1", "done", {}, ago),
        PastStep(Direction.FORWARD, 1, "s2", "waiting", {}, ago),
    ]
    family = Children(total=3, open=open_, succeeded=3 - open_, failed=0, cancelled=0)
    return replace(JOB, position=1, past=past, family={1: family})


SPREADS = Machine("toy.make", [Step(name, do=spread, undo=undo, within=HOUR, retry=QUICK) for name in STEPS], only_forward=False)


def test_a_step_whose_children_never_end_is_given_up_when_its_time_is_over_and_they_are_dropped() -> None:
    pages = Pages()
    early = drive(waits_for_children(open_=2, ago=HOUR / 2), SPREADS, None, pages, Tenure(9))
    drive(waits_for_children(open_=2, ago=HOUR), SPREADS, None, pages, Tenure(9))

    waits, given_up, drops = pages.records
    assert (early, waits["next"], waits["family"]) == (30.0, "wait", "start")
    assert (given_up["status"], given_up["to_direction"], given_up["to_position"]) == ("failed", "back", 1)
    assert given_up["job_error"]["code"] == "deadline"
    assert (drops["direction"], drops["next"], drops["family"]) == ("back", "wait", "drop")


@pytest.mark.parametrize(("direction", "before"), [(Direction.FORWARD, True), (Direction.BACK, True), (Direction.BACK, False)])
def test_a_step_that_spreads_once_more_and_an_undo_that_spreads_are_refused_at_the_cost_of_an_attempt(
    direction: Direction, before: bool
) -> None:
    machine = replace(SPREADS, steps=[replace(step, undo=spread) for step in SPREADS.steps])
    job, pages = replace(waits_for_children(open_=0, ago=timedelta()), direction=direction), Pages()
    drive(job if before else replace(job, family={}), machine, None, pages, Tenure(9))

    (record,) = pages.records
    assert (record["next"], record["to_attempt"], record["error"]["code"]) == ("wait", 1, "internal")
    assert "spread" not in record
