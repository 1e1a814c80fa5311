"""A process's right to work: a row that it keeps alive, and a session lock that dies with it.

The lock shows a killed process within milliseconds, the lease a frozen or cut-off one after its length. An identity
is made new at each start and never revived: a process that lost it must exit, and its parent starts a fresh one.
"""

from collections.abc import Callable, Mapping
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


class Register(Protocol):
    """The process's row, on a connection of its own whose session holds the lock."""

    process_id: int

    def beat(self) -> tuple[bool, frozenset[str]]:
        """Renew; answer whether we still live, and the ids of our jobs that must stop. Raises Retryable when cut off."""
        ...

    def reap(self) -> Mapping[str, int]:
        """Take work back from the dead; how many jobs by what showed it, session or lease. Raises Retryable when cut off."""
        ...

    def close(self) -> None:
        """Give the identity up."""
        ...


class Lease:
    """Beats in a thread of its own. `on_lost` is called once, from that thread, when the right to work is gone."""

    def __init__(self, register: Register, length_s: float, on_lost: Callable[[], None], on_reaped: Callable[[], None]) -> None:
        self._register = register
        self._length_s = length_s
        self._on_lost = on_lost
        self._on_reaped = on_reaped
        self._sent = monotonic()
        self._stops: frozenset[str] = frozenset()
        self._ended = Event()
        self._draining = Event()
        self._guard = Lock()
        self._thread = Thread(target=self._run, name="lease", daemon=True)

    @property
    def process_id(self) -> int:
        """The identity that this process's claims carry."""
        return self._register.process_id

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

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
        return self._draining.is_set()

    def drain(self) -> None:
        """Ask long effects to come to their boundary, and give jobs back there."""
        self._draining.set()

    def close(self) -> None:
        """Stop beating and give the identity up, so that nobody has to wait for the lease to end."""
        if not self._end():
            return
        self._thread.join(timeout=self._length_s)
        self._register.close()

    def _run(self) -> None:
        # The first look is at once, because what a dead predecessor left waits for this very process. Then six per lease:
        # a killed neighbour is seen within half a second, and five beats may fail before we are.
        while not self._ended.is_set():
            reason = self._beat()
            if reason is not None:
                if self._end():
                    log.error("lease lost", process=self.process_id, reason=reason)
                    self._on_lost()
                return
            self._ended.wait(self._length_s / 6)

    def _beat(self) -> str | None:
        """Renew, and take work back from the dead. None, or why the right to work is gone."""
        sent = monotonic()
        try:
            alive, stops = self._register.beat()
            if not alive:
                return "the lease ended"
            self._sent, self._stops = sent, stops
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

    def _fresh(self) -> bool:
        """Measured from when the last good beat was *sent*."""
        return not self._ended.is_set() and monotonic() < self._sent + self._length_s - MARGIN_S

    def _end(self) -> bool:
        with self._guard:
            first = not self._ended.is_set()
            self._ended.set()
        return first
