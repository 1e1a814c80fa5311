"""The loop at the edge of a lease, where a job must neither be taken on nor be forgotten."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from worker.engine.drive import Record, drive
from worker.engine.machine import HOUR, NOTHING, QUICK, Direction, Done, Facts, Machine, Passage, Step
from worker.engine.walk import Claimed, Reply
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
