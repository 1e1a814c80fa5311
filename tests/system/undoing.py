"""The followed daemon with kinds whose every undo can be killed: before, in and after its effect and its checkpoint."""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from sqlalchemy import text

from tests.system import dying
from worker.app import app
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import MINUTE, NOTHING, Child, Done, Effect, Machine, NotYet, Passage, Retry, Spread, Step

SOON = Retry(attempts=1000, first=timedelta(milliseconds=20), ceiling=timedelta(milliseconds=50))
#: In the midst of an effect; the other moments are those that every step has.
HALF = "half"
MOMENTS = ("before", HALF, *dying.MOMENTS[1:])


def noted(passage: Passage, connection: Any) -> None:
    """A row of our own for each effect, in the checkpoint's transaction."""
    connection.execute(
        text("INSERT INTO worker.job_events (job_id, what, actor) VALUES (:job, 'noted', :what)"),
        {"job": passage.id, "what": passage.key.partition(":")[2]},
    )


def effect(name: str, script: dying.Script | None) -> Effect:
    def do(passage: Passage, _world: object) -> Done:
        if script is not None:
            script.reached(dying.Where(passage.id, str(passage.direction), name), HALF, passage.stopping)
        return Done(rows=partial(noted, passage))

    return do


def spread(passage: Passage, _world: object) -> Done | Spread:
    """Over jobs that never end by themselves, so that whoever undoes has to cancel them."""
    if passage.children is not None:
        return Done()
    return Spread([Child(CHILD.name, {"id": str(uuid5(NAMESPACE_OID, f"{passage.id} {n}"))}) for n in range(3)], most=2)


def later(_passage: Passage, _world: object) -> NotYet:
    return NotYet("its parent", MINUTE)


def kind(name: str, *steps: Step) -> Kind:
    return Kind(Machine(name, steps, only_forward=False), "undo:", "id", {"id": Arg("uuid")}, "jobs")


def kinds(script: dying.Script | None = None) -> tuple[Kind, ...]:
    """Four plain steps, and a step that spreads after one that does not."""

    def step(name: str, do: Effect | None = None) -> Step:
        both = effect(name, script)
        return Step(name, do=do or both, undo=both, within=60 * MINUTE, retry=SOON)

    return (
        kind("undo.make", *[step(name) for name in ("one", "two", "three", "four")]),
        kind("undo.spread", step("one"), step("many", spread)),
        CHILD,
    )


CHILD = kind("undo.child", Step("waits", do=later, undo=NOTHING, within=60 * MINUTE, retry=SOON))


def add(script: dying.Script) -> None:
    """Put the toys into the catalogue."""
    for own in kinds(script):
        app.add_kind(own)


if __name__ == "__main__":
    sys.exit(dying.main(Path(sys.argv[1]), add))
