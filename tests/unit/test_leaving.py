"""A process that must go: what it says before, and that it goes whatever becomes of that."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.toys import Stage, toy_kind
from worker.engine.drive import Record
from worker.engine.lease import Beat, Lease
from worker.engine.machine import Direction, Facts
from worker.engine.walk import Claimed, Reply
from worker.errors import JournalLost, Unreachable
from worker.runtime import _drive_or_leave, _leave_for

KIND = toy_kind()
JOB = Claimed("j", KIND.name, "toy:1", {}, ["s1", "s2", "s3"], False, Direction.FORWARD, 0, 0, 1, None)


class Register:
    """Keeps what is said, in its order."""

    process_id = 1

    def __init__(self, fault: Exception | None = None) -> None:
        self.said: list[str] = []
        self._fault = fault

    def beat(self) -> Beat:
        return Beat(alive=True, stops=frozenset())

    def reap(self) -> Mapping[str, int]:
        return {}

    def resign(self) -> None:
        self.said.append("in doubt")
        if self._fault:
            raise self._fault

    def leave(self) -> None:
        self.said.append("gone")

    def close(self) -> None:
        """Nothing is held."""


class Broken:
    """A journal that ends like this."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def apply(self, record: Record) -> Reply | None:
        raise self._error

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        raise self._error


def lease_of(register: Register) -> Lease:
    return Lease(register, 60.0, on_lost=register.leave, on_reaped=lambda: None)


def drives(error: Exception) -> list[str]:
    """What is said when the journal ends like this."""
    register = Register()
    lease = lease_of(register)
    _drive_or_leave(
        JOB,
        {KIND.name: KIND},
        Stage(),
        Broken(error),
        lease,
        lambda cause: _leave_for(cause, lease, register.leave),
    )
    return register.said


def test_a_process_that_lost_its_journal_says_that_it_is_in_doubt_and_then_goes() -> None:
    assert drives(JournalLost("apply decision: no answer in time")) == ["in doubt", "gone"]


def test_a_process_that_goes_for_a_fault_of_its_own_blames_no_network() -> None:
    assert drives(ZeroDivisionError()) == ["gone"]


def test_a_process_that_nobody_hears_goes_all_the_same() -> None:
    register = Register(Unreachable("resign: the database did not answer"))
    _leave_for(JournalLost("claim jobs: lost"), lease_of(register), register.leave)
    assert register.said == ["in doubt", "gone"]


def test_a_process_that_cannot_even_say_so_goes_all_the_same() -> None:
    register = Register(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        _leave_for(JournalLost("claim jobs: lost"), lease_of(register), register.leave)
    assert register.said == ["in doubt", "gone"]
