"""Which jobs this process takes, and when: a bell for one job, or its own look around every second.

Pulling is right and ringing is only faster: with no broker at all the same jobs run, up to a second later.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from threading import BoundedSemaphore, Event, Lock, Thread
from time import monotonic
from typing import Protocol

import structlog

from worker.engine.walk import Claimed
from worker.errors import Retryable

log = structlog.get_logger()

#: While more is queued than there is room for, a look waits until this share of the slots is free, or for so many seconds at
#: most: a claim of eight costs hardly more than a claim of one.
_SHARE = 4
_GATHER_S = 0.01


class Claims(Protocol):
    """Where jobs are claimed."""

    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        """Up to `most` jobs that are due, this process now holding their subjects. Raises Retryable when cut off."""
        ...


class Intake:
    """Claims for free slots only, so that a job never waits inside a process while another has room.

    `on_lost` is called with the cause when a claim ended in any unforeseen way: a row may say `running` then, and nobody here
    drives it.
    `clock` (monotonic seconds), `event` and `pool` are the machine's own, or a simulation's.
    """

    def __init__(
        self,
        claims: Claims,
        run: Callable[[Claimed], None],
        queues: Callable[[], Sequence[str]],
        *,
        slots: int,
        poll_s: float,
        on_lost: Callable[[Exception], None],
        clock: Callable[[], float] = monotonic,
        event: Callable[[], Event] = Event,
        pool: Executor | None = None,
    ) -> None:
        self._claims = claims
        self._run = run
        self._queues = queues
        self._slots = slots
        self._poll_s = poll_s
        self._on_lost = on_lost
        self._free = BoundedSemaphore(slots)
        self._clock = clock
        self._pool = pool or ThreadPoolExecutor(slots, thread_name_prefix="job")
        self._wake = event()
        self._asked = False  # to look now, and not only to think again about when to look
        self._closed = event()
        self._more = False  # the last look found as much as it could take
        self._due: list[float] = []  # monotonic seconds at which a wait of ours ends: a hint, the row decides
        self._guard = Lock()
        self._driving: Counter[str] = Counter()  # twice, while a job that is claimed again has not left its last drive yet
        self._claiming = 0
        self._freed: list[float] = []  # monotonic seconds at which slots became free since the last look
        self._thread = Thread(target=self._look_around, name="intake", daemon=True)

    def start(self) -> None:
        """Begin to look around, at once."""
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Look now."""
        self._asked = True
        self._wake.set()

    def expect(self, seconds: float) -> None:
        """Look again after this many seconds, because a wait of ours ends then; the next ordinary look may be too late."""
        if seconds < self._poll_s:
            with self._guard:
                at = self._clock() + seconds
                heapq.heappush(self._due, at)
                first = self._due[0] == at
            if first:
                self._wake.set()

    def answer(self, job_id: str) -> bool:
        """Drive this job in the caller's thread, when it is due and free and there is room; False otherwise."""
        if self._closed.is_set():
            return False
        if not self._free.acquire(blocking=False):
            self.wake()  # the slot that frees first looks for it
            return False
        if not (claimed := self._claimed(1, [job_id])):
            self._free.release()
            return False
        self._hold(claimed[0])
        return True

    def driving(self) -> frozenset[str] | None:
        """The jobs that this process drives; None while a claim is on its way, because its jobs are ours before they are here."""
        with self._guard:
            return frozenset(self._driving) if not self._claiming else None

    def drain(self) -> None:
        """Claim no more."""
        self._closed.set()
        self.wake()

    def close(self, *, within_s: float) -> bool:
        """Claim no more and wait for what runs, once; True when all of it reached a boundary in time."""
        self.drain()
        end = monotonic() + within_s
        # What a claim on its way brings home still has to find a thread.
        self._thread.join(within_s)
        self._pool.shutdown(wait=False)
        got = sum(self._free.acquire(timeout=max(0.0, end - monotonic())) for _ in range(self._slots))
        return got == self._slots

    def _look_around(self) -> None:
        while not self._closed.is_set():
            pause = self._pause()
            stirred = self._wake.wait(pause)
            self._wake.clear()
            if not self._closed.is_set() and (self._asked or not stirred or not pause):
                self._asked = False
                try:
                    self._take()
                except Exception:
                    log.exception("look broke")
        log.info("drain begun", effect="no job is claimed any more")

    def _pause(self) -> float:
        """Seconds until the next look; 0 when its time has come."""
        with self._guard:
            now = self._clock()
            look = [now + self._poll_s]
            while self._due and self._due[0] <= now:
                look.append(heapq.heappop(self._due))
            look += self._due[:1]
            if self._more and self._freed:
                look.append(self._freed[0] + _GATHER_S)
            return max(0.0, min(look) - now)

    def _take(self) -> None:
        with self._guard:
            self._freed.clear()
        room = 0
        while room < self._slots and self._free.acquire(blocking=False):
            room += 1
        claimed = self._claimed(room, None) if room else []
        for _ in range(room - len(claimed)):
            self._free.release()
        self._more = room == 0 or len(claimed) == room
        for job in claimed:
            self._pool.submit(self._hold, job)

    def _claimed(self, most: int, ids: Sequence[str] | None) -> list[Claimed]:
        with self._guard:
            self._claiming += 1
        try:
            claimed = self._claims.claim(self._queues(), most, ids)
        except Retryable as error:
            log.warning("claim failed", reason=error.message)
            claimed = []
        except Exception as error:
            log.exception("claim broke")
            self._on_lost(error)
            claimed = []
        with self._guard:
            self._driving.update(job.id for job in claimed)
            self._claiming -= 1
        return claimed

    def _hold(self, job: Claimed) -> None:
        try:
            self._run(job)
        finally:
            with self._guard:
                self._driving -= Counter([job.id])
                self._freed.append(self._clock())
                freed = len(self._freed)
            self._free.release()
            if self._more and freed * _SHARE >= self._slots:
                self.wake()
            elif self._more and freed == 1:
                self._wake.set()  # to think again about when to look
