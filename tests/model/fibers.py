"""Time, and who moves next: greenlets on a clock that is only a number. One seed, one history."""

import heapq
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Event
from typing import Any

import greenlet


class Stop(greenlet.GreenletExit):
    """The fiber's process is dead. No `except Exception` of the engine swallows it."""


class Mortal:
    """What fibers run in: a process that may be dead, or frozen until some moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.frozen_until = 0.0


class Fiber(greenlet.greenlet):
    """A thread in miniature. `turn` grows with each awakening, so that an old alarm is known as old."""

    def __init__(self, home: Mortal, run: Callable[[], Any], hub: greenlet.greenlet) -> None:
        super().__init__(run, hub)
        self.home = home
        self.turn = 0


class Loop:
    """The scheduler: whoever's moment comes first moves. Moments come from random latencies, so any order may happen."""

    def __init__(self, rng: random.Random) -> None:
        self.now = 0.0
        self._alarms: list[tuple[float, int, Fiber, int]] = []
        self._fibers: list[Fiber] = []
        self._count = 0
        self._rng = rng
        self._hub = greenlet.getcurrent()
        self.on_time: Callable[[float], None] = lambda _now: None

    def clock(self) -> float:
        """Monotonic seconds, for the engine."""
        return self.now

    def event(self) -> Event:
        """An event for the engine: waiting for it lets others move."""
        return FiberEvent(self)

    def spawn(self, home: Mortal, run: Callable[[], Any], *, after: float = 0.0) -> None:
        """A fiber begins after so many seconds."""
        fiber = Fiber(home, run, self._hub)
        self._fibers.append(fiber)
        self.alarm(fiber, self.now + after)

    def end(self) -> None:
        """End every fiber, because the frames of one that only rests are never collected: gigabytes in tens of thousands of histories."""
        for fiber in self._fibers:
            fiber.home.dead = True
        for fiber in self._fibers:
            while fiber:  # begun and not over; its last words may want to rest
                fiber.throw(Stop)

    def alarm(self, fiber: Fiber, at: float) -> None:
        """Let this fiber go on at that moment, unless it went on meanwhile."""
        self._count += 1
        heapq.heappush(self._alarms, (at, self._count, fiber, fiber.turn))

    def sleep(self, seconds: float) -> None:
        """Let others move. Ends the fiber when its process died meanwhile."""
        fiber = self.current()
        self.alarm(fiber, self.now + seconds)
        self.rest(fiber)

    def rest(self, fiber: Fiber) -> None:
        """Give way until an alarm."""
        self._hub.switch()
        if fiber.home.dead:
            raise Stop

    def current(self) -> Fiber:
        """The fiber that moves."""
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        return fiber

    def run(self, until: float, over: Callable[[], bool]) -> None:
        """Move fibers until that moment, or until `over`."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= until:
            at, _, fiber, turn = heapq.heappop(alarms)
            if turn != fiber.turn or fiber.dead or (fiber.home.dead and not fiber):
                continue  # it moved since, it has ended, or it never began
            if fiber.home.frozen_until > at and not fiber.home.dead:
                self.alarm(fiber, fiber.home.frozen_until + self._rng.random() * 0.01)
                continue
            if at > self.now:
                self.now = at
                self.on_time(at)
            fiber.turn += 1
            fiber.switch()
            if over():
                return


class FiberEvent(Event):
    """`threading.Event` for fibers."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._set = False
        self._waiters: list[tuple[Fiber, int]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiters, self._waiters = self._waiters, []
        for fiber, turn in waiters:
            if turn == fiber.turn:
                self._loop.alarm(fiber, self._loop.now)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            fiber = self._loop.current()
            self._waiters = [(other, turn) for other, turn in self._waiters if turn == other.turn]
            self._waiters.append((fiber, fiber.turn))
            if timeout is not None:
                self._loop.alarm(fiber, self._loop.now + timeout)
            self._loop.rest(fiber)
        return self._set


class FiberPool(Executor):
    """`ThreadPoolExecutor` for fibers; nobody asks for its futures."""

    def __init__(self, loop: Loop, home: Mortal) -> None:
        self._loop = loop
        self._home = home

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self._loop.spawn(self._home, lambda: fn(*args, **kwargs))
        return Future()
