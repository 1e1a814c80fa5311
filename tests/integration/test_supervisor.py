import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import until

#: A parent of one process that leaves its pid in a file and waits. It says on stdout the pid of a stranger, which it only started,
#: and, told to stop, its process says so and stays.
_PARENT = """
import os, signal, subprocess, sys
from worker.errors import Unreachable
from worker.supervisor import Supervisor

def child():
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told\\n"))
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    while True:
        signal.pause()

def keep():
    if os.path.exists(sys.argv[1] + ".end"):
        raise Unreachable("keep it: it does not stay")

stranger = subprocess.Popen(["sleep", "600"])
print(stranger.pid, flush=True)
try:
    sys.exit(Supervisor({"only": child}, frozen_s=0.3, keep=keep).run())
except Unreachable as error:
    print(error, flush=True)
    sys.exit(3)
finally:
    stranger.kill()
"""


class Parent:
    def __init__(self, process: "subprocess.Popen[bytes]", file: Path) -> None:
        self.process = process
        self._file = file

    def child(self, which: int) -> int:
        """The pid of the first, second … process that was started."""

        def started() -> int:
            pids = self._file.read_text().split() if self._file.exists() else []
            return int(pids[which - 1]) if len(pids) >= which else 0

        return until(started, what=f"start {which}")

    def starts(self) -> int:
        return len(self._file.read_text().split())

    def said(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def break_what_it_stands_on(self) -> None:
        self._file.with_name(f"{self._file.name}.end").touch()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    with started(tmp_path / "pids") as made:
        yield made


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[Parent]:
    """Its process does not leave when it is told to."""
    with started(tmp_path / "pids", "stubborn") as made:
        yield made


@contextmanager
def started(file: Path, *words: str) -> Iterator[Parent]:
    root = Path(__file__).parent.parent.parent
    argv = [sys.executable, "-c", _PARENT, str(file), *words]
    process = subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield Parent(process, file)
    for _ in range(2):
        process.terminate()
    process.communicate(timeout=10)


def test_a_killed_process_is_replaced(parent: Parent) -> None:
    os.kill(parent.child(1), signal.SIGKILL)

    assert parent.child(2) != parent.child(1)


def test_a_process_that_stays_frozen_is_killed_and_replaced(parent: Parent) -> None:
    first = parent.child(1)
    os.kill(first, signal.SIGSTOP)

    assert parent.child(2) != first
    assert not Path(f"/proc/{first}").exists()


def test_a_process_that_was_frozen_for_a_moment_is_left_alone(parent: Parent) -> None:
    first = parent.child(1)
    os.kill(first, signal.SIGSTOP)
    os.kill(first, signal.SIGCONT)
    with pytest.raises(AssertionError):
        until(lambda: parent.starts() > 1, within=1.0)

    assert parent.starts() == 1


def test_the_parent_leaves_when_its_processes_have_left(parent: Parent) -> None:
    parent.child(1)
    parent.process.terminate()

    assert parent.process.wait(10) == 0


def test_a_frozen_process_that_it_did_not_fork_is_left_alone(parent: Parent) -> None:
    stranger = int(parent.said())
    os.kill(stranger, signal.SIGSTOP)
    first = parent.child(1)
    os.kill(first, signal.SIGSTOP)

    assert parent.child(2) != first
    assert "T (stopped)" in Path(f"/proc/{stranger}/status").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_asked_once_the_exit_code_says_whether_a_person_interrupted(parent: Parent, number: int, code: int) -> None:
    parent.child(1)
    parent.process.send_signal(number)

    assert parent.process.wait(10) == code


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 1),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 130),
        ((signal.SIGINT, signal.SIGTERM), 130),
    ],
)
def test_asked_twice_the_exit_code_says_whether_a_person_interrupted(stubborn: Parent, numbers: tuple[int, int], code: int) -> None:
    stubborn.said()
    stubborn.child(1)
    stubborn.process.send_signal(numbers[0])
    assert stubborn.said() == "told"
    stubborn.process.send_signal(numbers[1])

    assert stubborn.process.wait(10) == code


def test_when_what_it_stands_on_does_not_stay_its_processes_leave_and_it_says_so(parent: Parent) -> None:
    parent.said()
    child = parent.child(1)
    parent.break_what_it_stands_on()

    assert parent.process.wait(10) == 3
    assert parent.said() == "keep it: it does not stay"
    assert not Path(f"/proc/{child}").exists()
