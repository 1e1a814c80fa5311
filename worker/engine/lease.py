"""A process's right to work: a row that it keeps alive, and a session lock that dies with it.

The lock shows a killed process within milliseconds, the lease a frozen or cut-off one after its length. An identity
is made new at each start and never revived: a process that lost it must exit, and its parent starts a fresh one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic
from typing import Protocol

import structlog

from worker.errors import Retryable

log = structlog.get_logger()

#: An effect is not started in the last part of a lease, because it could not even begin before somebody else may.
MARGIN_S = 0.5
#: Seconds between two looks whether a late beat was answered.
_LOOK_S = 0.05
#: Beats in a row after which a job that runs here by its row alone is a defect, and the process leaves.
_STRAYED = 6


@dataclass(frozen=True, slots=True)
class Beat:
    """What the database answers to a beat."""

    alive: bool
    stops: frozenset[str]  #: our jobs that must come to their next boundary
    draining: bool = False  #: our host is to be left free: jobs are given back, none is taken
    running: frozenset[str] = frozenset()  #: jobs that the rows say run here


class Register(Protocol):
    """The process's row, on a connection of its own whose session holds the lock."""

    process_id: int

    def beat(self) -> Beat:
        """Renew, and hear what is wanted of us. Raises Retryable when cut off."""
        ...

    def reap(self) -> Mapping[str, int]:
        """Take work back from the dead; how many jobs by what showed it, session or lease. Raises Retryable when cut off."""
        ...

    def resign(self) -> None:
        """Say that this process leaves because it cannot know what it holds: no step is to blame. Raises Retryable when cut off."""
        ...

    def close(self) -> None:
        """Give the identity up."""
        ...


class Lease:
    """Beats in a thread of its own, and is watched by another.

    A beat on a connection that stands still and is not cut never ends. `on_lost` is called once, from one of the two threads,
    when the right to work is gone.

    `driving` answers which jobs this process drives, None while that is about to change. `stuck` answers what of the process's
    other work has stood still for too long, which is as good a reason to leave, and leaves it as much in doubt. `clock` (monotonic
    seconds) and `event` are the machine's own, or a simulation's.
    """

    def __init__(
        self,
        register: Register,
        length_s: float,
        on_lost: Callable[[], None],
        on_reaped: Callable[[], None],
        driving: Callable[[], frozenset[str] | None] = lambda: None,
        stuck: Callable[[], str | None] = lambda: None,
        *,
        clock: Callable[[], float] = monotonic,
        event: Callable[[], Event] = Event,
    ) -> None:
        self._register = register
        self._stuck = stuck
        self._length_s = length_s
        self._on_lost = on_lost
        self._on_reaped = on_reaped
        self._clock = clock
        self._sent = clock()
        self._driving = driving
        self._stops: frozenset[str] = frozenset()
        self._drained = False
        self._strays: frozenset[str] = frozenset()
        self._strayed = 0
        self._ended = event()
        self._draining = event()
        self._guard = Lock()
        self._thread = Thread(target=self._run, name="lease", daemon=True)
        self._watcher = Thread(target=self._watch, name="lease watch", daemon=True)

    @property
    def process_id(self) -> int:
        """The identity that this process's claims carry."""
        return self._register.process_id

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()
        self._watcher.start()

    def valid(self) -> bool:
        """Whether an effect may still be started. While a beat is late nobody knows, so this waits for its answer.

        Because False is for good: a job that was given up by a process which then lives on would be nobody's.
        """
        while not self._fresh():
            if self._ended.wait(_LOOK_S):
                return False
        return True

    def stopping(self, job_id: str) -> bool:
        """Whether a long effect of this job should come to its boundary: cancelled, superseded, leaving, or lost."""
        return self.leaving() or job_id in self._stops or not self._fresh()

    def leaving(self) -> bool:
        """Whether jobs are given back at their next boundary."""
        return self._draining.is_set() or self._drained

    def drain(self) -> None:
        """Ask long effects to come to their boundary, and give jobs back there."""
        self._draining.set()

    def resign(self) -> None:
        """Say that this process leaves in doubt. Its exit follows whether or not this is heard, so nothing is raised for a silence.

        It may wait behind a beat that stands still: the watcher is at work until the lease is over, and ends both.
        """
        if self._ended.is_set():
            return
        try:
            self._register.resign()
        except Retryable as error:
            log.warning("not resigned", process=self.process_id, reason=error.message, effect="its jobs count a crash")

    def close(self) -> None:
        """Stop beating and give the identity up, so that nobody has to wait for the lease to end."""
        if not self._end():
            return
        self._thread.join(timeout=self._length_s)
        if not self._thread.is_alive():  # else its connection stands still, and would hold us up for ever
            self._register.close()

    def _run(self) -> None:
        # The first look is at once, because what a dead predecessor left waits for this very process. Then six per lease:
        # a killed neighbour is seen within half a second, and five beats may fail before we are.
        while not self._ended.is_set():
            reason = self._beat()
            if reason is not None:
                self._lose(reason)
                return
            self._ended.wait(self._length_s / 6)

    def _watch(self) -> None:
        while not self._ended.wait(self._length_s / 12):
            if self._clock() >= self._sent + self._length_s:
                self._lose("no beat was answered in time")

    def _lose(self, reason: str) -> None:
        if self._end():
            log.error("lease lost", process=self.process_id, reason=reason)
            self._on_lost()

    def _beat(self) -> str | None:
        """Renew, and take work back from the dead. None, or why the right to work is gone."""
        sent = self._clock()
        try:
            driving = self._driving()
            beat = self._register.beat()
            if not beat.alive:
                return "the lease ended"
            self._sent, self._stops, self._drained = sent, beat.stops, beat.draining
            # While a claim is on its way nobody knows; that is no sign that all is well, so it neither counts nor begins anew.
            if driving is not None and self._is_astray(beat.running - driving):
                return self._in_doubt("the rows say that a job runs here, and nobody here drives it")
            # Asked here and not by the watcher, because whoever resigns may be held up, and the watcher must not be.
            if (stuck := self._stuck()) is not None:
                return self._in_doubt(stuck)
            if self._register.reap():
                self._on_reaped()
        except Retryable as error:
            # The session lock went with the connection, so whoever looks next takes our work: no second try.
            return error.message
        except Exception:
            # Also a database that has become read-only: without a beat this process is not alive, so it must not look so.
            log.exception("beat broke")
            return "a beat broke"
        return None

    def _in_doubt(self, reason: str) -> str:
        self.resign()
        return reason

    def _is_astray(self, strays: frozenset[str]) -> bool:
        """Whether the same job has been nobody's for several beats: it would be for ever, while this process lives."""
        self._strays = strays & self._strays if self._strays else strays
        self._strayed = self._strayed + 1 if self._strays else 0
        return self._strayed > _STRAYED

    def _fresh(self) -> bool:
        """Measured from when the last good beat was *sent*."""
        return not self._ended.is_set() and self._clock() < self._sent + self._length_s - MARGIN_S

    def _end(self) -> bool:
        with self._guard:
            first = not self._ended.is_set()
            self._ended.set()
        return first
