"""A process that does not hear from its database: what it may still do, and when it leaves."""

from collections.abc import Iterator, Mapping
from threading import Event, Thread

import pytest

from tests.waiting import until
from worker.engine.lease import MARGIN_S, Beat, Lease
from worker.errors import Unreachable

LENGTH_S = 3.0


class Clock:
    """Monotonic seconds, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Register:
    """Answers one beat, and then no more until it is freed."""

    process_id = 1

    def __init__(self) -> None:
        self.beats = 0
        self.closed = False
        self.resigned = False
        self.free = Event()
        self.answer = Beat(alive=True, stops=frozenset())

    def beat(self) -> Beat:
        self.beats += 1
        if self.beats > 1:
            self.free.wait(60)
        return self.answer

    def reap(self) -> Mapping[str, int]:
        return {}

    def resign(self) -> None:
        self.resigned = True
        raise Unreachable("resign: the database did not answer")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def register() -> Iterator[Register]:
    built = Register()
    yield built
    built.free.set()


def started(register: Register, clock: Clock, lost: Event, stuck: list[str]) -> Lease:
    lease = Lease(
        register, LENGTH_S, on_lost=lost.set, on_reaped=lambda: None, stuck=lambda: stuck[0] if stuck else None, clock=clock
    )
    lease.start()
    until(lambda: register.beats == 2, what="a beat that is not answered")
    return lease


def test_a_beat_that_never_ends_ends_the_process_when_the_lease_is_over(register: Register) -> None:
    clock, lost = Clock(), Event()
    lease = started(register, clock, lost, [])
    clock.now = LENGTH_S - MARGIN_S - 0.01
    assert lease.valid()
    clock.now = LENGTH_S - 0.01
    assert not lost.wait(0.6), "the answer may still come"
    clock.now = LENGTH_S
    assert lost.wait(10)
    assert not lease.valid()
    assert not register.resigned, "who froze looks alike, and must count"


def test_a_job_at_its_boundary_waits_for_the_beat_and_is_told_no_when_the_lease_is_over(register: Register) -> None:
    clock, lost, answers = Clock(), Event(), []
    lease = started(register, clock, lost, [])
    clock.now = LENGTH_S - MARGIN_S
    job = Thread(target=lambda: answers.append(lease.valid()))
    job.start()
    clock.now = LENGTH_S
    job.join(10)
    assert answers == [False]


def test_other_work_that_stands_still_ends_the_process_in_doubt(register: Register) -> None:
    lost, stuck = Event(), list[str]()
    started(register, Clock(), lost, stuck)
    assert not lost.is_set()
    stuck.append("a claim was not answered in time")
    register.free.set()
    assert lost.wait(10)
    assert register.resigned


def test_other_work_that_stands_still_while_no_beat_is_answered_ends_the_process_with_its_lease(register: Register) -> None:
    clock, lost, stuck = Clock(), Event(), list[str]()
    started(register, clock, lost, stuck)
    stuck.append("a claim was not answered in time")
    clock.now = LENGTH_S
    assert lost.wait(10)


def test_a_process_whose_lease_has_ended_does_not_resign(register: Register) -> None:
    lost, stuck = Event(), list[str]()
    started(register, Clock(), lost, stuck)
    stuck.append("a claim was not answered in time")
    register.answer = Beat(alive=False, stops=frozenset())
    register.free.set()
    assert lost.wait(10)
    assert not register.resigned


def test_a_lease_that_was_given_up_is_not_resigned(register: Register) -> None:
    lease = Lease(register, LENGTH_S, on_lost=lambda: None, on_reaped=lambda: None)
    lease._ended.set()
    lease.resign()
    assert not register.resigned, "nobody would end us if that were never answered"


def test_a_shutdown_does_not_wait_for_a_beat_that_never_ends(register: Register) -> None:
    lease = started(register, Clock(), Event(), [])
    closing = Thread(target=lease.close, daemon=True)
    closing.start()
    closing.join(4 * LENGTH_S)
    assert not closing.is_alive()
    assert not register.closed, "its connection is in the hands of the beat"
