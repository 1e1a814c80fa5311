"""The followed daemon with toy kinds beside its own: short steps of random length, many kinds for one subject."""

import random
import sys
from datetime import timedelta
from pathlib import Path
from threading import Event

from tests.system import dying
from worker.app import app
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import MINUTE, NOTHING, QUICK, Done, Machine, NotYet, Passage, Retry, Step
from worker.errors import Retryable

#: Far above the few failures that a step plays.
_OFTEN = Retry(attempts=1000, first=timedelta(milliseconds=10), ceiling=timedelta(milliseconds=50))


def work(_passage: Passage, _world: object) -> Done | NotYet:
    """Takes a while; now and then it fails, and now and then it is early."""
    Event().wait(random.uniform(0.02, 0.3))
    fate = random.random()
    if fate < 0.05:
        raise Retryable("do work: played")
    return NotYet("a played delay", timedelta(milliseconds=20)) if fate < 0.1 else Done()


STEPS = tuple(Step(f"s{n}", do=work, undo=NOTHING, within=MINUTE, retry=_OFTEN if n else QUICK) for n in (1, 2, 3))
KINDS = tuple(
    Kind(Machine(f"chaos.k{n}", STEPS, only_forward=False), "chaos:", "id", {"id": Arg("uuid")}, "jobs") for n in range(10)
)


def add(_script: dying.Script) -> None:
    """Put the toys into the catalogue."""
    for kind in KINDS:
        app.add_kind(kind)


if __name__ == "__main__":
    sys.exit(dying.main(Path(sys.argv[1]), add))
