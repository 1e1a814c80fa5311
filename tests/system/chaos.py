"""Faults at random over everything that runs: processes killed and frozen, Postgres restarted, Redis wiped."""

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from threading import Event
from time import monotonic

from redis import Redis as Client
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from tests.system.house import REST, House, lives
from tests.system.outages import Postgres, Redis
from tests.system.size import full

#: Seconds for which a machine stands still: longer than a lease, and for a while nobody's.
FROZEN_S = 4.5
#: Seconds between two lines of progress.
TELL_S = 5.0
#: Counts doorbells that were rung again, because nobody came: a measurement, so it is no part of the schema.
LOST_BELLS = """
CREATE TABLE lost_bells (at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION count_lost_bell() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.lost_bells DEFAULT VALUES; RETURN NULL; END $$;
CREATE TRIGGER lost_bells AFTER UPDATE OF rung_at ON worker.jobs FOR EACH ROW
    WHEN (OLD.rung_at IS NOT NULL AND NEW.rung_at > OLD.rung_at) EXECUTE FUNCTION count_lost_bell();
"""


@dataclass(frozen=True)
class Size:
    """How much is done, and what is done to it meanwhile."""

    jobs: int
    subjects: int
    kills: int
    freezes: int
    restarts: int
    wipes: int
    within_s: float

    @classmethod
    def wanted(cls) -> "Size":
        """As CI can bear it, or in full; of the full size, the part that MOLECULE_TEST_PART says."""
        if not full():
            return cls(200, 20, 8, 2, 1, 2, within_s=120)
        part = float(os.environ.get("MOLECULE_TEST_PART", "1"))
        jobs, subjects, kills, freezes, restarts, wipes = (ceil(part * n) for n in (5000, 500, 100, 25, 5, 10))
        return cls(jobs, subjects, kills, freezes, restarts, wipes, within_s=3600)


@dataclass
class Chaos:
    """What happens to these daemons. Each kind of fault is spread evenly over the work: by what is done, not by the clock."""

    houses: Sequence[House]
    postgres: Postgres
    redis: Redis
    size: Size
    done: Counter[str] = field(default_factory=Counter)
    cut: dict[int, float] = field(default_factory=dict)  #: pid → when it was killed or frozen, monotonic seconds
    _frozen: list[tuple[float, list[int]]] = field(default_factory=list)

    def reign(self) -> float:
        """Until all jobs rest and all faults were had; how long that took, in seconds."""
        began = told = monotonic()
        faults = (
            ("kills", self.size.kills, self._kill),
            ("freezes", self.size.freezes, self._freeze),
            ("restarts", self.size.restarts, self._restart),
            ("wipes", self.size.wipes, self._wipe),
        )
        while (rested := self._rested()) != self.size.jobs and monotonic() < began + self.size.within_s:
            self._thaw(monotonic())
            if rested is not None:
                share = rested / self.size.jobs / 0.85  # the last ones are for faults that found nobody to happen to
                due = [act for name, most, act in faults if self.done[name] < min(most, ceil(most * share))]
                if due:
                    random.choice(due)()
                if monotonic() > told + TELL_S:
                    told = monotonic()
                    self.houses[0].tell(f"{told - began:.0f} s: {rested} of {self.size.jobs} jobs, {dict(self.done)}")
            Event().wait(random.uniform(0.05, 0.3))
        self._thaw(float("inf"))
        return monotonic() - began

    def _rested(self) -> int | None:
        """None while the database does not answer."""
        try:
            return int(self.houses[0].value("SELECT count(*) FROM worker.jobs WHERE state = ANY (:rest)", rest=list(REST)))
        except DBAPIError:
            return None

    def _at_work(self) -> set[int]:
        try:
            return {pid for pid in self.houses[0].holders() - set(self.cut) if lives(pid)}
        except DBAPIError:
            return set()

    def _kill(self) -> None:
        if victims := list(self._at_work()):
            self._strike(random.choice(victims), signal.SIGKILL)
            self.done["kills"] += 1

    def _freeze(self) -> None:
        if self._frozen:
            return
        house = random.choice(self.houses)
        if (victims := list(self._at_work() & house.children())) and house.process is not None:
            victim = random.choice(victims)
            # The parent first, because it would replace a process that alone is frozen: here a whole machine stands still.
            house.signal(signal.SIGSTOP)
            self._strike(victim, signal.SIGSTOP)
            self._frozen.append((monotonic() + FROZEN_S, [victim, house.process.pid]))
            self.done["freezes"] += 1

    def _strike(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        self.cut[pid] = monotonic()

    def _thaw(self, now: float) -> None:
        for moment, pids in [each for each in self._frozen if each[0] <= now]:
            self._frozen.remove((moment, pids))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _restart(self) -> None:
        self.postgres.restart()
        self.done["restarts"] += 1

    def _wipe(self) -> None:
        with suppress(RedisError), Client.from_url(self.redis.url.reveal()) as client:
            client.flushall()
            self.done["wipes"] += 1
