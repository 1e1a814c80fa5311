"""Rings for jobs that are due. A bell that is not heard costs a second, so ringing may fail but must never hold anything up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import structlog

from worker.errors import Unreachable

log = structlog.get_logger()

#: Rings in one pass. A backlog keeps the workers' own look-around busy anyway, so it is not rung through at once.
_MOST = 20
#: Seconds between two passes while there is more to ring for.
_PACE_S = 0.2
#: Milliseconds after which a job that was rung for and still waits is rung for again.
_AGAIN_MS = 5_000


@dataclass(frozen=True, slots=True)
class Ring:
    """A job that is due."""

    job_id: str
    kind: str
    queue: str
    lost: bool  #: it was rung for before, and nobody came


class Bell(Protocol):
    """What the database says."""

    def wait(self, seconds: float) -> bool:
        """Whether something was announced within that time. Raises Unreachable."""
        ...

    def due(self, most: int, again_ms: int) -> Sequence[Ring]:
        """Jobs that nobody was rung for yet, or too long ago; they count as rung for now. Raises Unreachable."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def relay(open_bell: Callable[[], Bell], publish: Callable[[Ring], bool], stop: Event) -> None:
    """Until `stop`: wait for an announcement, ring for what is due. A database that went away is opened again."""
    bell: Bell | None = None
    while not stop.is_set():
        try:
            bell = bell or open_bell()
            bell.wait(1.0)
            while len(rings := bell.due(_MOST, _AGAIN_MS)) == _MOST and not stop.is_set():
                _ring(rings, publish)
                stop.wait(_PACE_S)
            _ring(rings, publish)
        except Unreachable as error:
            log.warning("relay cut off", reason=error.message)
            if bell is not None:
                bell.close()
            bell = None
            stop.wait(1.0)
    if bell is not None:
        bell.close()


def _ring(rings: Sequence[Ring], publish: Callable[[Ring], bool]) -> None:
    for ring in rings:
        if not publish(ring):
            return  # the broker is away: whoever looks around finds the rest
