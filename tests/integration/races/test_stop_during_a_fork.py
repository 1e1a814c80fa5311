import os
import signal
import subprocess
import sys

_PROGRAM = """
import os, signal, time
from worker.supervisor import Supervisor

real = os.fork

def fork():
    pid = real()
    if pid:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # room for the interpreter to answer the signal
            pass
    return pid

os.fork = fork

def child():
    signal.pause()
    return 0

raise SystemExit(Supervisor({"one": child}, frozen_s=5).run())
"""


def test_a_stop_during_a_fork_reaches_the_child_too() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PROGRAM], start_new_session=True)
    try:
        assert parent.wait(10) == 0
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()
