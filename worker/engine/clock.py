"""The clock: schedules come round, and each time somebody does once what is to be done, whoever is first.

A slot is `floor(now / every)` by the database's clock, and a row with that key is the election: any number of clocks may
tick. What nobody did while no clock ran is not made up, and a sweep that died half-way is repeated at its next slot,
because a sweep looks at what is true and not at what has happened since the last one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event
from typing import Any, Protocol

import structlog

from worker.errors import Retryable, WorkerError

log = structlog.get_logger()

#: Seconds after which the slots are asked again at the latest: the database's clock may be set.
_MOST_S = 10.0
#: Seconds until a database that does not answer is asked again.
_AGAIN_S = 1.0
_NAME = re.compile(r"[a-z][a-z0-9_.]{0,60}\Z")

Outcome = Mapping[str, Any]  #: JSON-able counts; never a secret
#: Told the world and whether to stop early; answers what it did. It must be safe to run twice at the same time.
Sweep = Callable[[Any, Callable[[], bool]], Outcome]


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Store a job of this kind; the slot is its idempotency key."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What comes round. The name is stored with each slot; renaming it begins anew."""

    name: str
    every: timedelta
    what: Sweep | Enqueue
    sentence: str  #: what it does, for people

    def __post_init__(self) -> None:
        """Refuse what could not be stored or would never rest."""
        if not _NAME.match(self.name):
            raise ValueError(f"read schedule: {self.name!r} is not a name")
        if self.every < timedelta(seconds=1):
            raise ValueError(f"read schedule {self.name}: every {self.every} is more often than the clock ticks")


@dataclass(frozen=True, slots=True)
class Turn:
    """The database's answer. `slot` is None where somebody else has it; `next_s` is seconds until the next one."""

    slot: datetime | None
    next_s: float


class Slots(Protocol):
    """Where slots are taken."""

    def take(self, schedule: Schedule) -> Turn:
        """Take the current slot, if nobody has. An enqueue is stored and over with it. Raises Unreachable."""
        ...

    def end(self, schedule: Schedule, slot: datetime, outcome: Outcome) -> None:
        """Store what a sweep did. Raises Unreachable."""
        ...


def tick(schedules: Sequence[Schedule], slots: Slots, world: object, stopping: Callable[[], bool]) -> float:
    """Do what has come round and nobody does. Seconds until to look again. Raises Unreachable."""
    pause = _MOST_S
    for schedule in schedules:
        if stopping():
            break
        turn = slots.take(schedule)
        pause = min(pause, turn.next_s)
        if turn.slot is not None and not isinstance(schedule.what, Enqueue):
            slots.end(schedule, turn.slot, _swept(schedule, schedule.what, world, stopping))
    return pause


def keep_time(schedules: Sequence[Schedule], slots: Slots, world: object, stop: Event) -> None:
    """Tick until `stop`, whatever happens."""
    cut_off = False
    while not stop.is_set():
        try:
            pause = tick(schedules, slots, world, stop.is_set)
            cut_off = False
        except Retryable as error:
            if not cut_off:
                log.warning("clock cut off", reason=error.message)
            cut_off, pause = True, _AGAIN_S
        except Exception:
            # The outermost frame of the thread: without it the installation would have no clock and nobody would know.
            log.exception("clock broke")
            pause = _MOST_S
        stop.wait(pause)


def _swept(schedule: Schedule, sweep: Sweep, world: object, stopping: Callable[[], bool]) -> Outcome:
    try:
        outcome = sweep(world, stopping)
    except Retryable:
        raise  # the slot stays unfinished, and the next one does it all
    except WorkerError as error:
        log.error("sweep failed", schedule=schedule.name, reason=error.message)  # noqa: TRY400  because the reason says it all
        return {"error": error.code}
    except Exception:
        log.exception("sweep broke", schedule=schedule.name)
        return {"error": "internal"}
    log.debug("swept", schedule=schedule.name, **outcome)
    return outcome
