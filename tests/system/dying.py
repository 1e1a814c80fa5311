"""The real daemon, told by files where it must die, hold its breath or refuse: one process tree that tests can kill.

A wish is an empty file `<job>.<direction>.<step>.<moment>.<act>` in the folder that is given as the only argument. It is
renamed when it is fulfilled, so each happens once, whichever process gets there, and outlives the process that it kills;
a refusal alone stands for as long as its step is tried.

    before     the effect has not begun
    after      the effect is done, its decision is not on its way yet
    rows       what the step writes into our own tables is written, its transaction is open
    committed  the decision is applied

What happened is appended to `ledger.jsonl`, outside of the database under test.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, NamedTuple

from celery import signals

from config import settings as environment
from worker import app as celery
from worker.cli import daemon
from worker.engine.drive import Journal, Record
from worker.engine.kinds import Kind
from worker.engine.machine import NOTHING, Blocked, Done, Effect, Facts, NotYet, Passage, Spread, Step
from worker.engine.walk import Reply
from worker.errors import Refused
from worker.runtime import LOST

MOMENTS = ("before", "after", "rows", "committed")
LEDGER = "ledger.jsonl"
#: While this file exists, a process that lost its lease lives longer, by the seconds that are written there or by one, so that
#: its late writes can be seen refused.
LINGER = "linger"
#: Seconds that a held step waits for its release at most.
_HELD_S = 60.0


class Where(NamedTuple):
    """A step of a job, on its way forward or back."""

    job: str
    direction: str
    step: str


class Script:
    """The wishes of one folder, and the ledger beside them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, what: str, **more: object) -> None:
        """Append one line; whole, because it is one write."""
        line = json.dumps({"what": what, "pid": os.getpid(), "at": monotonic(), **more}) + "\n"
        ledger = os.open(self._folder / LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(ledger, line.encode())
        os.close(ledger)

    def reached(self, where: Where, moment: str, stopping: Callable[[], bool] = lambda: False) -> None:
        """Do here what was wished for here. `stopping` is the step's own question."""
        spot = ".".join([*where, moment])
        self.note("reached", **where._asdict(), moment=moment)
        if self._granted(spot, "kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._granted(spot, "hold"):
            self._hold(where.job, self._folder / f"{spot}.release", stopping)
        # A refusal stands: a neighbour's kill may take the process away before it is written, and the step comes again.
        if (self._folder / f"{spot}.refuse").exists():
            raise Refused("act as told: refused", hint="", code="as_told")

    def _hold(self, job: str, release: Path, stopping: Callable[[], bool]) -> None:
        end, told = monotonic() + _HELD_S, False
        while not release.exists() and monotonic() < end:
            if stopping() and not told:
                told = True
                self.note("told to stop", job=job)
            Event().wait(0.01)

    def leave(self) -> None:
        """What a process does that lost its right to work."""
        linger = self._folder / LINGER
        end = monotonic() + float((linger.exists() and linger.read_text()) or 1.0)
        while linger.exists() and monotonic() < end:
            Event().wait(0.02)
        self.note("left")
        os._exit(LOST)

    def _granted(self, spot: str, act: str) -> bool:
        wish = self._folder / f"{spot}.{act}"
        try:
            wish.rename(wish.with_name(f"{wish.name}.granted"))
        except FileNotFoundError:
            return False
        return True

    def wrap(self, kind: Kind) -> Kind:
        """The same kind, its effects followed."""
        steps = tuple(self._wrap_step(step) for step in kind.machine.steps)
        return replace(kind, machine=replace(kind.machine, steps=steps))

    def _wrap_step(self, step: Step) -> Step:
        undo = NOTHING if step.undo is NOTHING else self._wrap_effect(step.name, step.undo)
        return replace(step, do=self._wrap_effect(step.name, step.do), undo=undo)

    def _wrap_effect(self, step: str, effect: Effect) -> Effect:
        def followed(passage: Passage, world: Any) -> Done | NotYet | Blocked | Spread:
            where = Where(passage.id, str(passage.direction), step)
            self.reached(where, "before", passage.stopping)
            self.note("enter", **where._asdict(), subject=passage.subject)
            result: Done | NotYet | Blocked | Spread | None = None
            try:
                result = effect(passage, world)
            finally:
                self.note("leave", **where._asdict(), subject=passage.subject, done=isinstance(result, Done))
            self.reached(where, "after", passage.stopping)
            return self._wrap_rows(result, where) if isinstance(result, Done) else result

        return followed

    def _wrap_rows(self, result: Done, where: Where) -> Done:
        rows = result.rows
        if rows is None:
            return result

        def followed(connection: Any) -> Facts | None:
            learned = rows(connection)
            self.reached(where, "rows")
            return learned

        return Done(result.facts, followed)


class FollowedJournal:
    """The process's journal; what it answered is noted, and the moment after it can be the last."""

    def __init__(self, own: Journal, script: Script) -> None:
        self._own = own
        self._script = script

    def apply(self, record: Record) -> Reply | None:
        """See `worker.engine.drive.Journal`."""
        return self._followed(record, self._own.apply(record))

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """See `worker.engine.drive.Journal`."""
        return self._followed(record, self._own.apply_with(record, rows))

    def _followed(self, record: Record, reply: Reply | None) -> Reply | None:
        where = Where(str(record["job"]), str(record["direction"]), str(record["name"]))
        self._script.note("refused" if reply is None else "applied", **where._asdict(), fence=record["fence"])
        if reply is not None:
            self._script.reached(where, "committed")
        return reply


def main(
    folder: Path, more: Callable[[Script], None] = lambda _script: None, *, pauses: Sequence[float] = (0.0,), **seams: Any
) -> int:
    """`molecule-worker run` with followed steps and journal. `more` may change the catalogue first; `seams` are the runtime's."""
    script = Script(folder)
    app = celery.app
    daemon.catalogue()
    more(script)
    for name, kind in list(app.kinds.items()):
        app.kinds[name] = script.wrap(kind)

    def begin(**_: object) -> None:
        celery.begin(journal_of=lambda own: FollowedJournal(own, script), leave=script.leave, **seams)
        script.note("ready")

    signals.worker_init.disconnect(celery._start)
    signals.worker_init.connect(begin, weak=False)
    return daemon.supervise(environment.load(), ("jobs", "receiver", "clock"), pauses=pauses)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
