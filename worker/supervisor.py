"""The small parent: it starts the worker processes, restarts the one that died, and passes on when to stop.

Modules are loaded before the fork, so that a fresh process is at work within a fraction of a second and shares their
memory. No thread and no connection exists before the fork; each child opens its own.

A process that is frozen for longer than a lease has lost its work for good: it is killed, and a fresh one is started.

SIGTERM, SIGINT or SIGHUP once: children stop claiming, reach their next commit, leave. Twice: they are killed, and their
leases do the rest. The exit code is 130 when a SIGINT was among them; else 0, or 1 when processes had to be killed, because a
service manager that lost its patience must not take that for a clean stop.
"""

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import Final, NoReturn

import structlog

from worker.errors import WorkerError

log = structlog.get_logger()

#: Seconds between two starts of a process that keeps dying: at once, then growing.
PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 5.0)
#: A process that lived this long, in seconds, is not one that keeps dying.
_SETTLED_S = 20.0
#: Seconds between two looks at what else is kept alive.
_KEEP_S: Final = 1.0
#: What a shell shows for a program that Ctrl-C ended.
_INTERRUPTED: Final = 128 + signal.SIGINT
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Main = Callable[[], int]


def stop_signals() -> list[signal.Signals]:
    """What ends a daemon; a closed terminal as well, unless somebody has asked that it be ignored (nohup)."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGTERM, signal.SIGINT, *hangup]


class Supervisor:
    """Keeps one process for each name alive until it is told to stop. One that is frozen for `frozen_s` seconds is replaced.

    `keep` is called each second or sooner, for what these processes stand on; a WorkerError of it stops them all.
    """

    def __init__(
        self,
        mains: Mapping[str, Main],
        *,
        frozen_s: float,
        pauses: Sequence[float] = PAUSES,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self._mains = dict(mains)
        self._pauses = pauses
        self._frozen_s = frozen_s
        self._frozen: dict[int, float] = {}
        self._pids: dict[int, str] = {}
        self._born: dict[str, float] = {}
        self._deaths: dict[str, int] = dict.fromkeys(mains, 0)
        self._due: dict[str, float] = dict.fromkeys(mains, 0.0)
        self._stops = 0
        self._keep = keep
        self._fault: WorkerError | None = None
        self._interrupted = False
        self._killed = False
        self._children_watch, self._alive = os.pipe()
        self._signals, wakeup = socket.socketpair()
        for end in (self._signals, wakeup):
            end.setblocking(False)
        self._wakeup = wakeup

    def run(self) -> int:
        """Until every process has left after a stop. Answers the exit code, see above; raises what `keep` raised."""
        before = {number: signal.signal(number, self._on_stop) for number in stop_signals()}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno())
        # What lives now lives on in every child: a collection there would write to each object's header and so unshare it.
        gc.collect()
        gc.freeze()
        while self._pids or not self._stops:
            self._start_due()
            self._sleep()
            self._look_at_children()
            self._kill_frozen()
            self._keep_alive()
        signal.set_wakeup_fd(-1)
        for number, action in before.items():
            signal.signal(number, action)
        if self._fault is not None:
            raise self._fault
        if self._interrupted:
            return _INTERRUPTED
        return 1 if self._killed else 0

    def _on_stop(self, number: int, _: object) -> None:
        self._interrupted |= number == signal.SIGINT
        self._stop()

    def _stop(self) -> None:
        self._stops += 1
        # Here and not in the loop, which may bury the last of them before it looks.
        self._killed |= self._stops > 1 and bool(self._pids)
        for pid in self._pids:
            with suppress(ProcessLookupError):  # buried in this very moment
                os.kill(pid, signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

    def _start_due(self) -> None:
        if self._stops:
            return
        running = set(self._pids.values())
        for name, due in self._due.items():
            if name not in running and monotonic() >= due:
                self._fork(name)

    def _fork(self, name: str) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # A stop between the fork and the note of its pid would never reach the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        pid = os.fork()
        if pid == 0:
            self._become(name)
        self._born[name] = monotonic()
        self._pids[pid] = name
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def _become(self, name: str) -> NoReturn:
        """In the child: nothing of the parent's signals, and an end when the parent is gone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # A terminal's Ctrl-C reaches the whole group: the parent alone turns it into a stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        os.close(self._alive)
        Thread(target=_leave_with_parent, args=(self._children_watch,), name="parent", daemon=True).start()
        code = 70
        try:
            code = self._mains[name]()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 70
        except Exception:
            log.exception("process broke", name=name)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _sleep(self) -> None:
        running = set(self._pids.values())
        waits = [due - monotonic() for name, due in self._due.items() if name not in running and not self._stops]
        waits += [since + self._frozen_s - monotonic() for since in self._frozen.values()]
        longest = 5.0 if self._keep is None else _KEEP_S
        select.select([self._signals], [], [], max(0.0, min([*waits, longest])))
        try:
            while self._signals.recv(256):
                pass
        except BlockingIOError:
            return  # drained: the bytes only woke us

    def _look_at_children(self) -> None:
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return
            if pid not in self._pids:
                continue  # a service of the stack, or an orphan where we are the first process: none of ours to judge
            if os.WIFSTOPPED(status):
                self._frozen[pid] = monotonic()
                continue
            self._frozen.pop(pid, None)
            if not os.WIFCONTINUED(status):
                self._bury(pid, status)

    def _kill_frozen(self) -> None:
        """Its lease has ended, so all that it could do on waking is to leave; nobody else could take its place meanwhile."""
        for pid, since in list(self._frozen.items()):
            if monotonic() >= since + self._frozen_s:
                log.warning("process frozen", name=self._pids[pid], pid=pid, seconds=self._frozen_s)
                self._frozen.pop(pid)
                os.kill(pid, signal.SIGKILL)

    def _keep_alive(self) -> None:
        if self._keep is None or self._stops:
            return
        try:
            self._keep()
        except WorkerError as error:
            self._fault = error
            self._stop()

    def _bury(self, pid: int, status: int) -> None:
        name = self._pids.pop(pid)
        lived = monotonic() - self._born[name]
        self._deaths[name] = 0 if lived > _SETTLED_S else self._deaths[name] + 1
        pause = self._pauses[min(max(self._deaths[name] - 1, 0), len(self._pauses) - 1)]
        self._due[name] = monotonic() + pause
        if not self._stops:
            log.warning("process ended", name=name, pid=pid, how=_how(status), restart_in_s=pause)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name


def _leave_with_parent(watch: int) -> None:
    """End of file means that the parent is gone, however it went: stop as if it had asked, because nobody else will."""
    os.read(watch, 1)
    os.kill(os.getpid(), signal.SIGTERM)
