"""When a process looks for more jobs while more are queued than it has slots for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event

from tests.unit.test_intake import JOB
from tests.waiting import until
from worker.engine.intake import Intake
from worker.engine.walk import Claimed

_SLOTS = 8
#: So long that within a test no ordinary look comes round.
_NEVER_S = 1000.0


@dataclass
class Backlog:
    """A queue that is never empty, and what was asked of it."""

    asked: list[int] = field(default_factory=list)

    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        first = sum(self.asked)
        self.asked.append(most)
        return [replace(JOB, id=str(first + n)) for n in range(most)]


@contextmanager
def _working(run: Callable[[Claimed], None]) -> Iterator[Backlog]:
    backlog = Backlog()
    intake = Intake(backlog, run, list, slots=_SLOTS, poll_s=_NEVER_S, on_lost=lambda _: None)
    intake.start()
    yield backlog
    assert intake.close(within_s=10)


def test_a_single_free_slot_is_filled_although_no_other_becomes_free() -> None:
    one, rest = Event(), Event()

    def run(job: Claimed) -> None:
        assert (one if job.id == "0" else rest).wait(10)

    with _working(run) as backlog:
        until(lambda: backlog.asked == [_SLOTS], what="the first look")
        one.set()
        until(lambda: len(backlog.asked) == 2, what="a look for one slot")
        assert backlog.asked == [_SLOTS, 1]
        rest.set()
