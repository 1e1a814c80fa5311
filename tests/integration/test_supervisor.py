import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until

#: A parent of one process that leaves its pid in a file and waits.
_PARENT = """
import os, pathlib, signal, sys
from worker.supervisor import Supervisor

def child():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    signal.pause()
    return 0

sys.exit(Supervisor({"only": child}, frozen_s=0.3).run())
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


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    file = tmp_path / "pids"
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen([sys.executable, "-c", _PARENT, str(file)], cwd=root, stderr=subprocess.DEVNULL)
    yield Parent(process, file)
    process.terminate()
    process.wait(10)


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
