"""A job that runs here by its row alone would run for ever: the process notices, and leaves it to others."""

from collections.abc import Mapping
from threading import Event

import pytest

from worker.engine.lease import Beat, Lease


class Register:
    """Rows that always say the same."""

    process_id = 1

    def __init__(self, running: frozenset[str]) -> None:
        self._running = running
        self.beats = 0
        self.enough = Event()
        self.resigned = Event()

    def beat(self) -> Beat:
        self.beats += 1
        if self.beats > 30:
            self.enough.set()
        return Beat(alive=True, stops=frozenset(), running=self._running)

    def reap(self) -> Mapping[str, int]:
        return {}

    def resign(self) -> None:
        self.resigned.set()

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("running", "driving", "leaves"),
    [
        ({"a"}, frozenset(), True),
        ({"a", "b"}, frozenset({"b"}), True),
        ({"a"}, frozenset({"a", "new"}), False),
        ({"a"}, None, False),
        (set(), frozenset(), False),
    ],
)
def test_a_job_that_nobody_here_drives_ends_the_process(running: set[str], driving: frozenset[str] | None, leaves: bool) -> None:
    register, lost, said = Register(frozenset(running)), Event(), list[bool]()

    def leave() -> None:
        said.append(register.resigned.is_set())
        lost.set()

    lease = Lease(register, 0.06, on_lost=leave, on_reaped=lambda: None, driving=lambda: driving, clock=lambda: 0.0)
    lease.start()
    try:
        assert lost.wait(10) if leaves else (register.enough.wait(10) and not lost.is_set())
        assert said == [True] * leaves, "no step is to blame, and it says so before it leaves"
    finally:
        lease.close()


def test_a_job_that_is_a_stray_for_one_beat_only_ends_nothing() -> None:
    register, lost = Register(frozenset({"a"})), Event()
    answers = iter([frozenset(), frozenset(), *([frozenset({"a"})] * 100)])
    lease = Lease(register, 0.06, on_lost=lost.set, on_reaped=lambda: None, driving=lambda: next(answers), clock=lambda: 0.0)
    lease.start()
    try:
        assert register.enough.wait(10)
        assert not lost.is_set()
    finally:
        lease.close()
