"""A process that does not hear from its database: what it may still do, and when it leaves."""

from collections.abc import Iterator, Mapping
from threading import Event, Thread

import pytest

from tests.waiting import until
from worker.engine.lease import MARGIN_S, Beat, Lease

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
        self.free = Event()

    def beat(self) -> Beat:
        self.beats += 1
        if self.beats > 1:
            self.free.wait(60)
        return Beat(alive=True, stops=frozenset())

    def reap(self) -> Mapping[str, int]:
        return {}

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


def test_a_job_at_its_boundary_waits_for_the_beat_and_is_told_no_when_the_lease_is_over(register: Register) -> None:
    clock, lost, answers = Clock(), Event(), []
    lease = started(register, clock, lost, [])
    clock.now = LENGTH_S - MARGIN_S
    job = Thread(target=lambda: answers.append(lease.valid()))
    job.start()
    clock.now = LENGTH_S
    job.join(10)
    assert answers == [False]


def test_other_work_that_stands_still_ends_the_process(register: Register) -> None:
    lost, stuck = Event(), list[str]()
    started(register, Clock(), lost, stuck)
    assert not lost.is_set()
    stuck.append("a claim was not answered in time")
    assert lost.wait(10)


def test_a_shutdown_does_not_wait_for_a_beat_that_never_ends(register: Register) -> None:
    lease = started(register, Clock(), Event(), [])
    closing = Thread(target=lease.close, daemon=True)
    closing.start()
    closing.join(4 * LENGTH_S)
    assert not closing.is_alive()
    assert not register.closed, "its connection is in the hands of the beat"
