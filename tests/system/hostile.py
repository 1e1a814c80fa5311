"""The followed daemon with toy kinds that tell of themselves: quick steps, the middle one writes a row with its checkpoint.

What the rows of that step show is judged by a table without any constraint: one row for each step, or it was done twice.
"""

import random
import sys
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

from sqlalchemy import text

from tests.system import dying
from worker.app import app
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import MINUTE, NOTHING, Done, Machine, NotYet, Passage, Retry, Step

#: Far above the failures that an outage can cost.
_OFTEN = Retry(attempts=1000, first=timedelta(milliseconds=50), ceiling=timedelta(milliseconds=500))
WRITTEN = "CREATE TABLE IF NOT EXISTS public.written (job uuid, step text)"
#: Seconds until a process gives up on a database that neither answers nor hangs up.
ANSWER_S = 3.0


def work(_passage: Passage, _world: object) -> Done | NotYet:
    """Takes a moment; now and then it is early."""
    Event().wait(random.uniform(0.005, 0.05))
    return NotYet("a played delay", timedelta(milliseconds=20)) if random.random() < 0.1 else Done()


def write(passage: Passage, _world: object) -> Done:
    """Its row commits together with its checkpoint."""
    Event().wait(random.uniform(0.005, 0.05))

    def rows(connection: Any) -> None:
        # Longer than a hurried server allows (tests/system/assaults.py).
        connection.execute(text("INSERT INTO public.written SELECT :job, 'write' FROM pg_sleep(0.01)"), {"job": passage.id})

    return Done(rows=rows)


STEPS = tuple(
    Step(name, do=do, undo=NOTHING, within=10 * MINUTE, retry=_OFTEN)
    for name, do in (("begin", work), ("write", write), ("end", work))
)
KINDS = tuple(
    Kind(Machine(f"hostile.k{n}", STEPS, only_forward=False), "hostile:", "id", {"id": Arg("uuid")}, "jobs") for n in range(3)
)


def add(_script: dying.Script) -> None:
    """Put the toys into the catalogue."""
    for kind in KINDS:
        app.add_kind(kind)


if __name__ == "__main__":
    sys.exit(dying.main(Path(sys.argv[1]), add, pauses=(0.0, 0.5), answer_s=ANSWER_S))
